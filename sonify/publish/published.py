"""A published folder as somebody else's data: nothing of it is used before its checksums and its form are checked."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Any

from sonify import layout
from sonify.config.sections import NAME, Place
from sonify.engine.store import sha256_of
from sonify.engine.tables import read_columns, read_rows
from sonify.errors import InputError
from sonify.keys import escape_key
from sonify.publish.bounds import check_table
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
from sonify.sources.files import is_below, read_ahead, read_bytes

# Far above what a billion images need; a file that claims more is refused unread.
MAX_LIST_BYTES = 256 << 20
MAX_RECORD_BYTES = 64 << 20
MAX_GAIN_DB = 100.0
MOST_SCENES = 1000

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_UNIT = r"([A-Za-z0-9_-]{1,100})"
_DATA_FILE = re.compile(rf"{DATA}/({'|'.join(layout.SPLITS)})-{_UNIT}\.parquet")
_CLIPS_FILE = re.compile(rf"{CLIPS}/{_UNIT}\.parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    for name in (RECORD, SHARDS):
        if name not in files:
            raise InputError(f"{place}/{CHECKSUMS}: names no {name}: not the whole of what `sonify publish` writes")
    return PublishedFolder(place=place, files=files, digest=hashlib.sha256(data).hexdigest())


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
    if version != FORMAT:
        raise InputError(f"{where}: format {version!r}, and this sonify reads {FORMAT}: use the sonify that it is of")
    if not _are_scenes(scenes) or not isinstance(config, dict):
        raise InputError(f"{where}: not the record of a published dataset")
    return RecordedConfig(scenes=tuple(scenes), config=config)


def _are_scenes(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_SCENES or len(set(map(str, value))) < len(value):
        return False
    return all(isinstance(name, str) and len(name) <= 100 and re.match(NAME, name) for name in value)


def verify_published(folder: PublishedFolder) -> None:
    """Hash every file that is read from the folder and look at its form.

    Raises:
        InputError: a file is missing, another than listed, or no table of the expected columns.
    """
    for name, found in read_ahead(lambda name: (name, _hash(folder, name)), sorted(folder.files)):
        if found != folder.files[name]:
            raise InputError(f"{folder.place}/{name}: another sha256 than {CHECKSUMS} says: get the folder again")
    for names in folder.data.values():
        for name in names:
            check_table(folder.place / name, PublishedPair)
    for name in folder.clips.values():
        check_table(folder.place / name, PublishedClip)
    check_table(folder.place / SHARDS, PublishedShard)


def _hash(folder: PublishedFolder, name: str) -> str:
    try:
        return sha256_of(folder.place / name)
    except OSError as error:
        raise InputError(f"{folder.place}/{name}: {error.strerror or error}: get the folder again") from error


def read_pairs(folder: PublishedFolder, unit: str, scenes: tuple[str, ...]) -> Iterator[tuple[PublishedPair, ...]]:
    """Yield all scenes of each image of a unit, in the order of keys.

    Raises:
        InputError: a row is not what `sonify publish` writes.
    """
    tables = (_read_split(folder.place / name, name) for name in folder.data[unit])
    before = ""
    for key, rows in groupby(merge(*tables, key=attrgetter("image")), key=attrgetter("image")):
        pairs = tuple(rows)
        wrong = _wrong_with(pairs, scenes) or ("images in another order" if key <= before else "")
        if wrong:
            raise InputError(f"{folder.place}/{DATA}: unit {unit}: image {key[:100]!r}: {wrong}")
        before = key
        yield pairs


def _read_split(place: Place, name: str) -> Iterator[PublishedPair]:
    match = _DATA_FILE.fullmatch(name)
    assert match is not None, name
    for pair in read_rows(place, PublishedPair):
        if pair.split != match[1]:
            raise InputError(f"{place}: a row of the split {pair.split[:100]!r}")
        yield pair


def _wrong_with(pairs: tuple[PublishedPair, ...], scenes: tuple[str, ...]) -> str:
    """What keeps an image's rows from being used, or nothing."""
    first = pairs[0]
    if not is_below(first.image_uri) or first.image != escape_key(first.image_uri):
        return f"its image_uri {first.image_uri[:100]!r} is not the one that the key is made of"
    if not _SHA256.fullmatch(first.image_sha256):
        return "its image_sha256 is none"
    if tuple(pair.scene for pair in pairs) != scenes:
        return f"expected the scenes {', '.join(scenes)[:200]}, found {', '.join(p.scene for p in pairs)[:200]}"
    if len({(p.image_uri, p.image_sha256, p.width, p.height, p.split) for p in pairs}) > 1:
        return "its scenes are of different images"
    return next(filter(None, map(_wrong_with_sources, pairs)), "")


def _wrong_with_sources(pair: PublishedPair) -> str:
    if not pair.sources:
        return "a scene without sources"
    numbers = (value for s in pair.sources for value in (s.target_lufs, s.gain_db, s.cosine, s.score, s.threshold))
    if not all(map(math.isfinite, numbers)):
        return "a number that is none"
    return "a gain that no mix has" if any(abs(s.gain_db) > MAX_GAIN_DB for s in pair.sources) else ""


def read_image_uris(folder: PublishedFolder, unit: str) -> list[str]:
    """Where the images of a unit are, each once, in the order of keys."""
    columns = [read_columns(folder.place / name, ["image_uri"])["image_uri"] for name in folder.data[unit]]
    return sorted({uri for column in columns for uri in column.to_pylist()}, key=escape_key)


def read_clips(folder: PublishedFolder, unit: str) -> Iterator[PublishedClip]:
    """Yield the clips of a unit that are heard.

    Raises:
        InputError: a row is not what `sonify publish` writes.
    """
    for clip in read_rows(folder.place / folder.clips[unit], PublishedClip):
        where = f"{folder.place}/{folder.clips[unit]}: clip {clip.clip[:100]!r}"
        if not _SHA256.fullmatch(clip.sha256) or not math.isfinite(clip.loudness_lufs):
            raise InputError(f"{where}: no sha256 or no loudness")
        if not re.match(NAME, clip.corpus) or not is_below(clip.file):
            raise InputError(f"{where}: {clip.corpus[:60]!r} and {clip.file[:100]!r} are no corpus and file")
        yield clip


def read_shards(folder: PublishedFolder) -> Iterable[PublishedShard]:
    """The published shards."""
    return read_rows(folder.place / SHARDS, PublishedShard)


def _read(place: Place, name: str, limit: int) -> bytes:
    try:
        data = read_bytes(place / name, limit + 1)
    except OSError as error:
        raise InputError(
            f"{place}: not a published dataset: {name}: {error.strerror or error}; `sonify publish RUN --out DIR`"
            " makes one"
        ) from error
    if len(data) > limit:
        raise InputError(f"{place}/{name}: more than {limit} bytes")
    return data
