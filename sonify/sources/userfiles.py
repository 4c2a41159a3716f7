"""Files that users bring: archives and tables by name, tables of captions and metadata, exclusion lists.

What is in them may be anything: cells are read as bytes, and no name leads elsewhere.
"""

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv

from sonify.errors import InputError
from sonify.io.places import Listing, child, is_below, is_file, leads_out, list_files, open_place
from sonify.io.tables import open_parquet
from sonify.keys import escape_key
from sonify.stores import Place

SHA256 = re.compile("[0-9a-f]{64}")

# A row must fit in one block of the CSV reader; a caption of 1 MB does.
CSV_BLOCK_BYTES = 16 << 20
# A Parquet dictionary repeats a long text for nothing in the file, and in full in memory.
TEXTS_AT_ONCE = 64
# What is read whole is held whole: 10 million captions of 200 bytes.
MAX_TABLE_BYTES = 2 << 30


def list_containers(path: Place, suffix: str) -> Listing:
    """The one archive or table that the path is, or all of the suffix below it, in the order of their keys."""
    if _is_one(path, suffix):
        return Listing(files=[path.name])
    listing = list_files(path, (suffix,))
    return replace(listing, files=sorted(listing.files, key=escape_key))


def container(path: Place, uri: str) -> Place:
    """Where a file that `list_containers` found is."""
    return path if _is_one(path, Path(uri).suffix.lower()) else child(path, uri)


def _is_one(path: Place, suffix: str) -> bool:
    """Whether a path is a file of its kind; a folder may be named `x.parquet`."""
    return path.suffix.lower() == suffix and is_file(path)


def file_beside(table: Place, name: str) -> Place | None:
    """The file that a table names; None where the name is a URL or leads out of the table's folder."""
    if not is_below(name) or ":" in name.partition("/")[0]:
        return None
    file = child(table.parent, name)
    return None if leads_out(table.parent, file) else file


def read_user_table(place: Place, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[bytes]]:
    """Read columns of a CSV or Parquet file as raw bytes; an absent optional column is empty."""
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
    """
    try:
        with closing(_parquet_batches(place) if place.suffix == ".parquet" else _csv_batches(place)) as batches:
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


def _csv_batches(place: Place) -> Generator[Any, None, None]:
    """The schema, then batches."""
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
    with open_parquet(place) as file:
        yield file.schema_arrow
        yield from file.iter_batches(TEXTS_AT_ONCE)


def _column(batch: pa.RecordBatch, name: str) -> list[bytes]:
    if name not in batch.schema.names:
        return [b""] * batch.num_rows
    column = batch.column(name)
    if not pa.types.is_binary(column.type):
        column = column.cast(pa.string()).cast(pa.binary())
    return [value or b"" for value in column.to_pylist()]


def read_exclusions(place: Place | None) -> frozenset[str]:
    """Read an exclusion list; empty lines and lines that begin with `#` do not count.

    Raises:
        InputError: the file is not text.
        TransientError: the store that it lies in cannot be reached.
    """
    if place is None:
        return frozenset()
    try:
        with open_place(place) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"exclusion list {place}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"exclusion list {place}: expected one key or sha256 a line: {error}") from error
    if any("\0" in line for line in lines):
        raise InputError(f"exclusion list {place}: expected UTF-8 text, found NUL bytes: UTF-16, perhaps")
    entries = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return frozenset(entry.lower() if SHA256.fullmatch(entry.lower()) else entry for entry in entries)


def exclusion_names(key: str, uri: str, sha256: str) -> frozenset[str]:
    """Under what an image may be excluded: also its file's name, with and without the ending (`sa_1` in SA-1B).

    A row of a table has a number for a name, which says nothing without the table's.
    """
    file = PurePosixPath(uri)
    return frozenset({key, uri, sha256, *((file.name, file.stem) if file.suffix else ())})
