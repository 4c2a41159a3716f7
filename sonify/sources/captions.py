"""Captions: beside an image, or apart from the images and joined by file name or by image id.

SAM-LLaVA-Captions10M is published as one `SA1B_caption.tar.gz` of `sa_<id>.txt`, and read back from the Hugging Face
hub as Parquet of `__key__` and `txt`. Ten million captions are in no worker's memory: they are brought once into an
SQLite table under the run directory, which every worker opens for reading.
"""

import errno
import fcntl
import gzip
import hashlib
import json
import logging
import os
import re
import sqlite3
import tarfile
import uuid
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote

from sonify import layout
from sonify.errors import InputError, WorkError
from sonify.io.places import (
    child,
    is_below,
    is_file,
    is_junk,
    iter_files_below,
    list_files,
    machine_folder,
    open_local,
    open_place,
    read_if_there,
)
from sonify.io.tars import Member, iter_files, read_member
from sonify.io.write import naming_full_disk, sync_folder
from sonify.sources.joins import (
    Meeting,
    below_folder,
    check_any_met,
    meet,
    plain,
    say_meeting,
    spellings,
    with_small_ending,
    without_ending,
)
from sonify.sources.sounds.forms import is_sound
from sonify.sources.userfiles import (
    FILE_COLUMNS,
    TEXT_COLUMNS,
    MissingColumns,
    iter_user_table,
    joined_texts,
    read_user_table,
)
from sonify.stores import Place

log = logging.getLogger(__name__)

Captions = Callable[[str], bytes | None]

# An image's id, where no column has its path as in the listing: the file's name without folder and ending.
ID_COLUMNS = ("image", "image_id", "id", "key", "__key__")
# Far above any caption, which is cut here and then refused by its own checks.
MAX_CAPTION_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20
# As many files of a folder are looked at to tell a folder of texts from one of tables: a listing of 11 million is long.
FIRST_FILES = 100
TABLES = (".csv", ".parquet")
SINGLE_TABLES = (".tsv", ".jsonl")  # where they are named; in a folder they may be anything
ARCHIVES = (".tar", ".tar.gz", ".tgz")
# Of a larger file the two ends stand for the whole.
HASHED_WHOLE_BYTES = 16 << 20
HASHED_END_BYTES = 1 << 20

_IMAGE_ENDING = re.compile(r"\.(jpe?g|jpe|jfif|a?png|webp|gif|bmp|tiff?|avif|hei[cf])$", re.IGNORECASE)
_TEXT_ENDING = re.compile(r"\.(txt|caption)$", re.IGNORECASE)

# What a caption beside an image ends in; the first that is there counts.
TEXT_ENDINGS = ("txt", "caption")
ENDINGS = (*TEXT_ENDINGS, "json")
# Of JSON: img2dataset's and others' fields.
JSON_FIELDS = ("caption", "text", "captions")
# A table of captions for a whole folder, and Hugging Face's for the folder that it lies in.
CAPTION_TABLES = ("captions.csv", "captions.parquet")
METADATA_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# What is meant for such a table, perhaps, and is none: any that is called `caption`, and spreadsheets.
_MEANT = re.compile(r"captions?\.(csv|tsv|txt|jsonl?|parquet|xlsx?|ods)|metadata\.(tsv|xlsx?|ods)", re.IGNORECASE)
# There the names that it gives come first.
METADATA_COLUMNS = (
    ("file_name", *(name for name in FILE_COLUMNS if name != "file_name")),
    ("text", *(name for name in TEXT_COLUMNS if name != "text")),
)


def caption_beside(image: Place) -> bytes | None:
    """The caption in a `.txt`, `.caption` or `.json` of an image's name; None where there is none."""
    return _read_beside(image.parent, image.stem, ENDINGS)


def _read_beside(folder: Place, stem: str, endings: Sequence[str]) -> bytes | None:
    """What a file of that name and one of the endings says.

    On this machine an ending may be in capitals too; a store would be asked three times as often for what is not there.
    """
    cases = (str, str.upper, str.capitalize) if isinstance(folder, Path) else (str,)
    for written in (case(ending) for case in cases for ending in endings):
        limit = MAX_JSON_BYTES if written.lower() == "json" else MAX_CAPTION_BYTES
        data = read_if_there(folder / f"{stem}.{written}", limit)
        if data is not None:
            return caption_in(f"{stem}.{written}", data)
    return None


def caption_in(name: str, data: bytes) -> bytes | None:
    """The caption that a file beside an image holds."""
    return json_caption(data) if name.lower().endswith(".json") else data


def json_caption(data: bytes) -> bytes | None:
    """The caption of a JSON object; a broken object is handed on as no UTF-8, for the caption's checks to refuse.

    Of a list of captions all are taken: they are of one picture, and each may name a sound that the others leave out.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return b"\xff not JSON"
    if not isinstance(record, dict):
        return None
    said = (joined_texts(record.get(field)) for field in JSON_FIELDS)
    return next((text for text in said if text.strip()), None)


@dataclass(frozen=True, slots=True)
class _Told:
    """What one table says: the caption of each of the images that are its own, None where no row names it.

    Attributes:
        texts: of those images, in their order.
        name: the table's, in what is said.
        meeting: of rows and images; None where all met, row for row.
        numbers: of its images in the listing.
        files: what its rows are to call them.
    """

    texts: Sequence[bytes | None]
    name: str = ""
    meeting: Meeting | None = None
    numbers: Sequence[int] = ()
    files: Sequence[str] = ()


def captions_in_tables(
    root: Place, images: Sequence[str], tables: Sequence[str], beside: Set[str] = frozenset(), must: bool = True
) -> list[bytes]:
    """The caption that tables among the images have for each of them, empty where none has; what meets nothing is said.

    A `captions.csv` (file, caption) in the folder itself counts first; what it does not name may have a row in the
    `captions.*` that is nearest above it, else in the `metadata.*` (file_name, text), as Hugging Face lays out an
    imagefolder.

    Args:
        root: the folder.
        images: paths of images below it.
        tables: those that `tables_among` found.
        beside: paths of images, without ending, that have a text of their own.
        must: whether a table of which no row names an image is an error.

    Raises:
        InputError: one is no such table, or none of its rows names an image.
    """
    found: list[bytes | None] = [None] * len(images)
    told: list[_Told] = []
    own = _by_folder(tables, CAPTION_TABLES)
    everywhere = own.pop("", None)
    parts: list[tuple[str, Sequence[int], bool]] = [(everywhere, range(len(images)), False)] if everywhere else []
    for kind, is_metadata in ((own, False), (_by_folder(tables, METADATA_TABLES), True)):
        parts += [(kind[folder], numbers, is_metadata) for folder, numbers in _below(kind, images).items()]
    for table, numbers, is_metadata in parts:
        start = len(table.rpartition("/")[0]) + 1 if "/" in table else 0
        files = [images[number][start:] for number in numbers]
        one = _read_below(root, table, files, is_metadata, must)
        told.append(replace(one, numbers=numbers, files=files))
        for number, text in zip(numbers, one.texts, strict=True):
            found[number] = found[number] or text
    for one in told:
        if one.meeting is not None:
            _say_told(one, one.meeting, images, found, beside)
    return [text or b"" for text in found]


def _say_told(
    one: _Told, meeting: Meeting, images: Sequence[str], found: Sequence[bytes | None], beside: Set[str]
) -> None:
    """Say what a table's rows do not meet, and which images have a caption from nowhere."""
    bare = set(meeting.bare)
    without = (
        file
        for number, file in zip(one.numbers, one.files, strict=True)
        if file in bare and not found[number] and without_ending(images[number]) not in beside
    )
    say_meeting(one.name, replace(meeting, bare=list(without) if bare else []), "image")


def tables_among(names: Iterable[str], images: Sequence[str]) -> list[str]:
    """Of files below a folder of images, the tables that `captions_in_tables` reads; those that it passes over are
    said, and what may be meant for one."""
    named = [(name, name.rpartition("/")[2]) for name in names]
    meant = [name for name, last in named if _MEANT.fullmatch(last) and last.lower() not in CAPTION_TABLES]
    tables = [name for name, last in named if last.lower() in (*CAPTION_TABLES, *METADATA_TABLES)]
    read: list[str] = []
    for kind in (CAPTION_TABLES, METADATA_TABLES):
        first = _by_folder(tables, kind)
        for name in tables:
            folder, _, last = name.rpartition("/")
            if last.lower() in kind and name != first[folder]:
                log.warning("%s: not read, %s is", name, first[folder])
        below = _below(first, images)
        read += [table for folder, table in first.items() if folder in below or not folder]
        if kind is CAPTION_TABLES:
            for table in (table for folder, table in first.items() if folder and folder not in below):
                log.warning("%s: not read, there is no image for it below its folder", table)
    if meant:
        more = f" and {len(meant) - 1:,} more" if len(meant) > 1 else ""
        log.warning(
            "%s%s: not read unless concepts.extractors names it; what is read in a folder of images is called"
            " captions.csv or captions.parquet (file,caption), or metadata.csv, .jsonl or .parquet (file_name,text)",
            min(meant),
            more,
        )
    return read


def table_for(root: Place, image: str) -> Place:
    """The table that has an image's caption, or would have it; where there is none, the folder."""
    above = [root / parent.as_posix() for parent in PurePosixPath(image).parents]
    own = [folder / name for folder in (root, *above) for name in CAPTION_TABLES]
    metadata = [folder / name for folder in above for name in METADATA_TABLES]
    return next((table for table in (*own, *metadata) if is_file(table)), root)


def _by_folder(tables: Sequence[str], kind: Sequence[str]) -> dict[str, str]:
    """The table of each folder that has one of a kind: of several the first name, the very one before other letters."""
    named = [(kind.index(last.lower()), last != last.lower(), table, folder)
             for table in tables for folder, _, last in (table.rpartition("/"),) if last.lower() in kind]  # fmt: skip
    return {folder: table for _, _, table, folder in sorted(named, reverse=True)}


def _below(folders: Mapping[str, str], images: Sequence[str]) -> dict[str, list[int]]:
    """The images, by number, for which each of some folders is the nearest above them."""
    below: dict[str, list[int]] = defaultdict(list)
    nearest: dict[str, str | None] = {}
    for number, image in enumerate(images if folders else ()):
        folder = image.rpartition("/")[0]
        if folder not in nearest:
            above = [folder[:end] for end in range(len(folder), 0, -1) if folder[end : end + 1] in ("", "/")]
            nearest[folder] = next((one for one in (*above, "") if one in folders), None)
        if (one := nearest[folder]) is not None:
            below[one].append(number)
    return below


def _read_below(root: Place, table: str, files: Sequence[str], is_metadata: bool, must: bool) -> _Told:
    """What a table says of images below its folder; metadata without captions is there for something else."""
    try:
        columns = read_user_table(root / table, METADATA_COLUMNS if is_metadata else (FILE_COLUMNS, TEXT_COLUMNS))
    except MissingColumns as missing:
        if not is_metadata and (must or "/" not in table):
            raise
        why = str(missing).removeprefix(f"{root / table}: ")
        log.log(logging.INFO if is_metadata else logging.WARNING, "%s: no captions are taken from it: %s", table, why)
        return _Told([None] * len(files))
    except InputError as error:
        # a run that began when this table was not read goes on without it
        if is_metadata or must or "/" not in table:
            raise
        log.warning("%s; no captions are taken from it", error)
        return _Told([None] * len(files))
    # where recordings lie beside images, metadata may be theirs
    named = (file.decode("utf-8", "replace") for file in next(iter(columns.values())) if file)
    must = must and not (is_metadata and all(map(is_sound, named)))
    return _met_captions(root / table, "file_name" if is_metadata else "file", columns, files, table, must)


def _met_captions(
    table: Place, column: str, columns: Mapping[str, list[bytes]], images: Sequence[str], name: str, must: bool
) -> _Told:
    files, found = columns.values()
    rows = [file.decode("utf-8", "surrogateescape") for file in files]
    captions = dict(zip(rows, found, strict=True))
    texts = list(map(captions.get, images))
    if len(rows) == len(captions) == len(images) - texts.count(None) == len(images):
        return _Told(texts)  # row for row: nothing is left to look for
    if not captions.get("", b"-"):
        rows = [row for row in rows if row]  # the empty lines that a spreadsheet leaves at the end
    met = meet(rows, images, table.parent.name)
    check_any_met(table, column, met, table.parent, must=must)
    texts = [
        captions[met.others[image]] if image in met.others else text for image, text in zip(images, texts, strict=True)
    ]
    return _Told(texts, name, met)


def captions_for(run_dir: Place, place: Place, folder: str = "") -> Captions:
    """Open captions by an image's uri; the first to ask for a table or an archive brings it into the run directory,
    or, where that is in a store, to its own machine.

    `place` is a CSV or Parquet table, a tar (or tar.gz) of `<id>.txt`, a folder of such tables or tars, or a folder of
    `<id>.txt`: flat, or in folders named as the images' folders or archives are. `folder` is the image folder's own
    name, with which a table's paths may begin.

    Raises:
        InputError: it is none of these.
        DiskFull: the run directory has no room for them.
    """
    sources = _sources(place)
    if not sources:
        return lambda uri: _read_text(place, uri)
    # the number is of the store's form: an earlier one has no other spellings, and is made again
    name = f"{identify_captions(place)}-2.sqlite"
    here = machine_folder(run_dir)
    stored = here / layout.UNITS / "captions" / name
    stored.parent.mkdir(parents=True, exist_ok=True)
    with stored.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers that start together wait for the first
        if not stored.is_file():
            _store(here, stored, chain.from_iterable(_rows(source, folder) for source in sources))
    # immutable: no lock is asked for, which network file systems do not always have
    connection = sqlite3.connect(f"file:{quote(str(stored))}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    return lambda uri: _look_up(connection, stored, uri)


_IDENTITY = b"captions 1\n"
TEXTS = hashlib.sha256(_IDENTITY).hexdigest()[:16]  # a folder of texts


def identify_captions(place: Place) -> str:
    """What the captions are, as 16 hexadecimal digits; of a folder of texts only that it is one.

    Raises:
        FileNotFoundError: there is no such file.
    """
    digest = hashlib.sha256(_IDENTITY)
    for source in _sources(place):
        with open_place(source) as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{size}\n".encode())
            hashed = HASHED_END_BYTES if size > HASHED_WHOLE_BYTES else size
            for start in dict.fromkeys((0, size - hashed)):
                file.seek(start)
                digest.update(file.read(hashed))
    return digest.hexdigest()[:16]


def identify_texts_before(place: str) -> str:
    """What versions before this one knew a folder of texts by: where it lay."""
    return hashlib.sha256(_IDENTITY + place.encode()).hexdigest()[:16]


def _sources(place: Place) -> list[Place]:
    """The tables and archives that the place is or, as a folder, holds."""
    if place.name.lower().endswith((*TABLES, *ARCHIVES, *SINGLE_TABLES)):
        return [place]
    if is_file(place):
        raise InputError(f"{place}: expected captions as .csv, .parquet, .tar, .tar.gz, or a folder of them or of .txt")
    first = islice((name for name in iter_files_below(place) if not is_junk(name)), FIRST_FILES)
    if not any(name.endswith((*TABLES, *ARCHIVES)) for name in first):
        return []
    listing = list_files(place, {PurePosixPath(f"x{ending}").suffix for ending in (*TABLES, *ARCHIVES)})
    return [child(place, name) for name in listing.files if name.endswith((*TABLES, *ARCHIVES))]


def meet_captions_apart(place: Place, images: Sequence[str], root: Place, *, whole: bool) -> None:
    """Say which images and rows of captions apart do not meet.

    Args:
        place: of the captions, as `captions_for` takes it.
        images: all images of the set, or some.
        root: where they lie.
        whole: whether they are all: then a table's rows are counted too.

    Raises:
        InputError: they are all, and none has a caption.
    """
    sources = _sources(place)
    if whole and len(sources) == 1 and not sources[0].name.lower().endswith(ARCHIVES):
        _meet_table(sources[0], images, root)
        return
    sought = {name for uri in images for name in _sought(uri)}
    if any(_has_row(source, root.name, sought) for source in sources) or (
        not sources and any(_read_text(place, uri) is not None for uri in images)
    ):
        return
    what = (
        f"{place}: it has no caption for any of {len(images):,} images in {root}: one for {images[0]!r} would be named"
        f" {_image_id(images[0]).decode('utf-8', 'replace')!r}"
    )
    if whole:
        raise InputError(what)
    log.warning("%s", what)


def _has_row(source: Place, folder: str, sought: Set[bytes]) -> bool:
    with closing(_rows(source, folder)) as rows:
        return any(name in sought for name, _ in rows)


def _meet_table(table: Place, images: Sequence[str], root: Place) -> None:
    by_file = _has_file_column(table)
    rows: list[str] = []
    with closing(iter_user_table(table, (FILE_COLUMNS if by_file else ID_COLUMNS, TEXT_COLUMNS))) as batches:
        for names, _ in batches:
            rows += (name.decode("utf-8", "surrogateescape") for name in names if name)
    known = images
    if not by_file:
        rows, known = (
            [_image_id(name).decode("utf-8", "surrogateescape") for name in names] for names in (rows, images)
        )
    met = meet(rows, dict.fromkeys(known), root.name)
    check_any_met(table, FILE_COLUMNS[0] if by_file else "of ids", met, root)
    say_meeting(table.name, met, "image")


def _rows(source: Place, folder: str) -> Generator[tuple[bytes, bytes], None, None]:
    """Names, those of files with a `/` before them, and texts; names that are not plain come again as plain ones."""
    if source.name.lower().endswith(ARCHIVES):
        yield from _archive_rows(source)
    else:
        yield from _table_rows(source, folder)


def _table_rows(table: Place, folder: str) -> Iterator[tuple[bytes, bytes]]:
    by_file = _has_file_column(table)
    names = FILE_COLUMNS if by_file else ID_COLUMNS
    with closing(iter_user_table(table, (names, TEXT_COLUMNS))) as batches:
        for file, text in (row for batch in batches for row in zip(*batch, strict=True)):
            name = file.decode("utf-8", "surrogateescape")
            if not by_file:
                yield _image_id(name), text
            else:
                yield b"/" + file, text
                yield from ((b"~" + other, text) for other in _other_spellings(name, folder))


def _other_spellings(name: str, folder: str) -> list[bytes]:
    """What a row's name also may mean: `photos/a.JPG` also `a.jpg`, where the images lie in `photos`."""
    one = plain(name)
    spelt = (with_small_ending(start) for start in (one, *below_folder(one, folder)))
    return [_as_bytes(other) for other in spelt if other != name]


def _has_file_column(table: Place) -> bool:
    """Whether a table is joined by paths; beside an id a `filename` is a further column, as it always was."""
    if _has_column(table, [name for name in FILE_COLUMNS if name != "filename"]):
        return True
    return not _has_column(table, ID_COLUMNS) and _has_column(table, FILE_COLUMNS)


def _has_column(table: Place, names: Sequence[str]) -> bool:
    try:
        with closing(iter_user_table(table, (names, TEXT_COLUMNS))) as batches:
            next(batches, None)
    except InputError:
        return False  # or no table at all, which reading it says
    return True


def _archive_rows(place: Place) -> Iterator[tuple[bytes, bytes]]:
    try:
        with open_local(place) as packed:
            file = packed if place.name.lower().endswith(".tar") else cast(BinaryIO, gzip.GzipFile(fileobj=packed))
            for member in iter_files(file):
                if _TEXT_ENDING.search(member.name) and not is_junk(member.name):
                    yield _image_id(member.name), read_start(file, member, MAX_CAPTION_BYTES)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{place}: a damaged archive of captions: {error}; fetch it again") from error


def read_start(archive: BinaryIO, member: Member, limit: int) -> bytes:
    """The first `limit` bytes of a member of an archive, or all where there are fewer."""
    return read_member(archive, replace(member, size_bytes=min(member.size_bytes, limit)))


def _image_id(name: str) -> bytes:
    """What joins an image and its caption: `sa_1` for `./a/sa_1.jpg`, `sa_1.txt` and `sa_1`."""
    last = _TEXT_ENDING.sub("", PurePosixPath(plain(name)).name)
    return _as_bytes(_IMAGE_ENDING.sub("", last))


def _as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _store(run_dir: Path, stored: Path, rows: Iterable[tuple[bytes, bytes]]) -> None:
    """Write the table; only the whole one gets its name."""
    part = run_dir / layout.TEMPORARY / uuid.uuid4().hex
    part.parent.mkdir(parents=True, exist_ok=True)
    with naming_full_disk(run_dir):
        try:
            with sqlite3.connect(part, isolation_level=None) as connection:
                connection.execute("PRAGMA journal_mode = OFF")
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute("CREATE TABLE captions (name BLOB NOT NULL, caption BLOB NOT NULL)")
                connection.execute("BEGIN")
                connection.executemany("INSERT INTO captions VALUES (?, ?)", rows)
                connection.execute("CREATE INDEX by_name ON captions (name)")
                connection.execute("COMMIT")
            connection.close()
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(stored)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise OSError(errno.ENOSPC, str(error)) from error
        finally:
            part.unlink(missing_ok=True)
    sync_folder(stored.parent)


def _look_up(connection: sqlite3.Connection, stored: Path, uri: str) -> bytes | None:
    """By path, by path inside an archive, by id, by other spellings of these; of several of one name the last."""
    for name in _sought(uri):
        try:
            found = connection.execute(
                "SELECT caption FROM captions WHERE name = ? ORDER BY rowid DESC LIMIT 1", (name,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise WorkError(f"{stored}: damaged ({error}); remove the file, and the next run makes it again") from error
        if found:
            return found[0]
    return None


def _sought(uri: str) -> Iterator[bytes]:
    paths = [path for path in (uri, uri.partition(".tar/")[2]) if path]
    yield from (_as_bytes(f"/{path}") for path in paths)
    yield _image_id(uri)
    for path in paths:
        one = with_small_ending(plain(path))
        yield from (_as_bytes(f"{mark}{one}") for mark in "~/")
        yield from (_as_bytes(f"{mark}{without_ending(one)}") for mark in "/~")


def _read_text(root: Place, uri: str) -> bytes | None:
    """The caption in a folder of texts: beside the image's own path, or flat under its id."""
    path = PurePosixPath(uri)
    folder = path.parent.as_posix()
    for place in dict.fromkeys((folder.removesuffix(".tar"), folder, ".")):
        if place != "." and not is_below(place):
            continue
        for stem in dict.fromkeys((path.stem, *(spelt for spelt in spellings(path.stem) if not path.stem.isascii()))):
            text = _read_beside(root if place == "." else child(root, place), stem, TEXT_ENDINGS)
            if text is not None:
                return text
    return None
