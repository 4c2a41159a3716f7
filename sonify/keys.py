"""Keys that are safe everywhere, and randomness that depends on nothing but what it is for."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator

_UNSAFE = re.compile(rb"[^A-Za-z0-9-]")
_ESCAPED = re.compile(r"_(_|[0-9a-f]{2})")
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
# A key that is longer is written closer, and lies in folders: with scene and ending behind it a part of a member's name
# has at most 255 bytes, which is all that the file systems take on which somebody unpacks it.
MAX_PART_CHARS = 180
# A run of other characters than ASCII, written closer: `_u`, which no byte is written as, a symbol for its number of
# UTF-16 units, and those in base64. Of 32 characters none has more units than there are symbols.
_FOREIGN = re.compile(r"([^\x00-\x7f]{1,32})")
_SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_MARKS = re.compile(r"_(?:_|[0-9a-f]{2}|u([A-Za-z0-9_-]))")


def escape_key(name: str) -> str:
    """Write any relative path in `[A-Za-z0-9_-]+`, reversibly: `_` doubles, other bytes become `_` and two hex digits.

    What would be long then, and is short in base64, is that where it is no ASCII: a Chinese character takes 3
    characters instead of 9.

    >>> escape_key("cats/tom_1.jpg")
    'cats_2ftom__1_2ejpg'
    """
    plain = plain_key(name)
    if len(plain) <= MAX_PART_CHARS:
        return plain
    pieces = enumerate(_FOREIGN.split(name))
    closer = "".join(_encode_run(piece) if n % 2 else plain_key(piece) for n, piece in pieces)
    return min(plain, closer, key=len)


def plain_key(name: str) -> str:
    """The key without base64, whatever its length: what keys are sorted by, and what a run of before may call it."""

    def escape(match: re.Match[bytes]) -> bytes:
        byte = match.group()
        return b"__" if byte == b"_" else b"_%02x" % byte[0]

    return _UNSAFE.sub(escape, name.encode("utf-8", "surrogateescape")).decode("ascii")


def keys_of(name: str) -> frozenset[str]:
    """All keys that a name may have in a run: today's, and the plain one that a run of before gave it."""
    return frozenset({escape_key(name), plain_key(name)})


def unescape_key(key: str) -> str:
    """Undo `escape_key`, and `plain_key`."""
    return "".join(_unescaped(key))


def key_order(key: str) -> str:
    """What keys are sorted by, and what two keys of the same name have in common: the plain key of that name."""
    if "_u" not in key:
        return key
    try:
        return plain_key(unescape_key(key))
    except UnicodeEncodeError:  # half a character: none of ours
        return key


def _encode_run(run: str) -> str:
    data = run.encode("utf-16-be", "surrogatepass")
    return f"_u{_SYMBOLS[len(data) // 2 - 1]}{base64.urlsafe_b64encode(data).decode().rstrip('=')}"


def _unescaped(key: str) -> Iterator[str]:
    """The pieces of a name: what was written byte by byte, and runs."""
    start = position = 0
    while (match := _MARKS.search(key, position)) is not None:
        position = match.end()
        if match[1] is None:
            continue
        units = _SYMBOLS.index(match[1]) + 1
        end = position + -(-units * 16 // 6)
        if end <= len(key):
            yield _unescape_bytes(key[start : match.start()])
            padded = key[position:end] + "=" * (-(end - position) % 4)
            yield base64.urlsafe_b64decode(padded).decode("utf-16-be", "surrogatepass")
            start = position = end
    yield _unescape_bytes(key[start:])


def _unescape_bytes(piece: str) -> str:
    raw = _ESCAPED.sub(lambda m: "_" if m.group(1) == "_" else chr(int(m.group(1), 16)), piece)
    return raw.encode("latin-1").decode("utf-8", "surrogateescape")


def member_name(key: str, ending: str) -> str:
    """How a sample's file is called in an archive; of a long key each part is a folder, so that it can be unpacked."""
    return f"{'/'.join(_parts(key))}.{ending}"


def _parts(key: str) -> Iterator[str]:
    """As long as may be, and before no `_` if that can be: Hugging Face takes what begins with `__` for hidden."""
    start = 0
    while len(key) - start > MAX_PART_CHARS:
        ends = range(start + MAX_PART_CHARS, start, -1)
        end = next((end for end in ends if key[end] != "_"), ends[0])
        yield key[start:end]
        start = end
    yield key[start:]


def split_member(name: str) -> tuple[str, str]:
    """Undo `member_name`: key and ending. A name that it does not make has no ending, or is its own affair."""
    folders, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folders}{slash}{stem}".replace("/", ""), ending


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
