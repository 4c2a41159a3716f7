"""Files of a folder that somebody else made: regular ones that lie in it, read no further than they are long."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from sonify.errors import InputError
from sonify.io.places import open_place, read_ahead, read_bytes
from sonify.stores import BLOCK_BYTES, Place, list_sizes, read_remote


def open_inside(folder: Place, name: str) -> BinaryIO:
    """Open a file for reading and seeking. On this machine no part of the name may be a link; no pipe is waited for.

    Raises:
        InputError: it is a link, is below one, or is no regular file.
        OSError: it cannot be opened.
        TransientError: the store cannot be reached; later reads raise it too.
    """
    return _open_local(folder, name) if isinstance(folder, Path) else open_place(folder / name)


def _open_local(folder: Path, name: str) -> BinaryIO:
    *folders, last = name.split("/")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            handle = _step(handle, part, os.O_DIRECTORY)
        handle = _step(handle, last, os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise
        raise InputError(_irregular(folder, name)) from error
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(_irregular(folder, name))
    return file


def _step(handle: int, part: str, flags: int) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=handle)
    finally:
        os.close(handle)


def _irregular(folder: Path, name: str) -> str:
    return (
        f"{folder}/{name}: no regular file of the folder: links are not followed; if they are yours, copy it (cp -rL)"
    )


def read_inside(folder: Place, name: str, limit: int) -> bytes:
    """The first `limit` bytes of a file, or all where there are fewer; raises what `open_inside` does."""
    if not isinstance(folder, Path):
        return read_bytes(folder / name, limit)
    with _open_local(folder, name) as file:
        return file.read(min(limit, os.fstat(file.fileno()).st_size))


def hash_files(folder: Place, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The sha256 of each file, of the bytes that it has at first: one that grows is read no further.

    Threads read single blocks, so that whoever interrupts waits for some of those and not for a whole file.

    Raises:
        InputError: a file cannot be read, or is no regular one.
    """
    blocks = read_ahead(lambda block: (block[0], _read_block(folder, *block)), _blocks(folder, names))
    for name, parts in groupby(blocks, key=itemgetter(0)):
        digest = hashlib.sha256()
        for _, data in parts:
            digest.update(data)
        yield name, digest.hexdigest()


def _blocks(folder: Place, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Where each block of each file begins and ends; an empty file has one, too."""
    sizes = {} if isinstance(folder, Path) else list_sizes(folder)
    for name in names:
        size = _size(folder, name) if isinstance(folder, Path) else sizes.get(name)
        if size is None:
            raise InputError(f"{folder}/{name}: there is no such file: get the folder again")
        yield from ((name, start, min(start + BLOCK_BYTES, size)) for start in range(0, max(size, 1), BLOCK_BYTES))


def _size(folder: Path, name: str) -> int | None:
    try:
        with _open_local(folder, name) as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None


def _read_block(folder: Place, name: str, start: int, stop: int) -> bytes:
    try:
        if not isinstance(folder, Path):
            return read_remote(folder / name, start, stop)
        with _open_local(folder, name) as file:
            file.seek(start)
            return file.read(stop - start)
    except OSError as error:
        raise InputError(f"{folder}/{name}: {error.strerror or error}: get the folder again") from error
