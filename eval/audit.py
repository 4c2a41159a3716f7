"""Which metric tells a true sound from a wrong one? To be known before a score by it is published.

    python -m eval.audit --suite SUITE --manifests FOLDER [FOLDER ...] --out DIR [--null FOLDER ...]

Each item keeps its sound and is given a picture that the same model made, under the same settings, for another item:

other label      of an item of other labels: the primary control, by which a metric `tells` or does not
other recording  of any item of another recording: what is usually called shuffled, and has pictures of like sounds
guidance off     pictures of the folders after `--null`, made from the same sounds with guidance switched off: the null
                 condition. It measures what guidance does, and no metric is judged by it

OUT/audit.json  what was found; OUT/audit.csv  a line for each metric, model and control; OUT/audit.png  the same to see

N  pictures, R  recordings
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.audit", extra="eval"))

import argparse
import csv
import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from eval.figures import COLOURS
from eval.pictures import Made, Picture, read_made
from eval.report import printable
from eval.run import VECTORS, choose_metrics, choose_towers
from eval.score import gather_for, give, picture_values, roles_of
from eval.statistics import FEW, Difference, Estimate, difference_estimate, holm, mean_estimate, recording_means
from eval.study import check_out, write_study
from eval.suites.derange import derange
from eval.suites.suite import Suite, read_suite
from eval.towers.cache import Vectors
from eval.towers.opened import open_judges
from sonify.errors import InputError
from sonify.io.write import write_whole
from sonify.stores import to_folder
from sonify.terminal import Parser, argument_of, run_command

# What each metric says of pictures, in their order, more being better; NaN where it says nothing. A picture is held
# against its `item`; where it has a `donor`, that one's sound is left out of the pool.
Scorer = Callable[[Sequence[Picture]], Mapping[str, np.ndarray]]

NAME = "audit"
OTHER_LABEL, OTHER_RECORDING, NULL = "other label", "other recording", "guidance off"
PRIMARY = OTHER_LABEL
DRAWS = 8  # permutations of each kind; an item's wrong score is their mean
SEED = 0  # of the first permutation and of the resamples
CHANCE = 0.5
SIGNIFICANT = 0.05
TELLS, TELLS_NOT, TOO_FEW = "tells", "does not tell", "too few recordings to say"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a metric gives a model's pictures for their own sounds beyond what it gives a control's.

    `difference` is of recordings' means. `share` of the items have more for the true picture than for the wrong one (a
    tie is half): 0.5 is chance, and its interval is of recordings too. `left_out` items lack a value of one kind.
    Only the primary control is judged, and only its findings make the family of `p_holm`. `verdict` is `tells` where
    that is 0.05 at most and the interval lies above 0; else `too few recordings to say` where there are fewer than ten,
    or too few for any p to pass in so large a family; else `does not tell`. It is empty for other controls.
    """

    metric: str
    model: str
    control: str
    true: float
    wrong: float
    difference: Difference
    p_holm: float | None
    share: Estimate
    items: int
    recordings: int
    left_out: int
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All findings; `notes` say which control could not be had, and why."""

    suite: str
    suite_digest: str
    draws: int
    models: Mapping[str, str]  # with the hash of each
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def audit(
    suite: Suite, models: Sequence[Made], scorer: Scorer, nulls: Sequence[Made] = (), draws: int = DRAWS
) -> Audit:
    """Score each model's pictures for their own sounds and for wrong ones, by the same scorer.

    Raises:
        InputError: two models are called the same, a null condition is of none of them, or no control can be had.
    """
    names = [made.model for made in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--manifests: two folders hold pictures of {twice}; give each model once")
    if strange := next((made for made in nulls if made.model not in names), None):
        raise InputError(f"--null {strange.folder}: is of {strange.model}, which is none of {', '.join(names)}")
    findings: list[Finding] = []
    notes: list[str] = []
    for made in models:
        controls, missing = _controls(made, draws)
        notes += missing
        controls |= {NULL: [null.pictures for null in nulls if null.model == made.model]}
        true = _by_item(made.pictures, scorer(made.pictures))
        for control, others in controls.items():
            wrong = [_by_item(pictures, scorer(pictures)) for pictures in others]
            findings += _compare(suite, made.model, control, true, wrong)
    if not findings:
        raise InputError(f"no metric could be audited: {'; '.join(notes) or 'the scorer has none'}")
    return Audit(
        suite=suite.name,
        suite_digest=suite.digest,
        draws=draws,
        models={made.model: made.model_sha256 for made in models},
        findings=tuple(_judged(findings)),
        notes=tuple(notes),
    )


def _judged(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Each finding, those of the primary control with their adjusted p and their verdict."""
    p_values = [one.difference.p for one in findings if one.control == PRIMARY and one.difference.p is not None]
    adjusted = iter(holm(p_values))
    for one in findings:
        if one.control != PRIMARY:
            yield one
            continue
        p_holm = None if one.difference.p is None else next(adjusted)
        # of r signs that are flipped the least p there is: all one way
        hopeless = 2.0 ** (1 - one.recordings) * len(p_values) > SIGNIFICANT
        above = p_holm is not None and p_holm <= SIGNIFICANT and (one.difference.low or 0.0) > 0
        is_few = one.recordings < FEW or (hopeless and not above)
        yield replace(one, p_holm=p_holm, verdict=TOO_FEW if is_few else TELLS if above else TELLS_NOT)


def _controls(made: Made, draws: int) -> tuple[dict[str, list[Sequence[Picture]]], list[str]]:
    """The model's own pictures, given to others: some permutations of each kind, and why a kind cannot be had."""
    items = list({picture.item.id: picture.item for picture in made.pictures}.values())
    controls: dict[str, list[Sequence[Picture]]] = {}
    notes: list[str] = []
    kinds: dict[str, Literal["labels", "recordings"]] = {OTHER_LABEL: "labels", OTHER_RECORDING: "recordings"}
    if not any(item.labels for item in items):
        del kinds[OTHER_LABEL]
        notes.append(f"{made.model}: no item has a label: the primary control, {OTHER_LABEL}, cannot be had")
    for control, across in kinds.items():
        try:
            donors = [derange(items, SEED + n, across) for n in range(draws)]
        except InputError as error:
            notes.append(f"{made.model}: {control}: {error}")
            continue
        controls[control] = [give(made.pictures, each) for each in donors]
    return controls, notes


def _by_item(pictures: Sequence[Picture], values: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """For each metric the mean of each item's pictures, of those of which it says something."""
    found: dict[str, dict[str, float]] = {}
    for metric, values_N in values.items():
        if values_N.shape != (len(pictures),):
            raise ValueError(f"{metric}: expected a value for each of {len(pictures)}, found {values_N.shape}")
        of_item: dict[str, list[float]] = defaultdict(list)
        for picture, value in zip(pictures, values_N.tolist(), strict=True):
            if np.isfinite(value):
                of_item[picture.item.id].append(value)
        found[metric] = {item: float(np.mean(some)) for item, some in of_item.items()}
    return found


def _compare(
    suite: Suite,
    model: str,
    control: str,
    true: Mapping[str, Mapping[str, float]],
    wrong: Sequence[Mapping[str, Mapping[str, float]]],
) -> list[Finding]:
    """The findings of a model under a control, one a metric that says something of both."""
    findings: list[Finding] = []
    for metric, of_true in true.items():
        draws = [draw.get(metric, {}) for draw in wrong]
        items = [item for item in suite.items if item.id in of_true and any(item.id in draw for draw in draws)]
        if not items:
            continue
        wrongs = [[draw[item.id] for draw in draws if item.id in draw] for item in items]
        right_N = np.array([of_true[item.id] for item in items])
        wrong_N = np.array([np.mean(some) for some in wrongs])
        share_N = np.array([_share(right, some) for right, some in zip(right_N.tolist(), wrongs, strict=True)])
        recordings = [item.recording for item in items]
        difference = difference_estimate(recording_means(right_N - wrong_N, recordings)[1], SEED)
        asked = of_true.keys() | {item for draw in draws for item in draw}
        finding = Finding(
            metric=metric,
            model=model,
            control=control,
            true=float(recording_means(right_N, recordings)[1].mean()),
            wrong=float(recording_means(wrong_N, recordings)[1].mean()),
            difference=difference,
            p_holm=None,
            share=mean_estimate(recording_means(share_N, recordings)[1], SEED),
            items=len(items),
            recordings=len(set(recordings)),
            left_out=len(asked) - len(items),
            verdict="",
        )
        findings.append(finding)
    return findings


def _share(right: float, wrongs: Sequence[float]) -> float:
    """How often the right value is the larger one; a tie is half."""
    return float(np.mean([1.0 if right > wrong else CHANCE if right == wrong else 0.0 for wrong in wrongs]))


def verdicts(found: Audit) -> dict[str, str]:
    """Of each metric, whether it tells a true sound from a wrong one: in all models, in some, or in none."""
    by_metric: dict[str, list[str]] = defaultdict(list)
    for one in found.findings:
        if one.verdict:
            by_metric[one.metric].append(one.verdict)
    metrics = dict.fromkeys(one.metric for one in found.findings)
    return {metric: _summed(by_metric[metric]) for metric in metrics}


def _summed(said: Sequence[str]) -> str:
    if not said:
        return "not audited"
    return said[0] if len(set(said)) == 1 else f"tells in {said.count(TELLS)} of {len(said)} models"


COLUMNS = (
    "metric", "model", "control", "verdict", "true", "wrong", "difference", "low", "high", "p", "p_holm",
    "share", "share_low", "share_high", "items", "recordings", "left_out", "note",
)  # fmt: skip


def as_csv(found: Audit) -> bytes:
    """A line for each finding."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in found.findings:
        by, share = one.difference, one.share
        names = (one.metric, one.model, one.control, one.verdict)
        numbers = (one.true, one.wrong, by.value, by.low, by.high, by.p, one.p_holm, share.value, share.low, share.high)
        writer.writerow(
            (*names, *(_digits(value) for value in numbers), one.items, one.recordings, one.left_out, by.note)
        )
    return buffer.getvalue().encode()


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def draw(found: Audit) -> Figure:
    """For each metric the share of items whose true picture has more, by model and control, against chance."""
    metrics = list(dict.fromkeys(one.metric for one in found.findings))
    lines = list(dict.fromkeys((one.model, one.control) for one in found.findings))
    height = 1.2 + len(metrics) * (0.25 + 0.18 * len(lines))
    figure = Figure(figsize=(8.0, height + 0.2 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    marks = {OTHER_LABEL: "o", OTHER_RECORDING: "s", NULL: "^"}
    models = list(found.models)
    for number, (model, control) in enumerate(lines):
        some = [one for one in found.findings if (one.model, one.control) == (model, control)]
        y = [metrics.index(one.metric) + (number - (len(lines) - 1) / 2) * 0.7 / len(lines) for one in some]
        x = [one.share.value for one in some]
        low = [value - (value if one.share.low is None else one.share.low) for one, value in zip(some, x, strict=True)]
        high = [
            (value if one.share.high is None else one.share.high) - value for one, value in zip(some, x, strict=True)
        ]
        colour = COLOURS[models.index(model) % len(COLOURS)]
        axes.errorbar(
            x, y, xerr=[low, high], fmt=marks[control], color=colour, markersize=5, label=f"{model[-60:]}: {control}",
            markerfacecolor=colour if control == PRIMARY else "white",
        )  # fmt: skip
    axes.axvline(CHANCE, color="black", linewidth=0.8, linestyle=":")
    said = verdicts(found)
    axes.set_yticks(range(len(metrics)), [f"{metric}\n{said[metric]}" for metric in metrics], fontsize=8)
    axes.set_xlim(-0.02, 1.02)
    axes.invert_yaxis()
    axes.set_xlabel("share of items with more for the picture of their own sound (dotted: chance)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=7)
    return figure


def summary(found: Audit) -> str:
    """A line for each finding, and the verdicts."""
    lines: list[str] = []
    for one in found.findings:
        by = one.difference
        interval = "" if by.low is None or by.high is None else f" [{by.low:.4g}, {by.high:.4g}]"
        p = "" if one.p_holm is None else f", p {one.p_holm:.2g} (Holm)"
        rough = f" ({by.note})" if by.note else ""
        ending = f", {one.share.value:.2f} of items: {one.verdict}".removesuffix(": ") + rough
        lines.append(f"{one.metric}, {one.model}, {one.control}: {by.value:+.4g}{interval}{p}{ending}")
    lines += [f"{metric}: {said}" for metric, said in verdicts(found).items()]
    return "\n".join([*lines, *found.notes])


def main(argv: Sequence[str] | None = None, prog: str = "eval.audit") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Say which metric tells a true sound from a wrong one.")
    add = parser.add_argument
    add("--suite", type=argument_of(to_folder), required=True, help="what the pictures were made for")
    add(
        "--manifests",
        type=argument_of(to_folder),
        required=True,
        nargs="+",
        metavar="FOLDER",
        help="pictures of models",
    )
    add("--null", type=argument_of(to_folder), nargs="+", default=[], metavar="FOLDER", help="with guidance off")
    add("--draws", type=int, default=DRAWS, help="permutations of each control (default: %(default)s)")
    add("--metrics", nargs="+", metavar="METRIC", help="a part of the suite's metrics")
    add("--towers", metavar="FILE", help="networks that judge (default: those of the suite)")
    add("--vectors", type=argument_of(to_folder), help="where vectors are kept (default: `vectors` beside DIR)")
    add("--out", type=argument_of(to_folder), required=True, help="folder for what is found")
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.draws < 1:
        raise InputError(f"--draws: expected 1 at least, found {arguments.draws}")
    suite = read_suite(arguments.suite)
    metrics = choose_metrics(suite, arguments.metrics)
    models, nulls = ([read_made(suite, one) for one in some] for some in (arguments.manifests, arguments.null))
    judges = open_judges(choose_towers(suite, arguments.towers), roles_of(metrics))
    check_out(arguments.out)
    vectors = Vectors(arguments.vectors or arguments.out.absolute().parent / VECTORS)
    evidence = gather_for(suite, [*models, *nulls], judges, vectors, metrics)

    def scorer(pictures: Sequence[Picture]) -> Mapping[str, np.ndarray]:
        return {name: values.values_N for name, values in picture_values(evidence, pictures, metrics).items()}

    write_audit(audit(suite, models, scorer, nulls, arguments.draws), arguments.out)


def write_audit(found: Audit, out: Path) -> None:
    """Write the three files, and say what was found."""
    write_whole(out / f"{NAME}.csv", as_csv(found))
    write_study(out, NAME, {NAME: found, "verdicts": verdicts(found)}, draw(found))
    sys.stdout.write(f"{printable(summary(found))}\n")
