"""Exclusion lists: keys, file names or sha256 that must not be used, one a line."""

import re
from pathlib import Path

from sonify.errors import InputError

SHA256 = re.compile("[0-9a-f]{64}")


def read_exclusions(path: Path | None) -> frozenset[str]:
    """Read an exclusion list; empty lines and lines that begin with `#` do not count.

    Raises:
        InputError: the file is not text.
    """
    if path is None:
        return frozenset()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"exclusion list {path}: expected one key or sha256 a line: {error}") from error
    entries = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return frozenset(entry.lower() if SHA256.fullmatch(entry.lower()) else entry for entry in entries)
