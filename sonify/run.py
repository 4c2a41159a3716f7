"""Doing the work: what `sonify run` and the commands for single stages call, and what a notebook calls."""

import fcntl
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from sonify import layout
from sonify.config import Config
from sonify.engine.commits import Count, total
from sonify.engine.files import clear_temporary
from sonify.engine.job import Task
from sonify.engine.limits import HINT_NO_CAPTIONS, check_any_concept, check_any_left, check_faults
from sonify.engine.local import LocalExecutor
from sonify.engine.plan import Plan, check_settings, plan_stage
from sonify.engine.progress import Display, StageProgress, open_display
from sonify.engine.record import (
    RunRecord,
    read_record,
    with_stage,
    with_time,
    write_record,
)
from sonify.engine.stage import Stage
from sonify.engine.worker import Outcome
from sonify.errors import DiskFull, InputError, WorkError
from sonify.prepare import prepare
from sonify.rows import Reason
from sonify.stages.checks import count_foils
from sonify.stages.table import stages_of

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Does a stage's tasks somewhere."""

    def __call__(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes as tasks end."""
        ...

    def close(self) -> None:
        """Stop what was started."""
        ...


def run(config: Config, stages: Collection[str] | None = None, redo: str | None = None) -> dict[str, Count]:
    """Do what is to do of a run; what is done is skipped, so the same call resumes.

    Args:
        config: the run.
        stages: names of stages to do, all where None. Stages upstream of them must be done.
        redo: a stage to replace, with all that depends on it.

    Returns:
        Rows in, out and rejected of each stage that was looked at.

    Raises:
        InputError: the input or the configuration is wrong, or the run was made under another one.
        WorkError: units were given up, faults passed the limit, the disk is full, or something is damaged.
    """
    chosen = [stage for stage in stages_of(config) if stages is None or stage.name in stages]
    if not chosen:
        raise InputError(
            f"{', '.join(stages or ())}: the configuration has no such section; see configs/sonify/demo.yaml"
        )
    with open_run(config.run_dir), _executor(config) as executor, open_display() as display:
        record = prepare(config, chosen, redo)
        work = _Work(config, record, executor, display)
        return work.do(chosen)


@contextmanager
def open_run(run_dir: Path) -> Iterator[None]:
    """Hold a run directory: one command at a time works in it, and what a killed one left is cleared.

    Raises:
        InputError: the directory cannot be made, or another command works in it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / layout.LOCK).open("w")
    except OSError as error:
        raise InputError(f"run_dir: {run_dir} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"run_dir: another command is at work in {run_dir}; wait for it to end") from error
        clear_temporary(run_dir)
        try:
            yield
        finally:
            clear_temporary(run_dir)


def plan_run(config: Config) -> list[Plan]:
    """What is done and what is to do, without doing or writing anything; units that are not listed yet do not count."""
    record = read_record(config.run_dir)
    plans: dict[str, Plan] = {}
    for stage in stages_of(config):
        check_settings(config.run_dir, stage, record)
        plans[stage.key] = plan_stage(config.run_dir, stage, plans)
    return list(plans.values())


@contextmanager
def _executor(config: Config) -> Iterator[Callable[[], Executor]]:
    """Start the executor when it is first asked for: a finished run needs none."""
    started: list[Executor] = []

    def get() -> Executor:
        if not started:
            started.append(_start_executor(config))
        return started[0]

    try:
        yield get
    finally:
        for executor in started:
            executor.close()


def _start_executor(config: Config) -> Executor:
    if config.engine.kind == "local":
        return LocalExecutor(config)
    from sonify.engine.on_ray import RayExecutor  # noqa: PLC0415 - Ray takes a second to import

    return RayExecutor(config)


class _Work:
    """One call of `run`: the plans so far, the record, and what was given up."""

    def __init__(self, config: Config, record: RunRecord, executor: Callable[[], Executor], display: Display) -> None:
        self._config = config
        self._run_dir = config.run_dir
        self._record = record
        self._executor = executor
        self._display = display
        self._given_up: list[str] = []

    def do(self, chosen: Sequence[Stage]) -> dict[str, Count]:
        """Do the chosen stages in order; the plans of the others are read off the disk."""
        plans: dict[str, Plan] = {}
        keys = [stage.key for stage in chosen]
        for stage in stages_of(self._config):
            plans[stage.key] = plan_stage(self._run_dir, stage, plans)
            if plans[stage.key].stale:
                raise InputError(f"{self._run_dir}: {plans[stage.key].stale}")
            if stage.key in keys:
                self._check_upstream(plans[stage.key])
                self._do_stage(plans[stage.key])
                plans[stage.key] = plan_stage(self._run_dir, stage, plans)
            if stage.key == keys[-1]:
                break
        if self._given_up:
            raise WorkError(
                f"{len(self._given_up)} units were given up and stay undone ({self._given_up[0]}); the reasons are"
                " above, and the same command tries them again"
            )
        counts = {key: total(stored.commit.rows for stored in plan.done.values()) for key, plan in plans.items()}
        return {stage.key: counts[stage.key] for stage in chosen}

    def _check_upstream(self, plan: Plan) -> None:
        """A stage needs something to work on; units that wait for others are named, and the rest is done."""
        if self._given_up:
            return
        stage = plan.stage
        before = ", ".join(dict.fromkeys(key.partition("/")[0] for key in (*stage.upstream, *stage.upstream_whole)))
        if not plan.done and not plan.tasks:
            raise InputError(
                f"{stage.key}: nothing to work on: {before} come before it; `sonify run` does all in order"
            )
        if plan.waiting:
            self._given_up.append(f"{stage.key} {plan.waiting[0]}")
            log.error("%s: %d units wait for %s", stage.key, len(plan.waiting), before)

    def _do_stage(self, plan: Plan) -> None:
        stage = plan.stage
        self._record = with_stage(self._record, stage)
        write_record(self._run_dir, self._record)
        tally = total(stored.commit.rows for stored in plan.done.values())
        if plan.tasks:
            stage.check()
            tally = self._do_tasks(plan, tally)
        check_faults(stage, tally, self._config.engine.max_fault_ratio)
        check_any_concept(stage, tally)
        check_any_left(stage, tally)
        if stage.name == "concepts" and (missing := tally.rejected.get(Reason.NO_CAPTION)):
            log.warning("%s: %s image(s) without a caption: %s", stage.key, f"{missing:,}", HINT_NO_CAPTIONS)
        if stage.name == "checks":
            foils = count_foils(self._run_dir, stage.part)
            log.info("%s: %d of %d things that are not there were confirmed", stage.key, foils.confirmed, foils.asked)

    def _do_tasks(self, plan: Plan, before: Count) -> Count:
        tally = before
        progress = StageProgress(plan.stage.key, len(plan.done), len(plan.done) + len(plan.tasks) + len(plan.waiting))
        self._display.start(progress)
        started = time.monotonic()
        try:
            for outcome in self._executor()(plan.stage, plan.tasks):
                if outcome.commit is None:
                    self._give_up(plan.stage, outcome)
                    continue
                tally = total([tally, outcome.commit.rows])
                progress.add(outcome.commit.rows)
                self._display.update(progress)
                check_faults(plan.stage, tally, self._config.engine.max_fault_ratio)
        finally:
            rows = tally.rows_in - before.rows_in
            self._record = with_time(self._record, plan.stage, time.monotonic() - started, rows)
            write_record(self._run_dir, self._record)
        self._display.finish(progress)
        return tally

    def _give_up(self, stage: Stage, outcome: Outcome) -> None:
        if outcome.disk_full:
            raise DiskFull(outcome.error)
        log.error("%s unit %s given up: %s", stage.key, outcome.unit, outcome.error)
        self._given_up.append(f"{stage.key} {outcome.unit}")
