"""The suites that need no corpus: one's own sounds and pictures, and those of `sonify demo`."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from eval.suites.config import DemoSuite, FolderSuite
from eval.suites.entries import Entry, Selection
from eval.suites.suite import SUITE
from eval.suites.write import ID
from sonify.demo.demo import PHOTOS, shipped_pictures
from sonify.errors import InputError, did_you_mean
from sonify.io.listing import list_files
from sonify.keys import escape_key
from sonify.media.headers import IMAGE_SUFFIXES
from sonify.sources.sounds.forms import SOUND_SUFFIXES

COLUMNS = ("id", "sound", "image", "label", "caption", "recording", "group", "youtube", "freesound")
FILM_SUFFIXES = (".mkv", ".mov", ".mp4", ".webm")
_ALIKE = 0.75
# Which photograph of the demo's shows what is heard, as its caption says; as many are shown by the first six as the
# smoke suite has sounds, and the others are then other pictures.
SHOWN_IN = {
    "cat-purring": "chelsea.png",
    "cat-meowing": "chelsea.png",
    "horse-neighing": "horse.png",
    "horse-hooves": "horse.png",
    "page-turning": "page.png",
    "keyboard": "page.png",
    "motorcycle": "motorcycle_left.png",
    "dog-barking": "motorcycle_left.png",
    "clock": "clock_motion.png",
    "rain": "clock_motion.png",
    "footsteps": "gravel.png",
    "stream": "gravel.png",
    "crickets": "grass.png",
    "bees": "grass.png",
    "spacecraft-radio": "astronaut.png",
    "spoon": "coffee.png",
    "radio-static": "hubble_deep_field.jpg",
    "crowd": "coins.png",
    "rocket": "rocket.jpg",
    "helicopter": "rocket.jpg",
    "bicycle-bell": "brick.png",
    "siren": "brick.png",
    "camera": "camera.png",
    "birds": "camera.png",
}


def list_folder(config: FolderSuite) -> list[Entry]:
    """The entries of a table, or of a folder of sounds.

    Raises:
        InputError: the table cannot be read or lacks `sound`, nothing is listed, or ids differ in capitals alone.
    """
    entries = _read_table(config.path) if config.path.is_file() else _read_folder(config.path)
    if not entries:
        raise InputError(f"{config.path}: names no sound; expected a CSV with a column `sound`, or a folder of sounds")
    if twins := _alike(entry.id for entry in entries):
        raise InputError(
            f"{config.path}: the ids {twins[0]!r} and {twins[1]!r} differ in capitals alone, and many systems take"
            " these for one file; give other ids (the column `id` of a table)"
        )
    return entries


def _alike(ids: Iterable[str]) -> tuple[str, str] | None:
    """Two different ids that are the same without regard to capitals."""
    first: dict[str, str] = {}
    return next(((first[key], each) for each in ids if first.setdefault(key := each.lower(), each) != each), None)


def _read_table(path: Path) -> list[Entry]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from error
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        _check_columns(path, table.fieldnames or ())
        return [_entry_of(path, table.line_num, row) for row in table]
    except csv.Error as error:
        raise InputError(f"{path}, line {table.reader.line_num}: cannot be read as CSV ({error})") from error


def _check_columns(path: Path, found: Sequence[str]) -> None:
    if "sound" not in found:
        raise InputError(f"{path}: expected a column `sound`, found {', '.join(map(repr, found)) or 'none'}")
    for column in found:
        if column not in COLUMNS and (hint := did_you_mean(column, COLUMNS, _ALIKE)):
            raise InputError(f"{path}: no such column: {column!r}{hint} (those read: {', '.join(COLUMNS)})")


def _entry_of(path: Path, line: int, row: Mapping[Any, Any]) -> Entry:
    if None in row:
        raise InputError(f"{path}, line {line}: more cells than the first line has columns; a comma belongs in quotes")
    cells = {column: str(row.get(column) or "").strip() for column in COLUMNS}
    sound = cells["sound"]
    if not sound:
        raise InputError(f"{path}, line {line}: names no sound")
    ids = tuple(f"{source}:{cells[source]}" for source in ("youtube", "freesound") if cells[source])
    images = [path.parent / name for name in _parts(cells["image"])]
    return Entry(
        id=cells["id"] or _id_of(sound),
        recording=cells["recording"] or (ids[0] if ids else sound),
        audio=path.parent / sound,
        image=images[0] if images else None,
        more_images=tuple(images[1:]),
        labels=_parts(cells["label"]),
        captions=(cells["caption"],) if cells["caption"] else (),
        group=cells["group"],
        ids=ids,
    )


def _parts(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(";") if part.strip())


def _id_of(name: str) -> str:
    """What a file is called in the suite: its path without ending, the folders joined by a dash, where that will do."""
    path = PurePosixPath(Path(name).as_posix())
    plain = path.stem if path.is_absolute() else "-".join((*path.parent.parts, path.stem))
    return plain if ID.fullmatch(plain) else escape_key(path.name if path.is_absolute() else str(path))


def _read_folder(folder: Path) -> list[Entry]:
    """A label is the first folder below, a picture what has a sound's name; a film is its own picture."""
    found = _names_below(folder)
    pictures = {(name.parent, name.stem, name.suffix.lower()): name for name in found}
    entries: list[Entry] = []
    for name in found:
        if not name.name.lower().endswith(SOUND_SUFFIXES):
            continue
        beside = (pictures.get((name.parent, name.stem, suffix)) for suffix in IMAGE_SUFFIXES)
        own = name if name.suffix.lower() in FILM_SUFFIXES else None
        picture = next((each for each in beside if each is not None), own)
        entry = Entry(
            id=_id_of(str(name)),
            recording=str(name),
            audio=folder / name,
            image=None if picture is None else folder / picture,
            labels=name.parts[:-1][:1],
        )
        entries.append(entry)
    return entries


def _names_below(folder: Path) -> list[PurePosixPath]:
    """All files but those of a suite that lies in between, in a fixed order."""
    names = [PurePosixPath(name) for name in list_files(folder, ()).others]
    suites = {name.parent for name in names if name.name == SUITE}
    return [name for name in names if suites.isdisjoint(name.parents)]


def select_demo(config: DemoSuite) -> Selection:
    """So many of the demo's recordings, each with the photograph whose caption names it, in the order of `SHOWN_IN`.

    Raises:
        InputError: scikit-image, whose photographs they are, is not installed; or there are not so many.
    """
    sounds = Path(str(files("sonify.demo"))) / "sounds"
    with (sounds / "metadata.csv").open(encoding="utf-8", newline="") as file:
        texts = {row["file"]: row["text"] for row in csv.DictReader(file)}
    pictures = shipped_pictures()
    captioned = {photo.file for photo in PHOTOS}
    entries: list[Entry] = []
    for kind, photo in SHOWN_IN.items():
        assert photo in captioned, photo
        for file in sorted(file for file in texts if file.rpartition("-")[0] == kind):
            name = file.removesuffix(".opus")
            entry = Entry(
                id=name,
                recording=name,
                audio=sounds / file,
                image=pictures / photo,
                labels=(kind.replace("-", " "),),
                captions=(texts[file],),
            )
            entries.append(entry)
    if config.sounds > len(entries):
        raise InputError(f"{config.name}: sounds: expected at most {len(entries)}, found {config.sounds}")
    return Selection(wanted=tuple(entries[: config.sounds]), rest=tuple(entries[config.sounds :]))
