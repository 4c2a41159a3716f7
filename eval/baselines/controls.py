"""Pictures that need no model to run: those of a folder, and the two controls, `references` and `shuffled`.

All are copied, so that the folder stands alone; what else lies in it stays.
"""

import csv
import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from eval.baselines.folder import (
    Asked,
    Counts,
    Failed,
    MadeFor,
    Pair,
    ask,
    begin,
    check_identical,
    clear,
    count,
    hold,
    look_at_file,
    mark_odd_sizes,
    write_failed,
)
from eval.baselines.recipe import ImagesRecipe, ShuffledRecipe, outside_settings
from eval.pictures import Picture, read_made
from eval.suites.derange import derange
from eval.suites.suite import Stored, Suite
from sonify.errors import InputError
from sonify.io.commits import digest_of
from sonify.io.listing import iter_inputs
from sonify.io.places import is_below
from sonify.io.write import naming_full_disk, naming_place
from sonify.media.headers import IMAGE_SUFFIXES
from train.manifest import IMAGES, ControlSettings, OutsideSettings, Settings, write_manifest

log = logging.getLogger(__name__)
NAMED = 3  # of what is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that becomes the picture of a pair; `donor` is the item that it is of, `sha256` what it must have."""

    path: Path
    donor: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the manifest says of a control: which, and of whose pictures."""

    control: Literal["shuffled", "references"]
    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What stands for a model: its name, what the manifest says of it, the source of each pair, and why the others
    have none."""

    name: str
    about: OutsideSettings | Control
    sources: Mapping[Pair, Source]
    failed: Sequence[Failed]


def take_references(suite: Suite, seeds: range) -> tuple[Asked, Taken]:
    """The true pictures, each once: seeds change nothing, and a picture twice would count as two.

    Raises:
        InputError: the suite has none.
    """
    most = max((len(item.references) for item in suite.items), default=0)
    if not most:
        raise InputError(f"{suite.folder}: has no reference pictures, and the control is made of them")
    asked = ask(suite, "sounds_whole.csv", range(seeds.start, seeds.start + most))
    sources = {
        (item.id, seed): _source(suite, item.id, reference)
        for item in asked.items.values()
        for seed, reference in zip(asked.seeds, item.references, strict=False)
    }
    bare = [item.id for item in asked.items.values() if not item.references]
    failed = [_failed((id, seeds.start), "the item has no reference picture") for id in bare]
    return asked, Taken(
        name="references", about=Control(control="references", of="references"), sources=sources, failed=failed
    )


def _source(suite: Suite, id: str, stored: Stored) -> Source:
    return Source(path=suite.folder / stored.file, donor=id, sha256=stored.sha256)


def take_images(recipe: ImagesRecipe, suite: Suite, seeds: range) -> tuple[Asked, Taken]:
    """The pictures of a folder.

    Raises:
        InputError: the table or the pattern is wrong, none is of the suite, or two are equal.
    """
    asked = ask(suite, recipe.takes, seeds)
    folder = recipe.images
    if not folder.is_dir():
        raise InputError(f"images: expected a folder, found a file: {folder}")
    if recipe.table is None:
        named = _by_pattern(recipe, asked)
        there = [name for name in iter_inputs(folder) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        others = sorted(set(there) - set(named.values()))
        example = next(iter(named.values()))
    else:
        named, others = _by_table(recipe.table, asked)
        example = "the ids of its sounds.csv in the table"
    if others:
        log.warning("%s: %s of no item and seed that is asked for: %s", folder, f"{len(others):,}", _some(others))
    looks = {pair: look_at_file(folder / name) for pair, name in named.items()}
    seen = dict(zip(looks, mark_odd_sizes(list(looks.values())), strict=True))
    usable = [pair for pair, look in seen.items() if not look.wrong]
    if not usable:
        why = f"; the first: {next(iter(named.values()))}: {next(iter(seen.values())).wrong}" if seen else ""
        raise InputError(f"{folder}: no picture of the suite {suite.name}: expected {example}{why}")
    if not recipe.deterministic:
        check_identical({pair: seen[pair] for pair in usable}, recipe.name)
    failed = [
        _failed(pair, f"{named[pair]}: {seen[pair].wrong}" if pair in named else "not in the table")
        for pair in asked.pairs
        if pair not in usable
    ]
    sources = {pair: Source(path=folder / named[pair], donor=pair[0]) for pair in usable}
    return asked, Taken(name=recipe.name, about=outside_settings(recipe), sources=sources, failed=failed)


def _by_pattern(recipe: ImagesRecipe, asked: Asked) -> dict[Pair, str]:
    """How the picture of each pair must be called."""
    if "{seed}" not in recipe.pattern and len(asked.seeds) > 1:
        raise InputError(
            f"pattern: {recipe.pattern!r} has no {{seed}}, so there is one picture an item: expected --seeds 1, found"
            f" {len(asked.seeds)}"
        )
    named = {pair: recipe.pattern.replace("{id}", pair[0]).replace("{seed}", str(pair[1])) for pair in asked.pairs}
    if outside := next((name for name in named.values() if not is_below(name)), None):
        raise InputError(f"pattern: {recipe.pattern!r} leaves the folder of the images: {outside}")
    return named


def _by_table(table: Path, asked: Asked) -> tuple[dict[Pair, str], list[str]]:
    """What a table says, and the pictures in it that nobody asked for."""
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig"))))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"table {table}: cannot be read as CSV ({error})") from None
    columns = set(rows[0]) if rows else set()
    if "image" not in columns or not columns & {"id", "sound"}:
        found = ", ".join(str(column) for column in rows[0]) if rows else "no row"
        raise InputError(f"table {table}: expected the columns id (or sound) and image, found {found}")
    named: dict[Pair, str] = {}
    others: list[str] = []
    for number, row in enumerate(rows, start=2):
        pair, image = _read_row(f"table {table}, line {number}", row, asked)
        if pair[0] not in asked.items or pair[1] not in asked.seeds:
            others.append(image)
        elif pair in named:
            raise InputError(
                f"table {table}, line {number}: item {pair[0]} with seed {pair[1]} stands in it twice; a column seed"
                " tells several of an item apart"
            )
        else:
            named[pair] = image
    return named, others


def _read_row(where: str, row: Mapping[str, str | None], asked: Asked) -> tuple[Pair, str]:
    image = (row["image"] or "").strip()
    id = (row.get("id") or "").strip() or PurePosixPath((row.get("sound") or "").strip()).stem
    seed = (row.get("seed") or "").strip() or str(asked.seeds[0])
    if not image or not id or not is_below(image):
        raise InputError(
            f"{where}: expected an id and an image below the folder of the images, found {id!r}, {image!r}"
        )
    if not (seed.isascii() and seed.isdigit() and len(seed) < 20):
        raise InputError(f"{where}: seed: expected a whole number, found {seed!r}")
    return (id, int(seed)), image


def take_shuffled(recipe: ShuffledRecipe, suite: Suite, seeds: range) -> tuple[Asked, Taken]:
    """The pictures of a model, or the references, each given to the sound of another item.

    Raises:
        InputError: there are none, or no two items may be exchanged.
    """
    if recipe.of == "references":
        asked, taken = take_references(suite, seeds)
        of, given = "references", taken.sources
    else:
        asked = ask(suite, "sounds_whole.csv", seeds)
        made = read_made(suite, recipe.of)
        of, given = made.model, _first_of_each(made.pictures)
    with_pictures = {id for id, _ in given}
    items = [item for item in asked.items.values() if item.id in with_pictures]
    donors = derange(items, recipe.seed)
    sources: dict[Pair, Source] = {}
    failed: list[Failed] = []
    for id, seed in asked.pairs:
        donor = donors.get(id)
        if donor is None:
            failed.append(_failed((id, seed), f"{of} has no picture of it"))
        elif (donor, seed) not in given:
            failed.append(_failed((id, seed), f"{of} has no picture of its donor {donor} with this seed"))
        else:
            sources[id, seed] = replace(given[donor, seed], donor=donor)
    if not sources:
        raise InputError(f"{recipe.of}: has no picture with the seeds {seeds[0]} to {seeds[-1]}; ask for those it has")
    return asked, Taken(
        name=f"shuffled[{of}]", about=Control(control="shuffled", of=of), sources=sources, failed=failed
    )


def _first_of_each(pictures: Sequence[Picture]) -> dict[Pair, Source]:
    """Of an item with several windows the picture of the first."""
    found: dict[Pair, Source] = {}
    for picture in pictures:
        found.setdefault((picture.item.id, picture.seed), Source(path=picture.path, donor=picture.item.id))
    return found


def write_taken(asked: Asked, taken: Taken, made_for: MadeFor, folder: Path) -> Counts:
    """Write the folder; until all pictures are there it has no manifest.

    Raises:
        InputError: a picture is not what the suite says, the place cannot be written to, or another command does.
        WorkError: something else is at the name of a file of ours.
    """
    with hold(folder), naming_full_disk(folder):
        begin(folder, made_for)
        (folder / IMAGES).mkdir(exist_ok=True)
        _clear_images(asked, folder)
        hashes = {pair: _copy(source, folder / _name(pair, source)) for pair, source in taken.sources.items()}
        model = taken.name, digest_of([[*pair, sha256] for pair, sha256 in hashes.items()])
        rows = [
            asked.line(pair, _name(pair, source), model, _settings(taken, source))
            for pair, source in taken.sources.items()
        ]
        write_failed(folder, taken.failed)
        write_manifest(folder, rows)
    return count(taken.sources.keys(), taken.failed)


def _clear_images(asked: Asked, folder: Path) -> None:
    """Remove the pictures of before; one may have had another ending, or be missing by now."""
    stems = {f"{id}-{seed}" for id, seed in asked.pairs}
    for path in (folder / IMAGES).iterdir():
        if path.stem in stems and path.suffix in IMAGE_SUFFIXES:
            clear(path)


def _settings(taken: Taken, source: Source) -> Settings:
    about = taken.about
    if isinstance(about, OutsideSettings):
        return about
    return ControlSettings(kind="control", control=about.control, of=about.of, donor=source.donor)


def _name(pair: Pair, source: Source) -> str:
    return f"{IMAGES}/{pair[0]}-{pair[1]}{source.path.suffix.lower()}"


def _copy(source: Source, target: Path) -> str:
    """Copy a picture byte for byte and return its sha256."""
    try:
        data = source.path.read_bytes()
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read ({error.strerror})") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if source.sha256 is not None and sha256 != source.sha256:
        raise InputError(f"{source.path}: is not as it was prepared (another sha256); prepare the suite again")
    with naming_place(target):
        target.write_bytes(data)
    return sha256


def _failed(pair: Pair, error: str) -> Failed:
    return Failed(id=pair[0], seed=pair[1], error=error)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
