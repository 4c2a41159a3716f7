"""The forms in which anyone's recordings come: a folder, tar archives, Parquet tables.

Archives are WebDatasets as LAION-Audio and img2dataset's kin write them, with a `.json`, `.txt` or `.caption` beside
each sound; tables have a Hugging Face audio column, as WavCaps, AudioCaps and others are passed on.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa

from sonify.config import FolderSounds, ParquetSounds, WebDatasetSounds
from sonify.errors import InputError
from sonify.io.listing import is_junk, list_files, say_passed_over
from sonify.io.places import is_utf8, open_place
from sonify.io.tables import open_parquet
from sonify.io.tars import Member, index_members, read_member
from sonify.keys import escape_key
from sonify.rows import Reason, Rejected, SoundRef
from sonify.sources.joins import check_any_met, meet, say_meeting, texts_beside
from sonify.sources.userfiles import FILE_COLUMNS, TEXTS_AT_ONCE, container, list_containers, read_user_table
from sonify.stores import Place

log = logging.getLogger(__name__)

# What libsndfile or FFmpeg may open; which of them are really read is decided from their headers.
_FIRST_SUFFIXES = (
    *(".aac", ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".mp4", ".oga", ".ogg"),
    *(".opus", ".rf64", ".snd", ".w64", ".wav", ".webm"),
)
# What later versions read as well, films of which the sound is taken among them.
LATER_SUFFIXES = (
    *(".3g2", ".3gp", ".ac3", ".adts", ".amr", ".asf", ".bwf", ".eac3", ".ec3", ".m4b", ".m4r", ".m4v", ".mkv"),
    *(".mov", ".mp2", ".mpga", ".qt", ".wave", ".weba", ".wma", ".wmv"),
)
SOUND_SUFFIXES = (*_FIRST_SUFFIXES, *LATER_SUFFIXES)  # a tuple, for `str.endswith`
METADATA_TABLES = ("metadata.csv", "metadata.parquet")
_METADATA = re.compile(r"metadata\.(csv|parquet|tsv|jsonl|xlsx?|ods)", re.IGNORECASE)
METADATA_COLUMNS = ("text", "licence", "license", "attribution", "recording")
# What stands beside a sound in an archive; the first that is there counts.
RECORD_ENDINGS = ("json", "txt", "caption")
# What is said of one recording; more is no description.
MAX_RECORD_BYTES = 1 << 20
# No encoder reads further; a caption has some dozen words.
MAX_TEXT_CHARS = 4096

# The names by which makers of records and tables say something.
LICENCE_FIELDS = ("licence", "license")
ATTRIBUTION_FIELDS = ("attribution", "author", "artist", "uploader", "username")
TEXT_FIELDS = ("text", "caption", "captions", "description", "tag", "tags")
YOUTUBE_FIELDS = ("youtube_id", "ytid")
RECORDING_FIELDS = ("recording", "id")
# Columns that are taken where they are there, beside the two that the configuration names.
KNOWN_COLUMNS = (*LICENCE_FIELDS, *ATTRIBUTION_FIELDS, *YOUTUBE_FIELDS, *RECORDING_FIELDS)
# As WavCaps and others name what they took from AudioSet.
_YOUTUBE_FILE = re.compile(r"Y([A-Za-z0-9_-]{11})\.\w+")


def list_folder(source: FolderSounds, must_meet: bool = True) -> list[SoundRef]:
    """List every sound below the folder; what its table says that meets nothing is said.

    Raises:
        InputError: no row of the table names a sound, where one must.
    """
    listing = list_files(source.path, SOUND_SUFFIXES)
    tables = [name for table in METADATA_TABLES for name in listing.others if name.lower() == table]
    say_passed_over(source.path, listing, set(tables[:1]))
    _say_unread(listing.others, tables[:1])
    described = _read_metadata(source.path, tables[0], listing.files, must_meet) if tables else {}
    return [_ref_of_file(source, PurePosixPath(file), described.get(file, {})) for file in listing.files]


def _say_unread(names: Sequence[str], read: Sequence[str]) -> None:
    """Say what is called metadata and is not read, in one line."""
    unread = sorted(name for name in names if _METADATA.fullmatch(name.rpartition("/")[2]) and name not in read)
    if unread:
        more = f" and {len(unread) - 1:,} more" if len(unread) > 1 else ""
        instead = f"{read[0]} is" if read else "one is that is called metadata.csv or metadata.parquet and lies"
        log.warning("%s%s: not read, %s in the folder itself (file,text)", unread[0], more, instead)


def is_sound(name: str) -> bool:
    """Whether a member of an archive is to be read as a recording."""
    return name.lower().endswith(SOUND_SUFFIXES) and not is_junk(name)


def _ref_of_file(source: FolderSounds, file: PurePosixPath, fields: Mapping[str, str]) -> SoundRef:
    recording = fields.get("recording") or file.as_posix()
    return SoundRef(
        corpus=source.name,
        file=file.as_posix(),
        recording=f"{source.name}/{recording}",
        text=fields.get("text") or _spoken_name(file),
        licence=fields.get("licence") or fields.get("license") or "unknown",
        attribution=fields.get("attribution", ""),
    )


def _spoken_name(file: PurePosixPath) -> str:
    """A file's name and folder as words, for recordings that nobody described: `dogs/big_bark-2.wav`."""
    words = "".join(c if c.isalpha() else " " for c in " ".join(file.with_suffix("").parts))
    return " ".join(words.split())


def _read_metadata(root: Place, table: str, files: Sequence[str], must_meet: bool) -> dict[str, dict[str, str]]:
    """What a table says of each file that it names."""
    columns = read_user_table(root / table, [FILE_COLUMNS], METADATA_COLUMNS)
    cells = ([cell.decode("utf-8", "replace") for cell in row] for row in zip(*columns.values(), strict=True))
    rows = [row for row in cells if any(row)]  # a spreadsheet leaves empty lines at the end
    described: dict[str, dict[str, str]] = {
        name: dict(zip(METADATA_COLUMNS, said, strict=True)) for name, *said in rows
    }
    met = meet([name for name, *_ in rows], files, root.name)
    check_any_met(root / table, FILE_COLUMNS[0], met, root, must=must_meet)
    say_meeting(table, met, "recording")
    return described | {file: described[row] for file, row in met.others.items()}


def list_webdataset(source: WebDatasetSounds) -> list[SoundRef]:
    """List the sounds of every archive; what an archive holds and cannot be read is refused."""
    listing = list_containers(source.path, ".tar")
    say_passed_over(source.path, listing)
    return [ref for uri in listing.files for ref in _list_archive(source, uri)]


def _list_archive(source: WebDatasetSounds, uri: str) -> Iterator[SoundRef]:
    members, refused = index_archive(source.name, source.path, uri)
    yield from refused
    by_name = {member.name: member for member in members}
    sounds = [member for member in members if is_sound(member.name)]
    if not sounds:
        return
    beside = texts_beside(by_name, [sound.name for sound in sounds], RECORD_ENDINGS)
    with open_place(container(source.path, uri)) as archive:
        for sound in sounds:
            text = beside.get(sound.name)
            yield _ref_of_member(source, f"{uri}/{sound.name}", archive, by_name[text] if text else None)


def _ref_of_member(source: WebDatasetSounds, file: str, archive: BinaryIO, beside: Member | None) -> SoundRef:
    record = _read_record(archive, beside)
    if record is None:
        detail = f"expected a JSON object or UTF-8 text of at most {MAX_RECORD_BYTES} bytes beside it"
        return refused_ref(source.name, file, Reason.BAD_CAPTION, detail)
    return _described_ref(source, file, record)


def _read_record(archive: BinaryIO, beside: Member | None) -> Mapping[str, Any] | None:
    """What stands beside a sound: nothing is an empty record, and None is something that is no record."""
    if beside is None:
        return {}
    if beside.size_bytes > MAX_RECORD_BYTES:
        return None
    data = read_member(archive, beside)
    try:
        record = json.loads(data) if beside.name.lower().endswith(".json") else {"text": data.decode()}
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def index_archive(source_name: str, root: Place, uri: str) -> tuple[list[Member], list[SoundRef]]:
    """The readable members of an archive, and a refused row for each of the others, so that the run counts them."""
    with open_place(container(root, uri)) as file:
        members, rejected = index_members(file, uri)
    unnamed = [member for member in members if not is_utf8(member.name)]
    rejected += [
        Rejected(key=escape_key(f"{uri}/{member.name}"), reason=Reason.UNSUPPORTED, detail="a name that is not UTF-8")
        for member in unnamed
    ]
    # numbered, as a name that is there three times is refused twice
    refused = [refused_ref(source_name, f"{r.key}#{n}", r.reason, r.detail) for n, r in enumerate(rejected)]
    return [member for member in members if is_utf8(member.name)], refused


def list_parquet(source: ParquetSounds) -> list[SoundRef]:
    """List the rows of every file, without reading a sound."""
    listing = list_containers(source.path, ".parquet")
    named = {name for name in listing.others if is_sound(name)}  # by a table's paths, perhaps
    say_passed_over(source.path, listing, named)
    return [ref for uri in listing.files for ref in _list_table(source, uri)]


def _list_table(source: ParquetSounds, uri: str) -> Iterator[SoundRef]:
    try:
        with open_parquet(container(source.path, uri)) as table:
            _check_columns(source, uri, table.schema_arrow)
            columns = [source.text_column, *(name for name in KNOWN_COLUMNS if name in table.schema_arrow.names)]
            number = 0
            for batch in table.iter_batches(TEXTS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    record = {**row, "text": row[source.text_column]}
                    yield _described_ref(source, f"{uri}/row-{number:06d}", record)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the table's
        yield refused_ref(source.name, uri, Reason.DAMAGED_ARCHIVE, str(error).splitlines()[0])


def _check_columns(source: ParquetSounds, uri: str, schema: pa.Schema) -> None:
    for key in ("audio_column", "text_column"):
        if getattr(source, key) not in schema.names:
            raise InputError(
                f"audio.sources: {key} = {getattr(source, key)!r}, but {source.path}/{uri} has the columns"
                f" {', '.join(schema.names)}"
            )
    found = schema.field(source.audio_column).type
    if not _may_hold_sounds(found):
        raise InputError(
            f"audio.sources: audio_column = {source.audio_column!r} of {source.path}/{uri}: expected a Hugging Face"
            f" audio column (bytes, path), bytes or paths, found {str(found)[:200]}"
        )


def _may_hold_sounds(found: pa.DataType) -> bool:
    if pa.types.is_struct(found):
        return bool({"bytes", "path"} & {field.name for field in found})
    is_one = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    return any(check(found) for check in is_one)


def _described_ref(source: WebDatasetSounds | ParquetSounds, file: str, record: Mapping[str, Any]) -> SoundRef:
    """Read a record of unknown make (JSON, a table's row) by the names that its makers use."""
    original = record.get("original_data")  # what LAION-Audio hands on of the corpus that it took a sound from
    inner = original if isinstance(original, dict) else {}
    return SoundRef(
        corpus=source.name,
        file=file,
        recording=_recording(record, source.name) or f"{source.name}/{file}",
        text=first_text(record, TEXT_FIELDS),
        licence=first_text(record, LICENCE_FIELDS) or first_text(inner, LICENCE_FIELDS) or source.licence,
        attribution=first_text(record, ATTRIBUTION_FIELDS) or first_text(inner, ATTRIBUTION_FIELDS),
    )


def first_text(record: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The first field that says something; lists of tags are joined, of other lists the first text counts."""
    for field in fields:
        value = record.get(field)
        texts = [_clean(text) for text in (value if isinstance(value, list | tuple) else [value])]
        texts = [text for text in texts if text]
        if texts:
            return ", ".join(texts)[:MAX_TEXT_CHARS] if field in ("tag", "tags") else texts[0]
    return ""


def _clean(value: Any) -> str:
    """Text on one line that any table can hold; a number is one too (ids)."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = " ".join(str(value)[:MAX_TEXT_CHARS].split())
    return text if is_utf8(text) else text.encode("utf-8", "replace").decode()


def _recording(record: Mapping[str, Any], source_name: str) -> str:
    """The upload, by its public id where it has one, so that it is the same in all corpora."""
    if youtube := first_text(record, YOUTUBE_FIELDS):
        return f"youtube/{youtube}"
    name = first_text(record, RECORDING_FIELDS)
    if match := _YOUTUBE_FILE.fullmatch(name):
        return f"youtube/{match.group(1)}"
    return f"{source_name}/{name}" if name else ""


def refused_ref(source_name: str, file: str, reason: Reason, detail: str) -> SoundRef:
    """A row for something that listing found and nobody can read."""
    return SoundRef(
        corpus=source_name,
        file=file,
        recording=f"{source_name}/{file}",
        text="",
        licence="unknown",
        attribution="",
        refused=reason,
        detail=detail.encode("utf-8", "backslashreplace").decode(),
    )
