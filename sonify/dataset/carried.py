"""Sounds and images that go out with the metadata, as tables: copied from the run's archives, row for row of `data/`.

They go only where every licence lets them, and that is asked before anything is written of them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sonify.dataset.format import AUDIO, DATA, IMAGES, PICTURE, PublishedShard
from sonify.dataset.licences import ND, conditions_of, obstacles
from sonify.errors import InputError, WorkError
from sonify.installed import spell
from sonify.io.places import open_local, stems
from sonify.io.tables import read_columns
from sonify.io.tars import iter_files, read_member
from sonify.io.write import digest_open
from sonify.keys import split_member
from sonify.stores import Place

Row = dict[str, Any]
Read = Callable[[str, str], dict[str, Any]]  # of an image's key and a member's ending

# What a reader of one row has to fetch: some 10 MB of sound, or of images.
ROWS_IN_GROUP = 100
GROUP_BYTES = 16 << 20


def refuse_audio(forbidding: Mapping[str, int], scenes: int, image_licence: str) -> None:
    """Refuse to pass sounds on where a licence forbids it, and name what does, the most frequent first."""
    if not forbidding:
        return
    named = ", ".join(f"{what} ({n:,})" for what, n in sorted(forbidding.items(), key=lambda item: (-item[1], item[0])))
    raise InputError(
        f"--with-audio: not all of the {scenes:,} scenes may be passed on: {named}; choose those that may by"
        f" --only-licences (such as BY NC); the images' licence is {image_licence!r}, which --image-licence says"
    )


def refuse_images(image_licence: str, resized: bool) -> None:
    """Refuse to pass images on where their licence forbids it; one without derivatives forbids another size."""
    conditions = conditions_of(image_licence)
    forbidding = [*obstacles(conditions - {ND}), *(("ND, of another size",) if ND in conditions and resized else ())]
    if forbidding:
        raise InputError(
            f"--with-images: the images' licence is {image_licence!r}, which does not let them be passed on"
            f" ({', '.join(forbidding)}); leave it out, or name the licence that they have by --image-licence"
        )


@dataclass(frozen=True, slots=True)
class Carried:
    """A table of a folder: its columns, and its rows, of the scenes of an archive and what reads a member of it."""

    folder: str
    schema: pa.Schema
    rows: Callable[[Sequence[Row], Read], Iterator[Row]]


def audio_table(sample_rate_hz: int) -> Carried:
    """The sound of each published scene."""

    def rows(scenes: Sequence[Row], read: Read) -> Iterator[Row]:
        return (scene | {AUDIO: read(scene["image"], f"{scene['scene']}.flac")} for scene in scenes)

    return Carried(AUDIO, _schema(("image", "scene"), AUDIO, {"sampling_rate": sample_rate_hz, "_type": "Audio"}), rows)


def image_table() -> Carried:
    """Each image of the published scenes once, as the run's archives have it."""

    def rows(scenes: Sequence[Row], read: Read) -> Iterator[Row]:
        return (
            {"image": image, PICTURE: read(image, "jpg")} for image, _ in groupby(scene["image"] for scene in scenes)
        )

    return Carried(IMAGES, _schema(("image",), PICTURE, {"_type": "Image"}), rows)


def carry(folder: Path, run_dir: Place, shards: Sequence[PublishedShard], tables: Sequence[Carried]) -> None:
    """Write tables of a new folder in which `data/` lies; each archive is hashed once."""
    by_name = {f"{shard.split}-{shard.unit}": shard for shard in shards}
    for table in tables:
        (folder / table.folder).mkdir()
    for name in stems(folder / DATA) if tables else ():
        scenes = read_columns(folder / DATA / f"{name}.parquet", ["image", "scene"]).to_pylist()
        with _opened(run_dir / by_name[name].path, by_name[name].sha256) as read:
            for table in tables:
                _write(folder / table.folder / f"{name}.parquet", table, table.rows(scenes, read))


@contextmanager
def _opened(archive: Place, sha256: str) -> Iterator[Read]:
    """Give what reads a member, as `datasets` stores a file: its bytes and its name."""
    with open_local(archive) as file:
        if digest_open(file) != sha256:
            raise WorkError(f"{archive}: not what was committed; `{spell('verify', 'RUN', '--repair')}` withdraws it")
        file.seek(0)
        members = {split_member(member.name): member for member in iter_files(file)}

        def read(image: str, ending: str) -> dict[str, Any]:
            member = members[image, ending]
            return {"bytes": read_member(file, member), "path": member.name}

        yield read


def _write(path: Path, table: Carried, rows: Iterator[Row]) -> None:
    with path.open("wb") as file, pq.ParquetWriter(file, table.schema) as writer:
        for group in _groups(rows, table.schema.names[-1]):
            writer.write_table(pa.Table.from_pylist(group, schema=table.schema))


def _groups(rows: Iterable[Row], column: str) -> Iterator[list[Row]]:
    group: list[Row] = []
    size_bytes = 0
    for row in rows:
        group.append(row)
        size_bytes += len(row[column]["bytes"])
        if len(group) == ROWS_IN_GROUP or size_bytes >= GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _schema(names: Sequence[str], column: str, feature: Mapping[str, Any]) -> pa.Schema:
    """Texts and a column of files, and what `datasets` reads of their kinds in the table itself."""
    features = {name: {"dtype": "string", "_type": "Value"} for name in names} | {column: feature}
    # `datasets` knows the column again only if every field may be null, as in its own files
    files = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [*((name, pa.string()) for name in names), (column, files)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
