"""`sonify status`: what is done, what is to do, what was rejected and why, and how the pool is used."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sonify.config import Config, make_config
from sonify.engine.job import Stage
from sonify.engine.plan import Plan, listed_units
from sonify.engine.record import require_record
from sonify.io.commits import Count, total
from sonify.report.usage import Usage, compare_usage, count_discards, run_usage
from sonify.run import plan_run
from sonify.stages.checks import FoilShare, count_foils
from sonify.stages.table import stages_of
from sonify.stores import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage: units done and to do, rows by fate, clips where it makes any, rows per second of work."""

    stage: str
    units_done: int
    units_to_do: int
    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]
    clips: Count | None
    rows_per_sec: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A whole run. `foils` are counted for each extractor that is checked; `comparison` is filled where asked for."""

    run_dir: str
    stages: tuple[StageStatus, ...]
    discard_words: Mapping[str, int]
    foils: Mapping[str, FoilShare]
    usage: Usage | None
    comparison: Mapping[str, Usage]


def config_of_run(run_dir: Place) -> Config:
    """The configuration that a run was last worked on with.

    Raises:
        InputError: the folder is not a run.
    """
    return make_config({**require_record(run_dir).config, "run_dir": str(run_dir)}, str(run_dir), check_paths=False)


def read_status(run_dir: Place, compare: bool = False) -> Status:
    """Read a run's state off its commits.

    Args:
        run_dir: the run.
        compare: also draw again under other settings and compare how evenly the pool is used.

    Raises:
        InputError: the folder is not a run.
        WorkError: a record is damaged.
    """
    config = config_of_run(run_dir)
    plans = {plan.stage.key: plan for plan in plan_run(config)}
    usage = run_usage(run_dir)
    return Status(
        run_dir=str(run_dir),
        stages=tuple(_stage_status(config, stage, plans.get(stage.key)) for stage in stages_of(config)),
        discard_words=count_discards(run_dir),
        foils={stage.part: count_foils(run_dir, stage.part) for stage in stages_of(config) if stage.name == "checks"},
        usage=usage,
        comparison=compare_usage(config) if compare and usage else {},
    )


def print_status(status: Status, console: Console) -> None:
    """Print the status as tables."""
    table = Table(
        "stage", "units done", "to do", "rows in", "rows out", "rejected", "rows/s", title=status.run_dir, box=SIMPLE
    )
    for stage in status.stages:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in stage.rejected.items()) or "-"
        table.add_row(stage.stage, f"{stage.units_done:,}", f"{stage.units_to_do:,}", f"{stage.rows_in:,}",
                      f"{stage.rows_out:,}", reasons, f"{stage.rows_per_sec:,.1f}")  # fmt: skip
        if stage.clips:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in stage.clips.rejected.items()) or "-"
            table.add_row("  clips", "", "", f"{stage.clips.rows_in:,}", f"{stage.clips.rows_out:,}", reasons, "")
    console.print(table)
    if status.discard_words:
        words = ", ".join(f"{word} {n:,}" for word, n in status.discard_words.items())
        console.print(f"scenes discarded by word: {words}", highlight=False)
    for extractor, foils in status.foils.items():
        line = f"{extractor}: {foils.confirmed:,} of {foils.asked:,} things that are not there were confirmed"
        console.print(line, highlight=False)
    if status.usage:
        _print_usage({"this run": status.usage, **status.comparison}, console)
        if not status.comparison:
            console.print("[dim]--usage compares with and without signed square root, margin and querybank[/dim]")


def _stage_status(config: Config, stage: Stage, plan: Plan | None) -> StageStatus:
    rows = plan.rows if plan else total([])
    done = len(plan.done) if plan else 0
    units = len(listed_units(config.run_dir, stage.listing))
    timed = require_record(config.run_dir).stages.get(stage.key)
    return StageStatus(
        stage=stage.key,
        units_done=done,
        units_to_do=units - done,
        rows_in=rows.rows_in,
        rows_out=rows.rows_out,
        rejected=rows.rejected,
        clips=plan.clips if plan else None,
        rows_per_sec=round(timed.rows / timed.seconds, 2) if timed and timed.seconds else 0.0,
    )


def _print_usage(usages: Mapping[str, Usage], console: Console) -> None:
    table = Table(
        "use of the pool", "draws", "clips used", "recordings used", "Gini clips", "Gini recordings", box=SIMPLE
    )
    for name, usage in usages.items():
        table.add_row(name, f"{usage.draws:,}", f"{usage.clips_used_share:.1%}", f"{usage.recordings_used_share:.1%}",
                      f"{usage.clips_gini:.3f}", f"{usage.recordings_gini:.3f}")  # fmt: skip
    console.print(table)
    most = next(iter(usages.values())).most_used
    console.print("most used: " + ", ".join(f"{clip} ({n})" for clip, n in most), highlight=False)
