"""The rows that are searched, their bfloat16 halves, and how far a quick product may be from the true one.

Where a CPU has units for bfloat16, products of halves find the candidates of a search: they come at 2.9 times the rate
of float32 (8192 x 2048 at 512 dimensions, one thread of an AMD EPYC with avx512_bf16). They never decide what is found:
`HalfProducts.look` says a bound on what it let go, and `search.py` does the rest.

Source of the bounds: Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1: a sum of n products in any
order is off by at most n u / (1 - n u) times the product of the norms, with u the unit roundoff.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

# Half the distance between two numbers of 53 significant bits (float64), of 24 (float32) and of 8 (bfloat16).
FLOAT64_ROUNDOFF, FLOAT32_ROUNDOFF, BFLOAT16_ROUNDOFF = 2.0**-53, 2.0**-24, 2.0**-8
# What float32 or bfloat16 numbers below the least normal one are off at most, rounded or, as units for bfloat16 and a
# GPU do, taken for zero.
UNDERFLOW = 2.0**-126
# Rows that are multiplied at a time; the scores of a tile stay near the processor.
TILE_ROWS = 8192

# What follows decides how long a search takes and never what it finds: no test of what is found can fail for it. The
# numbers were chosen, not measured.
# Below so many rows bfloat16 gains nothing that could be noticed, and is not worth the import of torch.
FEWEST_FOR_HALVES = 16_384
# A sample of an eighth of the rows costs an eighth of a pass, and a large pool's a smaller share of it.
SAMPLED_PART, MOST_SAMPLED = 8, 32_768
# A threshold is meant for these many rows a seat and so many more: what halving and rounding may have put out of order.
PASSING, PASSING_MORE = 1.3, 16
# How many deviations of a count (its square root) and rows more the sample's rank is set lower, so that hardly any
# query's threshold lets too few through.
DEVIATIONS, DEVIATIONS_MORE = 4, 4
# Where so many times the rows pass that the sample promised, halves cannot tell the rows apart, and memory would fill.
MOST_PASSING = 4
# Scores are compared sixteen rows at a time: one in sixteen is read once a threshold holds.
BLOCK = 16
# Halves that are not a fifth faster on a trial are not worth their second looks.
FASTER = 1.2
TRIAL_QUERIES, TRIALS = 256, 3


def sum_error(terms: int, roundoff: float = FLOAT32_ROUNDOFF) -> float:
    """How far a sum of so many products may be off, as a share of the product of the norms."""
    return terms * roundoff / (1 - terms * roundoff)


def underflow_error(dimension: int, longest: float, lengths: np.ndarray) -> np.ndarray:
    """How far a product may be off where numbers are too small for float32's exponent, for queries of some lengths.

    Terms and sums are at most `UNDERFLOW` off each, two a term. Rows and queries of which every number is taken for
    zero are off by the root of the dimension times that, at most, and the product by that times the other's length.
    """
    inputs = math.sqrt(dimension) * UNDERFLOW * (longest + lengths + UNDERFLOW)
    return inputs + 2 * dimension * UNDERFLOW


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


def lengths_of(vectors: np.ndarray) -> np.ndarray:
    """(N,) float64 bounds on the length of each row, above it by some roundings of float64; NaN where one holds NaN.

    The square of a float32 number is exact in float64, and neither too small nor too large for it.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares) * (1 + sum_error(vectors.shape[1] + 3, FLOAT64_ROUNDOFF))


def longest_row(vectors: np.ndarray) -> float:
    """A bound on the length of every row."""
    tiles = (vectors[n : n + TILE_ROWS] for n in range(0, len(vectors), TILE_ROWS))
    return float(np.max([0.0, *(lengths_of(tile).max() for tile in tiles)]))


def longest_residue(vectors: np.ndarray, halves: np.ndarray) -> float:
    """A bound on the length of what halving took off any row."""
    tiles = (slice(n, n + TILE_ROWS) for n in range(0, len(vectors), TILE_ROWS))
    # exact: a float32 number less its upper bits has few bits left
    return float(np.max([0.0, *(lengths_of(vectors[tile] - widen(halves[tile])).max() for tile in tiles)]))


def halve(vectors: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 of each float32 number, ties to even; zero for what units take for zero."""
    bits = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32)
    halves = ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype("u2")
    halves[(halves & np.uint16(0x7F80)) == 0] = 0
    return halves


def widen(halves: np.ndarray) -> np.ndarray:
    """The float32 numbers that such bits are of."""
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


@dataclass(frozen=True, slots=True)
class Look:
    """What a pass found for each query: the numbers of the rows to be rescored, and a bound on those that it never saw.

    Every other row is out for one of two reasons. Either its true product is at most the bound: it is out where the
    last of the best, rescored, is above the bound by more than rescoring's own error. Or the pass saw it and dropped
    it: then as many rows as are asked for stand among `numbers` and are certain to be rescored strictly above it, so
    that it neither is among the best nor ties with the last of them, whatever the bound is.
    """

    numbers: Sequence[np.ndarray]
    bounds: np.ndarray  # (Q,) float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is wanted of a pass: (Q, D) float32 queries, the bounds on their lengths, and how many of the best rows.

    `slack` is how far a rescored product may be from the true one, and `most` what a score is at most.
    """

    queries: np.ndarray
    lengths: np.ndarray  # (Q,) float64
    slack: np.ndarray  # (Q,) float64
    count: int
    most: float = math.inf

    def take(self, left: np.ndarray) -> "Asked":
        """The same of some of the queries."""
        return Asked(
            queries=self.queries[left],
            lengths=self.lengths[left],
            slack=self.slack[left],
            count=self.count,
            most=self.most,
        )


def half_errors(rows: Rows, lengths: np.ndarray, residues: np.ndarray) -> np.ndarray:
    """How far a product of halves, summed in float32, may be from the product of what they are halves of.

    x q - x' q' = (x - x') q + x' (q - q'), and the sum's own error; units for bfloat16 round both a term and a sum.
    """
    dimension = rows.vectors.shape[1]
    longest_half = rows.longest + rows.residue
    summed = sum_error(2 * dimension) * longest_half * (lengths + residues)
    tiny = underflow_error(dimension, longest_half, lengths + residues)
    return rows.residue * lengths + longest_half * residues + summed + tiny


class HalfProducts:
    """Products of bfloat16 numbers by torch, added up in float32, and the rows whose products pass a threshold."""

    def __init__(self, rows: Rows, threads: int) -> None:
        import torch  # noqa: PLC0415 - takes seconds, and is not everywhere

        assert rows.halves is not None
        self._torch = torch
        self._threads = threads
        self._rows = rows
        self._halves = self._tensor(rows.halves)
        self.total = len(rows.halves)
        step = self.total // max(1, min(MOST_SAMPLED, self.total // SAMPLED_PART))
        self._sample = self._tensor(np.ascontiguousarray(rows.halves[::step]))

    def _tensor(self, bits: np.ndarray) -> Any:
        return self._torch.from_numpy(bits.view(np.int16)).view(self._torch.bfloat16)

    def _multiply(self, rows: Any, queries: Any, out: Any = None) -> np.ndarray:
        """(R, Q) bits of the products, rounded to bfloat16: above zero they are in the order of the numbers."""
        self._torch.set_num_threads(self._threads)
        with self._torch.inference_mode():
            scores = self._torch.mm(rows, queries.T, out=out)
            return scores.view(self._torch.int16).numpy()

    def first_tile(self, halved: np.ndarray) -> np.ndarray:
        """(R, Q) products of the first tile with queries that are halved already, as float32."""
        return widen(self._multiply(self._halves[:TILE_ROWS], self._tensor(halved)).view(np.uint16))

    def look(self, asked: Asked) -> Look | None:
        """The rows that can be among the best, as far as a threshold taken from a sample lets them through.

        A product below a threshold was rounded from one below it, since the threshold itself is a bfloat16 number: what
        rounding does to a score plays no part in the bound. None where far more rows pass than the sample promised.
        """
        halved = halve(asked.queries)
        errors = half_errors(self._rows, asked.lengths, lengths_of(asked.queries - widen(halved)))
        queries = self._tensor(halved)
        thresholds, passing = self._thresholds(queries, asked.count)
        hits = self._hits(queries, thresholds, int(MOST_PASSING * passing * len(halved)))
        if hits is None:
            return None
        kept = [
            _possible(numbers, widen(bits.view(np.uint16)).astype(np.float64), error, asked.count, asked.most)
            for numbers, bits, error in zip(*hits, (errors + asked.slack).tolist(), strict=True)
        ]
        limits = widen(thresholds.astype(np.uint16)).astype(np.float64)
        # at a threshold of zero the order of bits ends: no row was let through, and nothing is settled
        return Look(kept, np.where(thresholds > 0, limits + errors, np.inf))

    def _thresholds(self, queries: Any, count: int) -> tuple[np.ndarray, float]:
        """(Q,) bits that somewhat more rows than are asked for will pass, by the sample; and how many of them."""
        share = len(self._sample) / self.total
        expected = share * (PASSING * count + PASSING_MORE)
        rank = min(len(self._sample), math.ceil(expected + DEVIATIONS * math.sqrt(expected) + DEVIATIONS_MORE))
        scores = np.ascontiguousarray(self._multiply(queries, self._sample))
        return np.maximum(np.partition(scores, -rank, axis=1)[:, -rank], 0), rank / share

    def _hits(
        self, queries: Any, thresholds: np.ndarray, most: int
    ) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
        """For each query the rows whose products pass its threshold, and their bits; None for more than `most`."""
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        passed = 0
        least = np.where(thresholds > 0, thresholds, np.iinfo(np.int16).max)
        out = self._torch.empty((TILE_ROWS, len(thresholds)), dtype=self._torch.bfloat16)
        for start in range(0, self.total, TILE_ROWS):
            stop = min(start + TILE_ROWS, self.total)
            scores = self._multiply(self._halves[start:stop], queries, out[: stop - start])
            whole = len(scores) // BLOCK * BLOCK
            blocks = scores[:whole].reshape(-1, BLOCK, len(thresholds))
            passing = blocks.max(axis=1) >= least
            if passed + np.count_nonzero(passing) > most:  # each holds one at least; their rows are not read yet
                return None
            block, query = np.nonzero(passing)
            inside = blocks[block, :, query]
            passes = inside >= least[query, None]
            passed += np.count_nonzero(passes)
            if passed > most:
                return None
            hit, place = np.nonzero(passes)
            found.append((query[hit], start + BLOCK * block[hit] + place, inside[hit, place]))
            place, query = np.nonzero(scores[whole:] >= least)
            found.append((query, start + whole + place, scores[whole + place, query]))
        query, numbers, bits = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(query, kind="stable")
        ends = np.cumsum(np.bincount(query, minlength=len(thresholds)))[:-1]
        return np.split(numbers[order], ends), np.split(bits[order], ends)


def _possible(numbers: np.ndarray, scores: np.ndarray, error: float, count: int, most: float) -> np.ndarray:
    """The rows of one query that can be among its best `count`, or tie with the last of them.

    Each score was rounded to bfloat16, and was off from the rescored one by at most `error` before. `count` rows are
    rescored at `sure` or above, and none that is dropped reaches it.
    """
    if len(numbers) <= count:
        return numbers
    last = np.partition(scores, -count)[-count]
    sure = min(last * (1 - BFLOAT16_ROUNDOFF) - error, most)
    return numbers[scores * (1 + BFLOAT16_ROUNDOFF) + error >= sure]


def is_worth_it(multiply: HalfProducts, rows: Rows) -> bool:
    """Whether, on a trial, products of halves are as near here as the bound says, and faster than those of float32.

    A sample of what the bound rests on (that torch adds up in float32 and rounds once), many queries and one, as a
    library may go another way for it; no proof.
    """
    tile = rows.vectors[:TILE_ROWS]
    queries = np.ascontiguousarray(tile[:TRIAL_QUERIES])
    halved = halve(queries)
    if not all(_is_near(multiply.first_tile(halved[:n]), queries[:n], rows) for n in (len(queries), 1)):
        return False
    ours = min(_seconds(lambda: multiply.first_tile(halved)) for _ in range(TRIALS))
    theirs = min(_seconds(lambda: tile @ queries.T) for _ in range(TRIALS))
    return FASTER * ours < theirs


def _is_near(found: np.ndarray, queries: np.ndarray, rows: Rows) -> bool:
    exact = rows.vectors[: len(found)].astype(np.float64) @ queries.T.astype(np.float64)
    errors = half_errors(rows, lengths_of(queries), lengths_of(queries - widen(halve(queries))))
    return bool((np.abs(found - exact) <= errors + BFLOAT16_ROUNDOFF * np.abs(found)).all())


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
