"""Sounds in a folder, with or without a table that says what they are."""

from pathlib import PurePosixPath

from sonify.config import FolderSounds
from sonify.io.places import list_files
from sonify.rows import SoundRef
from sonify.sources.sounds.found import SOUND_SUFFIXES
from sonify.sources.usertables import read_user_table
from sonify.stores import Place

METADATA_TABLES = ("metadata.csv", "metadata.parquet")


def list_folder(source: FolderSounds) -> list[SoundRef]:
    """List every sound below the folder.

    Raises:
        InputError: its metadata table is not one.
    """
    tables = [source.path / name for name in METADATA_TABLES if (source.path / name).is_file()]
    described = _metadata(tables[0]) if tables else {}
    files = list_files(source.path, SOUND_SUFFIXES)
    return [_ref(source, PurePosixPath(file), described) for file in files]


def _ref(source: FolderSounds, file: PurePosixPath, described: dict[str, dict[str, str]]) -> SoundRef:
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


def _metadata(table: Place) -> dict[str, dict[str, str]]:
    columns = read_user_table(table, ("file",), ("text", "licence", "license", "attribution", "recording"))
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    described = (dict(zip(names, (cell.decode("utf-8", "replace") for cell in row), strict=True)) for row in rows)
    return {row["file"]: row for row in described}
