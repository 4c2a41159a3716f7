"""A published folder as somebody else's data: nothing of it is used before its checksums and its form are checked."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

from sonify import layout
from sonify.config.config import NAME
from sonify.errors import InputError
from sonify.io.places import is_below
from sonify.io.tables import read_columns
from sonify.keys import escape_key
from sonify.publish.rows import (
    CHECKSUMS,
    CLIPS,
    DATA,
    FORMAT,
    RECORD,
    SHARDS,
    PublishedClip,
    PublishedPair,
    PublishedShard,
)
from sonify.published.bounds import read_table
from sonify.published.foreign import read_inside
from sonify.published.ranges import wrong_with_clip, wrong_with_image
from sonify.stores import Place

# Far above what a billion images need; a file that claims more is refused unread.
MAX_LIST_BYTES = 256 << 20
MAX_RECORD_BYTES = 64 << 20
MOST_SCENES = 1000

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_UNIT = r"([A-Za-z0-9_-]{1,100})"
_DATA_FILE = re.compile(rf"{DATA}/({'|'.join(layout.SPLITS)})-{_UNIT}\.parquet")
_CLIPS_FILE = re.compile(rf"{CLIPS}/{_UNIT}\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFolder:
    """A folder that names its files: the sha256 of each that is read, and of the list itself."""

    place: Place
    files: Mapping[str, str]
    digest: str

    @property
    def data(self) -> dict[str, list[str]]:
        """The files of pairs of each unit."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.files):
            if match := _DATA_FILE.fullmatch(name):
                found.setdefault(match[2], []).append(name)
        return found

    @property
    def clips(self) -> dict[str, str]:
        """The file of clips of each unit."""
        return {match[1]: name for name in sorted(self.files) if (match := _CLIPS_FILE.fullmatch(name))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsFile:
    """The frozen listing of a unit of published clips."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedConfig:
    """What `sonify.json` says that counts for rendering: the scenes, and the configuration as plain values."""

    scenes: tuple[str, ...]
    config: Mapping[str, Any]


def open_published(place: Place) -> PublishedFolder:
    """Read the list of a published folder's files.

    Raises:
        InputError: it is no such folder, or names files that no publication has.
    """
    data = _read(place, CHECKSUMS, MAX_LIST_BYTES)
    files: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or not is_below(match[2]):
            raise InputError(f"{place}/{CHECKSUMS}: expected lines of a sha256 and a file's name, found {line[:100]!r}")
        if match[2] in (RECORD, SHARDS) or _is_table(place, match[2]):
            files[match[2]] = match[1]
    folder = PublishedFolder(place=place, files=files, digest=hashlib.sha256(data).hexdigest())
    parts = {RECORD: RECORD in files, SHARDS: SHARDS in files, f"{DATA}/*.parquet": folder.data}
    for name, found in (parts | {f"{CLIPS}/*.parquet": folder.clips}).items():
        if not found:
            raise InputError(f"{place}/{CHECKSUMS}: names no {name}: not the whole of what `sonify publish` writes")
    return folder


def _is_table(place: Place, name: str) -> bool:
    if _DATA_FILE.fullmatch(name) or _CLIPS_FILE.fullmatch(name):
        return True
    if name.startswith((f"{DATA}/", f"{CLIPS}/")):
        raise InputError(f"{place}/{CHECKSUMS}: {name[:200]!r} is no name that `sonify publish` gives")
    return False


def read_recorded(folder: PublishedFolder) -> RecordedConfig:
    """Read `sonify.json`, whose sha256 must be the listed one.

    Raises:
        InputError: it is another file, or none of this format.
    """
    where = f"{folder.place}/{RECORD}"
    data = _read(folder.place, RECORD, MAX_RECORD_BYTES)
    if hashlib.sha256(data).hexdigest() != folder.files[RECORD]:
        raise InputError(f"{where}: another sha256 than {CHECKSUMS} says: get the folder again")
    try:
        record = json.loads(data)
        version, scenes, config = record["format"], record["scenes"], record["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: not the record of a published dataset") from error
    if type(version) is not int or version != FORMAT:  # JSON's true equals 1
        raise InputError(f"{where}: format {version!r}, and this sonify reads {FORMAT}: use the sonify that it is of")
    if not _are_scenes(scenes) or not isinstance(config, dict):
        raise InputError(f"{where}: not the record of a published dataset")
    return RecordedConfig(scenes=tuple(scenes), config=config)


def _are_scenes(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_SCENES or len(set(map(str, value))) < len(value):
        return False
    return all(isinstance(name, str) and len(name) <= 100 and re.fullmatch(NAME, name) for name in value)


def read_pairs(folder: PublishedFolder, unit: str, scenes: tuple[str, ...]) -> Iterator[tuple[PublishedPair, ...]]:
    """Yield all scenes of each image of a unit, in the order of keys.

    Raises:
        InputError: a row is not what `sonify publish` writes.
    """
    tables = (_read_split(folder, name) for name in folder.data[unit])
    before = ""
    for key, rows in groupby(merge(*tables, key=attrgetter("image")), key=attrgetter("image")):
        pairs = tuple(islice(rows, len(scenes) + 1))  # one more is wrong, however many follow
        wrong = wrong_with_image(pairs, scenes) or ("images in another order" if key <= before else "")
        if wrong:
            raise InputError(f"{folder.place}/{DATA}: unit {unit}: image {key[:100]!r}: {wrong}")
        before = key
        yield pairs


def _read_split(folder: PublishedFolder, name: str) -> Iterator[PublishedPair]:
    match = _DATA_FILE.fullmatch(name)
    assert match is not None, name
    for pair in read_table(folder.place, name, PublishedPair):
        if pair.split != match[1]:
            raise InputError(f"{folder.place}/{name}: a row of the split {pair.split[:100]!r}")
        yield pair


def read_image_uris(folder: PublishedFolder, unit: str) -> list[str]:
    """Where the images of a unit are, each once, in the order of keys."""
    columns = [read_columns(folder.place / name, ["image_uri"])["image_uri"] for name in folder.data[unit]]
    return sorted({uri for column in columns for uri in column.to_pylist()}, key=escape_key)


def read_clips(folder: PublishedFolder, unit: str) -> Iterator[PublishedClip]:
    """Yield the clips of a unit that are heard.

    Raises:
        InputError: a row is not what `sonify publish` writes.
    """
    name = folder.clips[unit]
    for clip in read_table(folder.place, name, PublishedClip):
        if wrong := wrong_with_clip(clip):
            raise InputError(f"{folder.place}/{name}: clip {clip.clip[:100]!r}: {wrong}")
        yield clip


def read_shards(folder: PublishedFolder) -> Iterable[PublishedShard]:
    """The published shards."""
    return read_table(folder.place, SHARDS, PublishedShard)


def _read(place: Place, name: str, limit: int) -> bytes:
    try:
        data = read_inside(place, name, limit + 1)
    except OSError as error:
        raise InputError(
            f"{place}: not a published dataset: {name}: {error.strerror or error}; `sonify publish RUN --out DIR`"
            " makes one"
        ) from error
    if len(data) > limit:
        raise InputError(f"{place}/{name}: more than {limit} bytes")
    return data
