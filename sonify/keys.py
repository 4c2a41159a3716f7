"""Keys that are safe everywhere, and randomness that depends on nothing but what it is for."""

import hashlib
import json
import re

_UNSAFE = re.compile(rb"[^A-Za-z0-9-]")
_ESCAPED = re.compile(r"_(_|[0-9a-f]{2})")
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


def escape_key(name: str) -> str:
    """Write any relative path in `[A-Za-z0-9_-]+`, reversibly: `_` doubles, other bytes become `_` and two hex digits.

    >>> escape_key("cats/tom_1.jpg")
    'cats_2ftom__1_2ejpg'
    """

    def escape(match: re.Match[bytes]) -> bytes:
        byte = match.group()
        return b"__" if byte == b"_" else b"_%02x" % byte[0]

    return _UNSAFE.sub(escape, name.encode("utf-8", "surrogateescape")).decode("ascii")


def unescape_key(key: str) -> str:
    """Undo `escape_key`."""
    raw = _ESCAPED.sub(lambda m: "_" if m.group(1) == "_" else chr(int(m.group(1), 16)), key)
    return raw.encode("latin-1").decode("utf-8", "surrogateescape")


def hash64(*parts: str | int) -> int:
    """A 64-bit hash of the parts, the same on every machine and in every version of Python."""
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def uniform(*parts: str | int) -> float:
    """A number in [0, 1) drawn from what it is for: the seed, the key and the purpose."""
    return (hash64(*parts) >> 11) / 2**53


def split_of(seed: int, kind: str, key: str, validation: float) -> str:
    """Return `train` or `validation` for an image or a recording, by hash."""
    return "validation" if uniform(seed, "split", kind, key) < validation else "train"
