"""A published folder as somebody else's data: nothing of it is used before its checksums and its form are checked."""

import hashlib
import json
import math
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

import numpy as np

from sonify.config import Config
from sonify.config.sections import NAME
from sonify.dataset.foreign import hash_files, read_inside, read_table
from sonify.dataset.format import (
    CHECKSUMS,
    CLIPS,
    CLIPS_FILE,
    DATA,
    DATA_FILE,
    FORMAT,
    RECORD,
    SHARDS,
    PublishedClip,
    PublishedPair,
    PublishedShard,
    read_checksums,
)
from sonify.errors import InputError
from sonify.io.places import is_below
from sonify.io.tables import read_columns
from sonify.keys import escape_key
from sonify.media.likeness import fingerprint
from sonify.media.mixing import SILENCE_DBFS
from sonify.media.pixels import MAX_PIXELS, MAX_SIDE_PX
from sonify.stores import Place

# Far above what a billion images need; a file that claims more is refused unread.
MAX_LIST_BYTES = 256 << 20
MAX_RECORD_BYTES = 64 << 20
MOST_SCENES = 1000

# What rows may say: within these bounds lies all that `sonify publish` can write.
# A clip: the gate of BS.1770 below; above, a square wave at full scale stays under +4 LUFS.
CLIP_LUFS = (-70.0, 10.0)
# A source: `mix.lufs` is within -70 and 0, and prominence takes at most 40 dB off.
TARGET_LUFS = (-110.0, 0.0)
GAIN_DB = (TARGET_LUFS[0] - CLIP_LUFS[1], TARGET_LUFS[1] - CLIP_LUFS[0])
# A mix: 100 clips (`concepts.max_concepts`) at full scale and the highest gain, under the lowest ceiling of -60 dBFS,
# which as a whole number of steps is 0.2 dB lower.
MIX_GAIN_DB = (-(20 * math.log10(100) + GAIN_DB[1] + 60.0 + 1.0), 0.0)
PEAK_DBFS = (SILENCE_DBFS, 0.0)
COPIES = ("exact", "equivalent", "repaired")

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
            if match := DATA_FILE.fullmatch(name):
                found.setdefault(match[2], []).append(name)
        return found

    @property
    def clips(self) -> dict[str, str]:
        """The file of clips of each unit."""
        return {match[1]: name for name in sorted(self.files) if (match := CLIPS_FILE.fullmatch(name))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsFile:
    """The frozen listing of a unit of published clips."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What `sonify.json` says that counts for rendering: the scenes, and the configuration as plain values.

    `models` and `prompts` tell by whom concepts were found; what is no text in them is left out.
    """

    scenes: tuple[str, ...]
    config: Mapping[str, Any]
    models: Mapping[str, str]
    prompts: Mapping[str, str]


def open_published(place: Place) -> PublishedFolder:
    """Read the list of a published folder's files.

    Raises:
        InputError: it is no such folder, or names files that no publication has.
    """
    where = f"{place}/{CHECKSUMS}"
    data = _read(place, CHECKSUMS, MAX_LIST_BYTES)
    try:
        listed = read_checksums(data)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    wrong = next((name for name in listed if not is_below(name) or (_is_in_tables(name) and not _is_table(name))), None)
    if wrong is not None:
        raise InputError(f"{where}: {wrong[:200]!r} is no name that `sonify publish` gives")
    files = {name: sha256 for name, sha256 in listed.items() if name in (RECORD, SHARDS) or _is_table(name)}
    folder = PublishedFolder(place=place, files=files, digest=hashlib.sha256(data).hexdigest())
    parts = {RECORD: RECORD in files, SHARDS: SHARDS in files, f"{DATA}/*.parquet": folder.data}
    for name, found in (parts | {f"{CLIPS}/*.parquet": folder.clips}).items():
        if not found:
            raise InputError(f"{where}: names no {name}: not the whole of what `sonify publish` writes")
    return folder


def _is_in_tables(name: str) -> bool:
    return name.startswith((f"{DATA}/", f"{CLIPS}/"))


def _is_table(name: str) -> bool:
    return bool(DATA_FILE.fullmatch(name) or CLIPS_FILE.fullmatch(name))


def read_recorded(folder: PublishedFolder) -> Recorded:
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
    if not _are_scenes(scenes) or not isinstance(config, dict) or "concepts" not in config:
        raise InputError(f"{where}: not the record of a published dataset")
    models, prompts = (_texts(record.get(name)) for name in ("models", "prompts"))
    return Recorded(scenes=tuple(scenes), config=config, models=models, prompts=prompts)


def _are_scenes(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_SCENES or len(set(map(str, value))) < len(value):
        return False
    return all(isinstance(name, str) and len(name) <= 100 and re.fullmatch(NAME, name) for name in value)


def _texts(found: Any) -> dict[str, str]:
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}


def read_pairs(folder: PublishedFolder, unit: str, scenes: tuple[str, ...]) -> Iterator[tuple[PublishedPair, ...]]:
    """Yield all scenes of each image of a unit, in the order of keys.

    Raises:
        InputError: a row is not what `sonify publish` writes.
    """
    tables = (_read_split(folder, name) for name in folder.data[unit])
    before = ""
    for key, rows in groupby(merge(*tables, key=attrgetter("image")), key=attrgetter("image")):
        pairs = tuple(islice(rows, len(scenes) + 1))  # one more is wrong, however many follow
        wrong = next(_faults_of_image(pairs, scenes), None) or ("images in another order" if key <= before else None)
        if wrong:
            raise InputError(f"{folder.place}/{DATA}: unit {unit}: image {key[:100]!r}: {wrong}")
        before = key
        yield pairs


def _read_split(folder: PublishedFolder, name: str) -> Iterator[PublishedPair]:
    match = DATA_FILE.fullmatch(name)
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
        if wrong := next(_faults_of_clip(clip), None):
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


def _faults_of_image(pairs: Sequence[PublishedPair], scenes: tuple[str, ...]) -> Iterator[str]:
    """What keeps an image's rows from being used; the first is enough."""
    first = pairs[0]
    found = tuple(pair.scene for pair in pairs)
    if not is_below(first.image_uri):
        yield f"its image_uri {first.image_uri[:100]!r} leads elsewhere"
    if first.image != escape_key(first.image_uri):
        yield f"its image_uri {first.image_uri[:100]!r} is not the one that the key is made of"
    if not _SHA256.fullmatch(first.image_sha256):
        yield "its image_sha256 is none"
    if found != scenes:
        yield f"expected the scenes {', '.join(scenes)[:200]!r}, found {', '.join(found)[:200]!r}"
    if len({(p.image_uri, p.image_sha256, p.width, p.height, p.split) for p in pairs}) > 1:
        yield "its scenes are of different images"
    width, height = first.width, first.height
    if min(width, height) <= 0 or max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        yield f"{width} x {height} pixels, which no image has"
    for pair in pairs:
        yield from _faults_of_scene(pair)


def _faults_of_scene(pair: PublishedPair) -> Iterator[str]:
    if not pair.sources:
        yield "a scene without sources"
    if len({source.clip for source in pair.sources}) < len(pair.sources):
        yield "a scene with one clip twice"
    if not _SHA256.fullmatch(pair.mix_sha256):
        yield "its mix_sha256 is none"
    if not _is_within(pair.mix_gain_db, MIX_GAIN_DB) or not _is_within(pair.peak_dbfs, PEAK_DBFS):
        yield f"a mix_gain_db of {pair.mix_gain_db} and a peak_dbfs of {pair.peak_dbfs}, which no mix has"
    for source in pair.sources:
        if not all(map(math.isfinite, (source.cosine, source.score, source.threshold))):
            yield "a number that is none"
        if not _is_within(source.target_lufs, TARGET_LUFS) or not _is_within(source.gain_db, GAIN_DB):
            yield f"a target_lufs of {source.target_lufs} and a gain_db of {source.gain_db}, which no mix has"
        if source.copy not in COPIES:
            yield f"its copy is {source.copy[:100]!r}"


def _faults_of_clip(clip: PublishedClip) -> Iterator[str]:
    if not _SHA256.fullmatch(clip.sha256):
        yield "its sha256 is none"
    if not _is_within(clip.loudness_lufs, CLIP_LUFS) or not _is_within(clip.peak_dbfs, PEAK_DBFS):
        yield f"a loudness_lufs of {clip.loudness_lufs} and a peak_dbfs of {clip.peak_dbfs}, which no clip has"
    if not re.fullmatch(NAME, clip.corpus) or not is_below(clip.file):
        yield f"{clip.corpus[:60]!r} and {clip.file[:100]!r} are no corpus and file"


def _is_within(value: float, bounds: tuple[float, float]) -> bool:
    """False of what is no number, too."""
    return bounds[0] <= value <= bounds[1]


def verify_published(folder: PublishedFolder, config: Config) -> None:
    """Hash every file that is read from the folder, and look at each of its rows: half a minute for a million scenes.

    Raises:
        InputError: a file is missing, another than listed, or says what no publication does.
    """
    for name, found in hash_files(folder.place, sorted(folder.files)):
        if found != folder.files[name]:
            raise InputError(f"{folder.place}/{name}: another sha256 than {CHECKSUMS} says: get the folder again")
    clips = _verify_clips(folder, config)
    _verify_pairs(folder, config.scenes, clips)
    for _ in read_shards(folder):
        pass


def _verify_clips(folder: PublishedFolder, config: Config) -> frozenset[str]:
    """Look at each clip and return their names, of which each is there once."""
    silence = np.zeros(round(config.audio.clip_seconds * config.audio.sample_rate), np.int16)
    expected = len(fingerprint(silence, config.audio.sample_rate))
    names: set[str] = set()
    for unit in folder.clips:
        for clip in read_clips(folder, unit):
            where = f"{folder.place}/{folder.clips[unit]}: clip {clip.clip[:100]!r}"
            if clip.clip in names:
                raise InputError(f"{where}: is there twice")
            if len(clip.fingerprint) != expected:
                raise InputError(f"{where}: expected a fingerprint of {expected} bytes, found {len(clip.fingerprint)}")
            names.add(clip.clip)
    return frozenset(names)


def _verify_pairs(folder: PublishedFolder, scenes: tuple[str, ...], clips: Collection[str]) -> None:
    """Look at each scene: its clips are there, and its image is in no other unit."""
    hashes = array("q")  # 8 bytes an image; two of 10 million share one by chance three times in a million
    for unit, pairs in _images(folder, scenes):
        lost = next((s.clip for pair in pairs for s in pair.sources if s.clip not in clips), None)
        if lost is not None:
            raise InputError(
                f"{folder.place}/{DATA}: unit {unit}: image {pairs[0].image[:100]!r} is heard with the clip"
                f" {lost[:100]!r}, which {CLIPS}/ does not have: get the folder again"
            )
        hashes.append(hash(pairs[0].image))
    found, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    twice = set(found[counts > 1].tolist())
    if twice:
        again = [(unit, pairs[0].image) for unit, pairs in _images(folder, scenes) if hash(pairs[0].image) in twice]
        units = ", ".join(unit for unit, image in again if image == again[0][1])
        raise InputError(f"{folder.place}/{DATA}: image {again[0][1][:100]!r} is in several units: {units[:200]}")


def _images(folder: PublishedFolder, scenes: tuple[str, ...]) -> Iterator[tuple[str, tuple[PublishedPair, ...]]]:
    for unit in folder.data:
        yield from ((unit, pairs) for pairs in read_pairs(folder, unit, scenes))
