"""A sample of an image set: the images with the lowest hashes, whoever looks and in whatever order."""

import heapq
from collections.abc import Callable, Iterable

from sonify.keys import hash64


def is_sampled(key: str, seed: int, below: int) -> bool:
    """Whether an image is in the sample; a bound of 0 keeps all."""
    return not below or _hash(key, seed) < below


def sampling_bound(sample: int | None, below: int | None, seed: int, keys: Callable[[], Iterable[str]]) -> int:
    """The bound below which exactly `sample` hashes lie, or all where there are fewer; 0 where there is no sample.

    `below` is a bound that was drawn before, which stands. `keys` gives the keys of all images that there are.
    """
    if sample is None:
        return 0
    if below is not None:
        return below
    lowest = heapq.nsmallest(sample, (_hash(key, seed) for key in keys()))
    return lowest[-1] + 1 if lowest else 0


def _hash(key: str, seed: int) -> int:
    return hash64(seed, "sample", key) >> 1  # one bit less, to fit Parquet's signed 64-bit integers
