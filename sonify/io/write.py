"""Who writes into a run, and how: files that are never seen half-written, and their sha256.

One command at a time works in a run directory (`engine.lease`). In it a worker writes the files of the unit that it
does, through the `Transaction` that `engine.job.run_task` opens, and then the unit's commit. The driver writes
run.json, the frozen listings, answers that are taken over and lists for the user by `write_atomically`. What no commit
vouches for is kept beside: the index of a captions table (`sources.captions`), the logs of serving engines. A folder
that is made of a run, as a gallery, is made beside its place and swapped in (`replacing`); single files elsewhere are
written by `write_whole`.

On a disk a file is made under RUN/tmp, synced, renamed into place, and its folder synced. For a store it is made in
this machine's temporary folder and uploaded whole. A `Transaction` does so for the files of one unit; the commit
record, which makes them count, is written after it.
"""

import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from sonify.errors import DiskFull, InputError
from sonify.io.places import open_place, read_whole
from sonify.layout import TEMPORARY
from sonify.stores import Place, ask, kind_of

_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG)
_NO_PLACE += (errno.ELOOP, errno.EROFS)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A finished file: its path in its run or folder, its size and its sha256."""

    path: str
    size_bytes: int
    sha256: str


def write_atomically(run_dir: Place, relative: str, data: bytes) -> None:
    """Make a small file visible whole or not at all.

    Raises:
        DiskFull: no room is left.
        TransientError: the store cannot be reached.
    """
    if not isinstance(run_dir, Path):
        put_bytes(run_dir / relative, data)
        return
    with Transaction(run_dir) as transaction:
        transaction.create(relative).write(data)
        transaction.publish()


def write_whole(path: Path, data: bytes) -> None:
    """Make a file outside a run visible whole or not at all; its folder is made if there is none.

    A link stays, and what it leads to is written.

    Raises:
        DiskFull: no room is left.
        InputError: the place cannot be written to, or what is there is no regular file.
    """
    path = find_target(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming_full_disk(path.parent), naming_place(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
    finally:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)


def find_target(path: Path) -> Path:
    """Where the bytes of a file that is written whole go: the place itself, or what a link there leads to.

    Raises:
        InputError: a device, a pipe or a folder is there, which a file would take the place of.
    """
    with naming_place(path):
        try:
            mode = path.lstat().st_mode
            is_link = stat.S_ISLNK(mode)
            mode = path.stat().st_mode if is_link else mode
        except FileNotFoundError:  # nothing is there, or a link to nothing
            return Path(os.path.realpath(path)) if path.is_symlink() else path
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise InputError(f"{path}: cannot be written (is {what}); name a file")
    return Path(os.path.realpath(path)) if is_link else path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target` to fill, which takes its place when all went well; nothing is there half.

    Whether what is there may be replaced is the caller's to know. Where a kill came between the two renames, it is put
    back by the next call.

    Raises:
        DiskFull: no room is left; what was there stays.
        InputError: no folder can be made there, or a disk is mounted there.
    """
    replaced = target.with_name(f".{target.name}.replaced")
    with naming_full_disk(target.parent):
        with naming_place(target):
            if replaced.exists() and not target.exists():
                replaced.rename(target)
        partial = make_beside(target)
        try:
            yield partial
            _swap(partial, target, replaced)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(
    target: Path, what: str, names: Collection[str], inputs: Mapping[str, Path], words: str = "--out"
) -> None:
    """Refuse to put a made folder where it would take away what is not of its kind; nothing there, or empty, is well.

    Args:
        what: it is, such as "a report"; `names` is all that stands in such a folder.
        inputs: folders that are read, by what they are: the new one lies apart from each.
        words: the option that named `target`.

    Raises:
        InputError: as said.
    """
    place = Path(os.path.realpath(target))
    for name, folder in inputs.items():
        real = Path(os.path.realpath(folder))
        if place == real or place in real.parents or real in place.parents:
            how = "is" if place == real else "holds" if place in real.parents else "lies in"
            raise InputError(f"{words} {target}: {how} {name} ({folder}), which would be damaged; choose another place")
    with naming_place(target):
        if not os.path.lexists(target):
            return
        if not target.is_dir():
            raise InputError(f"{words} {target}: expected a folder, found something else; choose another place")
        foreign = sorted(path.name for path in target.iterdir() if path.name not in names)
    if foreign:
        raise InputError(
            f"{words} {target}: holds something else than {what} (such as {foreign[0][:100]!r}); choose another place"
        )


def make_beside(target: Path) -> Path:
    """Make the empty folder in which something is made that is to be called `target`."""
    partial = target.with_name(f".{target.name}.partial")
    with naming_place(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    return partial


def _swap(partial: Path, target: Path, replaced: Path) -> None:
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):  # what a mounted disk says
            raise
        raise InputError(f"{target}: cannot be replaced ({error.strerror}); choose a folder in it") from error
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def naming_place(place: Path) -> Iterator[None]:
    """Turn what the system says of a place where nothing can be made into an `InputError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise InputError(f"{place}: cannot be written ({error.strerror}); choose another place") from error


def clear_temporary(run_dir: Place) -> None:
    """Remove what killed workers left behind; what they left of a store is in their machines' temporary folders."""
    if isinstance(run_dir, Path):
        shutil.rmtree(run_dir / TEMPORARY, ignore_errors=True)


@contextmanager
def naming_full_disk(run_dir: Place) -> Iterator[None]:
    """Turn the system's `no space left` into a `DiskFull` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = run_dir if isinstance(run_dir, Path) else tempfile.gettempdir()
        raise DiskFull(
            f"{where}: no space left on the disk; nothing partial was committed: free some space and run the same"
            " command again"
        ) from error


class Transaction:
    """The output files of one unit: hidden until published, removed if abandoned.

    A context manager. `create` opens a file for a path relative to the run; `publish` syncs and renames them all.
    """

    def __init__(self, run_dir: Place) -> None:
        self.run_dir = run_dir
        root = run_dir / TEMPORARY if isinstance(run_dir, Path) else Path(tempfile.gettempdir())  # and thence uploaded
        self._folder = root / f"sonify-{os.getpid()}-{uuid.uuid4().hex}"
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "Transaction":
        with naming_full_disk(self.run_dir):
            self._folder.mkdir(parents=True, mode=0o700)
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
        """Sync, hash and rename or upload every file into place; the records are sorted by path.

        Raises:
            DiskFull: no room is left.
            TransientError: the store cannot be reached.
        """
        with naming_full_disk(self.run_dir):
            records = tuple(self._seal(relative) for relative in sorted(self._files))
            for record in records:
                self._place(Path(self._files[record.path].name), self.run_dir / record.path)
            if isinstance(self.run_dir, Path):
                for folder in sorted({(self.run_dir / record.path).parent for record in records}):
                    sync_folder(folder)
        return records

    def _place(self, made: Path, target: Place) -> None:
        if not isinstance(target, Path):
            put_file(made, target)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, target)

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


def sha256_of(place: Place) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open_place(place) as file:
        return digest_open(file)


def digest_open(file: BinaryIO) -> str:
    """The sha256 of what an open file still holds, in hexadecimal."""
    return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()


def put_file(source: Path, place: Place) -> None:
    """Upload a finished file: one request, or parts that become an object only together."""
    assert not isinstance(place, Path), place
    with _naming_bucket(place):
        ask(place, lambda: place.fs.put_file(str(source), place.path))


def put_bytes(place: Place, data: bytes) -> None:
    """Upload a small file, in one request."""
    assert not isinstance(place, Path), place
    with _naming_bucket(place):
        ask(place, lambda: place.fs.pipe_file(place.path, data))


def create_if_absent(place: Place, data: bytes) -> bool:
    """Upload a small file unless there is one of that name; say whether it was uploaded.

    A request whose answer was lost finds, at the next try, what it wrote itself.
    """
    assert not isinstance(place, Path), place
    try:
        with _naming_bucket(place):
            ask(place, lambda: place.fs.pipe_file(place.path, data, mode="create"))
    except FileExistsError:
        return read_whole(place) == data
    return True


@contextmanager
def _naming_bucket(place: Place) -> Iterator[None]:
    """What is not there when something is written is the bucket itself."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{place}: the store has no such bucket; make it, or check the name") from error


def remove(place: Place) -> None:
    """Remove a file or a folder, if it is there."""
    if not isinstance(place, Path):
        if kind_of(place) is not None:
            ask(place, lambda: place.fs.rm(place.path, recursive=True))
        return
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
