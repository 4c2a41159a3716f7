"""What a report is made of: `report.json`, `scores.csv`, `scores.tex`, `items.csv`, and the page to look at; and what
is read of one again, to set it beside others.

The same suite, pictures and towers give the same bytes.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from eval.measures import Score
from eval.met import LEVELS
from eval.metrics.alignment import aggregate
from eval.pictures import Made
from eval.suites.suite import Suite
from eval.towers import random
from sonify.errors import InputError
from sonify.io.write import check_replaceable

REPORT = "report.json"
ITEMS = "items.csv"
SCORES = "scores.csv"
LATEX = "scores.tex"
PAGE = "index.html"
STYLE = "report.css"
MEDIA = "media"
NAMES = (REPORT, SCORES, LATEX, ITEMS, PAGE, STYLE, MEDIA)  # all that stands in a report's folder
VERSION = 1
COLUMNS = ("id", "recording", "group", "labels", "level", "images")  # of items.csv, and one a metric
ALL, OUT = PARTS = ("all", "out")
UNKNOWN = "unknown"
RECOUNTED = 1e-6  # how near a score is that is computed again from what items.csv holds
LARGEST = 1e100  # of a number that can be one of a metric, and whose square is a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a report says of one model on one suite; `vectors` is the folder where they are kept."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    version: int
    suite: str
    suite_folder: str
    suite_digest: str
    wanted: int
    found: int
    missing_in_suite: dict[str, int]
    model: str
    model_sha256: str
    manifest: str
    pictures_sha256: str
    items_without_picture: tuple[str, ...]
    unusable: dict[str, str]
    failed: int
    identical: int  # pictures that are pixel for pixel another
    settings: dict[str, Any]  # the manifest's, of its first line
    heard: str  # which file of the items: window | whole | window and whole
    image_px: tuple[int, int]
    met: dict[str, int]  # items by level: in, audio, out, unknown
    trained_on: tuple[str, ...]  # as `eval.met` reads it
    said_of_training: tuple[str, ...]  # by the recipe, such as vggsound_train
    domain: tuple[str, ...]  # of these, what is of the suite's corpus
    towers: dict[str, str]  # by role: the name and the model
    judged_by: dict[str, Any] | None = None  # the sections of the towers; None: a caller's own
    vectors: str | None
    metrics: tuple[str, ...]
    seed: int
    libraries: dict[str, str]  # versions
    scores: tuple[Score, ...]


_REPORT = TypeAdapter(Report)


def read_report(folder: Path) -> Report:
    """Read REPORT/report.json.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / REPORT
    try:
        report = _REPORT.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); `python -m eval.run` writes one") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}; run `python -m eval.run` again") from None
    if report.version != VERSION:
        raise InputError(f"{path}: expected version {VERSION}, found {report.version}; run `python -m eval.run` again")
    return report


def check_out(out: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse a place for a report that holds anything but a report, of whichever version, or what the report is of.

    Raises:
        InputError: as said.
    """
    check_replaceable(out, "a report", NAMES, inputs)
    if out.is_dir() and any(out.iterdir()) and not _is_report(out / REPORT):
        raise InputError(f"--out {out}: holds something else than a report ({REPORT} is none); choose another place")


def _is_report(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"version", "suite_digest", "model_sha256", "scores"} <= found.keys()


def printable(text: str) -> str:
    """Text, which others may have written, as a terminal may show it: each control character as `?`."""
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in text.split("\n"))


def report_bytes(report: Report) -> bytes:
    """What `report.json` holds."""
    plain = _REPORT.dump_python(report, mode="json")
    return (json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def items_csv(suite: Suite, made: Made, levels: Mapping[str, str], items: Mapping[str, np.ndarray]) -> bytes:
    """A line an item: what it is, whether the model may have met it, how many pictures it has, what each mean metric
    gives it."""
    counts: dict[str, int] = {}
    for picture in made.pictures:
        counts[picture.item.id] = counts.get(picture.item.id, 0) + 1
    names = list(items)
    rows = [
        [
            item.id,
            item.recording,
            item.group,
            ";".join(item.labels),
            levels[item.id],
            counts.get(item.id, 0),
            *("" if math.isnan(items[name][n]) else repr(float(items[name][n])) for name in names),
        ]
        for n, item in enumerate(suite.items)
    ]
    return csv_bytes([[*COLUMNS, *names], *rows])


def scores_csv(report: Report) -> bytes:
    """A line a score."""
    header = ["metric", "on", "value", "low", "high", "interval", "images", "items", "recordings", "seeds", "better"]
    beside = [*FLOORS, "floor_images", "value_at_fewer", "ceiling", "mean_over_images", "seed_sd", "ties"]
    rows = [
        [
            score.metric,
            score.on,
            *_numbers(score),
            score.estimate.method if score.estimate else "",
            *(score.images, score.items, score.recordings, score.seeds, score.better),
            *(score.beside.get(name, "") for name in beside),
            score.pool_sha256 or "",
            "; ".join(say_towers(report, score)),
            score.reason or (score.estimate.note if score.estimate else ""),
        ]
        for score in report.scores
    ]
    return csv_bytes([[*header, *beside, "pool_sha256", "towers", "note"], *rows])


def say_towers(report: Report, score: Score) -> list[str]:
    """The towers of a score: what each is for, which it is, and the hash of its weights."""
    return [f"{role}: {report.towers.get(role, '')}, sha256 {sha256}" for role, sha256 in score.towers.items()]


def random_towers(report: Report) -> list[str]:
    """The roles whose tower is a random projection, and no network that has learnt anything."""
    return [role for role, tower in report.towers.items() if tower.startswith(random.NAME)]


def warn_of_random(report: Report) -> str:
    """That numbers are not to be read as such; empty where every tower is a network."""
    found = random_towers(report)
    return f"random projections judge nothing: {', '.join(found)}" if found else ""


def _numbers(score: Score) -> list[Any]:
    estimate = score.estimate
    found = (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
    return ["" if number is None else repr(float(number)) for number in found]


def csv_bytes(rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows as CSV; the first is the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}


def scores_latex(report: Report) -> bytes:
    """A table for a paper, with booktabs: each score with its interval, its floor and ceiling, and n."""
    warning = warn_of_random(report)
    head = ("metric", "on", r"value (95\,\%)", "floor", "ceiling", "$n$")
    table = latex_table("llrrrr", [head], [[_latex_row(score) for score in report.scores]])
    return ("\n".join([*([f"% {warning}"] if warning else []), *table]) + "\n").encode()


def latex_table(columns: str, heads: Sequence[Sequence[str]], parts: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    """The lines of a table with booktabs: rows of cells that are LaTeX already, a rule between the parts."""
    ruled = [[" & ".join(row) + r" \\" for row in part] for part in parts]
    return [
        "% needs \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *(" & ".join(row) + r" \\" for row in heads),
        *(line for part in ruled if part for line in (r"\midrule", *part)),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _latex_row(score: Score) -> tuple[str, ...]:
    name = rf"\texttt{{{latex_escaped(score.metric)}}} {ARROWS[score.better]}"
    ceiling = say_number(score.beside.get("ceiling"))
    return (name, score.on, say_value(score), say_floor(score), ceiling, str(score.images))


# What may stand for a floor: of the same n and of other labels; of fewer pictures; of other recordings alone.
FLOORS = ("floor", "floor_at_fewer", "floor_recordings")


def say_floor(score: Score) -> str:
    """The floor as it is read: one of fewer pictures with the score at as many, one of recordings as such."""
    beside = score.beside
    if "floor_at_fewer" in beside:
        floor, value = (say_number(beside[name]) for name in ("floor_at_fewer", "value_at_fewer"))
        return f"{floor}, of {value} at n = {beside['floor_images']:.0f}"
    if "floor_recordings" in beside:
        return f"{say_number(beside['floor_recordings'])} (recordings)"
    return say_number(beside.get("floor"))


def say_value(score: Score) -> str:
    """A score as it is read: the value and its interval, or that there is none."""
    if score.estimate is None:
        return "not measured"
    text = say_number(score.estimate.value)
    if score.estimate.low is None or score.estimate.high is None:
        return text
    return f"{text} [{say_number(score.estimate.low)}, {say_number(score.estimate.high)}]"


ROUNDING = 1e-9  # below it a score is the rounding of sums


def say_model(report: Report) -> str:
    """A model as it is read: of a folder its last two names."""
    path = Path(report.model)
    return "/".join(path.parts[-2:]) if path.is_absolute() else report.model


def say_number(value: float | None) -> str:
    """Four digits that count; none where there is no value."""
    return "" if value is None else "0" if abs(value) < ROUNDING else f"{value:.4g}"


SPECIAL = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
    }
)


def latex_escaped(text: str) -> str:
    """Text, which others may have written, as LaTeX sets it."""
    return text.translate(SPECIAL)


def say_met(met: Mapping[str, int]) -> str:
    """The share of the items that the model has met, and that it cannot have; nothing where it is not known of any."""
    whole = sum(met.values())
    known = {level: count for level, count in met.items() if count and level != UNKNOWN}
    marks = [f"{level} {100 * count / whole:.0f} %" for level, count in known.items()]
    return ", ".join([*marks, *(["none out"] if known and OUT not in known else [])])


def left_out(report: Report) -> list[str]:
    """What a report does not rest on, a line each: what the suite misses, what the model did not make, what it met."""
    lines: list[str] = []
    if report.wanted > report.found:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.missing_in_suite.items())
        lines.append(f"{report.wanted - report.found:,} of the suite's {report.wanted:,} items are missing ({reasons})")
    if report.items_without_picture:
        lines.append(f"{len(report.items_without_picture):,} of {report.found:,} items have no picture")
    if report.unusable:
        name, why = next(iter(report.unusable.items()))
        lines.append(f"{len(report.unusable):,} pictures cannot be used, such as {name} ({why})")
    if report.failed:
        lines.append(f"{report.failed:,} pictures failed when they were made (failed.csv)")
    if report.identical and report.settings.get("control") != "references":
        lines.append(f"{report.identical:,} pictures are, pixel for pixel, that of another item or seed")
    counts = ", ".join(f"{count:,} {level}" for level, count in report.met.items() if count)
    lines.append(f"in or out of sample: {counts}" + ("" if report.trained_on else "; --trained-on tells"))
    if report.said_of_training:
        of_it = f": {', '.join(report.domain)} is of this suite's corpus (domain)" if report.domain else ""
        lines.append(f"trained on {', '.join(report.said_of_training)}, as its recipe says{of_it}")
    return lines


def made_and_judged(report: Report) -> list[str]:
    """How the pictures were made, as far as their manifest says, and the libraries that the numbers rest on."""
    said = {name: report.settings.get(name) for name in ("guidance", "steps", "commit")}
    width, height = report.image_px
    control = report.settings.get("control")
    made = [f"the control {control}, which hears nothing" if control else f"heard: {report.heard}"]
    made += [f"pictures of {width} x {height}"]
    made += [f"{name} {value}" for name, value in said.items() if value is not None]
    return ["; ".join(made), ", ".join(f"{name} {version}" for name, version in report.libraries.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportItem:
    """A line of `items.csv`; `values` are those of the mean metrics that it has a value of."""

    recording: str
    level: str
    images: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One model on one suite: its scores over all items, by metric, and every item by its id.

    `outs` are the scores on the items that the model cannot have met, where these are a part of all.
    """

    folder: Path
    report: Report
    scores: Mapping[str, Score]
    outs: Mapping[str, Score]
    means: tuple[str, ...]  # the metrics that are means of what items.csv holds
    items: Mapping[str, ReportItem]

    @property
    def pictured(self) -> set[str]:
        """The items that have an image."""
        return {name for name, item in self.items.items() if item.images}

    @property
    def out(self) -> set[str] | None:
        """Of these the ones that the model cannot have met; None where nothing is known of what it has."""
        levels = {name: self.items[name].level for name in self.pictured}
        return {name for name, level in levels.items() if level == "out"} if set(levels.values()) != {UNKNOWN} else None


def read_side(folder: Path) -> Side:
    """Read what `eval.run` wrote.

    Raises:
        InputError: it is no report, a line of it is damaged, or its two files are not of one run.
    """
    report = read_report(folder)
    try:
        text = (folder / ITEMS).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{folder / ITEMS}: cannot be read ({reason}); run `python -m eval.run` again") from None
    for score in report.scores:
        _check_score(folder, score)
    if len({(score.metric, score.on) for score in report.scores}) < len(report.scores):
        raise InputError(f"{folder / REPORT}: names a metric twice; run `python -m eval.run` again")
    scores, outs = ({score.metric: score for score in report.scores if score.on == on} for on in PARTS)
    try:
        means, items = _read_items(text)
    except (ValueError, csv.Error) as error:
        raise InputError(f"{folder / ITEMS}: {error}; run `python -m eval.run` again") from None
    side = Side(folder=folder, report=report, scores=scores, outs=outs, means=means, items=items)
    _check_means(side)
    return side


def _check_score(folder: Path, score: Score) -> None:
    if score.better not in ("higher", "lower"):
        raise InputError(f"{folder / REPORT}: {score.metric}: better: expected higher or lower, found {score.better!r}")
    if "floor_at_fewer" in score.beside and not {"value_at_fewer", "floor_images"} <= score.beside.keys():
        raise InputError(
            f"{folder / REPORT}: {score.metric}: a floor of fewer pictures without the value at as many; run"
            " `python -m eval.run` again"
        )
    numbers = () if score.estimate is None else (score.estimate.value, *score.estimate.replicates)
    if not all(abs(number) < LARGEST for number in numbers):
        raise InputError(
            f"{folder / REPORT}: {score.metric}: holds a number that no metric has; run `python -m eval.run` again"
        )


def _read_items(text: str) -> tuple[tuple[str, ...], dict[str, ReportItem]]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = tuple(next(lines, ()))
    if header[: len(COLUMNS)] != COLUMNS or len(set(header)) < len(header):
        raise ValueError(f"expected the columns {','.join(COLUMNS)} and one a metric, found {','.join(header)[:200]!r}")
    means, items = header[len(COLUMNS) :], {}
    for cells in lines:
        if len(cells) != len(header):
            raise ValueError(f"line {lines.line_num}: expected {len(header)} cells, found {len(cells)}")
        item = cells[0]
        if item in items:
            raise ValueError(f"line {lines.line_num}: names {item!r} twice")
        try:
            items[item] = _read_item(means, cells)
        except ValueError as error:
            raise ValueError(f"line {lines.line_num}: {error}") from None
    if not items:
        raise ValueError("names no item")
    return means, items


def _read_item(means: Sequence[str], cells: Sequence[str]) -> ReportItem:
    _, recording, _, _, level, images, *numbers = cells
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, found {level[:40]!r}")
    if not images.isascii() or not images.isdigit() or len(images) > 9:
        raise ValueError(f"images: expected a whole number, found {images[:40]!r}")
    values = {metric: float(number) for metric, number in zip(means, numbers, strict=True) if number}
    if wrong := next((metric for metric, value in values.items() if not abs(value) < LARGEST), None):
        raise ValueError(f"{wrong}: expected a number or nothing, found {values[wrong]}")
    return ReportItem(recording=recording, level=level, images=int(images), values=values)


def _check_means(side: Side) -> None:
    """Whether both files are of one run: the scores follow from the items."""
    for metric in side.means:
        score = side.scores.get(metric)
        if score is None:
            raise InputError(
                f"{side.folder / ITEMS}: has {metric}, which {REPORT} does not know; run `python -m eval.run` again"
            )
        means_R = by_recording(metric, side.items.values())
        again = float(means_R.mean()) if means_R.size else None
        found = score.estimate.value if score.estimate else None
        if again is None or found is None:
            alike = again == found
        else:
            alike = math.isclose(again, found, rel_tol=RECOUNTED, abs_tol=RECOUNTED**2)
        if not alike:
            raise InputError(
                f"{side.folder}: {metric} is {found} by {REPORT} and {again} by {ITEMS}: not of one run, or changed;"
                " run `python -m eval.run` again"
            )


def by_recording(metric: str, items: Iterable[ReportItem]) -> np.ndarray:
    """The means of recordings, in the order of their first item with a value."""
    having = [item for item in items if metric in item.values]
    values = np.array([item.values[metric] for item in having])
    return aggregate(values, np.arange(len(having)), [item.recording for item in having]).values_R
