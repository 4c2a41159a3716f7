"""How far a score is to be trusted: recordings are the units, never images.

N  items or images, R  recordings, G  groups of them, B  resamples

Means of recordings are bootstrapped. Distances between sets never are: a resample holds duplicates, which lower the
rank of a covariance, and of sixty bootstrapped intervals of a Frechet distance none held the truth. Their error is that
of the delete-group jackknife, whose replicates `eval/metrics/distributions.py` computes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap, t

RESAMPLES = 2000
FLIPS = 100_000
EXACT_RECORDINGS = 20  # 2 ** 20 sums of signs are counted, not drawn
GROUPS = 20
LEAST_GROUPS = 3  # of two, 95 % would be 12.7 errors wide to either side
FEW = 10  # recordings, below which an interval is said to be rough
WIDTH = 1.96  # standard errors to either side: 95 % of a normal distribution
TIE = 1e-12  # of the sum of the sizes: two orders of adding the same numbers are equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score with its interval of 95 %; None where the data do not allow one, and `note` says why.

    `replicates` are the values of a distance without each group of recordings, in the groups' order.
    """

    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    method: str = ""  # `bootstrap` | `jackknife` | ""
    note: str = ""
    replicates: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What one model has more than another on the same recordings, and how likely so much is by chance.

    `p` is two-sided: by flips of signs for means, by `z` (value over error) for distances. None where the data do not
    allow it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    z: float | None = None
    p: float | None = None
    method: str = ""
    note: str = ""


def recording_means(values_N: Sequence[float] | np.ndarray, recordings: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The recordings in order, and the mean of each one's values: what the statistics below are given."""
    values_N = _finite(values_N)
    if values_N.size != len(recordings):
        raise ValueError(f"expected a recording for each of {values_N.size} values, found {len(recordings)}")
    names, of_N = np.unique(np.asarray(recordings, dtype=str), return_inverse=True)
    return names.tolist(), np.bincount(of_N, weights=values_N) / np.bincount(of_N)


def mean_estimate(values_R: Sequence[float] | np.ndarray, seed: int) -> Estimate:
    """The mean of independent values (one a recording) with its percentile interval of 2000 resamples."""
    values_R = _finite(values_R)
    if values_R.size < 2:
        return Estimate(value=float(values_R.mean()), note="no interval: it takes two recordings, found 1")
    return _bootstrapped((values_R,), np.mean, seed)


def unpaired_estimate(a_R: Sequence[float] | np.ndarray, b_R: Sequence[float] | np.ndarray, seed: int) -> Estimate:
    """The mean of `a` less that of other recordings, `b`; of either set each recording is drawn again."""
    a_R, b_R = _finite(a_R), _finite(b_R)
    if (fewest := min(a_R.size, b_R.size)) < 2:
        note = f"no interval: it takes two recordings of each kind, found {fewest}"
        return Estimate(value=float(a_R.mean() - b_R.mean()), note=note)
    return _bootstrapped((a_R, b_R), lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis), seed)


def _bootstrapped(sets: Sequence[np.ndarray], statistic: Callable[..., Any], seed: int) -> Estimate:
    rng = np.random.default_rng(seed)
    found = bootstrap(sets, statistic, n_resamples=RESAMPLES, method="percentile", vectorized=True, rng=rng)
    return Estimate(
        value=float(statistic(*sets, axis=-1)),
        low=float(found.confidence_interval.low),
        high=float(found.confidence_interval.high),
        standard_error=float(found.standard_error),
        method="bootstrap",
        note=_note(min(one.size for one in sets)),
    )


def groups_of(recordings: Sequence[str], groups: int = GROUPS) -> np.ndarray:
    """The group (N,) of each one's recording: G = min(groups, r) of them, none empty, equal to within one recording.

    Recordings are dealt out in the order of their hashes, so that a group depends on the set of recordings alone: not
    on the order of the items, nor on how many there are of a recording. It does depend on that set. Two models are
    compared on the recordings that both have, and grouped by those.
    """
    names, of_N = np.unique(np.asarray(recordings, dtype=str), return_inverse=True)
    by_hash = sorted(range(names.size), key=lambda at: hashlib.sha256(str(names[at]).encode()).digest())
    group_R = np.empty(names.size, np.int64)
    group_R[by_hash] = np.arange(names.size) % groups
    return group_R[of_N]


def jackknife(value: float, replicates: Sequence[float] | np.ndarray) -> Estimate:
    """A distance with the interval that its values without each group give.

    What the interval holds is the distance's expectation at this many images, with its bias: never compare those of
    different n. With 20 groups it is 1.96 errors wide to either side, with fewer by Student's t with G - 1 degrees of
    freedom.
    """
    replicates_G = np.asarray(replicates, np.float64)
    if (count := replicates_G.size) < LEAST_GROUPS:
        return Estimate(
            value=value, note=f"no interval: it takes {LEAST_GROUPS} groups of recordings at least, found {count}"
        )
    error = _jackknife_error(replicates_G)
    half = (WIDTH if count >= GROUPS else _student(count - 1)) * error
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        standard_error=error,
        method="jackknife",
        note=_note(count),
        replicates=tuple(replicates_G.tolist()),
    )


def jackknife_difference(a: Estimate, b: Estimate) -> Difference:
    """a - b of two models' distances, each without the same groups of the same recordings.

    Its interval and p are those of Student's t with G - 1 degrees of freedom: what G replicates say of the error is
    itself uncertain, which shows where a difference is nearly linear in the recordings (1.96 errors then hold 93 to
    94 % with 20 groups, and 88 % with five). It is the difference of E[FID_n] that they hold, not that of endlessly
    many pictures: with n < 2 D the bias of two models is not the same, and of that difference they may hold nothing.

    Raises:
        ValueError: their replicates are not of the same groups, as far as their number tells.
    """
    if len(a.replicates) != len(b.replicates):
        raise ValueError(
            f"expected replicates of the same groups of recordings, found {len(a.replicates)} and"
            f" {len(b.replicates)}; compute both on the recordings that both models have"
        )
    found = jackknife(a.value - b.value, np.subtract(a.replicates, b.replicates))
    if found.standard_error is None:
        return Difference(value=found.value, note=a.note or b.note or found.note)
    degrees = len(a.replicates) - 1
    z, p = _z_and_p(found.value, found.standard_error, degrees)
    half = _student(degrees) * found.standard_error
    return Difference(
        value=found.value,
        low=found.value - half,
        high=found.value + half,
        standard_error=found.standard_error,
        z=z,
        p=p,
        method=found.method,
        note=found.note,
    )


def difference_estimate(differences_R: Sequence[float] | np.ndarray, seed: int) -> Difference:
    """The mean of per-recording differences of two models, with its interval and the p of `sign_flip`."""
    found = mean_estimate(differences_R, seed)
    return Difference(
        value=found.value,
        low=found.low,
        high=found.high,
        standard_error=found.standard_error,
        p=sign_flip(differences_R, seed) if found.method else None,
        method=found.method,
        note=found.note,
    )


def sign_flip(differences_R: Sequence[float] | np.ndarray, seed: int) -> float:
    """How likely so large a mean difference is if each recording's sign were a coin's: two-sided.

    Every choice of signs is counted for up to 20 recordings; beyond, 100,000 are drawn and p = (1 + k) / (1 + B).
    """
    differences_R = _finite(differences_R)
    least = abs(differences_R.sum()) - TIE * np.abs(differences_R).sum()
    if differences_R.size <= EXACT_RECORDINGS:
        sums = differences_R[:1]  # a choice of signs and its opposite are equally large: the first is kept
        for difference in differences_R[1:]:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(np.mean(np.abs(sums) >= least))
    rng = np.random.default_rng(seed)
    larger = 0
    for _ in range(100):
        signs_BR = rng.integers(0, 2, (FLIPS // 100, differences_R.size), dtype=np.int8) * 2.0 - 1.0
        larger += int(np.sum(np.abs(signs_BR @ differences_R) >= least))
    return (1 + larger) / (1 + FLIPS)


def holm(p_values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """The p of a family of tests, adjusted for their number by Holm's steps, in the order given."""
    p = np.asarray(p_values, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"expected p between 0 and 1, found {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return tuple(adjusted.tolist())


def seed_spread(
    values_N: Sequence[float] | np.ndarray, recordings: Sequence[str], seeds: Sequence[int]
) -> float | None:
    """The standard deviation between seeds of the suite's mean; None with fewer than two seeds.

    Only recordings that have every seed count: else the spread would be that of which recordings are there.
    """
    values_N, seeds_N, names_N = _finite(values_N), np.asarray(seeds), np.asarray(recordings, dtype=str)
    by_seed = [
        dict(zip(*recording_means(values_N[seeds_N == s], names_N[seeds_N == s].tolist()), strict=True))
        for s in np.unique(seeds_N)
    ]
    common = set.intersection(*map(set, by_seed)) if by_seed else set()
    if len(by_seed) < 2 or not common:
        return None
    return float(np.std([np.mean([means[name] for name in sorted(common)]) for means in by_seed], ddof=1))


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 1:
        raise ValueError(f"expected one value at least, in one row, found the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite values, found {int(np.sum(~np.isfinite(values)))} that are not")
    return values


def _jackknife_error(replicates_G: np.ndarray) -> float:
    count = replicates_G.size
    return float(np.sqrt((count - 1) / count * np.sum((replicates_G - replicates_G.mean()) ** 2)))


def _student(degrees: int) -> float:
    """Standard errors to either side that hold 95 % where the error itself was found with so many degrees."""
    return float(t.ppf(0.975, degrees))


def _z_and_p(value: float, error: float, degrees: int) -> tuple[float | None, float]:
    """A difference of a model to itself is none, and no error either."""
    if error == 0:
        return None, 1.0 if value == 0 else 0.0
    return value / error, float(2 * t.sf(abs(value) / error, degrees))


def _note(recordings: int) -> str:
    return f"rough interval: {recordings} recordings, fewer than {FEW}" if recordings < FEW else ""
