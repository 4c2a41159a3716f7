"""AudioSet: segments of YouTube videos by id, of which everybody has only some.

Files are named as the tools that fetch them do: `<id>.wav`, `Y<id>.wav`, `<id>_<start>.flac` in seconds or
milliseconds, `<id>_<start>_<end>.flac`; in a folder or in tar archives.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from sonify.config import AudioSetSounds
from sonify.errors import InputError
from sonify.io.places import list_files
from sonify.rows import Reason, SoundRef
from sonify.sources.containers import list_containers
from sonify.sources.sounds.found import (
    SOUND_SUFFIXES,
    index_archive,
    open_text,
    refused_ref,
    stem_of,
    with_files,
)
from sonify.stores import Place

# The labels are CC BY 4.0; the sounds are other people's videos, under YouTube's terms unless each says otherwise.
LICENCE = "YouTube (research only, no redistribution)"
_NAME = re.compile(r"Y?([A-Za-z0-9_-]{11})(?:_(\d+(?:\.\d+)?))?(?:_\d+(?:\.\d+)?)?")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?")


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

    Raises:
        InputError: a table is not one, or no segment has a file.
    """
    names = _read_labels(source.labels)

    @cache
    def describe(labels: str) -> str:
        return ", ".join(names[label] for label in labels.split(",") if label in names)

    by_id, refused = _find_sounds(source)
    rows: list[SoundRef] = []
    files: dict[str, str] = {}
    for line, segment in _read_segments(source.segments):
        if segment is None:
            detail = "expected YTID, start_seconds, end_seconds, positive_labels"
            refused.append(refused_ref(source.name, f"{source.segments.name}:{line}", Reason.UNREADABLE, detail))
            continue
        file = _file_of(segment, by_id.get(segment.youtube_id, ()))
        if file is not None:
            files[segment.name] = file
        rows.append(_ref(source.name, segment, describe(segment.labels)))
    if rows and not any(row.text for row in rows):
        raise InputError(f"audio.sources: {source.labels} has no name for any label in {source.segments}")
    expected = f"{rows[0].recording.removeprefix('youtube/')}.wav" if rows else ""
    return with_files(rows, files, table=source.segments, folder=source.path, expected=expected) + refused


def _ref(source_name: str, segment: Segment, text: str) -> SoundRef:
    return SoundRef(
        corpus=source_name,
        file=segment.name,
        recording=f"youtube/{segment.youtube_id}",
        text=text,
        licence=LICENCE,
        attribution=f"https://youtu.be/{segment.youtube_id}",
    )


def _find_sounds(source: AudioSetSounds) -> tuple[Mapping[str, Sequence[tuple[float | None, str]]], list[SoundRef]]:
    """Files and archive members by YouTube id, with the start that their names say."""
    files = [] if source.path.suffix.lower() == ".tar" else list_files(source.path, SOUND_SUFFIXES)
    refused: list[SoundRef] = []
    for uri in list_containers(source.path, ".tar"):
        members, unreadable = index_archive(source.name, source.path, uri)
        files += (f"{uri}/{member.name}" for member in members if member.name.lower().endswith(SOUND_SUFFIXES))
        refused += unreadable
    by_id: dict[str, list[tuple[float | None, str]]] = defaultdict(list)
    for file in sorted(files):
        if match := _NAME.fullmatch(stem_of(file)):
            by_id[match.group(1)].append((float(match.group(2)) if match.group(2) else None, file))
    return by_id, refused


def _file_of(segment: Segment, found: Sequence[tuple[float | None, str]]) -> str | None:
    """The file with the segment's start in its name, in seconds or milliseconds, or else with none."""
    starts = (int(segment.start_sec), segment.start_sec, segment.start_sec * 1000)
    named = (file for start, file in found if start is not None and start in starts)
    return next(named, None) or next((file for start, file in found if start is None), None)


def _read_labels(table: Place) -> dict[str, str]:
    try:
        with open_text(table, errors="strict") as file:
            return {row["mid"]: row["display_name"].strip() for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, csv.Error) as error:
        raise InputError(
            f"audio.sources: labels: {table}: expected AudioSet's class_labels_indices.csv (index,mid,display_name):"
            f" {error}"
        ) from error


def _read_segments(table: Place) -> Iterator[tuple[int, Segment | None]]:
    """Yield line numbers and segments; None is a line that is none. The head is three lines with `#`, one, or none."""
    try:
        with open_text(table) as file:
            reader = csv.reader(file, skipinitialspace=True)
            for row in reader:
                if row and not row[0].startswith("#") and row[0] != "YTID":
                    yield reader.line_num, _segment(row)
    except (OSError, csv.Error) as error:
        raise InputError(f"audio.sources: segments: {table} is no segment list: {error}") from error


def _segment(row: Sequence[str]) -> Segment | None:
    # labels that somebody wrote without quotes are further columns
    youtube_id, start, end, *labels = (*row, "", "", "")[: max(len(row), 3)]
    whole = _NAME.fullmatch(youtube_id) and len(youtube_id) == 11
    if not (whole and _NUMBER.fullmatch(start) and _NUMBER.fullmatch(end) and any(labels)):
        return None
    return Segment(youtube_id, float(start), float(end), ",".join(label.strip() for label in labels))
