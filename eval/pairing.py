"""Whether what is drawn for a concept is what it names: a labelled table of concepts against the pool of a run.

    python -m eval.pairing --table T --run RUN [--json] [key=value ...]
    python -m eval.pairing --table T --run RUN --calibrate [--out FILE]

Each concept is asked of the whole pool, by the code that pairs; what would be drawn with which chance is weighed, and
nothing is sampled. `retrieval.*` keys try other settings on the same pool. docs/studies.md says how a table is made.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.pairing", extra="cpu"))

import argparse
import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from sonify import layout
from sonify.config import Config, Limit, Retrieval
from sonify.config.loader import apply_override, make_config
from sonify.engine.record import config_of_run
from sonify.errors import InputError, WorkError, did_you_mean
from sonify.installed import spell_again
from sonify.io.places import is_file, load_array, read_whole, size_of, stems
from sonify.pool import clip_columns
from sonify.retrieval.candidates import Missed, PoolClips, SplitPool, drawable
from sonify.retrieval.confirm import ClipTags
from sonify.retrieval.encoders import JointEncoder, Part, load_encoder, query_of
from sonify.retrieval.limits import (
    Calibration,
    Trial,
    calibrate,
    query_limit,
    read_calibrations,
    write_calibrations,
)
from sonify.rows import Concept
from sonify.sources.userfiles import read_user_table
from sonify.stages.listen import tags_of_run
from sonify.stages.pair import THREADS, joined
from sonify.stores import Place, to_folder, to_place, to_run_dir
from sonify.terminal import Parser, argument_of, run_command

log = logging.getLogger(__name__)

Kind = Literal["name", "description"]
Verdict = Literal["answerable", "unanswerable", "disputed"]
KINDS: tuple[Kind, ...] = ("name", "description")
VERDICTS: tuple[Verdict, ...] = ("answerable", "unanswerable", "disputed")
COLUMNS = ("concept", "kind", "accepted", "tolerated")
# Keys that say what is drawn from a pool that is made.
ACTING = ("retrieval.", "audio.speech=", "audio.duplicates=")
# Resamples of the concepts, and the ends of the interval that 95 % of them lie in.
RESAMPLES, INTERVAL = 2000, (2.5, 97.5)
FIGURES = ("precision", "kept", "wrong_answers")
WORST = 12  # faults of a sort that are named
MOST_UNKNOWN = 20  # classes that are named
STEP = 0.05  # of the cosine, along the curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A row of a table: a concept, and the classes that are its sound by all judges, or by some; all are normalised."""

    text: str
    kind: Kind
    accepted: frozenset[str]
    tolerated: frozenset[str]

    @property
    def concept(self) -> Concept:
        """As an extractor would have given it."""
        name, _, description = self.text.partition(":") if self.kind == "description" else (self.text, "", "")
        return Concept(concept=name.strip(), description=description.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What comes of a concept: the chances that what is drawn is right or wrong, and that nothing is.

    `best` is the class of the best clip, drawn or refused, `cosine` its own, and `limit` what it had to reach (0.0:
    nothing); `reason` says why nothing is drawn. `candidates` are the clips that may be drawn, and `uses` with what
    chance each recording is, by its number in the pool.
    """

    concept: str
    kind: Kind
    verdict: Verdict
    right: float
    wrong: float
    dropped: float
    reason: str
    best: str
    clip: str
    cosine: float
    limit: float
    heard: str
    candidates: int
    uses: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """All clips of a run as one, and the classes that the text of each names."""

    clips: PoolClips
    classes: Sequence[frozenset[str]]
    texts: Sequence[str]

    @property
    def known(self) -> frozenset[str]:
        """Every class of which there is a clip."""
        return frozenset().union(*set(self.classes))


def plain(text: str) -> str:
    """A class as it is compared."""
    return " ".join(text.replace("_", " ").casefold().split())


def classes_of(text: str) -> frozenset[str]:
    """The classes that a clip's text names: its labels, and all of it, since a label may hold a comma."""
    parts = text.replace(";", ",").split(",")
    return frozenset(name for name in map(plain, (text, *parts)) if name)


def read_labelled(place: Place) -> list[Labelled]:
    """Read a table of concepts.

    Raises:
        InputError: it is none, or a row of it says nothing that can be judged.
    """
    columns = read_user_table(place, COLUMNS)
    rows: list[Labelled] = []
    seen: dict[tuple[str, str], int] = {}
    for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
        try:
            row = _labelled(*(cell.decode().strip() for cell in cells))
        except ValueError as error:  # not UTF-8 either
            raise InputError(f"{place}: row {number}: {error}") from None
        before = seen.setdefault((row.kind, plain(row.text)), number)
        if before != number:
            raise InputError(f"{place}: row {number}: {row.text[:80]!r} stands in row {before} already")
        rows.append(row)
    if not rows:
        raise InputError(f"{place}: expected concepts, found no row")
    return rows


def _labelled(text: str, kind: str, accepted: str, tolerated: str) -> Labelled:
    text = " ".join(text.split())
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise ValueError(f"kind: expected name or description, found {kind[:80]!r}{hint}")
    first, colon, rest = text.partition(":")
    if not text or (kind == "description" and not (first.strip() and colon and rest.strip())):
        expected = "`name: description`, of kind description" if kind == "description" else "a concept"
        raise ValueError(f"concept: expected {expected}, found {text[:80]!r}")
    classes, others = ({plain(name) for name in cell.split(";")} - {""} for cell in (accepted, tolerated))
    return Labelled(text=text, kind=kind, accepted=frozenset(classes), tolerated=frozenset(others))


def open_setting(run_dir: Place, overrides: Sequence[str]) -> Config:
    """A run's configuration, with other keys of retrieval."""
    for word in overrides:
        if not word.startswith(ACTING):
            raise InputError(f"{word[:80]!r}: expected retrieval.KEY=VALUE: nothing else acts on a pool that is made")
    config = config_of_run(run_dir)
    values = config.model_dump(mode="json")
    for word in overrides:
        apply_override(values, word)
    return make_config(values, f"{run_dir}", check_paths=False) if overrides else config


def read_whole_pool(config: Config, encoder: JointEncoder) -> Pool:
    """Read the pool of a run, all splits as one, in the spaces of an encoder; what must not be drawn is left out.

    Raises:
        InputError: there is none, or nobody embedded it for the encoder, or listened to it.
    """
    run_dir = config.run_dir
    table = clip_columns(run_dir, ("clip", "recording", "loudness_lufs", "split", "text"))
    if not len(table):
        raise InputError(f"{run_dir}: no clip is in its pool; make it with `{spell_again()}`")
    texts = np.array(table["text"].to_pylist(), dtype=object)
    tags = _tags(config)
    are_joined = joined(config.audio) and is_file(run_dir / layout.DUPLICATES)  # found before anything is paired
    recordings, parts = drawable(run_dir, table, tags, joined=are_joined)
    kept = np.sort(np.concatenate([np.empty(0, np.int64), *parts.values()]))
    embeddings = encoder.join([_vectors(run_dir, part, texts) for part in encoder.parts])
    return Pool(
        clips=PoolClips(
            clips=np.array(table["clip"].to_pylist(), dtype=object)[kept].tolist(),
            recordings=recordings[kept],
            loudness_lufs=table["loudness_lufs"].to_numpy()[kept],
            embeddings=embeddings[kept],
            tags=tags.take(kept) if tags is not None else None,
        ),
        classes=[classes_of(text) for text in texts[kept]],
        texts=texts[kept].tolist(),
    )


def _tags(config: Config) -> ClipTags | None:
    """What was heard in the run's clips, where that acts."""
    try:
        return tags_of_run(config)
    except WorkError as error:
        raise InputError(
            f"{config.run_dir}: nobody that retrieval.confirm names has listened to its pool ({error}); run"
            f" `{spell_again()}` under it, or set retrieval.confirm=null"
        ) from error


def _vectors(run_dir: Place, part: Part, texts: np.ndarray) -> np.ndarray:
    """The vectors of all clips in one space: those of the run, or of their texts where these are what is compared."""
    places = [run_dir / layout.embeddings(part.id, unit) for unit in stems(run_dir / layout.CLIPS)]
    if all(size_of(place) is not None for place in places):
        return np.concatenate([load_array(place) for place in places])
    if part.hears is not None:
        raise InputError(
            f"{run_dir}: its pool has no vectors of {part.id}; make them with `{spell_again()}` under that"
            " retrieval.encoder"
        )
    distinct, which = np.unique(texts, return_inverse=True)
    return part.encoder(distinct.tolist())[which]


def meet(rows: Sequence[Labelled], pool: Pool, where: Place) -> list[Verdict]:
    """Whether each concept has an answer in this very pool; classes of which it holds nothing are said.

    Raises:
        InputError: no class of the table is in the pool.
    """
    named = {name for row in rows for name in row.accepted | row.tolerated}
    unknown = sorted(named - pool.known)
    if not named - set(unknown):
        shown = ", ".join(sorted(pool.known)[:8])[:300]
        hint = did_you_mean(unknown[0], pool.known) if unknown else ""
        raise InputError(
            f"{where}: none of its {len(named)} classes is the text of a clip in the pool, which holds {shown}{hint}"
        )
    if unknown:
        hints = [name[:60] + _perhaps(did_you_mean(name, pool.known, 0.8)) for name in unknown]
        more = f" and {len(hints) - MOST_UNKNOWN} more" if len(hints) > MOST_UNKNOWN else ""
        log.warning("%s: no clip of the pool is of %s%s", where, ", ".join(hints[:MOST_UNKNOWN]), more)
    return [_verdict(row, pool.known) for row in rows]


def _perhaps(hint: str) -> str:
    return hint and f" ({hint.removeprefix('; ')})"


def _verdict(row: Labelled, known: frozenset[str]) -> Verdict:
    if row.accepted & known:
        return "answerable"
    if row.tolerated and (not row.accepted or row.tolerated & known):
        return "disputed"
    return "unanswerable"


class Judge:
    """Asks a pool for the concepts of a table, under one setting of retrieval."""

    def __init__(
        self, rows: Sequence[Labelled], verdicts: Sequence[Verdict], pool: Pool, encoder: JointEncoder
    ) -> None:
        self._rows = rows
        self._verdicts = verdicts
        self._pool = pool
        self._encoder = encoder

    def __call__(self, retrieval: Retrieval) -> list[Outcome]:
        limit = query_limit(retrieval.limit, self._encoder.identity)
        split = SplitPool(self._pool.clips, self._encoder, retrieval, THREADS, limit)
        queries = [query_of(row.concept, retrieval.query) for row in self._rows]
        rankings = split.rank(queries)
        found = zip(self._rows, self._verdicts, queries, strict=True)
        return [self._outcome(split, row, verdict, rankings[query]) for row, verdict, query in found]

    def trials(self, retrieval: Retrieval) -> list[Trial]:
        """What a limit is calibrated on: the concepts that count, met without one."""
        retrieval = without_limit(retrieval)
        split = SplitPool(self._pool.clips, self._encoder, retrieval, THREADS)
        queries = [query_of(row.concept, retrieval.query) for row in self._rows]
        standing = split.standing(queries)
        return [
            Trial(
                concept=outcome.concept,
                similarity=outcome.cosine,
                mean=standing[query][0],
                deviation=standing[query][1],
                right=outcome.right,
                answerable=outcome.verdict == "answerable",
            )
            for outcome, query in zip(self(retrieval), queries, strict=True)
            if outcome.verdict != "disputed"
        ]

    def _outcome(self, split: SplitPool, row: Labelled, verdict: Verdict, ranking: Any) -> Outcome:
        found = split.consider(row.concept, ranking, ("judge", row.text))
        clip, cosine = split.best_of(found)
        right = wrong = 0.0
        uses: Counter[int] = Counter()
        candidates = [] if isinstance(found, Missed) else found.clips.tolist()
        if not isinstance(found, Missed):
            wanted = row.accepted | row.tolerated
            for candidate, chance in zip(candidates, split.chances(row.concept, found).tolist(), strict=True):
                is_right = bool(self._pool.classes[candidate] & wanted)
                right, wrong = right + chance * is_right, wrong + chance * (not is_right)
                uses[int(self._pool.clips.recordings[candidate])] += chance  # pyright: ignore[reportArgumentType]
        return Outcome(
            concept=row.text,
            kind=row.kind,
            verdict=verdict,
            right=round(right, 6),
            wrong=round(wrong, 6),
            dropped=float(isinstance(found, Missed)),
            reason=found.reason.value if isinstance(found, Missed) else "",
            best=self._pool.texts[clip],
            clip=self._pool.clips.clips[clip],
            cosine=round(cosine, 6),
            limit=round(float(ranking.limit), 6),
            heard=found.heard if isinstance(found, Missed) else "",
            candidates=len(candidates),
            uses=uses,
        )


def without_limit(retrieval: Retrieval) -> Retrieval:
    """As it was, but that the best clip may be as far off as it is."""
    return retrieval.model_copy(update={"limit": None, "min_cosine": -1.0})


def figures_of(outcomes: Sequence[Outcome], intervals: bool = True) -> dict[str, Any]:
    """The figures of the concepts that count, and their intervals; None where there is nothing to divide by."""
    counted = [outcome for outcome in outcomes if outcome.verdict != "disputed"]
    right = np.array([outcome.right for outcome in counted])
    drawn = right + np.array([outcome.wrong for outcome in counted])
    answerable = np.array([outcome.verdict == "answerable" for outcome in counted], dtype=float)
    columns = np.stack([right, drawn, right, answerable, drawn * (1 - answerable), 1 - answerable], axis=1)
    columns = columns.reshape(-1, 6)
    found = _ratios(columns.sum(axis=0, keepdims=True))[0]
    figures: dict[str, Any] = {name: _plain_number(value) for name, value in zip(FIGURES, found, strict=True)}
    figures |= {"candidates": _candidates_of(counted), "evenness": _evenness_of(counted), "n": len(counted)}
    if not intervals:
        return figures
    resampled = _ratios(np.stack(list(_resample(columns))))
    return {**figures, "intervals": {name: _interval(resampled[:, n]) for n, name in enumerate(FIGURES)}}


def _candidates_of(outcomes: Sequence[Outcome]) -> float | None:
    """How many clips may be drawn for a concept for which something is, in the mean."""
    answered = [outcome.candidates for outcome in outcomes if outcome.candidates]
    return round(sum(answered) / len(answered), 2) if answered else None


def _evenness_of(outcomes: Sequence[Outcome]) -> float | None:
    """As how many recordings that are drawn equally often the drawn ones are: the exponential of their entropy."""
    uses: Counter[int] = Counter()
    for outcome in outcomes:
        uses.update(outcome.uses)  # pyright: ignore[reportArgumentType] - chances add up as counts do
    chances = np.array([chance for chance in uses.values() if chance > 0])
    if not len(chances):
        return None
    shares = chances / chances.sum()
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 2)


def _ratios(sums: np.ndarray) -> np.ndarray:
    """(R, 6) sums to (R, 3) figures; NaN where nothing is divided."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[:, 0::2] / sums[:, 1::2]


def _plain_number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _interval(values: np.ndarray) -> list[float] | None:
    values = values[np.isfinite(values)]
    return [round(float(end), 6) for end in np.percentile(values, INTERVAL)] if len(values) else None


def _resample(columns: np.ndarray) -> Iterator[np.ndarray]:
    """The sums of (N, 6) columns over N concepts drawn again and again with replacement."""
    rng = np.random.default_rng(0)
    size = len(columns)
    for _ in range(RESAMPLES if size else 1):
        yield rng.multinomial(size, np.full(size, 1 / size)) @ columns if size else columns.sum(axis=0)


def curve_of(judge: Judge, retrieval: Retrieval, encoder: str) -> Iterator[dict[str, Any]]:
    """The figures at each risk that the encoder is calibrated for, and where a cosine alone is asked for."""
    place = retrieval.limit.calibration if retrieval.limit else None
    calibrated = read_calibrations(place).get(encoder)
    for row in calibrated.usable if calibrated else ():
        limit = Limit(risk=row.risk, calibration=place)
        yield _point("risk", row.risk, judge(retrieval.model_copy(update={"limit": limit})))
    free = judge(without_limit(retrieval))
    best = [outcome.cosine for outcome in free]
    for step in range(int(np.floor(min(best) / STEP)), int(np.ceil(max(best) / STEP)) + 1):
        at = round(step * STEP, 2)
        yield _point("cosine", at, [outcome if outcome.cosine >= at else _drop(outcome) for outcome in free])


def _point(over: str, at: float, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    found = figures_of(outcomes, intervals=False)
    return {"over": over, "at": at, **{name: found[name] for name in FIGURES}}


def _drop(outcome: Outcome) -> Outcome:
    return replace(outcome, right=0.0, wrong=0.0, dropped=1.0, candidates=0, uses={})


def judge_run(run_dir: Place, table: Place, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `python -m eval.pairing --json` prints.

    Args:
        run_dir: a run with a pool.
        table: the labelled concepts.
        overrides: `retrieval.KEY=VALUE`, for another setting on the same pool.

    Raises:
        InputError: the run has no pool, the table cannot be judged, or the encoder's vectors are not there.
    """
    asked = ask(run_dir, table, overrides)
    retrieval = asked.config.retrieval
    outcomes = asked.judge(retrieval)
    verdicts = Counter(asked.verdicts)
    lost = sum(bool(row.accepted) and not row.accepted & asked.pool.known for row in asked.rows)
    return {
        **figures_of(outcomes),
        "by_kind": {kind: figures_of([outcome for outcome in outcomes if outcome.kind == kind]) for kind in KINDS},
        "curve": list(curve_of(asked.judge, retrieval, asked.encoder.identity)),
        "concepts": [
            {name: value for name, value in asdict(outcome).items() if name != "uses"} for outcome in outcomes
        ],
        "setting": {
            "run": str(run_dir),
            "encoder": asked.encoder.identity,
            "retrieval": retrieval.model_dump(mode="json"),
            "pool": {
                "clips": len(asked.pool.texts),
                "recordings": len(np.unique(asked.pool.clips.recordings)),
                "classes": len(asked.pool.known),
            },
            "table": {
                "name": table.name,
                "sha256": hashlib.sha256(read_whole(table)).hexdigest(),
                "concepts": len(asked.rows),
                **{verdict: verdicts[verdict] for verdict in VERDICTS},
                "lost_their_answer": lost,
            },
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A table met with a run's pool."""

    config: Config
    rows: Sequence[Labelled]
    verdicts: Sequence[Verdict]
    pool: Pool
    encoder: JointEncoder

    @property
    def judge(self) -> Judge:
        """Who asks the pool."""
        return Judge(self.rows, self.verdicts, self.pool, self.encoder)


def ask(run_dir: Place, table: Place, overrides: Sequence[str]) -> Asked:
    """Read a table and a run's pool, and meet the two."""
    config = open_setting(run_dir, overrides)
    rows = read_labelled(table)
    encoder = load_encoder(config.retrieval.encoder, config.retrieval.hears)
    pool = read_whole_pool(config, encoder)
    return Asked(config=config, rows=rows, verdicts=meet(rows, pool, table), pool=pool, encoder=encoder)


def calibrate_run(run_dir: Place, table: Place, overrides: Sequence[str] = ()) -> Calibration:
    """Choose an encoder's limits on a labelled table, as `retrieval.limit.calibration` reads them.

    Raises:
        InputError: as `judge_run`, or too few concepts count.
    """
    asked = ask(run_dir, table, overrides)
    trials = asked.judge.trials(asked.config.retrieval)
    pool = f"{len(asked.pool.texts)} clips of {len(asked.pool.known)} classes"
    return calibrate(trials, asked.encoder.identity, f"{table.name}, {len(trials)} concepts against {pool}")


def print_judged(found: Mapping[str, Any], console: Console) -> None:
    """The figures for people, the worst faults and the curve."""
    setting, table = found["setting"], found["setting"]["table"]
    pool, limit = setting["pool"], setting["retrieval"]["limit"]
    acting = f"limit at a risk of {limit['risk']:g}" if limit else "no limit"
    console.print(
        f"{table['name']}: {found['n']} concepts count, {table['answerable']} with an answer in the pool and"
        f" {table['unanswerable']} without; {table['disputed']} are disputed, and"
        f" {table['lost_their_answer']} have their answer in classes of which the pool holds nothing"
    )
    console.print(
        f"{pool['clips']:,} clips of {pool['recordings']:,} recordings; encoder {setting['encoder']}, {acting},"
        f" min_cosine {setting['retrieval']['min_cosine']:g}"
    )
    rows = Table("", "n", "precision", "kept", "wrong answers", "candidates", "evenness", box=None)
    for name, figures in (("all", found), *found["by_kind"].items()):
        told = (_told(figures, figure) for figure in FIGURES)
        rows.add_row(name, str(figures["n"]), *told, *(_number(figures[one]) for one in ("candidates", "evenness")))
    console.print(rows)
    _print_faults(found["concepts"], console)
    points = Table("over", "at", "precision", "kept", "wrong answers", box=None)
    for point in found["curve"]:
        points.add_row(point["over"], f"{point['at']:.2f}", *(_number(point[figure]) for figure in FIGURES))
    console.print(points)


def _told(figures: Mapping[str, Any], name: str) -> str:
    interval = figures["intervals"][name]
    return _number(figures[name]) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print_faults(concepts: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Name what is answered wrongly, the surest first, and what is dropped though it has an answer, the nearest."""
    wrong = sorted((c for c in concepts if c["verdict"] != "disputed" and c["wrong"] > 0), key=_wrongest)
    lost = sorted((c for c in concepts if c["verdict"] == "answerable" and c["dropped"]), key=lambda c: -c["cosine"])
    for title, faults in (("answered wrongly", wrong), ("dropped, though there is an answer", lost)):
        if faults:
            console.print(f"{title}: {len(faults)}")
        for fault in faults[:WORST]:
            chance = f" ({fault['wrong']:.0%} of draws)" if fault["wrong"] else f" ({fault['reason']})"
            near = f"{fault['best'][:60]}, cosine {fault['cosine']:.2f}, limit {fault['limit']:.2f}"
            console.print(f"  {fault['concept'][:80]} -> {near}{chance}", markup=False, highlight=False)


def _wrongest(concept: Mapping[str, Any]) -> tuple[float, float]:
    return -concept["wrong"], -concept["cosine"]


def print_calibration(found: Calibration, console: Console) -> None:
    """The cross-fitted figures at each risk."""
    console.print(
        f"{found.encoder}: {found.table}; chance of a right draw = logistic({found.intercept:.3f} +"
        f" {found.similarity:.3f} s + {found.standing:.3f} (s - mean) / deviation)"
    )
    rows = Table("risk", "precision", "kept", "wrong answers", "least chance", box=None)
    for row in found.risks:
        figures = (row.precision, row.kept, row.wrong_answers, row.probability)
        rows.add_row(f"{row.risk:g}", *(f"{value:.3f}" for value in figures))
    console.print(rows)
    console.print("cross-fitted: each concept under a limit that the other folds chose")


def write_calibration(place: Path, found: Calibration) -> None:
    """Add a calibration to a file, or make one."""
    others = read_calibrations(place) if place.exists() else {}
    write_calibrations(place, {**others, found.encoder: found})


def main(argv: Sequence[str] | None = None, prog: str = "python -m eval.pairing") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Judge what is drawn for the concepts of a labelled table.")
    parser.add_argument("--table", type=argument_of(to_place), required=True, metavar="T", help="concept, kind, ...")
    parser.add_argument("--run", type=argument_of(to_run_dir), required=True, metavar="RUN", help="a run with a pool")
    parser.add_argument("--json", action="store_true", help="all figures, and every concept's")
    parser.add_argument("--calibrate", action="store_true", help="choose the limits of the run's encoder on the table")
    parser.add_argument("--out", type=argument_of(to_folder), metavar="FILE", help="with --calibrate: add them to it")
    parser.add_argument("--verbose", action="store_true", help="say more")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="retrieval.KEY=VALUE: other settings")
    arguments = parser.parse_args(argv)
    return run_command("eval.pairing", lambda: _run(arguments), verbose=arguments.verbose)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.out is not None and not arguments.calibrate:
        raise InputError("--out: goes with --calibrate, which writes limits")
    console = Console() if sys.stdout.isatty() else Console(width=160)
    if arguments.calibrate:
        found = calibrate_run(arguments.run, arguments.table, arguments.overrides)
        if arguments.out is not None:
            write_calibration(arguments.out, found)
        if arguments.json:
            _print_json(asdict(found))
        else:
            print_calibration(found, console)
        return
    judged = judge_run(arguments.run, arguments.table, arguments.overrides)
    if arguments.json:
        _print_json(judged)
    else:
        print_judged(judged, console)


def _print_json(value: Any) -> None:
    sys.stdout.write(f"{json.dumps(value, indent=1, ensure_ascii=False)}\n")
