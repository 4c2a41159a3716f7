import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonify.config import Search
from sonify.errors import InputError, WorkError
from sonify.retrieval import halves, search
from sonify.retrieval.halves import Look, Rows, half_errors, halve, lengths_of, longest_row, rows_of, sum_error, widen
from sonify.retrieval.search import RowSearch, gpu_error, most_on_gpu, numbers_of, products, search_tiles, wider

CPU = Search()


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


def by_force(vectors, queries, count, most=np.inf):
    """Every row, in the one order of additions: the scores, the best, and for each query what ties with its last."""
    scores = np.minimum(np.stack([products(vectors, query) for query in queries]), np.float32(most))
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)
    best = np.take_along_axis(scores, order, 1)
    tied = [row[count:][one[count:] == one[count - 1]].tolist() for row, one in zip(order, best, strict=True)]
    return best[:, :count], order[:, :count], tied


def assert_same(found, expected):
    scores, numbers, tied = expected
    assert [one.numbers.tolist() for one in found] == numbers.tolist()
    assert [one.scores.view(np.uint32).tolist() for one in found] == np.ascontiguousarray(scores).view("u4").tolist()
    assert [numbers_of(one.tied).tolist() for one in found] == tied


@pytest.fixture
def by_halves(monkeypatch):
    """Has every pool searched by halves first; torch multiplies them on any CPU, if slowly."""
    pytest.importorskip("torch")
    monkeypatch.setattr(halves, "use_halves", lambda _: True)
    monkeypatch.setattr(search, "is_worth_it", lambda *_: True)


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
    for n, one in enumerate(found):
        best = np.sort(exact[n])[::-1][:20]
        assert np.abs(exact[n][one.numbers] - best).max() < 1e-6  # within float32's own rounding two may change places
        assert np.abs(one.scores - best).max() < 1e-6
    decided = np.abs(np.diff(np.sort(exact, axis=1)[:, ::-1][:, :21], axis=1)).min(axis=1) > 1e-6
    assert decided.any()
    assert (np.stack([one.numbers for one in found])[decided] == np.argsort(-exact, axis=1)[decided, :20]).all()


@given(
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([1e-8, 1e-3, 1.0]),
    st.tuples(st.integers(-30, 15), st.integers(-30, 15)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_rows_and_queries_are_searched_exactly(n, dimension, count, spread, scales, seed):
    rng = np.random.default_rng(seed)
    of_rows, of_queries = (10.0**scale for scale in scales)
    vectors = rng.standard_normal((1, dimension)) + spread * rng.standard_normal((n, dimension))
    vectors = (of_rows * vectors).astype(np.float32)
    queries = (of_queries * rng.standard_normal((3, dimension))).astype(np.float32)
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


@pytest.mark.parametrize("halved", [True, False])
def test_bits_depend_on_neither_batch_nor_threads(halved, by_halves):
    vectors, queries = random_rows(3000, 48), random_rows(2048, 48, seed=3)
    rows = rows_of(vectors) if halved else plain(vectors)
    whole = RowSearch(rows, 1, CPU)(queries, 12)
    for threads, size in ((1, 3), (2, 2048), (2, 1), (1, 1000)):
        index = RowSearch(rows, threads, CPU)
        some = queries[: 4 * size]
        parts = [one for n in range(0, len(some), size) for one in index(some[n : n + size], 12)]
        for one, other in zip(parts, whole[: len(some)], strict=True):
            assert one.numbers.tolist() == other.numbers.tolist()
            assert one.scores.view(np.uint32).tolist() == other.scores.view(np.uint32).tolist()


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [16_391, 1000])
def test_products_in_halves_change_nothing(kind, total, by_halves):
    vectors, queries = KINDS[kind](total, 64), np.concatenate([random_rows(20, 64, seed=8), -random_rows(3, 64)])
    halved = rows_of(vectors)
    assert halved.halves is not None
    index = RowSearch(halved, 1, CPU)
    assert index._by_halves(30)
    expected = by_force(vectors, queries, 30)
    assert_same(index(queries, 30), expected)
    assert_same(index(queries, 30), expected)  # also where the first batch was too dense


@pytest.mark.parametrize(("of_rows", "of_queries"), [(1e-23, 1e20), (1e-30, 1e30), (3e19, 1e-5), (1e-38, 1e37)])
@pytest.mark.parametrize("halved", [True, False])
def test_rows_may_be_of_any_length(of_rows, of_queries, halved, by_halves):
    """The squares of float32 numbers such as these are no float32 numbers."""
    vectors = near_tied(1200, 64) * np.float32(of_rows)
    queries = random_rows(5, 64, seed=5) * np.float32(of_queries)
    rows = rows_of(vectors) if halved else plain(vectors)
    assert_same(RowSearch(rows, 1, CPU)(queries, 8), by_force(vectors, queries, 8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("total", [4, 900])
def test_a_query_that_cannot_be_multiplied_is_refused(bad, total):
    queries = random_rows(5, 16, seed=5)
    queries[3, 2] = bad
    with pytest.raises(WorkError, match=r"the embedding of a query holds NaN or is too long .*: expected") as raised:
        RowSearch(plain(random_rows(total, 16) * np.float32(10)), 1, CPU)(queries, 4)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("most", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("halved", [True, False])
def test_what_scores_above_the_most_ties(most, halved, by_halves):
    vectors = random_rows(1000, 16) * np.linspace(1, 3, 1000, dtype=np.float32)[:, None]
    queries = random_rows(6, 16, seed=3)
    rows = rows_of(vectors) if halved else plain(vectors)
    expected = by_force(vectors, queries, 20, most)
    assert any(expected[2]) == (most < 2)
    assert_same(RowSearch(rows, 1, CPU)(queries, 20, most), expected)


def test_a_query_is_settled_only_above_the_bound_and_the_error_of_rescoring():
    vectors, queries = random_rows(500, 32), random_rows(1, 32, seed=1)
    index = RowSearch(plain(vectors), 1, CPU)
    asked = index._ask(queries, 5, np.inf)
    last = float(index(queries, 5)[0].scores[-1])
    slack = float(asked.slack[0])
    for bound, unsettled in ((last, [0]), (last - slack, [0]), (last - slack * 1.001, [])):
        assert index._take(asked, Look([np.arange(500)], np.array([bound])))[1].tolist() == unsettled
    assert index._take(asked, Look([np.arange(4)], np.array([-np.inf])))[1].tolist() == [0]


def test_a_rescored_product_is_within_its_slack():
    rng = np.random.default_rng(0)
    for dimension in (1, 2, 17, 64, 512):
        vectors = (rng.standard_normal((300, dimension)) * 10.0 ** rng.integers(-3, 3, (300, 1))).astype(np.float32)
        query = np.ones(dimension, np.float32) + rng.standard_normal(dimension).astype(np.float32)
        exact = vectors.astype(np.float64) @ query
        asked = RowSearch(plain(vectors), 1, CPU)._ask(query[None], 5, np.inf)
        assert (np.abs(products(vectors, query) - exact) <= asked.slack[0]).all()
        assert asked.slack[0] < 2e-6 * np.linalg.norm(vectors, axis=1).max() * np.linalg.norm(query)


@pytest.mark.parametrize(("of_row", "of_query"), [(2.0**-127, 2.0**100), (2.0**100, 2.0**-127), (2.0**-64, 2.0**-63)])
def test_what_a_device_takes_for_zero_is_within_the_error(of_row, of_query):
    rows, queries = np.full((1, 64), of_row, np.float32), np.full((1, 64), of_query, np.float32)
    index = RowSearch(plain(rows), 1, CPU)
    assert 64 * of_row * of_query <= index._error(lengths_of(queries), sum_error(64))[0]


def test_the_look_at_every_row_allows_for_its_own_error_and_that_of_rescoring(monkeypatch):
    vectors, queries = near_tied(500, 512), random_rows(3, 512, seed=5)
    reached = []
    looked = RowSearch._reaching
    monkeypatch.setattr(RowSearch, "_reaching", lambda *given: reached.append(given[2]) or looked(*given))
    index = RowSearch(plain(vectors), 1, CPU)
    index(queries, 5)
    (least,) = reached
    last = by_force(vectors, queries, 5)[0][:, -1]
    assert len(least) == 3
    assert (least <= last - sum_error(512) * np.linalg.norm(vectors, axis=1).min() - sum_error(10)).all()
    # the best so far may be of fewer rows than all, and their last then a little below
    assert (least >= last - 3e-6 - 2 * sum_error(512)).all()


def lying(share):
    """A search that finds the best row's product too small, by (almost) all that it may be off, and no other."""

    def knn(queries, vectors, count, metric=None):
        scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
        best = scores.argmax(axis=1)
        scores[np.arange(len(queries)), best] -= share * 0.999 * np.linalg.norm(queries, axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, order, 1).astype(np.float32), order

    return knn


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_pass_may_be_off_by_as_much_as_it_says(device, monkeypatch):
    """Of rows that lie so near that the best one falls out of what is found, and yet not within rescoring's error."""
    share = sum_error(512) if device == "cpu" else gpu_error(512)
    monkeypatch.setattr(faiss, "knn", lying(share))
    monkeypatch.setattr(search, "open_gpu", lambda _: lying(share))
    vectors = np.zeros((200, 512), np.float32)
    vectors[:, 0] = 1 - np.arange(200) * share / 32
    queries = np.eye(1, 512, dtype=np.float32)
    _, left_out = lying(share)(queries, vectors, wider(10))
    assert 0 not in left_out
    assert_same(RowSearch(plain(vectors), 1, Search(device=device))(queries, 10), by_force(vectors, queries, 10))


def test_a_gpu_may_cut_off_what_it_multiplies_and_adds():
    """Of numbers just below the next of 11 significant bits, in sums of 24 bits that are cut off too."""
    for dimension in (1, 8, 300):
        row = np.full(dimension, 1 + 2.0**-10 - 2.0**-23, np.float32)
        cut = (row.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        total = 0.0
        for term in (cut.astype(np.float64) ** 2).tolist():
            total += term
            unit = 2.0 ** (np.floor(np.log2(total)) - 23)
            total = np.floor(total / unit) * unit
        exact = float((row.astype(np.float64) ** 2).sum())
        assert exact - total > 1.9e-3 * exact
        assert exact - total <= gpu_error(dimension) * exact
    ones = sum_error(2 * 4096)
    assert gpu_error(4096) > 2 * search.TF32_ROUNDOFF + ones


def top_and_bulk(dimension=32):
    """Rows of which sixty are nearly as good, and the others far below; and queries of which that holds."""
    rng = np.random.default_rng(4)
    shares = np.concatenate([rng.uniform(0.2, 0.6, 1940), rng.uniform(0.9, 0.905, 60)])[rng.permutation(2000)]
    others = np.concatenate([np.zeros((2000, 1)), unit(rng.standard_normal((2000, dimension - 1)))], axis=1)
    vectors = shares[:, None] * np.eye(1, dimension) + np.sqrt(1 - shares**2)[:, None] * others
    queries = np.eye(1, dimension) + 1e-4 * rng.standard_normal((6, dimension))
    return vectors.astype(np.float32), queries.astype(np.float32)


@pytest.mark.parametrize("lie", ["best down", "best up", "all down", "by chance"])
def test_halves_may_be_off_by_as_much_as_they_say(lie, by_halves, monkeypatch):
    vectors, queries = top_and_bulk()
    rows, expected = rows_of(vectors), by_force(vectors, queries, 10)
    is_best = np.zeros((2000, 6), bool)
    np.put_along_axis(is_best, expected[1].T, True, axis=0)
    signs = {
        "best down": np.where(is_best, -1, 1),
        "best up": np.where(is_best, 1, -1),
        "all down": -1,
        "by chance": np.random.default_rng(0).choice([-1, 1], is_best.shape),
    }
    errors = half_errors(rows, lengths_of(queries), lengths_of(queries - widen(halve(queries))))
    exact = vectors.astype(np.float64) @ queries.T.astype(np.float64)
    told = halve((exact + signs[lie] * errors * (1 - 1e-5)).astype(np.float32)).view(np.int16)
    index = RowSearch(rows, 1, CPU)
    multiply = index._halves
    assert multiply is not None

    def tell(left, right, _out=None):
        if right is multiply._sample:
            return np.ascontiguousarray(told[:: 2000 // len(right)].T)
        start = (left.data_ptr() - multiply._halves.data_ptr()) // (2 * vectors.shape[1])
        return told[start : start + len(left)]

    monkeypatch.setattr(multiply, "_multiply", tell)
    monkeypatch.setattr(RowSearch, "_pass_by_float32", lambda *_: pytest.fail("halves settle this"))
    assert_same(index(queries, 10), expected)
    look = multiply.look(index._ask(queries, 10, np.inf))
    assert look is not None
    thresholds, _ = multiply._thresholds(multiply._tensor(halve(queries)), 10)
    unseen = told < thresholds
    assert (np.where(unseen, exact, -np.inf).max(axis=0) <= look.bounds).all()
    for n, numbers in enumerate(look.numbers):
        dropped = np.setdiff1d(np.flatnonzero(~unseen[:, n]), numbers)
        assert len(dropped)
        assert products(vectors[dropped], queries[n]).max() < expected[0][n][-1]


def test_the_last_rows_are_found_by_halves_too(by_halves, monkeypatch):
    monkeypatch.setattr(RowSearch, "_pass_by_float32", lambda *_: pytest.fail("halves settle this"))
    vectors = random_rows(16_391, 128)
    found = RowSearch(rows_of(vectors), 1, CPU)(vectors[-9:], 10)
    assert [int(one.numbers[0]) for one in found] == list(range(16_382, 16_391))


def test_a_pool_that_halves_cannot_tell_apart_is_not_asked_of_them_again(by_halves, monkeypatch):
    looks = []
    looked = RowSearch._pass_by_halves
    monkeypatch.setattr(RowSearch, "_pass_by_halves", lambda *given: looks.append(looked(*given)) or looks[-1])
    queries = random_rows(60, 16, seed=2)
    queries[:, 0] = 1
    cone = unit(np.eye(1, 16) + 1e-3 * np.random.default_rng(0).standard_normal((4000, 16)))
    index = RowSearch(rows_of(cone), 1, CPU)
    for _ in range(2):
        assert_same(index(queries, 10), by_force(cone, queries, 10))
    assert looks == [None]
    looks.clear()
    dense = unit(np.eye(1, 16) + 3e-3 * np.random.default_rng(0).standard_normal((4000, 16)))
    index = RowSearch(rows_of(dense), 1, CPU)
    for _ in range(2):
        assert_same(index(queries, 10), by_force(dense, queries, 10))
    assert len(looks) == 1
    plenty = RowSearch(rows_of(random_rows(8000, 64)), 1, CPU)
    for _ in range(2):
        plenty(random_rows(20, 64, seed=2), 10)
    assert len(looks) == 3


def test_torch_is_not_imported_for_a_small_pool():
    code = (
        "import sys, numpy as np; from sonify.retrieval.search import *; from sonify.config import Search\n"
        "from sonify.retrieval.halves import rows_of\n"
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


HAS_GPU = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match=r"retrieval\.search\.device: cuda .*") as raised:
        RowSearch(plain(random_rows(9, 4)), 1, Search(device="cuda"))
    assert "\n" not in str(raised.value)


def test_the_wheel_for_cpus_is_named_where_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(
        InputError, match=r"run `.* uninstall .*`, then install the one for GPUs: `.*gpu.*`; or set"
    ) as raised:
        search.check_gpu()
    assert "\n" not in str(raised.value)


def test_what_a_gpu_can_look_at_is_what_the_guide_says():
    assert wider(most_on_gpu()) <= search.MOST_ON_GPU < wider(most_on_gpu() + 1)
    guide = Path(__file__).parents[2] / "docs" / "models.md"
    assert f"looks at {most_on_gpu():,} clips a concept at most" in guide.read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_finds_what_a_cpu_finds(kind):
    vectors, queries = KINDS[kind](50_000, 512), random_rows(500, 512, seed=5)
    ours = RowSearch(plain(vectors), 1, Search(device="cuda", memory_gib=0.25))(queries, 100)
    expected = RowSearch(plain(vectors), 1, CPU)(queries, 100)
    for one, other in zip(ours, expected, strict=True):
        assert one.numbers.tolist() == other.numbers.tolist()
        assert one.scores.view(np.uint32).tolist() == other.scores.view(np.uint32).tolist()
