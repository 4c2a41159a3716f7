"""Reading and listing, on this machine or in a store alike: nobody else asks which of the two a place is.

A store has no folders, no renames and no locks. Asked of it here are listings and whole objects or ranges of bytes, in
one request each; what must be mapped into memory is brought to this machine once.
"""

import errno
import fcntl
import hashlib
import io
import logging
import os
import re
import shutil
import stat
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
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

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
# What a disk or a network file system says when it is in trouble, as opposed to a file that is.
_DISK_TROUBLE = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EMFILE})
# Requests in flight while an archive is fetched, or images are read one by one.
REQUESTS_AHEAD = 8


# What systems and programs leave beside people's files; what begins with a dot is always theirs.
_JUNK = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    }
)
_ENDING = re.compile(r"\.[a-z0-9_+~-]{1,16}")
ENDINGS_NAMED = 12  # on one line
# A folder may be linked under several names; more are links that lead to each other in every order.
MAX_LINKED_NAMES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one walk below a folder found, relative, `/` between the parts, each list in a fixed order.

    Attributes:
        files: those of the endings that were asked for.
        others: the rest.
        linked: the folders, each with its `/`, that links lead to.
        junk: how many files are no input of anybody: see `is_junk`.
        unnameable: how many have names that no table or path can hold.
        astray: how many links lead nowhere, or back to a folder above them.
    """

    files: list[str]
    others: list[str] = field(default_factory=list)
    linked: tuple[str, ...] = ()
    junk: int = 0
    unnameable: int = 0
    astray: int = 0


def list_files(root: Place, suffixes: Collection[str]) -> Listing:
    """Walk below `root` once: the files whose suffix, in small letters, is one of `suffixes`, and what else is there.

    Links are followed, to folders as well: a folder that is linked twice is there twice, and a link back to a folder
    above it is not followed.

    Raises:
        InputError: a folder cannot be listed, or links lead in circles.
        TransientError: the store cannot be reached.
    """
    walk = _Walk()
    names = walk.files_below(root) if isinstance(root, Path) else iter_files_below(root)
    files: list[str] = []
    others: list[str] = []
    lost: list[str] = []
    junk = 0
    for name in names:
        if is_junk(name):
            junk += 1
        elif not is_below(name) or not is_utf8(name):
            lost.append(name)
        else:
            (files if PurePosixPath(name).suffix.lower() in suffixes else others).append(name)
    if lost:
        log.warning("%d files are left out: their names are not UTF-8, or no path (%r)", len(lost), min(lost))
    return Listing(
        files=sorted(files),
        others=sorted(others),
        linked=tuple(sorted(walk.linked)),
        junk=junk,
        unnameable=len(lost),
        astray=walk.astray,
    )


def say_passed_over(root: Place, listing: Listing, aside: Collection[str] = (), hint: str = "") -> None:
    """Log, on one line, what a listing passed over, so that with what it took all that is there is counted.

    Args:
        root: the folder that was listed.
        listing: what was found.
        aside: those of `listing.others` that are read as tables or texts.
        hint: what would read some of the rest.
    """
    endings = Counter(_ending_of(name) for name in set(listing.others).difference(aside))
    first = sorted(endings.items(), key=lambda found: (-found[1], found[0]))[:ENDINGS_NAMED]
    named = [f"{count:,} {ending}" for ending, count in first]
    if (rest := endings.total() - sum(count for _, count in first)) > 0:
        named.append(f"{rest:,} of other endings")
    counts = (
        (listing.junk, "of no use (._*, .DS_Store, __MACOSX/ and their like)"),
        (listing.unnameable, "with names that no table can hold"),
        (listing.astray, "that are no files (links that lead nowhere or back, pipes)"),
    )
    parts = [f"ignored: {', '.join(named)}{hint}"] if named else []
    parts += [f"{count:,} {what}" for count, what in counts if count]
    if parts:
        read = f", {len(aside):,} read beside them" if aside else ""
        log.info("%s: %s files are input%s; %s", root, f"{len(listing.files):,}", read, "; ".join(parts))


def _ending_of(name: str) -> str:
    """A file's ending in small letters, where it is one that can be printed."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if _ENDING.fullmatch(suffix) else "(no ending)"


def is_junk(name: str) -> bool:
    """Whether a file, below a folder or in an archive, is one that a system or program left there (`._a.jpg`)."""
    parts = name.split("/")
    return any((part[:1] == "." and part not in (".", "..")) or part.lower() in _JUNK for part in parts)


def iter_files_below(root: Place) -> Iterator[str]:
    """Every file below `root`, relative to it, in no order; links to files are followed, links to folders are not."""
    try:
        yield from _list_local(root) if isinstance(root, Path) else list_sizes(root)
    except FileNotFoundError:
        return  # nothing is there
    except OSError as error:
        raise InputError(f"{root}: cannot be listed: {error.strerror or error}") from error


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
    if error.errno in _DISK_TROUBLE or not root.exists() or (root.is_dir() and next(root.iterdir(), None) is None):
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


class _Walk:
    """A walk through links to folders as well, and what it noted on its way."""

    def __init__(self) -> None:
        self.linked: list[str] = []
        self.astray = 0
        self._names: Counter[tuple[int, int]] = Counter()  # of each folder that a link leads to

    def files_below(self, root: Path) -> Iterator[str]:
        """Every file below the root, in no order.

        Raises:
            InputError: a folder cannot be listed, or links lead in circles.
        """
        try:  # a link to a folder above the root would lead back into it
            above = frozenset(_identity(os.stat(folder)) for folder in Path(os.path.realpath(root)).parents)
        except OSError:
            above = frozenset()  # nothing is there, or the listing says what is wrong
        waiting = [("", above)]  # each folder with those on the way to it, by which a link back is known
        while waiting:
            prefix, way = waiting.pop()
            try:
                way |= {_identity(os.stat(root / prefix))}
                with os.scandir(root / prefix) as entries:
                    for entry in entries:
                        name = f"{prefix}{entry.name}"
                        match self._kind_of(entry, name, way):
                            case "folder":
                                waiting.append((f"{name}/", way))
                            case "file":
                                yield name
                            case None:
                                self.astray += 1
            except OSError as error:
                # what is gone since its folder was listed is no more input than what somebody else's bin keeps shut
                if not (isinstance(error, FileNotFoundError) or (prefix and is_junk(prefix))):
                    raise InputError(f"{root / prefix}: cannot be listed: {error.strerror or error}") from error

    def _kind_of(self, entry: os.DirEntry[str], name: str, way: frozenset[tuple[int, int]]) -> str | None:
        """What lies under a name; a folder's type comes with its listing, so that only links cost a look."""
        if not entry.is_symlink():
            if entry.is_dir(follow_symlinks=False):
                return "folder"
            return "file" if entry.is_file(follow_symlinks=False) else None
        try:
            found = os.stat(entry.path)
        except OSError as error:
            if error.errno in _DISK_TROUBLE:
                raise
            return None  # leads nowhere, or to itself
        if stat.S_ISDIR(found.st_mode):
            return self._follow(entry.path, name, _identity(found), way)
        return "file" if stat.S_ISREG(found.st_mode) else None

    def _follow(self, path: str, name: str, folder: tuple[int, int], way: frozenset[tuple[int, int]]) -> str | None:
        if folder in way or is_junk(name):
            return None
        self._names[folder] += 1
        if self._names[folder] > MAX_LINKED_NAMES:
            raise InputError(f"{path}: links lead to this folder by over {MAX_LINKED_NAMES} names: remove some")
        self.linked.append(f"{name}/")
        return "folder"


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


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
    """Every file below a folder, relative to it, in order; none where there is no folder."""
    return sorted(iter_files_below(folder))


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


def read_each(places: Sequence[Place]) -> Iterator[bytes]:
    """All bytes of many small files, in order; those of a store are asked for many at once."""
    return for_each(places[0], read_whole, places) if places else iter(())


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
