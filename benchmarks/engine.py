"""The Ray engine against plain multiprocessing doing the same units of 64 images with the same stage function.

    python -m benchmarks.engine

Two warm workers each; the stage is rendering. Prints one JSON line; the floor is a ratio of 0.95.
"""

import multiprocessing
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.inputs import config_for, write_photos, write_sounds
from benchmarks.measure import interleaved, report
from sonify.config import Config
from sonify.engine.job import Stage, Task, run_task
from sonify.engine.on_ray import RayExecutor
from sonify.engine.plan import plan_stage
from sonify.engine.record import read_record
from sonify.io.write import remove
from sonify.running import run
from sonify.stages.table import stages_of

IMAGES, UNIT, WORKERS = 3200, 64, 2


def stage_named(config: Config, name: str) -> Stage:
    return next(stage for stage in stages_of(config) if stage.name == name)


def tasks_of(config: Config) -> tuple[Task, ...]:
    """The rendering tasks of a run that is done up to the pairs."""
    assert read_record(config.run_dir)
    plans = {}
    for stage in stages_of(config):
        plans[stage.key] = plan_stage(config.run_dir, stage, plans)
    return plans["render"].tasks


class PlainWorker:
    """What a process of the plain pool does with a task."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._job = None

    def __call__(self, task: Task) -> str:
        if self._job is None:
            self._job = stage_named(self._config, "render").load()
        run_task(self._config.run_dir, self._job, task, {})
        return task.unit


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "photos", IMAGES)
        write_sounds(root / "sounds")
        engine = {"kind": "ray", "workers": WORKERS}
        config = config_for(root, "run", UNIT, engine)
        run(config, stages=["pool", "embeddings", "concepts", "pair"])
        tasks = [replace(task, digest="benchmark") for task in tasks_of(config)]
        executor = RayExecutor(config.engine, config.run_dir, stages_of(config))
        stage = stage_named(config, "render")
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            worker = PlainWorker(config)

            def cleared() -> None:
                remove(config.run_dir / "commits" / "render")

            def ours() -> None:
                cleared()
                assert all(outcome.commit for outcome in executor(stage, tasks))

            def theirs() -> None:
                cleared()
                assert len(list(pool.imap_unordered(worker, tasks))) == len(tasks)

            ours_sec, theirs_sec = interleaved(ours, theirs)
        executor.close()
        report("engine", IMAGES / ours_sec, IMAGES / theirs_sec, "images/s", unit_images=UNIT, workers=WORKERS)


if __name__ == "__main__":
    main()
