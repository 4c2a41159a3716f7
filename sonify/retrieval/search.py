"""Exact nearest neighbours by inner product: the same answer to the last bit on every device, batch and thread count.

A fast pass finds candidates and says a bound that no other row's product can exceed. The candidates' products are
taken again in float32, in one order of additions, and sorted by (score, row). Where the last of the best is not above
the bound, that query is looked at again, in the end against every row. So what computes fast decides how long it takes
and never what is found: FAISS on CPUs or a GPU, or bfloat16 products where a CPU has units for them.

Source of the bounds: Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1: a sum of n products in any
order is off by at most n u / (1 - n u) times the product of the norms, with u the unit roundoff.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sonify import layout
from sonify.config import Search
from sonify.errors import InputError, WorkError, require_faiss
from sonify.installed import spell_redo

# Half the distance between two numbers of 24 significant bits (float32), of 8 (bfloat16) and of 11 (TF32, in which a
# GPU may multiply if its driver is told to).
UNIT, HALF_UNIT, TF32_UNIT = 2.0**-24, 2.0**-8, 2.0**-11
# What numbers too small for float32's exponent can add up to, in any number of terms.
TINY = 1e-30
# Rows and queries that are multiplied at a time; the scores of a tile stay near the processor.
TILE_ROWS, TILE_QUERIES = 8192, 2048
LANES = 16
# Scores are compared sixteen rows at a time: one in sixteen is read once a threshold holds.
BLOCK = 16
# Queries that are compared with every row at once; each may meet all of them.
QUERIES_TWICE = 64
# Below so many rows bfloat16 gains nothing that could be noticed, and is not worth the import of torch.
FEWEST_FOR_HALVES = 16_384
# Rows from which a query's threshold is estimated.
MOST_SAMPLED = 32_768
# Where more of a batch has to be looked at twice, the pool is too dense for bfloat16.
MOST_TWICE = 0.15
# What FAISS selects on a GPU at most.
MOST_ON_GPU = 2048


def _faiss() -> Any:
    """The library, which one of two extras brings."""
    require_faiss()
    import faiss  # noqa: PLC0415 - only who searches needs it

    return faiss


def sum_error(terms: int, unit: float = UNIT) -> float:
    """How far a sum of so many products may be off, as a share of the product of the norms."""
    return terms * unit / (1 - terms * unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is searched: (N, D) float32 rows, and perhaps their bfloat16 neighbours, which bound what is found in them.

    `longest` is at least the length of every row, `residue` of every row less its half; `halves` are the bits.
    """

    vectors: np.ndarray
    longest: float
    halves: np.ndarray | None = None  # (N, D) uint16
    residue: float = 0.0


def rows_of(vectors: np.ndarray) -> Rows:
    """Measure rows that lie in memory, and halve them where that is of use."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    longest = longest_row(vectors)
    if not use_halves(len(vectors)):
        return Rows(vectors=vectors, longest=longest)
    halves = halve(vectors)
    return Rows(vectors=vectors, longest=longest, halves=halves, residue=longest_residue(vectors, halves))


def longest_row(vectors: np.ndarray) -> float:
    """A bound on the length of every row."""
    squares = (_longest_square(vectors[n : n + TILE_ROWS]) for n in range(0, len(vectors), TILE_ROWS))
    return math.sqrt(np.max([0.0, *squares])) * (1 + sum_error(vectors.shape[1] + 2))


def longest_residue(vectors: np.ndarray, halves: np.ndarray) -> float:
    """A bound on the length of what halving took off any row."""
    tiles = (slice(n, n + TILE_ROWS) for n in range(0, len(vectors), TILE_ROWS))
    squares = (_longest_square(vectors[tile] - widen(halves[tile])) for tile in tiles)  # exact: the numbers are near
    return math.sqrt(np.max([0.0, *squares])) * (1 + sum_error(vectors.shape[1] + 2)) + TINY


def _longest_square(vectors: np.ndarray) -> float:
    return float(np.einsum("nd,nd->n", vectors, vectors).max())


def halve(vectors: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 of each float32 number, ties to even."""
    bits = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)


def widen(halves: np.ndarray) -> np.ndarray:
    """The float32 numbers that such bits are of."""
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


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
class Look:
    """What a pass found: the rows to be rescored for each query, and what no other row's true product exceeds."""

    rows: Sequence[np.ndarray]
    bounds: np.ndarray  # (Q,) float64


@dataclass(frozen=True, slots=True)
class Found:
    """The best rows of each query, best first, equal ones by their number: (Q, K) scores and rows."""

    scores: np.ndarray  # float32
    rows: np.ndarray  # int64


# A query's best rows as they are known so far.
Best = tuple[np.ndarray, np.ndarray]


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

    def __call__(self, queries: np.ndarray, count: int) -> Found:
        """The best `count` rows, or all where there are fewer, for each of (Q, D) float32 queries."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        count = min(count, len(self._rows.vectors))
        blocks = [self._search(queries[n : n + TILE_QUERIES], count) for n in range(0, len(queries), TILE_QUERIES)]
        best = [one for block in blocks for one in block]
        return Found(
            np.array([scores for scores, _ in best], np.float32).reshape(len(best), count),
            np.array([rows for _, rows in best], np.int64).reshape(len(best), count),
        )

    def _search(self, queries: np.ndarray, count: int) -> list[Best]:
        lengths = np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64)) * (1 + sum_error(2))
        slack = _fold_error(queries.shape[1]) * lengths * self._rows.longest + TINY
        found: list[Best] = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
        left = np.arange(len(queries))
        if self._by_halves(count):
            left = self._take(found, left, self._halves(queries, lengths, count), queries, slack, count)
            self._too_dense = len(left) > max(MOST_TWICE * len(queries), 8)
        if len(left):
            look = self._look(queries[left], lengths[left], count)
            left = self._take(found, left, look, queries, slack, count)
        # the last of the best so far is reached for certain: what lies below it by more than both errors is out
        errors = sum_error(queries.shape[1]) * lengths * self._rows.longest + slack
        for start in range(0, len(left), QUERIES_TWICE):
            some = left[start : start + QUERIES_TWICE]
            least = np.array([found[n][0][-1] for n in some], np.float64) - errors[some]
            for n, rows in zip(some, self._reaching(queries[some], least), strict=True):
                found[n] = self._best(queries[n], rows, count)
        return found

    def _take(
        self, found: list[Best], asked: np.ndarray, look: Look, queries: np.ndarray, slack: np.ndarray, count: int
    ) -> np.ndarray:
        """Rescore what a pass found for the queries of these numbers; return those that it did not settle."""
        unsettled: list[int] = []
        for n, rows, bound in zip(asked.tolist(), look.rows, look.bounds.tolist(), strict=True):
            found[n] = self._best(queries[n], rows, count)
            if len(rows) < count or not float(found[n][0][-1]) > bound + slack[n]:
                unsettled.append(n)
        return np.array(unsettled, dtype=np.int64)

    def _best(self, query: np.ndarray, rows: np.ndarray, count: int) -> Best:
        """The best of some rows, by their products in the one order."""
        parts = (rows[n : n + TILE_ROWS] for n in range(0, len(rows), TILE_ROWS))
        scored = [_fold(self._rows.vectors.take(part, axis=0) * query) for part in parts]
        scores = np.concatenate(scored) if scored else np.empty(0, np.float32)
        order = np.lexsort((rows, -scores))[:count]
        return scores[order], rows[order]

    def _reaching(self, queries: np.ndarray, least: np.ndarray) -> list[np.ndarray]:
        """For each query the rows whose quick product with it is at least so much."""
        vectors = self._rows.vectors
        hits: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(vectors), TILE_ROWS):
            row, query = np.nonzero(vectors[start : start + TILE_ROWS] @ queries.T >= least)
            hits.append((query, start + row))
        numbers, rows = (np.concatenate(column) for column in zip(*hits, strict=True))
        return _by_query(len(queries), numbers, rows)[0]

    def _look(self, queries: np.ndarray, lengths: np.ndarray, count: int) -> Look:
        """The best by float32 products, some more of them than are asked for."""
        total, dimension = self._rows.vectors.shape
        wider = min(total, count + max(count // 8, 16))
        if self._gpu is None:
            faiss = _faiss()
            faiss.omp_set_num_threads(self._threads)
            scores, rows = faiss.knn(queries, self._rows.vectors, wider, metric=faiss.METRIC_INNER_PRODUCT)
            error = sum_error(dimension)
        else:
            tile_rows = max(1, self._memory_bytes // 2 // (4 * dimension))
            scores, rows = search_tiles(queries, self._rows.vectors, wider, tile_rows, self._gpu)
            error = sum_error(dimension) + 2 * TF32_UNIT + TF32_UNIT**2
        bounds = scores[:, -1].astype(np.float64) + error * lengths * self._rows.longest + TINY
        if wider == total:
            bounds[:] = -np.inf  # there is no other row
        return Look(list(rows), bounds)

    def _by_halves(self, count: int) -> bool:
        total = len(self._rows.vectors)
        usable = self._rows.halves is not None and self._gpu is None and not self._too_dense
        return usable and 32 * count <= total and self._products_of_halves is not None

    @cached_property
    def _products_of_halves(self) -> "HalfProducts | None":
        """What multiplies halves, where a trial finds it right and faster than float32."""
        halves = self._rows.halves
        assert halves is not None
        multiply = HalfProducts(halves, self._threads)
        return multiply if _is_worth_it(multiply, self._rows) else None

    def _halves(self, queries: np.ndarray, lengths: np.ndarray, count: int) -> Look:
        multiply = self._products_of_halves
        assert multiply is not None
        halved = halve(queries)
        off = queries - widen(halved)
        residues = np.sqrt(np.einsum("qd,qd->q", off, off, dtype=np.float64)) * (1 + sum_error(2)) + TINY
        errors = _half_errors(self._rows, lengths, residues, queries.shape[1])
        return multiply.look(halved, errors, count)


def _half_errors(rows: Rows, lengths: np.ndarray, residues: np.ndarray, dimension: int) -> np.ndarray:
    """How far a product of halves, summed in float32, may be from the product of what they are halves of.

    x q - x' q' = (x - x') q + x' (q - q'), and the sum's own error.
    """
    longest_half = rows.longest + rows.residue
    summed = sum_error(2 * dimension) * longest_half * (lengths + residues)
    return rows.residue * lengths + longest_half * residues + summed + TINY


class HalfProducts:
    """Products of bfloat16 numbers by torch, added up in float32, and the rows whose products pass a threshold."""

    def __init__(self, halves: np.ndarray, threads: int) -> None:
        import torch  # noqa: PLC0415 - takes seconds, and is not everywhere

        self._torch = torch
        self._threads = threads
        self._halves = self._tensor(halves)
        self.total = len(halves)
        sampled = min(MOST_SAMPLED, self.total // 8)
        self._sample = self._tensor(np.ascontiguousarray(halves[:: self.total // sampled]))

    def _tensor(self, bits: np.ndarray) -> Any:
        return self._torch.from_numpy(bits.view(np.int16)).view(self._torch.bfloat16)

    def __call__(self, rows: Any, queries: Any, out: Any = None) -> np.ndarray:
        """(R, Q) bits of the products, rounded to bfloat16: above zero they are in the order of the numbers."""
        self._torch.set_num_threads(self._threads)
        with self._torch.inference_mode():
            scores = self._torch.mm(rows, queries.T, out=out)
            return scores.view(self._torch.int16).numpy()

    def tile(self, start: int, queries: np.ndarray) -> np.ndarray:
        """The float32 products of one tile with queries that are halved already."""
        found = self(self._halves[start : start + TILE_ROWS], self._tensor(queries))
        return widen(found.view(np.uint16))

    def look(self, queries: np.ndarray, errors: np.ndarray, count: int) -> Look:
        """The rows that can be among the best `count`, as far as a threshold taken from a sample lets them through.

        A product below a threshold was rounded from one below it, since the threshold itself is a bfloat16 number: what
        rounding does to a score plays no part in the bound.
        """
        asked = self._tensor(queries)
        thresholds = self._thresholds(asked, count)
        numbers, rows, scores = self._hits(asked, thresholds)
        limits = widen(thresholds.astype(np.uint16)).astype(np.float64)
        kept = [
            self._possible(r, s, error, count)
            for r, s, error in zip(*_by_query(len(queries), numbers, rows, scores), errors.tolist(), strict=True)
        ]
        # at a threshold of zero the order of bits ends: nothing is settled
        return Look(kept, np.where(thresholds > 0, limits + errors, np.inf))

    def _thresholds(self, asked: Any, count: int) -> np.ndarray:
        """(Q,) bits that somewhat more rows than are asked for will pass, by the sample."""
        share = len(self._sample) / self.total
        expected = share * (1.3 * count + 16)
        rank = min(len(self._sample), math.ceil(expected + 4 * math.sqrt(expected) + 4))
        scores = np.ascontiguousarray(self(asked, self._sample))
        return np.maximum(np.partition(scores, -rank, axis=1)[:, -rank], 0)

    def _hits(self, asked: Any, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The query, the row and the bits of every product that passes its query's threshold."""
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        least = np.where(thresholds > 0, thresholds, np.iinfo(np.int16).max)
        out = self._torch.empty((TILE_ROWS, len(asked)), dtype=self._torch.bfloat16)
        for start in range(0, self.total, TILE_ROWS):
            stop = min(start + TILE_ROWS, self.total)
            scores = self(self._halves[start:stop], asked, out[: stop - start])
            whole = len(scores) // BLOCK * BLOCK
            blocks = scores[:whole].reshape(-1, BLOCK, len(asked))
            block, query = np.nonzero(blocks.max(axis=1) >= least)
            inside = blocks[block, :, query]
            hit, place = np.nonzero(inside >= least[query, None])
            found.append((query[hit], start + BLOCK * block[hit] + place, inside[hit, place]))
            place, query = np.nonzero(scores[whole:] >= least)
            found.append((query, start + whole + place, scores[whole + place, query]))
        numbers, rows, scores = (np.concatenate(column) for column in zip(*found, strict=True))
        return numbers, rows, scores

    def _possible(self, rows: np.ndarray, bits: np.ndarray, error: float, count: int) -> np.ndarray:
        """The rows of one query that can be among its best `count`."""
        if len(rows) <= count:
            return rows
        scores = widen(bits.view(np.uint16)).astype(np.float64)
        last = np.partition(scores, -count)[-count]
        # each score was rounded, and is of rounded numbers; the factor covers the rescoring's own error
        return rows[scores * (1 + HALF_UNIT) + error * 1.01 >= last * (1 - HALF_UNIT) - error * 1.01]


def _by_query(queries: int, numbers: np.ndarray, *columns: np.ndarray) -> list[list[np.ndarray]]:
    """Columns of which each entry is of the query of that number, split by query."""
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=queries))[:-1]
    return [np.split(column[order], ends) for column in columns]


def _is_worth_it(multiply: HalfProducts, rows: Rows) -> bool:
    """Whether this processor's products of halves are as near as the bound says, and faster than those of float32."""
    tile = rows.vectors[:TILE_ROWS]
    queries = np.ascontiguousarray(tile[:256])
    halved = halve(queries)
    ours = min(_seconds(lambda: multiply.tile(0, halved)) for _ in range(3))
    theirs = min(_seconds(lambda: tile @ queries.T) for _ in range(3))
    found, exact = multiply.tile(0, halved), tile @ queries.T
    lengths = np.full(len(queries), rows.longest)
    errors = _half_errors(rows, lengths, np.full(len(queries), rows.residue), queries.shape[1])
    is_right = bool((np.abs(found - exact) <= errors * 1.01 + HALF_UNIT * np.abs(exact)).all())
    return is_right and 1.2 * ours < theirs


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@lru_cache(maxsize=1)
def has_half_units() -> bool:
    """Whether the processor multiplies bfloat16 numbers, as Linux names it; those with AMX have this too."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].split()
    except OSError:
        return False


def use_halves(total: int) -> bool:
    """Whether rows in such number are worth a copy in bfloat16 here: torch, units for it, and enough of them."""
    return total >= FEWEST_FOR_HALVES and has_half_units() and find_spec("torch") is not None


# Searches one tile: queries, rows and how many, to (Q, K) scores and rows, best first.
SearchTile = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def search_tiles(
    queries: np.ndarray, vectors: np.ndarray, count: int, tile_rows: int, search: SearchTile
) -> tuple[np.ndarray, np.ndarray]:
    """Search rows tile by tile, keeping the best of all tiles so far: what is in memory at once is one of them."""
    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), tile_rows):
        tile = vectors[start : start + tile_rows]
        more_scores, more_rows = search(queries, tile, min(count, len(tile)))
        scores = np.hstack([scores, more_scores])
        rows = np.hstack([rows, more_rows.astype(np.int64) + start])
        order = np.lexsort((rows, -scores), axis=1)[:, :count]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return scores, rows


def check_gpu() -> None:
    """See that FAISS is there in the form that uses a GPU, and that there is one.

    Raises:
        InputError: either is not.
    """
    check_gpu_wheel()
    if not _faiss().get_num_gpus():
        raise InputError(
            "retrieval.search.device: cuda was asked for, and FAISS finds no GPU on this machine; set it to cpu"
        )


def check_gpu_wheel() -> None:
    """See that FAISS is there in the form that uses a GPU."""
    if not hasattr(_faiss(), "StandardGpuResources"):
        raise InputError(
            "retrieval.search.device: cuda needs faiss-gpu, and FAISS here is the one for CPUs: remove faiss-cpu, then"
            " install faiss-gpu (never one over the other), or set it to cpu"
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
        if count > MOST_ON_GPU:
            raise InputError(
                f"retrieval.top_k: a GPU selects {MOST_ON_GPU} of the best at most, and {count} are to be looked at:"
                " lower it, or set retrieval.search.device to cpu"
            )
        return faiss.knn_gpu(resources, queries, tile, count, metric=faiss.METRIC_INNER_PRODUCT)

    return search
