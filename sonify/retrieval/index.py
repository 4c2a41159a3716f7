"""Exact inner-product search over a pool's embeddings; the one module that touches FAISS.

Clips with equal embeddings (collections describe hundreds of recordings by one label, which the text encoder cannot
tell apart) are searched once, as a group; where a ranking ends inside a group, the seats left are drawn.
"""

import hashlib
from dataclasses import dataclass

import faiss
import numpy as np


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best groups for one query, best first: (G,) similarities and group numbers."""

    similarities: np.ndarray
    groups: np.ndarray


class ClipIndex:
    """Search over the embeddings of one split of the pool, on `threads` threads.

    Scores are the same only for the same batch and thread count (measured), so callers form batches inside a unit.
    """

    def __init__(self, embeddings: np.ndarray, threads: int) -> None:
        """Index (N, D) float32 embeddings."""
        self.num_clips, dimension = embeddings.shape
        self._threads = threads
        first, group_of_clip = _group_rows(embeddings)
        # Neighbours in the pool come from one recording; this scatters them, so that a ring's seats do not go to it.
        scattered = np.arange(self.num_clips, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
        order = np.lexsort((scattered, group_of_clip))
        self._members = order
        self._starts = np.searchsorted(group_of_clip[order], np.arange(len(first) + 1))
        self._index = faiss.IndexFlatIP(dimension)
        self._index.add(np.ascontiguousarray(embeddings[first]))  # pyright: ignore[reportCallIssue]

    def rank(self, queries: np.ndarray, length: int) -> list[Ranking]:
        """Rank groups so that at least `length` clips are covered, for (Q, D) float32 queries."""
        faiss.omp_set_num_threads(self._threads)
        similarities, groups = self._index.search(queries, min(length, self._index.ntotal))  # pyright: ignore[reportCallIssue]
        return [Ranking(s, g) for s, g in zip(similarities, groups, strict=True)]

    def top_clips(self, ranking: Ranking, length: int, u: float) -> tuple[np.ndarray, np.ndarray]:
        """Return exactly `length` clips and their similarities, best first.

        Args:
            ranking: from `rank`.
            length: at most the number of clips.
            u: in [0, 1), turns the ring of the last group's members, of which only some find a seat.
        """
        if self._index.ntotal == self.num_clips:
            return ranking.groups, ranking.similarities  # no clip equals another: groups are clips
        starts = self._starts[ranking.groups]
        sizes = self._starts[ranking.groups + 1] - starts
        before = np.cumsum(sizes) - sizes
        seats = np.clip(length - before, 0, sizes)
        within = np.arange(length) - np.repeat(before, seats)
        last = int(np.flatnonzero(seats)[-1])
        ring = slice(int(before[last]), length)
        within[ring] = (within[ring] + int(u * sizes[last])) % sizes[last]
        clips = self._members[np.repeat(starts, seats) + within]
        return clips, np.repeat(ranking.similarities, seats)


def _group_rows(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each group of equal rows, and each row's group; groups are numbered by first appearance."""
    seen: dict[bytes, int] = {}
    first: list[int] = []
    group = np.empty(len(embeddings), dtype=np.int64)
    for n, row in enumerate(embeddings):
        fingerprint = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        number = seen.setdefault(fingerprint, len(first))
        if number == len(first):
            first.append(n)
        group[n] = number
    return np.array(first, dtype=np.int64), group
