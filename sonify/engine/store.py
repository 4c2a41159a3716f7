"""The files of a run, wherever its directory lies: on a disk of this machine, or in a store (`s3://`, `gs://`).

A store has no folders, no renames and no locks. Asked of it here are listings, whole objects in one request each, and
objects that are created only if absent; what must be mapped into memory is brought to this machine once.
"""

import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

import numpy as np

from sonify.config.sections import Place
from sonify.errors import InputError, WorkError
from sonify.sources.files import open_local, open_place, read_ahead
from sonify.sources.remote import ask, kind_of, list_sizes, read_remote_whole

Item = TypeVar("Item")
Result = TypeVar("Result")

# Requests under way at once for many small objects: a store takes 20 to 100 ms for each.
REQUESTS_AT_ONCE = 32


def stems(folder: Place, suffix: str = ".parquet") -> list[str]:
    """The names, without `suffix`, of a folder's own files that end so, in order; none where there is no folder."""
    if isinstance(folder, Path):
        names: Iterable[str] = (path.name for path in folder.glob(f"*{suffix}"))
    else:
        names = (name for name in list_sizes(folder) if "/" not in name)
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


def folders_in(folder: Place) -> list[str]:
    """The names of a folder's own folders, in order."""
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.glob("*") if path.is_dir())
    try:
        entries = ask(folder, lambda: folder.fs.ls(folder.path, detail=True))
    except FileNotFoundError:
        return []
    return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory")


def files_below(folder: Place) -> list[str]:
    """Every file below a folder, relative to it, in order; none where there is no folder."""
    if isinstance(folder, Path):
        return sorted(path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file())
    return sorted(list_sizes(folder))


def size_of(place: Place) -> int | None:
    """The size of a file in bytes; None where there is no such file."""
    if isinstance(place, Path):
        return place.stat().st_size if place.is_file() else None
    try:
        return int(ask(place, lambda: place.fs.info(place.path))["size"])
    except FileNotFoundError:
        return None


class Sizes:
    """The sizes of many files of a run; of a store each folder is listed once, which is 1,000 files a request."""

    def __init__(self, run_dir: Place) -> None:
        self._run_dir = run_dir
        self._folders: dict[str, dict[str, int]] = {}

    def __call__(self, relative: str) -> int | None:
        """The size in bytes of a file of the run; None where there is no such file."""
        if isinstance(self._run_dir, Path):
            return size_of(self._run_dir / relative)
        path = PurePosixPath(relative)
        folder = path.parent.as_posix()
        if folder not in self._folders:
            self._folders[folder] = list_sizes(self._run_dir if folder == "." else self._run_dir / folder)
        return self._folders[folder].get(path.name)


def read_whole(place: Place) -> bytes:
    """All bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
        TransientError: the store cannot be reached.
    """
    return place.read_bytes() if isinstance(place, Path) else read_remote_whole(place)


def read_each(places: Sequence[Place]) -> Iterator[bytes]:
    """All bytes of many small files, in order; those of a store are asked for many at once."""
    return for_each(places[0], read_whole, places) if places else iter(())


def for_each(place: Place, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Like `map`, with many calls at once where the place lies in a store; on a disk, threads only meet each other."""
    return map(function, items) if isinstance(place, Path) else read_ahead(function, items, REQUESTS_AT_ONCE)


def sha256_of(place: Place) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open_place(place) as file:
        return digest_open(file)


def digest_open(file: BinaryIO) -> str:
    """The sha256 of what an open file still holds, in hexadecimal."""
    return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()


def load_array(place: Place) -> np.ndarray:
    """An `.npy` file: mapped where it lies on this machine, else in memory."""
    if isinstance(place, Path):
        return np.load(place, mmap_mode="r")
    return np.load(io.BytesIO(read_whole(place)))


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


def create(place: Place, data: bytes) -> bool:
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


def on_this_machine(place: Place) -> Path:
    """A file as one that can be mapped: itself, or a copy that all processes of this machine share.

    Raises:
        WorkError: there is no room for the copy.
    """
    if isinstance(place, Path):
        return place
    identity = ask(place, lambda: place.fs.ukey(place.path))
    copy = machine_folder(place.parent) / f"{identity[:32]}{place.suffix}"
    with copy.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that want it at once wait for the first
        if not copy.exists():
            part = copy.with_suffix(".part")
            try:
                with open_local(place) as source, part.open("wb") as file:
                    shutil.copyfileobj(source, file)
            except OSError as error:
                raise WorkError(f"{copy.parent}: {place} cannot be kept here: {error.strerror or error}") from error
            part.replace(copy)
    return copy


def machine_folder(run_dir: Place) -> Path:
    """Where what belongs to one machine is kept: the run directory, or a private folder below `TMPDIR` for a store.

    Raises:
        WorkError: a folder of that name belongs to somebody else.
    """
    if isinstance(run_dir, Path):
        return run_dir
    root = Path(tempfile.gettempdir()) / f"sonify-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    owner = root.lstat()
    if owner.st_uid != os.getuid() or root.is_symlink() or owner.st_mode & 0o022:
        raise WorkError(f"{root}: others may write there; remove it, or set TMPDIR to a folder of your own")
    folder = root / hashlib.sha256(str(run_dir).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    return folder
