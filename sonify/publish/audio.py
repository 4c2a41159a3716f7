"""The sound of scenes that may be passed on, as Hugging Face datasets expect it: FLAC bytes in an audio column."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from sonify.errors import InputError, WorkError
from sonify.io.places import open_local, stems
from sonify.io.tables import read_columns
from sonify.io.tars import iter_files, read_member
from sonify.publish.rows import AUDIO, DATA, PublishedShard
from sonify.stores import Place

# Some 10 MB of sound: what a reader of one row has to fetch.
ROWS_IN_GROUP = 100


def refuse_audio(obstacles: Mapping[str, int], scenes: int, image_licence: str) -> None:
    """Refuse to pass sounds on where a licence forbids it.

    Raises:
        InputError: there is such a scene; the message names what forbids it, the most frequent first.
    """
    if not obstacles:
        return
    named = ", ".join(f"{what} ({n:,})" for what, n in sorted(obstacles.items(), key=lambda item: (-item[1], item[0])))
    raise InputError(
        f"--with-audio: not all of the {scenes:,} scenes may be passed on: {named}; choose those that may by"
        f" --only-licences (such as BY NC); the images' licence is {image_licence!r}, which --image-licence says"
    )


def write_audio(folder: Path, run_dir: Place, shards: Sequence[PublishedShard], sample_rate_hz: int) -> None:
    """Copy the sounds of the published scenes from the run's archives, row for row of `data/`.

    Raises:
        WorkError: an archive is not what was committed.
    """
    by_name = {f"{shard.split}-{shard.unit}": shard for shard in shards}
    (folder / AUDIO).mkdir()
    schema = _schema(sample_rate_hz)
    for name in stems(folder / DATA):
        scenes = read_columns(folder / DATA / f"{name}.parquet", ["image", "scene"]).to_pylist()
        with (folder / AUDIO / f"{name}.parquet").open("wb") as file, pq.ParquetWriter(file, schema) as writer:
            for group in _groups(_read_sounds(run_dir, by_name[name], scenes)):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _read_sounds(run_dir: Place, shard: PublishedShard, scenes: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    place = run_dir / shard.path
    with open_local(place) as file:
        if hashlib.file_digest(cast(Any, file), "sha256").hexdigest() != shard.sha256:
            raise WorkError(f"{place}: not what was committed; `sonify verify` with --repair withdraws it")
        file.seek(0)
        members = {member.name: member for member in iter_files(file)}
        for row in scenes:
            name = f"{row['image']}.{row['scene']}.flac"
            yield row | {"audio": {"bytes": read_member(file, members[name]), "path": name}}


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(rows, ROWS_IN_GROUP)):
        yield group


def _schema(sample_rate_hz: int) -> pa.Schema:
    """Fields, and what `datasets` reads of their kinds in the file itself."""
    features = {
        "image": {"dtype": "string", "_type": "Value"},
        "scene": {"dtype": "string", "_type": "Value"},
        "audio": {"sampling_rate": sample_rate_hz, "_type": "Audio"},
    }
    # `datasets` knows the column again only if every field may be null, as in its own files
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [("image", pa.string()), ("scene", pa.string()), ("audio", audio)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
