"""Tables of captions among the images of a folder: which are read, and what each says of the images below it."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from sonify.errors import InputError
from sonify.io.places import is_file
from sonify.sources.joins import Meeting, check_any_met, meet, say_meeting, without_ending
from sonify.sources.sounds.forms import is_sound
from sonify.sources.userfiles import FILE_COLUMNS, TEXT_COLUMNS, MissingColumns, read_user_table
from sonify.stores import Place

log = logging.getLogger(__name__)

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


def _tables_and_like(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The tables among files, and what is nearly called as one."""
    tables: list[str] = []
    meant: list[str] = []
    for name in names:
        last = name.rpartition("/")[2]
        if last.lower() in (*CAPTION_TABLES, *METADATA_TABLES):
            tables.append(name)
        elif _MEANT.fullmatch(last):
            meant.append(name)
    return tables, meant


def tables_among(names: Iterable[str], images: Sequence[str]) -> list[str]:
    """Of files below a folder of images, the tables that `captions_in_tables` reads; those that it passes over are
    said, and what may be meant for one."""
    tables, meant = _tables_and_like(names)
    if meant:  # an image `captions.jpg` may have a `captions.txt`
        stems = set(map(without_ending, images))
        meant = [name for name in meant if not (name.lower().endswith(".txt") and without_ending(name) in stems)]
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
