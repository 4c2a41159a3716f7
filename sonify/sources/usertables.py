"""Tables that users bring: captions and sound metadata, as CSV or Parquet, read as bytes that may be anything."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sonify.errors import InputError

# A row must fit in one block of the CSV reader; a caption of 1 MB does.
CSV_BLOCK_BYTES = 16 << 20


def read_user_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[bytes]]:
    """Read columns of a CSV or Parquet file as raw bytes; an absent optional column is empty.

    Raises:
        InputError: the file is not a table, or a required column is missing.
    """
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
        columns = {name: _column(table, name) for name in (*required, *optional)}
    except (pa.ArrowException, KeyError, OSError) as error:
        raise InputError(f"{path}: not a readable table: {str(error).splitlines()[0]}") from error
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: expected the columns {', '.join(required)} in its first line, found {table.column_names}"
        )
    return columns


def _read_csv(path: Path) -> pa.Table:
    with path.open("rb") as file:
        header = file.readline(1 << 16).decode("utf-8", "replace").lstrip("\ufeff").strip()
    names = [name.strip().strip('"') for name in header.split(",")]
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, column_names=names, skip_rows=1),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(names, pa.binary()),
            strings_can_be_null=False,
            quoted_strings_can_be_null=False,
        ),
    )


def _read_parquet(path: Path) -> pa.Table:
    return pq.read_table(path)


def _column(table: pa.Table, name: str) -> list[bytes]:
    if name not in table.column_names:
        return [b""] * table.num_rows
    column = table.column(name)
    if not pa.types.is_binary(column.type):
        column = column.cast(pa.string()).cast(pa.binary())
    return [value or b"" for value in column.to_pylist()]
