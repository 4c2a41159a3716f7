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
import os
import re
import sqlite3
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
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
from sonify.sources.userfiles import iter_user_table, read_user_table
from sonify.stores import Place

Captions = Callable[[str], bytes | None]

# `file` is an image's path as in the listing; the others are its id: the file's name without folder and ending.
FILE_COLUMN = "file"
ID_COLUMNS = ("image", "image_id", "id", "key", "__key__")
TEXT_COLUMNS = ("caption", "text", "txt")
# Far above any caption, which is cut here and then refused by its own checks.
MAX_CAPTION_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20
# As many files of a folder are looked at to tell a folder of texts from one of tables: a listing of 11 million is long.
FIRST_FILES = 100
TABLES = (".csv", ".parquet")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
# Of a larger file the two ends stand for the whole.
HASHED_WHOLE_BYTES = 16 << 20
HASHED_END_BYTES = 1 << 20

_IMAGE_ENDING = re.compile(r"\.(jpe?g|jpe|jfif|a?png|webp|gif|bmp|tiff?|avif|hei[cf])$", re.IGNORECASE)


def caption_beside(image: Place) -> bytes | None:
    """The caption in a `.txt` or a `.json` of an image's name; None where there is neither."""
    text = read_if_there(image.with_suffix(".txt"), MAX_CAPTION_BYTES)
    if text is not None:
        return text
    record = read_if_there(image.with_suffix(".json"), MAX_JSON_BYTES)
    return None if record is None else json_caption(record)


def json_caption(data: bytes) -> bytes | None:
    """The `caption` of a JSON object; a broken object is handed on as no UTF-8, for the caption's checks to refuse."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return b"\xff not JSON"
    caption = record.get("caption") if isinstance(record, dict) else None
    return caption.encode("utf-8", "surrogatepass") if isinstance(caption, str) else None


def read_captions_table(table: Place) -> dict[str, bytes]:
    """Read a captions table (file, caption) that lies with the images.

    Raises:
        InputError: it is not such a table.
    """
    columns = read_user_table(table, ("file", "caption"))
    files = (file.decode("utf-8", "surrogateescape") for file in columns["file"])
    return dict(zip(files, columns["caption"], strict=True))


def captions_for(run_dir: Place, place: Place) -> Captions:
    """Open captions by an image's uri; the first to ask for a table or an archive brings it into the run directory,
    or, where that is in a store, to its own machine.

    `place` is a CSV or Parquet table, a tar (or tar.gz) of `<id>.txt`, a folder of such tables or tars, or a folder of
    `<id>.txt`: flat, or in folders named as the images' folders or archives are.

    Raises:
        InputError: it is none of these.
        DiskFull: the run directory has no room for them.
    """
    sources = _sources(place)
    if not sources:
        return lambda uri: _read_text(place, uri)
    name = f"{identify_captions(place)}.sqlite"
    here = machine_folder(run_dir)
    stored = here / layout.UNITS / "captions" / name
    stored.parent.mkdir(parents=True, exist_ok=True)
    with stored.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers that start together wait for the first
        if not stored.is_file():
            _store(here, stored, chain.from_iterable(map(_rows, sources)))
    # immutable: no lock is asked for, which network file systems do not always have
    connection = sqlite3.connect(f"file:{quote(str(stored))}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    return lambda uri: _look_up(connection, stored, uri)


def identify_captions(place: Place) -> str:
    """What the captions are, as 16 hexadecimal digits; a folder of texts is known by its name alone."""
    digest = hashlib.sha256(b"captions 1\n")
    sources = _sources(place)
    if not sources:
        digest.update(str(place).encode())
    for source in sources:
        with open_place(source) as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{size}\n".encode())
            hashed = HASHED_END_BYTES if size > HASHED_WHOLE_BYTES else size
            for start in dict.fromkeys((0, size - hashed)):
                file.seek(start)
                digest.update(file.read(hashed))
    return digest.hexdigest()[:16]


def _sources(place: Place) -> list[Place]:
    """The tables and archives that the place is or, as a folder, holds."""
    if place.name.endswith((*TABLES, *ARCHIVES)):
        return [place]
    if is_file(place):
        raise InputError(f"{place}: expected captions as .csv, .parquet, .tar, .tar.gz, or a folder of them or of .txt")
    first = islice((name for name in iter_files_below(place) if not is_junk(name)), FIRST_FILES)
    if not any(name.endswith((*TABLES, *ARCHIVES)) for name in first):
        return []
    listing = list_files(place, {PurePosixPath(f"x{ending}").suffix for ending in (*TABLES, *ARCHIVES)})
    return [child(place, name) for name in listing.files if name.endswith((*TABLES, *ARCHIVES))]


def _rows(source: Place) -> Iterator[tuple[bytes, bytes]]:
    """Names, those of files with a `/` before them, and texts."""
    return _archive_rows(source) if source.name.endswith(ARCHIVES) else _table_rows(source)


def _table_rows(table: Place) -> Iterator[tuple[bytes, bytes]]:
    by_file = _has_file_column(table)
    names = (FILE_COLUMN,) if by_file else ID_COLUMNS
    for files, texts in iter_user_table(table, (names, TEXT_COLUMNS)):
        for file, text in zip(files, texts, strict=True):
            yield (b"/" + file if by_file else _image_id(file.decode("utf-8", "surrogateescape"))), text


def _has_file_column(table: Place) -> bool:
    try:
        next(iter_user_table(table, ((FILE_COLUMN,), TEXT_COLUMNS)), None)
    except InputError:
        return False  # or no table at all, which reading it says
    return True


def _archive_rows(place: Place) -> Iterator[tuple[bytes, bytes]]:
    try:
        with open_local(place) as packed:
            file = packed if place.name.endswith(".tar") else cast(BinaryIO, gzip.GzipFile(fileobj=packed))
            for member in iter_files(file):
                if member.name.lower().endswith(".txt") and not is_junk(member.name):
                    yield _image_id(member.name), read_start(file, member, MAX_CAPTION_BYTES)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{place}: a damaged archive of captions: {error}; fetch it again") from error


def read_start(archive: BinaryIO, member: Member, limit: int) -> bytes:
    """The first `limit` bytes of a member of an archive, or all where there are fewer."""
    return read_member(archive, replace(member, size_bytes=min(member.size_bytes, limit)))


def _image_id(name: str) -> bytes:
    """What joins an image and its caption: `sa_1` for `./a/sa_1.jpg`, `sa_1.txt` and `sa_1`."""
    last = PurePosixPath(name).name.removesuffix(".txt")
    return _IMAGE_ENDING.sub("", last).encode("utf-8", "surrogateescape")


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
    """By path, by path inside an archive, by id; of several captions of one name the last."""
    inside = uri.partition(".tar/")[2]
    for name in (f"/{uri}".encode(), f"/{inside}".encode(), _image_id(uri)):
        try:
            found = connection.execute(
                "SELECT caption FROM captions WHERE name = ? ORDER BY rowid DESC LIMIT 1", (name,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise WorkError(f"{stored}: damaged ({error}); remove the file, and the next run makes it again") from error
        if found:
            return found[0]
    return None


def _read_text(root: Place, uri: str) -> bytes | None:
    """The caption in a folder of texts: beside the image's own path, or flat under its id."""
    path = PurePosixPath(uri)
    folder = path.parent.as_posix()
    flat = f"{path.stem}.txt"
    for name in dict.fromkeys((f"{folder.removesuffix('.tar')}/{flat}", f"{folder}/{flat}", flat)):
        text = read_if_there(child(root, name), MAX_CAPTION_BYTES) if is_below(name) else None
        if text is not None:
            return text
    return None
