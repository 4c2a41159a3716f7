"""Models by suites in one table, from the reports of `eval.run`.

    python -m eval.table --reports [NAME=]REPORT ... [--against MODEL] [--metrics SCORE ...] --out DIR

A row is a score on a suite, a column a model (in LaTeX the other way round), a cell a value with its interval. Reports
of one suite have to be judged alike; what else sets their cells apart (other items, another number of pictures, another
kind of floor) is a footnote. A cell that is not there is empty, and a footnote says why. With `--against` every model
is set against that one by the paired tests of `eval.compare`, and the p of the whole table are adjusted together, by
Holm's steps. Controls stand in the table and in no test; scores that random projections judge are in none either. DIR
gets `table.json`, `table.csv`, `table.tex`, `table.md` and `table.html`.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.table", extra="eval"))

import argparse
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from eval.compare import Distances, Row, check_comparable, check_scores, compare_pair, judge_rows
from eval.measures import Score
from eval.report import (
    ALL,
    FLOORS,
    OUT,
    REPORT,
    UNKNOWN,
    Report,
    Side,
    random_towers,
    read_side,
    say_floor,
    say_met,
    say_model,
    warn_of_random,
)
from eval.run import distances_on
from eval.table_forms import FORMS, Cell, Column, Line, SuiteColumns, Table, print_table, write_table
from sonify.errors import InputError, did_you_mean
from sonify.io.write import check_replaceable
from sonify.stores import to_folder
from sonify.terminal import Parser, argument_of, run_command

PIPELINE = "pipeline"  # of a training run, `RELEASE` of `train.checkpoints`; to import that takes torch
NOT_TESTED = "not tested: random projections judge nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A report, and the name that its model is to have here; empty: the report's own."""

    name: str
    side: Side


def main(argv: Sequence[str] | None = None, prog: str = "eval.table") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Models by suites in one table.")
    parser.add_argument(
        "--reports", nargs="+", required=True, metavar="[NAME=]REPORT", help="folders of eval.run; NAME: of the model"
    )
    parser.add_argument("--against", metavar="MODEL", help="the model from which the others' differences are shown")
    parser.add_argument("--metrics", nargs="+", default=(), metavar="SCORE", help="a part of the reports' scores")
    parser.add_argument("--out", type=argument_of(to_folder), required=True, metavar="DIR", help="folder for the table")
    parser.add_argument("--note", default="", metavar="TEXT", help="what has to be said above the table")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of the tests (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of flips and resamples (default: %(default)s)")
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.alpha < 1:
        raise InputError(f"--alpha: expected a number between 0 and 1, found {arguments.alpha}")
    if arguments.seed < 0:
        raise InputError(f"--seed: expected 0 or more, found {arguments.seed}")
    if (arguments.out / REPORT).exists():
        raise InputError(f"--out {arguments.out}: is a report's folder; choose another place")
    check_replaceable(arguments.out, "a table", {*FORMS, *(f".{name}.partial" for name in FORMS)}, {})
    table = make_table(
        [read_given(word) for word in arguments.reports],
        against=arguments.against,
        metrics=arguments.metrics,
        alpha=arguments.alpha,
        seed=arguments.seed,
        distances=lambda side, other, common: distances_on(side.report, common, other.report),
    )
    table = replace(table, note=arguments.note)
    write_table(table, arguments.out)
    print_table(table, sys.stdout)
    sys.stdout.write(f"{arguments.out / 'table.html'}\n{arguments.out / 'table.json'}\n")


def read_given(word: str) -> Given:
    """A report as the command is given it: its folder, or NAME=FOLDER.

    Raises:
        InputError: the name is empty or no name, or there is no report.
    """
    name, sign, place = word.partition("=")
    if not sign or Path(word).exists():  # a folder may have such a sign in its name
        name, place = "", word
    elif not name.strip() or not name.isprintable():
        raise InputError(f"--reports {word}: expected NAME=REPORT, found the name {name!r}")
    try:
        folder = to_folder(place)
    except ValueError as error:
        raise InputError(f"--reports {word}: {error}") from None
    return Given(name=name.strip(), side=read_side(folder))


def make_table(
    given: Sequence[Given],
    *,
    against: str | None = None,
    metrics: Collection[str] = (),
    alpha: float = 0.05,
    seed: int = 0,
    distances: Distances | None = None,
) -> Table:
    """Set reports beside each other.

    Args:
        given: of any models on any suites; one of each model on each suite.
        against: the model from which differences are shown; None: no differences.
        metrics: the scores that are shown, and so the family of tests; all where none is named.
        alpha: a difference is shown where its adjusted p is not above it.
        seed: of flips and resamples.
        distances: as of `eval.compare.compare_reports`.

    Raises:
        InputError: a report is given twice, or a model has two on one suite; reports of one suite are not judged
            alike; no report has a score that is asked for, or none is of the model that is chosen.
    """
    sides = [each.side for each in given]
    _check_given(sides)
    check_scores(sides, metrics)
    models = _name_models(given)
    chosen = None if against is None else _choose(models, against)
    suites: dict[str, dict[str, Side]] = defaultdict(dict)
    for model, found in models.items():
        for side in found:
            if other := suites[side.report.suite].get(model):
                raise InputError(
                    f"{side.folder}: is a second report of {model} on {side.report.suite}, beside {other.folder}; give"
                    " one, or tell them apart as NAME=REPORT"
                )
            suites[side.report.suite][model] = side
    order = list(dict.fromkeys(side.report.suite for side in sides))
    suites = {name: suites[name] for name in order}
    rows = {} if chosen is None else _differences(suites, chosen, metrics, seed, distances)
    random = {key for key in rows if _is_random(suites[key[0]].values(), key[2])}
    tested = {key: row for key, row in rows.items() if key not in random}
    family, judged = judge_rows(list(tested.values()), alpha)
    judged_rows = dict(zip(tested, judged, strict=True)) | {key: _untested(rows[key]) for key in random}
    lines = [_line_of(name, found) for name, found in models.items()]
    lines.sort(key=lambda line: bool(line.control))  # controls stand apart, below
    wanted = Wanted(
        metrics=metrics,
        models=[line.name for line in lines],
        chosen=chosen,
        rows=judged_rows,
        notes=Notes(),
    )
    return Table(
        against=chosen,
        alpha=alpha,
        seed=seed,
        family=family,
        untested={} if chosen is None else _say_untested(lines, chosen, random),
        lines=tuple(lines),
        suites=tuple(_columns_of(suite, found, wanted) for suite, found in suites.items()),
        notes=tuple(wanted.notes.texts),
    )


def _check_given(sides: Sequence[Side]) -> None:
    places: set[Path] = set()
    for side in sides:
        if side.folder.resolve() in places:
            raise InputError(f"--reports: expected different reports, found {side.folder} twice")
        places.add(side.folder.resolve())
    # each with each: what the first was not judged by, two others may have been judged by in two ways
    for one, other in combinations(sides, 2):
        if one.report.suite == other.report.suite:
            check_comparable(one, other)


class Notes:
    """Footnotes; the same text is one, whatever it is said of."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, *texts: str) -> tuple[int, ...]:
        """The numbers of texts, from 1 on; an empty one has none."""
        for text in texts:
            if text and text not in self.texts:
                self.texts.append(text)
        return tuple(dict.fromkeys(self.texts.index(text) + 1 for text in texts if text))


# --- which report is of which model


def _name_models(given: Sequence[Given]) -> dict[str, list[Side]]:
    """The reports of each model, by a name that no other has: as it is read, else in full, else with its digest."""
    found: dict[tuple[str, str, str], list[Side]] = defaultdict(list)
    for each in given:
        report = each.side.report
        found[(each.name, "", "") if each.name else ("", report.model, _digest_of(report))].append(each.side)
    for (name, _, _), sides in found.items():
        digests = {digest for side in sides if (digest := _digest_of(side.report))}
        if name and len(digests) > 1:
            raise InputError(
                f"--reports: {name} is given to reports of two models: {sides[0].folder} and"
                f" {next(side.folder for side in sides if _digest_of(side.report) != _digest_of(sides[0].report))}"
            )
    names = {key: key[0] or _short_name(key[1]) for key in found}
    short = {key: say_model(sides[0].report) for key, sides in found.items()}
    for fuller in (short.__getitem__, lambda key: key[1], lambda key: f"{key[1]} ({key[2][:12] or 'no digest'})"):
        taken = list(names.values())
        names = {key: name if key[0] or taken.count(name) == 1 else fuller(key) for key, name in names.items()}
    if twice := next((name for name in names.values() if list(names.values()).count(name) > 1), None):
        raise InputError(f"--reports: two models are called {twice}; tell them apart as NAME=REPORT")
    return {names[key]: sides for key, sides in found.items()}


def _short_name(model: str) -> str:
    """As it is read: of a folder its last two names, and of what a training run made the run's own."""
    path = Path(model)
    if not path.is_absolute():
        return model
    return path.parent.name if path.name == PIPELINE and path.parent.name else "/".join(path.parts[-2:])


def _digest_of(report: Report) -> str:
    """The digest of a model's files; none of pictures that were taken as they are: theirs is another on each suite."""
    settings = report.settings
    taken = settings.get("kind") == "control" or (settings.get("kind") == "outside" and not settings.get("command"))
    return "" if taken else report.model_sha256


def _choose(models: Mapping[str, Sequence[Side]], asked: str) -> str:
    """The model that is meant: by its name here, or as its reports name it where one alone is called so."""
    called = [name for name, sides in models.items() if asked in (name, sides[0].report.model)]
    if asked in models or len(called) == 1:
        return asked if asked in models else called[0]
    raise InputError(
        f"--against: {'several models are' if called else 'no model is'} called {asked!r}{did_you_mean(asked, models)};"
        f" expected one of {', '.join(models)}"
    )


def _line_of(name: str, sides: Sequence[Side]) -> Line:
    report = sides[0].report
    control = str(report.settings.get("control") or "")
    return Line(
        name=name,
        model=report.model,
        control=f"{control} of {report.settings.get('of')}" if control == "shuffled" else control,
        reports={side.report.suite: str(side.folder) for side in sides},
        model_sha256={side.report.suite: side.report.model_sha256 for side in sides},
    )


# --- differences


Key = tuple[str, str, str, str]  # suite, model, metric, on


def _differences(
    suites: Mapping[str, Mapping[str, Side]],
    chosen: str,
    metrics: Collection[str],
    seed: int,
    distances: Distances | None,
) -> dict[Key, Row]:
    """The rows of all suites on which the chosen model has a report, not judged yet."""
    found: dict[Key, Row] = {}
    for suite, sides in suites.items():
        for model, side in sides.items():
            if chosen not in sides or model == chosen or not side.pictured & sides[chosen].pictured:
                continue
            if _is_control(side.report):  # each model would pay, by Holm's steps, for what nobody asks
                continue
            _, rows = compare_pair(
                sides[chosen], side, (chosen, model), metrics=metrics, seed=seed, distances=distances
            )
            found |= {(suite, model, row.metric, row.on): row for row in rows}
    return found


def _is_control(report: Report) -> bool:
    return bool(report.settings.get("control"))


def _is_random(sides: Iterable[Side], metric: str) -> bool:
    """Whether random projections have a part in a score of any of these reports."""
    return any(
        role in random_towers(side.report)
        for side in sides
        if metric in side.scores
        for role in side.scores[metric].towers
    )


def _untested(row: Row) -> Row:
    """A difference as it is, without what a test says of it."""
    difference = row.difference and replace(row.difference, p=None)
    return replace(row, difference=difference, p_holm=None, verdict=NOT_TESTED)


def _say_untested(lines: Sequence[Line], chosen: str, random: Collection[Key]) -> dict[str, str]:
    """What is in no test, and why."""
    controls = {line.name: "a control: in no difference and in no test" for line in lines if line.control}
    scores = {
        f"{suite}: {metric}": "judged by random projections: in no test" for suite, _, metric, _ in sorted(random)
    }
    return {name: why for name, why in (controls | scores).items() if name != chosen}


# --- cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the columns of a suite are made by: `rows` are judged, `models` all of the table."""

    metrics: Collection[str]
    models: Sequence[str]
    chosen: str | None
    rows: Mapping[Key, Row]
    notes: Notes


def _columns_of(suite: str, sides: Mapping[str, Side], wanted: Wanted) -> SuiteColumns:
    report, notes = next(iter(sides.values())).report, wanted.notes
    names = [name for side in sides.values() for name in side.scores]
    shown = [name for name in dict.fromkeys(names) if not wanted.metrics or name in wanted.metrics]
    ons = {name: [ALL, *([OUT] if any(name in side.outs for side in sides.values()) else [])] for name in shown}
    warnings = tuple(dict.fromkeys(filter(None, (warn_of_random(side.report) for side in sides.values()))))
    return SuiteColumns(
        name=suite,
        digest=report.suite_digest,
        wanted=report.wanted,
        found=report.found,
        met={name: _say_met(side.report) for name, side in sides.items()},
        met_notes={name: notes(_say_domain(name, side.report)) for name, side in sides.items()},
        notes=notes(_say_items(sides), *_say_apart(suite, sides, wanted.chosen)),
        warnings=warnings,
        columns=tuple(_column_of(suite, name, on, sides, wanted) for name in shown for on in ons[name]),
    )


def _say_items(sides: Mapping[str, Side]) -> str:
    """That models have pictures of other items; empty where all have those of the same."""
    if len({frozenset(side.pictured) for side in sides.values()}) == 1:
        return ""
    counts = ", ".join(f"{name} {len(side.pictured):,}" for name, side in sides.items())
    return (
        f"pictures are not of the same items: {counts}; values are of all that a model has, differences of the items"
        " that both have"
    )


def _say_apart(suite: str, sides: Mapping[str, Side], chosen: str | None) -> list[str]:
    """Which models cannot be set against the chosen one on a suite."""
    if chosen is None:
        return []
    if chosen not in sides:
        return [f"no differences on {suite}: there is no report of {chosen} on it"]
    others = {name: side for name, side in sides.items() if not _is_control(side.report)}
    alone = [name for name, side in others.items() if not side.pictured & sides[chosen].pictured]
    return [f"no difference of {name} on {suite}: no item has a picture of it and of {chosen}" for name in alone]


def _say_met(report: Report) -> str:
    if control := report.settings.get("control"):
        return f"control: {control}"
    return say_met(report.met) or UNKNOWN


def _say_domain(name: str, report: Report) -> str:
    """What a recipe says that a model was trained on, of this very corpus."""
    if not report.domain:
        return ""
    return f"{name} was trained on {', '.join(report.domain)}, as its recipe says: of this suite's corpus"


def _column_of(suite: str, metric: str, on: str, sides: Mapping[str, Side], wanted: Wanted) -> Column:
    known = next(side.scores[metric] for side in sides.values() if metric in side.scores)
    found = {name: _score_of(side, metric, on) for name, side in sides.items()}
    scores = {name: score for name, score in found.items() if isinstance(score, Score)}
    is_mean = any(metric in side.means for side in sides.values())
    notes = wanted.notes("" if is_mean else _say_counts(scores), _say_floors(scores))
    cells: list[Cell] = []
    for model in wanted.models:
        score = found.get(model, f"no report of it on {suite}")
        row = wanted.rows.get((suite, model, metric, on))
        if isinstance(score, str):
            cells.append(Cell(model=model, why=score, notes=wanted.notes(score)))
        else:
            cells.append(_compared(_cell_of(model, score, is_mean, wanted.notes), row, wanted.notes))
    return Column(
        metric=metric, on=on, better=known.better, definition=known.definition, cells=tuple(cells), notes=notes
    )


def _score_of(side: Side, metric: str, on: str) -> Score | str:
    """A score with a value, or why there is none."""
    score = side.scores.get(metric)
    if score is None:
        return "not judged by it"
    if on == OUT:
        if side.out is None:
            return "which items it may have met is not known (eval.run --trained-on)"
        if not side.out:
            return "it may have met every item"
        score = score if side.out == side.pictured else side.outs.get(metric)
    if score is None or score.estimate is None:
        return (score.reason if score else "") or "no value"
    return score


def _say_counts(scores: Mapping[str, Score]) -> str:
    """That distances are of other numbers of pictures, on which they depend."""
    if len({score.images for score in scores.values()}) < 2:
        return ""
    counts = ", ".join(f"{name} {score.images:,}" for name, score in scores.items())
    return f"a distance depends on the number of pictures: {counts}; differences are of the pictures that both have"


def _say_floors(scores: Mapping[str, Score]) -> str:
    """That floors are not of one kind, or of other numbers of pictures."""
    kinds = {name: _floor_kind(score) for name, score in scores.items()}
    if len(set(kinds.values())) < 2:
        return ""
    return f"floors are not alike: {', '.join(f'{name} {kind}' for name, kind in kinds.items())}"


def _floor_kind(score: Score) -> str:
    kind = next((name for name in FLOORS if name in score.beside), "none")
    images = score.beside.get("floor_images")
    return kind if images is None else f"{kind} of {images:.0f} pictures"


def _cell_of(model: str, score: Score, is_mean: bool, notes: Notes) -> Cell:
    estimate = score.estimate
    assert estimate is not None
    return Cell(
        model=model,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        floor=say_floor(score),
        at_floor=is_mean and _is_at_floor(score),
        images=score.images,
        items=score.items,
        recordings=score.recordings,
        notes=notes(estimate.note),
    )


def _is_at_floor(score: Score) -> bool:
    """Whether a mean's interval does not clear what the same pictures get for the sounds of others."""
    estimate, floor = score.estimate, next((score.beside[name] for name in FLOORS if name in score.beside), None)
    if estimate is None or floor is None or estimate.low is None or estimate.high is None:
        return False
    return estimate.low <= floor if score.better == "higher" else estimate.high >= floor


def _compared(cell: Cell, row: Row | None, notes: Notes) -> Cell:
    """A cell with its difference from the chosen model's."""
    if row is None:
        return cell
    found = row.difference
    verdict = row.verdict
    if found is not None and row.p_holm is not None and verdict.endswith(" better"):
        verdict = "better" if (found.value > 0) == (row.better == "higher") else "worse"
    said = row.note if found is not None or not row.note else f"no difference from {row.a}: {row.note}"
    return replace(
        cell,
        difference=found,
        p_holm=row.p_holm,
        compared_items=row.items,
        verdict=verdict,
        notes=tuple(dict.fromkeys([*cell.notes, *notes(said)])),
    )
