"""Two models on one suite: by how much they differ, item by item, and whether that is more than chance.

    python -m eval.compare REPORT_A REPORT_B [REPORT_C ...] --out DIR [--alpha 0.05]

Each report of `eval.run` is set against the first, on the items that both have images of. Recordings are the units: the
signs of their differences are flipped, and distances between sets go by the jackknife of their difference. The p of all
that stands in the table are adjusted together, by Holm's steps. Where both reports know what their models may have met
(`eval.run --trained-on`), the items that neither can have met are compared as well: `on` is `all` or `out`.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.compare", extra="eval"))

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.report import ALL, OUT, Side, by_recording, printable, read_side
from eval.run import distances_on
from eval.statistics import Difference, Estimate, difference_estimate, holm, jackknife_difference
from sonify.errors import InputError, did_you_mean
from sonify.io.write import write_whole
from sonify.stores import to_folder
from sonify.terminal import Parser, argument_of, run_command

CSV_COLUMNS = (
    *("metric", "on", "better", "a", "b", "value_a", "value_b", "difference", "low", "high", "p", "p_holm"),
    *("items", "recordings", "verdict", "note"),
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Another scale of the same numbers: it is shown, and is no further test where the other stands in the table.
COPY_OF = {"clip_score_torchmetrics": "clip_score_cosine"}
OF_INTERVAL = 0.05  # what an interval of 95 % that lies to one side of 0 claims
SAME = 1e-9  # two ways of adding up the same numbers: no metric tells models apart by so little

# A report's distances on some of its items, as far as the other report has pictures of them: estimates with replicates
# by metric, or why there is none.
Found = Mapping[str, Estimate | str]
Distances = Callable[["Side", "Side", Collection[str]], Found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A metric of two models: `b` less `a`, where both have it; else `note` says why not.

    The interval is of this difference alone, `p_holm` is adjusted for all that are in the table. `on` is `all` items
    that both have pictures of, or those `out` of what either model can have met.
    """

    metric: str
    on: str
    better: str
    a: str
    b: str
    value_a: float | None = None
    value_b: float | None = None
    difference: Difference | None = None
    p_holm: float | None = None
    items: int = 0
    recordings: int = 0
    verdict: str = "not compared"
    note: str = ""
    copy_of: str = ""  # a score of the table that this is another scale of


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Which items two reports have in common."""

    a: str
    b: str
    common: int
    only_a: int
    only_b: int
    out: int | None  # of the common ones, what neither model can have met; None where that is not known of both


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All of it; models and the folders of their reports go by letters, in the order in which they were given."""

    suite: str
    suite_digest: str
    models: Mapping[str, str]
    model_sha256: Mapping[str, str]
    reports: Mapping[str, str]
    alpha: float
    seed: int
    family: int  # how many tests the p were adjusted for
    pairs: tuple[Pair, ...]
    rows: tuple[Row, ...]


def compare_reports(
    sides: Sequence[Side],
    *,
    alpha: float = 0.05,
    seed: int = 0,
    distances: Distances | None = None,
    metrics: Collection[str] = (),
) -> Comparison:
    """Set each report against the first.

    Args:
        sides: two to 26, of one suite.
        alpha: a difference is shown where its adjusted p is not above it.
        seed: of flips and resamples.
        distances: computes a report's distances on some of its items. None: they are compared only where both reports
            have images of the same items, by the replicates that they keep.
        metrics: the scores to compare, and so the family of tests; all where none is named.

    Raises:
        InputError: they are not of one suite, or not judged alike; a report is given twice; no item is common, or no
            report has a score that is asked for.
    """
    first, *others = sides
    names = dict(zip(LETTERS, sides, strict=False))
    if len({side.folder.resolve() for side in sides}) < len(sides):
        raise InputError("compare: expected different reports, found one given twice")
    check_scores(sides, metrics)
    pairs: list[Pair] = []
    rows: list[Row] = []
    for letter, other in zip(LETTERS[1:], others, strict=False):
        check_comparable(first, other)
        if not first.pictured & other.pictured:
            raise InputError(f"{other.folder}: no item has an image here and in {first.folder}; nothing to compare")
        pair, found = compare_pair(first, other, ("A", letter), metrics=metrics, seed=seed, distances=distances)
        pairs.append(pair)
        rows += found
    family, judged = judge_rows(rows, alpha)
    return Comparison(
        suite=first.report.suite,
        suite_digest=first.report.suite_digest,
        models={letter: side.report.model for letter, side in names.items()},
        model_sha256={letter: side.report.model_sha256 for letter, side in names.items()},
        reports={letter: str(side.folder) for letter, side in names.items()},
        alpha=alpha,
        seed=seed,
        family=family,
        pairs=tuple(pairs),
        rows=judged,
    )


def compare_pair(
    first: Side,
    other: Side,
    names: tuple[str, str],
    *,
    metrics: Collection[str] = (),
    seed: int = 0,
    distances: Distances | None = None,
) -> tuple[Pair, list[Row]]:
    """Set a report against another that it may be compared with and has items in common with.

    What it finds is no verdict yet: `judge_rows` is given the rows of all pairs.
    """
    common = first.pictured & other.pictured
    out = None if first.out is None or other.out is None else first.out & other.out
    pair = Pair(
        a=names[0],
        b=names[1],
        common=len(common),
        only_a=len(first.pictured) - len(common),
        only_b=len(other.pictured) - len(common),
        out=None if out is None else len(out),
    )
    rows = list(_compare_part(Part(first, other, names, ALL, common), metrics, seed, distances))
    if out and out < common:
        rows += _compare_part(Part(first, other, names, OUT, out), metrics, seed, distances)
    return pair, rows


def judge_rows(rows: Sequence[Row], alpha: float) -> tuple[int, tuple[Row, ...]]:
    """The rows of a family with their adjusted p and what they say, and how many tests the family has."""
    p_values = [row.difference.p for row in rows if row.difference and row.difference.p is not None and not row.copy_of]
    adjusted = iter(holm(p_values))
    return len(p_values), tuple(_judged(row, adjusted, alpha) for row in rows)


def check_scores(sides: Sequence[Side], metrics: Collection[str]) -> None:
    """Refuse a score that no report has.

    Raises:
        InputError: as said.
    """
    known = list(dict.fromkeys(metric for side in sides for metric in side.scores))
    if wrong := next((metric for metric in metrics if metric not in known), None):
        raise InputError(
            f"--metrics: no report has the score {wrong!r}{did_you_mean(wrong, known)}; expected some of"
            f" {', '.join(known)}"
        )


def check_comparable(a: Side, b: Side) -> None:
    """Refuse two reports whose numbers do not mean the same; the first that differs is named.

    Raises:
        InputError: as said.
    """
    _refuse(a, b, "suite", a.report.suite, b.report.suite)
    _refuse(a, b, f"digest of the suite {a.report.suite}", a.report.suite_digest, b.report.suite_digest)
    for metric, of_a in a.scores.items():
        of_b = b.scores.get(metric)
        if of_b is None or of_a.estimate is None or of_b.estimate is None:
            continue  # there is nothing that could be taken for the other's
        _refuse(a, b, f"definition of {metric}", (of_a.definition, of_a.better), (of_b.definition, of_b.better))
        for tower in sorted(of_a.towers.keys() | of_b.towers.keys()):
            _refuse(a, b, f"tower {tower} of {metric}", of_a.towers.get(tower), of_b.towers.get(tower))
        _refuse(a, b, f"preprocessing of {metric}", of_a.preprocessing, of_b.preprocessing)
        _refuse(a, b, f"sample rate of {metric}", of_a.sample_rate_hz, of_b.sample_rate_hz)
        _refuse(a, b, f"pool of {metric}", of_a.pool_sha256, of_b.pool_sha256)
    for item in sorted(a.items.keys() & b.items.keys()):
        _refuse(a, b, f"recording of {item}", a.items[item].recording, b.items[item].recording)


def _refuse(a: Side, b: Side, what: str, of_a: object, of_b: object) -> None:
    if of_a != of_b:
        raise InputError(
            f"{b.folder}: its {what} is not that of {a.folder}: {_short(of_b)}, and {_short(of_a)} there; numbers of"
            " reports that differ in it cannot be compared"
        )


def _short(value: object) -> str:
    return repr(value)[:120]


@dataclass(frozen=True, slots=True)
class Part:
    """Two reports, what they are called, and the items on which they are compared."""

    a: Side
    b: Side
    names: tuple[str, str]
    on: str
    items: Collection[str]


def _compare_part(part: Part, asked: Collection[str], seed: int, distances: Distances | None) -> Iterator[Row]:
    a, b = part.a, part.b
    metrics = [metric for metric in dict.fromkeys([*a.scores, *b.scores]) if not asked or metric in asked]
    sets: tuple[Found, Found] | str | None = None  # asked for once, and if at all
    for metric in metrics:
        known = a.scores.get(metric) or b.scores[metric]
        copy_of = COPY_OF.get(metric, "")
        row = Row(metric=metric, on=part.on, better=known.better, a=part.names[0], b=part.names[1],
                  copy_of=copy_of if copy_of in metrics else "")  # fmt: skip
        if why := _absent(metric, part):
            yield replace(row, note=why)
        elif metric in a.means and metric in b.means:
            yield _compare_means(row, part, seed)
        else:
            sets = _distances_of(part, distances) if sets is None else sets
            yield replace(row, note=sets) if isinstance(sets, str) else _compare_distances(row, part, sets)


def _absent(metric: str, part: Part) -> str:
    """Why a metric has no value in one of both; empty where it has."""
    for name, side in zip(part.names, (part.a, part.b), strict=True):
        score = side.scores.get(metric)
        if score is None:
            return f"{name} was not judged by it"
        if score.estimate is None:
            return f"{name} has no value: {score.reason}"
    return ""


def _compare_means(row: Row, part: Part, seed: int) -> Row:
    both = [
        (one, other)
        for item in sorted(part.items)
        if row.metric in (one := part.a.items[item]).values and row.metric in (other := part.b.items[item]).values
    ]
    if not both:
        return replace(row, note="no item has a value in both")
    values_R = by_recording(row.metric, [one for one, _ in both])
    others_R = by_recording(row.metric, [other for _, other in both])
    differences_R = others_R - values_R
    difference = difference_estimate(np.where(np.abs(differences_R) <= SAME, 0.0, differences_R), seed)
    return replace(
        row,
        value_a=float(values_R.mean()),
        value_b=float(others_R.mean()),
        difference=difference,
        items=len(both),
        recordings=len(values_R),
        note=difference.note,
    )


def _distances_of(part: Part, distances: Distances | None) -> tuple[Found, Found] | str:
    """The distances of both on the same items, or why they cannot be had."""
    a, b, items = part.a, part.b, part.items
    images_a, images_b = (sum(side.items[item].images for item in items) for side in (a, b))
    if images_a != images_b and distances is None:
        which = "common items" if part.on == ALL else f"items {part.on} for both"
        return (
            f"a distance depends on the number of images, {part.names[0]} has {images_a} of the {which} and"
            f" {part.names[1]} {images_b}"
        )
    kept_a, kept_b = (_kept(side, part) for side in (a, b))
    if images_a == images_b and kept_a and kept_b:
        return kept_a, kept_b
    if distances is None:
        return "the reports have other items, and a distance on the common ones is not computed here"
    try:
        return distances(a, b, items), distances(b, a, items)
    except InputError as error:
        return f"on the common items it cannot be had: {error}"


def _kept(side: Side, part: Part) -> Found | None:
    """A report's own estimates, where they are of these very items."""
    of_all, of_out = part.items == side.pictured, part.on == OUT and part.items == side.out
    if not of_all and not of_out:
        return None
    scores = side.scores if of_all else side.outs
    return {metric: score.estimate or score.reason for metric, score in scores.items()}


def _compare_distances(row: Row, part: Part, sets: tuple[Found, Found]) -> Row:
    of_a, of_b = (estimates.get(row.metric) for estimates in sets)
    for found in (of_a, of_b):
        if not isinstance(found, Estimate):
            return replace(row, note=found or "on the common items it is not computed")
    assert isinstance(of_a, Estimate)
    assert isinstance(of_b, Estimate)
    row = replace(
        row,
        value_a=of_a.value,
        value_b=of_b.value,
        items=len(part.items),
        recordings=len({part.a.items[item].recording for item in part.items}),
    )
    if not of_a.replicates or not of_b.replicates:
        return replace(row, note="it has no replicates: how sure the difference is is not known")
    try:
        difference = jackknife_difference(of_b, of_a)
    except ValueError as error:
        return replace(row, note=str(error))
    if difference.p is not None and abs(difference.value) <= SAME:
        difference = replace(difference, z=0.0, p=1.0)
    return replace(row, difference=difference, note=difference.note)


def _judged(row: Row, adjusted: Iterator[float], alpha: float) -> Row:
    """A row with its adjusted p and what it says: a difference that is not shown is none that is disproved."""
    if row.difference is None or row.difference.p is None:
        return row
    difference, notes = row.difference, (row.note, _discord(row.difference))
    row = replace(row, note="; ".join(filter(None, notes)))
    if row.copy_of:
        return replace(row, verdict=f"copy of {row.copy_of}")
    p_holm = next(adjusted)
    if p_holm <= alpha:
        more, less = (row.b, row.a) if difference.value > 0 else (row.a, row.b)
        return replace(row, p_holm=p_holm, verdict=f"{more if row.better == 'higher' else less} better")
    # of r signs that are flipped the least p there is: all one way
    hopeless = difference.method == "bootstrap" and 2.0 ** (1 - row.recordings) > alpha
    note = f"{row.recordings} recordings cannot show any at {alpha:g}" if hopeless else row.note
    return replace(row, p_holm=p_holm, verdict="no difference shown", note=note)


def _discord(found: Difference) -> str:
    """A bootstrapped interval and flipped signs are two ways to tell, of few recordings or of scores in steps."""
    if found.low is None or found.high is None or found.p is None:
        return ""
    is_apart = found.low > 0 or found.high < 0
    if is_apart == (found.p <= OF_INTERVAL):
        return ""
    return f"the interval {'leaves out' if is_apart else 'holds'} 0 and p does not say so: p decides"


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write DIR/compare.csv and then DIR/compare.json, each whole; the same reports give the same bytes.

    Raises:
        DiskFull: no room is left.
        InputError: the folder cannot be written to.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in comparison.rows:
        found = row.difference
        parts = (found.value, found.low, found.high, found.p) if found else (None,) * 4
        cells = [row.metric, row.on, row.better, row.a, row.b, row.value_a, row.value_b, *parts, row.p_holm]
        writer.writerow([*cells, row.items, row.recordings, row.verdict, row.note])
    text = json.dumps(asdict(comparison), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(out / "compare.csv", table.getvalue().encode())
    write_whole(out / "compare.json", f"{text}\n".encode())


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table, with what is compared above it and what it does not say below."""
    for letter, model in comparison.models.items():
        console.print(f"{letter}  {_plain(model)}  ({_plain(comparison.reports[letter])})", highlight=False)
    for pair in comparison.pairs:
        alone = f"; left out: {pair.only_a} of A alone, {pair.only_b} of {pair.b} alone"
        left_out = alone if pair.only_a + pair.only_b else ""
        said = f"{pair.a} and {pair.b}: {pair.common} items in common{left_out}{_say_out(pair)}"
        console.print(said, highlight=False)
    table = Table(
        "metric", "on", "better", "A", "other", "", "difference (95 %)", "p", "Holm p", "items", "what it shows"
    )
    for row in comparison.rows:
        found = row.difference
        shown = row.verdict + f" ({row.note})" * bool(row.note)
        table.add_row(
            *map(_plain, (row.metric, row.on, row.better, _number(row.value_a), _number(row.value_b), row.b)),
            _spread(found) if found else "",
            _p(found.p) if found else "",
            _p(row.p_holm),
            f"{row.items} of {row.recordings} recordings" if row.items else "",
            _plain(shown),
        )
    console.print(table)
    console.print(
        f"p adjusted for {comparison.family} tests by Holm, differences are the other less A; intervals are of each"
        f" alone. Above {comparison.alpha:g} no difference is shown, which does not mean that there is none.",
        highlight=False,
    )
    console.print("p decides (of means by flips of signs), not the interval; a row where they disagree says so.")


def _say_out(pair: Pair) -> str:
    if pair.out is None:
        return "; which of them a model may have met is not known of both (eval.run --trained-on)"
    return f"; {pair.out or 'none'} of them out of what either can have met"


def _plain(text: str) -> str:
    """Text of a report as a terminal may show it: neither markup nor a control sequence gets through."""
    return escape(printable(text))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _spread(found: Difference) -> str:
    ends = "" if found.low is None or found.high is None else f" ({found.low:+.3g} to {found.high:+.3g})"
    return f"{found.value:+.3g}{ends}"


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def main(argv: Sequence[str] | None = None, prog: str = "eval.compare") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Compare models on one suite, recording by recording.")
    parser.add_argument(
        "reports", type=argument_of(to_folder), nargs="+", metavar="REPORT", help="folders of eval.run; the first is A"
    )
    parser.add_argument("--out", type=argument_of(to_folder), required=True, metavar="DIR", help="folder for the table")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of the tests (default: %(default)s)")
    parser.add_argument("--metrics", nargs="+", default=(), metavar="SCORE", help="a part of the reports' scores")
    parser.add_argument("--seed", type=int, default=0, help="of flips and resamples (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="say more")
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments), verbose=arguments.verbose)


def _run(arguments: argparse.Namespace) -> None:
    if not 2 <= len(arguments.reports) <= len(LETTERS):
        raise InputError(f"compare: expected 2 to {len(LETTERS)} reports, found {len(arguments.reports)}")
    if not 0 < arguments.alpha < 1:
        raise InputError(f"--alpha: expected a number between 0 and 1, found {arguments.alpha}")
    if arguments.seed < 0:
        raise InputError(f"--seed: expected 0 or more, found {arguments.seed}")
    sides = [read_side(folder) for folder in arguments.reports]
    comparison = compare_reports(
        sides,
        alpha=arguments.alpha,
        seed=arguments.seed,
        metrics=arguments.metrics,
        distances=lambda side, other, common: distances_on(side.report, common, other.report),
    )
    write_comparison(comparison, arguments.out)
    print_comparison(comparison, Console() if sys.stdout.isatty() else Console(width=200))
