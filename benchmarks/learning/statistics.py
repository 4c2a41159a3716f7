"""Balanced accuracy and its uncertainty. What is drawn again is the recording: its pictures are not independent.

R  recordings, S  seeds, K  classes
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its bootstrap interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def confusion(true_R: np.ndarray, seen_RS: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of pictures (K, K): rows are the recording's class, columns what the eye sees."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (true_R[:, None], seen_RS), 1)
    return counts


def balanced_accuracy(true_R: np.ndarray, right_R: np.ndarray) -> float:
    """The mean over classes of the mean share of right pictures of a class's recordings."""
    return float(np.mean([right_R[true_R == one].mean(dtype=np.float64) for one in np.unique(true_R)]))


def estimate(true_R: np.ndarray, right_R: np.ndarray, seed: int = 0) -> Estimate:
    """Balanced accuracy, or with differences of two models' `right_R` their paired difference.

    Recordings are drawn again within their class, so that every resample has all classes.

    Args:
        true_R: the class of each recording.
        right_R: the share of its pictures that the eye puts into that class.
        seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    by_class = [right_R[true_R == one].astype(np.float64) for one in np.unique(true_R)]
    drawn = [values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1) for values in by_class]
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=balanced_accuracy(true_R, right_R), low=float(low), high=float(high))
