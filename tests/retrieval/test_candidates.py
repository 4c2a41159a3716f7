import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.config import Retrieval
from sonify.retrieval.candidates import choose_candidates, draw_position, list_length, score_similarities

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
    grid = [draw_position(scores, PAPER, u) for u in (np.arange(1000) + 0.5) / 1000]
    assert np.bincount(grid).tolist() == [600, 300, 100]


def test_draw_can_be_uniform_or_softmax():
    scores = np.array([0.6, 0.3])
    grid = np.linspace(0, 1, 1000, endpoint=False)
    uniform = [draw_position(scores, Retrieval(draw="uniform"), u) for u in grid]
    softmax = [draw_position(scores, Retrieval(draw="softmax", temperature=0.1), u) for u in grid]
    assert np.bincount(uniform).tolist() == [500, 500]
    assert np.bincount(softmax)[0] / 1000 == pytest.approx(1 / (1 + np.exp(-3)), abs=0.002)


def test_draw_takes_the_best_where_no_score_is_positive():
    assert draw_position(np.array([-0.1, -0.2]), PAPER, 0.99) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1, exclude_max=True))
def test_draw_always_lands_inside(scores, u):
    assert 0 <= draw_position(np.array(scores), PAPER, u) < len(scores)
