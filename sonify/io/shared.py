"""Arrays that are made once on a machine and mapped by all its processes: their memory is there once.

An entry is a folder of `.npy` files and a manifest with their sizes and checksums. It is filled under another name and
renamed, so it is never seen half-made; its name says what it was made of, so a stale one is never read. Whoever comes
first makes it while the others wait; one that is damaged is made again. Nothing here is of a run: all of it can be
made again.
"""

import fcntl
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonify.io.commits import DamagedRecord, open_record, seal_record
from sonify.io.write import naming_full_disk

MANIFEST = "manifest.json"
# Read at a time for a checksum: it stays in a processor's cache.
BLOCK_BYTES = 1 << 20
# Fills a new folder with arrays and gives the numbers that are to stand beside them.
Maker = Callable[[Path], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedArrays:
    """The mapped arrays of an entry by the names of their files, and the numbers beside them."""

    arrays: Mapping[str, np.ndarray]
    numbers: Mapping[str, float]


def share_arrays(folder: Path, kind: str, digest: str, make: Maker) -> SharedArrays:
    """Map an entry, which is made first where there is none; entries of the same kind made of something else go.

    Args:
        folder: where the entries of this machine lie.
        kind: what the entry is.
        digest: of all that it is made of.
        make: fills a folder.

    Raises:
        DiskFull: no room is left for it.
    """
    entry = folder / f"{kind}-{digest}"
    with naming_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(folder / f"{kind}.lock") as lock:
            _take(lock, fcntl.LOCK_SH)
            if found := _open_entry(entry):
                return found
            alone = _take(lock, fcntl.LOCK_EX)
            if found := _open_entry(entry):
                return found  # made while this process waited
            if alone:
                _clear(folder, kind)
            return _make_entry(entry, make)


@contextmanager
def _opened(lock: Path) -> Iterator[int]:
    """A file to lock; nothing is written to it, nor to what a link in its place leads to."""
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        yield file
    finally:
        os.close(file)


def _take(lock: int, operation: int) -> bool:
    """Whether the lock could be had: some network disks have none, and there the rename alone decides."""
    try:
        fcntl.flock(lock, operation)
    except OSError:
        return False
    return True


def _clear(folder: Path, kind: str) -> None:
    """Remove what is stale, damaged, or was left by a killed process; who has it mapped keeps it until it ends."""
    for left in folder.glob(f"{kind}-*"):
        _remove(left)


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _make_entry(entry: Path, make: Maker) -> SharedArrays:
    part = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir()
        numbers = dict(make(part))
        exact = {key: float(value).hex() for key, value in numbers.items()}  # JSON has no infinity
        files = {path.name: [path.stat().st_size, _checksum(path)] for path in sorted(part.glob("*.npy"))}
        (part / MANIFEST).write_bytes(seal_record({"files": files, "numbers": exact}))
        try:
            part.rename(entry)
        except OSError:
            if not os.path.lexists(entry):
                raise
            if (found := _open_entry(entry)) is not None:
                return found  # somebody else was first
            _remove(entry)
            part.rename(entry)
        made = _open_entry(entry)
        assert made is not None, entry
        return made
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _open_entry(entry: Path) -> SharedArrays | None:
    """The entry, or None where there is none or it is damaged."""
    try:
        manifest = open_record((entry / MANIFEST).read_bytes())
        files, numbers = manifest["files"], manifest["numbers"]
        for name, (size, checksum) in files.items():
            path = entry / name
            if path.stat().st_size != size or _checksum(path) != checksum:
                return None
        # copy-on-write, so that libraries which ask for memory of their own take it; nobody writes
        arrays = {name.removesuffix(".npy"): np.load(entry / name, mmap_mode="c") for name in files}
        return SharedArrays(arrays=arrays, numbers={key: float.fromhex(value) for key, value in numbers.items()})
    except (OSError, ValueError, DamagedRecord):
        return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb", buffering=0) as file:
        for block in _blocks(file.fileno()):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _blocks(file: int) -> Iterator[bytes]:
    while block := os.read(file, BLOCK_BYTES):
        yield block
