"""`sonify status`: what is done, what is to do, what was rejected and why, and how evenly the pool is used.

The paper claims that the signed square root evens the use of clips out; `--usage` measures it on the run's own
concepts, by what other settings would have drawn, together with this project's margin and `querybank`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sonify import layout
from sonify.config import Config, Retrieval
from sonify.engine.plan import Plan
from sonify.engine.record import StageRecord, config_of_run, require_record
from sonify.io.commits import Count
from sonify.io.places import stems
from sonify.io.tables import read_rows, read_tables
from sonify.pool import DuplicateCounts, clip_columns, count_duplicates
from sonify.retrieval.candidates import SplitPool, read_pool
from sonify.retrieval.encoders import load_encoder, query_of, query_text
from sonify.retrieval.limits import query_limit
from sonify.rows import Concept, Pair, Reason, SourceClip
from sonify.running import plan_run
from sonify.stages.checks import FoilShare, count_foils
from sonify.stages.evidence import COLUMNS, LATER, Evidence, count_evidence, describe_weak, is_by_text
from sonify.stages.listen import tags_of_run
from sonify.stages.pair import THREADS, draw_source, joined
from sonify.stores import Place, to_run_dir

# Enough draws to tell shares to a percent or so, few enough for a command that answers in seconds.
SCENES_COMPARED = 2000

VARIANTS: Mapping[str, Mapping[str, object]] = {
    "square root, no margin (the paper)": {"signed_sqrt": True, "margin": 0.0, "hubness": "none"},
    "no square root, no margin": {"signed_sqrt": False, "margin": 0.0, "hubness": "none"},
    "square root, no margin, querybank": {"signed_sqrt": True, "margin": 0.0, "hubness": "querybank"},
    "square root, margin 0.8": {"signed_sqrt": True, "margin": 0.8, "hubness": "none"},
    "no square root, margin 0.8": {"signed_sqrt": False, "margin": 0.8, "hubness": "none"},
    "square root, margin 0.8, querybank": {"signed_sqrt": True, "margin": 0.8, "hubness": "querybank"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage: units done and to do, rows by fate, clips where it makes any, rows per second of work.

    `trouble` is why its last work stopped or left units undone, in the words of what was in the way.
    """

    stage: str
    units_done: int
    units_to_do: int
    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]
    clips: Count | None
    rows_per_sec: float
    trouble: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How N draws fall on a pool. Shares are of the whole pool; Gini is 0 for even use and near 1 for one clip only."""

    draws: int
    clips_used_share: float
    recordings_used_share: float
    clips_gini: float
    recordings_gini: float
    most_used: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A whole run. `foils` are counted for each extractor that is checked; `comparison` is filled where asked for.

    `evidence` is what speaks for the sounds of the pairs and what was refused; None where nothing is paired yet.
    `duplicates` is what joining copies came to; None where they are kept, too.
    """

    run_dir: str
    stages: tuple[StageStatus, ...]
    discard_words: Mapping[str, int]
    foils: Mapping[str, FoilShare]
    evidence: Evidence | None
    duplicates: DuplicateCounts | None
    usage: Usage | None
    comparison: Mapping[str, Usage]


def read_status(run_dir: Place | str, compare: bool = False) -> Status:
    """Read a run's state off its commits.

    Args:
        run_dir: the run.
        compare: also draw again under other settings and compare how evenly the pool is used.
    """
    run_dir = to_run_dir(run_dir)
    config, record = config_of_run(run_dir), require_record(run_dir)
    plans = plan_run(config)
    extractors = [plan.stage.part for plan in plans if plan.stage.name == "checks"]
    usage = run_usage(run_dir)
    return Status(
        run_dir=str(run_dir),
        stages=tuple(_stage_status(plan, record.stages.get(plan.stage.key)) for plan in plans),
        discard_words=_count_discards(run_dir),
        foils={extractor: count_foils(run_dir, extractor) for extractor in extractors},
        evidence=run_evidence(run_dir, config.retrieval) if usage else None,
        duplicates=count_duplicates(run_dir) if joined(config.audio) else None,
        usage=usage,
        comparison=compare_usage(config) if compare and usage else {},
    )


def _stage_status(plan: Plan, timed: StageRecord | None) -> StageStatus:
    return StageStatus(
        stage=plan.stage.key,
        units_done=len(plan.done),
        units_to_do=len(plan.tasks) + len(plan.waiting),
        rows_in=plan.rows.rows_in,
        rows_out=plan.rows.rows_out,
        rejected=plan.rows.rejected,
        clips=plan.clips,
        rows_per_sec=round(timed.rows / timed.seconds, 2) if timed and timed.seconds else 0.0,
        trouble=timed.trouble if timed else "",
    )


def _count_discards(run_dir: Place) -> dict[str, int]:
    """How many scenes each discard word took out."""
    words: Counter[str] = Counter()
    for _, table in read_tables(run_dir / layout.REJECTS / "pair", ["reason", "detail"]):
        rows = zip(table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True)
        words.update(detail for reason, detail in rows if reason == Reason.DISCARDED)
    return dict(words.most_common())


def run_usage(run_dir: Place) -> Usage | None:
    """The use of the pool by all pairs of a run; None where nothing is paired yet."""
    drawn: Counter[str] = Counter()
    for _, table in read_tables(run_dir / layout.PAIRS, ["sources"]):
        sources = table["sources"].combine_chunks().flatten()
        drawn.update({entry["values"]: entry["counts"] for entry in sources.field("clip").value_counts().to_pylist()})
    return measure_usage(drawn, _recordings_of_clips(run_dir)) if drawn else None


def run_evidence(run_dir: Place, retrieval: Retrieval) -> Evidence:
    """What speaks for the sounds of all pairs of a run, and what was refused in them."""
    tables = (table for _, table in read_tables(run_dir / layout.PAIRS, COLUMNS, LATER))
    return count_evidence(tables, is_by_text(retrieval))


def compare_usage(config: Config, variants: Mapping[str, Mapping[str, object]] = VARIANTS) -> dict[str, Usage]:
    """Draw for a run's own concepts, up to 2,000 scenes of them, by its own rules with the changes of each variant.

    Args:
        config: of a run that is paired.
        variants: keys of `retrieval` with other values, by the name of the variant.
    """
    pairs = list(islice(pairs_of_run(config.run_dir), SCENES_COMPARED))
    recording_of = _recordings_of_clips(config.run_dir)
    encoder = load_encoder(config.retrieval.encoder, config.retrieval.hears)
    parts = read_pool(config.run_dir, encoder, tags_of_run(config), joined=joined(config.audio))
    compared: dict[str, Usage] = {}
    for name, changes in variants.items():
        retrieval = Retrieval.model_validate({**config.retrieval.model_dump(), **changes})
        limit = query_limit(retrieval.limit, encoder.identity)
        changed = config.model_copy(update={"retrieval": retrieval})
        pools = {split: SplitPool(part, encoder, retrieval, THREADS, limit) for split, part in parts.items()}
        compared[name] = measure_usage(Counter(_draw_again(pairs, changed, pools)), recording_of)
    return compared


def pairs_of_run(run_dir: Place) -> Iterator[Pair]:
    """Every pair of a run, in the order of units."""
    for unit in stems(run_dir / layout.PAIRS):
        yield from read_rows(run_dir / layout.pairs(unit), Pair)


def _draw_again(pairs: list[Pair], config: Config, pools: Mapping[str, SplitPool]) -> Iterator[str]:
    form = config.retrieval.query
    asked = {split: [c for pair in pairs if pair.split == split for c in _concepts_of(pair)] for split in pools}
    rankings = {split: pool.rank({query_of(c, form) for c in asked[split]}) for split, pool in pools.items()}
    for pair in pairs:
        used: set[int] = set()
        for concept in _concepts_of(pair):
            ranking = rankings[pair.split][query_of(concept, form)]
            drawn = draw_source(pools[pair.split], ranking, used, concept, config, (pair.image, pair.scene))
            if isinstance(drawn, SourceClip):
                yield drawn.clip


def _concepts_of(pair: Pair) -> Iterator[Concept]:
    """What a pair was drawn for. A bare name stands there with the sentence around it, which nobody said of it."""
    for source in pair.sources:
        bare = Concept(concept=source.concept, description="")
        told = source.description != query_text(bare, "description")
        yield replace(bare, description=source.description) if told else bare


def _recordings_of_clips(run_dir: Place) -> dict[str, str]:
    """Each clip's recording, over the whole pool."""
    table = clip_columns(run_dir, ["clip", "recording"])
    return dict(zip(table["clip"].to_pylist(), table["recording"].to_pylist(), strict=True))


def measure_usage(clips: Counter[str], recording_of: Mapping[str, str]) -> Usage:
    """Measure draws of each clip over a pool, given each clip's recording."""
    recordings: Counter[str] = Counter()
    for clip, n in clips.items():
        recordings[recording_of.get(clip, clip)] += n
    num_recordings = len(set(recording_of.values()))
    return Usage(
        draws=clips.total(),
        clips_used_share=round(len(clips) / max(len(recording_of), 1), 4),
        recordings_used_share=round(len(recordings) / max(num_recordings, 1), 4),
        clips_gini=round(gini(list(clips.values()), len(recording_of)), 4),
        recordings_gini=round(gini(list(recordings.values()), num_recordings), 4),
        most_used=tuple(sorted(clips.items(), key=lambda item: (-item[1], item[0]))[:10]),
    )


def gini(counts: Sequence[int], size: int) -> float:
    """The Gini coefficient of the use of `size` things, of which those without a count are unused.

    Source: Gini, "Variabilità e mutabilità" (1912), in its form over sorted values.
    """
    if not any(counts):
        return 0.0
    ordered = np.pad(np.sort(np.array(counts, np.float64)), (size - len(counts), 0))
    ranks = np.arange(1, size + 1)
    return float(2 * (ranks * ordered).sum() / (size * ordered.sum()) - (size + 1) / size)


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
    for stage in status.stages:
        if stage.trouble:
            console.print(f"{stage.stage} stopped: {stage.trouble}", markup=False, highlight=False)
    if status.discard_words:
        words = ", ".join(f"{word} {n:,}" for word, n in status.discard_words.items())
        console.print(f"scenes discarded by word: {words}", highlight=False)
    for extractor, foils in status.foils.items():
        line = f"{extractor}: {foils.confirmed:,} of {foils.asked:,} things that are not there were confirmed"
        console.print(line, highlight=False)
    for line in (*_evidence_lines(status.evidence), *_duplicates_lines(status.duplicates)):
        console.print(line, markup=False, highlight=False)
    if status.usage:
        _print_usage({"this run": status.usage, **status.comparison}, console)
        if not status.comparison:
            console.print("[dim]--usage compares with and without signed square root, margin and querybank[/dim]")


def _evidence_lines(found: Evidence | None) -> Iterator[str]:
    """What is known of the sounds of a run, a line each."""
    if found is None:
        return
    weak = f" ({describe_weak(found)})" if found.weak else ""
    yield f"sounds in scenes: {found.sounds:,}, {found.weak:,} match weakly{weak}"
    if found.asked:
        yield (
            f"who listened was asked about {found.asked:,} of them, confirmed {found.confirmed:,} and heard somebody"
            f" speak in {found.spoken:,}"
        )
    if found.refused:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in found.refused.items())
        yield f"concepts named and not heard: {reasons}; {found.near_misses:,} with a near miss"
    if found.presence:
        yield "of these a model said: " + ", ".join(f"{n:,} {where}" for where, n in found.presence.items())


def _duplicates_lines(found: DuplicateCounts | None) -> Iterator[str]:
    if found is None:
        return
    if not found.recordings:
        yield "copies: no recording of the pool is one of another"
    else:
        yield (
            f"copies: {found.recordings:,} recordings of the pool are {found.groups:,}, at most {found.largest:,} of"
            f" one; {found.left_out:,} of validation are not drawn, as training has them"
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
