"""How alike the best clip must be before a concept is answered: a limit for each query, chosen for a stated risk.

A labelled table of concepts says of each whether the pool has an answer, and whether what is drawn is one. A monotone
map takes how alike the best clip is, and how far that stands above the query's likeness to a fixed bank of clips, to
the chance that the draw is right; the least chance under which at most a stated share of the unanswerable concepts is
answered makes a limit for each query. What ships was fitted on every concept; the figures beside it are cross-fitted.

Source: Platt, "Probabilistic Outputs for Support Vector Machines" (1999), with the slopes held above zero.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sonify.config import Limit
from sonify.errors import InputError
from sonify.io.places import read_whole
from sonify.io.write import write_whole
from sonify.keys import hash64
from sonify.stores import Place

RISKS = (0.01, 0.02, 0.05, 0.08, 0.1, 0.2)
FOLDS = 10
# Pull on the slopes: with few concepts that are told apart without a fault they would grow without end.
RIDGE = 0.01
EVEN = 0.5  # a draw that is likelier wrong than right is never made
FEWEST = 20  # concepts of either sort: below that a risk of 0.05 means nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One concept of a labelled table, met without any limit.

    `similarity` is the best candidate's, `mean` and `deviation` the query's over the bank. `right` is the chance that
    the draw is right, in [0, 1]; `answerable` says whether the pool has an answer.
    """

    concept: str
    similarity: float
    mean: float
    deviation: float
    right: float
    answerable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskRow:
    """For one risk, the least chance of a right draw that is let through, and the cross-fitted figures under it.

    `precision` is the share of draws that are right, `kept` that of answerable concepts with a right draw, and
    `wrong_answers` that of unanswerable concepts that are answered.
    """

    risk: float
    probability: float
    precision: float
    kept: float
    wrong_answers: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The map of one encoder, on which table it was fitted, and its risks.

    The chance is logistic(intercept + similarity * s + standing * (s - mean) / deviation).
    """

    encoder: str
    table: str
    trials: int
    intercept: float
    similarity: float
    standing: float
    risks: tuple[RiskRow, ...]

    @property
    def usable(self) -> tuple[RiskRow, ...]:
        """The risks under which anything is let through: a small table has none for a small risk."""
        return tuple(row for row in self.risks if row.kept > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a rule does over a table; `draws` are those that it lets through."""

    precision: float
    kept: float
    wrong_answers: float
    draws: int


def calibrate(
    trials: Sequence[Trial], encoder: str, table: str, risks: Sequence[float] = RISKS, seed: int = 0
) -> Calibration:
    """Fit an encoder's map and choose its limits.

    Args:
        trials: one a concept.
        encoder: the encoder's identity.
        table: what the trials were made by, in words.
        risks: shares of unanswerable concepts that may be answered.
        seed: of the folds.

    Raises:
        InputError: too few concepts, or all of one sort.
    """
    answerable = sum(trial.answerable for trial in trials)
    if min(answerable, len(trials) - answerable) < FEWEST:
        raise InputError(
            f"{table}: expected at least {FEWEST} concepts with an answer in the pool and {FEWEST} without one, found"
            f" {answerable} and {len(trials) - answerable}: add concepts"
        )
    whole = _fit(trials)
    rows = tuple(_risk_row(trials, whole, risk, seed) for risk in sorted(risks))
    intercept, similarity, standing = (round(float(value), 6) for value in whole)
    return Calibration(
        encoder=encoder,
        table=table,
        trials=len(trials),
        intercept=intercept,
        similarity=similarity,
        standing=standing,
        risks=rows,
    )


def _risk_row(trials: Sequence[Trial], whole: np.ndarray, risk: float, seed: int) -> RiskRow:
    """The limit for a risk over all trials, and the figures of each fold under a map and limit of the others."""
    passed = np.zeros(len(trials), dtype=bool)
    folds = np.array([hash64("fold", seed, trial.concept) % FOLDS for trial in trials])
    for fold in range(FOLDS):
        rest = [trial for trial, of in zip(trials, folds, strict=True) if of != fold]
        held = np.flatnonzero(folds == fold)
        fitted = _fit(rest)
        least = _least_chance(rest, _chances(rest, fitted), risk)
        passed[held] = _chances([trials[int(n)] for n in held], fitted) >= least
    found = figures(trials, passed)
    return RiskRow(
        risk=risk,
        probability=round(_least_chance(trials, _chances(trials, whole), risk), 6),
        precision=round(found.precision, 4),
        kept=round(found.kept, 4),
        wrong_answers=round(found.wrong_answers, 4),
    )


def figures(trials: Sequence[Trial], passed: np.ndarray) -> Figures:
    """What comes of it where the trials that `passed`, (N,) bool, are answered."""
    right = np.array([trial.right for trial in trials]) * passed
    answerable = np.array([trial.answerable for trial in trials])
    return Figures(
        precision=float(right.sum() / max(passed.sum(), 1)),
        kept=float(right[answerable].sum() / max(answerable.sum(), 1)),
        wrong_answers=float(passed[~answerable].sum() / max((~answerable).sum(), 1)),
        draws=int(passed.sum()),
    )


def _fit(trials: Sequence[Trial]) -> np.ndarray:
    """(3,) intercept and slopes of the map, by Newton's method; a slope that would be negative is none."""
    features = np.array([_features(t.similarity, t.mean, t.deviation) for t in trials]).reshape(-1, 3)
    right = np.array([trial.right for trial in trials])
    used = np.array([True, True, True])
    while True:
        weights = np.zeros(3)
        weights[used] = _newton(features[:, used], right)
        falling = used & (weights < 0)
        falling[0] = False
        if not falling.any():
            return weights
        used[int(np.argmin(np.where(falling, weights, 0.0)))] = False


def _newton(features: np.ndarray, right: np.ndarray) -> np.ndarray:
    weights = np.zeros(features.shape[1])
    pull = RIDGE * np.eye(len(weights))
    pull[0, 0] = 1e-6
    for _ in range(100):
        chance = _logistic(features @ weights)
        gradient = features.T @ (right - chance) - pull @ weights
        curvature = features.T @ (features * (chance * (1 - chance))[:, None]) + pull
        step = np.linalg.solve(curvature, gradient)
        weights = weights + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return weights


def _features(similarity: float, mean: float, deviation: float) -> tuple[float, float, float]:
    return 1.0, similarity, (similarity - mean) / max(deviation, 1e-6)


def _chances(trials: Sequence[Trial], weights: np.ndarray) -> np.ndarray:
    features = np.array([_features(t.similarity, t.mean, t.deviation) for t in trials]).reshape(-1, 3)
    return _logistic(features @ weights)


def _logistic(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))


def _least_chance(trials: Sequence[Trial], chances: np.ndarray, risk: float) -> float:
    """The least chance that lets at most that share of the unanswerable through, halfway to what it keeps out.

    The one that comes next is counted as let through too, so that the risk holds for it and not only for the table.
    Source: Angelopoulos et al., "Conformal Risk Control" (ICLR 2024).
    """
    unanswerable = np.array([not trial.answerable for trial in trials])
    levels = np.unique(chances)
    bounds = [EVEN, *(bound for bound in ((levels[:-1] + levels[1:]) / 2).tolist() if bound > EVEN), 1.0]
    allowed = risk * (unanswerable.sum() + 1) - 1
    return next((float(least) for least in bounds if (chances[unanswerable] >= least).sum() <= allowed), 1.0)


@dataclass(frozen=True, slots=True)
class QueryLimit:
    """An encoder's calibration at one of its risks: gives each query its limit."""

    calibration: Calibration
    row: RiskRow

    def __call__(self, mean: float, deviation: float) -> float:
        """The similarity from which on a draw is let through, for a query with that likeness to the bank."""
        fitted, spread = self.calibration, max(deviation, 1e-6)
        slope = fitted.similarity + fitted.standing / spread
        least = min(max(self.row.probability, 1e-9), 1 - 1e-9)
        wanted = math.log(least / (1 - least)) - fitted.intercept + fitted.standing * mean / spread
        if slope <= 0:  # the similarity says nothing: all or none
            return -1.0 if wanted <= 0 else 2.0
        return min(max(wanted / slope, -1.0), 2.0)


def query_limit(limit: Limit | None, encoder: str) -> QueryLimit | None:
    """The rule that `retrieval.limit` asks for.

    Raises:
        InputError: nobody calibrated the encoder, or not for so small a risk.
    """
    if limit is None:
        return None
    where = str(limit.calibration) if limit.calibration else "what ships"
    found = read_calibrations(limit.calibration).get(encoder)
    if found is None:
        raise InputError(
            f"retrieval.limit: {where} holds no calibration of the encoder {encoder}: make one with"
            " `python -m eval.pairing --calibrate` and name it in retrieval.limit.calibration, or set retrieval.limit"
            " to null"
        )
    rows = [row for row in found.usable if row.risk <= limit.risk]
    if not rows:
        listed = ", ".join(f"{row.risk:g}" for row in found.usable) or "none"
        raise InputError(f"retrieval.limit.risk: {where} holds the risks {listed}, expected one of them or more")
    return QueryLimit(found, max(rows, key=lambda row: row.risk))


def identify_limit(limit: Limit, encoder: str) -> str:
    """A digest of what acts: the encoder's own map and the least chance at that risk, and no figure of a table."""
    rule = query_limit(limit, encoder)
    assert rule is not None
    fitted = rule.calibration
    acting = [encoder, fitted.intercept, fitted.similarity, fitted.standing, rule.row.probability]
    return hashlib.sha256(json.dumps(acting).encode()).hexdigest()


def read_calibrations(place: Place | None) -> dict[str, Calibration]:
    """Read calibrations by their encoders' identities; None reads what ships.

    Raises:
        InputError: the file cannot be read, or is none.
    """
    where = str(place) if place is not None else "limits.json"
    try:
        text = (
            read_whole(place) if place is not None else files("sonify.retrieval").joinpath("limits.json").read_bytes()
        )
        raw = json.loads(text)
        found = [_calibration(entry) for entry in raw["calibrations"]]
    except OSError as error:
        raise InputError(f"retrieval.limit.calibration: {where}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"retrieval.limit.calibration: {where}: expected what `python -m eval.pairing --calibrate` writes, found"
            f" {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    return {calibration.encoder: calibration for calibration in found}


def _calibration(entry: Any) -> Calibration:
    calibration = Calibration(**{**entry, "risks": tuple(RiskRow(**row) for row in entry["risks"])})
    _check(calibration, {"encoder": str, "table": str, "trials": int})
    for row in calibration.risks:
        _check(row, {})
        if not (0 < row.risk < 1 and 0 <= row.probability <= 1):
            raise ValueError(f"a risk of {row.risk} at a probability of {row.probability}")
    if min(calibration.similarity, calibration.standing) < 0:
        raise ValueError("a slope below zero")
    return calibration


def _check(row: Calibration | RiskRow, types: Mapping[str, type]) -> None:
    """Each field is of its type; the others are finite numbers."""
    for field in fields(row):
        value, expected = getattr(row, field.name), types.get(field.name)
        numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (field.name == "risks" or (isinstance(value, expected) if expected else numeric)):
            raise ValueError(f"{field.name} is {value!r}")


def write_calibrations(place: Path, calibrations: Mapping[str, Calibration]) -> None:
    """Write calibrations as JSON, one an encoder, in the order of their identities."""
    rows = [asdict(calibrations[encoder]) for encoder in sorted(calibrations)]
    write_whole(place, (json.dumps({"calibrations": rows}, indent=1) + "\n").encode())
