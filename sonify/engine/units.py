"""The input listing: which rows make up which unit, frozen when first seen.

Listings lie at RUN/units/<stage>/<unit>.parquet. New input becomes new units; nothing ever moves between units.
A listing that was lost leaves its number free, and the input that is then in no unit takes that number again.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from sonify import layout
from sonify.config import Config
from sonify.engine.files import write_atomically
from sonify.engine.tables import read_rows, write_rows
from sonify.rows import ImageRef, SoundRef
from sonify.sources.images import list_images
from sonify.sources.sounds import list_sounds

# Recordings in a unit: some minutes of work, and a 64 MB file of clips for recordings of 20 s.
RECORDINGS_IN_UNIT = 100


def listed_units(run_dir: Path, stage: str) -> list[str]:
    """The units that are frozen, in order."""
    return sorted(path.stem for path in (run_dir / layout.UNITS / stage).glob("*.parquet"))


def freeze_sounds(config: Config) -> None:
    """Give every recording that is in no unit yet a place in a new one."""
    known = {(ref.corpus, ref.file) for ref in _frozen(config.run_dir, "pool", SoundRef)}
    new = (ref for ref in list_sounds(config.audio) if (ref.corpus, ref.file) not in known)
    _freeze(config.run_dir, "pool", SoundRef, _blocks(new, RECORDINGS_IN_UNIT))


def freeze_images(config: Config) -> None:
    """Give every image (or archive) that is in no unit yet a place in a new one.

    A sample's bound is frozen with the first listing: images that come later join where they fall below it.
    """
    known: dict[str, int] = {ref.uri: ref.below for ref in _frozen(config.run_dir, "concepts", ImageRef)}
    units = list_images(config.images, config.seed, below=next(iter(known.values()), None))
    if known:
        new = (ref for unit in units for ref in unit if ref.uri not in known)
        units = _blocks(new, getattr(config.images, "shard_size", 1))
    _freeze(config.run_dir, "concepts", ImageRef, units)


def _frozen(run_dir: Path, stage: str, row_type: type) -> Iterator[Any]:
    for unit in listed_units(run_dir, stage):
        yield from read_rows(run_dir / layout.listing(stage, unit), row_type)


def _freeze(run_dir: Path, stage: str, row_type: type, units: Iterable[Sequence[Any]]) -> None:
    taken = set(listed_units(run_dir, stage))
    free = (name for name in (f"{n:06d}" for n in count()) if name not in taken)
    for rows in units:
        buffer = io.BytesIO()
        write_rows(buffer, row_type, rows)
        write_atomically(run_dir, layout.listing(stage, next(free)), buffer.getvalue())


def _blocks(rows: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(rows)
    while block := tuple(islice(iterator, size)):
        yield block
