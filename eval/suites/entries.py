"""What a published list names, before any media are looked at, and which of it is taken.

The selection is a function of the list and the suite's name alone: what is missing on the disk never changes it.
"""

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sonify.errors import InputError

TAB = "\t"
YOUTUBE_ID = r"[A-Za-z0-9_-]{11}"
# The longest published list has 40,000 lines and 2 MB; a video that was named by mistake is larger.
MAX_LIST_BYTES = 64 << 20
MAX_CELL = 200  # characters: a name of a file has at most 255 bytes
_SHOWN = 60  # characters of what was found


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a corpus.

    `audio` and `image` may be the same video: then `image_sec` is the time of the frame, None its middle; it is None
    for a picture. `audio_seconds` None means to the end. `more_images` are further pictures of the same recording.
    `image` is None where the corpus has none. `ids`, `labels`, `captions`, `group` are those of `Item`.
    """

    id: str
    recording: str
    audio: Path
    audio_start_sec: float = 0.0
    audio_seconds: float | None = None
    image: Path | None = None
    image_sec: float | None = None
    more_images: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    split: str = ""
    group: str = ""
    ids: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its class: the first of its labels."""
        return self.labels[0] if self.labels else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Entries in the order of their hashes: what is `wanted`, and what stands behind it and may take its place.

    `others` are of further lists of the corpus: only their pictures are taken, for the floor of the distances.
    """

    wanted: tuple[Entry, ...]
    rest: tuple[Entry, ...]
    others: tuple[Entry, ...] = ()


def select(
    entries: Sequence[Entry], name: str, *, per_class: int | None = None, one_per_recording: bool = False
) -> Selection:
    """Take the first `per_class` of each label in the order of `sha256("<name>:<id>")`; None takes all.

    Of several entries of one recording the first in that order is kept where
    `one_per_recording` says so, whatever their classes: the others are neither wanted nor in the rest, so that no
    replacement brings a recording back.

    Raises:
        InputError: the list names an id twice.
    """
    counted = Counter(entry.id for entry in entries)
    if twice := next((entry for entry in entries if counted[entry.id] > 1), None):
        first, second, *_ = (entry.audio for entry in entries if entry.id == twice.id)
        raise InputError(
            f"{name}: its list names the id {twice.id!r} {counted[twice.id]} times ({first}, {second}); an id is given"
            " once"
        )
    ordered = sorted(entries, key=lambda entry: hashlib.sha256(f"{name}:{entry.id}".encode()).digest())
    seen: set[str] = set()
    taken: Counter[str] = Counter()
    wanted: list[Entry] = []
    rest: list[Entry] = []
    for entry in ordered:
        if one_per_recording and entry.recording in seen:
            continue
        seen.add(entry.recording)
        taken[entry.label] += 1
        (wanted if per_class is None or taken[entry.label] <= per_class else rest).append(entry)
    return Selection(wanted=tuple(wanted), rest=tuple(rest))


# --- published lists as text


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a list, with its number: 1 is the first of the file."""

    line: int
    cells: tuple[str, ...]


def read_lines(path: Path, what: str, *, may_be_empty: bool = False) -> list[Row]:
    """Read a list of one name a line; lines without anything, and spaces around a name, mean nothing."""
    lines = enumerate(re.split(r"\r\n|\n|\r", _text_of(path)), start=1)
    rows = [_row_of(path, number, [line]) for number, line in lines if line.strip()]
    if not rows and not may_be_empty:
        raise InputError(f"{path}: expected {what}, found an empty file")
    return rows


def read_table(
    path: Path, what: str, *, columns: Sequence[str], header: bool = True, delimiter: str = ","
) -> list[Row]:
    """Read these columns of a list, found by the line that names them; without such a line it has these and no others.

    Raises:
        InputError: it is no such list; the line, what was expected and what was found are named.
    """
    shown = delimiter.replace(TAB, "<TAB>").join(columns)
    rows = _cells_of(path, delimiter, shown)
    if not rows:
        raise InputError(f"{path}: expected {what}, found an empty file")
    names = rows[0].cells if header else tuple(columns)
    if missing := [name for name in columns if name not in names]:
        raise wrong(path, rows[0].line, f"the columns {shown}", f"no {missing[0]} in {delimiter.join(names)}")
    if bad := next((row for row in rows if len(row.cells) != len(names)), None):
        expected = f"{len(names)} columns ({cut(delimiter.replace(TAB, '<TAB>').join(names))})"
        raise wrong(path, bad.line, expected, delimiter.join(bad.cells))
    if not rows[header:]:
        raise InputError(f"{path}: expected {what}, found no line under the columns")
    at = [names.index(name) for name in columns]
    return [Row(row.line, tuple(row.cells[index] for index in at)) for row in rows[header:]]


def _cells_of(path: Path, delimiter: str, shown: str) -> list[Row]:
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), delimiter=delimiter, strict=True)
    try:
        return [_row_of(path, reader.line_num, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: expected {shown}, found {str(error).replace(TAB, '<TAB>')}"
        ) from None


def _row_of(path: Path, line: int, cells: Sequence[str]) -> Row:
    row = Row(line, tuple(map(str.strip, cells)))
    for cell in row.cells:
        if len(cell) > MAX_CELL or not cell.isprintable():
            raise wrong(path, line, f"at most {MAX_CELL} characters of text in a cell", cell)
    return row


def wrong(path: Path, line: int, expected: str, found: str) -> InputError:
    """A line that is not as it should be."""
    return InputError(f"{path}, line {line}: expected {expected}, found {cut(found)!r}")


def cut(text: str) -> str:
    """So much of what was found as a message shows."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def number_in(path: Path, line: int, text: str, what: str) -> float:
    """A finite number, zero or more, as a list writes it."""
    try:
        value = float(text) if re.fullmatch(r"[0-9.eE+-]{1,20}", text) else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise wrong(path, line, what, text)
    return value


def _text_of(path: Path) -> str:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_LIST_BYTES:
            raise InputError(f"{path}: expected a list, found {size_bytes >> 20} MB: is it the corpus itself?")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a list in UTF-8, found other bytes at {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: expected a list, found none ({error.strerror})") from None
    if "\0" in text:
        raise InputError(f"{path}: expected a list, found a file that is not text")
    return text
