"""Sound collections: which recordings there are, with their text, licence and attribution.

A new collection is one function here, one line in `list_sounds` and one model in `sonify.config`.
"""

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sonify.config import Audio, Esc50Sounds, FolderSounds, Sounds
from sonify.errors import InputError
from sonify.rows import SoundRef
from sonify.sources.files import with_readable_names
from sonify.sources.usertables import read_user_table

# What libsndfile or FFmpeg may open; which of them are really read is decided from their headers.
SOUND_SUFFIXES = frozenset(
    {".aac", ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".mp4", ".oga", ".ogg"}
    | {".opus", ".rf64", ".snd", ".w64", ".wav", ".webm"}
)
METADATA_TABLES = ("metadata.csv", "metadata.parquet")


def list_sounds(audio: Audio) -> Iterator[SoundRef]:
    """Yield every recording of every source, in a fixed order.

    Raises:
        InputError: a source holds no recording, or its table is not one.
    """
    for source in audio.sources:
        refs = _list_esc50(source) if isinstance(source, Esc50Sounds) else _list_folder(source)
        if not refs:
            raise InputError(f"audio.sources: {source.path} holds no recording: nothing to draw from")
        yield from sorted(refs, key=lambda ref: ref.file)


def sound_path(sources: tuple[Sounds, ...], ref: SoundRef) -> Path:
    """Where a listed recording lies on this machine."""
    source = next(source for source in sources if source.name == ref.corpus)
    return source.path / ref.file


def _list_folder(source: FolderSounds) -> list[SoundRef]:
    found = (path for path in source.path.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES and path.is_file())
    files = with_readable_names(path.relative_to(source.path).as_posix() for path in found)
    tables = [source.path / name for name in METADATA_TABLES if (source.path / name).is_file()]
    described = _metadata(tables[0]) if tables else {}
    return [_folder_ref(source, PurePosixPath(file), described) for file in files]


def _folder_ref(source: FolderSounds, file: PurePosixPath, described: dict[str, dict[str, str]]) -> SoundRef:
    fields = described.get(file.as_posix(), {})
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


def _metadata(table: Path) -> dict[str, dict[str, str]]:
    columns = read_user_table(table, ("file",), ("text", "licence", "license", "attribution", "recording"))
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    described = (dict(zip(names, (cell.decode("utf-8", "replace") for cell in row), strict=True)) for row in rows)
    return {row["file"]: row for row in described}


def _list_esc50(source: Esc50Sounds) -> list[SoundRef]:
    table = source.path / "meta" / "esc50.csv"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return list({row["filename"]: _esc50_ref(source, row) for row in rows}.values())
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise InputError(
            f"audio.sources: expected ESC-50's meta/esc50.csv (filename, category, src_file, ...) in {source.path}:"
            f" {error}"
        ) from error


def _esc50_ref(source: Esc50Sounds, row: dict[str, str]) -> SoundRef:
    if Path(row["filename"]).name != row["filename"]:
        raise InputError(f"audio.sources: {source.path}/meta/esc50.csv: {row['filename']!r} is no file name")
    return SoundRef(
        corpus=source.name,
        file=f"audio/{row['filename']}",
        # takes of one Freesound upload differ in the letter: 1-100210-A and 1-100210-B
        recording=f"{source.name}/{row['src_file']}",
        text=row["category"].replace("_", " "),
        # per-clip licences stand in the corpus's LICENSE file as prose; the whole corpus is published as this
        licence="CC-BY-NC-3.0",
        attribution=f"freesound.org/s/{row['src_file']}, in ESC-50 (Piczak, 2015)",
    )
