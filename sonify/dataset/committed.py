"""What a finished run has: the tables of its units, each checked against its commit, for publishing, and its pool.

A rendering of a published dataset is compared with it: whole shards, and the mix of each scene.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sonify import layout
from sonify.config import Config
from sonify.dataset.format import PublishedClip
from sonify.dataset.licences import conditions_of, in_order
from sonify.dataset.read import read_shards
from sonify.dataset.render_from import published_folder
from sonify.engine.plan import Plan, iter_done
from sonify.errors import InputError, WorkError
from sonify.installed import spell, spell_again
from sonify.io.commits import DamagedRecord, parse_commit, read_commits
from sonify.io.machine import usable_cpus
from sonify.io.places import for_each, load_array, read_whole, stems
from sonify.io.tables import ROWS_IN_GROUP, read_columns, read_tables, rows_of
from sonify.io.write import FileRecord
from sonify.media.likeness import fingerprint
from sonify.media.mixing import pcm_sha256
from sonify.rows import Clip, Pair, Render, SoundRef
from sonify.running import plan_run
from sonify.stages.make_pool import names_of
from sonify.stages.table import stages_of
from sonify.stores import Place

Row = TypeVar("Row")
RenderedScene = tuple[Pair, Render]

_POOL_COLUMNS = ("clip", "recording", "corpus", "file", "licence", "sha256")


@dataclass(frozen=True, slots=True)
class CommittedUnit:
    """A unit of a stage, and the files that were committed, by path."""

    run_dir: Place
    name: str
    files: Mapping[str, FileRecord]

    def table(self, path: str) -> "Table":
        """A table of the unit, which is small: it is read whole, and checked."""
        record = self.files.get(path)
        data = read_whole(self.run_dir / path) if record else b""
        if not record or hashlib.sha256(data).hexdigest() != record.sha256:
            raise WorkError(
                f"{self.run_dir / path}: not what was committed;"
                f" `{spell('verify', self.run_dir, '--repair')}` withdraws it"
            )
        return Table(data)


@dataclass(frozen=True, slots=True)
class Table:
    """A table's bytes, which are those that were committed."""

    data: bytes

    def rows(self, row_type: type[Row]) -> Iterator[Row]:
        """Its rows in order, a row group at a time."""
        with pq.ParquetFile(pa.BufferReader(self.data)) as file:
            yield from rows_of(file.iter_batches(ROWS_IN_GROUP), row_type)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some of its columns."""
        return pq.read_table(pa.BufferReader(self.data), columns=list(names))


def finished_stages(config: Config) -> Mapping[str, Plan]:
    """The plans of the stages that a publication is made from: pool, pair and render."""
    plans = [plan for plan in plan_run(config) if plan.stage.name != "features"]
    for plan in plans:
        if not plan.complete or plan.stale:
            units = len(plan.done) + len(plan.tasks) + len(plan.waiting)
            found = plan.stale or f"{len(plan.done):,} of {units:,} units are done"
            raise InputError(
                f"{config.run_dir}: expected a finished run, and {plan.stage.key}: {found};"
                f" `{spell_again()}` does the rest"
            )
    return {plan.stage.name: plan for plan in plans}


def committed_units(run_dir: Place, plan: Plan) -> Iterator[CommittedUnit]:
    """The units of a finished stage, in order."""
    units = sorted(plan.done)
    places = (run_dir / layout.commit(plan.stage.name, plan.stage.digest, unit) for unit in units)
    for unit, (place, data) in zip(units, read_commits(places), strict=True):
        try:
            files = parse_commit(place, data).commit.files
        except DamagedRecord as error:
            raise WorkError(f"{place}: {error}; `{spell('verify', run_dir, '--repair')}` withdraws it") from error
        yield CommittedUnit(run_dir, unit, {file.path: file for file in files})


def committed_tables(
    run_dir: Place, plan: Plan, path_of: Callable[[str], str]
) -> Iterator[tuple[CommittedUnit, Table]]:
    """The units of a finished stage with the table that is named after each; from a store, some are read ahead."""
    units = committed_units(run_dir, plan)
    return for_each(run_dir, lambda unit: (unit, unit.table(path_of(unit.name))), units)


def rendered_images(unit: CommittedUnit, paired: Table, rendered: Table) -> Iterator[tuple[RenderedScene, ...]]:
    """The scenes of each image of a unit that was rendered, in the order of keys."""
    renders = {(render.image, render.scene): render for render in rendered.rows(Render)}
    for _, of_image in groupby(paired.rows(Pair), key=lambda pair: pair.image):
        scenes = tuple(
            (pair, render) for pair in of_image if (render := renders.pop((pair.image, pair.scene), None)) is not None
        )
        if scenes:
            yield scenes
    if renders:
        raise WorkError(
            f"{unit.run_dir}: unit {unit.name} has renders without pairs; run `{spell('verify', unit.run_dir)}`"
        )


class Pool:
    """The pool's clips while scenes are chosen: who may be heard, under what licence, and how often each is.

    Of each clip a number and a few bytes are held; memory follows the pool, and not the scenes.
    """

    def __init__(self, tables: Iterable[tuple[CommittedUnit, Table]], excluded: frozenset[str]) -> None:
        self._units: list[CommittedUnit] = []
        self._numbers: dict[str, int] = {}
        self._licence_of = array("l")
        self._excluded = bytearray()
        self._excluded_names = excluded
        self.named: set[str] = set()  # lines of the exclusion list that name something here
        self._uses = array("q")
        licences: dict[str, int] = {}
        for unit, table in tables:
            self._units.append(unit)
            for row in table.columns(_POOL_COLUMNS).to_pylist():
                self._numbers[row["clip"]] = len(self._numbers)
                self._licence_of.append(licences.setdefault(row["licence"], len(licences)))
                named = excluded & _names(row) if excluded else frozenset()
                self.named |= named
                self._excluded.append(bool(named))
                self._uses.append(0)
        self.licences = tuple(licences)

    def licence_of(self, clip: str) -> str:
        """The licence of a clip, as its corpus writes it."""
        return self.licences[self._licence_of[self._number(clip)]]

    def may_be_named(self, clip: str) -> bool:
        """Whether a clip that is not heard may be named: as far as is known here, the exclusion list is silent.

        Near misses of a dataset that is rendered again may lie in a pool that is not here.
        """
        if clip in self._excluded_names:
            return False
        return clip not in self._numbers or not self.is_excluded(clip)

    def is_excluded(self, clip: str) -> bool:
        """Whether the exclusion list names the clip or its recording."""
        return bool(self._excluded[self._number(clip)])

    def hear(self, clips: Iterable[str]) -> None:
        """Note that a published scene uses these clips."""
        for clip in clips:
            self._uses[self._number(clip)] += 1

    def uses(self, clip: str) -> int:
        """How many published sources are this clip."""
        return self._uses[self._number(clip)]

    def _number(self, clip: str) -> int:
        if clip not in self._numbers:
            raise WorkError(f"the pool holds no clip {clip!r} although a pair uses it; run `{spell('verify', 'RUN')}`")
        return self._numbers[clip]

    def heard(self, sample_rate_hz: int) -> Iterator[tuple[str, list[PublishedClip]]]:
        """The name of each pool unit of which something is heard, and those clips in its order."""
        for unit in self._units:
            table = unit.table(layout.clips(unit.name))
            rows = [(row, clip) for row, clip in enumerate(table.rows(Clip)) if self.uses(clip.clip)]
            if rows:
                try:
                    array = load_array(unit.run_dir / layout.audio(unit.name))
                except ValueError as error:  # its header is not one
                    raise WorkError(
                        f"the pool's samples of unit {unit.name} are damaged: `{spell('verify', unit.run_dir)}`"
                    ) from error
                samples = (array[row] for row, _ in rows)
                with ThreadPoolExecutor(usable_cpus()) as threads:  # a fingerprint takes 5 ms, nearly all in numpy
                    clips = threads.map(_published_clip, (clip for _, clip in rows), samples, repeat(sample_rate_hz))
                yield unit.name, list(clips)


def _names(row: dict[str, str]) -> frozenset[str]:
    """Under what a clip may be excluded."""
    ref = SoundRef(
        corpus=row["corpus"], file=row["file"], recording=row["recording"], text="", licence="", attribution=""
    )
    without_ending = PurePosixPath(ref.key).with_suffix("").as_posix()
    return names_of(ref) | {row["clip"], row["sha256"], without_ending}


def _published_clip(clip: Clip, samples: np.ndarray, sample_rate_hz: int) -> PublishedClip:
    if pcm_sha256(samples) != clip.sha256:
        raise WorkError(
            f"the pool's samples of {clip.clip!r} are damaged; `{spell('verify', 'RUN', '--repair')}` withdraws them"
        )
    return PublishedClip(
        **{name: getattr(clip, name) for name in Clip.__slots__},
        conditions=in_order(conditions_of(clip.licence)),
        fingerprint=fingerprint(samples, sample_rate_hz),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Counts. A shard of which rows were left out before publishing cannot be compared and does not count."""

    shards_identical: int
    shards_different: int
    shards_absent: int
    scenes_identical: int  # the same samples, whatever their encoding
    scenes_different: int
    scenes_absent: int
    sounds: Mapping[str, int]  # of the scenes that were made: exact, equivalent, repaired


def compare_with_published(config: Config) -> Comparison:
    """Compare a finished rendering with what it was made from.

    Raises:
        InputError: the published folder has changed.
        WorkError: a record or table is damaged.
    """
    shards = _compare_shards(config)
    scenes = _compare_scenes(config)
    return Comparison(
        shards_identical=shards[0],
        shards_different=shards[1],
        shards_absent=shards[2],
        scenes_identical=scenes[0],
        scenes_different=scenes[1],
        scenes_absent=scenes[2],
        sounds=_count_copies(config),
    )


def _compare_shards(config: Config) -> tuple[int, int, int]:
    render = next(stage for stage in stages_of(config) if stage.name == "render")
    made = {file.path: file.sha256 for stored in iter_done(config.run_dir, render) for file in stored.commit.files}
    published = [shard for shard in read_shards(published_folder(config)) if shard.complete]
    found = [(made.get(layout.shard(shard.split, shard.unit)), shard.sha256) for shard in published]
    absent = sum(sha256 is None for sha256, _ in found)
    identical = sum(sha256 == expected for sha256, expected in found)
    return identical, len(found) - identical - absent, absent


def _compare_scenes(config: Config) -> tuple[int, int, int]:
    identical = different = absent = 0
    for unit in stems(config.run_dir / layout.RENDERS):
        expected = _mixes(config, layout.concepts(layout.PUBLISHED, unit))
        made = _mixes(config, layout.renders(unit))
        same = sum(expected.get(scene) == sha256 for scene, sha256 in made.items())
        identical += same
        different += len(made) - same
        absent += len(expected.keys() - made.keys())
    return identical, different, absent


def _count_copies(config: Config) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for _, table in read_tables(config.run_dir / layout.PAIRS, ["sources"]):
        counts.update(table["sources"].combine_chunks().flatten().field("copy").to_pylist())
    return dict(sorted(counts.items()))


def _mixes(config: Config, table: str) -> dict[tuple[str, str], str]:
    columns = read_columns(config.run_dir / table, ["image", "scene", "mix_sha256"])
    images, scenes, hashes = (columns[name].to_pylist() for name in ("image", "scene", "mix_sha256"))
    return dict(zip(zip(images, scenes, strict=True), hashes, strict=True))
