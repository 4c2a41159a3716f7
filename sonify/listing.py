"""The input listing: which rows make up which unit, frozen when first seen.

Listings lie at RUN/units/<stage>/<unit>.parquet. New input becomes new units; nothing ever moves between units.
A listing that was lost leaves its number free, and the input that is then in no unit takes that number again.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any

from sonify import layout
from sonify.config import Config
from sonify.engine.plan import listed_units
from sonify.io.places import for_each
from sonify.io.tables import read_rows, read_tables, write_rows
from sonify.io.write import remove, write_atomically
from sonify.published.reading import ClipsFile
from sonify.published.scenes import refs_of
from sonify.published.settings import published_folder
from sonify.published.verified import verify_published
from sonify.rows import ImageRef, SoundRef
from sonify.sources.images import list_images
from sonify.sources.sounds import list_sounds
from sonify.stores import Place

# Recordings in a unit: some minutes of work, and a 64 MB file of clips for recordings of 20 s.
RECORDINGS_IN_UNIT = 100


def freeze_sounds(config: Config, again: bool = False) -> None:
    """Give every recording that is in no unit yet a place in a new one; `again` also reads the known ones anew."""
    refs = list_sounds(config.audio)
    if again:
        refs = iter(_refresh(config.run_dir, "pool", SoundRef, {(ref.corpus, ref.file): ref for ref in refs}))
    known = set(_frozen(config.run_dir, "pool", ("corpus", "file")))
    new = (ref for ref in refs if (ref.corpus, ref.file) not in known)
    _freeze(config.run_dir, "pool", SoundRef, _blocks(new, RECORDINGS_IN_UNIT))


def freeze_images(config: Config, again: bool = False) -> None:
    """Give every image (or archive) that is in no unit yet a place in a new one; `again` also reads the known anew.

    A sample's bound is frozen with the first listing: images that come later join where they fall below it.
    """
    known: dict[str, int] = dict(_frozen(config.run_dir, "concepts", ("uri", "below")))
    units = list_images(config.images, config.seed, below=next(iter(known.values()), None))
    if known:
        refs = (ref for unit in units for ref in unit)
        if again:
            refs = iter(_refresh(config.run_dir, "concepts", ImageRef, {ref.uri: ref for ref in refs}))
        new = (ref for ref in refs if ref.uri not in known)
        units = _blocks(new, getattr(config.images, "shard_size", 1))
    _freeze(config.run_dir, "concepts", ImageRef, units)


def freeze_published(config: Config) -> None:
    """List the images and the files of clips of a published folder, unit by unit, as the folder is now.

    Raises:
        InputError: the folder is damaged, or not what it should be.
    """
    folder = published_folder(config)
    verify_published(folder, config)
    images = {unit: refs_of(config, folder, unit) for unit in folder.data}
    clips = {unit: [ClipsFile(file=name, sha256=folder.files[name])] for unit, name in folder.clips.items()}
    listings = (("concepts", ImageRef, images), ("copies", ClipsFile, clips))
    for stage, row_type, units in listings:
        listed = listed_units(config.run_dir, stage)
        for unit in set(listed) - units.keys():
            remove(config.run_dir / layout.listing(stage, unit))
        for unit, rows in units.items():
            known = read_rows(config.run_dir / layout.listing(stage, unit), row_type) if unit in listed else ()
            if list(known) != rows:
                _write_listing(config.run_dir, stage, unit, row_type, rows)


def _refresh(run_dir: Place, stage: str, row_type: type, found: dict[Any, Any]) -> list[Any]:
    """Write every listing again as its input is now, without what is gone, and return what is in none.

    Rows stay in their units: what was recorded of them there is found again.
    """
    for unit in listed_units(run_dir, stage):
        path = run_dir / layout.listing(stage, unit)
        frozen = list(read_rows(path, row_type))
        rows = [found.pop(key) for key in map(_identity, frozen) if key in found]
        if not rows:
            remove(path)
        elif rows != frozen:
            _write_listing(run_dir, stage, unit, row_type, rows)
    return list(found.values())


def _identity(ref: ImageRef | SoundRef) -> Any:
    return ref.uri if isinstance(ref, ImageRef) else (ref.corpus, ref.file)


def _frozen(run_dir: Place, stage: str, columns: tuple[str, str]) -> Iterator[tuple[Any, Any]]:
    """Two columns of every listing, row by row."""
    for _, table in read_tables(run_dir / layout.UNITS / stage, columns):
        yield from zip(*(table[column].to_pylist() for column in columns), strict=True)


def _freeze(run_dir: Place, stage: str, row_type: type, units: Iterable[Sequence[Any]]) -> None:
    taken = set(listed_units(run_dir, stage))
    free = (name for name in (f"{n:06d}" for n in count()) if name not in taken)
    named = ((next(free), rows) for rows in units)
    for _ in for_each(run_dir, lambda unit: _write_listing(run_dir, stage, unit[0], row_type, unit[1]), named):
        pass


def _write_listing(run_dir: Place, stage: str, unit: str, row_type: type, rows: Sequence[Any]) -> None:
    buffer = io.BytesIO()
    write_rows(buffer, row_type, rows)
    write_atomically(run_dir, layout.listing(stage, unit), buffer.getvalue())


def _blocks(rows: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(rows)
    while block := tuple(islice(iterator, size)):
        yield block
