import os
import subprocess
import sys

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonify.config import Search
from sonify.errors import InputError
from sonify.retrieval import search
from sonify.retrieval.search import (
    HalfProducts,
    Rows,
    RowSearch,
    halve,
    has_half_units,
    longest_row,
    products,
    rows_of,
    search_tiles,
    use_halves,
    widen,
)

CPU = Search()
needs_half_units = pytest.mark.skipif(not has_half_units(), reason="this CPU has no units for bfloat16 products")


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_rows(n, dimension, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, dimension)))


def clustered(n, dimension, seed=0, spread=0.02):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, dimension))
    return unit(centres[rng.integers(0, 8, n)] + spread * rng.standard_normal((n, dimension)))


def near_tied(n, dimension, seed=0):
    """Rows that lie 1e-7 apart."""
    rng = np.random.default_rng(seed)
    return (unit(rng.standard_normal((1, dimension))) + 1e-7 * rng.standard_normal((n, dimension))).astype(np.float32)


def repeated(n, dimension, seed=0):
    return random_rows(max(n // 40, 1), dimension, seed)[np.random.default_rng(seed).integers(0, max(n // 40, 1), n)]


KINDS = {
    "random": random_rows,
    "clustered": clustered,
    "near-tied": near_tied,
    "repeated": repeated,
    "equal": lambda n, dimension: np.repeat(random_rows(1, dimension), n, axis=0),
    "zero": lambda n, dimension: np.zeros((n, dimension), np.float32),
}


def plain(vectors):
    return Rows(vectors=np.ascontiguousarray(vectors), longest=longest_row(vectors))


def by_force(vectors, queries, count):
    """Every row, in the one order of additions."""
    scores = np.stack([products(vectors, query) for query in queries])
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)[:, :count]
    return np.take_along_axis(scores, order, 1), order


def assert_same(found, expected):
    scores, rows = expected
    assert found.rows.tolist() == rows.tolist()
    assert found.scores.view(np.uint32).tolist() == np.ascontiguousarray(scores).view(np.uint32).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "dimension", "count"), [(700, 24, 10), (300, 7, 300), (90, 1, 5), (1, 33, 4)])
def test_the_best_rows_are_those_of_a_look_at_all(kind, n, dimension, count):
    vectors, queries = KINDS[kind](n, dimension), random_rows(9, dimension, seed=5)
    assert_same(RowSearch(plain(vectors), 1, CPU)(queries, count), by_force(vectors, queries, min(count, n)))


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_ids_are_those_of_float64(kind):
    vectors, queries = KINDS[kind](3000, 64), random_rows(40, 64, seed=7)
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    found = RowSearch(plain(vectors), 1, CPU)(queries, 20)
    for n, rows in enumerate(found.rows):
        best = np.sort(exact[n])[::-1][:20]
        assert np.abs(exact[n][rows] - best).max() < 1e-6  # within float32's own rounding two may change places
        assert np.abs(found.scores[n] - best).max() < 1e-6
    decided = np.abs(np.diff(np.sort(exact, axis=1)[:, ::-1][:, :21], axis=1)).min(axis=1) > 1e-6
    assert decided.any()
    assert (found.rows[decided] == np.argsort(-exact, axis=1)[decided, :20]).all()


@given(
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([1e-8, 1e-3, 1.0]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_rows_and_queries_are_searched_exactly(n, dimension, count, spread, seed):
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((1, dimension)) + spread * rng.standard_normal((n, dimension))).astype(np.float32)
    queries = rng.standard_normal((3, dimension)).astype(np.float32)
    assert_same(RowSearch(plain(vectors), 1, CPU)(queries, count), by_force(vectors, queries, min(count, n)))


def test_a_last_place_that_is_not_certain_is_looked_at_again(monkeypatch):
    vectors, queries = near_tied(4000, 32), random_rows(3, 32, seed=5)
    twice = []
    looked = RowSearch._reaching
    monkeypatch.setattr(RowSearch, "_reaching", lambda *given: twice.append(1) or looked(*given))
    assert_same(RowSearch(plain(vectors), 1, CPU)(queries, 5), by_force(vectors, queries, 5))
    assert twice
    twice.clear()
    RowSearch(plain(random_rows(4000, 32)), 1, CPU)(queries, 5)
    assert not twice


@pytest.mark.parametrize("total", [4000, 20_000])
def test_bits_depend_on_neither_batch_nor_threads(total):
    vectors, queries = random_rows(total, 96), random_rows(2048, 96, seed=3)
    rows = rows_of(vectors)
    whole = RowSearch(rows, 1, CPU)(queries, 12)
    for threads, size in ((1, 3), (2, 2048), (2, 1), (1, 1000)):
        index = RowSearch(rows, threads, CPU)
        some = queries[: 4 * size]
        parts = [index(some[n : n + size], 12) for n in range(0, len(some), size)]
        assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows[: len(some)].tolist()
        scores = np.concatenate([part.scores for part in parts])
        assert scores.view(np.uint32).tolist() == whole.scores[: len(some)].view(np.uint32).tolist()


def test_a_product_depends_on_no_row_beside_it():
    vectors, query = random_rows(200, 513), random_rows(1, 513, seed=1)[0]
    alone = [products(row[None], query)[0] for row in vectors]
    assert products(vectors, query).tolist() == alone
    assert products(np.asfortranarray(vectors), query).tolist() == alone
    assert np.abs(np.array(alone) - vectors.astype(np.float64) @ query).max() < 1e-6


def test_a_product_is_added_up_in_halves():
    values = np.array([[1.0, 2.0**-24, -1.0, 2.0**-24, 2.0**-23]], np.float32)
    a, b, c, d, e = (np.float32(value) for value in values[0])
    assert products(values, np.ones(5, np.float32))[0] == ((a + d) + c) + (b + e)


def test_halves_are_the_nearest_bfloat16_numbers():
    assert widen(halve(np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-7, 0.0], np.float32))).tolist() == [
        1.0,
        1.0,
        1 + 2.0**-6,
        -1 - 2.0**-7,
        0.0,
    ]
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert (np.abs(widen(halve(numbers)) - numbers) <= np.abs(numbers) * search.HALF_UNIT).all()


@needs_half_units
def test_halves_are_those_of_torch():
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert halve(numbers).tolist() == torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy().view("u2").tolist()


@needs_half_units
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [16_391, 30_000])
def test_products_in_halves_change_nothing(kind, total, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(search, "_is_worth_it", lambda *_: True)
    vectors, queries = KINDS[kind](total, 64), np.concatenate([random_rows(20, 64, seed=8), -random_rows(3, 64)])
    halved, whole = rows_of(vectors), plain(vectors)
    assert halved.halves is not None
    index = RowSearch(halved, 1, CPU)
    assert index._by_halves(30)
    expected = RowSearch(whole, 1, CPU)(queries, 30)
    assert_same(index(queries, 30), (expected.scores, expected.rows))
    assert_same(index(queries, 30), (expected.scores, expected.rows))  # also where the first batch was too dense


@needs_half_units
def test_nothing_that_halves_let_go_is_above_their_bound():
    pytest.importorskip("torch")
    rows, queries = rows_of(clustered(16_391, 64, spread=0.3)), random_rows(30, 64, seed=2)
    assert rows.halves is not None
    multiply, index = HalfProducts(rows.halves, 1), RowSearch(rows, 1, CPU)
    bounds = index._halves(queries, np.full(30, 1.001), 20).bounds
    asked = multiply._tensor(halve(queries))
    numbers, found, _ = multiply._hits(asked, multiply._thresholds(asked, 20))
    exact = queries.astype(np.float64) @ rows.vectors.T.astype(np.float64)
    exact[numbers, found] = -np.inf
    assert (exact.max(axis=1) <= bounds).all()
    assert (bounds[np.isfinite(bounds)] < exact.max(axis=1)[np.isfinite(bounds)] + 0.05).all()


@needs_half_units
def test_the_last_rows_are_found_by_halves_too(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(search, "_is_worth_it", lambda *_: True)
    monkeypatch.setattr(RowSearch, "_look", lambda *_: pytest.fail("halves settle this"))
    vectors = random_rows(16_391, 128)
    assert RowSearch(rows_of(vectors), 1, CPU)(vectors[-9:], 10).rows[:, 0].tolist() == list(range(16_382, 16_391))


@needs_half_units
def test_halves_settle_nearly_all_queries_of_a_plain_pool():
    pytest.importorskip("torch")
    rows, queries = rows_of(random_rows(40_000, 128)), random_rows(300, 128, seed=2)
    index = RowSearch(rows, 1, CPU)
    lengths = np.ones(len(queries)) * 1.001
    assert index._products_of_halves is not None
    look = index._halves(queries, lengths, 50)
    every = by_force(rows.vectors, queries[:40], 50)[1]
    assert all(set(best) <= set(seen.tolist()) for best, seen in zip(every.tolist(), look.rows, strict=False))
    found = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
    assert len(index._take(found, np.arange(300), look, queries, np.full(300, 1e-6), 50)) < 6


@needs_half_units
def test_products_in_halves_are_within_their_bound():
    pytest.importorskip("torch")
    rows = rows_of(random_rows(20_000, 512) * np.float32(3))
    assert rows.halves is not None
    assert search._is_worth_it(HalfProducts(rows.halves, 1), rows) in (True, False)
    wrong = Rows(vectors=rows.vectors[::-1].copy(), longest=rows.longest, halves=rows.halves, residue=rows.residue)
    assert not search._is_worth_it(HalfProducts(rows.halves, 1), wrong)


def test_halves_are_for_large_pools_alone():
    assert not use_halves(16_383)
    assert rows_of(random_rows(50, 8)).halves is None


def test_torch_is_not_imported_for_a_small_pool():
    code = (
        "import sys, numpy as np; from sonify.retrieval.search import *; from sonify.config import Search\n"
        "RowSearch(rows_of(np.eye(8, dtype=np.float32)), 1, Search())(np.eye(8, dtype=np.float32), 3)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def by_faiss(queries, tile, count):
    return faiss.knn(queries, np.ascontiguousarray(tile), count, metric=faiss.METRIC_INNER_PRODUCT)


@pytest.mark.parametrize("tile_rows", [1, 7, 100, 999, 1000, 5000])
def test_tiles_give_what_the_whole_gives(tile_rows):
    vectors, queries = random_rows(1000, 32), random_rows(40, 32, seed=1)
    scores, rows = search_tiles(queries, vectors, 25, tile_rows, by_faiss)
    whole_scores, whole_rows = by_faiss(queries, vectors, 25)
    assert np.allclose(scores, whole_scores, atol=1e-6)
    assert (rows == whole_rows).mean() > 0.99
    assert search_tiles(queries, vectors, 2000, tile_rows, by_faiss)[1].shape == (40, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_gpu_finds_in_tiles_is_rescored_alike(kind, monkeypatch):
    """The search of one tile is the only step that a GPU takes; here a CPU takes it, as roughly as TF32 would."""

    def roughly(queries, tile, count):
        scores = queries @ tile.T * np.float32(1 + 2.0**-12)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, order, 1), order

    monkeypatch.setattr(search, "open_gpu", lambda _: roughly)
    vectors, queries = KINDS[kind](900, 24), random_rows(9, 24, seed=5)
    index = RowSearch(plain(vectors), 1, Search(device="cuda"))
    index._memory_bytes = 2 * 4 * 24 * 100  # a hundred rows a tile
    assert_same(index(queries, 10), by_force(vectors, queries, 10))


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0, reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match=r"retrieval\.search\.device: cuda .*") as raised:
        RowSearch(plain(random_rows(9, 4)), 1, Search(device="cuda"))
    assert "\n" not in str(raised.value)


def test_the_wheel_for_cpus_is_named_where_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(InputError, match="remove faiss-cpu, then install faiss-gpu"):
        search.check_gpu()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_finds_what_a_cpu_finds(kind):
    vectors, queries = KINDS[kind](50_000, 512), random_rows(500, 512, seed=5)
    ours = RowSearch(plain(vectors), 1, Search(device="cuda", memory_gib=0.25))(queries, 100)
    expected = RowSearch(plain(vectors), 1, CPU)(queries, 100)
    assert_same(ours, (expected.scores, expected.rows))
