"""Copies are found beside real images that are none, and what is only typical is not taken for one."""

import numpy as np
import pytest
from scipy.stats import binom

from eval.metrics.alignment import unit
from eval.metrics.copying import (
    NEIGHBOURS,
    Near,
    compare_own,
    excess_of,
    find_nearest,
    label_weights,
    look_up,
    near_excess,
    quantile,
    ratio_excess,
)


def relu_feats(seed: int, n: int, d: int, shift: float) -> np.ndarray:
    """Features like Inception's: non-negative and correlated."""
    rs = np.random.RandomState(seed)
    base = np.random.RandomState(99).standard_normal((8, d))
    z = rs.standard_normal((n, 8)) @ base / np.sqrt(8) * 0.5 + rs.standard_normal((n, d)) * 0.3 + shift
    return np.maximum(z, 0).astype(np.float32)


RAW, HELD_OUT, CLEAN = relu_feats(3, 500, 64, 0.0), relu_feats(8, 450, 64, 0.0), relu_feats(4, 400, 64, 0.2)
TRAIN = unit(RAW)
NOISE = np.random.RandomState(77).standard_normal((60, 64)).astype(np.float32)
COPIED = np.concatenate([RAW[:60] + np.float32(0.01) * NOISE, CLEAN[60:]])
EACH = [f"r{n}" for n in range(400)]


@pytest.mark.parametrize(("made", "share"), [(CLEAN, 0.015), (COPIED, 0.1625)])
def test_shares_beyond_the_held_out_threshold_are_those_of_the_golden_numbers(made: np.ndarray, share: float):
    """statistics.json: scipy and numpy on features of `relu_feats`."""
    held_out = look_up(TRAIN, HELD_OUT)
    found = near_excess(look_up(TRAIN, made), EACH, held_out, np.ones(450))
    assert found.threshold == pytest.approx(0.8720423215948028, abs=1e-9)
    assert found.held_out_share == pytest.approx(0.008888888888888889, abs=1e-12)
    assert found.share == pytest.approx(share, abs=1e-12)
    assert found.copy_share.value == pytest.approx(share - 0.01, abs=1e-12)


def test_copies_are_more_than_held_out_images_explain_and_clean_pictures_are_not():
    held_out = look_up(TRAIN, HELD_OUT)
    for excess in (near_excess, ratio_excess):
        clean, copied = (excess(look_up(TRAIN, made), EACH, held_out, np.ones(450)) for made in (CLEAN, COPIED))
        assert copied.is_more
        assert copied.p < 1e-6
        assert copied.p_held_out < 1e-4
        assert not clean.is_more
        assert copied.copy_share.low is not None
        assert copied.copy_share.low > 0.1


def test_the_nearest_are_those_of_all_pairs_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch):
    all_pairs = unit(HELD_OUT) @ TRAIN.T
    expected = np.sort(all_pairs, axis=1)[:, ::-1][:, :7]
    for chunk in (1000, 99, 5):
        monkeypatch.setattr("eval.metrics.copying.CHUNK", chunk)
        cosines, rows = find_nearest(TRAIN.astype(np.float32), HELD_OUT, 7)
        assert np.allclose(cosines, expected, atol=1e-6)
        assert (rows[:, 0] == all_pairs.argmax(axis=1)).all()


def test_the_nearest_of_a_few_are_all_of_them():
    cosines, rows = find_nearest(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), 10)
    assert cosines.shape == rows.shape == (3, 3)
    assert (rows[:, 0] == np.arange(3)).all()


def test_one_near_image_among_far_ones_has_a_small_ratio_and_one_of_many_alike_has_not():
    rng = np.random.default_rng(0)
    alone, crowd = np.eye(40)[0], np.eye(40)[1]
    train = np.concatenate(
        [[alone], crowd + 0.01 * rng.standard_normal((30, 40)), rng.standard_normal((50, 40))]
    ).astype(np.float32)
    train /= np.linalg.norm(train, axis=1)[:, None]
    near = look_up(train, np.stack([alone + 0.01 * rng.standard_normal(40), crowd + 0.01 * rng.standard_normal(40)]))
    assert (near.cosine_N > 0.99).all()
    assert near.ratio_N[0] < 0.1
    assert near.ratio_N[1] > 0.5


def test_a_training_image_that_is_there_nine_times_still_stands_out():
    train = np.concatenate([np.repeat(np.eye(40)[:1], NEIGHBOURS - 1, axis=0), np.eye(40)[1:]]).astype(np.float32)
    near = look_up(train, np.eye(40)[:1] + 0.001)
    assert near.ratio_N[0] < 0.05
    everywhere = look_up(np.repeat(np.eye(40)[:1], 20, axis=0).astype(np.float32), np.eye(40)[:1])
    assert everywhere.ratio_N[0] == 1.0


def test_so_much_of_the_weight_lies_up_to_the_quantile():
    values = np.random.default_rng(0).standard_normal(450)
    threshold = quantile(values, 0.99, np.full(450, 3.0))
    assert threshold in values
    assert (values > threshold).sum() == 4
    low = quantile(values, 0.01, np.ones(450))
    assert (values < low).sum() == 4


def test_a_weight_of_zero_leaves_out_and_one_of_two_counts_twice():
    values = np.array([1.0, 2.0, 3.0, 100.0])
    assert quantile(values, 1.0, np.array([1.0, 1.0, 1.0, 0.0])) == 3.0
    assert quantile(values, 0.5, np.array([0.0, 0.0, 1.0, 0.0])) == 3.0
    many = np.random.default_rng(1).standard_normal(401)
    weights = np.where(np.arange(401) < 200, 2.0, 1.0)
    assert quantile(many, 0.9, weights) == quantile(np.concatenate([many, many[:200]]), 0.9, np.ones(601))


def test_held_out_images_are_weighted_to_the_labels_of_the_pictures():
    found = label_weights(["dog", "dog", "cat", "", "fish"], [["dog"], ["cat"], ["cat"], ["cat", "rain"], []])
    assert found is not None
    weights, without = found
    assert weights.tolist() == [0.5, 0.5, 2.5, 0.0, 0.0]
    assert without == ("rain",)
    assert label_weights(["", "fish"], [["dog"]]) is None


def test_labels_that_are_nearer_by_nature_do_not_pass_for_copies():
    """Dogs are nearer to training images than the sea is. Pictures are all dogs, held-out images mostly the sea."""
    rng = np.random.default_rng(0)
    labels = ["dog"] * 1000 + ["sea"] * 3000
    cosine_H = np.where(np.arange(4000) < 1000, rng.normal(0.8, 0.05, 4000), rng.normal(0.5, 0.05, 4000))
    held_out = Near(row_N=np.zeros(4000, int), cosine_N=cosine_H, ratio_N=np.ones(4000))
    made = Near(row_N=np.zeros(400, int), cosine_N=rng.normal(0.8, 0.05, 400), ratio_N=np.ones(400))
    unmatched = near_excess(made, EACH, held_out, np.ones(4000))
    weights, _ = label_weights(labels, [["dog"]] * 400) or (np.zeros(0), ())
    matched = near_excess(made, EACH, held_out, weights)
    assert unmatched.is_more
    assert not matched.is_more


def test_pictures_of_one_recording_are_one_trial():
    """Ten copies of ten different recordings are evidence; ten pictures of one recording are one event."""
    beyond_H, weights = np.arange(1000) < 10, np.ones(1000)
    beyond = np.arange(100) < 10
    apart = excess_of(beyond, [f"r{n}" for n in range(100)], beyond_H, weights, threshold=0.5)
    together = excess_of(beyond, [f"r{n // 10}" for n in range(100)], beyond_H, weights, threshold=0.5)
    assert apart.share == together.share == 0.1
    assert apart.p == pytest.approx(binom.sf(9, 100, 0.01))
    assert together.p == pytest.approx(binom.sf(0, 10, 0.01))
    assert apart.is_more
    assert not together.is_more


def test_thirds_of_a_recording_add_up_to_whole_ones():
    recordings = [f"r{n // 3}" for n in range(30)]
    beyond = np.arange(30) % 3 == 0  # a third of each of ten
    found = excess_of(beyond, recordings, np.arange(100) < 1, np.ones(100), threshold=0.5)
    assert found.p == pytest.approx(binom.sf(2, 10, 0.01))


def test_a_threshold_of_few_held_out_images_proves_less():
    beyond, recordings = np.arange(100) < 6, [f"r{n}" for n in range(100)]
    many = excess_of(beyond, recordings, np.arange(10_000) < 100, np.ones(10_000), threshold=0.5)
    few = excess_of(beyond, recordings, np.arange(50) < 1, np.ones(50), threshold=0.5)
    assert many.p == few.p
    assert many.p_held_out < 0.01 < few.p_held_out
    assert many.detectable is not None
    assert few.detectable is not None
    assert many.detectable < few.detectable


def test_what_is_detectable_is_where_the_test_begins_to_find():
    weights, beyond_H, recordings = np.ones(500), np.arange(500) < 5, [f"r{n}" for n in range(200)]
    detectable = excess_of(np.arange(200) < 0, recordings, beyond_H, weights, threshold=0.5).detectable
    assert detectable is not None
    first = round(200 * detectable)
    for count, is_more in ((first - 1, False), (first, True)):
        assert excess_of(np.arange(200) < count, recordings, beyond_H, weights, threshold=0.5).is_more is is_more
    assert excess_of(np.zeros(1, bool), ["r"], beyond_H, weights, threshold=0.5).detectable == 1.0
    assert excess_of(np.zeros(1, bool), ["r"], np.ones(3, bool), np.ones(3), threshold=0.5).detectable is None


@pytest.mark.parametrize("held_out", [100, 450])
def test_the_test_errs_as_often_as_it_says_where_nothing_is_copied(held_out: int):
    """Both sets are drawn from one distribution: `is_more` in at most 5 % of 2000 draws, with nothing to spare."""
    rng = np.random.default_rng(held_out)
    wrong = 0
    for _ in range(2000):
        cosine_H, cosine_N = rng.standard_normal(held_out), rng.standard_normal(200)
        threshold = quantile(cosine_H, 0.99, np.ones(held_out))
        recordings = [f"r{n}" for n in range(200)]
        beyond = cosine_H > threshold
        successes = int((cosine_N > threshold).sum())
        wrong += _p(successes, recordings, beyond) < 0.05
    assert wrong <= 0.05 * 2000 + 3 * np.sqrt(2000 * 0.05 * 0.95)


_TABLES: dict[tuple[int, int], list[float]] = {}


def _p(successes: int, recordings: list[str], beyond_H: np.ndarray) -> float:
    """The larger p of so many successes; the bootstrap beside it is not needed, and takes a minute of them."""
    key = (int(beyond_H.sum()), beyond_H.size)
    table = _TABLES.setdefault(key, [])
    while len(table) <= successes:
        beyond = np.arange(len(recordings)) < len(table)
        found = excess_of(beyond, recordings, beyond_H, np.ones(beyond_H.size), threshold=0.0)
        table.append(max(found.p, found.p_held_out))
    return table[successes]


def test_own_pictures_of_seen_sounds_are_compared_with_those_of_unseen_ones():
    hits = [True] * 30 + [False] * 10 + [True] * 10 + [False] * 30
    seen = [True] * 40 + [False] * 40
    found = compare_own(hits, seen, [f"r{n}" for n in range(80)], chance=0.01)
    assert found is not None
    assert (found.seen, found.unseen, found.seen_recordings, found.unseen_recordings) == (0.75, 0.25, 40, 40)
    assert found.difference.value == 0.5
    assert found.difference.low is not None
    assert 0.2 < found.difference.low < 0.5
    again = compare_own(hits, seen, [f"r{n}" for n in range(80)], chance=0.01)
    assert again == found


def test_own_pictures_count_by_recording_and_need_both_kinds():
    found = compare_own([True, True, True, False, False], [True, True, True, True, False], list("aaabc"), chance=0.1)
    assert found is not None
    assert found.seen == 0.5
    assert found.difference.low is None
    assert "no interval" in found.difference.note
    assert compare_own([True, False], [True, True], ["a", "b"], chance=0.1) is None
