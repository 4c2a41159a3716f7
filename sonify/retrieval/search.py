"""Exact nearest neighbours by inner product: the same answer to the last bit on every device, batch and thread count.

A fast pass finds candidates and says a bound that no other row's product can exceed. The candidates' products are
taken again in float32, in one order of additions, and sorted by (score, row). Where the last of the best is not above
the bound, that query is looked at again, in the end against every row. So what computes fast decides how long it takes
and never what is found: FAISS on CPUs or a GPU, or bfloat16 products where a CPU has units for them (`halves.py`, where
the bounds' source is named).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sonify import layout
from sonify.config import Search
from sonify.errors import InputError, WorkError, require_faiss
from sonify.installed import how_to_swap_faiss, spell_redo
from sonify.retrieval.halves import (
    TILE_ROWS,
    Asked,
    HalfProducts,
    Look,
    Rows,
    is_worth_it,
    lengths_of,
    sum_error,
    underflow_error,
)

# How far a number of 11 significant bits (TF32, in which a GPU may multiply if its driver is told to) may be from what
# it stands for, where bits are cut off instead of rounded.
TF32_ROUNDOFF = 2.0**-10
# What FAISS selects on a GPU at most.
MOST_ON_GPU = 2048
# Queries that are searched at a time, beside `TILE_ROWS`; it decides how long a search takes alone.
TILE_QUERIES = 2048
# Queries that are compared with every row at once. Each may meet all of them, in eight bytes a row: 256 MB for 500,000.
QUERIES_TWICE = 64
# Columns are added up in place down to these; then what is left lies so that the processor adds many rows at a time.
LANES = 16

# What follows decides how long a search takes and never what it finds, and was chosen, not measured.
# A float32 pass finds an eighth more rows than are asked for and at least sixteen more, so that the last of the best
# stands clear of the bound unless the pool is dense there.
WIDER_PART, WIDER_LEAST = 8, 16
# Where a list is longer than a 32nd of the pool, more rows pass a threshold than it saves.
MOST_OF_POOL = 32
# Where halves leave a larger share of a batch (or of few queries more than eight) to be looked at twice, the pool is
# too dense for them, and the rest of it is spared the first look.
MOST_TWICE, FEW_TWICE = 0.15, 8


def _faiss() -> Any:
    """The library, which one of two extras brings."""
    require_faiss()
    import faiss  # noqa: PLC0415 - only who searches needs it

    return faiss


def products(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(N,) float32 products of rows and a query, in one order: the second half is added to the first until one is left.

    Elementwise steps alone, which IEEE 754 defines to the bit, so that no library, processor or thread can differ; and
    a tree, whose error is that of some ten additions.
    """
    return _fold(vectors * query)


def _fold(terms: np.ndarray) -> np.ndarray:
    """Add up the columns of terms, which are overwritten."""
    width = terms.shape[1]
    while width > LANES:
        half = (width + 1) // 2
        terms[:, : width - half] += terms[:, half:width]
        width = half
    left = np.ascontiguousarray(terms[:, :width].T)  # short rows are slow to walk along; the sums are the same
    while width > 1:
        half = (width + 1) // 2
        left[: width - half] += left[half:width]
        width = half
    return left[0]


def _fold_error(dimension: int) -> float:
    return sum_error(1 + math.ceil(math.log2(max(dimension, 2))))


@dataclass(frozen=True, slots=True)
class Best:
    """The best rows of a query, best first, equal ones by their number; and all others that tie with the last of them.

    `tied` has a bit for each row of the pool, which where thousands tie is the least memory; empty where none does.
    """

    scores: np.ndarray  # (K,) float32
    numbers: np.ndarray  # (K,) int64
    tied: np.ndarray  # (N / 8,) uint8


NONE_TIED = np.empty(0, np.uint8)
NOTHING = Best(np.empty(0, np.float32), np.empty(0, np.int64), NONE_TIED)


def bits_of(numbers: np.ndarray, total: int) -> np.ndarray:
    """Numbers below `total` as a bit each."""
    found = np.zeros(total, bool)
    found[numbers] = True
    return np.packbits(found)


def numbers_of(bits: np.ndarray) -> np.ndarray:
    """The numbers of the bits that are set, ascending."""
    return np.flatnonzero(np.unpackbits(bits))


class RowSearch:
    """Searches rows on `threads` threads, on the device that the settings name.

    Raises:
        InputError: a GPU is asked for that is not there.
        WorkError: among the rows are numbers that are none.
    """

    def __init__(self, rows: Rows, threads: int, search: Search) -> None:
        if not math.isfinite(rows.longest):
            raise WorkError(
                f"{layout.EMBEDDINGS}: damaged, an embedding holds NaN or infinity; `{spell_redo('embeddings')}` makes"
                " them again"
            )
        self._rows = rows
        self._threads = threads
        self._gpu = open_gpu(search) if search.device == "cuda" else None
        self._memory_bytes = int(search.memory_gib * 2**30)
        self._too_dense = False

    def __call__(self, queries: np.ndarray, count: int, most: float = math.inf) -> list[Best]:
        """The best `count` rows, or all where there are fewer, for each of (Q, D) float32 queries.

        A score above `most` is `most`. No tie with the last of the best is missed: a row that a look leaves out is
        certain to be rescored strictly below the last (`Look` says why), or else the query is not settled by it; and
        the look at every row leaves out what is certain to be rescored below the last as it is known so far.

        Raises:
            WorkError: a query holds NaN, or is so long that a product with a row could overflow.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        count = min(count, len(self._rows.vectors))
        tiles = (queries[n : n + TILE_QUERIES] for n in range(0, len(queries), TILE_QUERIES))
        return [one for tile in tiles for one in self._search(self._ask(tile, count, most))]

    def _ask(self, queries: np.ndarray, count: int, most: float) -> Asked:
        lengths = lengths_of(queries)
        # so no sum of products, of halves either, is infinite or NaN, on the way or in the end
        if not (lengths * self._rows.longest < np.finfo(np.float32).max / 2).all():
            raise WorkError(
                "retrieval.encoder: the embedding of a query holds NaN or is too long for float32: expected numbers"
                f" whose products with the pool's (up to {self._rows.longest:.2g} long) are finite; mend or replace the"
                " encoder's model"
            )
        slack = self._error(lengths, _fold_error(queries.shape[1]))
        return Asked(queries=queries, lengths=lengths, slack=slack, count=count, most=most)

    def _error(self, lengths: np.ndarray, share: float) -> np.ndarray:
        """How far products that are off by a share of the norms may be from the true ones."""
        tiny = underflow_error(self._rows.vectors.shape[1], self._rows.longest, lengths)
        return share * lengths * self._rows.longest + tiny

    def _search(self, asked: Asked) -> list[Best]:
        found = [NOTHING] * len(asked.queries)
        left = np.arange(len(asked.queries))
        if self._by_halves(asked.count):
            look = self._pass_by_halves(asked)
            if look is not None:
                found, left = self._take(asked, look)
            self._too_dense = len(left) > max(MOST_TWICE * len(found), FEW_TWICE)
        if len(left):
            again = asked.take(left)
            best, unsettled = self._take(again, self._pass_by_float32(again))
            for n, one in zip(left.tolist(), best, strict=True):
                found[n] = one
            left = left[unsettled]
        # the last of the best so far is reached for certain: what lies below it by more than both errors is out
        errors = self._error(asked.lengths, sum_error(asked.queries.shape[1])) + asked.slack
        for start in range(0, len(left), QUERIES_TWICE):
            some = left[start : start + QUERIES_TWICE]
            least = np.array([found[n].scores[-1] for n in some], np.float64) - errors[some]
            for n, numbers in zip(some.tolist(), self._reaching(asked.queries[some], least), strict=True):
                found[n] = self._best(asked, n, numbers)
        return found

    def _take(self, asked: Asked, look: Look) -> tuple[list[Best], np.ndarray]:
        """Rescore what a pass found; the best so far of each query, and which queries it did not settle."""
        best = [self._best(asked, n, numbers) for n, numbers in enumerate(look.numbers)]
        limits = (look.bounds + asked.slack).tolist()
        settled = [
            len(one.numbers) == asked.count and float(one.scores[-1]) > limit
            for one, limit in zip(best, limits, strict=True)
        ]
        return best, np.flatnonzero(~np.array(settled, bool))

    def _best(self, asked: Asked, query: int, numbers: np.ndarray) -> Best:
        """The best of some rows, by their products in the one order."""
        parts = (numbers[n : n + TILE_ROWS] for n in range(0, len(numbers), TILE_ROWS))
        scored = [_fold(self._rows.vectors.take(part, axis=0) * asked.queries[query]) for part in parts]
        if not scored:
            return NOTHING
        scores = np.minimum(np.concatenate(scored), np.float32(asked.most))
        order = np.lexsort((numbers, -scores))
        best, rest = order[: asked.count], order[asked.count :]
        tied = numbers[rest[scores[rest] == scores[best[-1]]]]
        bits = bits_of(tied, len(self._rows.vectors)) if len(tied) else NONE_TIED
        return Best(scores[best], numbers[best], bits)

    def _reaching(self, queries: np.ndarray, least: np.ndarray) -> list[np.ndarray]:
        """For each query the rows whose quick product with it is at least so much: all rows of the pool at most."""
        vectors = self._rows.vectors
        found: list[list[np.ndarray]] = [[] for _ in queries]
        for start in range(0, len(vectors), TILE_ROWS):
            reach = queries @ vectors[start : start + TILE_ROWS].T >= least[:, None]
            for query in np.flatnonzero(reach.any(axis=1)).tolist():
                found[query].append(start + np.flatnonzero(reach[query]))
        return [np.concatenate(numbers) for numbers in found]

    def _pass_by_float32(self, asked: Asked) -> Look:
        """The best by float32 products, some more of them than are asked for."""
        total, dimension = self._rows.vectors.shape
        count = wider(asked.count)
        if count >= total:  # there is no other row, and nothing to search
            numbers = np.arange(total)
            return Look([numbers] * len(asked.queries), np.full(len(asked.queries), -np.inf))
        if self._gpu is None:
            faiss = _faiss()
            faiss.omp_set_num_threads(self._threads)
            vectors = self._rows.vectors
            scores, numbers = faiss.knn(asked.queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
            share = sum_error(dimension)
        else:
            tile_rows = max(1, self._memory_bytes // 2 // (4 * dimension))
            scores, numbers = search_tiles(asked.queries, self._rows.vectors, count, tile_rows, self._gpu)
            share = gpu_error(dimension)
        return Look(list(numbers), scores[:, -1].astype(np.float64) + self._error(asked.lengths, share))

    def _by_halves(self, count: int) -> bool:
        total = len(self._rows.vectors)
        usable = self._rows.halves is not None and self._gpu is None and not self._too_dense
        return usable and MOST_OF_POOL * count <= total and self._halves is not None

    @cached_property
    def _halves(self) -> HalfProducts | None:
        """What multiplies halves, where a trial finds it right and faster than float32."""
        multiply = HalfProducts(self._rows, self._threads)
        return multiply if is_worth_it(multiply, self._rows) else None

    def _pass_by_halves(self, asked: Asked) -> Look | None:
        """The best by products of halves, or None where these cannot tell the rows apart."""
        assert self._halves is not None
        return self._halves.look(asked)


def gpu_error(dimension: int) -> float:
    """How far a GPU's product may be off, as a share of the norms: both factors in TF32, and sums that are cut off."""
    return (1 + TF32_ROUNDOFF) ** 2 * (1 + sum_error(2 * dimension)) - 1


def wider(count: int) -> int:
    """How many rows a float32 pass finds where so many are asked for."""
    return count + max(count // WIDER_PART, WIDER_LEAST)


def most_on_gpu() -> int:
    """How many rows may be asked for on a GPU."""
    return max(count for count in range(MOST_ON_GPU) if wider(count) <= MOST_ON_GPU)


# Searches one tile: queries, rows and how many, to (Q, K) scores and rows, best first.
SearchTile = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def search_tiles(
    queries: np.ndarray, vectors: np.ndarray, count: int, tile_rows: int, search: SearchTile
) -> tuple[np.ndarray, np.ndarray]:
    """Search rows tile by tile, keeping the best of all tiles so far: what is in memory at once is one of them."""
    scores = np.empty((len(queries), 0), np.float32)
    numbers = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), tile_rows):
        tile = vectors[start : start + tile_rows]
        more_scores, more_numbers = search(queries, tile, min(count, len(tile)))
        scores = np.hstack([scores, more_scores])
        numbers = np.hstack([numbers, more_numbers.astype(np.int64) + start])
        order = np.lexsort((numbers, -scores), axis=1)[:, :count]
        scores, numbers = np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
    return scores, numbers


def check_gpu_list(top_k: int) -> None:
    """See that a GPU can select so many.

    Raises:
        InputError: it cannot.
    """
    if top_k > most_on_gpu():
        raise InputError(
            f"retrieval.top_k: {top_k} is more than the {most_on_gpu()} that a search on a GPU can look at; lower it,"
            " or set retrieval.search.device to cpu"
        )


def check_gpu() -> None:
    """See that FAISS is there in the form that uses a GPU, and that there is one.

    Raises:
        InputError: either is not.
    """
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            "retrieval.search.device: cuda needs faiss-gpu, and the library faiss here is the one for CPUs:"
            f" {how_to_swap_faiss()}; or set it to cpu"
        )
    if not faiss.get_num_gpus():
        raise InputError(
            "retrieval.search.device: cuda was asked for, and FAISS finds no GPU on this machine; set it to cpu"
        )


def open_gpu(settings: Search) -> SearchTile:
    """What searches a tile on the GPU, in float32 and within the stated memory.

    Raises:
        InputError: there is none.
    """
    check_gpu()
    faiss = _faiss()
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(int(settings.memory_gib * 2**30))

    def search(queries: np.ndarray, tile: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        assert count <= MOST_ON_GPU  # `check_gpu_list` was asked before any work
        return faiss.knn_gpu(resources, queries, tile, count, metric=faiss.METRIC_INNER_PRODUCT)

    return search
