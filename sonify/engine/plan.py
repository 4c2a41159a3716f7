"""What of a stage is done and what is to do, read off the commits."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sonify import layout
from sonify.engine.commits import (
    Commit,
    DamagedRecord,
    StoredCommit,
    commit_files,
    read_commit,
    withdraw,
)
from sonify.engine.files import sha256_of
from sonify.engine.job import Task
from sonify.engine.record import RunRecord, describe_difference
from sonify.engine.units import listed_units
from sonify.errors import InputError, WorkError
from sonify.stages.table import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A stage's units: done with their commits, to do, and waiting for a unit upstream that is not done."""

    stage: Stage
    done: Mapping[str, StoredCommit]
    tasks: tuple[Task, ...]
    waiting: tuple[str, ...]


def read_done(run_dir: Path, stage: Stage) -> dict[str, StoredCommit]:
    """The stage's commits under today's digest whose files have the recorded sizes.

    Raises:
        WorkError: a record is damaged.
    """
    done: dict[str, StoredCommit] = {}
    for path in commit_files(run_dir, stage.name, stage.digest):
        try:
            stored = read_commit(path)
        except DamagedRecord as error:
            raise WorkError(f"{path}: {error}; `sonify verify {run_dir} --repair` withdraws it") from error
        if all(_has_size(run_dir / file.path, file.size_bytes) for file in stored.commit.files):
            done[stored.commit.unit] = stored
    return done


def plan_stage(run_dir: Path, stage: Stage, plans: Mapping[str, Plan]) -> Plan:
    """Compare the stage's units with its commits.

    Args:
        run_dir: the run.
        stage: the stage.
        plans: of all stages upstream, by key.

    Raises:
        InputError: a unit was made from other input than there is now.
        WorkError: a stage of which all units are needed is not done.
    """
    units = listed_units(run_dir, stage.listing)
    done = read_done(run_dir, stage)
    whole = {key: _hash_whole(plans[key]) for key in stage.upstream_whole}
    tasks: list[Task] = []
    waiting: list[str] = []
    valid: dict[str, StoredCommit] = {}
    for unit in units:
        inputs = _inputs(run_dir, stage, unit, plans)
        if inputs is None:
            waiting.append(unit)
            continue
        inputs |= whole
        if unit not in done:
            tasks.append(Task(stage=stage.name, part=stage.part, unit=unit, digest=stage.digest, inputs=inputs))
            continue
        _check_inputs(stage, done[unit].commit, inputs)
        valid[unit] = done[unit]
    return Plan(stage=stage, done=valid, tasks=tuple(tasks), waiting=tuple(waiting))


def check_settings(run_dir: Path, stage: Stage, record: RunRecord | None) -> None:
    """Refuse to mix work made under different settings.

    Raises:
        InputError: the stage has commits under other settings.
    """
    before = record.stages.get(stage.key) if record else None
    if before is None or before.digest == stage.digest:
        return
    if next(commit_files(run_dir, stage.name, before.digest), None) is not None:
        raise InputError(
            f"{run_dir}: {stage.key} was made under another configuration: {describe_difference(stage, before)};"
            f" use another run_dir, or `--redo {stage.name}` to replace it"
        )


def withdraw_stage(run_dir: Path, name: str) -> None:
    """Remove a stage's commits, then its files."""
    for path in sorted((run_dir / layout.COMMITS / name).glob("*/*.json")):
        try:
            withdraw(run_dir, read_commit(path))
        except DamagedRecord:
            path.unlink()
    if name in ("pool", "concepts"):
        for path in sorted((run_dir / layout.UNITS / name).glob("*.parquet")):
            path.unlink()


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _inputs(run_dir: Path, stage: Stage, unit: str, plans: Mapping[str, Plan]) -> dict[str, str] | None:
    """Hashes of what a unit is made from, or None where that is not there yet."""
    if not stage.upstream:
        return {"listing": sha256_of(run_dir / layout.listing(stage.listing, unit))}
    commits = {key: plans[key].done.get(unit) for key in stage.upstream}
    return {key: stored.sha256 for key, stored in commits.items() if stored} if all(commits.values()) else None


def _hash_whole(plan: Plan) -> str:
    if plan.tasks or plan.waiting:
        left = len(plan.tasks) + len(plan.waiting)
        raise WorkError(f"{plan.stage.key} has {left} units to do, and all of them are needed: `sonify run` does them")
    hashes = [f"{unit} {stored.sha256}" for unit, stored in sorted(plan.done.items())]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _check_inputs(stage: Stage, commit: Commit, inputs: Mapping[str, str]) -> None:
    differing = [key for key in inputs if commit.inputs.get(key) != inputs[key]]
    if differing:
        raise InputError(
            f"{stage.key} unit {commit.unit} was made from another {differing[0]} than there is now (new recordings"
            f" or a redone stage); `--redo {stage.name}` makes it again"
        )
