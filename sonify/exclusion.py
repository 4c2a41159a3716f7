"""Exclusion lists: keys, file names or sha256 that must not be used, one a line."""

import re
from pathlib import PurePosixPath

from sonify.errors import InputError
from sonify.io.places import open_place
from sonify.stores import Place

SHA256 = re.compile("[0-9a-f]{64}")


def read_exclusions(place: Place | None) -> frozenset[str]:
    """Read an exclusion list; empty lines and lines that begin with `#` do not count.

    Raises:
        InputError: the file is not text.
        TransientError: the store that it lies in cannot be reached.
    """
    if place is None:
        return frozenset()
    try:
        with open_place(place) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"exclusion list {place}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"exclusion list {place}: expected one key or sha256 a line: {error}") from error
    if any("\0" in line for line in lines):
        raise InputError(f"exclusion list {place}: expected UTF-8 text, found NUL bytes: UTF-16, perhaps")
    entries = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return frozenset(entry.lower() if SHA256.fullmatch(entry.lower()) else entry for entry in entries)


def exclusion_names(key: str, uri: str, sha256: str) -> frozenset[str]:
    """Under what an image may be excluded: also its file's name, with and without the ending (`sa_1` in SA-1B).

    A row of a table has a number for a name, which says nothing without the table's.
    """
    file = PurePosixPath(uri)
    return frozenset({key, uri, sha256, *((file.name, file.stem) if file.suffix else ())})
