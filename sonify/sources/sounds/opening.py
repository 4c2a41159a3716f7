"""Where a listed recording is: a file, a member of an archive, a cell of a table."""

import errno
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from sonify.config import AudioSetSounds, ParquetSounds, Sounds, WebDatasetSounds
from sonify.io.places import check_mounted, child, open_place, read_bytes
from sonify.io.tables import open_parquet
from sonify.io.tars import Member, index_members, read_member
from sonify.media.audio import StoredSound, UnreadableSound
from sonify.rows import Reason
from sonify.sources.userfiles import container, file_beside
from sonify.stores import Place

# A recording that is no file of its own is held in memory: 23 minutes of CD-quality WAV, some hours of MP3.
MAX_SOUND_BYTES = 256 << 20
# Of one archive or table, the rest of a unit's recordings follow the first.
ARCHIVES_HELD = 4
_MEMBER = re.compile(r"(.+?\.tar)/(.+)", re.IGNORECASE | re.DOTALL)


def open_sound(sources: tuple[Sounds, ...], corpus: str, file: str) -> StoredSound:
    """Get at a listed recording again, wherever the worker runs: its path, or its bytes.

    Args:
        sources: `audio.sources` of the configuration.
        corpus: as in the listing.
        file: as in the listing.

    Raises:
        UnreadableSound: it is not there, or larger than `MAX_SOUND_BYTES`.
        TransientError: the disk is in trouble.
    """
    source = next(source for source in sources if source.name == corpus)
    try:
        if isinstance(source, ParquetSounds):
            return _open_cell(source, file)
        in_archive = _MEMBER.fullmatch(file) if isinstance(source, WebDatasetSounds | AudioSetSounds) else None
        if in_archive:
            return _open_member(container(source.path, in_archive.group(1)), in_archive.group(2))
        return _open_file(source.path, file)
    except OSError as error:
        check_mounted(source.path, error)
        raise UnreadableSound(Reason.UNREADABLE, error.strerror or str(error)) from error


def _open_file(root: Place, file: str) -> StoredSound:
    place = child(root, file)
    if isinstance(place, Path):
        if not place.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return place
    data = read_bytes(place, MAX_SOUND_BYTES + 1)
    _check_size(len(data))
    return data


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_SOUND_BYTES:
        raise UnreadableSound(Reason.TOO_LARGE, f"{size_bytes} bytes, at most {MAX_SOUND_BYTES} are held")


def _open_member(archive: Place, name: str) -> bytes:
    member = _index(archive, _version(archive)).get(name)
    if member is None:
        raise FileNotFoundError(errno.ENOENT, "no such member in the archive")
    _check_size(member.size_bytes)
    with open_place(archive) as opened:
        return read_member(opened, member)


def _version(place: Place) -> tuple[float, int]:
    """Tells a file from one that took its place; what lies in a store is not looked at again."""
    if not isinstance(place, Path):
        return 0.0, 0
    stat = place.stat()
    return stat.st_mtime, stat.st_size


@lru_cache(maxsize=ARCHIVES_HELD)
def _index(archive: Place, _version: tuple[float, int]) -> Mapping[str, Member]:
    with open_place(archive) as file:
        members, _ = index_members(file, archive.name)
    return {member.name: member for member in members}


def _open_cell(source: ParquetSounds, file: str) -> StoredSound:
    uri, _, row = file.rpartition("/row-")
    table = container(source.path, uri)
    try:
        cell = _cells(table, _version(table), source.audio_column).read(int(row))
    except pa.ArrowException as error:
        raise UnreadableSound(Reason.UNREADABLE, str(error).splitlines()[0]) from error
    data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
    if isinstance(data, bytes):
        _check_size(len(data))
        return data
    if not isinstance(name, str):
        raise UnreadableSound(Reason.MISSING, "neither bytes nor a path")
    beside = file_beside(table, name)
    if beside is None:
        raise UnreadableSound(Reason.UNSUPPORTED, "a path out of the table's folder, or a URL: not followed")
    try:
        return _open_file(beside.parent, beside.name)
    except FileNotFoundError as error:
        raise UnreadableSound(Reason.MISSING, name) from error


@lru_cache(maxsize=1)
def _cells(table: Place, _version: tuple[float, int], column: str) -> "CellReader":
    return CellReader(table, column)


class CellReader:
    """Cells of one column; the next cell follows the one before without reading its row group again."""

    def __init__(self, table: Place, column: str) -> None:
        # of sounds one page is mostly a whole row group, held packed and unpacked
        self._file = open_parquet(table)
        self._column = column
        sizes = (self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups))
        self._starts = list(accumulate(sizes, initial=0))
        self._cells: Iterator[Any] = iter(())
        self._next = self._end = 0

    def read(self, row: int) -> Any:
        """One cell as a Python value.

        Raises:
            pa.ArrowException, OSError: the table is damaged there, or shorter than it was.
        """
        if row >= self._starts[-1]:
            raise FileNotFoundError(errno.ENOENT, "no such row in the table")
        if not self._next <= row < self._end:
            group = bisect_right(self._starts, row) - 1
            self._next, self._end = self._starts[group], self._starts[group + 1]
            batches = self._file.iter_batches(batch_size=1, row_groups=[group], columns=[self._column])
            self._cells = (batch.column(0)[0] for batch in batches)
        end, self._end = self._end, self._next  # where reading fails, the next call begins anew
        for _ in range(row - self._next):
            next(self._cells)
        cell = next(self._cells).as_py()
        self._next, self._end = row + 1, end
        return cell
