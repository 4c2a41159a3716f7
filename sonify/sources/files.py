"""Files that users bring, here or in a store: names that are no text, and a lost file told from a lost disk.

What lies on this machine is read as ever; everything else goes through `sonify.sources.remote`.
"""

import errno
import io
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

from sonify.config.sections import Place
from sonify.errors import InputError, TransientError, WorkError
from sonify.sources.remote import (
    BLOCK_BYTES,
    RemoteFile,
    kind_of,
    list_remote,
    read_remote,
    size_of_remote,
)

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# What a disk or a network file system says when it is in trouble, as opposed to a file that is.
_DISK_TROUBLE = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EMFILE})
# Requests in flight while an archive is fetched, or images are read one by one.
REQUESTS_AHEAD = 8


def list_files(root: Place, suffixes: Collection[str]) -> list[str]:
    """The files below `root` whose suffix, in small letters, is one of `suffixes`: relative, `/` between the parts.

    Links to files are followed, links to folders are not; names that no table or path can hold are left out. In a fixed
    order.

    Raises:
        InputError: a folder cannot be listed.
        TransientError: the store cannot be reached.
    """
    wanted = (name for name in iter_files_below(root) if PurePosixPath(name).suffix.lower() in suffixes)
    return sorted(with_readable_names(name for name in wanted if is_below(name)))


def iter_files_below(root: Place) -> Iterator[str]:
    """Every file below `root`, relative to it, in no order; see `list_files`."""
    try:
        yield from _list_local(root) if isinstance(root, Path) else list_remote(root)
    except FileNotFoundError:
        return  # nothing is there
    except OSError as error:
        raise InputError(f"{root}: cannot be listed: {error.strerror or error}") from error


def is_file(place: Place) -> bool:
    """Whether there is a file of that name."""
    return place.is_file() if isinstance(place, Path) else kind_of(place) == "file"


def child(root: Place, name: str) -> Place:
    """The file of a listed name.

    Raises:
        ValueError: the name leads elsewhere.
    """
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
    """Look whether a listed file cannot be read because everything around it is gone.

    Raises:
        TransientError: the disk is in trouble, or nothing is left under `root`: the unit is to stay undone.
    """
    if not isinstance(root, Path):
        if kind_of(root) is None:
            raise TransientError(f"{root}: nothing is there any more") from error
        return
    if error.errno in _DISK_TROUBLE or not root.exists() or (root.is_dir() and next(root.iterdir(), None) is None):
        raise TransientError(f"{root}: {error.strerror or error}; is the disk mounted?") from error


def is_utf8(name: str) -> bool:
    """Whether a name can be written as text; a file system's may be any bytes."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def with_readable_names(names: Iterable[str]) -> list[str]:
    """Leave out files whose names are not UTF-8, which no table can hold, and say so."""
    found = list(names)
    readable = [name for name in found if is_utf8(name)]
    if len(readable) < len(found):
        lost = next(name for name in found if not is_utf8(name))
        log.warning("%d files are left out: their names are not UTF-8 (%r)", len(found) - len(readable), lost)
    return readable


def leads_out(root: Path, path: Path) -> bool:
    """Whether a path below `root`, which data name, is a file elsewhere: a table is not to choose what is read."""
    return not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), ""))


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
