"""Published scenes in the place of concepts: each row checked, and whether its image is here."""

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from sonify import layout
from sonify.config import Config, FolderImages, Images
from sonify.engine.job import Job
from sonify.errors import InputError
from sonify.io.places import check_mounted, child, is_below, is_file, read_ahead
from sonify.io.tables import TableWriter, read_rows
from sonify.io.write import Transaction
from sonify.publish.rows import PublishedPair
from sonify.published.reading import PublishedFolder, read_image_uris, read_pairs
from sonify.published.settings import published_folder
from sonify.rows import ImageRef, Pair
from sonify.sources.images import images_in


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScene(Pair):
    """A published pair, whether its image is here, and what its mix is to be (`RUN/concepts/published/`)."""

    present: bool
    mix_sha256: str


@dataclass(frozen=True, slots=True)
class PublishedImage:
    """All scenes of one image."""

    scenes: tuple[PublishedScene, ...]

    @property
    def key(self) -> str:
        """The image."""
        return self.scenes[0].image


def load(config: Config) -> Job:
    """The stage that reads published scenes. Accounting counts (image, scene); none is rejected."""
    folder = published_folder(config)
    return Job(
        read=lambda unit: read_published(config, folder, unit),
        process=lambda rows: rows,
        open_sink=lambda unit, transaction, _rejects: SceneSink(transaction, unit),
        batch_rows=images_at_once(config.scenes),
        scenes=config.scenes,
    )


def read_published(config: Config, folder: PublishedFolder, unit: str) -> Iterator[PublishedImage]:
    """The images of a published unit, in the order of keys."""
    rows = read_pairs(folder, unit, config.scenes)
    for pairs, present in _with_presence(config, unit, rows):
        yield PublishedImage(tuple(_scene(pair, present) for pair in pairs))


def _scene(pair: PublishedPair, present: bool) -> PublishedScene:
    values = {field.name: getattr(pair, field.name) for field in fields(Pair)}
    return PublishedScene(**values, mix_sha256=pair.mix_sha256, present=present)


def pair_of(scene: PublishedPair | PublishedScene) -> Pair:
    """A row as the pair that it was."""
    values = {field.name: getattr(scene, field.name) for field in fields(Pair)}
    return Pair(**values)


def images_at_once(scenes: Sequence[str]) -> int:
    """How many images are in work at a time: a folder decides on its scenes, and not on what they take."""
    return max(1, min(512, 4096 // len(scenes)))


def _with_presence(
    config: Config, unit: str, rows: Iterator[tuple[PublishedPair, ...]]
) -> Iterator[tuple[tuple[PublishedPair, ...], bool]]:
    """The images of a unit and whether each is here, from names and headers only."""
    images = config.images
    if isinstance(images, FolderImages):
        yield from read_ahead(lambda pairs: (pairs, _is_here(images, pairs[0].image_uri)), rows)
        return
    refs = read_rows(config.run_dir / layout.listing("concepts", unit), ImageRef)
    keys = _keys_of(images, refs)
    yield from ((pairs, pairs[0].image in keys) for pairs in rows)


def _is_here(images: FolderImages, uri: str) -> bool:
    """Whether an image is there.

    Raises:
        TransientError: nothing is there any more, which says nothing about this image.
    """
    here = is_file(child(images.path, uri))
    if not here:
        check_mounted(images.path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    return here


def _keys_of(images: Images, refs: Iterable[ImageRef]) -> Collection[str]:
    keys: set[str] = set()
    for ref in refs:
        try:
            keys.update(image.key for image in images_in(images, ref))
        except FileNotFoundError as error:
            check_mounted(images.path, error)  # or is everything gone, and not this archive?
    return keys


def refs_of(config: Config, folder: PublishedFolder, unit: str) -> list[ImageRef]:
    """The listing of a published unit: its images, or the archives that they are in.

    Raises:
        InputError: a name leads out of the image set, or into none of its archives.
    """
    suffix = {"folder": "", "parquet": ".parquet"}.get(config.images.kind, ".tar")
    names: dict[str, None] = {}
    for uri in read_image_uris(folder, unit):
        if not is_below(uri):
            raise InputError(f"{folder.place}: unit {unit}: an image_uri that leads elsewhere: {uri[:100]!r}")
        names[container_of(uri, suffix) if suffix else uri] = None
    if "" in names:
        raise InputError(f"{folder.place}: unit {unit}: an image that is in no {suffix} file, as images.kind says")
    return [ImageRef(uri=name) for name in names]


def container_of(uri: str, suffix: str) -> str:
    """The archive or table that an image is in: up to the first part that ends like one; empty where none does."""
    parts = uri.split("/")
    ends = (n + 1 for n, part in enumerate(parts[:-1]) if part.lower().endswith(suffix))
    return "/".join(parts[: next(ends, 0)])


class SceneSink:
    """Writes the scenes of a unit."""

    def __init__(self, transaction: Transaction, unit: str) -> None:
        self._table = TableWriter(transaction.create(layout.concepts(layout.PUBLISHED, unit)), PublishedScene)

    def write(self, row: PublishedImage) -> None:
        """Add all scenes of one image."""
        for scene in row.scenes:
            self._table.write(scene)

    def close(self) -> None:
        """Finish the table."""
        self._table.close()
