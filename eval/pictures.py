"""What a model made for a suite: its manifest, joined with the items by the sounds that it names."""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from eval.suites.suite import Item, Suite
from sonify.errors import InputError
from train.manifest import ControlSettings, GeneratedImage, read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image of an item; `donor` is the item that it truly belongs to, where that is another."""

    item: Item
    seed: int
    start_sec: float
    path: Path
    donor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """All images of a model for a suite. `missing` are items without one, `unusable` files that are no picture."""

    folder: Path
    model: str
    model_sha256: str
    pictures: tuple[Picture, ...]
    missing: tuple[str, ...]
    unusable: Mapping[str, str]
    trained_on: tuple[str, ...]


def read_made(suite: Suite, folder: Path) -> Made:
    """Join a folder's manifest with the suite.

    An image that cannot be decoded is not counted and said; so is an item without an image.

    Raises:
        InputError: there is no manifest, it is of other sounds or of several models, or names an image twice.
    """
    rows = read_manifest(folder)
    if not rows:
        raise InputError(f"{folder}: its manifest names no image")
    models = {(row.model, row.model_sha256) for row in rows}
    if len(models) > 1:
        raise InputError(
            f"{folder}: expected images of one model, found {len(models)}; evaluate each in its own folder"
        )
    by_sound = _by_sound(suite)
    pictures: list[Picture] = []
    unusable: dict[str, str] = {}
    foreign: list[str] = []
    for row in rows:
        item = _item_of(row, by_sound)
        if item is None:
            foreign.append(row.sound)
        elif why := _undecodable(folder / row.image):
            unusable[row.image] = why
        else:
            pictures.append(_picture(folder, row, item))
    if foreign:
        raise InputError(
            f"{folder}: {len(foreign)} of {len(rows)} images are of sounds that are not in the suite {suite.name}, such"
            f" as {foreign[0]}; make the images from {suite.folder / 'sounds.csv'}"
        )
    _refuse_twice(folder, pictures)
    there = {picture.item.id for picture in pictures}
    return Made(
        folder=folder.absolute(),
        model=rows[0].model,
        model_sha256=rows[0].model_sha256,
        pictures=tuple(sorted(pictures, key=lambda picture: (picture.item.id, picture.seed, picture.start_sec))),
        missing=tuple(item.id for item in suite.items if item.id not in there),
        unusable=unusable,
        trained_on=getattr(rows[0].settings, "trained_on", ()),
    )


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


def _undecodable(path: Path) -> str:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return " ".join(str(error).split())[:200]
    return ""


def _picture(folder: Path, row: GeneratedImage, item: Item) -> Picture:
    settings = row.settings
    donor = settings.donor if isinstance(settings, ControlSettings) and settings.donor != item.id else None
    return Picture(item=item, seed=row.seed, start_sec=row.start_sec, path=(folder / row.image).absolute(), donor=donor)


def _refuse_twice(folder: Path, pictures: list[Picture]) -> None:
    counted = Counter((picture.item.id, picture.seed, picture.start_sec) for picture in pictures)
    if twice := next((key for key, count in counted.items() if count > 1), None):
        raise InputError(f"{folder}: names item {twice[0]} with seed {twice[1]} twice; a manifest has each once")
