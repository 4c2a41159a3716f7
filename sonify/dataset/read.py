"""The rows of a folder that somebody else published: none is used before its file's checksum and its form are checked.

A table is looked at before its rows are unpacked, which a few kilobytes can make into gigabytes.
"""

import hashlib
import math
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import merge
from itertools import groupby, islice
from operator import attrgetter, itemgetter
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sonify.config import Config
from sonify.config.inputs import NAME
from sonify.config.sections import MOST_EVENTS, PRESENCES, SNR_DB
from sonify.dataset.format import (
    CHECKSUMS,
    CLIPS,
    COPY_KINDS,
    DATA,
    DATA_FILE,
    SHARDS,
    PublishedClip,
    PublishedPair,
    PublishedShard,
)
from sonify.dataset.render_from import PublishedFolder
from sonify.errors import InputError
from sonify.io.places import is_below, open_inside, read_ahead, read_inside, sizes_inside
from sonify.io.tables import read_columns, rows_of, schema_of, schema_of_before
from sonify.keys import key_order, keys_of, plain_key
from sonify.media.likeness import fingerprint
from sonify.media.mixing import SILENCE_DBFS, TARGET_LUFS
from sonify.media.pixels import MAX_PIXELS, MAX_SIDE_PX
from sonify.rows import SourceClip
from sonify.stores import BLOCK_BYTES, Place

Row = TypeVar("Row")

# What `sonify publish` writes stays far below each of these.
MAX_ROWS = 10_000_000  # of a file
MAX_GROUP_BYTES = 256 << 20  # of a row group, decompressed but with each different text once
MAX_VALUES_IN_ROW = 100  # of a list: sources (`concepts.max_concepts` is at most that), conditions
MAX_TEXT_BYTES = 64 << 10
# Rows that are Python objects at once, and all their texts then: 128 KB a row, where a row of ours has some 3.
ROWS_AT_ONCE = 512
MAX_TEXTS_BYTES = 64 << 20

# What rows may say: within these bounds lies all that `sonify publish` can write.
# A clip: the gate of BS.1770 below; above, a square wave at full scale stays under +4 LUFS.
CLIP_LUFS = (-70.0, 10.0)
# A source: from any clip to any target.
GAIN_DB = (TARGET_LUFS[0] - CLIP_LUFS[1], TARGET_LUFS[1] - CLIP_LUFS[0])
PEAK_DBFS = (SILENCE_DBFS, 0.0)
ROLES = ("", "foreground", "ambience")
SCENE_SEC = (0.0, 60.0)  # `audio.clip_seconds` is at most that

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsFile:
    """The frozen listing of a unit of published clips."""

    file: str
    sha256: str


def verify_published(folder: PublishedFolder, config: Config) -> None:
    """Hash every file that is read from the folder, and look at each of its rows: half a minute for a million scenes.

    Raises:
        InputError: a file is missing, another than listed, or says what no publication does.
    """
    for name, found in hash_files(folder.place, sorted(folder.files)):
        if found != folder.files[name]:
            raise InputError(f"{folder.place}/{name}: another sha256 than {CHECKSUMS} says: get the folder again")
    clips = _verify_clips(folder, config)
    _verify_pairs(folder, config, clips)
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


def _verify_pairs(folder: PublishedFolder, config: Config, clips: Collection[str]) -> None:
    """Look at each scene: its clips are there and begin within it, and its image is in no other unit."""
    scenes, scene_sec = config.scenes, config.audio.clip_seconds
    repeats = config.retrieval.repeat_recordings
    hashes = array("q")  # 8 bytes an image; two of 10 million share one by chance three times in a million
    for unit, pairs in _images(folder, scenes):
        lost = next((s.clip for pair in pairs for s in pair.sources if s.clip not in clips), None)
        if lost is not None:
            raise InputError(
                f"{folder.place}/{DATA}: unit {unit}: image {pairs[0].image[:100]!r} is heard with the clip"
                f" {lost[:100]!r}, which {CLIPS}/ does not have: get the folder again"
            )
        if not repeats and any(len({s.clip for s in pair.sources}) < len(pair.sources) for pair in pairs):
            raise InputError(
                f"{folder.place}/{DATA}: unit {unit}: image {pairs[0].image[:100]!r}: a scene with one clip twice, and"
                " the dataset was made without retrieval.repeat_recordings: get the folder again"
            )
        late = next(
            (s.onsets_sec for pair in pairs for s in pair.sources if max(s.onsets_sec, default=0.0) >= scene_sec), None
        )
        if late is not None:
            raise InputError(
                f"{folder.place}/{DATA}: unit {unit}: image {pairs[0].image[:100]!r}: a sound begins after"
                f" {max(late):g} seconds, and a scene has {scene_sec:g}"
            )
        hashes.append(hash(key_order(pairs[0].image)))
    found, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    twice = set(found[counts > 1].tolist())
    if twice:
        again = [
            (unit, pairs[0].image)
            for unit, pairs in _images(folder, scenes)
            if hash(key_order(pairs[0].image)) in twice
        ]
        units = ", ".join(unit for unit, image in again if image == again[0][1])
        raise InputError(f"{folder.place}/{DATA}: image {again[0][1][:100]!r} is in several units: {units[:200]}")


def _images(folder: PublishedFolder, scenes: tuple[str, ...]) -> Iterator[tuple[str, tuple[PublishedPair, ...]]]:
    for unit in folder.data:
        yield from ((unit, pairs) for pairs in read_pairs(folder, unit, scenes))


def hash_files(folder: Place, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The sha256 of each file, of the bytes that it has at first: one that grows is read no further.

    Threads read single blocks, so that whoever interrupts waits for some of those and not for a whole file.
    """
    blocks = read_ahead(lambda block: (block[0], _read_block(folder, *block)), _blocks(folder, names))
    for name, parts in groupby(blocks, key=itemgetter(0)):
        digest = hashlib.sha256()
        for _, data in parts:
            digest.update(data)
        yield name, digest.hexdigest()


def _blocks(folder: Place, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Where each block of each file begins and ends; an empty file has one, too."""
    for name, size in sizes_inside(folder, names):
        if size is None:
            raise InputError(f"{folder}/{name}: there is no such file: get the folder again")
        yield from ((name, start, min(start + BLOCK_BYTES, size)) for start in range(0, max(size, 1), BLOCK_BYTES))


def _read_block(folder: Place, name: str, start: int, stop: int) -> bytes:
    try:
        return read_inside(folder, name, start, stop)
    except OSError as error:
        raise InputError(f"{folder}/{name}: {error.strerror or error}: get the folder again") from error


def read_pairs(folder: PublishedFolder, unit: str, scenes: tuple[str, ...]) -> Iterator[tuple[PublishedPair, ...]]:
    """Yield all scenes of each image of a unit, in the order of keys."""
    tables = (_read_split(folder, name) for name in folder.data[unit])
    before = ""
    for key, rows in groupby(merge(*tables, key=lambda pair: key_order(pair.image)), key=attrgetter("image")):
        pairs = tuple(islice(rows, len(scenes) + 1))  # one more is wrong, however many follow
        wrong = next(_faults_of_image(pairs, scenes), None) or (
            "images in another order" if key_order(key) <= before else None
        )
        if wrong:
            raise InputError(f"{folder.place}/{DATA}: unit {unit}: image {key[:100]!r}: {wrong}")
        before = key_order(key)
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
    return sorted({uri for column in columns for uri in column.to_pylist()}, key=plain_key)


def read_clips(folder: PublishedFolder, unit: str) -> Iterator[PublishedClip]:
    """Yield the clips of a unit that are heard."""
    name = folder.clips[unit]
    for clip in read_table(folder.place, name, PublishedClip):
        if wrong := next(_faults_of_clip(clip), None):
            raise InputError(f"{folder.place}/{name}: clip {clip.clip[:100]!r}: {wrong}")
        yield clip


def read_shards(folder: PublishedFolder) -> Iterable[PublishedShard]:
    """The published shards."""
    return read_table(folder.place, SHARDS, PublishedShard)


def _faults_of_image(pairs: Sequence[PublishedPair], scenes: tuple[str, ...]) -> Iterator[str]:
    """What keeps an image's rows from being used; the first is enough."""
    first = pairs[0]
    found = tuple(pair.scene for pair in pairs)
    if not is_below(first.image_uri):
        yield f"its image_uri {first.image_uri[:100]!r} leads elsewhere"
    if first.image not in keys_of(first.image_uri):
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
    if not _SHA256.fullmatch(pair.mix_sha256):
        yield "its mix_sha256 is none"
    for source in pair.sources:
        numbers = (source.cosine, source.score, source.threshold, source.limit, source.purity)
        if not all(map(math.isfinite, (*numbers, source.support, source.speech, *source.onsets_sec))):
            yield "a number that is none"
        if not _is_within(source.target_lufs, TARGET_LUFS) or not _is_within(source.gain_db, GAIN_DB):
            yield f"a target_lufs of {source.target_lufs} and a gain_db of {source.gain_db}, which no mix has"
        if not _are_times(source):
            yield f"a part from {source.active_start_sec} of {source.active_sec} seconds, heard at times that are none"
        if source.role not in ROLES or not _is_within(source.snr_db, SNR_DB):
            yield f"its role is {source.role[:100]!r}, and its snr_db {source.snr_db}"
        if source.copy not in COPY_KINDS:
            yield f"its copy is {source.copy[:100]!r}"
    yield from _faults_of_refused(pair)


def _faults_of_refused(pair: PublishedPair) -> Iterator[str]:
    for refused in pair.refused:
        if not math.isfinite(refused.cosine):
            yield "a number that is none"
        if refused.presence not in ("", *PRESENCES):
            yield f"its presence is {refused.presence[:100]!r}"


def _are_times(source: SourceClip) -> bool:
    """Whether a part is told where it is heard, and all of it lies in what a scene can be."""
    seconds = (source.active_start_sec, source.active_sec, *source.onsets_sec)
    return all(_is_within(value, SCENE_SEC) for value in seconds) and bool(source.onsets_sec) == (source.active_sec > 0)


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


def read_table(folder: Place, name: str, row_type: type[Row]) -> Iterator[Row]:
    """Read a table's rows in order; some of them at a time become objects, after a look at how large they are.

    Raises:
        InputError: it is no Parquet file, has other columns, or holds more than any such file does.
    """
    place = folder / name
    with _naming_faults(place):
        with open_inside(folder, name) as source, pq.ParquetFile(source) as file:
            schema = _check_footer(place, file, row_type)
            texts = _texts_of(file)
        with open_inside(folder, name) as source, pq.ParquetFile(source, read_dictionary=texts) as packed:
            yield from _checked_rows(place, _unpack(place, packed, schema), row_type)


def _checked_rows(place: Place, batches: Iterable[pa.RecordBatch], row_type: type[Row]) -> Iterator[Row]:
    rows = rows_of(batches, row_type)
    while True:
        try:
            row = next(rows, None)
        except pa.ArrowException:  # some of them are ValueErrors too
            raise
        except ValueError as error:  # a word that is none of an enumeration's
            raise InputError(f"{place}: {str(error)[:200]}") from error
        if row is None:
            return
        yield row


@contextmanager
def _naming_faults(place: Place) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # a column is named in no UTF-8
        raise InputError(f"{place}: not a Parquet file ({str(error).splitlines()[0][:200]!r})") from error


def _unpack(place: Place, packed: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Batches as they are read otherwise; each is checked while every different text is there once."""
    for batch in packed.iter_batches(ROWS_AT_ONCE, use_threads=False):
        size_bytes = 0
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            _check_lists(place, name, column)
            size_bytes += _check_texts(place, name, column)
        if size_bytes > MAX_TEXTS_BYTES:
            raise InputError(f"{place}: {size_bytes} bytes of text in {len(batch)} rows: too many")
        yield batch.cast(schema)


def _check_footer(place: Place, file: pq.ParquetFile, row_type: type) -> pa.Schema:
    """The schema of its columns, which lacks those that came later than the table; nothing else is another."""
    found = file.schema_arrow
    expected = schema_of_before(row_type, found)
    if not found.equals(expected, check_metadata=False):
        raise InputError(f"{place}: expected the columns {_columns(schema_of(row_type))}, found {_columns(found)}")
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    for group in groups:
        columns = [group.column(n) for n in range(group.num_columns)]
        rows = max(group.num_rows, 1)
        values = max(column.num_values for column in columns)
        too_many = any(column.num_values > rows * _most_values(column.path_in_schema) for column in columns)
        if group.total_byte_size > MAX_GROUP_BYTES or too_many:
            raise InputError(f"{place}: {group.total_byte_size} bytes or {values} values in one row group: too many")
    if not 0 < file.metadata.num_rows <= MAX_ROWS:
        raise InputError(f"{place}: {file.metadata.num_rows} rows, expected some and at most {MAX_ROWS}")
    return expected


def _most_values(path: str) -> int:
    """How many values a row may have in a column: a list in a list is the times of a source."""
    lists = path.count(".list.")
    return MAX_VALUES_IN_ROW * MOST_EVENTS ** max(0, lists - 1)


def _columns(schema: pa.Schema) -> str:
    """Names and types; whether a value may be lacking is told as pyarrow tells it of what is inside a list."""
    types = ((field.name, f"{field.type}{'' if field.nullable else ' not null'}") for field in schema)
    return ", ".join(f"{name} ({of})" for name, of in types)[:1000]


def _texts_of(file: pq.ParquetFile) -> list[str]:
    """The columns that hold texts or bytes, those inside lists as well."""
    columns = (file.schema.column(n) for n in range(len(file.schema.names)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _check_lists(place: Place, name: str, column: pa.Array, most: int = MAX_VALUES_IN_ROW) -> None:
    if isinstance(column, pa.ListArray):
        longest = max(column.value_lengths().to_pylist(), default=0)
        if longest > most:
            raise InputError(f"{place}: {name}: {longest} values in one row, at most {most} are read")
        _check_lists(place, name, column.values, MOST_EVENTS)
    elif isinstance(column, pa.StructArray):
        for n in range(column.type.num_fields):
            _check_lists(place, f"{name}.{column.type.field(n).name}", column.field(n), most)


def _check_texts(place: Place, name: str, column: pa.Array) -> int:
    """Look at each different text of a column, and return the bytes of all when they are unpacked."""
    size_bytes = 0
    for texts in _dictionaries(column):
        texts.validate(full=True)  # raises where an index leads nowhere
        texts.dictionary.validate(full=True)  # and where a text is no UTF-8
        lengths = pc.binary_length(texts.dictionary)  # pyright: ignore[reportAttributeAccessIssue] - made at import
        longest = max(lengths.to_pylist(), default=0)
        if longest > MAX_TEXT_BYTES:
            raise InputError(f"{place}: {name}: a text of {longest} bytes, at most {MAX_TEXT_BYTES} are read")
        size_bytes += int(lengths.to_numpy()[texts.indices.to_numpy()].sum())
    return size_bytes


def _dictionaries(column: pa.Array) -> Iterator[pa.DictionaryArray]:
    """The texts of a column, each different one once."""
    if isinstance(column, pa.DictionaryArray):
        yield column
    elif isinstance(column, pa.ListArray):
        yield from _dictionaries(column.values)
    elif isinstance(column, pa.StructArray):
        for n in range(column.type.num_fields):
            yield from _dictionaries(column.field(n))
