"""What of a stage is done and what is to do, read off the commits."""

import hashlib
import shutil
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
)
from sonify.engine.files import sha256_of
from sonify.engine.job import Task
from sonify.engine.record import RunRecord, describe_difference
from sonify.engine.stage import Stage
from sonify.engine.units import listed_units
from sonify.errors import InputError, WorkError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A stage's units: done with their commits, to do, and waiting for work upstream that is not done."""

    stage: Stage
    done: Mapping[str, StoredCommit]
    tasks: tuple[Task, ...]
    waiting: tuple[str, ...]
    stale: str = ""  # names a unit that was made from other input than there is now

    @property
    def complete(self) -> bool:
        """Whether there are units and all are done."""
        return bool(self.done) and not self.tasks and not self.waiting


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
        WorkError: a record is damaged.
    """
    units = listed_units(run_dir, stage.listing)
    if not all(plans[key].complete for key in stage.upstream_whole):
        return Plan(stage=stage, done={}, tasks=(), waiting=tuple(units))
    done = read_done(run_dir, stage)
    whole = {key: _hash_whole(plans[key]) for key in stage.upstream_whole}
    tasks: list[Task] = []
    waiting: list[str] = []
    valid: dict[str, StoredCommit] = {}
    stale = ""
    for unit in units:
        inputs = _inputs(run_dir, stage, unit, plans)
        if inputs is None:
            waiting.append(unit)
            continue
        inputs |= whole
        if unit not in done:
            expected = stage.rows_expected([plans[key].done[unit].commit for key in stage.upstream])
            task = Task(
                stage=stage.name,
                part=stage.part,
                unit=unit,
                digest=stage.digest,
                inputs=inputs,
                rows_expected=expected,
            )
            tasks.append(task)
            continue
        stale = stale or _describe_stale(stage, done[unit].commit, inputs)
        valid[unit] = done[unit]
    return Plan(stage=stage, done=valid, tasks=tuple(tasks), waiting=tuple(waiting), stale=stale)


def check_settings(run_dir: Path, stage: Stage, record: RunRecord | None) -> None:
    """Refuse to mix work made under different settings.

    Raises:
        InputError: the stage has commits under other settings.
    """
    before = record.stages.get(stage.key) if record else None
    if before is not None and before.digest != stage.digest:
        others = [before.digest]
        difference = describe_difference(stage, before)
    else:
        # a stage of several extractors has one digest for each; of another stage, all commits must be today's
        others = [] if stage.part else _other_digests(run_dir, stage)
        difference = f"its commits stand under {', '.join(others)}"
    if any(next(commit_files(run_dir, stage.name, digest), None) for digest in others):
        raise InputError(
            f"{run_dir}: {stage.key} was made under another configuration: {difference};"
            f" use another run_dir, or `--redo {stage.name}` to replace it"
        )


def withdraw_stage(run_dir: Path, name: str) -> None:
    """Remove a stage: its commits first, so that files without a record are at worst rubbish."""
    for folder in (f"{layout.COMMITS}/{name}", *layout.STAGE_FOLDERS[name], f"{layout.REJECTS}/{name}"):
        shutil.rmtree(run_dir / folder, ignore_errors=True)


def _other_digests(run_dir: Path, stage: Stage) -> list[str]:
    folder = run_dir / layout.COMMITS / stage.name
    return sorted(path.name for path in folder.glob("*") if path.name != stage.digest)


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _inputs(run_dir: Path, stage: Stage, unit: str, plans: Mapping[str, Plan]) -> dict[str, str] | None:
    """Hashes of what a unit is made from, or None where that is not there yet."""
    if not stage.upstream:
        return {"listing": sha256_of(run_dir / layout.listing(stage.listing, unit))}
    commits = {key: plans[key].done.get(unit) for key in stage.upstream}
    return {key: stored.sha256 for key, stored in commits.items() if stored} if all(commits.values()) else None


def _hash_whole(plan: Plan) -> str:
    hashes = [f"{unit} {stored.sha256}" for unit, stored in sorted(plan.done.items())]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _describe_stale(stage: Stage, commit: Commit, inputs: Mapping[str, str]) -> str:
    differing = [key for key in inputs if commit.inputs.get(key) != inputs[key]]
    if not differing:
        return ""
    return (
        f"{stage.key} unit {commit.unit} was made from another {differing[0]} than there is now (new recordings or a"
        f" redone stage); `--redo {stage.name}` makes it again"
    )
