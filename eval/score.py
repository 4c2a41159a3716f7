"""Scores of what a model made for a suite: arithmetic on vectors (`eval.evidence`) by the table of metrics
(`eval.measures`), with intervals over recordings and the figures that it takes to read them.

What a picture is given to is a parameter: the same functions score a model, its references (`ceiling`) and its pictures
under the sounds of others (`floor`, `eval.audit`).

I  items   N  pictures   D  width of a vector
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.evidence import Evidence, Need, gather, tower_of, way_of
from eval.measures import DISTANCES, INCEPTION_SCORE, MEANS, Distance, Mean, case_of, pool_kind
from eval.metrics import distributions
from eval.metrics.alignment import LEAST_LABELS, Means, Values, aggregate
from eval.pictures import Made, Picture
from eval.scores import Score
from eval.statistics import Estimate, groups_of, mean_estimate, seed_spread
from eval.suites.derange import derange
from eval.suites.suite import Suite
from eval.towers.cache import Vectors
from eval.towers.tower import Judges
from sonify.errors import InputError
from sonify.io.commits import digest_of

DERANGEMENTS = 5  # of which the floor is the mean
SPLITS = (10, 1)  # of the Inception Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores, and what each mean metric gave each item (I,), NaN where it has none."""

    scores: tuple[Score, ...]
    items: Mapping[str, np.ndarray]


def needs_of(metrics: Collection[str]) -> set[Need]:
    """Which ways of which towers metrics need."""
    means = {need for mean in MEANS if mean.asked in metrics for need in mean.needs}
    distances = {distance.need for distance in DISTANCES if distance.asked in metrics}
    return means | distances | ({Need("inception", "images")} if INCEPTION_SCORE in metrics else set())


def roles_of(metrics: Collection[str]) -> set[str]:
    """The roles of the towers that metrics need."""
    return {need.role for need in needs_of(metrics)}


def gather_for(
    suite: Suite, made: Sequence[Made], judges: Judges, vectors: Vectors, metrics: Collection[str]
) -> Evidence:
    """The vectors that metrics need; raises as `gather`."""
    texts: dict[str, set[str]] = {}
    for mean in MEANS:
        if mean.asked in metrics:
            for role, found in mean.texts(suite).items():
                texts.setdefault(role, set()).update(found)
    return gather(suite, made, judges, vectors, needs_of(metrics), texts)


def picture_values(evidence: Evidence, pictures: Sequence[Picture], metrics: Collection[str]) -> dict[str, Values]:
    """What each mean metric that can be had gives each picture, by the metric's name."""
    case = case_of(evidence, pictures)
    return {
        mean.name: mean.measure(case)
        for mean in MEANS
        if mean.asked in metrics and not why_not(evidence, mean) and pictures
    }


def why_not(evidence: Evidence, mean: Mean) -> str:
    """Why a metric has no value on this suite with these towers; empty where it has one."""
    items = evidence.suite.items
    labels = len({label for item in items for label in item.labels})
    least = LEAST_LABELS if mean.asked == "ais_clap" else 2
    without = [need for need in mean.needs if way_of(evidence.judges, need) is None]
    reasons = {
        _no_tower(without[0]) if without else "": bool(without),
        "the suite has no reference pictures": mean.of == "references" and not any(item.references for item in items),
        "the suite has no captions": mean.of == "captions" and not any(item.captions for item in items),
        f"it takes {least} labels at least, the suite has {labels}": mean.of == "labels" and labels < least,
        "no item of the suite has several labels": mean.asked == "recall_all"
        and not any(len(set(item.labels)) > 1 for item in items),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _no_tower(need: Need) -> str:
    return f"no tower: towers.{need.role} is not given, or takes no {need.way}"


def score(
    evidence: Evidence, made: Made, metrics: Collection[str], out: Collection[str] | None = None, seed: int = 0
) -> Scored:
    """Score a model by each metric that is asked for.

    Args:
        out: the ids of the items that the model cannot have met; None where that is not known. Where it is a part of
            the items, each score is given on that part as well.
        seed: of resamples, derangements and flips.

    Raises:
        InputError: nothing of what was made can be used.
    """
    if not made.pictures:
        raise InputError(f"{made.folder}: no picture of it can be used ({len(made.unusable)} are damaged)")
    scores, items = _score_part(evidence, made.pictures, metrics, "all", seed)
    part = [picture for picture in made.pictures if out is not None and picture.item.id in out]
    if part and len(part) < len(made.pictures):
        scores += _score_part(evidence, part, metrics, "out", seed)[0]
    return Scored(scores=tuple(scores), items=items)


def _score_part(
    evidence: Evidence, pictures: Sequence[Picture], metrics: Collection[str], on: str, seed: int
) -> tuple[list[Score], dict[str, np.ndarray]]:
    means, items = _score_means(evidence, pictures, metrics, seed)
    distances = _score_distances(evidence, pictures, metrics)
    return [replace(score, on=on) for score in [*distances, *means]], items


def _score_means(
    evidence: Evidence, pictures: Sequence[Picture], metrics: Collection[str], seed: int
) -> tuple[list[Score], dict[str, np.ndarray]]:
    found = picture_values(evidence, pictures, metrics)
    real = picture_values(evidence, _real_pictures(evidence.suite, pictures), metrics)
    foreign = [picture_values(evidence, given, metrics) for given in _given_to_others(pictures, seed)]
    scores: list[Score] = []
    items: dict[str, np.ndarray] = {}
    for mean in (mean for mean in MEANS if mean.asked in metrics):
        if mean.name not in found:
            scores.append(_without(mean.name, mean, pictures, why_not(evidence, mean)))
            continue
        means = _aggregate(evidence, pictures, found[mean.name])
        if not means.values_R.size:
            reasons = ", ".join(f"{count}: {why}" for why, count in found[mean.name].without.items())
            scores.append(_without(mean.name, mean, pictures, f"no picture has a value ({reasons})"))
            continue
        items[mean.name] = means.values_I
        beside = _beside(pictures, found[mean.name], means)
        if mean.name in real and mean.of != "references":
            beside |= _mean_of("ceiling", evidence, _real_pictures(evidence.suite, pictures), [real[mean.name]])
        beside |= _mean_of("floor", evidence, pictures, [values[mean.name] for values in foreign])
        scores.append(
            Score(
                metric=mean.name,
                definition=mean.definition,
                better=mean.better,
                estimate=mean_estimate(means.values_R, seed),
                images=means.images,
                items=int((~np.isnan(means.values_I)).sum()),
                recordings=len(means.recordings_R),
                seeds=len({picture.seed for picture in pictures}),
                pool_sha256=_pool_of(evidence.suite) if mean.in_pool else None,
                beside=beside,
                **_named(evidence, mean.needs),
            )
        )
    return scores, items


def _pool_of(suite: Suite) -> str:
    """The digest of what a rank is sought among: the pool, and which of it counts."""
    return digest_of([pool_kind(suite), suite.pool_sha256])


def _aggregate(evidence: Evidence, pictures: Sequence[Picture], values: Values) -> Means:
    case = case_of(evidence, pictures)
    return aggregate(values.values_N, case.join.item_of_N, case.join.recordings_I)


def _beside(pictures: Sequence[Picture], values: Values, means: Means) -> dict[str, float]:
    """Figures of the same values: the mean that others print, ties, what the seeds alone change."""
    beside = {"mean_over_images": means.mean_over_images}
    if values.ties:
        beside["ties"] = float(values.ties)
    kept = [n for n, value in enumerate(values.values_N) if not np.isnan(value)]
    spread = seed_spread(
        values.values_N[kept],
        [pictures[n].item.recording for n in kept],
        [pictures[n].seed for n in kept],
    )
    return beside if spread is None else {**beside, "seed_sd": spread}


def _mean_of(name: str, evidence: Evidence, pictures: Sequence[Picture], found: Sequence[Values]) -> dict[str, float]:
    values = [_aggregate(evidence, pictures, each).values_R for each in found]
    means = [float(values_R.mean()) for values_R in values if values_R.size]
    return {name: float(np.mean(means))} if means else {}


def _real_pictures(suite: Suite, pictures: Sequence[Picture]) -> list[Picture]:
    """The first reference of each item that has a picture, as if the model had made it."""
    items = {picture.item.id: picture.item for picture in pictures}
    return [
        Picture(
            item=item,
            seed=0,
            start_sec=0.0,
            path=suite.folder / item.references[0].file,
            sha256=item.references[0].sha256,
            donor=None,
        )
        for item in items.values()
        if item.references
    ]


def _given_to_others(pictures: Sequence[Picture], seed: int) -> list[list[Picture]]:
    """The same pictures given to items of other labels, or of other recordings where that cannot be; several times."""
    items = list({picture.item.id: picture.item for picture in pictures}.values())
    for across in ("labels", "recordings"):
        try:
            donors = [derange(items, seed + n, across) for n in range(DERANGEMENTS)]
        except InputError:  # a label or a recording has more than half of them
            continue
        return [give(pictures, each) for each in donors]
    return []


def give(pictures: Sequence[Picture], donors: Mapping[str, str]) -> list[Picture]:
    """Each picture given to the item whose donor its own item is."""
    items = {picture.item.id: picture.item for picture in pictures}
    taker = {donor: items[item] for item, donor in donors.items()}
    return [
        replace(picture, item=taker[picture.item.id], donor=picture.donor or picture.item.id) for picture in pictures
    ]


def _without(name: str, metric: Mean | Distance, pictures: Sequence[Picture], why: str) -> Score:
    better = metric.better if isinstance(metric, Mean) else metric.names[name]
    return Score(
        metric=name,
        definition=metric.definition,
        better=better,
        estimate=None,
        reason=why,
        **_counts(pictures),
        towers={},
    )


def _counts(pictures: Sequence[Picture]) -> dict[str, Any]:
    return {
        "images": len(pictures),
        "items": len({picture.item.id for picture in pictures}),
        "recordings": len({picture.item.recording for picture in pictures}),
        "seeds": len({picture.seed for picture in pictures}),
    }


def _named(evidence: Evidence, needs: Sequence[Need]) -> dict[str, Any]:
    """Weights, preprocessing and rate of the ways that a metric took."""
    ways = [way for need in needs if (way := way_of(evidence.judges, need)) is not None]
    towers = {need.role: tower for need in needs if (tower := tower_of(evidence.judges, need.role)) is not None}
    rates = [way.sample_rate_hz for way in ways if way.sample_rate_hz is not None]
    return {
        "towers": {role: tower.sha256 for role, tower in towers.items()},
        "preprocessing": tuple(dict.fromkeys(way.preprocessing for way in ways)),
        "sample_rate_hz": rates[0] if rates else None,
    }


def _score_distances(evidence: Evidence, pictures: Sequence[Picture], metrics: Collection[str]) -> list[Score]:
    found = distance_estimates(evidence, pictures, metrics)
    scores = [
        _distance_score(evidence, distance, name, pictures, found[name])
        for distance in DISTANCES
        if distance.asked in metrics
        for name in distance.names
    ]
    return [*scores, *([_inception_score(evidence, pictures)] if INCEPTION_SCORE in metrics else [])]


def distance_estimates(
    evidence: Evidence, pictures: Sequence[Picture], metrics: Collection[str]
) -> dict[str, Estimate | str]:
    """The distances of made pictures from the references of the items that they are of, by name; or why there is none.

    Without each group of recordings both the pictures made for it and its references are left out.
    """
    found: dict[str, Estimate | str] = {}
    for distance in (distance for distance in DISTANCES if distance.asked in metrics):
        if way_of(evidence.judges, distance.need) is None:
            found |= dict.fromkeys(distance.names, _no_tower(distance.need))
        else:
            found |= _estimates(evidence, distance, pictures)
    return found


def _estimates(evidence: Evidence, distance: Distance, pictures: Sequence[Picture]) -> Mapping[str, Estimate | str]:
    items = list({picture.item.id: picture.item for picture in pictures}.values())
    real = [(reference.sha256, item.recording) for item in items for reference in item.references]
    recordings = sorted({item.recording for item in items})
    if not real:
        return dict.fromkeys(distance.names, "the suite has no reference pictures")
    if len(recordings) < 2:
        return dict.fromkeys(distance.names, "it takes two recordings at least, found 1")
    group = dict(zip(recordings, groups_of(recordings).tolist(), strict=True))
    real_groups_N = np.array([group[recording] for _, recording in real], dtype=int)
    made_groups_N = np.array([group[picture.item.recording] for picture in pictures], dtype=int)
    real_ND = _features(evidence, distance.need, [sha256 for sha256, _ in real])
    made_ND = _features(evidence, distance.need, [picture.sha256 for picture in pictures])
    try:
        return distance.measure(real_ND, made_ND, real_groups_N, made_groups_N)
    except ValueError as error:  # too few pictures, or vectors that are not finite
        return dict.fromkeys(distance.names, str(error))


def _features(evidence: Evidence, need: Need, keys: Sequence[str]) -> np.ndarray:
    """Vectors without the class logits at their end."""
    tower = tower_of(evidence.judges, need.role)
    vectors_ND = evidence.take(need.role, need.way, keys)
    return vectors_ND[:, : vectors_ND.shape[1] - (tower.logits if tower else 0)]


def _distance_score(
    evidence: Evidence, distance: Distance, name: str, pictures: Sequence[Picture], found: Estimate | str
) -> Score:
    if isinstance(found, str):
        return _without(name, distance, pictures, found)
    return Score(
        metric=name,
        definition=distance.definition,
        better=distance.names[name],
        estimate=found,
        **_counts(pictures),
        beside=_distance_floor(evidence, distance, name, pictures),
        **_named(evidence, (distance.need,)),
    )


def _distance_floor(evidence: Evidence, distance: Distance, name: str, pictures: Sequence[Picture]) -> dict[str, float]:
    """The same distance between the references and other real pictures, as many as there are."""
    items = {picture.item.id: picture.item for picture in pictures}.values()
    real = [reference.sha256 for item in items for reference in item.references]
    others = [stored.sha256 for stored in evidence.suite.others][: len(real)]
    if len(others) < 2:
        return {"references": float(len(real))}
    real_ND, others_ND = (_features(evidence, distance.need, keys) for keys in (real, others))
    groups = [np.arange(len(side)) % 2 for side in (real, others)]
    try:
        found = distance.measure(real_ND, others_ND, *groups)
    except ValueError:  # too few
        return {"references": float(len(real))}
    return {"references": float(len(real)), "floor": found[name].value, "floor_images": float(len(others))}


def _inception_score(evidence: Evidence, pictures: Sequence[Picture]) -> Score:
    need = Need("inception", "images")
    tower = tower_of(evidence.judges, need.role)
    definition = (
        "exp of the mean KL divergence of an image's class probabilities from their mean, in 10 splits, by FID's"
    )
    definition += " Inception without the bias of its last layer (Salimans et al. 2016); never compare different n"
    common: dict[str, Any] = {"metric": INCEPTION_SCORE, "definition": definition, "better": "higher"}
    if tower is None or not tower.logits:
        why = _no_tower(need) if tower is None else "the tower gives no class logits"
        return Score(**common, estimate=None, reason=why, towers={}, **_counts(pictures))
    logits_NC = evidence.take(need.role, need.way, [picture.sha256 for picture in pictures])[:, -tower.logits :]
    if len(pictures) < SPLITS[0]:
        why = f"it takes {SPLITS[0]} pictures at least, found {len(pictures)}"
        return Score(**common, estimate=None, reason=why, towers={}, **_counts(pictures))
    (in_ten, deviation), (in_one, _) = (distributions.inception_score(logits_NC, splits) for splits in SPLITS)
    return Score(
        **common,
        estimate=Estimate(value=in_ten, note="no interval: its splits are not independent of each other"),
        beside={"split_sd": deviation, "in_one_split": in_one},
        **_counts(pictures),
        **_named(evidence, (need,)),
    )
