"""Published corpora, as their archives unpack: AudioSet, FSD50K, BBC sound effects, ESC-50.

Each has a table that names its recordings, of which everybody may have only some: a row without a file is refused as
`missing`, and counted.

A new corpus is a function here that lists it, a line in `LISTERS` (`sounds/__init__.py`), a section with its `kind`
in the union `Sounds` (`config/inputs.py`, handed on by `config/__init__.py`), tests in
`tests/sources/test_corpora.py`, and a line in `docs/data.md` and `docs/keys.md`; where its recordings are no files, a
way to open one (`opening.py`), and where its licences are written in words of its own, a line in `dataset/licences.py`.
"""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TextIO

from sonify.config import AudioSetSounds, BbcSounds, Esc50Sounds, Fsd50kSounds
from sonify.errors import InputError
from sonify.io.listing import Listing, list_files, say_passed_over
from sonify.io.places import child, open_place
from sonify.keys import plain_key
from sonify.rows import Reason, SoundRef
from sonify.sources.joins import meet, plain, say_meeting
from sonify.sources.sounds.forms import (
    LATER_SUFFIXES,
    SOUND_SUFFIXES,
    first_text,
    index_archive,
    is_sound,
    refused_ref,
)
from sonify.sources.userfiles import list_containers
from sonify.stores import Place

# AudioSet's labels are CC BY 4.0; the sounds are other people's videos, under YouTube's terms unless each says
# otherwise.
AUDIOSET_LICENCE = "YouTube (research only, no redistribution)"
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
# Behind an id: a start, or a start and an end, in seconds or milliseconds.
_TIMES = re.compile(r"(?:[_.,\s-]+(\d+(?:\.\d+)?)(?:m?s)?(?:[_.,\s-]+(?:to[_\s-]+)?\d+(?:\.\d+)?(?:m?s)?)?)?")
_IN_BRACKETS = re.compile(r"\[([A-Za-z0-9_-]{11})\]")
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
BBC_TABLE = "BBCSoundEffects.csv"
BBC_COLUMNS = ("location", "description", "secs", "category", "CDNumber", "CDName", "tracknum")
BBC_LICENCE = "RemArc"  # personal use, education and research: https://sound-effects.bbcrewind.co.uk/licensing


@dataclass(frozen=True, slots=True)
class Segment:
    """Ten seconds or less of a video; `labels` are ids of classes."""

    youtube_id: str
    start_sec: float
    end_sec: float
    labels: str

    @property
    def name(self) -> str:
        """The segment's own name, by id and milliseconds."""
        return f"{self.youtube_id}_{round(self.start_sec * 1000)}_{round(self.end_sec * 1000)}"


def list_audioset(source: AudioSetSounds) -> list[SoundRef]:
    """List every segment; those without a file, and lines that are none, are refused.

    Files are named as the tools that fetch them do: `<id>.wav`, `Y<id>.wav`, `<id>_<start>.flac` in seconds or
    milliseconds, `<id>_<start>_<end>.flac`, `<id>_<start>-<end>.flac`, `<title> [<id>].m4a`; in a folder, with or
    without folders for the labels, or in tar archives. An id holds `_` and `-` itself: it is one of the list's.
    """
    names = _read_labels(source.labels)
    lines = list(_read_segments(source.segments))

    @cache
    def describe(labels: str) -> str:
        return ", ".join(names[label] for label in labels.split(",") if label in names)

    found, refused = _find_sounds(source)
    by_id = _by_id(found, {segment.youtube_id for _, segment in lines if segment})
    rows: list[SoundRef] = []
    files: dict[str, str] = {}
    for line, segment in lines:
        if segment is None:
            detail = "expected YTID, start_seconds, end_seconds, positive_labels"
            refused.append(refused_ref(source.name, f"{source.segments.name}:{line}", Reason.UNREADABLE, detail))
            continue
        file = _file_of(segment, by_id.get(segment.youtube_id, ()))
        if file is not None:
            files[segment.name] = file
        rows.append(_segment_ref(source.name, segment, describe(segment.labels)))
    if rows and not any(row.text for row in rows):
        raise InputError(f"audio.sources: {source.labels} has no name for any label in {source.segments}")
    expected = f"{rows[0].recording.removeprefix('youtube/')}.wav" if rows else ""
    refs = _with_files(rows, files, found, table=source.segments, folder=source.path, expected=expected)
    return refs + refused


def _segment_ref(source_name: str, segment: Segment, text: str) -> SoundRef:
    return SoundRef(
        corpus=source_name,
        file=segment.name,
        recording=f"youtube/{segment.youtube_id}",
        text=text,
        licence=AUDIOSET_LICENCE,
        attribution=f"https://youtu.be/{segment.youtube_id}",
    )


def _find_sounds(source: AudioSetSounds) -> tuple[list[str], list[SoundRef]]:
    """Files and archive members, and what of the archives cannot be read."""
    refused: list[SoundRef] = []
    if source.path.suffix.lower() == ".tar":
        listing, archives = Listing(files=[]), list_containers(source.path, ".tar").files
    else:
        listing = list_files(source.path, (*SOUND_SUFFIXES, ".tar"))
        archives = [name for name in listing.files if name.lower().endswith(".tar")]
        _say_passed_over(source.path, listing, [source.segments, source.labels])
    files = [name for name in listing.files if name.lower().endswith(SOUND_SUFFIXES)]
    for uri in sorted(archives, key=plain_key):
        members, unreadable = index_archive(source.name, source.path, uri)
        files += (f"{uri}/{member.name}" for member in members if is_sound(member.name))
        refused += unreadable
    return _in_order_of_choice(replace(listing, files=files)), refused


def _by_id(files: Iterable[str], ids: Collection[str]) -> Mapping[str, Sequence[tuple[float | None, str]]]:
    """Files by the id of the list that their names hold, with the start that they say."""
    by_id: dict[str, list[tuple[float | None, str]]] = defaultdict(list)
    for file in files:
        for youtube_id, rest in _readings_of(_stem_of(file)):
            times = _TIMES.fullmatch(rest)
            if times and youtube_id in ids:
                by_id[youtube_id].append((float(times.group(1)) if times.group(1) else None, file))
                break
    return by_id


def _readings_of(stem: str) -> Iterator[tuple[str, str]]:
    """What may be the id in a file's name, and what follows it: in front, behind a `Y`, in brackets, at the end."""
    yield stem[:11], stem[11:]
    if stem.startswith("Y"):
        yield stem[1:12], stem[12:]
    yield from ((match.group(1), stem[match.end() :]) for match in reversed(list(_IN_BRACKETS.finditer(stem))))
    if stem[-12:-11] == "-":  # youtube-dl's `<title>-<id>`
        yield stem[-11:], ""


def _file_of(segment: Segment, found: Sequence[tuple[float | None, str]]) -> str | None:
    """The file with the segment's start in its name, in seconds or milliseconds, or else with none."""
    starts = (int(segment.start_sec), segment.start_sec, segment.start_sec * 1000)
    named = (file for start, file in found if start is not None and start in starts)
    return next(named, None) or next((file for start, file in found if start is None), None)


def _read_labels(table: Place) -> dict[str, str]:
    try:
        with _open_text(table, errors="strict") as file:
            return {row["mid"]: row["display_name"].strip() for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, csv.Error) as error:
        raise InputError(
            f"audio.sources: labels: {table}: expected AudioSet's class_labels_indices.csv (index,mid,display_name):"
            f" {error}"
        ) from error


def _read_segments(table: Place) -> Iterator[tuple[int, Segment | None]]:
    """Yield line numbers and segments; None is a line that is none. The head is three lines with `#`, one, or none."""
    try:
        with _open_text(table) as file:
            reader = csv.reader(file, skipinitialspace=True)
            for row in reader:
                if row and not row[0].startswith("#") and row[0] != "YTID":
                    yield reader.line_num, _segment(row)
    except (OSError, csv.Error) as error:
        raise InputError(f"audio.sources: segments: {table} is no segment list: {error}") from error


def _segment(row: Sequence[str]) -> Segment | None:
    # labels that somebody wrote without quotes are further columns
    youtube_id, start, end, *labels = (*row, "", "", "")[: max(len(row), 3)]
    if not (
        _YOUTUBE_ID.fullmatch(youtube_id) and _SECONDS.fullmatch(start) and _SECONDS.fullmatch(end) and any(labels)
    ):
        return None
    return Segment(youtube_id, float(start), float(end), ",".join(label.strip() for label in labels))


def list_fsd50k(source: Fsd50kSounds) -> list[SoundRef]:
    """List the clips of the part (`eval` is meant for evaluation); those without a file are refused."""
    parts = ("dev", "eval") if source.part == "both" else (source.part,)
    found = list_files(source.path, SOUND_SUFFIXES)
    _say_passed_over(source.path, found, [table for part in parts for table in _fsd50k_tables(source, part)])
    return [ref for part in parts for ref in _list_fsd50k_part(source, part, _in_order_of_choice(found))]


def _fsd50k_tables(source: Fsd50kSounds, part: str) -> tuple[Place, Place]:
    """The table of a part's labels, and the record of each clip's licence and uploader."""
    records = source.path / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json"
    return source.path / "FSD50K.ground_truth" / f"{part}.csv", records


def _list_fsd50k_part(source: Fsd50kSounds, part: str, sounds: Sequence[str]) -> list[SoundRef]:
    table, clips = _fsd50k_tables(source, part)
    try:
        with _open_text(table, errors="strict") as file:
            labels = {row["fname"]: row["labels"] for row in csv.DictReader(file)}
        with open_place(clips) as file:
            about = json.load(file)
        folder = f"FSD50K.{part}_audio"
        refs = [_fsd50k_ref(source.name, folder, name, of, about.get(name, {})) for name, of in labels.items()]
    except (OSError, ValueError, KeyError, AttributeError, RecursionError, csv.Error) as error:
        raise InputError(
            f"audio.sources: expected FSD50K's FSD50K.ground_truth/{table.name} (fname,labels,...) and"
            f" FSD50K.metadata/{clips.name} (licence and uploader of each) in {source.path}: {error}"
        ) from error
    found = [file for file in sounds if file.startswith(f"{folder}/")]
    files = {file.rpartition(".")[0]: file for file in reversed(found)}
    return _with_files(refs, files, found, table=table, folder=source.path)


def _fsd50k_ref(source_name: str, folder: str, name: str, labels: str, about: Mapping[str, Any]) -> SoundRef:
    """Labels go from the leaf to the root. `name` is the number of the upload at Freesound."""
    title, uploader, licence = (first_text(about, [field]) or "unknown" for field in ("title", "uploader", "license"))
    return SoundRef(
        corpus=source_name,
        file=f"{folder}/{name}",
        recording=f"freesound/{name}",
        text=labels.replace("_", " ").replace(",", ", "),
        licence=licence,
        attribution=f"{title} by {uploader}, https://freesound.org/s/{name}/",
    )


def list_bbc(source: BbcSounds) -> list[SoundRef]:
    """List every row of the table; those without a file are refused."""
    table = source.table or source.path / BBC_TABLE
    refs = [_bbc_ref(source.name, location, description) for location, description in _read_bbc_table(table)]
    found = list_files(source.path, SOUND_SUFFIXES)
    _say_passed_over(source.path, found, [table])
    files = {_stem_of(file): file for file in reversed(_in_order_of_choice(found))}
    return _with_files(refs, files, found.files, table=table, folder=source.path)


def _bbc_ref(source_name: str, location: str, description: str) -> SoundRef:
    name = _stem_of(plain(location))
    return SoundRef(
        corpus=source_name,
        file=name,
        recording=f"bbc/{name}",
        text=" ".join(_mended(description).split()),
        licence=BBC_LICENCE,
        attribution=f"BBC Sound Effects, {location}, bbc.co.uk – © BBC",
    )


def _read_bbc_table(table: Place) -> Iterator[tuple[str, str]]:
    """Yield location and description, whether or not the table has a head."""
    try:
        with _open_text(table) as file:
            rows = csv.reader(file)
            first = next(rows, [])
            _check_bbc_columns(table, first)
            if tuple(first) != BBC_COLUMNS:
                yield first[0].strip(), first[1]
            yield from ((row[0].strip(), row[1]) for row in rows if len(row) > 1 and row[0].strip())
    except (OSError, csv.Error) as error:
        raise InputError(f"audio.sources: expected the BBC's {BBC_TABLE}, found none at {table}: {error}") from error


def _check_bbc_columns(table: Place, first: Sequence[str]) -> None:
    is_row = len(first) == len(BBC_COLUMNS) and first[0].strip().lower().endswith(".wav")
    if tuple(first) != BBC_COLUMNS and not is_row:
        raise InputError(
            f"audio.sources: {table}: expected the columns {','.join(BBC_COLUMNS)}, with or without this head; found"
            f" {','.join(first)[:200]}"
        )


def _mended(text: str) -> str:
    """Undo UTF-8 that was once read as Latin-1; text that was not does not survive the way back, and stays."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def list_esc50(source: Esc50Sounds, must_meet: bool = True) -> list[SoundRef]:
    """List the rows of `meta/esc50.csv`.

    Raises:
        InputError: the table is not there or not one, or no row names a recording, where one must.
    """
    table = source.path / "meta" / "esc50.csv"
    try:
        with _open_text(table, errors="strict") as file:
            lines = list(csv.DictReader(file))
        rows = {row["filename"]: _esc50_ref(source, row) for row in lines}
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise InputError(
            f"audio.sources: expected ESC-50's meta/esc50.csv (filename, category, src_file, ...) in {source.path}:"
            f" {error}"
        ) from error
    listing = list_files(source.path / "audio", SOUND_SUFFIXES)
    say_passed_over(source.path / "audio", listing)
    met = meet([row["filename"] for row in lines], listing.files, "audio")
    if must_meet and rows and not met.met:
        raise InputError(
            f"audio.sources: none of the {len(rows):,} recordings in {table} is below {source.path / 'audio'}: expected"
            f" files such as {next(iter(rows), '1-100032-A-0.wav')}"
        )
    say_meeting(table.name, met, "recording")
    others = {row: file for file, row in met.others.items()}
    return [replace(ref, file=f"audio/{others[name]}") if name in others else ref for name, ref in rows.items()]


def _esc50_ref(source: Esc50Sounds, row: dict[str, str]) -> SoundRef:
    name = plain(row["filename"]).removeprefix("audio/")
    if name in ("", "..") or set("/\0") & set(name):
        raise InputError(f"audio.sources: {source.path}/meta/esc50.csv: {row['filename']!r} is no file name")
    return SoundRef(
        corpus=source.name,
        file=f"audio/{name}",
        # takes of one Freesound upload differ in the letter: 1-100210-A and 1-100210-B
        recording=f"freesound/{row['src_file']}",
        text=row["category"].replace("_", " "),
        # per-clip licences stand in the corpus's LICENSE file as prose; the whole corpus is published as this
        licence="CC-BY-NC-3.0",
        attribution=f"freesound.org/s/{row['src_file']}, in ESC-50 (Piczak, 2015)",
    )


def _in_order_of_choice(listing: Listing) -> list[str]:
    """The files of a listing; of several of one recording the first counts.

    What earlier versions did not list comes last, so that none that a run has is replaced.
    """
    return sorted(
        listing.files,
        key=lambda file: (file.lower().endswith(LATER_SUFFIXES), file.startswith(listing.linked), file),
    )


def _say_passed_over(folder: Place, listing: Listing, tables: Sequence[Place]) -> None:
    """Say which files are neither sounds nor the corpus' own tables."""
    say_passed_over(folder, listing, {name for name in listing.others if child(folder, name) in tables})


def _stem_of(file: str) -> str:
    """A file's name without its folder and ending; it may begin with `-` and hold further dots."""
    return PurePosixPath(file).stem


def _with_files(
    rows: Sequence[SoundRef],
    files: Mapping[str, str],
    found: Sequence[str],
    *,
    table: Place,
    folder: Place,
    expected: str = "",
) -> list[SoundRef]:
    """Give the rows of a corpus' table their files, and refuse those that have none as `missing`.

    A missing row keeps its name without an ending, so that its file, once it is there, is new input.

    Args:
        rows: with the name by which `files` knows them as `file`; of equal ones the first counts.
        files: paths below the corpus' folder, by the corpus' own rule.
        found: all paths there, of which the other rows may name one in another spelling.
        table: where the rows come from.
        folder: the corpus' folder.
        expected: a file name for the message, where it is not that of the first row.
    """
    taken = {files[row.file] for row in rows if row.file in files}
    left = [row.file for row in rows if row.file not in files]
    met = meet(left, [file for file in found if file not in taken], folder.name)
    others = {row: file for file, row in met.others.items()}
    refs: dict[str, SoundRef] = {}
    again: list[str] = []
    for row in rows:
        file = files.get(row.file) or others.get(row.file)
        ref = replace(row, file=file) if file else replace(row, refused=Reason.MISSING)
        if refs.setdefault(ref.file, ref) is not ref:
            again.append(row.file)
    if not refs:
        raise InputError(f"audio.sources: {table} names no recording")
    if all(ref.refused == Reason.MISSING for ref in refs.values()):
        raise InputError(
            f"audio.sources: none of the {len(refs):,} recordings in {table} is below {folder}: expected files such as"
            f" {expected or next(iter(refs)) + '.wav'}"
        )
    say_meeting(table.name, replace(met, again=again), "recording")
    return list(refs.values())


def _open_text(table: Place, errors: str = "replace") -> TextIO:
    """Open a corpus' table for `csv`."""
    return io.TextIOWrapper(open_place(table), encoding="utf-8-sig", errors=errors, newline="")
