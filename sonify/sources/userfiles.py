"""Files that users bring: archives and tables by name, tables of captions and metadata, exclusion lists.

What is in them may be anything: cells are read as bytes, and no name leads elsewhere.
"""

import codecs
import csv
import io
import json
import logging
import re
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv

from sonify.errors import InputError
from sonify.io.listing import Listing, list_files
from sonify.io.places import child, is_below, is_file, is_utf8, leads_out, open_place
from sonify.io.tables import open_parquet
from sonify.keys import keys_of, plain_key
from sonify.sources.joins import plain, spellings
from sonify.stores import Place

log = logging.getLogger(__name__)

SHA256 = re.compile("[0-9a-f]{64}")

# A row must fit in one block of the CSV reader; a caption of 1 MB does.
CSV_BLOCK_BYTES = 16 << 20
# A Parquet dictionary repeats a long text for nothing in the file, and in full in memory.
TEXTS_AT_ONCE = 64
# So much of a table says how it is written, and its first line is far shorter.
HEAD_BYTES = 1 << 20
DELIMITERS = ",;\t|"
# What lines without a cell are made of, where they are looked for, and how much of them may stand at the end.
NO_CELLS = b"\r\n \t,;|"
TAIL_BYTES = 64 << 10
MOST_HELD_BYTES = 1 << 20
_SEPARATOR = re.compile(r'"?sep=[,;|\t]"?[,;]*\s*$', re.IGNORECASE)  # Excel's first line; the columns tell as much
_LINE_END = re.compile(rb"\r\n|\r|\n")
# What is read whole is held whole: 10 million captions of 200 bytes.
MAX_TABLE_BYTES = 2 << 30


# What tables call a file (`file_name` is Hugging Face's) and what is said of it; of several the first counts.
FILE_COLUMNS = ("file", "file_name", "filename")
TEXT_COLUMNS = ("caption", "text", "txt", "captions", "description", "prompt")


class MissingColumns(InputError):
    """A table names no column of the names that are sought."""


def list_containers(path: Place, suffix: str) -> Listing:
    """The one archive or table that the path is, or all of the suffix below it, in the order of their keys."""
    if _is_one(path, suffix):
        return Listing(files=[path.name])
    listing = list_files(path, (suffix,))
    return replace(listing, files=sorted(listing.files, key=plain_key))


def container(path: Place, uri: str) -> Place:
    """Where a file that `list_containers` found is."""
    return path if _is_one(path, Path(uri).suffix.lower()) else child(path, uri)


def _is_one(path: Place, suffix: str) -> bool:
    """Whether a path is a file of its kind; a folder may be named `x.parquet`."""
    return path.suffix.lower() == suffix and is_file(path)


def file_beside(table: Place, name: str) -> Place | None:
    """The file that a table names; None where the name is a URL or leads out of the table's folder.

    Where no file has the very name, it is the first that has another spelling of it, if one has. A store is asked only
    where the name is not plain: each file would cost a further request.
    """
    file = _beside(table, name)
    if file is not None and (is_file(file) if isinstance(file, Path) else plain(name) == name):
        return file
    others = (_beside(table, spelt) for spelt in spellings(name))
    return next((other for other in others if other is not None and is_file(other)), file)


def _beside(table: Place, name: str) -> Place | None:
    if not is_below(name) or ":" in name.partition("/")[0]:
        return None
    file = child(table.parent, name)
    return None if leads_out(table.parent, file) else file


Names = str | Sequence[str]  # of a column: one, or those that it may have


def read_user_table(place: Place, required: Sequence[Names], optional: Sequence[str] = ()) -> dict[str, list[bytes]]:
    """Read the columns that `iter_user_table` yields whole, each under the first of its names."""
    columns: dict[str, list[bytes]] = {_names_of(names)[0]: [] for names in (*required, *optional)}
    size_bytes = 0
    # closed here, whatever happens: Arrow reads ahead in a thread, which must not outlive the interpreter
    with closing(iter_user_table(place, required, optional)) as batches:
        for batch in batches:
            for name, values in zip(columns, batch, strict=True):
                size_bytes += sum(map(len, values))
                columns[name] += values
            if size_bytes > MAX_TABLE_BYTES:
                raise InputError(
                    f"{place}: more than {MAX_TABLE_BYTES >> 30} GiB of text: not a table of captions or files"
                )
    return columns


def _names_of(names: Names) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def iter_user_table(
    place: Place, required: Sequence[Names], optional: Sequence[str] = ()
) -> Generator[list[list[bytes]], None, None]:
    """Yield columns of a CSV, Parquet or JSON lines file some rows at a time, as raw bytes.

    CSV may be as spreadsheets write it: `CsvForm` says what is told from its first block.

    Args:
        place: the file.
        required: for each column the names that it may have, in any case; the first that is there counts.
        optional: names of further columns, empty where absent.
    """
    sought = [_names_of(names) for names in required]
    wanted = {name.lower() for names in (*sought, optional) for name in names}
    is_parquet = place.suffix.lower() == ".parquet"
    try:
        if place.suffix.lower() == ".jsonl":
            yield from _json_batches(place, sought, optional)
            return
        with closing(_parquet_batches(place) if is_parquet else _csv_batches(place, wanted)) as batches:
            names = next(batches)
            columns = [*_choose(place, names, sought), *(_index_of(names, (name,)) for name in optional)]
            for batch in batches:
                yield [_column(batch, column) for column in columns]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{place}: not a readable table: {str(error).splitlines()[0]}") from error


def _choose(place: Place, found: Sequence[str], required: Sequence[Sequence[str]]) -> list[int]:
    chosen = [_index_of(found, names) for names in required]
    if any(column is None for column in chosen):
        first = f"{_expected(required)} in its first line, found {_shown(found)}"
        line = ",".join(names[0] for names in required)
        hint = f"; that is a row, it seems: put a line {line} above it" if _is_row(found) else ""
        raise MissingColumns(f"{place}: {first}{hint}")
    return [column for column in chosen if column is not None]


def _expected(required: Sequence[Sequence[str]]) -> str:
    return f"expected the columns {', '.join(' or '.join(names) for names in required)}"


def _index_of(found: Sequence[str], names: Sequence[str]) -> int | None:
    """Where the first of the names stands; one in other letters counts where none is the same."""
    small = [name.lower() for name in found]
    places = (where.index(name) for name in names for where in (found, small) if name in where)
    return next(places, None)


def _shown(found: Sequence[str]) -> str:
    return str([name[:60] for name in found[:20]])


def _is_row(found: Sequence[str]) -> bool:
    """Whether what should name columns is a row: it holds a file's name."""
    return any(re.search(r"\.[A-Za-z0-9]{2,4}$", name) for name in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvForm:
    """How a table of text is written.

    Attributes:
        encoding: UTF-8 or, by its mark or its zeros, UTF-16 or 32; cp1252 where it is sure to be none of them.
        delimiter: that under which the first line names most of the columns that are sought.
        names: of the columns.
        head_lines: how many lines stand before the first row: blank ones, `sep=;`, the names.
        is_empty: whether nothing comes behind them.
    """

    encoding: str
    delimiter: str
    names: tuple[str, ...]
    head_lines: int
    is_empty: bool


def read_csv_form(place: Place, wanted: Set[str]) -> CsvForm:
    """Tell from a table's first block how it is written, for a reader that looks for columns of some names."""
    with open_place(place) as file:
        head = file.read(HEAD_BYTES)
    encoding = _encoding_of(head)
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    text = decoder.decode(head, final=len(head) < HEAD_BYTES).removeprefix("\ufeff")
    lines = io.StringIO(text, newline="").readlines()
    above = 0
    while above < len(lines) and (not lines[above].strip() or _SEPARATOR.match(lines[above])):
        above += 1
    rows = [(mark, *_first_record(lines[above:], mark)) for mark in DELIMITERS]
    delimiter, names, height = max(rows, key=lambda row: (len(wanted & {n.lower() for n in row[1]}), len(row[1])))
    return CsvForm(
        encoding=encoding,
        delimiter=delimiter,
        names=names,
        head_lines=above + height,
        is_empty=len(head) < HEAD_BYTES and not "".join(lines[above + height :]).strip(),
    )


def _first_record(lines: Sequence[str], delimiter: str) -> tuple[tuple[str, ...], int]:
    """The first record's cells, and how many lines it takes."""
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        names = next(reader, [])
    except csv.Error:  # longer than any cell
        return ("",), 1
    return tuple(name.strip().strip('"').strip() for name in names) or ("",), reader.line_num


def _encoding_of(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    first = head[:16] if len(head) >= 4 else b""
    if first and any(first[0::2]) and 0 not in first[0::2] and not any(first[1::2]):
        return "utf-16-le"  # the names of columns are ASCII, also where the texts are not
    if first and any(first[1::2]) and 0 not in first[1::2] and not any(first[0::2]):
        return "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "cp1252" if _is_cp1252(head) else "utf-8"
    return "utf-8"


def _is_cp1252(head: bytes) -> bool:
    """Whether text that is no UTF-8 is of a Windows program: no sequence of UTF-8, no control bytes, letters mostly.

    Some damage in a file of UTF-8 stays damage, which the cell's reader says.
    """
    marks = [byte for byte in head if byte > 0x7F]
    letters = sum(byte >= 0xC0 for byte in marks) + sum(byte in b"\x80\x85\x91\x92\x93\x94\x96\x97" for byte in marks)
    in_utf8 = re.search(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}", head)
    return not (in_utf8 or b"\0" in head or {0xFF, 0x81, 0x8D, 0x8F, 0x90, 0x9D} & set(marks)) and 2 * letters > len(
        marks
    )


class _Text(io.RawIOBase):
    """A file as UTF-8, without the lines at its end that hold no cell: spreadsheets leave some, of blanks or commas."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding != "utf-8" else None
        self._ready = memoryview(b"")
        self._held = b""  # what may be such lines
        self._ended = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def end(self) -> None:
        """Give nothing more."""
        self._ended = True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            block = self._file.read(HEAD_BYTES)
            self._ready = memoryview(self._take(block))
            self._ended = not block and not self._ready
        count = 0 if self._ended else min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _take(self, block: bytes) -> bytes:
        """What is sure to be read of the held and the next block, which is empty at the end."""
        text = block
        if self._decoder is not None:
            text = self._decoder.decode(block, final=not block).encode("utf-8", "replace")
        text = self._held + text
        end = len(text.rstrip(NO_CELLS))
        if not block:  # the last row ends with its line
            line = _LINE_END.search(text, end)
            end = line.end() if line else len(text)
        elif end < len(text) - MOST_HELD_BYTES:
            end = len(text)  # more than any spreadsheet leaves
        self._held = text[end:] if block else b""
        return text[:end]


def _open_text(place: Place, form: CsvForm) -> tuple[_Text, BinaryIO]:
    text = _Text(open_place(place), form.encoding)
    return text, cast(BinaryIO, io.BufferedReader(text, HEAD_BYTES))


def _is_plain(place: Place, form: CsvForm) -> bool:
    """Whether a table can be read by Arrow alone: on this machine, of UTF-8, with a row at its end."""
    if not isinstance(place, Path) or not is_utf8(str(place)) or form.encoding != "utf-8":
        return False
    with place.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL_BYTES))
        tail = file.read()
    return tail.rstrip(b"\r\n") == tail.rstrip(NO_CELLS)


def _csv_batches(place: Place, wanted: Set[str]) -> Generator[Any, None, None]:
    """The names of the columns, then batches."""
    form = read_csv_form(place, wanted)
    if form.encoding == "cp1252":
        _say_cp1252(str(place))
    yield form.names
    if form.is_empty:
        return
    has_breaks = False
    text, file = (None, pa.OSFile(str(place))) if _is_plain(place, form) else _open_text(place, form)
    try:
        with file, _read_csv(file, form) as reader:
            try:
                for batch in reader:
                    has_breaks = has_breaks or _has_break(batch)
                    yield batch
            finally:
                # a thread of Arrow's reads ahead in Python: one that is left to it would hang the interpreter's end
                if text is not None:
                    text.end()
                    with suppress(pa.ArrowException):
                        deque(reader, 0)
    except pa.ArrowInvalid as error:
        raise InputError(f"{place}: {_explain(place, form) or str(error).splitlines()[0]}") from error
    # a quote that is not closed where it should be hides the rows that follow it in one cell, without an error
    if has_breaks and (why := _explain_quotes(place, form)):
        raise InputError(f"{place}: {why}")


def _has_break(batch: pa.RecordBatch) -> bool:
    """Whether a cell of a batch of bytes holds a line's end; asked of all cells at once."""
    buffers = (column.buffers()[2] for column in batch.columns)
    texts = (buffer.to_pybytes() for buffer in buffers if buffer is not None)
    return any(b"\n" in text or b"\r" in text for text in texts)


def _read_csv(file: Any, form: CsvForm) -> pyarrow.csv.CSVStreamingReader:
    # of several columns of one name the first is meant, which Arrow does not say
    numbered = [f"{number}" for number in range(len(form.names))]
    return pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(
            block_size=CSV_BLOCK_BYTES, column_names=numbered, skip_rows=form.head_lines
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter=form.delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(numbered, pa.binary()),
            strings_can_be_null=False,
            quoted_strings_can_be_null=False,
        ),
    )


@cache
def _say_cp1252(table: str) -> None:
    """Once for a table, however often it is read."""
    log.warning("%s: it is no UTF-8, and is read as Windows-1252; better save it as UTF-8", table)


def _explain(place: Place, form: CsvForm) -> str:
    """What is wrong with a table, and in which line; empty where nothing is. It is read again for that, slowly."""
    with io.TextIOWrapper(_open_text(place, form)[1], "utf-8-sig", "replace", newline="") as text:
        for _ in range(form.head_lines):
            text.readline()
        first = form.head_lines + 1
        reader = csv.reader(_until_end(text), delimiter=form.delimiter)
        try:
            for row in reader:
                if row == [_END]:
                    return ""
                last = form.head_lines + reader.line_num
                if row and row[-1].endswith(_END):
                    return f"line {first}: a quote that opens there is never closed; a quote in a text is written twice"
                if row and len(row) != len(form.names):
                    return _wrong_width(row, len(form.names), (first, last), form.delimiter)
                first = last + 1
        except csv.Error:
            return f"line {first}: a quote that opens there is not closed; a quote in a text is written twice"
    return ""


def _explain_quotes(place: Place, form: CsvForm) -> str:
    """Which text of several lines is not one: its quote never closes, or one closes it that opens another text.

    Behind a closing quote come the delimiter or the line's end (RFC 4180).
    """
    with io.TextIOWrapper(_open_text(place, form)[1], "utf-8-sig", "replace", newline="") as text:
        for _ in range(form.head_lines):
            text.readline()
        opened = 0  # in which line the text began that goes on
        for number, line in enumerate(text, form.head_lines + 1):
            at = 0
            while opened or '"' in line[at:]:
                if not opened and line[at] == '"':
                    opened, at = number, at + 1
                if opened:
                    closing_quote = _QUOTED.match(line, at)
                    if closing_quote is None:
                        break
                    at = closing_quote.end()
                    if number > opened and line[at : at + 1] not in (form.delimiter, "\r", "\n", ""):
                        return (
                            f"line {opened}: a quote that opens there is closed in line {number} only, where"
                            f" {line[at : at + 20].rstrip()!r} follows; a quote in a text is written twice"
                        )
                    opened = 0
                at = line.find(form.delimiter, at) + 1
                if not at:
                    break
    return f"line {opened}: a quote that opens there is never closed; a quote in a text is written twice" * bool(opened)


# The rest of a text in quotes, of which those that are doubled are part.
_QUOTED = re.compile(r'[^"]*+(?:""[^"]*+)*+"')
# What no text holds, behind the last line.
_END = "\0end\0"


def _until_end(lines: Iterator[str]) -> Iterator[str]:
    yield from lines
    yield _END


def _wrong_width(row: Sequence[str], expected: int, lines: tuple[int, int], delimiter: str) -> str:
    first, last = lines
    if last > first:
        return (
            f"lines {first} to {last}: expected {expected} columns, found {len(row)}: a quote that opens in line"
            f" {first} is not closed there; a quote in a text is written twice"
        )
    hint = f"; a text that holds {delimiter!r} stands in quotes" if len(row) > expected else ""
    return f"line {first}: expected {expected} columns, found {len(row)}: {delimiter.join(row)[:80]!r}{hint}"


def _json_batches(
    place: Place, required: Sequence[Sequence[str]], optional: Sequence[str]
) -> Generator[list[list[bytes]], None, None]:
    """Columns of objects, one a line, each of which has its own fields."""
    _check_fields(place, required)
    fields = [*required, *((name,) for name in optional)]
    objects = _json_objects(place)
    while rows := list(islice(objects, TEXTS_AT_ONCE)):
        cells = [_texts_of(row, fields) for row in rows]
        yield [list(column) for column in zip(*cells, strict=True)]


def _check_fields(place: Place, required: Sequence[Sequence[str]]) -> None:
    """Refuse objects of which none has a field that is required; nearly always the first has them all."""
    lacking = list(required)
    found: dict[str, None] = {}
    for row in _json_objects(place):
        small = {name.lower() for name in row}
        lacking = [names for names in lacking if small.isdisjoint(map(str.lower, names))]
        if not lacking:
            return
        if len(found) < TEXTS_AT_ONCE:
            found |= dict.fromkeys(row)
    raise MissingColumns(f"{place}: {_expected(required)} in its objects, found {_shown(list(found))}")


def _texts_of(row: Mapping[str, Any], fields: Sequence[Sequence[str]]) -> list[bytes]:
    """For each field the first of its names under which an object says something, in any letters."""
    small = {name.lower(): value for name, value in row.items()}
    said = ([joined_texts(where.get(name)) for name in names for where in (row, small)] for names in fields)
    return [next(filter(None, texts), b"") for texts in said]


def _json_objects(place: Place) -> Iterator[dict[str, Any]]:
    with open_place(place) as file:
        for number, line in enumerate(iter(lambda: file.readline(CSV_BLOCK_BYTES), b""), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: line {number}: expected a JSON object: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{place}: line {number}: expected a JSON object, found {type(row).__name__}")
            yield row


def joined_texts(value: Any) -> bytes:
    """A text as bytes, or several as one, each a sentence: what one of them leaves out, another may say."""
    if isinstance(value, list | tuple):
        texts = [text.strip() for text in value if isinstance(text, str) and text.strip()]
        return "\n".join(text if text[-1] in ".!?" else f"{text}." for text in texts).encode("utf-8", "surrogatepass")
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b""


def _parquet_batches(place: Place) -> Generator[Any, None, None]:
    with open_parquet(place) as file:
        yield file.schema_arrow.names
        yield from file.iter_batches(TEXTS_AT_ONCE)


def _column(batch: pa.RecordBatch, index: int | None) -> list[bytes]:
    if index is None:
        return [b""] * batch.num_rows
    column = batch.column(index)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [joined_texts(value) for value in column.to_pylist()]
    if not pa.types.is_binary(column.type):
        column = column.cast(pa.string()).cast(pa.binary())
    return [value or b"" for value in column.to_pylist()]


def read_exclusions(place: Place | None) -> frozenset[str]:
    """Read an exclusion list; empty lines and lines that begin with `#` do not count.

    Raises:
        InputError: the file is not text.
        TransientError: the store that it lies in cannot be reached.
    """
    if place is None:
        return frozenset()
    try:
        with open_place(place) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"exclusion list {place}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"exclusion list {place}: expected one key or sha256 a line: {error}") from error
    if any("\0" in line for line in lines):
        raise InputError(f"exclusion list {place}: expected UTF-8 text, found NUL bytes: UTF-16, perhaps")
    entries = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return frozenset(entry.lower() if SHA256.fullmatch(entry.lower()) else entry for entry in entries)


def exclusion_names(key: str, uri: str, sha256: str) -> frozenset[str]:
    """Under what an image may be excluded: also its file's name, with and without the ending (`sa_1` in SA-1B).

    A row of a table has a number for a name, which says nothing without the table's.
    """
    file = PurePosixPath(uri)
    return frozenset({key, *keys_of(uri), uri, sha256, *((file.name, file.stem) if file.suffix else ())})
