from fractions import Fraction

import numpy as np
import pytest

from sonify.retrieval import halves
from sonify.retrieval.halves import (
    FEWEST_FOR_HALVES,
    Asked,
    HalfProducts,
    Rows,
    _possible,
    half_errors,
    halve,
    is_worth_it,
    lengths_of,
    longest_residue,
    longest_row,
    rows_of,
    use_halves,
    widen,
)

SCALES = [1e-44, 1e-38, 1e-30, 1e-22, 1.0, 1e15, 1.8e19, 1e37]


@pytest.fixture
def halved(monkeypatch):
    """Halves rows in any number; torch multiplies them on any CPU, if slowly."""
    pytest.importorskip("torch")
    monkeypatch.setattr(halves, "use_halves", lambda _: True)
    return rows_of


def unit_rows(n, dimension, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def hard_rows(scale, dimension=9):
    """Rows of even numbers, of one beside small ones, and of numbers that halving takes as far off as it can."""
    rng = np.random.default_rng(3)
    farthest = np.full((4, dimension), 1 + 2.0**-8) * 2.0 ** np.arange(4)[:, None]
    uneven = np.concatenate([np.ones((3, 1)), np.full((3, dimension - 1), 2.0**-13)], axis=1)
    rows = np.concatenate([farthest, -farthest + 2.0**-20, uneven, rng.standard_normal((20, dimension))])
    with np.errstate(under="ignore"):
        return (rows / 16 * scale).astype(np.float32)


def exact(rows):
    return [[Fraction(float(number)) for number in row] for row in rows]


def square(row):
    return sum((number * number for number in row), Fraction(0))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dimension", [1, 2, 9, 200])
def test_a_length_is_bounded_and_nearly_met(scale, dimension):
    rows = hard_rows(scale, dimension)
    lengths = [Fraction(float(length)) for length in lengths_of(rows)]
    for length, row in zip(lengths, exact(rows), strict=True):
        assert square(row) <= length**2 <= square(row) * (1 + Fraction(1, 10**12))
    assert longest_row(rows) == float(max(lengths))
    assert longest_row(rows[:0]) == 0


@pytest.mark.parametrize("scale", SCALES)
def test_a_residue_is_bounded_and_nearly_met(scale):
    rows = hard_rows(scale)
    off = [
        [a - b for a, b in zip(*pair, strict=True)] for pair in zip(exact(rows), exact(widen(halve(rows))), strict=True)
    ]
    most = max(map(square, off))
    assert most <= Fraction(longest_residue(rows, halve(rows))) ** 2 <= most * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_no_number_has_no_length(bad):
    rows = np.ones((halves.TILE_ROWS + 2, 2), np.float32)
    rows[halves.TILE_ROWS, 1] = bad
    assert not np.isfinite(longest_row(rows))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1.0, 1e15])
@pytest.mark.parametrize("of_queries", [1e-38, 1.0, 1e20])
def test_products_of_halves_are_within_their_bound(scale, of_queries):
    vectors, queries = hard_rows(scale), hard_rows(of_queries)
    halved = halve(vectors)
    rows = Rows(vectors=vectors, longest=longest_row(vectors), halves=halved, residue=longest_residue(vectors, halved))
    errors = half_errors(rows, lengths_of(queries), lengths_of(queries - widen(halve(queries))))
    nearest = Fraction(0)
    for query, half, error in zip(exact(queries), exact(widen(halve(queries))), errors, strict=True):
        for row, other in zip(exact(vectors), exact(widen(halved)), strict=True):
            off = sum((a * b - c * d for a, b, c, d in zip(row, query, other, half, strict=True)), Fraction(0))
            assert abs(off) <= Fraction(float(error))
            nearest = max(nearest, abs(off) / Fraction(float(error)))
    if scale == of_queries == 1:  # others are no powers of two, and their numbers not the farthest off
        assert nearest > Fraction(9, 10)


def errors_of_halves(row, query):
    """The bound for a row and a query that are their own halves."""
    assert (widen(halve(row)) == row).all()
    assert (widen(halve(query)) == query).all()
    rows = Rows(vectors=row[None], longest=longest_row(row[None]), halves=halve(row[None]), residue=0.0)
    return float(half_errors(rows, lengths_of(query[None]), np.zeros(1))[0])


@pytest.mark.parametrize("dimension", [2, 64, 2048])
def test_what_a_sum_of_halves_loses_is_within_their_bound(dimension):
    row, query = (np.array([1.0, *[small] * (dimension - 1)], np.float32) for small in (2.0**-12, 2.0**-13))
    total = np.float32(0)
    for term in row * query:
        total += term
    lost = (dimension - 1) * 2.0**-25
    assert float(row.astype(np.float64) @ query.astype(np.float64)) - float(total) == lost
    assert lost <= errors_of_halves(row, query) < 10 * lost


def test_products_of_halves_that_are_taken_for_zero_are_within_their_bound():
    row, query = np.full(64, 2.0**-64, np.float32), np.full(64, 2.0**-63, np.float32)
    assert errors_of_halves(row, query) >= 64 * 2.0**-127


def test_halves_are_the_nearest_bfloat16_numbers():
    assert widen(halve(np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-7, 0.0], np.float32))).tolist() == [
        1.0,
        1.0,
        1 + 2.0**-6,
        -1 - 2.0**-7,
        0.0,
    ]
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert (np.abs(widen(halve(numbers)) - numbers) <= np.abs(numbers) * halves.BFLOAT16_ROUNDOFF).all()


def test_what_units_take_for_zero_is_zero():
    numbers = np.array([2.0**-126, -(2.0**-126), 2.0**-127, -(2.0**-130), 2.0**-149], np.float32)
    assert widen(halve(numbers)).tolist() == [2.0**-126, -(2.0**-126), 0.0, 0.0, 0.0]


def test_halves_are_those_of_torch():
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert halve(numbers).tolist() == torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy().view("u2").tolist()


def test_a_row_is_dropped_only_where_enough_others_are_sure_to_be_above_it():
    error, roundoff = 2.0**-6, halves.BFLOAT16_ROUNDOFF
    even = ((1 - roundoff) - 2 * error) / (1 + roundoff)
    for score, kept in ((even * (1 + 1e-12), [0, 1, 2]), (even * (1 - 1e-12), [0, 1])):
        assert _possible(np.arange(3), np.array([1.0, 1.0, score]), error, 2, np.inf).tolist() == kept
    low = np.array([1.0, 1.0, 0.5])
    assert _possible(np.arange(3), low, error, 2, 0.5).tolist() == [0, 1, 2]  # all are 0.5 at most, and tie
    assert _possible(np.arange(3), low, error, 2, 0.6).tolist() == [0, 1]
    assert _possible(np.arange(2), low[:2], error, 2, np.inf).tolist() == [0, 1]


def asked_of(queries, slack=0.0, count=10):
    return Asked(queries=queries, lengths=lengths_of(queries), slack=np.full(len(queries), slack), count=count)


def test_rescoring_s_own_error_counts_in_what_is_dropped(halved):
    multiply, queries = HalfProducts(halved(unit_rows(3000, 64)), 1), unit_rows(8, 64, seed=2)
    few, many = multiply.look(asked_of(queries)), multiply.look(asked_of(queries, slack=1.0))
    assert few is not None
    assert many is not None
    assert all(len(one) < len(other) for one, other in zip(few.numbers, many.numbers, strict=True))


def test_nothing_is_settled_where_too_few_products_are_above_zero(halved):
    rows = -np.abs(unit_rows(3000, 16))
    look = HalfProducts(halved(rows), 1).look(asked_of(np.abs(unit_rows(4, 16, seed=2))))
    assert look is not None
    assert (look.bounds == np.inf).all()
    assert [len(numbers) for numbers in look.numbers] == [0] * 4


@pytest.mark.parametrize("total", [2000, 2007, 17_000])
def test_nothing_that_halves_never_saw_is_above_their_bound(halved, total):
    rows, queries = halved(unit_rows(total, 32)), unit_rows(30, 32, seed=2)
    multiply, asked = HalfProducts(rows, 1), asked_of(queries)
    look = multiply.look(asked)
    assert look is not None
    halved_queries = multiply._tensor(halve(queries))
    hits = multiply._hits(halved_queries, multiply._thresholds(halved_queries, 10)[0], 10**9)
    assert hits is not None
    found = queries.astype(np.float64) @ rows.vectors.T.astype(np.float64)
    best = np.argsort(-found, axis=1)[:, :10]
    for n, numbers in enumerate(hits[0]):
        assert set(best[n].tolist()) <= set(look.numbers[n].tolist())
        found[n, numbers] = -np.inf
    assert (found.max(axis=1) <= look.bounds).all()
    assert (look.bounds < found.max(axis=1) + 0.05).all()


def test_a_cone_that_would_fill_the_memory_is_given_up(halved):
    cone = np.eye(1, 16, dtype=np.float32) + np.float32(1e-4) * unit_rows(9000, 16)
    multiply, queries = HalfProducts(halved(cone), 1), cone[:20]
    assert multiply.look(asked_of(queries)) is None
    asked = multiply._tensor(halve(queries))
    thresholds, _ = multiply._thresholds(asked, 10)
    every = multiply._hits(asked, thresholds, 10**9)
    assert every is not None
    passed = sum(map(len, every[0]))
    assert passed > 100_000
    assert multiply._hits(asked, thresholds, passed) is not None
    assert multiply._hits(asked, thresholds, 1000) is None


def test_a_trial_finds_products_out_that_are_of_other_rows(halved, monkeypatch):
    monkeypatch.setattr(halves, "FASTER", 0.0)
    rows = halved(unit_rows(3000, 128) * np.float32(3))
    assert is_worth_it(HalfProducts(rows, 1), rows)
    wrong = Rows(vectors=rows.vectors[::-1].copy(), longest=rows.longest, halves=rows.halves, residue=rows.residue)
    assert not is_worth_it(HalfProducts(rows, 1), wrong)
    monkeypatch.setattr(halves, "FASTER", 1e9)
    assert not is_worth_it(HalfProducts(rows, 1), rows)


def test_a_trial_tries_one_query_too(halved, monkeypatch):
    monkeypatch.setattr(halves, "FASTER", 0.0)
    rows = halved(unit_rows(3000, 128))
    multiply = HalfProducts(rows, 1)
    found = multiply.first_tile
    monkeypatch.setattr(multiply, "first_tile", lambda queries: found(queries) * (1 + (len(queries) == 1)))
    assert not is_worth_it(multiply, rows)


def test_halves_are_for_large_pools_alone():
    assert not use_halves(FEWEST_FOR_HALVES - 1)
    assert rows_of(unit_rows(50, 8)).halves is None
