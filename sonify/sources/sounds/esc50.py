"""ESC-50, as its archive unpacks."""

import csv

from sonify.config import Esc50Sounds
from sonify.errors import InputError
from sonify.rows import SoundRef
from sonify.sources.sounds.found import open_text


def list_esc50(source: Esc50Sounds) -> list[SoundRef]:
    """List the rows of `meta/esc50.csv`.

    Raises:
        InputError: the table is not there, or not one.
    """
    table = source.path / "meta" / "esc50.csv"
    try:
        with open_text(table, errors="strict") as file:
            rows = list(csv.DictReader(file))
        return list({row["filename"]: _ref(source, row) for row in rows}.values())
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise InputError(
            f"audio.sources: expected ESC-50's meta/esc50.csv (filename, category, src_file, ...) in {source.path}:"
            f" {error}"
        ) from error


def _ref(source: Esc50Sounds, row: dict[str, str]) -> SoundRef:
    if row["filename"] in ("", ".", "..") or set("/\0") & set(row["filename"]):
        raise InputError(f"audio.sources: {source.path}/meta/esc50.csv: {row['filename']!r} is no file name")
    return SoundRef(
        corpus=source.name,
        file=f"audio/{row['filename']}",
        # takes of one Freesound upload differ in the letter: 1-100210-A and 1-100210-B
        recording=f"freesound/{row['src_file']}",
        text=row["category"].replace("_", " "),
        # per-clip licences stand in the corpus's LICENSE file as prose; the whole corpus is published as this
        licence="CC-BY-NC-3.0",
        attribution=f"freesound.org/s/{row['src_file']}, in ESC-50 (Piczak, 2015)",
    )
