"""In which order a run sees its images, and what is drawn for each visit.

A position counts visits from the start of training on: with N images, position p is visit `p % N` of epoch `p // N`.
Each epoch visits every image once. Everything here is a function of the seed and the position, so that it is the same
for any number of processes, and a run that is resumed needs nothing but its step.
"""

from collections.abc import Sequence

import numpy as np

from sonify.keys import hash64


def generator(*purpose: str | int) -> np.random.Generator:
    """Random numbers that depend on nothing but what they are for."""
    return np.random.default_rng(hash64(*purpose))


class Order:
    """Finds the image of a position.

    An epoch shuffles all shards, takes them in windows of `window_shards`, and shuffles the images of each window: no
    permutation is longer than a window, however many images there are.
    """

    def __init__(self, shard_sizes: Sequence[int], window_shards: int, seed: int) -> None:
        assert all(size > 0 for size in shard_sizes)
        self._sizes = np.array(shard_sizes, dtype=np.int64)
        self._window_shards = window_shards
        self._seed = seed
        self.num_images = int(self._sizes.sum())
        self._epoch = _Epoch(self._sizes, window_shards, seed, epoch=0)

    def locate(self, position: int) -> tuple[int, int]:
        """The shard, and the row in it, that a position visits; quick where positions are near each other."""
        epoch, visit = divmod(position, self.num_images)
        if self._epoch.epoch != epoch:
            self._epoch = _Epoch(self._sizes, self._window_shards, self._seed, epoch)
        return self._epoch.locate(visit)


class _Epoch:
    def __init__(self, sizes: np.ndarray, window_shards: int, seed: int, epoch: int) -> None:
        self.epoch = epoch
        self._seed = seed
        self._sizes = sizes
        self._window_shards = window_shards
        self._shards = generator(seed, "shards", epoch).permutation(len(sizes))
        starts = np.concatenate([[0], np.cumsum(sizes[self._shards])[:-1]])
        self._window_starts = starts[::window_shards]
        self._window = -1
        self._places = np.empty((0, 2), dtype=np.int64)

    def locate(self, visit: int) -> tuple[int, int]:
        window = int(np.searchsorted(self._window_starts, visit, side="right")) - 1
        if window != self._window:
            self._window, self._places = window, self._shuffle(window)
        shard, row = self._places[visit - self._window_starts[window]]
        return int(shard), int(row)

    def _shuffle(self, window: int) -> np.ndarray:
        """The (shard, row) of a window's images, in the order of their visits."""
        first = window * self._window_shards
        shards = self._shards[first : first + self._window_shards]
        rows = np.concatenate([np.arange(size) for size in self._sizes[shards]])
        places = np.stack([np.repeat(shards, self._sizes[shards]), rows], axis=1)
        return generator(self._seed, "window", self.epoch, window).permutation(places)
