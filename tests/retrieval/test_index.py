import numpy as np
import pytest

from sonify.retrieval.index import ClipIndex


def unit_rows(n, dimension=16, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_search_is_exact():
    pool, queries = unit_rows(500), unit_rows(20, seed=1)
    index = ClipIndex(pool, threads=1)
    for query, ranking in zip(queries, index.rank(queries, 10), strict=True):
        clips, similarities = index.top_clips(ranking, 10, u=0.0)
        expected = np.argsort(-(pool @ query))[:10]
        assert clips.tolist() == expected.tolist()
        assert np.allclose(similarities, pool[expected] @ query, atol=1e-6)


def test_equal_clips_share_the_last_seats_evenly():
    one, other = unit_rows(2)
    pool = np.stack([one] * 3 + [other] * 40)
    index = ClipIndex(pool, threads=1)
    (ranking,) = index.rank((one * 0.6 + other * 0.4)[None], 8)
    seen = np.zeros(43, dtype=int)
    for u in np.linspace(0, 1, 400, endpoint=False):
        clips, similarities = index.top_clips(ranking, 8, u)
        assert len(set(clips.tolist())) == 8
        assert np.all(np.diff(similarities) <= 0)
        seen[clips] += 1
    assert seen[:3].tolist() == [400, 400, 400]
    assert seen[3:].min() >= 45
    assert seen[3:].max() <= 55


@pytest.mark.parametrize("length", [1, 5, 9])
def test_a_list_never_exceeds_the_pool(length):
    index = ClipIndex(unit_rows(9), threads=1)
    (ranking,) = index.rank(unit_rows(1, seed=3), length)
    clips, _ = index.top_clips(ranking, length, u=0.999999)
    assert len(set(clips.tolist())) == length


def test_the_same_batch_gives_the_same_scores_twice():
    pool, queries = unit_rows(300), unit_rows(33, seed=4)
    first = ClipIndex(pool, threads=1).rank(queries, 5)
    second = ClipIndex(pool, threads=1).rank(queries, 5)
    assert all(np.array_equal(a.similarities, b.similarities) for a, b in zip(first, second, strict=True))
