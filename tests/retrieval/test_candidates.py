import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.config import Retrieval
from sonify.retrieval.candidates import (
    ClipIndex,
    choose_candidates,
    draw_position,
    draw_weights,
    list_length,
    score_similarities,
)

PAPER = Retrieval(margin=0.0)


def choose(similarities, retrieval=PAPER, recordings=None):
    similarities = np.array(similarities, dtype=np.float32)
    clips = np.arange(len(similarities)) + 100
    if recordings is None:
        recordings = np.arange(len(similarities))
    return choose_candidates(clips, similarities, np.array(recordings), retrieval)


@pytest.mark.parametrize(("pool", "length"), [(3, 3), (80, 8), (400, 8), (1000, 20), (500_000, 100)])
def test_the_list_is_short_in_a_small_pool(pool, length):
    assert list_length(100, pool) == length


def test_signed_square_root_keeps_the_sign():
    scores = score_similarities(np.array([0.25, 0.0, -0.09]), signed_sqrt=True)
    assert np.allclose(scores, [0.5, 0.0, -0.3])


def test_threshold_is_the_mean_of_the_top_k_scores():
    chosen = choose([0.81, 0.64, 0.25, 0.16])
    assert chosen.threshold == pytest.approx((0.9 + 0.8 + 0.5 + 0.4) / 4)
    assert chosen.clips.tolist() == [100, 101]


def test_margin_keeps_only_what_is_near_the_best():
    similarities = [0.8, 0.7, 0.63, 0.62, 0.0, 0.0, 0.0, 0.0]
    assert choose(similarities).clips.tolist() == [100, 101, 102, 103]
    assert choose(similarities, Retrieval(margin=0.8)).clips.tolist() == [100, 101]


@pytest.mark.parametrize("similarities", [[0.1] * 7, [-0.5, -0.6, -0.7], [0.0, 0.0], [1e-8, -1e-8]])
def test_the_best_clip_always_stays(similarities):
    for retrieval in (PAPER, Retrieval(margin=0.8), Retrieval(signed_sqrt=False)):
        assert choose(similarities, retrieval).clips[0] == 100


def test_at_most_three_clips_of_one_recording():
    chosen = choose([0.9, 0.9, 0.9, 0.9, 0.9, 0.9], recordings=[7, 7, 8, 7, 7, 8])
    assert chosen.clips.tolist() == [100, 101, 102, 103, 105]


def test_draw_is_proportional_to_the_score():
    scores = np.array([0.6, 0.3, 0.1])
    grid = [draw_position(draw_weights(scores, PAPER), u) for u in (np.arange(1000) + 0.5) / 1000]
    assert np.bincount(grid).tolist() == [600, 300, 100]


def test_draw_can_be_uniform_or_softmax():
    scores = np.array([0.6, 0.3])
    grid = np.linspace(0, 1, 1000, endpoint=False)
    uniform = [draw_position(draw_weights(scores, Retrieval(draw="uniform")), u) for u in grid]
    softmax = [draw_position(draw_weights(scores, Retrieval(draw="softmax", temperature=0.1)), u) for u in grid]
    assert np.bincount(uniform).tolist() == [500, 500]
    assert np.bincount(softmax)[0] / 1000 == pytest.approx(1 / (1 + np.exp(-3)), abs=0.002)


def test_draw_takes_the_best_where_no_score_is_positive():
    assert draw_position(draw_weights(np.array([-0.1, -0.2]), PAPER), 0.99) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1, exclude_max=True))
def test_draw_always_lands_inside(scores, u):
    assert 0 <= draw_position(draw_weights(np.array(scores), PAPER), u) < len(scores)


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
