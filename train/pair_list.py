"""What pairs of one's own there are, in a folder or a table, and the listing of them that a run keeps.

Listings lie at RUN/units/features/<unit>.parquet and are frozen when first made; new pairs become new units.
"""

import errno
import io
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from pydantic import Field

from sonify import layout
from sonify.config import Features, FolderImages
from sonify.config.inputs import Share
from sonify.engine.plan import listed_units
from sonify.engine.record import RunRecord
from sonify.errors import InputError
from sonify.io.listing import list_files, say_passed_over
from sonify.io.places import is_file
from sonify.io.tables import read_rows, write_rows
from sonify.io.write import write_atomically
from sonify.keys import escape_key, key_order, split_of
from sonify.rows import Reason, Rejected
from sonify.sources.images import suffixes_of
from sonify.sources.sounds.forms import SOUND_SUFFIXES
from sonify.sources.userfiles import file_beside, read_user_table

log = logging.getLogger(__name__)

NAME = "pairs"  # of what says which sound an image has, where a run of `sonify` has its extractors
PAIRED = "features"  # the stage, and the listing of what it reads
COLUMNS = ("label", "caption", "recording", "split", "start_sec")
NO_PARTNER = "name each image as its sound (cat.jpg, cat.wav), or list the pairs in a table (image,sound)"
MAX_START_SEC = 86_400.0


class PairSettings(Features):
    """What `features` says, and how a sound is cut and levelled.

    An image has `windows` scenes: that many pieces of `clip_seconds` of its sound, one after the other; where the sound
    has fewer that can be heard, it has some of them again, at another level.
    """

    seed: int = 0
    validation: Share = 0.05  # of recordings, by hash; an image goes with its own
    clip_seconds: float = Field(default=5.0, ge=1.0, le=60.0)
    windows: int = Field(default=2, ge=1, le=64)
    lufs: tuple[float, float] = (-32.0, -28.0)
    heif: bool = False  # also .heic, with the extra heif
    shard_size: int = Field(default=500, ge=1, le=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRef:
    """One line of a unit's frozen listing: an image and its sound, relative to the folder.

    `number` tells pairs of one image apart. `refused` is a `Reason` where listing already found that this is no pair:
    what is missing is empty.
    """

    image: str
    sound: str
    recording: str
    split: str
    start_sec: float = 0.0
    label: str = ""
    caption: str = ""
    number: int = 0
    refused: str = ""
    detail: str = ""

    @property
    def key(self) -> str:
        """What the run knows it by."""
        return escape_key((f"{self.image}#{self.number}" if self.number else self.image) or self.sound)


def is_of_pairs(record: RunRecord) -> bool:
    """Whether a run was made of pairs of somebody's own: its features are its only stage."""
    extractors = record.config["concepts"]["extractors"]
    return not record.stages.keys() - {PAIRED} and [one["name"] for one in extractors] == [NAME]


def list_pairs(source: Path, settings: PairSettings) -> list[PairRef]:
    """Every pair of a folder or a table, and what is there without a partner, in the order of keys.

    Raises:
        InputError: there is no pair, two sounds have the name of one image, or the table is not one of pairs.
    """
    refs = _list_folder(source, settings) if source.is_dir() else _list_table(source, settings)
    whole = [ref for ref in refs if not ref.refused]
    if not whole:
        first = f": {refs[0].image or refs[0].sound or 'the first row'}: {refs[0].detail}" if refs else ""
        raise InputError(f"{source}: holds no pair of an image and a sound{first}; {NO_PARTNER}")
    splits: dict[str, set[str]] = defaultdict(set)
    for ref in whole:
        splits[ref.image].add(ref.split)
    if torn := [image for image, found in splits.items() if len(found) > 1]:
        log.warning(
            "%s: %d images are in both splits, as their recordings are (%s); the column `split` keeps them apart",
            source,
            len(torn),
            min(torn),
        )
    return sorted(refs, key=lambda ref: key_order(ref.key))


def _list_folder(folder: Path, settings: PairSettings) -> list[PairRef]:
    suffixes = suffixes_of(FolderImages(kind="folder", path=folder, heif=settings.heif))
    listing = list_files(folder, (*suffixes, *SOUND_SUFFIXES))
    stems: tuple[dict[str, str], dict[str, str]] = ({}, {})  # of images, of sounds
    for name in listing.files:
        is_sound = name.lower().endswith(SOUND_SUFFIXES)
        stem = name.rpartition(".")[0]
        if (other := stems[is_sound].setdefault(stem, name)) != name:
            what = "sounds" if is_sound else "images"
            raise InputError(
                f"{folder}: {other} and {name} are two {what} of one name: keep one of them, or list the pairs in a"
                " table (image,sound)"
            )
    images, sounds = stems
    texts = [name for name in listing.others if name.rpartition(".")[0] in images]
    say_passed_over(folder, listing, [name for name in texts if name.lower().endswith((".txt", ".caption", ".json"))])
    return [_of_stem(images.get(stem, ""), sounds.get(stem, ""), settings) for stem in {**images, **sounds}]


def _of_stem(image: str, sound: str, settings: PairSettings) -> PairRef:
    if not (image and sound):
        detail = "no image has its name" if sound else "no sound has its name"
        return PairRef(image=image, sound=sound, recording="", split="", refused=Reason.MISSING, detail=detail)
    return PairRef(image=image, sound=sound, recording=sound, split=_split(settings, sound))


def _split(settings: PairSettings, recording: str) -> str:
    return split_of(settings.seed, "recording", recording, settings.validation)


def _list_table(table: Path, settings: PairSettings) -> list[PairRef]:
    columns = read_user_table(table, ("image", "sound"), COLUMNS)
    rows = zip(
        *([cell.decode("utf-8", "replace").strip() for cell in cells] for cells in columns.values()), strict=True
    )
    refs: list[PairRef] = []
    seen: set[tuple[str, str, float]] = set()
    numbers: Counter[str] = Counter()
    for line, cells in enumerate(rows, start=2):
        row = dict(zip(columns, cells, strict=True))
        if not any(row.values()):
            continue  # spreadsheets leave such lines
        ref = _of_row(table, row, f"{table}, row {line}", settings)
        said = (ref.image, ref.sound, ref.start_sec)
        if not ref.refused and said in seen:
            ref = replace(ref, refused=Reason.DUPLICATE_KEY, detail=f"row {line} says the same as one before it")
        seen.add(said)
        refs.append(replace(ref, number=numbers[ref.image]))
        numbers[ref.image] += 1
    return refs


def _of_row(table: Path, row: Mapping[str, str], where: str, settings: PairSettings) -> PairRef:
    if row["split"] not in ("", *layout.SPLITS):
        raise InputError(f"{where}: split is {row['split']!r}, expected train, validation or nothing")
    ref = PairRef(
        image=row["image"],
        sound=row["sound"],
        recording=row["recording"] or row["sound"],
        split=row["split"] or _split(settings, row["recording"] or row["sound"]),
        start_sec=_start_sec(row["start_sec"], where),
        label=row["label"],
        caption=row["caption"],
    )
    for what in ("image", "sound"):
        file = _file_beside(table, row[what])
        if file is None:
            detail = f"no such {what} below the table's folder: {row[what]!r}" if row[what] else f"no {what} is named"
            return replace(ref, refused=Reason.MISSING, detail=detail)
        ref = replace(ref, **{what: file.relative_to(table.parent).as_posix()})
    return ref


def _file_beside(table: Path, name: str) -> Path | None:
    """The file that a table names, if it is there."""
    try:
        place = file_beside(table, name) if name else None
        return Path(str(place)) if place is not None and is_file(place) else None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a name that no file can have
            raise
        return None


def _start_sec(cell: str, where: str) -> float:
    try:
        start_sec = float(cell or 0)
    except ValueError:
        start_sec = math.nan
    if not 0 <= start_sec <= MAX_START_SEC:
        raise InputError(f"{where}: start_sec is {cell!r}, expected seconds from 0 to {MAX_START_SEC:.0f}")
    return start_sec


def read_pairs(run_dir: Path, unit: str) -> Iterator[PairRef | Rejected]:
    """A unit's pairs, and what listing refused."""
    for ref in read_rows(run_dir / layout.listing(PAIRED, unit), PairRef):
        yield Rejected(key=ref.key, reason=Reason(ref.refused), detail=ref.detail) if ref.refused else ref


def freeze_pairs(out: Path, refs: Sequence[PairRef], size: int) -> None:
    """Write the listing of what is in no unit yet, as further units.

    Raises:
        InputError: a pair is another one now than the run has under its key.
    """
    units = listed_units(out, PAIRED)
    frozen = {ref.key: ref for unit in units for ref in read_rows(out / layout.listing(PAIRED, unit), PairRef)}
    for ref in refs:
        if (before := frozen.get(ref.key, ref)) != ref:
            raise InputError(
                f"{out}: {ref.image or ref.sound} is another pair now than when it was listed (then with"
                f" {before.sound or 'no sound'}, start_sec {before.start_sec:g}, label {before.label!r},"
                f" {before.split or before.detail}): choose another --out"
            )
    if gone := len(frozen.keys() - {ref.key for ref in refs}):
        log.warning("%s: %d pairs that it has are not in the input any more; what is made of them stays", out, gone)
    new = [ref for ref in refs if ref.key not in frozen]
    free = (name for name in (f"{n:06d}" for n in count()) if name not in units)
    for start in range(0, len(new), size):
        buffer = io.BytesIO()
        write_rows(buffer, PairRef, new[start : start + size])
        write_atomically(out, layout.listing(PAIRED, next(free)), buffer.getvalue())
