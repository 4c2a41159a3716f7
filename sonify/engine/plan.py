"""What of a stage is done and what is to do, read off the commits."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sonify import layout
from sonify.engine.job import Stage, Task
from sonify.engine.record import RunRecord, describe_difference
from sonify.errors import InputError, WorkError
from sonify.installed import spell, spell_redo
from sonify.io.commits import (
    Commit,
    Count,
    DamagedRecord,
    Done,
    StoredCommit,
    add_clips,
    commit_files,
    done_of,
    parse_commit,
    read_commits,
    total,
)
from sonify.io.places import Sizes, folders_in, read_each, stems
from sonify.io.write import remove
from sonify.stores import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A stage's units: done, to do, and waiting for work upstream that is not done.

    `rows` and `clips` are counted over the units that are done.
    """

    stage: Stage
    done: Mapping[str, Done]
    rows: Count
    clips: Count | None
    tasks: tuple[Task, ...]
    waiting: tuple[str, ...]
    stale: str = ""  # names a unit that was made from other input than there is now
    broken: tuple[Place, ...] = ()  # commits whose files are gone or cut

    @property
    def complete(self) -> bool:
        """Whether there are units and all are done."""
        return bool(self.done) and not self.tasks and not self.waiting

    def after(self, done: Mapping[str, Done], rows: Count, clips: Count | None) -> "Plan":
        """The plan once more of its tasks are committed; the counts are those of all commits then."""
        left = tuple(task for task in self.tasks if task.unit not in done)
        return replace(self, done={**self.done, **done}, rows=rows, clips=clips, tasks=left)


def listed_units(run_dir: Place, listing: str) -> list[str]:
    """The units of a frozen listing, in order."""
    return stems(run_dir / layout.UNITS / listing)


def iter_done(run_dir: Place, stage: Stage) -> Iterator[StoredCommit]:
    """The stage's commits under today's digest whose files have the recorded sizes, in the order of units."""
    return (stored for stored, whole in _iter_commits(run_dir, stage) if whole)


def _iter_commits(run_dir: Place, stage: Stage) -> Iterator[tuple[StoredCommit, bool]]:
    size_of = Sizes(run_dir)
    for place, data in read_commits(commit_files(run_dir, stage.name, stage.digest)):
        try:
            stored = parse_commit(place, data)
        except DamagedRecord as error:
            raise WorkError(f"{place}: {error}; `{spell('verify', run_dir, '--repair')}` withdraws it") from error
        yield stored, all(size_of(file.path) == file.size_bytes for file in stored.commit.files)


def plan_stage(run_dir: Place, stage: Stage, plans: Mapping[str, Plan]) -> Plan:
    """Compare the stage's units with its commits.

    Args:
        run_dir: the run.
        stage: the stage.
        plans: of all stages upstream, by key.
    """
    units = listed_units(run_dir, stage.listing)
    nothing = Plan(stage=stage, done={}, rows=total([]), clips=None, tasks=(), waiting=tuple(units))
    if not all(plans[key].complete for key in stage.upstream_whole):
        return nothing
    whole = {key: _hash_whole(plans[key]) for key in stage.upstream_whole}
    possible = {unit: inputs | whole for unit, inputs in _inputs_of(run_dir, stage, units, plans)}
    done: dict[str, Done] = {}
    rows, clips, stale = total([]), None, ""
    broken: list[Place] = []
    for stored, whole_files in _iter_commits(run_dir, stage):
        commit = stored.commit
        if not whole_files:
            broken.append(stored.place)
        elif commit.unit in possible:
            done[commit.unit] = done_of(commit, stored.sha256)
            rows, clips = total([rows, commit.rows]), add_clips(clips, commit.clips)
            stale = stale or _describe_stale(stage, commit, possible[commit.unit])
    tasks = [_task(stage, unit, inputs, plans) for unit, inputs in possible.items() if unit not in done]
    return replace(
        nothing,
        done=done,
        rows=rows,
        clips=clips,
        tasks=tuple(tasks),
        waiting=tuple(unit for unit in units if unit not in possible),
        stale=stale,
        broken=tuple(broken),
    )


def _task(stage: Stage, unit: str, inputs: Mapping[str, str], plans: Mapping[str, Plan]) -> Task:
    return Task(
        stage=stage.name,
        part=stage.part,
        unit=unit,
        digest=stage.digest,
        inputs=inputs,
        rows_expected=stage.rows_expected([plans[key].done[unit] for key in stage.upstream]),
    )


def check_settings(run_dir: Place, stage: Stage, record: RunRecord | None) -> None:
    """Refuse to mix work made under different settings."""
    before = record.stages.get(stage.key) if record else None
    if before is not None and before.digest != stage.digest:
        others = [before.digest]
        difference = describe_difference(stage, before)
    else:
        # a stage of several extractors has one digest for each; of another stage, all commits must be today's
        others = [] if stage.part else _other_digests(run_dir, stage)
        difference = f"its commits stand under {', '.join(others)}"
    if any(commit_files(run_dir, stage.name, digest) for digest in others):
        as_before = f" set {' '.join(stage.as_before)} to go on as before," if stage.as_before else ""
        raise InputError(
            f"{run_dir}: {stage.key} was made under another configuration: {difference};{as_before}"
            f" use another run_dir, or `{spell_redo(stage.name)}` to replace it"
        )


def withdraw_stage(run_dir: Place, name: str) -> None:
    """Remove a stage: its commits first, so that files without a record are at worst rubbish."""
    for folder in (f"{layout.COMMITS}/{name}", *layout.STAGE_FOLDERS[name], f"{layout.REJECTS}/{name}"):
        remove(run_dir / folder)


def _other_digests(run_dir: Place, stage: Stage) -> list[str]:
    return [name for name in folders_in(run_dir / layout.COMMITS / stage.name) if name != stage.digest]


def _inputs_of(
    run_dir: Place, stage: Stage, units: Sequence[str], plans: Mapping[str, Plan]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The units that can be done, with the hashes of what each is made from."""
    if not stage.upstream:
        listings = [run_dir / layout.listing(stage.listing, unit) for unit in units]
        for unit, data in zip(units, read_each(listings), strict=True):
            yield unit, {"listing": hashlib.sha256(data).hexdigest()}
        return
    for unit in units:
        before = {key: plans[key].done.get(unit) for key in stage.upstream}
        if all(before.values()):
            yield unit, {key: done.sha256 for key, done in before.items() if done}


def _hash_whole(plan: Plan) -> str:
    hashes = [f"{unit} {done.sha256}" for unit, done in sorted(plan.done.items())]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _describe_stale(stage: Stage, commit: Commit, inputs: Mapping[str, str]) -> str:
    differing = [key for key in inputs if commit.inputs.get(key) != inputs[key]]
    if not differing:
        return ""
    return (
        f"{stage.key} unit {commit.unit} was made from another {differing[0]} than there is now (new recordings or a"
        f" redone stage); `{spell_redo(stage.name)}` makes it again"
    )
