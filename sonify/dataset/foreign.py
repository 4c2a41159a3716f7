"""Files and tables of a folder that somebody else made.

A file is a regular one that lies in the folder, and is read no further than it is long. A table is looked at before
its rows are unpacked, which a few kilobytes can make into gigabytes.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sonify.errors import InputError
from sonify.io.places import open_place, read_ahead, read_bytes
from sonify.io.tables import rows_of, schema_of
from sonify.stores import BLOCK_BYTES, Place, list_sizes, read_remote

Row = TypeVar("Row")

# What `sonify publish` writes stays far below each of these.
MAX_ROWS = 10_000_000  # of a file
MAX_GROUP_BYTES = 256 << 20  # of a row group, decompressed but with each different text once
MAX_VALUES_IN_ROW = 100  # of a list: sources (`concepts.max_concepts` is at most that), conditions
MAX_TEXT_BYTES = 64 << 10
# Rows that are Python objects at once, and all their texts then: 128 KB a row, where a row of ours has some 3.
ROWS_AT_ONCE = 512
MAX_TEXTS_BYTES = 64 << 20


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


def read_table(folder: Place, name: str, row_type: type[Row]) -> Iterator[Row]:
    """Read a table's rows in order; some of them at a time become objects, after a look at how large they are.

    Raises:
        InputError: it is no Parquet file, has other columns, or holds more than any such file does.
    """
    place = folder / name
    with _naming_faults(place):
        with open_inside(folder, name) as source, pq.ParquetFile(source) as file:
            _check_footer(place, file, row_type)
            texts = _texts_of(file)
        with open_inside(folder, name) as source, pq.ParquetFile(source, read_dictionary=texts) as packed:
            yield from rows_of(_unpack(place, packed, schema_of(row_type)), row_type)


@contextmanager
def _naming_faults(place: Place) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{place}: not a Parquet file ({str(error).splitlines()[0][:200]!r})") from error


def _unpack(place: Place, packed: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Batches as they are read otherwise; each is checked while every different text is there once."""
    for batch in packed.iter_batches(ROWS_AT_ONCE, use_threads=False):
        size_bytes = 0
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            _check_lists(place, name, column)
            size_bytes += _check_texts(place, name, column)
        if size_bytes > MAX_TEXTS_BYTES:
            raise InputError(f"{place}: {size_bytes} bytes of text in {len(batch)} rows: too many")
        yield batch.cast(schema)


def _check_footer(place: Place, file: pq.ParquetFile, row_type: type) -> None:
    expected, found = schema_of(row_type), file.schema_arrow
    if not found.equals(expected, check_metadata=False):
        raise InputError(f"{place}: expected the columns {_columns(expected)}, found {_columns(found)}")
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    for group in groups:
        values = max(group.column(n).num_values for n in range(group.num_columns))
        if group.total_byte_size > MAX_GROUP_BYTES or values > MAX_VALUES_IN_ROW * max(group.num_rows, 1):
            raise InputError(f"{place}: {group.total_byte_size} bytes or {values} values in one row group: too many")
    if not 0 < file.metadata.num_rows <= MAX_ROWS:
        raise InputError(f"{place}: {file.metadata.num_rows} rows, expected some and at most {MAX_ROWS}")


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)[:1000]


def _texts_of(file: pq.ParquetFile) -> list[str]:
    """The columns that hold texts or bytes, those inside lists as well."""
    columns = (file.schema.column(n) for n in range(len(file.schema.names)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _check_lists(place: Place, name: str, column: pa.Array) -> None:
    if isinstance(column, pa.ListArray):
        longest = max(column.value_lengths().to_pylist(), default=0)
        if longest > MAX_VALUES_IN_ROW:
            raise InputError(f"{place}: {name}: {longest} values in one row, at most {MAX_VALUES_IN_ROW} are read")


def _check_texts(place: Place, name: str, column: pa.Array) -> int:
    """Look at each different text of a column, and return the bytes of all when they are unpacked."""
    size_bytes = 0
    for texts in _dictionaries(column):
        texts.dictionary.validate(full=True)  # raises where they are no UTF-8
        lengths = pc.binary_length(texts.dictionary)  # pyright: ignore[reportAttributeAccessIssue] - made at import
        longest = max(lengths.to_pylist(), default=0)
        if longest > MAX_TEXT_BYTES:
            raise InputError(f"{place}: {name}: a text of {longest} bytes, at most {MAX_TEXT_BYTES} are read")
        size_bytes += int(lengths.to_numpy()[texts.indices.to_numpy()].sum())
    return size_bytes


def _dictionaries(column: pa.Array) -> Iterator[pa.DictionaryArray]:
    """The texts of a column, each different one once."""
    if isinstance(column, pa.DictionaryArray):
        yield column
    elif isinstance(column, pa.ListArray):
        yield from _dictionaries(column.values)
    elif isinstance(column, pa.StructArray):
        for n in range(column.type.num_fields):
            yield from _dictionaries(column.field(n))
