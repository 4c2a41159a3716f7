"""Scores of what a model made for a suite: arithmetic on vectors (`eval.evidence`) by the table of metrics
(`eval.measures`), with intervals over recordings and the figures that it takes to read them.

What a picture is given to is a parameter: the same functions score a model, its references (`ceiling`) and its pictures
under the sounds of others (`floor`, `eval.audit`).

What stands beside a mean: `floor`, or `floor_recordings` where the others are not known to have other labels;
`ceiling`, `mean_over_images`, `seed_sd`, `ties` and `tie_share`. Beside a distance: `references`, how many there are;
`floor` of as many other real pictures as were made, or where there are fewer `floor_at_fewer` with `value_at_fewer`,
the made pictures' own at that n; `floor_images` is that n.

I  items   N  pictures   D  width of a vector
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from eval.evidence import Evidence, Need, gather, tower_of, way_of
from eval.measures import DISTANCES, INCEPTION_SCORE, MEANS, Distance, Mean, Score, case_of, pool_kind
from eval.metrics import distributions
from eval.metrics.alignment import LEAST_LABELS, Means, Values, aggregate
from eval.pictures import Made, Picture
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
    references = _real_pictures(evidence.suite, pictures)
    real = picture_values(evidence, references, metrics)
    floor, dealt = _given_to_others(evidence.suite, pictures, seed)
    foreign = [picture_values(evidence, given, metrics) for given in dealt]
    scores: list[Score] = []
    items: dict[str, np.ndarray] = {}
    for mean in (mean for mean in MEANS if mean.asked in metrics):
        if mean.name not in found:
            scores.append(_without(evidence.suite, mean.name, mean, pictures, why_not(evidence, mean)))
            continue
        means = _aggregate(evidence, pictures, found[mean.name])
        if not means.values_R.size:
            reasons = ", ".join(f"{count}: {why}" for why, count in found[mean.name].without.items())
            scores.append(_without(evidence.suite, mean.name, mean, pictures, f"no picture has a value ({reasons})"))
            continue
        items[mean.name] = means.values_I
        beside = _beside(evidence.suite, pictures, found[mean.name], means)
        if mean.name in real and mean.of != "references":
            beside |= _mean_of("ceiling", evidence, [(references, real[mean.name])])
        beside |= _mean_of(
            floor, evidence, [(given, values[mean.name]) for given, values in zip(dealt, foreign, strict=True)]
        )
        scores.append(
            Score(
                metric=mean.name,
                definition=mean.definition,
                better=mean.better,
                estimate=mean_estimate(means.values_R, seed),
                images=means.images,
                items=int((~np.isnan(means.values_I)).sum()),
                recordings=len(means.recordings_R),
                seeds=len(set(_seeds_of(evidence.suite, pictures))),
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


def _beside(suite: Suite, pictures: Sequence[Picture], values: Values, means: Means) -> dict[str, float]:
    """Figures of the same values: the mean that others print, ties, what the seeds alone change."""
    beside = {"mean_over_images": means.mean_over_images}
    if values.ties:
        beside |= {"ties": float(values.ties), "tie_share": values.ties / values.compared}
    kept, seeds = np.flatnonzero(~np.isnan(values.values_N)).tolist(), _seeds_of(suite, pictures)
    recordings = [pictures[n].item.recording for n in kept]
    spread = seed_spread(values.values_N[kept], recordings, [seeds[n] for n in kept])
    return beside if spread is None else {**beside, "seed_sd": spread}


def _seeds_of(suite: Suite, pictures: Sequence[Picture]) -> list[int]:
    """The seed of each picture. A real one has none: a control's manifest says by it which of its item's it is."""
    real = {reference.sha256 for item in suite.items for reference in item.references}
    return [0 if picture.sha256 in real else picture.seed for picture in pictures]


def _mean_of(name: str, evidence: Evidence, found: Sequence[tuple[Sequence[Picture], Values]]) -> dict[str, float]:
    values = [_aggregate(evidence, pictures, each).values_R for pictures, each in found]
    means = [float(values_R.mean()) for values_R in values if values_R.size]
    return {name: float(np.mean(means))} if means else {}


def _real_pictures(suite: Suite, pictures: Sequence[Picture]) -> list[Picture]:
    """The references of each item that has a picture, as if the model had made them."""
    items = {picture.item.id: picture.item for picture in pictures}
    return [
        Picture(
            item=item,
            seed=number,
            start_sec=0.0,
            path=suite.folder / reference.file,
            sha256=reference.sha256,
            donor=None,
        )
        for item in items.values()
        for number, reference in enumerate(item.references)
    ]


def _given_to_others(suite: Suite, pictures: Sequence[Picture], seed: int) -> tuple[str, list[list[Picture]]]:
    """The same pictures given to items of other labels, several times, and what that is called; where there are no
    labels, or one has more than half of the items, to those of other recordings.

    A control's pictures are first of the items that they truly belong to: shuffled once more as they lie, some would
    come home.
    """
    by_id = {item.id: item for item in suite.items}
    at_home = [replace(each, item=by_id[each.donor], donor=None) if each.donor else each for each in pictures]
    items = list({picture.item.id: picture.item for picture in at_home}.values())
    names: dict[str, Literal["labels", "recordings"]] = {"floor": "labels", "floor_recordings": "recordings"}
    if not all(item.labels for item in items):
        del names["floor"]
    for name, across in names.items():
        try:
            donors = [derange(items, seed + n, across) for n in range(DERANGEMENTS)]
        except InputError:  # a label or a recording has more than half of them
            continue
        return name, [give(at_home, each) for each in donors]
    return "floor", []


def give(pictures: Sequence[Picture], donors: Mapping[str, str]) -> list[Picture]:
    """Each picture given to the item whose donor its own item is."""
    items = {picture.item.id: picture.item for picture in pictures}
    taker = {donor: items[item] for item, donor in donors.items()}
    return [
        replace(picture, item=taker[picture.item.id], donor=picture.donor or picture.item.id) for picture in pictures
    ]


def _without(suite: Suite, name: str, metric: Mean | Distance, pictures: Sequence[Picture], why: str) -> Score:
    better = metric.better if isinstance(metric, Mean) else metric.names[name]
    return Score(
        metric=name,
        definition=metric.definition,
        better=better,
        estimate=None,
        reason=why,
        **_counts(suite, pictures),
        towers={},
    )


def _counts(suite: Suite, pictures: Sequence[Picture]) -> dict[str, Any]:
    return {
        "images": len(pictures),
        "items": len({picture.item.id for picture in pictures}),
        "recordings": len({picture.item.recording for picture in pictures}),
        "seeds": len(set(_seeds_of(suite, pictures))),
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
    scores: list[Score] = []
    for distance in (distance for distance in DISTANCES if distance.asked in metrics):
        has = any(isinstance(found[name], Estimate) for name in distance.names)
        beside = _distance_floors(evidence, distance, pictures) if has else {}
        scores += [_distance_score(evidence, distance, name, pictures, found[name], beside) for name in distance.names]
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
    real = _references_of(pictures)
    recordings = sorted({picture.item.recording for picture in pictures})
    if not real:
        return dict.fromkeys(distance.names, "the suite has no reference pictures")
    if len(recordings) < 2:
        return dict.fromkeys(distance.names, "it takes two recordings at least, found 1")
    group = dict(zip(recordings, groups_of(recordings).tolist(), strict=True))
    made = [(picture.sha256, picture.item.recording) for picture in pictures]
    groups = [np.array([group[recording] for _, recording in side], dtype=int) for side in (real, made)]
    return _measure(evidence, distance, [sha256 for sha256, _ in real], [sha256 for sha256, _ in made], *groups)


def _references_of(pictures: Sequence[Picture]) -> list[tuple[str, str]]:
    """The references of the items that have a picture, each with its recording."""
    items = {picture.item.id: picture.item for picture in pictures}.values()
    return [(reference.sha256, item.recording) for item in items for reference in item.references]


def _measure(
    evidence: Evidence, distance: Distance, real: Sequence[str], made: Sequence[str], *groups: np.ndarray
) -> Mapping[str, Estimate | str]:
    """The distance of two sets of pictures; without groups its value alone."""
    real_N, made_N = groups or (np.zeros(len(real), dtype=int), np.zeros(len(made), dtype=int))
    try:
        return distance.measure(
            _features(evidence, distance.need, real), _features(evidence, distance.need, made), real_N, made_N
        )
    except ValueError as error:  # too few pictures, or vectors that are not finite
        return dict.fromkeys(distance.names, str(error))


def _features(evidence: Evidence, need: Need, keys: Sequence[str]) -> np.ndarray:
    """Vectors without the class logits at their end."""
    tower = tower_of(evidence.judges, need.role)
    vectors_ND = evidence.take(need.role, need.way, keys)
    return vectors_ND[:, : vectors_ND.shape[1] - (tower.logits if tower else 0)]


def _distance_score(
    evidence: Evidence,
    distance: Distance,
    name: str,
    pictures: Sequence[Picture],
    found: Estimate | str,
    beside: Mapping[str, Mapping[str, float]],
) -> Score:
    if isinstance(found, str):
        return _without(evidence.suite, name, distance, pictures, found)
    return Score(
        metric=name,
        definition=distance.definition,
        better=distance.names[name],
        estimate=found,
        **_counts(evidence.suite, pictures),
        beside=beside[name],
        **_named(evidence, (distance.need,)),
    )


def _distance_floors(
    evidence: Evidence, distance: Distance, pictures: Sequence[Picture]
) -> dict[str, dict[str, float]]:
    """What stands beside each of a distance's names: its floor, at the same n as the score.

    A distance is biased by n, and so is its floor. Where there are fewer other real pictures than made ones, the floor
    is of fewer, and goes by another name, beside the distance of as few made pictures: the first of each item before
    the second of any, recordings in the order of their hashes.
    """
    real = [sha256 for sha256, _ in _references_of(pictures)]
    made = [picture.sha256 for picture in _spread(pictures)]
    count = min(len(evidence.suite.others), len(made))
    others = [stored.sha256 for stored in evidence.suite.others[:count]]
    sets = {"floor": others} if count == len(made) else {"floor_at_fewer": others, "value_at_fewer": made[:count]}
    found = {key: _measure(evidence, distance, real, each) for key, each in sets.items()} if count > 1 else {}
    beside: dict[str, dict[str, float]] = {}
    for name in distance.names:
        floors = {key: each[name] for key, each in found.items()}
        values = {key: one.value for key, one in floors.items() if isinstance(one, Estimate)}
        beside[name] = {"references": float(len(real))}
        if values and len(values) == len(floors):  # else too few
            beside[name] |= {**values, "floor_images": float(count)}
    return beside


def _spread(pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures in an order of which every beginning holds as many items and recordings as it can."""
    numbers: Counter[str] = Counter()
    keyed: list[tuple[int, bytes, str, Picture]] = []
    for picture in pictures:
        place = hashlib.sha256(picture.item.recording.encode()).digest()
        keyed.append((numbers[picture.item.id], place, picture.item.id, picture))
        numbers[picture.item.id] += 1
    return [picture for *_, picture in sorted(keyed, key=lambda each: each[:3])]


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
        return Score(**common, estimate=None, reason=why, towers={}, **_counts(evidence.suite, pictures))
    logits_NC = evidence.take(need.role, need.way, [picture.sha256 for picture in pictures])[:, -tower.logits :]
    if len(pictures) < SPLITS[0]:
        why = f"it takes {SPLITS[0]} pictures at least, found {len(pictures)}"
        return Score(**common, estimate=None, reason=why, towers={}, **_counts(evidence.suite, pictures))
    (in_ten, deviation), (in_one, _) = (distributions.inception_score(logits_NC, splits) for splits in SPLITS)
    return Score(
        **common,
        estimate=Estimate(value=in_ten, note="no interval: its splits are not independent of each other"),
        beside={"split_sd": deviation, "in_one_split": in_one},
        **_counts(evidence.suite, pictures),
        **_named(evidence, (need,)),
    )
