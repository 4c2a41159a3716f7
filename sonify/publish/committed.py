"""What of a run may be published: the tables of finished units, each checked against its commit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from sonify import layout
from sonify.config import Config, Place
from sonify.engine.commits import DamagedRecord, read_commit
from sonify.engine.files import FileRecord
from sonify.engine.plan import Plan
from sonify.engine.store import sha256_of
from sonify.engine.tables import read_rows
from sonify.errors import InputError, WorkError
from sonify.rows import Pair, Render
from sonify.run import plan_run

Scene = tuple[Pair, Render]


@dataclass(frozen=True, slots=True)
class CommittedUnit:
    """A unit of a stage, and the files that were committed, by path."""

    run_dir: Place
    name: str
    files: Mapping[str, FileRecord]

    def table(self, path: str) -> Place:
        """A small file of the unit, checked.

        Raises:
            WorkError: it is not what was committed.
        """
        if path not in self.files or sha256_of(self.run_dir / path) != self.files[path].sha256:
            raise WorkError(
                f"{self.run_dir / path}: not what was committed; `sonify verify` with --repair withdraws it"
            )
        return self.run_dir / path


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
    for unit in sorted(plan.done):
        place = run_dir / layout.commit(plan.stage.name, plan.stage.digest, unit)
        try:
            files = read_commit(place).commit.files
        except DamagedRecord as error:
            raise WorkError(f"{place}: {error}; `sonify verify` with --repair withdraws it") from error
        yield CommittedUnit(run_dir, unit, {file.path: file for file in files})


def rendered_images(paired: CommittedUnit, rendered: CommittedUnit) -> Iterator[tuple[Scene, ...]]:
    """The scenes of each image of a unit that was rendered, in the order of keys.

    Raises:
        WorkError: pairs and renders do not fit.
    """
    renders = {
        (render.image, render.scene): render
        for render in read_rows(rendered.table(layout.renders(rendered.name)), Render)
    }
    pairs = read_rows(paired.table(layout.pairs(paired.name)), Pair)
    for _, of_image in groupby(pairs, key=lambda pair: pair.image):
        scenes = tuple(
            (pair, render) for pair in of_image if (render := renders.pop((pair.image, pair.scene), None)) is not None
        )
        if scenes:
            yield scenes
    if renders:
        raise WorkError(f"{paired.run_dir}: unit {paired.name} has renders without pairs; run `sonify verify`")
