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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote

from sonify import layout
from sonify.errors import InputError, WorkError
from sonify.io.listing import is_junk, iter_inputs, list_files
from sonify.io.places import child, is_below, is_file, machine_folder, open_local, open_place, read_if_there
from sonify.io.tars import Member, iter_files, read_member
from sonify.io.write import naming_full_disk, sync_folder
from sonify.media.headers import HEIF_SUFFIXES, IMAGE_SUFFIXES
from sonify.sources.joins import (
    below_folder,
    check_any_met,
    meet,
    plain,
    say_meeting,
    spellings,
    with_small_ending,
    without_ending,
)
from sonify.sources.userfiles import (
    FILE_COLUMNS,
    TEXT_COLUMNS,
    iter_user_table,
    joined_texts,
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

_IMAGE_ENDING = re.compile(rf"({'|'.join(map(re.escape, (*IMAGE_SUFFIXES, *HEIF_SUFFIXES)))})$", re.IGNORECASE)
_TEXT_ENDING = re.compile(r"\.(txt|caption)$", re.IGNORECASE)

# What a caption beside an image ends in; the first that is there counts.
TEXT_ENDINGS = ("txt", "caption")
ENDINGS = (*TEXT_ENDINGS, "json")
# Of JSON: img2dataset's and others' fields.
JSON_FIELDS = ("caption", "text", "captions")


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
    # the number is of the store's form: an earlier one has no other spellings, or endings in ids, and is made again
    name = f"{identify_captions(place)}-3.sqlite"
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
    first = islice(iter_inputs(place), FIRST_FILES)
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
