"""Means with the interval that says how far to trust them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its 95 % bootstrap interval (percentile method)."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float] | np.ndarray, seed: int) -> Interval:
    """The mean of independent values (one a seed, or one a clip) with its interval.

    Raises:
        ValueError: fewer than two values have no interval.
    """
    values = np.asarray(values, np.float64)
    if values.size < 2:
        raise ValueError(f"expected two values at least, found {values.size}")
    rng = np.random.default_rng(seed)
    found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng).confidence_interval
    return Interval(mean=float(values.mean()), low=float(found.low), high=float(found.high))
