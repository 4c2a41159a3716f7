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


def freeze_sounds(config: Config, again: bool = False) -> None:
    """Give every recording that is in no unit yet a place in a new one; `again` also reads the known ones anew."""
    refs = list_sounds(config.audio)
    if again:
        refs = iter(_refresh(config.run_dir, "pool", SoundRef, {(ref.corpus, ref.file): ref for ref in refs}))
    known = {(ref.corpus, ref.file) for ref in _frozen(config.run_dir, "pool", SoundRef)}
    new = (ref for ref in refs if (ref.corpus, ref.file) not in known)
    _freeze(config.run_dir, "pool", SoundRef, _blocks(new, RECORDINGS_IN_UNIT))


def freeze_images(config: Config, again: bool = False) -> None:
    """Give every image (or archive) that is in no unit yet a place in a new one; `again` also reads the known anew.

    A sample's bound is frozen with the first listing: images that come later join where they fall below it.
    """
    known: dict[str, int] = {ref.uri: ref.below for ref in _frozen(config.run_dir, "concepts", ImageRef)}
    units = list_images(config.images, config.seed, below=next(iter(known.values()), None))
    if known:
        refs = (ref for unit in units for ref in unit)
        if again:
            refs = iter(_refresh(config.run_dir, "concepts", ImageRef, {ref.uri: ref for ref in refs}))
        new = (ref for ref in refs if ref.uri not in known)
        units = _blocks(new, getattr(config.images, "shard_size", 1))
    _freeze(config.run_dir, "concepts", ImageRef, units)


def _refresh(run_dir: Path, stage: str, row_type: type, found: dict[Any, Any]) -> list[Any]:
    """Write every listing again as its input is now, without what is gone, and return what is in none.

    Rows stay in their units: what was recorded of them there is found again.
    """
    for unit in listed_units(run_dir, stage):
        path = run_dir / layout.listing(stage, unit)
        frozen = list(read_rows(path, row_type))
        rows = [found.pop(key) for key in map(_identity, frozen) if key in found]
        if not rows:
            path.unlink()
        elif rows != frozen:
            _write_listing(run_dir, stage, unit, row_type, rows)
    return list(found.values())


def _identity(ref: ImageRef | SoundRef) -> Any:
    return ref.uri if isinstance(ref, ImageRef) else (ref.corpus, ref.file)


def _frozen(run_dir: Path, stage: str, row_type: type) -> Iterator[Any]:
    for unit in listed_units(run_dir, stage):
        yield from read_rows(run_dir / layout.listing(stage, unit), row_type)


def _freeze(run_dir: Path, stage: str, row_type: type, units: Iterable[Sequence[Any]]) -> None:
    taken = set(listed_units(run_dir, stage))
    free = (name for name in (f"{n:06d}" for n in count()) if name not in taken)
    for rows in units:
        _write_listing(run_dir, stage, next(free), row_type, rows)


def _write_listing(run_dir: Path, stage: str, unit: str, row_type: type, rows: Sequence[Any]) -> None:
    buffer = io.BytesIO()
    write_rows(buffer, row_type, rows)
    write_atomically(run_dir, layout.listing(stage, unit), buffer.getvalue())


def _blocks(rows: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(rows)
    while block := tuple(islice(iterator, size)):
        yield block
