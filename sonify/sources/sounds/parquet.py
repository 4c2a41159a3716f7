"""Parquet files with a Hugging Face audio column, as WavCaps, AudioCaps and others are passed on."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sonify.config import ParquetSounds
from sonify.errors import InputError
from sonify.io.places import open_place
from sonify.rows import Reason, SoundRef
from sonify.sources.containers import container, list_containers
from sonify.sources.sounds.described import (
    ATTRIBUTION_FIELDS,
    LICENCE_FIELDS,
    RECORDING_FIELDS,
    YOUTUBE_FIELDS,
    describe,
)
from sonify.sources.sounds.found import refused_ref

# A dictionary repeats a long text for nothing in the file, and in full in memory.
BATCH_ROWS = 64
# Columns that are taken where they are there, beside the two that the configuration names.
KNOWN_COLUMNS = (*LICENCE_FIELDS, *ATTRIBUTION_FIELDS, *YOUTUBE_FIELDS, *RECORDING_FIELDS)


def list_parquet(source: ParquetSounds) -> list[SoundRef]:
    """List the rows of every file, without reading a sound.

    Raises:
        InputError: a column is missing.
    """
    return [ref for uri in list_containers(source.path, ".parquet") for ref in _list_table(source, uri)]


def _list_table(source: ParquetSounds, uri: str) -> Iterator[SoundRef]:
    try:
        with open_place(container(source.path, uri)) as file, pq.ParquetFile(file) as table:
            _check_columns(source, uri, table.schema_arrow)
            columns = [source.text_column, *(name for name in KNOWN_COLUMNS if name in table.schema_arrow.names)]
            number = 0
            for batch in table.iter_batches(BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield _ref(source, f"{uri}/row-{number:06d}", row)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the table's
        yield refused_ref(source.name, uri, Reason.DAMAGED_ARCHIVE, str(error).splitlines()[0])


def _check_columns(source: ParquetSounds, uri: str, schema: pa.Schema) -> None:
    for key in ("audio_column", "text_column"):
        if getattr(source, key) not in schema.names:
            raise InputError(
                f"audio.sources: {key} = {getattr(source, key)!r}, but {source.path}/{uri} has the columns"
                f" {', '.join(schema.names)}"
            )
    found = schema.field(source.audio_column).type
    if not _may_hold_sounds(found):
        raise InputError(
            f"audio.sources: audio_column = {source.audio_column!r} of {source.path}/{uri}: expected a Hugging Face"
            f" audio column (bytes, path), bytes or paths, found {str(found)[:200]}"
        )


def _may_hold_sounds(found: pa.DataType) -> bool:
    if pa.types.is_struct(found):
        return bool({"bytes", "path"} & {field.name for field in found})
    is_one = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    return any(check(found) for check in is_one)


def _ref(source: ParquetSounds, file: str, row: dict[str, Any]) -> SoundRef:
    said = describe({**row, "text": row[source.text_column]}, source.name)
    return SoundRef(
        corpus=source.name,
        file=file,
        recording=said.recording or f"{source.name}/{file}",
        text=said.text,
        licence=said.licence or source.licence,
        attribution=said.attribution,
    )
