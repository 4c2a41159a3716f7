"""Frozen rows to Parquet and back; the schema follows from the dataclass, so that it is written in one place."""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sonify.errors import WorkError
from sonify.installed import spell
from sonify.io.places import for_each, open_place, read_whole, stems
from sonify.stores import Place

Row = TypeVar("Row")
ROWS_IN_GROUP = 4096
# A column's pages are read through a buffer of this size: without one its whole part of a row group is held.
BUFFER_BYTES = 1 << 20
_PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64(), bytes: pa.binary(), bool: pa.bool_()}


def storable(text: str) -> str:
    """Text that Parquet accepts: untrusted text may hold half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


def schema_of(row_type: type) -> pa.Schema:
    """The Arrow schema of a frozen row: plain fields, and tuples of plain or frozen rows as lists."""
    return pa.schema(_fields(row_type))


def schema_of_before(row_type: type, found: pa.Schema | pa.StructType) -> pa.Schema:
    """The schema of a table that was written before fields with a default came: without those that `found` lacks."""
    names = set(found.names)
    hints = typing.get_type_hints(row_type)
    kept: list[pa.Field] = []
    for part, now in zip(dataclasses.fields(row_type), _fields(row_type), strict=True):
        if part.name not in names and _has_default(part):
            continue
        nested = _row_in(hints[part.name])
        old = found.field(part.name).type if nested and part.name in names else None
        if nested and old is not None and pa.types.is_list(old) and pa.types.is_struct(old.value_type):
            inner = pa.struct(list(schema_of_before(nested, old.value_type)))
            kept.append(now.with_type(pa.list_(pa.field("element", inner, nullable=False))))
        else:
            kept.append(now)
    return pa.schema(kept)


def _has_default(part: dataclasses.Field[Any]) -> bool:
    return part.default is not dataclasses.MISSING or part.default_factory is not dataclasses.MISSING


def _row_in(hint: Any) -> type | None:
    """The row of which a field is a list, if it is one."""
    of = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    return of if isinstance(of, type) and dataclasses.is_dataclass(of) else None


def _fields(row_type: type) -> list[pa.Field]:
    hints = typing.get_type_hints(row_type)
    return [pa.field(f.name, _arrow_type(hints[f.name]), nullable=False) for f in dataclasses.fields(row_type)]


def _arrow_type(hint: Any) -> pa.DataType:
    if hint in _PLAIN:
        return _PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, str):
        return pa.string()
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return pa.struct(_fields(hint))
    assert typing.get_origin(hint) is tuple, hint
    return pa.list_(pa.field("element", _arrow_type(typing.get_args(hint)[0]), nullable=False))


class TableWriter:
    """Writes rows to Parquet; the same rows give the same bytes.

    The compressed table is held until `close`, as a writer that meets a full disk cannot be closed.
    """

    def __init__(self, file: BinaryIO, row_type: type) -> None:
        self._schema = schema_of(row_type)
        self._file = file
        self._buffer = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._buffer, self._schema, compression="zstd", write_statistics=True)
        self._rows: list[dict[str, Any]] = []
        self.num_rows = 0

    def write(self, row: Any) -> None:
        """Add one row of the table's type."""
        self._rows.append(dataclasses.asdict(row))
        self.num_rows += 1
        if len(self._rows) == ROWS_IN_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        """Write the file, which stays open."""
        self._flush()
        self._writer.close()
        self._file.write(self._buffer.getvalue())


def write_rows(file: BinaryIO, row_type: type, rows: Sequence[Any]) -> None:
    """Write a whole table."""
    writer = TableWriter(file, row_type)
    for row in rows:
        writer.write(row)
    writer.close()


def read_rows(path: Place, row_type: type[Row]) -> Iterator[Row]:
    """Read a table's rows in order, a row group at a time.

    Raises:
        WorkError: the table is missing or damaged.
    """
    with _naming_damage(path), pq.ParquetFile(_source(path)) as file:
        yield from rows_of(file.iter_batches(ROWS_IN_GROUP), row_type)


def rows_of(batches: Iterable[pa.RecordBatch], row_type: type[Row]) -> Iterator[Row]:
    """Rows out of batches of such columns."""
    build = _builder(row_type)
    for batch in batches:
        for row in batch.to_pylist():
            yield build(row)


def _builder(row_type: type) -> typing.Callable[[dict[str, Any]], Any]:
    hints = typing.get_type_hints(row_type)
    nested = {
        name: _builder(typing.get_args(hint)[0])
        for name, hint in hints.items()
        if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0])
    }
    plain = {n for n, hint in hints.items() if typing.get_origin(hint) is tuple and n not in nested}
    enums = {n: h for n, h in hints.items() if isinstance(h, type) and issubclass(h, str) and h is not str}

    def build(values: dict[str, Any]) -> Any:
        for name in nested.keys() & values.keys():
            values[name] = tuple(nested[name](value) for value in values[name])
        for name in plain & values.keys():
            values[name] = tuple(values[name])
        for name in enums.keys() & values.keys():
            values[name] = enums[name](values[name])
        return row_type(**values)

    return build


def open_parquet(place: Place) -> pq.ParquetFile:
    """Open a Parquet file of any kind, so that memory follows what is read of it and not its row groups."""
    source: Any = place if isinstance(place, Path) else open_place(place)
    return pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)


def count_rows(path: Place) -> int:
    """The number of rows in a table, from its footer."""
    return pq.read_metadata(_source(path)).num_rows


def read_columns(path: Place, columns: Sequence[str], later: Sequence[str] = ()) -> pa.Table:
    """Read some columns of a table; those that came `later` are not in what is read of a table of before.

    Raises:
        WorkError: the table is missing or damaged.
    """
    with _naming_damage(path):
        if not later:
            return pq.read_table(_source(path), columns=list(columns))
        with pq.ParquetFile(_source(path)) as file:
            return file.read([*columns, *(name for name in later if name in file.schema_arrow.names)])


def read_tables(folder: Place, columns: Sequence[str], later: Sequence[str] = ()) -> Iterator[tuple[str, pa.Table]]:
    """Read some columns of every table of a folder: the name of each table's unit, and the columns, in order.

    Raises:
        WorkError: a table is damaged.
    """
    units = stems(folder)
    tables = for_each(folder, lambda unit: read_columns(folder / f"{unit}.parquet", columns, later), units)
    return zip(units, tables, strict=True)


def _source(path: Place) -> Path | pa.BufferReader:
    """What pyarrow reads: a table in a store, which is a unit's, is fetched whole."""
    return path if isinstance(path, Path) else pa.BufferReader(read_whole(path))


@contextmanager
def _naming_damage(path: Place) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:  # pyarrow calls a footer that is none an OSError
        what = str(error).splitlines()[0][:200]
        raise WorkError(
            f"{path}: missing or damaged ({what}); `{spell('verify', 'RUN', '--repair')}` withdraws it"
        ) from error


class RowsFile:
    """An `.npy` file of equally long rows, written row by row: its header is corrected at the end."""

    def __init__(self, file: BinaryIO, dtype: np.dtype, columns: int) -> None:
        self._file = file
        self._dtype = dtype
        self._columns = columns
        self._num_rows = 0
        self._write_header()

    def write(self, row: np.ndarray) -> None:
        """Append one row."""
        assert row.shape == (self._columns,), row.shape
        self._file.write(row.astype(self._dtype, copy=False).tobytes())
        self._num_rows += 1

    def close(self) -> None:
        """Put the number of rows into the header."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header so that a longer number of rows still fits: its length does not change
        shape = (self._num_rows, self._columns)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
