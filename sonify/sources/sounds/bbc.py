"""BBC sound effects: their table, and WAV files wherever they were put below the folder."""

import csv
from collections.abc import Iterator, Sequence

from sonify.config import BbcSounds
from sonify.errors import InputError
from sonify.io.places import list_files
from sonify.rows import SoundRef
from sonify.sources.sounds.found import SOUND_SUFFIXES, open_text, stem_of, with_files
from sonify.stores import Place

TABLE = "BBCSoundEffects.csv"
COLUMNS = ("location", "description", "secs", "category", "CDNumber", "CDName", "tracknum")
LICENCE = "RemArc"  # personal use, education and research: https://sound-effects.bbcrewind.co.uk/licensing


def list_bbc(source: BbcSounds) -> list[SoundRef]:
    """List every row of the table; those without a file are refused.

    Raises:
        InputError: the table is not there or not one, or no row has a file.
    """
    table = source.table or source.path / TABLE
    refs = [_ref(source.name, location, description) for location, description in _read_table(table)]
    files = {stem_of(file): file for file in reversed(list_files(source.path, SOUND_SUFFIXES))}
    expected = f"{refs[0].file}.wav" if refs else ""
    return with_files(refs, files, table=table, folder=source.path, expected=expected)


def _ref(source_name: str, location: str, description: str) -> SoundRef:
    name = stem_of(location)
    return SoundRef(
        corpus=source_name,
        file=name,
        recording=f"bbc/{name}",
        text=" ".join(_mended(description).split()),
        licence=LICENCE,
        attribution=f"BBC Sound Effects, {location}, bbc.co.uk – © BBC",
    )


def _read_table(table: Place) -> Iterator[tuple[str, str]]:
    """Yield location and description, whether or not the table has a head."""
    try:
        with open_text(table) as file:
            rows = csv.reader(file)
            first = next(rows, [])
            _check_columns(table, first)
            if tuple(first) != COLUMNS:
                yield first[0].strip(), first[1]
            yield from ((row[0].strip(), row[1]) for row in rows if len(row) > 1 and row[0].strip())
    except (OSError, csv.Error) as error:
        raise InputError(f"audio.sources: expected the BBC's {TABLE}, found none at {table}: {error}") from error


def _check_columns(table: Place, first: Sequence[str]) -> None:
    is_row = len(first) == len(COLUMNS) and first[0].strip().lower().endswith(".wav")
    if tuple(first) != COLUMNS and not is_row:
        raise InputError(
            f"audio.sources: {table}: expected the columns {','.join(COLUMNS)}, with or without this head; found"
            f" {','.join(first)[:200]}"
        )


def _mended(text: str) -> str:
    """Undo UTF-8 that was once read as Latin-1; text that was not does not survive the way back, and stays."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
