"""Tables that users bring: captions and sound metadata, as CSV or Parquet, read as bytes that may be anything."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sonify.errors import InputError
from sonify.io.places import open_place
from sonify.stores import Place

# A row must fit in one block of the CSV reader; a caption of 1 MB does.
CSV_BLOCK_BYTES = 16 << 20
# A Parquet dictionary repeats a long text for nothing in the file, and in full in memory.
BATCH_ROWS = 64
# What is read whole is held whole: 10 million captions of 200 bytes.
MAX_TABLE_BYTES = 2 << 30


def read_user_table(place: Place, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[bytes]]:
    """Read columns of a CSV or Parquet file as raw bytes; an absent optional column is empty.

    Raises:
        InputError: the file is not a table, a required column is missing, or it unpacks to more than can be held.
    """
    columns: dict[str, list[bytes]] = {name: [] for name in (*required, *optional)}
    size_bytes = 0
    for batch in iter_user_table(place, [(name,) for name in required], optional):
        for name, values in zip(columns, batch, strict=True):
            size_bytes += sum(map(len, values))
            columns[name] += values
        if size_bytes > MAX_TABLE_BYTES:
            raise InputError(
                f"{place}: more than {MAX_TABLE_BYTES >> 30} GiB of text: not a table of captions or files"
            )
    return columns


def iter_user_table(
    place: Place, required: Sequence[Sequence[str]], optional: Sequence[str] = ()
) -> Iterator[list[list[bytes]]]:
    """Yield columns of a CSV or Parquet file some rows at a time, as raw bytes.

    Args:
        place: the file.
        required: for each column the names that it may have; the first that is there counts.
        optional: names of further columns, empty where absent.

    Raises:
        InputError: the file is not a table, or a required column is missing.
    """
    try:
        with closing(_open_batches(place)) as batches:
            schema = next(batches)
            names = _choose(place, schema.names, required)
            for batch in batches:
                yield [_column(batch, name) for name in (*names, *optional)]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{place}: not a readable table: {str(error).splitlines()[0]}") from error


def _choose(place: Place, found: Sequence[str], required: Sequence[Sequence[str]]) -> list[str]:
    chosen = [next((name for name in names if name in found), "") for names in required]
    if not all(chosen):
        expected = ", ".join(" or ".join(names) for names in required)
        raise InputError(f"{place}: expected the columns {expected} in its first line, found {list(found)}")
    return chosen


def _open_batches(place: Place) -> Generator[Any, None, None]:
    """The schema, then batches."""
    return _parquet_batches(place) if place.suffix == ".parquet" else _csv_batches(place)


def _csv_batches(place: Place) -> Generator[Any, None, None]:
    with open_place(place) as file:
        header = file.readline(1 << 16).decode("utf-8", "replace").lstrip("\ufeff").strip()
    names = [name.strip().strip('"') for name in header.split(",")]
    with open_place(place) as source:
        reader = pyarrow.csv.open_csv(
            source,
            read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, column_names=names, skip_rows=1),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(names, pa.binary()),
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )
        with reader:
            yield reader.schema
            yield from reader


def _parquet_batches(place: Place) -> Generator[Any, None, None]:
    source: Any = place if isinstance(place, Path) else open_place(place)
    with pq.ParquetFile(source) as file:
        yield file.schema_arrow
        yield from file.iter_batches(BATCH_ROWS)


def _column(batch: pa.RecordBatch, name: str) -> list[bytes]:
    if name not in batch.schema.names:
        return [b""] * batch.num_rows
    column = batch.column(name)
    if not pa.types.is_binary(column.type):
        column = column.cast(pa.string()).cast(pa.binary())
    return [value or b"" for value in column.to_pylist()]
