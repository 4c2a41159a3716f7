"""Reading, and listing a run's own files, on this machine or in a store alike: nobody else asks which a place is.

A store has no folders, no renames and no locks. Asked of it here are listings and whole objects or ranges of bytes, in
one request each; what must be mapped into memory is brought to this machine once.
"""

import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

import numpy as np

from sonify.errors import InputError, TransientError, WorkError
from sonify.installed import spell
from sonify.stores import (
    BLOCK_BYTES,
    Place,
    RemoteFile,
    ask,
    kind_of,
    list_sizes,
    read_remote,
    read_remote_whole,
    size_of_remote,
)

Item = TypeVar("Item")
Result = TypeVar("Result")
# What a disk or a network file system says when it is in trouble, as opposed to a file that is.
DISK_TROUBLE = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EMFILE})
# Requests in flight while an archive is fetched, or images are read one by one.
REQUESTS_AHEAD = 8


def is_file(place: Place) -> bool:
    """Whether there is a file of that name."""
    return place.is_file() if isinstance(place, Path) else kind_of(place) == "file"


def child(root: Place, name: str) -> Place:
    """The file of a listed name."""
    if not is_below(name):
        raise ValueError(f"{name!r} is no path below {root}")
    return root / name


def is_below(name: str) -> bool:
    """Whether a name stays below the folder that it is relative to, and is a name at all."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def open_place(place: Place) -> BinaryIO:
    """Open a file for reading and seeking.

    Raises:
        OSError: it cannot be opened.
        TransientError: the store cannot be reached; later reads raise it too.
    """
    if isinstance(place, Path):
        return place.open("rb")
    return cast(BinaryIO, io.BufferedReader(RemoteFile(place), BLOCK_BYTES))


def read_bytes(place: Place, limit: int) -> bytes:
    """The first `limit` bytes of a file, or all where there are fewer; a remote one takes one request.

    Raises:
        OSError: it cannot be read.
        TransientError: the store cannot be reached.
    """
    if not isinstance(place, Path):
        return read_remote(place, 0, limit)
    with place.open("rb") as file:
        return file.read(min(limit, os.fstat(file.fileno()).st_size))


def read_if_there(place: Place, limit: int) -> bytes | None:
    """What `read_bytes` gives; None where there is no such file."""
    if isinstance(place, Path) and not place.is_file():
        return None  # nor is a pipe, which would be waited for
    try:
        return read_bytes(place, limit)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def open_inside(folder: Place, name: str) -> BinaryIO:
    """Open a file for reading and seeking. On this machine no part of the name may be a link; no pipe is waited for.

    Raises:
        InputError: it is a link, is below one, or is no regular file.
        OSError: it cannot be opened.
        TransientError: the store cannot be reached; later reads raise it too.
    """
    return _open_regular(folder, name) if isinstance(folder, Path) else open_place(folder / name)


def _open_regular(folder: Path, name: str) -> BinaryIO:
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


def read_inside(folder: Place, name: str, start: int, stop: int) -> bytes:
    """The bytes of such a file from `start` up to `stop`, fewer where it ends; raises what `open_inside` does."""
    if not isinstance(folder, Path):
        return read_remote(folder / name, start, stop)
    with _open_regular(folder, name) as file:
        file.seek(start)
        return file.read(min(stop, os.fstat(file.fileno()).st_size) - start)


def sizes_inside(folder: Place, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """The size of each of such files, None where there is none; a store is asked once."""
    if not isinstance(folder, Path):
        listed = list_sizes(folder)
        yield from ((name, listed.get(name)) for name in names)
        return
    for name in names:
        try:
            with _open_regular(folder, name) as file:
                yield name, os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            yield name, None


@contextmanager
def open_local(place: Place) -> Iterator[BinaryIO]:
    """Open a file that is to be read here and there: a remote one is fetched once, into an unnamed temporary file.

    Raises:
        OSError: it cannot be opened.
        TransientError: the store cannot be reached.
        WorkError: the temporary folder has no room.
    """
    if isinstance(place, Path):
        with place.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="sonify-") as file:
        size = size_of_remote(place)
        blocks = ((start, min(start + BLOCK_BYTES, size)) for start in range(0, size, BLOCK_BYTES))
        for block in read_ahead(lambda bounds: read_remote(place, *bounds), blocks):
            _write_temporary(cast(BinaryIO, file), block, place, size)
        if file.tell() != size:
            raise TransientError(f"{place}: {file.tell()} of {size} bytes arrived")
        file.seek(0)
        yield cast(BinaryIO, file)


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], at_once: int = REQUESTS_AHEAD
) -> Iterator[Result]:
    """Like `map`, with some calls under way in threads; what waits is bounded."""
    with ThreadPoolExecutor(at_once) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def check_mounted(root: Place, error: OSError) -> None:
    """Raise where a listed file cannot be read because everything around it is gone: its unit is to stay undone."""
    if not isinstance(root, Path):
        if kind_of(root) is None:
            raise TransientError(f"{root}: nothing is there any more") from error
        return
    if error.errno in DISK_TROUBLE or not root.exists() or (root.is_dir() and next(root.iterdir(), None) is None):
        raise TransientError(f"{root}: {error.strerror or error}; is the disk mounted?") from error


def is_utf8(name: str) -> bool:
    """Whether a name can be written as text; a file system's may be any bytes."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def leads_out(root: Place, path: Place) -> bool:
    """Whether a path below `root`, which data name, is a file elsewhere: a table is not to choose what is read."""
    if not isinstance(root, Path) or not isinstance(path, Path):
        return False  # a store has no links
    return not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), ""))


def are_apart(place: Place, other: Path) -> bool:
    """Whether neither of two folders lies in the other, wherever links lead; one in a store lies in none."""
    if not isinstance(place, Path):
        return True
    found = [os.path.realpath(place), os.path.realpath(other)]
    return os.path.commonpath(found) not in found


def _list_local(root: Path) -> Iterator[str]:
    """Depth first; a folder's type comes with its listing, so that only links cost a look."""
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append((folder / entry.name, f"{prefix}{entry.name}/"))
                elif os.path.isfile(entry.path):  # links as well: a subset of a collection is often a folder of them
                    yield f"{prefix}{entry.name}"


def _write_temporary(file: BinaryIO, block: bytes, place: Place, size: int) -> None:
    try:
        file.write(block)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise WorkError(
            f"{tempfile.gettempdir()}: no room for {place} ({size} bytes), which is fetched whole: name a larger folder"
            " by TMPDIR"
        ) from error


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
    """Every file below a folder of a run, relative to it, in order; none where there is no folder.

    Links to files are followed, links to folders are not: nobody but a run puts anything there.
    """
    try:
        return sorted(_list_local(folder) if isinstance(folder, Path) else list_sizes(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror or error}") from error


def size_of(place: Place) -> int | None:
    """The size of a file in bytes; None where there is no such file."""
    if isinstance(place, Path):
        return place.stat().st_size if place.is_file() else None
    try:
        return size_of_remote(place)
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


def read_own(place: Place) -> bytes:
    """All bytes of a run's own file; no pipe is waited for.

    Raises:
        FileNotFoundError: there is no such file.
        TransientError: the store cannot be reached.
        WorkError: it is a folder, or no regular file.
    """
    if isinstance(place, Path) and not stat.S_ISREG(place.stat().st_mode):
        raise WorkError(f"{place}: expected a file of the run, found a folder, a pipe or a device; take it away")
    return read_whole(place)


def read_each(places: Sequence[Place]) -> Iterator[bytes]:
    """All bytes of many small files, in order; those of a store are asked for many at once. Raises as `read_own`."""
    return for_each(places[0], read_own, places) if places else iter(())


def for_each(
    place: Place, function: Callable[[Item], Result], items: Iterable[Item], at_once: int = REQUESTS_AT_ONCE
) -> Iterator[Result]:
    """Like `map`, with many calls at once where the place lies in a store; on a disk, threads only meet each other."""
    return map(function, items) if isinstance(place, Path) else read_ahead(function, items, at_once)


def load_array(place: Place) -> np.ndarray:
    """An `.npy` file: mapped where it lies on this machine, else in memory.

    Raises:
        FileNotFoundError: there is no such file.
        WorkError: it is damaged.
    """
    try:
        return np.load(place, mmap_mode="r") if isinstance(place, Path) else np.load(io.BytesIO(read_whole(place)))
    except (ValueError, EOFError) as error:  # its header is none: numpy takes it for a pickle, which is not read
        raise WorkError(f"{place}: damaged; `{spell('verify', 'RUN', '--repair')}` withdraws it") from error


def on_this_machine(place: Place) -> Path:
    """A file as one that can be mapped: itself, or a copy that all processes of this machine share."""
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
    """Where what belongs to one machine is kept: the run directory, or a private folder below `TMPDIR` for a store."""
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
