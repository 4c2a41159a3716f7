"""Tables of a stranger: looked at before their rows are unpacked, which a few kilobytes can make into gigabytes."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sonify.config.sections import Place
from sonify.engine.tables import ROWS_IN_GROUP, schema_of
from sonify.errors import InputError
from sonify.sources.files import open_place

# What `sonify publish` writes stays far below each of these.
MAX_ROWS = 10_000_000  # of a file
MAX_GROUP_BYTES = 256 << 20  # of a row group, decompressed but with each different text once
MAX_VALUES_IN_ROW = 1000  # of a list: sources, conditions
MAX_TEXT_BYTES = 64 << 10


def check_table(place: Place, row_type: type) -> None:
    """Make sure that a table's rows can be read: their columns, their number and how long their texts are.

    Raises:
        InputError: it is no Parquet file, has other columns, or holds more than any such file does.
    """
    try:
        with open_place(place) as source, pq.ParquetFile(source) as file:
            _check_footer(place, file, row_type)
        with open_place(place) as source, pq.ParquetFile(source, read_dictionary=_texts_of(file)) as packed:
            for batch in packed.iter_batches(ROWS_IN_GROUP, use_threads=False):
                _check_texts(place, batch)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{place}: not a Parquet file ({str(error).splitlines()[0][:200]})") from error


def _check_footer(place: Place, file: pq.ParquetFile, row_type: type) -> None:
    expected, found = schema_of(row_type), file.schema_arrow
    if not found.equals(expected, check_metadata=False):
        raise InputError(f"{place}: expected the columns {_columns(expected)}, found {_columns(found)}")
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    for group in groups:
        values = max(group.column(n).num_values for n in range(group.num_columns))
        if group.total_byte_size > MAX_GROUP_BYTES or values > MAX_VALUES_IN_ROW * max(group.num_rows, 1):
            raise InputError(f"{place}: {group.total_byte_size} bytes or {values} values in one row group: too many")
    if file.metadata.num_rows > MAX_ROWS:
        raise InputError(f"{place}: {file.metadata.num_rows} rows, at most {MAX_ROWS} are read")


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)[:1000]


def _texts_of(file: pq.ParquetFile) -> list[str]:
    """The columns that hold texts or bytes, those inside lists as well."""
    columns = (file.schema.column(n) for n in range(len(file.schema.names)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _check_texts(place: Place, batch: pa.RecordBatch) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for texts in _dictionaries(column):
            lengths = pc.binary_length(texts)  # pyright: ignore[reportAttributeAccessIssue] - made at import
            longest = max(lengths.to_pylist(), default=0)
            if longest > MAX_TEXT_BYTES:
                raise InputError(f"{place}: {name}: a text of {longest} bytes, at most {MAX_TEXT_BYTES} are read")


def _dictionaries(column: pa.Array) -> Iterator[pa.Array]:
    """The different texts of a column: whoever looks at them one by one unpacks nothing."""
    if isinstance(column, pa.DictionaryArray):
        yield column.dictionary
    elif isinstance(column, pa.ListArray):
        yield from _dictionaries(column.values)
    elif isinstance(column, pa.StructArray):
        for n in range(column.type.num_fields):
            yield from _dictionaries(column.field(n))
