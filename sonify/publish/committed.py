"""What of a run may be published: the tables of finished units, each checked against its commit."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sonify import layout
from sonify.config import Config
from sonify.engine.plan import Plan
from sonify.errors import InputError, WorkError
from sonify.io.commits import DamagedRecord, parse_commit, read_commits
from sonify.io.places import for_each, read_whole
from sonify.io.tables import ROWS_IN_GROUP, rows_of
from sonify.io.write import FileRecord
from sonify.rows import Pair, Render
from sonify.run import plan_run
from sonify.stores import Place

Row = TypeVar("Row")
Scene = tuple[Pair, Render]


@dataclass(frozen=True, slots=True)
class CommittedUnit:
    """A unit of a stage, and the files that were committed, by path."""

    run_dir: Place
    name: str
    files: Mapping[str, FileRecord]

    def table(self, path: str) -> "Table":
        """A table of the unit, which is small: it is read whole, and checked.

        Raises:
            WorkError: it is not what was committed.
        """
        record = self.files.get(path)
        data = read_whole(self.run_dir / path) if record else b""
        if not record or hashlib.sha256(data).hexdigest() != record.sha256:
            raise WorkError(
                f"{self.run_dir / path}: not what was committed; `sonify verify` with --repair withdraws it"
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
    """The plans of the stages that a publication is made from: pool, pair and render.

    Raises:
        InputError: something of the run is not done.
    """
    plans = [plan for plan in plan_run(config) if plan.stage.name != "features"]
    for plan in plans:
        if not plan.complete or plan.stale:
            units = len(plan.done) + len(plan.tasks) + len(plan.waiting)
            found = plan.stale or f"{len(plan.done):,} of {units:,} units are done"
            raise InputError(
                f"{config.run_dir}: expected a finished run, and {plan.stage.key}: {found}; `sonify run` does the rest"
            )
    return {plan.stage.name: plan for plan in plans}


def committed_units(run_dir: Place, plan: Plan) -> Iterator[CommittedUnit]:
    """The units of a finished stage, in order.

    Raises:
        WorkError: a commit is damaged.
    """
    units = sorted(plan.done)
    places = (run_dir / layout.commit(plan.stage.name, plan.stage.digest, unit) for unit in units)
    for unit, (place, data) in zip(units, read_commits(places), strict=True):
        try:
            files = parse_commit(place, data).commit.files
        except DamagedRecord as error:
            raise WorkError(f"{place}: {error}; `sonify verify` with --repair withdraws it") from error
        yield CommittedUnit(run_dir, unit, {file.path: file for file in files})


def committed_tables(
    run_dir: Place, plan: Plan, path_of: Callable[[str], str]
) -> Iterator[tuple[CommittedUnit, Table]]:
    """The units of a finished stage with the table that is named after each; from a store, some are read ahead.

    Raises:
        WorkError: a commit or a table is damaged.
    """
    units = committed_units(run_dir, plan)
    return for_each(run_dir, lambda unit: (unit, unit.table(path_of(unit.name))), units)


def rendered_images(unit: CommittedUnit, paired: Table, rendered: Table) -> Iterator[tuple[Scene, ...]]:
    """The scenes of each image of a unit that was rendered, in the order of keys.

    Raises:
        WorkError: pairs and renders do not fit.
    """
    renders = {(render.image, render.scene): render for render in rendered.rows(Render)}
    for _, of_image in groupby(paired.rows(Pair), key=lambda pair: pair.image):
        scenes = tuple(
            (pair, render) for pair in of_image if (render := renders.pop((pair.image, pair.scene), None)) is not None
        )
        if scenes:
            yield scenes
    if renders:
        raise WorkError(f"{unit.run_dir}: unit {unit.name} has renders without pairs; run `sonify verify`")
