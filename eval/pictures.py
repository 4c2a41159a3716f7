"""What a model made for a suite: its manifest, joined with the items by the sounds that it names."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.baselines.folder import Failed, Look, look_at_file, mark_odd_sizes, read_failed, read_made_for
from eval.suites.suite import Item, Suite
from sonify.errors import InputError
from sonify.io.commits import digest_of
from train.manifest import ControlSettings, GeneratedImage, OutsideSettings, read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image of an item; `donor` is the item that it truly belongs to, where that is another.

    `sha256` is of the file's bytes.
    """

    item: Item
    seed: int
    start_sec: float
    path: Path
    sha256: str
    donor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """All images of a model for a suite.

    `missing` are items without one, `unusable` files that are no picture or are of another size than most, with the
    reason, `failed` what the model itself gave up. `identical` counts pictures that are pixel for pixel that of
    another item or seed. `heard` is which file of the items the sounds were: `window`, `whole`, or `window and whole`.
    `settings` are the manifest's, of its first line; `size` is the width and height of the pictures.
    """

    folder: Path
    model: str
    model_sha256: str
    pictures: tuple[Picture, ...]
    missing: tuple[str, ...]
    unusable: Mapping[str, str]
    failed: tuple[Failed, ...]
    identical: int
    trained_on: tuple[str, ...]
    settings: Mapping[str, Any]
    heard: str
    size: tuple[int, int]


def read_made(suite: Suite, folder: Path) -> Made:
    """Join a folder's manifest with the suite.

    An image that is missing, cannot be decoded or is of another size than most is not counted and said; so is an item
    without an image.

    Raises:
        InputError: there is no manifest, it is of other sounds or of several models, or names an image twice; the
            folder was made for the suite as it was before, or its pictures are not those that it was made of.
    """
    made_for = read_made_for(folder)
    if made_for is not None and made_for.suite_digest != suite.digest:
        raise InputError(
            f"{folder}: was made for {_what_suite(made_for.suite, suite)}; make the pictures again, for the suite as"
            " it is now"
        )
    rows = read_manifest(folder, with_images=False)
    if not rows:
        raise InputError(f"{folder}: its manifest names no image")
    models = {(row.model, row.model_sha256) for row in rows}
    if len(models) > 1:
        raise InputError(
            f"{folder}: expected images of one model, found {len(models)}; evaluate each in its own folder"
        )
    items = _items_of(suite, folder, rows)
    _refuse_twice(folder, rows, items)
    found = [look_at_file(folder / row.image) for row in rows]
    if made_for is not None:
        _refuse_changed(folder, rows, items, found)
    looks = mark_odd_sizes(found)
    usable = [(row, item, look) for row, item, look in zip(rows, items, looks, strict=True) if not look.wrong]
    pictures = [_picture(folder, row, item, look) for row, item, look in usable]
    there = {picture.item.id for picture in pictures}
    return Made(
        folder=folder.absolute(),
        model=rows[0].model,
        model_sha256=rows[0].model_sha256,
        pictures=tuple(sorted(pictures, key=lambda picture: (picture.item.id, picture.seed, picture.start_sec))),
        missing=tuple(item.id for item in suite.items if item.id not in there),
        unusable={row.image: look.wrong for row, look in zip(rows, looks, strict=True) if look.wrong},
        failed=read_failed(folder),
        identical=_count_identical(looks),
        trained_on=getattr(rows[0].settings, "trained_on", ()) or (made_for.trained_on if made_for else ()),
        settings=asdict(rows[0].settings),
        heard=_heard(rows, items),
        size=next((look.size for look in looks if not look.wrong), (0, 0)),
    )


def pictures_digest(made: Made) -> str:
    """The digest of all pictures, each with the item that it was made for; where they lie is not in it."""
    return digest_of([[picture.item.id, picture.seed, picture.start_sec, picture.sha256] for picture in made.pictures])


def _what_suite(name: str, suite: Suite) -> str:
    return f"the suite {name} as it was before" if name == suite.name else f"the suite {name}, not for {suite.name}"


def _items_of(suite: Suite, folder: Path, rows: Sequence[GeneratedImage]) -> list[Item]:
    """The item of each line.

    Raises:
        InputError: a line is of none.
    """
    by_sound = _by_sound(suite)
    found = [_item_of(row, by_sound) for row in rows]
    mixtures = [row.image for row in rows if len(row.sound_sha256) > 1]
    if mixtures:
        raise InputError(
            f"{folder}: {len(mixtures)} of {len(rows)} images are of mixtures of sounds, such as {mixtures[0]}, and the"
            f" suite {suite.name} has single sounds; make the images from {suite.folder / 'sounds.csv'}"
        )
    foreign = [row.sound for row, item in zip(rows, found, strict=True) if item is None]
    if foreign:
        raise InputError(
            f"{folder}: {len(foreign)} of {len(rows)} images are of sounds that are not in the suite {suite.name}, such"
            f" as {foreign[0]}; make the images from {suite.folder / 'sounds.csv'}"
        )
    return [item for item in found if item is not None]


def _refuse_changed(folder: Path, rows: Sequence[GeneratedImage], items: Sequence[Item], looks: Sequence[Look]) -> None:
    """Of pictures that were taken as they are, which `model_sha256` is the digest of (`eval.baselines.controls`); one
    that cannot be read is told as such.

    Raises:
        InputError: one is another than when it was taken.
    """
    about = rows[0].settings
    taken = isinstance(about, ControlSettings) or (isinstance(about, OutsideSettings) and not about.command)
    if not taken or any(look.wrong for look in looks):
        return
    now = digest_of([[item.id, row.seed, look.sha256] for row, item, look in zip(rows, items, looks, strict=True)])
    if now != rows[0].model_sha256:
        raise InputError(f"{folder}: its pictures were changed since `eval.baseline` took them; make the folder again")


def _count_identical(looks: Sequence[Look]) -> int:
    counted = Counter(look.pixels_sha256 for look in looks if not look.wrong)
    return sum(count for count in counted.values() if count > 1)


def _by_sound(suite: Suite) -> dict[str, list[Item]]:
    """Items by the hash of what may be heard of them; a cut and a whole sound may be the same bytes."""
    found: dict[str, list[Item]] = defaultdict(list)
    for item in suite.items:
        for sha256 in {item.sound.sha256, *([item.window.sha256] if item.window else [])}:
            found[sha256].append(item)
    return found


def _item_of(row: GeneratedImage, by_sound: Mapping[str, list[Item]]) -> Item | None:
    """The item of a line; of several items of equal sounds the one whose file it names."""
    items = by_sound.get(row.sound_sha256[0], []) if len(row.sound_sha256) == 1 else []
    return next((item for item in items if item.id == Path(row.sound).stem), items[0] if items else None)


def _heard(rows: Sequence[GeneratedImage], items: Sequence[Item]) -> str:
    """What was heard of the items; one whose window is the whole sound does not tell the two apart."""
    found = {
        "whole" if row.sound_sha256[0] == item.sound.sha256 else "window"
        for row, item in zip(rows, items, strict=True)
        if item.window is None or item.window.sha256 != item.sound.sha256
    }
    return " and ".join(sorted(found, reverse=True)) or "whole"


def _picture(folder: Path, row: GeneratedImage, item: Item, look: Look) -> Picture:
    settings = row.settings
    donor = settings.donor if isinstance(settings, ControlSettings) and settings.donor != item.id else None
    return Picture(
        item=item,
        seed=row.seed,
        start_sec=row.start_sec,
        path=(folder / row.image).absolute(),
        sha256=look.sha256,
        donor=donor,
    )


def _refuse_twice(folder: Path, rows: Sequence[GeneratedImage], items: Sequence[Item]) -> None:
    counted = Counter((item.id, row.seed, row.start_sec) for row, item in zip(rows, items, strict=True))
    if twice := next((key for key, count in counted.items() if count > 1), None):
        raise InputError(f"{folder}: names item {twice[0]} with seed {twice[1]} twice; a manifest has each once")
    images = Counter(row.image for row in rows)
    if again := next((image for image, count in images.items() if count > 1), None):
        raise InputError(f"{folder}: names {again} for {images[again]} images; a manifest has each once")
