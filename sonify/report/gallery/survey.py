"""One pass over a run's tables: figures of all of it, and the images to show.

A unit is in memory at a time; beyond it only the chosen images are kept.
"""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np

from sonify import layout
from sonify.errors import InputError, WorkError
from sonify.io.places import size_of, stems
from sonify.io.tables import read_rows
from sonify.keys import hash64
from sonify.rows import Clip, Pair, Render
from sonify.stores import Place

COSINE_STEP = 0.05
GAIN_STEP_DB = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One soundscape of an image: what was paired and what rendering did."""

    pair: Pair
    render: Render


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A rendered image with all its scenes; the unit names its shard."""

    key: str
    unit: str
    split: str
    scenes: tuple[Scene, ...]


class DistinctCounter:
    """Counts distinct names in fixed memory (linear counting).

    Exact up to some thousand names; 2 million are counted to 0.01 %. The table is 64 MiB of zero pages, of
    which a run touches what it uses.
    Source: Whang et al., "A linear-time probabilistic counting algorithm", ACM TODS 15 (1990).
    """

    SLOTS = 1 << 26

    def __init__(self) -> None:
        self._seen = np.zeros(self.SLOTS, dtype=np.bool_)

    def add(self, name: str) -> None:
        """Note a name, seen before or not."""
        self._seen[hash64("distinct", name) % self.SLOTS] = True

    def count(self) -> int:
        """How many different names were added."""
        return round(-self.SLOTS * math.log1p(-np.count_nonzero(self._seen) / self.SLOTS))


@dataclass(slots=True, kw_only=True)
class Summary:
    """Figures of a whole run. The histograms count steps: bin 3 of `cosines` starts at 3 * COSINE_STEP."""

    run: str
    images: int = 0
    scenes: int = 0
    limited_scenes: int = 0
    clips: DistinctCounter = field(default_factory=DistinctCounter)
    concepts_in_scene: Counter[int] = field(default_factory=Counter)
    cosines: Counter[int] = field(default_factory=Counter)
    gains_db: Counter[int] = field(default_factory=Counter)

    def add(self, picture: Picture) -> None:
        """Count an image, its scenes and their sources."""
        self.images += 1
        self.scenes += len(picture.scenes)
        self.limited_scenes += sum(scene.render.mix_gain_db < 0 for scene in picture.scenes)
        for scene in picture.scenes:
            self.concepts_in_scene[len(scene.pair.sources)] += 1
            for source in scene.pair.sources:
                self.clips.add(source.clip)
                self.cosines[math.floor(source.cosine / COSINE_STEP)] += 1
                self.gains_db[math.floor(source.gain_db / GAIN_STEP_DB)] += 1


def survey_run(run_dir: Place, num_pictures: int) -> tuple[Summary, list[Picture]]:
    """Return the run's figures and the `num_pictures` images with the lowest hash, sorted by key.

    Raises:
        InputError: nothing is rendered.
        WorkError: a rendered scene has no pair.
    """
    summary = Summary(run=(run_dir.resolve() if isinstance(run_dir, Path) else run_dir).name)
    chosen: list[tuple[int, str, Picture]] = []
    for unit in stems(run_dir / layout.RENDERS):
        pictures = _read_unit(run_dir, unit)
        for picture in pictures:
            summary.add(picture)
        candidates = ((hash64("gallery", picture.key), picture.key, picture) for picture in pictures)
        chosen = heapq.nsmallest(num_pictures, chain(chosen, candidates), key=itemgetter(0, 1))
    if not chosen:
        raise InputError(f"{run_dir}: no rendered images to show; make them with `sonify run --config FILE`")
    return summary, [picture for _, _, picture in sorted(chosen, key=itemgetter(1))]


def _read_unit(run_dir: Place, unit: str) -> list[Picture]:
    rendered = {(row.image, row.scene): row for row in read_rows(run_dir / layout.renders(unit), Render)}
    pairs = run_dir / layout.pairs(unit)
    if size_of(pairs) is None:
        raise WorkError(f"{pairs}: missing, though the unit is rendered; run `sonify verify {run_dir}`")
    scenes: dict[str, list[Scene]] = {}
    for pair in read_rows(pairs, Pair):
        if render := rendered.pop((pair.image, pair.scene), None):
            scenes.setdefault(pair.image, []).append(Scene(pair=pair, render=render))
    if rendered:
        raise WorkError(f"{pairs}: lacks {len(rendered)} rendered scenes; run `sonify verify {run_dir}`")
    return [
        Picture(key=key, unit=unit, split=found[0].pair.split, scenes=tuple(found)) for key, found in scenes.items()
    ]


def clips_of(run_dir: Place, pictures: Sequence[Picture]) -> dict[str, Clip]:
    """Return the pool's clips that the pictures use, by id.

    Raises:
        WorkError: the pool lacks one.
    """
    wanted = {s.clip for picture in pictures for scene in picture.scenes for s in scene.pair.sources}
    units = stems(run_dir / layout.CLIPS)
    rows = chain.from_iterable(read_rows(run_dir / layout.clips(unit), Clip) for unit in units)
    clips = {row.clip: row for row in rows if row.clip in wanted}
    if missing := wanted - clips.keys():
        raise WorkError(
            f"{run_dir / layout.CLIPS}: lacks {len(missing)} clips that pairs use, such as {min(missing)};"
            f" run `sonify verify {run_dir}`"
        )
    return clips
