"""Doing the work: what `sonify run` and the commands for single stages call, and what a notebook calls."""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Protocol

from sonify import layout
from sonify.config import Config
from sonify.dataset.render_from import adopt_settings
from sonify.engine.job import Resources, Stage, Task
from sonify.engine.lease import hold
from sonify.engine.plan import Plan, check_settings, plan_stage
from sonify.engine.progress import Display, StageProgress, open_display
from sonify.engine.record import (
    RunRecord,
    read_record,
    with_stage,
    with_time,
    with_trouble,
    with_unit,
    write_record,
)
from sonify.engine.worker import LocalExecutor, Outcome
from sonify.errors import ConcernsAll, DiskFull, InputError, TransientError, WorkError
from sonify.installed import spell, spell_again, spell_redo
from sonify.io.commits import Count, Done, add_clips, done_of, record_of, total
from sonify.io.write import clear_temporary, remove
from sonify.prepare import prepare, stages_below, take_answers
from sonify.rows import NOT_FAULTS, Reason
from sonify.sources.mistakes import HOW_TO_CAPTION
from sonify.stages.checks import count_foils
from sonify.stages.table import stages_of
from sonify.stores import Place
from sonify.terminal import stop_if_asked

log = logging.getLogger(__name__)
# A store that refuses, a model that is gone: what is wrong with so many units is not the units.
MOST_IN_A_ROW = 50


class Executor(Protocol):
    """Does a stage's tasks somewhere."""

    def __call__(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes as tasks end."""
        ...

    def held_by(self, stage: Stage) -> Resources:
        """What a worker of a stage takes, once it is at work."""
        ...

    def close(self) -> None:
        """Stop what was started."""
        ...


def run(
    config: Config,
    stages: Collection[str] | None = None,
    redo: str | None = None,
    concepts_from: Place | None = None,
    *,
    probe: bool = False,
) -> dict[str, Count]:
    """Do what is to do of a run; what is done is skipped, so the same call resumes.

    Args:
        config: the run.
        stages: names of stages to do, all where None. Stages upstream of them must be done.
        redo: a stage to replace, with all that depends on it.
        concepts_from: another run over the same images, whose concepts this one takes over.
        probe: do one unit of each stage whose rate is not known yet, and all of what another of the stages reads whole
            (the pool, for pairing and rendering). It is work of the run like any other, which goes on from there.

    Returns:
        Rows in, out and rejected of each stage that was looked at.

    Raises:
        InputError: the input or the configuration is wrong, or the run was made under another one.
        WorkError: units were given up, faults passed the limit, the disk is full, or something is damaged.
    """
    config = adopt_settings(config)
    if config.engine.kind == "ray":
        from sonify.engine.cluster import check_seen_by_workers  # noqa: PLC0415 - Ray takes a second to import

        check_seen_by_workers(config.engine, config.run_dir)
    table = stages_of(config)
    if redo is not None:
        table = stages_of(config, anew=stages_below(table, redo))
    chosen = [stage for stage in table if stages is None or stage.name in stages]
    if not chosen:
        raise InputError(
            f"{', '.join(stages or ())}: the configuration has no such section;"
            f" `{spell('init', 'demo')}` writes one that has"
        )
    with open_run(config.run_dir), _executor(config, table) as executor, open_display() as display:
        if concepts_from is not None:
            take_answers(config, table, concepts_from)
        record = prepare(config, table, chosen, redo)
        work = _Work(config, record, executor, display, probe)
        return work.do(table, chosen)


@contextmanager
def open_run(run_dir: Place) -> Iterator[None]:
    """Hold a run directory: one command at a time works in it, and what a killed one left is cleared.

    Raises:
        InputError: the directory cannot be made, or another command works in it.
        TransientError: the store that it lies in cannot be reached.
    """
    with hold(run_dir / layout.LOCK):
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
def _executor(config: Config, stages: Sequence[Stage]) -> Iterator[Callable[[], Executor]]:
    """Start the executor when it is first asked for: a finished run needs none."""
    started: list[Executor] = []

    def get() -> Executor:
        if not started:
            started.append(_start_executor(config, stages))
        return started[0]

    try:
        yield get
    finally:
        for executor in started:
            executor.close()


def _start_executor(config: Config, stages: Sequence[Stage]) -> Executor:
    if config.engine.kind == "local":
        return LocalExecutor(config.run_dir, stages)
    from sonify.engine.on_ray import RayExecutor  # noqa: PLC0415 - Ray takes a second to import

    return RayExecutor(config.engine, config.run_dir, stages)


class _Work:
    """One call of `run`: the plans so far, the record, and what was given up."""

    def __init__(
        self, config: Config, record: RunRecord, executor: Callable[[], Executor], display: Display, probe: bool
    ) -> None:
        self._probe = probe
        self._run_dir = config.run_dir
        self._max_fault_ratio = config.engine.max_fault_ratio
        self._record = record
        self._look = f"`{spell('rejects', config.run_dir)}` names each with its reason"
        self._executor = executor
        self._display = display
        self._given_up: list[str] = []
        self._reasons: dict[str, str] = {}  # of the first unit that each stage gave up
        self._in_a_row = 0

    def do(self, stages: Sequence[Stage], chosen: Sequence[Stage]) -> dict[str, Count]:
        """Do the chosen stages in order; the plans of the others are read off the run."""
        plans: dict[str, Plan] = {}
        keys = [stage.key for stage in chosen]
        for stage in stages:
            plan = plan_stage(self._run_dir, stage, plans)
            if plan.stale:
                raise InputError(f"{self._run_dir}: {plan.stale}")
            if stage.key in keys and self._probe:
                plan = self._do_stage(plan, self._choose(plan, plans, chosen))
            elif stage.key in keys:
                self._check_upstream(plan)
                plan = self._do_stage(plan, plan.tasks)
            plans[stage.key] = plan
            if stage.key == keys[-1]:
                break
        if self._given_up:
            first = next(iter(self._reasons.values()), "it waits for others")
            raise WorkError(
                f"{len(self._given_up)} units were given up and stay undone ({self._given_up[0]}: {first}); the same"
                " command tries them again"
            )
        return {key: plans[key].rows for key in keys}

    def _check_upstream(self, plan: Plan) -> None:
        """A stage needs something to work on; units that wait for others are named, and the rest is done."""
        if self._given_up:
            return
        stage = plan.stage
        before = ", ".join(dict.fromkeys(key.partition("/")[0] for key in (*stage.upstream, *stage.upstream_whole)))
        if not plan.done and not plan.tasks:
            raise InputError(
                f"{stage.key}: nothing to work on: {before} come before it; `{spell_again()}` does all in order"
            )
        if plan.waiting:
            self._given_up.append(f"{stage.key} {plan.waiting[0]}")
            log.error("%s: %d units wait for %s", stage.key, len(plan.waiting), before)

    def _choose(self, plan: Plan, plans: Mapping[str, Plan], chosen: Sequence[Stage]) -> tuple[Task, ...]:
        """What a probe does of a stage: all where another reads it whole, one unit where its rate is not known.

        That is one which most of the stages before it have done: what follows can be done for it as well.
        """
        stage = plan.stage
        if readers := [other.key for other in chosen if stage.key in other.upstream_whole]:
            if len(plan.tasks) > 1:
                log.info("%s: all of it, which %s read whole", stage.key, " and ".join(readers))
            return plan.tasks
        known = self._record.stages.get(stage.key)
        if known and known.measured and known.measured.rows:
            return ()
        if not plan.tasks:
            log.info("%s: not probed: no unit of it can be done now", stage.key)
            return ()
        beside = [other.done for other in plans.values() if other.stage.listing == stage.listing]
        return (max(plan.tasks, key=lambda task: sum(task.unit in done for done in beside)),)

    def _do_stage(self, plan: Plan, tasks: Sequence[Task]) -> Plan:
        """Do some of what is to do of a stage, and return its plan as it is then."""
        stage = plan.stage
        self._note(with_stage(self._record, stage))
        try:
            plan = self._do_and_check(plan, tasks)
        except (InputError, TransientError, WorkError) as error:
            self._note(with_trouble(self._record, stage, str(error)))
            raise
        self._note(with_trouble(self._record, stage, self._reasons.get(stage.key, "")))
        return plan

    def _do_and_check(self, plan: Plan, tasks: Sequence[Task]) -> Plan:
        stage = plan.stage
        for place in plan.broken:  # a store takes no second commit of a unit
            remove(place)
        if tasks:
            stage.check()
            if stage.acted:
                self._note(replace(self._record, acted=asdict(stage.acted())))
            plan = self._do_tasks(plan, tasks)
        check_faults(stage, plan.rows, self._max_fault_ratio, self._look)
        if not self._probe or plan.complete:  # one unit may well hold nothing
            check_any_left(plan, self._look)
        if stage.name == "concepts" and (missing := plan.rows.rejected.get(Reason.NO_CAPTION)):
            log.warning("%s: %s image(s) without a caption: %s", stage.key, f"{missing:,}", hint_no_captions())
        if stage.name == "checks":
            foils = count_foils(self._run_dir, stage.part)
            log.info("%s: %d of %d things that are not there were confirmed", stage.key, foils.confirmed, foils.asked)
        return plan

    def _do_tasks(self, plan: Plan, tasks: Sequence[Task]) -> Plan:
        done: dict[str, Done] = {}
        recalled = frozenset(plan.stage.units_answered(self._run_dir, [task.unit for task in tasks]))
        record = self._record
        tally, clips = plan.rows, plan.clips
        progress = StageProgress(plan.stage.key, len(plan.done), len(plan.done) + len(plan.tasks) + len(plan.waiting))
        self._display.start(progress)
        started = time.monotonic()
        try:
            executor = self._executor()
            for outcome in executor(plan.stage, tasks):
                stop_if_asked()
                if outcome.commit is None:
                    self._give_up(plan.stage, outcome)
                    continue
                self._in_a_row = 0
                commit = outcome.commit
                done[commit.unit] = done_of(commit, hashlib.sha256(record_of(commit)).hexdigest())
                if commit.unit not in recalled:  # of those a model is asked nothing
                    record = with_unit(record, plan.stage, executor.held_by(plan.stage), outcome)
                tally, clips = total([tally, commit.rows]), add_clips(clips, commit.clips)
                progress.add(commit.rows)
                self._display.update(progress)
                check_faults(plan.stage, tally, self._max_fault_ratio, self._look)
        finally:
            rows = tally.rows_in - plan.rows.rows_in
            self._note(with_time(record, plan.stage, time.monotonic() - started, rows))
        self._display.finish(progress)
        return plan.after(done, tally, clips)

    def _note(self, record: RunRecord) -> None:
        if record != self._record:
            self._record = record
            write_record(self._run_dir, record)

    def _give_up(self, stage: Stage, outcome: Outcome) -> None:
        if outcome.disk_full:
            raise DiskFull(outcome.error)
        if outcome.concerns_all:
            raise ConcernsAll(f"{stage.key}: {outcome.error}; units that are done stay, and the same command goes on")
        log.error("%s unit %s given up: %s", stage.key, outcome.unit, outcome.error)
        self._given_up.append(f"{stage.key} {outcome.unit}")
        self._reasons.setdefault(stage.key, outcome.error.strip().rpartition("\n")[2])  # of a traceback the last line
        self._in_a_row += 1
        if self._in_a_row == MOST_IN_A_ROW:
            raise WorkError(
                f"{stage.key}: {MOST_IN_A_ROW} units one after another were given up, and none was done meanwhile; the"
                " reasons are above, and the same command tries them again"
            )


# Fewer rows than this say nothing about a share of faults.
ROWS_BEFORE_FAULT_LIMIT = 1000


def hint_no_captions() -> str:
    """What to do where images have no captions."""
    return f"{HOW_TO_CAPTION}, then `{spell_redo('concepts')}`"


def check_faults(stage: Stage, rows: Count, max_fault_ratio: float, look: str) -> None:
    """Stop a stage that mostly breaks."""
    if rows.rows_in < ROWS_BEFORE_FAULT_LIMIT:
        return
    faults = {reason: n for reason, n in rows.rejected.items() if Reason(reason) not in NOT_FAULTS}
    share = sum(faults.values()) / rows.rows_in
    if share > max_fault_ratio:
        worst = max(faults, key=lambda reason: faults[reason])
        raise WorkError(
            f"{stage.key}: {share:.1%} of {rows.rows_in:,} rows are faults (most: {worst}), above"
            f" engine.max_fault_ratio = {max_fault_ratio:.1%}; {look}; mend the cause and `{spell_redo(stage.name)}`,"
            " or raise the limit"
        )
    check_any_concept(stage, rows, look)


def check_any_concept(stage: Stage, rows: Count, look: str) -> None:
    """Stop where an extractor hears nothing in any image: a broken model must not burn the budget."""
    if stage.name == "concepts" and rows.rows_in and not rows.rows_out:
        hint = hint_no_captions() if rows.rejected.get(Reason.NO_CAPTION) else look
        if Reason.NO_ANSWER in rows.rejected:
            hint += f"; mend the cause and `{spell_redo('answers')}`"
        raise WorkError(f"{stage.key}: no image has a sounding concept ({_count_reasons(rows)}); {hint}")


# What a stage has not done that hands nothing on.
NOTHING_LEFT = {
    "pool": "no recording could be read",
    "embeddings": "no recording could be embedded",
    "listen": "no clip could be heard, or all were let go",
    "duplicates": "no recording could be compared",
    "checks": "no image could be checked",
    "pair": "no image got a sound",
    "render": "no image could be rendered",
    "features": "no sample could be made",
}


def check_any_left(plan: Plan, look: str) -> None:
    """Stop where a stage has nothing to hand on: an empty dataset is no success."""
    stage, rows = plan.stage, plan.rows
    check_any_concept(stage, rows, look)
    if rows.rows_in and not rows.rows_out and stage.name in NOTHING_LEFT:
        limit = " (retrieval.limit or min_cosine, perhaps)" if rows.rejected.get(Reason.NO_MATCH) else ""
        raise WorkError(
            f"{stage.key}: {NOTHING_LEFT[stage.name]} ({_count_reasons(rows)}); {look}; mend the cause{limit} and"
            f" `{spell_redo(stage.name)}`"
        )
    if plan.complete and not rows.rows_in and not stage.upstream:
        raise WorkError(f"{stage.key}: nothing is in what was listed: archives or tables without a single row")


def _count_reasons(rows: Count) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in rows.rejected.items())
