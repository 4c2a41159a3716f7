"""Files that are never seen half-written.

A file is made under RUN/tmp, synced, renamed into place, and its folder synced; a `Transaction` does so for the
files of one unit and writes the commit record last.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from sonify.errors import DiskFull, InputError
from sonify.layout import TEMPORARY


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A committed file: its path in the run, its size and its sha256."""

    path: str
    size_bytes: int
    sha256: str


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(run_dir: Path, relative: str, data: bytes) -> None:
    """Make a small file visible whole or not at all.

    Raises:
        DiskFull: no room is left.
    """
    with Transaction(run_dir) as transaction:
        transaction.create(relative).write(data)
        transaction.publish()


def write_whole(path: Path, data: bytes) -> None:
    """Make a file outside a run visible whole or not at all; its folder is made if there is none.

    Raises:
        DiskFull: no room is left.
        InputError: the place cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming_full_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)


def clear_temporary(run_dir: Path) -> None:
    """Remove what killed workers left behind."""
    shutil.rmtree(run_dir / TEMPORARY, ignore_errors=True)


@contextmanager
def naming_full_disk(run_dir: Path) -> Iterator[None]:
    """Turn the system's `no space left` into a `DiskFull` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"{run_dir}: no space left on the disk; nothing partial was committed: free some space and run the same"
            " command again"
        ) from error


class Transaction:
    """The output files of one unit: hidden until published, removed if abandoned.

    A context manager. `create` opens a file for a path relative to the run; `publish` syncs and renames them all.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._folder = run_dir / TEMPORARY / f"{os.getpid()}-{uuid.uuid4().hex}"
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "Transaction":
        with naming_full_disk(self.run_dir):
            self._folder.mkdir(parents=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError:
                continue  # a full disk fails again on close; the file is thrown away anyway
        shutil.rmtree(self._folder, ignore_errors=True)

    def create(self, relative: str) -> BinaryIO:
        """Open a new output file for writing and seeking."""
        assert relative not in self._files, relative
        with naming_full_disk(self.run_dir):
            file = (self._folder / f"{len(self._files)}").open("w+b")
        self._files[relative] = cast(BinaryIO, file)
        return self._files[relative]

    def publish(self) -> tuple[FileRecord, ...]:
        """Sync, hash and rename every file into place; the records are sorted by path.

        Raises:
            DiskFull: no room is left.
        """
        with naming_full_disk(self.run_dir):
            records = tuple(self._seal(relative) for relative in sorted(self._files))
            for record in records:
                target = self.run_dir / record.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self._files[record.path].name, target)
            for folder in sorted({(self.run_dir / record.path).parent for record in records}):
                sync_folder(folder)
        return records

    def _seal(self, relative: str) -> FileRecord:
        file = self._files[relative]
        file.flush()
        os.fsync(file.fileno())
        file.close()
        path = Path(file.name)
        return FileRecord(path=relative, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
