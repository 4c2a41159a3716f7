"""The result as a page of Markdown and as plain values, from what is known of each model so far.

R  recordings, S  seeds of pictures, K  classes, P  pairs of recordings, L  level differences
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.bench import ARMS, Model
from benchmarks.learning.collection import CLASSES
from benchmarks.learning.judging import LEVELS_DB, Evidence
from benchmarks.learning.verdicts import CHANCE, Estimate, Measured, Verdict, class_means, estimate, of_class, verdicts
from sonify.io.write import write_whole

Known = Mapping[Model, Evidence]
Value = Callable[[Evidence], Measured]
NOT_MEASURED = "not measured"
# Paired differences of accuracy that are reported; what decides stands in verdicts.py.
DIFFERENCES = (
    ("b", "a"), ("a", "c"), ("b", "c"), ("b", "d"), ("b", "d-all"), ("d", "a"), ("d", "c"), ("b", "f"),
    ("b", "f-pool"), ("a", "f"), ("e-fresh", "b"), ("b", "e-one"), ("e-fresh", "e-one"), ("g-wide", "b"),
)  # fmt: skip
OWN_PHOTOS = ("d-all",)  # arms whose photographs are others: what is nearest was looked for among those of the others
FOLDS = (1, 2, 3, 4, 5)
COPY = 0.05
SEEDS_OF = 5  # the fold of which several seeds are trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An estimate and what it is over."""

    estimate: Estimate
    basis: str

    def __str__(self) -> str:
        return f"{self.estimate} ({self.basis})"


def right(evidence: Evidence) -> Measured:
    """The share of right pictures."""
    judged = evidence.judged()
    return Measured(true_R=judged.true_R, uploads_R=evidence.uploads_R, value_R=judged.right_R)


def unguided(evidence: Evidence) -> Measured:
    """The same of pictures without guidance."""
    judged = evidence.judged("unguided")
    return Measured(true_R=judged.true_R, uploads_R=evidence.uploads_R, value_R=judged.right_R)


def above_wrong(evidence: Evidence) -> Measured:
    """How far the share of right pictures is above what pictures of wrong-class audio would get.

    A picture shows one of six classes. Held against each of the five classes that it was not made from, the pictures of
    a recording are right in (1 - right) / 5 of all cases: the mean over all wrong sounds, and not one of them.
    """
    own = right(evidence)
    return Measured(true_R=own.true_R, uploads_R=own.uploads_R, value_R=own.value_R - (1 - own.value_R) / 5)


def spearman(evidence: Evidence) -> Measured:
    """Of each pair of recordings: the rank correlation of their level difference with the log-odds of their classes."""
    first_P, second_P = evidence.classes_P2.T
    log_PLK = evidence.mixed_PLSK.mean(axis=2)
    pairs = np.arange(len(first_P))
    odds_PL = log_PLK[pairs, :, first_P] - log_PLK[pairs, :, second_P]
    ranks_PL, levels_L = _ranks(odds_PL), _ranks(np.array([LEVELS_DB]))[0]
    centred_PL, centred_L = ranks_PL - ranks_PL.mean(axis=1, keepdims=True), levels_L - levels_L.mean()
    lengths_P = np.linalg.norm(centred_PL, axis=1) * np.linalg.norm(centred_L)
    return _of_pairs(evidence, centred_PL @ centred_L / np.maximum(lengths_P, 1e-9))


def both(evidence: Evidence) -> Measured:
    """The share of pictures of even mixtures in which the two classes are the two best."""
    best_PS2 = np.sort(_even(evidence).argsort(axis=-1)[..., -2:], axis=-1)
    wanted_P2 = np.sort(evidence.classes_P2, axis=-1)
    return _of_pairs(evidence, (best_PS2 == wanted_P2[:, None]).all(axis=-1).mean(axis=1))


def either(evidence: Evidence) -> Measured:
    """The share of pictures of even mixtures in which the best class is one of the two."""
    best_PS = _even(evidence).argmax(axis=-1)
    return _of_pairs(evidence, (best_PS[..., None] == evidence.classes_P2[:, None]).any(axis=-1).mean(axis=1))


def _even(evidence: Evidence) -> np.ndarray:
    return evidence.mixed_PLSK[:, LEVELS_DB.index(0.0)]


def _of_pairs(evidence: Evidence, value_P: np.ndarray) -> Measured:
    numbers = evidence.classes_P2[:, 0] * len(CLASSES) + evidence.classes_P2[:, 1]
    return Measured(true_R=numbers, uploads_R=np.arange(len(numbers)), value_R=value_P)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis; equal values share the mean of theirs."""
    below = (values[..., None, :] < values[..., None]).sum(axis=-1)
    same = (values[..., None, :] == values[..., None]).sum(axis=-1)
    return below + (same - 1) / 2


def difference(first: Measured, second: Measured) -> Measured:
    """Of the same recordings, of two arms."""
    assert (first.uploads_R == second.uploads_R).all()
    return Measured(true_R=first.true_R, uploads_R=first.uploads_R, value_R=first.value_R - second.value_R)


def by_folds(known: Known, value: Value, arms: Sequence[str]) -> Found | None:
    """An arm, or how far the first of two is above the second, over all folds with one seed."""
    models = [_of(known, value, arms, fold, 0) for fold in FOLDS]
    there = [model for model in models if model is not None]
    if len(there) < len(FOLDS):
        return None
    return Found(estimate=estimate(there, same_recordings=False), basis="5 folds")


def by_seeds(known: Known, value: Value, arms: Sequence[str]) -> Found | None:
    """The same over the seeds that are there of the fold of which there are several."""
    seeds = sorted({model.seed for model in known if model.fold == SEEDS_OF})
    models = [_of(known, value, arms, SEEDS_OF, seed) for seed in seeds]
    there = [model for model in models if model is not None]
    if not there:
        return None
    return Found(
        estimate=estimate(there, same_recordings=True),
        basis=f"fold {SEEDS_OF}, {len(there)} seed{'s' if len(there) > 1 else ''}",
    )


def _of(known: Known, value: Value, arms: Sequence[str], fold: int, seed: int) -> Measured | None:
    found = [known.get(Model(fold=fold, arm=arm, seed=seed)) for arm in arms]
    values = [value(one) for one in found if one is not None]
    if len(values) < len(arms):
        return None
    return values[0] if len(values) == 1 else difference(values[0], values[1])


def estimates(known: Known) -> dict[str, Found]:
    """All that is measured, by name; over folds where all are there, else over the seeds of one fold."""
    wanted: dict[str, tuple[Value, Sequence[str]]] = {}
    for arm in ARMS:
        wanted[arm] = (right, [arm])
        wanted[f"{arm} - wrong"] = (above_wrong, [arm])
        wanted[f"{arm} unguided"] = (unguided, [arm])
    for first, second in DIFFERENCES:
        wanted[f"{first} - {second}"] = (right, [first, second])
    for name, value in (("spearman", spearman), ("both", both), ("either", either)):
        for arms in (["b"], ["g-wide"], ["g-wide", "b"]):
            wanted[f"{name} {' - '.join(arms)}"] = (value, arms)
    found: dict[str, Found] = {}
    for name, (value, arms) in wanted.items():
        mixing = value in (spearman, both, either)
        folds = None if mixing else by_folds(known, value, arms)
        seeds = by_seeds(_mixing(known) if mixing else known, value, arms)
        if first := folds or seeds:
            found[name] = first
        if folds and seeds:
            found[f"{name} @{SEEDS_OF}"] = seeds
    return found


def _mixing(known: Known) -> Known:
    return {model: evidence for model, evidence in known.items() if len(evidence.classes_P2)}


def per_class(known: Known, arm: str) -> list[tuple[str, Estimate, float, Estimate]]:
    """Of each class: the share of right pictures, the share of other classes' pictures that are taken for it, and the
    share without guidance; over all folds where they are there, else over seeds."""
    models, same = _models(known, arm)
    rows: list[tuple[str, Estimate, float, Estimate]] = []
    for number, name in enumerate(CLASSES):
        own, plain = (
            estimate(of_class([value(one) for one in models], number), same_recordings=same)
            for value in (right, unguided)
        )
        wrong = [one.judged().seen_RS[one.true_R != number] == number for one in models]
        rows.append((name, own, float(np.concatenate(wrong).mean()), plain))
    return rows


def _models(known: Known, arm: str) -> tuple[list[Evidence], bool]:
    """What an arm's figures are over, and whether that is the same recordings."""
    folds = [known.get(Model(fold=fold, arm=arm, seed=0)) for fold in FOLDS]
    if all(folds):
        return [one for one in folds if one is not None], False
    return [one for model, one in known.items() if model.arm == arm and model.fold == SEEDS_OF], True


def recall(known: Known, arm: str, yardsticks: Mapping[str, Any]) -> dict[str, float]:
    """How near pictures are to the nearest training photograph, beside photographs that were not trained on.

    A copy is a picture that is nearer, by features, than all but one in twenty of those photographs.
    """
    found: dict[str, list[float]] = {}
    for model, one in known.items():
        if model.arm != arm:
            continue
        real = yardsticks[str(model.fold)]
        names = np.array([CLASSES.index(name) for name in real["trained_classes"]])
        right_RS = one.judged().seen_RS == one.true_R[:, None]
        copies_RS = one.feature_distance_RS < np.quantile(real["features"], COPY)
        values = {
            "features, pictures": np.median(one.feature_distance_RS),
            "features, photographs": np.median(real["features"]),
            "latents, pictures": np.median(one.latent_distance_RS),
            "latents, photographs": np.median(real["latents"]),
            "copies": copies_RS.mean(),
            "right of copies": right_RS[copies_RS].mean() if copies_RS.any() else np.nan,
            "right of others": right_RS[~copies_RS].mean() if not copies_RS.all() else np.nan,
            "nearest is of its class": (names[one.nearest_RS] == one.true_R[:, None]).mean(),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(float(value))
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if np.isfinite(value)]
    return float(np.mean(there)) if there else 0.0


def markdown(known: Known, facts: Mapping[str, Any], held: Sequence[Verdict]) -> str:
    """The whole page."""
    found = estimates(known)
    arms = [arm for arm in ARMS if any(model.arm == arm for model in known)]
    lines = [f"# {len(known)} models of {facts['steps']} steps", "", "## Thresholds, written down before the runs", ""]
    lines += _table(["expected", "found", ""], [[one.expected, one.found, str(one)] for one in held])
    lines += ["", f"## Balanced accuracy on held-out recordings (chance {100 * CHANCE:.1f} %)", ""]
    header = ["pairs", "own sound", "above sounds of wrong classes", "own sound, guidance 1", "each seed, fold 5"]
    lines += _table(header, [_arm_row(arm, title, found, known) for arm, title in ARMS.items()])
    lines += ["", "## Paired differences", "", *_differences(found)]
    lines += ["", "## Mixtures of two held-out recordings (chance: both 6.7 %, either 33.3 %)", "", *_mixtures(found)]
    lines += ["", "## How near pictures are to training photographs, beside photographs that were left out", ""]
    lines += [*_nearness(known, [arm for arm in arms if arm not in OWN_PHOTOS], facts["yardsticks"])]
    for title, table in facts["counted"].items():
        lines += ["", f"## What all photographs hear: {title}", "", *_counted(table)]
    for arm in arms:
        rows = [[name, own, f"{100 * wrong:.1f} %", plain] for name, own, wrong, plain in per_class(known, arm)]
        lines += ["", f"## ({arm}) by class", "", *_table(["class", "own sound", "other sounds", "guidance 1"], rows)]
    return "\n".join([*lines, ""])


def _differences(found: Mapping[str, Found]) -> list[str]:
    names = [f"{first} - {second}" for first, second in DIFFERENCES]
    rows = [[name, _of_name(found, name), _of_name(found, f"{name} @{SEEDS_OF}")] for name in names]
    return _table(["", "all folds, where there are all", f"fold {SEEDS_OF} beside"], rows)


def _mixtures(found: Mapping[str, Found]) -> list[str]:
    kinds = ("spearman", "both", "either")
    rows = [[arms, *[_of_name(found, f"{kind} {arms}") for kind in kinds]] for arms in ("b", "g-wide", "g-wide - b")]
    return _table(["loudness", "Spearman, in %", "both are the best two", "the best is one of them"], rows)


def _nearness(known: Known, arms: Sequence[str], yardsticks: Mapping[str, Any]) -> list[str]:
    tables = {arm: recall(known, arm, yardsticks) for arm in arms}
    header = ["", *next(iter(tables.values()), {})]
    return _table(header, [[f"({arm})", *(f"{value:.3f}" for value in row.values())] for arm, row in tables.items()])


def _arm_row(arm: str, title: str, found: Mapping[str, Found], known: Known) -> list[str]:
    seeds = [right(one) for model, one in known.items() if model.arm == arm and model.fold == SEEDS_OF]
    each = [100 * np.mean([class_means([one], number) for number in range(len(CLASSES))]) for one in seeds]
    shown = ", ".join(f"{value:.1f}" for value in each) or "-"
    return [f"({arm}) {title}", *[_of_name(found, n) for n in (arm, f"{arm} - wrong", f"{arm} unguided")], shown]


def _of_name(found: Mapping[str, Found], name: str) -> str:
    return str(found[name]) if name in found else NOT_MEASURED


def _counted(table: Mapping[str, Mapping[str, float]]) -> list[str]:
    pool, rows = table["pool"], {name: row for name, row in table.items() if name != "pool"}
    header = ["photographs of", *next(iter(rows.values()))]
    cells = [[name, *(f"{v:.3f}" if isinstance(v, float) else v for v in row.values())] for name, row in rows.items()]
    return [
        f"{pool['recordings']} recordings, {100 * pool['distractors']:.0f} % distractors.",
        "",
        *_table(header, cells),
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    shown = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell) for cell in row)} |" for row in shown]


def json_line(known: Known, facts: Mapping[str, Any], held: Sequence[Verdict]) -> dict[str, Any]:
    """Everything that the page says, as plain values."""
    figures = {
        name: {"value": _round(one.estimate.value), "interval": [_round(one.estimate.low), _round(one.estimate.high)],
               "one_sided": _round(one.estimate.floor), "over": one.basis}
        for name, one in estimates(known).items()
    }  # fmt: skip
    arms = sorted({model.arm for model in known})
    return {
        "name": "learning",
        **{name: value for name, value in facts.items() if name != "yardsticks"},
        "models": [model.key for model in known],
        "found": figures,
        "by_class": {
            arm: {
                name: [_round(own.value), _round(own.low), _round(own.high)] for name, own, *_ in per_class(known, arm)
            }
            for arm in arms
        },
        "recall": {arm: recall(known, arm, facts["yardsticks"]) for arm in arms if arm not in OWN_PHOTOS},
        "verdicts": {one.expected: str(one) for one in held},
    }


def _round(value: float) -> float:
    return round(float(value), 4)


def write_report(out: Path, known: Known, facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Write both, as far as they go."""
    decided = {name: one.estimate for name, one in estimates(known).items()}
    held = verdicts(facts["eye"], facts["ear"], decided)
    page, line = markdown(known, facts, held), json_line(known, facts, held)
    write_whole(out / "report.md", page.encode())
    write_whole(out / "result.json", (json.dumps(line, indent=1) + "\n").encode())
    return page, line
