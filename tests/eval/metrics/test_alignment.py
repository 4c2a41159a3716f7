import json
from pathlib import Path

import numpy as np
import pytest

from eval.metrics import alignment
from eval.metrics.alignment import (
    Join,
    aggregate,
    clip_scores,
    cosine_scores,
    label_bridge,
    label_ranks,
    label_table,
    rank_scores,
    recall_all_at,
    recall_at,
    unit,
    z_scores,
)

GOLDEN = Path(__file__).parents[2] / "golden"


def join(items, item_of_N=None, *, donors=None, recordings=None, labels=None, pool=None):
    item_of_N = np.arange(items) if item_of_N is None else np.asarray(item_of_N)
    return Join(
        item_of_N=item_of_N,
        donors_N=np.full(len(item_of_N), -1) if donors is None else np.asarray(donors),
        recordings_I=recordings or [f"recording {i}" for i in range(items)],
        labels_I=labels or [()] * items,
        pool_I=np.ones(items, bool) if pool is None else np.asarray(pool),
    )


def vectors(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape)


@pytest.fixture(scope="module")
def macs():
    with np.load(GOLDEN / "cosine_scores_macs.npz") as arrays:
        return dict(arrays), json.loads((GOLDEN / "cosine_scores_macs.json").read_bytes())


@pytest.fixture(scope="module")
def sonicdiffusion():
    """12 sounds, 36 images, and pools of 40 that are no items with images."""
    with np.load(GOLDEN / "rank_scores_sonicdiffusion.npz") as file:
        arrays = dict(file)
    return arrays, json.loads((GOLDEN / "rank_scores_sonicdiffusion.json").read_bytes())["peer_output"]


@pytest.mark.parametrize(("name", "query"), [("ais", "audio"), ("iis", "ground_truth")])
def test_cosines_and_z_scores_are_those_of_macs_item_by_item(macs, name, query):
    arrays, golden = macs
    queries, images = arrays[query], arrays["generated"]

    cosines = cosine_scores(queries, images, join(23)).values_N
    zs = z_scores(queries, images, join(23)).values_N

    # the peer works in float32: of a z near 5 the fifth decimal is its rounding
    np.testing.assert_allclose(cosines, golden[name]["cosine_by_item"], atol=1e-6)
    np.testing.assert_allclose(zs, golden[name]["z_by_item"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([cosines.mean(), zs.mean()], golden["formula_float64"][name], rtol=1e-12)


def test_the_golden_cosines_tell_the_usual_wrong_neighbours_apart(macs):
    """What the golden file would let pass is no check: a z by the sample's deviation, or with the item itself among the
    others, and a product that is not normalised."""
    arrays, golden = macs
    right = np.array(golden["ais"]["z_by_item"])
    cosines = unit(arrays["audio"]) @ unit(arrays["generated"]).T
    others = np.array([np.delete(row, i) for i, row in enumerate(cosines)])

    by_sample = (cosines.diagonal() - others.mean(1)) / others.std(1, ddof=1)
    with_itself = (cosines.diagonal() - cosines.mean(1)) / cosines.std(1)
    by_column = (cosines.diagonal() - cosines.mean(0)) / cosines.std(0)
    products = np.einsum("nd,nd->n", arrays["audio"], arrays["generated"])

    for wrong in (by_sample, with_itself, by_column):
        assert np.abs(wrong - right).max() > 1e-2
    assert np.abs(products - golden["ais"]["cosine_by_item"]).max() > 1e-2


def sonic_join(arrays):
    return join(52, arrays["audio_of_generated"], pool=np.arange(52) >= 12)


def test_ranks_are_those_of_sonicdiffusion(sonicdiffusion):
    arrays, peer = sonicdiffusion

    ais = rank_scores(
        np.concatenate([arrays["audio_w2c"], arrays["pool_audio"]]), arrays["generated_b32"], sonic_join(arrays)
    )
    iis = rank_scores(
        np.concatenate([arrays["ground_truth_l14"], arrays["pool_image"]]), arrays["generated_l14"], sonic_join(arrays)
    )

    assert ais.values_N.mean() == pytest.approx(100 * peer["wav2clip_ais_score"], abs=1e-9)
    assert ais.ties == 3  # one sound of the pool is sound 0, which has three images
    assert iis.values_N.mean() == pytest.approx(100 * peer["iis_score"], abs=1e-9)
    assert (iis.ties, ais.without) == (0, {})


def test_the_golden_ranks_tell_the_usual_wrong_neighbours_apart(sonicdiffusion):
    arrays, peer = sonicdiffusion
    item_of_N, right = arrays["audio_of_generated"], 100 * peer["wav2clip_ais_score"]
    sounds, pool, images = arrays["audio_w2c"], arrays["pool_audio"], arrays["generated_b32"]

    own = np.einsum("nd,nd->n", unit(sounds)[item_of_N], unit(images))[:, None]
    not_strict = 100 * (unit(images) @ unit(pool).T <= own + alignment.TIE).mean()
    distance = np.linalg.norm(images - sounds[item_of_N], axis=1)[:, None]
    distances = np.linalg.norm(images[:, None] - pool[None], axis=2)
    below = unit(images) @ unit(pool).T < own - alignment.TIE
    own_in_pool = 100 * (below.sum(axis=1) / 41).mean()
    products = images @ pool.T < np.einsum("nd,nd->n", sounds[item_of_N], images)[:, None]

    assert not_strict == pytest.approx(right + 100 * 3 / (36 * 40))
    assert abs(100 * (distances > distance).mean() - right) > 1
    assert abs(own_in_pool - right) > 1
    assert abs(100 * products.mean() - right) > 1


def test_the_nearest_label_is_that_of_sonicdiffusion(sonicdiffusion):
    arrays, peer = sonicdiffusion
    truth_NL = np.eye(4, dtype=bool)[arrays["class_of_generated"]]
    ranks_NL = label_ranks(arrays["generated_l14"], arrays["label_text_l14"])

    assert recall_at(ranks_NL, truth_NL, 1).values_N.mean() == pytest.approx(peer["text_classifier_score"], abs=1e-12)
    assert recall_at(ranks_NL, truth_NL, 4).values_N.tolist() == [1.0] * 36


@pytest.mark.parametrize("score", [cosine_scores, z_scores, rank_scores])
def test_the_length_and_the_precision_of_a_vector_do_not_count(score):
    queries, images = vectors(0, 9, 8).astype(np.float32), vectors(1, 9, 8).astype(np.float32)
    scaled = images * np.array([1e-30, 1e30, *range(1, 8)], dtype=np.float32)[:, None]

    found, right = (score(queries, given, join(9)).values_N for given in (scaled, images))
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)  # the scaled images are float32 again


def test_of_several_references_the_mean_counts_and_unusable_ones_do_not():
    images = np.array([[1.0, 0, 0], [0, 1, 0]])
    references = np.array([[1.0, 0, 0], [0, 3, 0], [0, 0, 0], [0, 2, 0]])

    found = cosine_scores(references, images, join(2), owner_Q=[0, 0, 0, 1])

    assert found.values_N.tolist() == [0.5, 1.0]


def test_references_as_pictures_give_a_cosine_of_one_and_a_rank_of_a_hundred():
    references = vectors(2, 20, 16)

    assert cosine_scores(references, references * 3, join(20)).values_N == pytest.approx(1.0, abs=1e-12)
    assert rank_scores(references, references, join(20)).values_N.tolist() == [100.0] * 20


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("score", [cosine_scores, z_scores, rank_scores])
def test_a_vector_of_zeros_or_none_is_counted_and_changes_no_other(score, bad):
    queries, images = vectors(3, 8, 6), vectors(4, 16, 6)
    item_of_N = np.repeat(np.arange(8), 2)
    whole = score(queries, images, join(8, item_of_N)).values_N
    images[5], queries[7, 2 if bad else slice(None)] = bad, bad  # image 5, and the sound of images 14 and 15
    kept = np.setdiff1d(np.arange(16), [5, 14, 15])
    rest_I = np.arange(8) != 7

    found = score(queries, images, join(8, item_of_N))
    without = score(queries, np.delete(images, 5, 0), join(8, np.delete(item_of_N, 5), pool=rest_I)).values_N

    assert np.isnan(found.values_N[[5, 14, 15]]).all()
    assert found.without == {alignment.BAD_IMAGE: 1, alignment.NO_QUERY: 2}
    np.testing.assert_allclose(found.values_N[kept], np.delete(without, [13, 14]))
    if score is cosine_scores:
        np.testing.assert_allclose(found.values_N[kept], whole[kept])


def test_the_own_recording_is_not_in_the_pool():
    # two items of one recording, alike in all: neither is another to the other
    sounds = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.5, 1.0]])
    images = np.array([[1.0, 0.0]])

    apart = rank_scores(sounds, images, join(4, [0])).values_N
    together = rank_scores(sounds, images, join(4, [0], recordings=["a", "a", "b", "c"])).values_N

    assert apart == pytest.approx([200 / 3])
    assert together == pytest.approx([100.0])


def test_a_pool_of_other_labels_drops_items_that_share_one_or_have_none():
    sounds = np.array([[1.0, 0.2], [1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels = [("dog", "rain"), ("rain",), ("cat",), ("sea",), ()]

    found = rank_scores(sounds, np.array([[1.0, 0.0]]), join(5, [0], labels=labels), "other_labels")
    unlabelled = rank_scores(sounds, np.array([[1.0, 0.0]]), join(5, [4], labels=labels), "other_labels")

    assert found.values_N.tolist() == [50.0]  # cat is nearer, sea is not
    assert unlabelled.without == {alignment.NO_LABEL: 1}


def test_ties_are_not_won_and_are_counted():
    sounds = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1e-9]])

    found = rank_scores(sounds, np.array([[1.0, 0.5]]), join(4, [0]))

    assert found.values_N == pytest.approx([100 / 3])
    assert found.ties == 2


def test_an_item_of_the_same_input_is_not_in_the_pool():
    """Nor is one of the same input as a control's donor, which would win."""
    sounds = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.1]])
    images, inputs = np.array([[1.0, 0.5]]), ["a", "a", "b", "b", "c"]

    whole = rank_scores(sounds, images, join(5, [0]))
    apart = rank_scores(sounds, images, join(5, [0]), inputs_I=inputs)
    control = rank_scores(sounds, images, join(5, [4], donors=[2]), inputs_I=inputs)

    assert (whole.values_N.tolist(), whole.ties, whole.compared) == ([75.0], 1, 4)
    assert (apart.values_N.tolist(), apart.ties, apart.compared) == ([100.0], 0, 3)
    assert (control.values_N.tolist(), control.compared) == ([0.0], 2)  # items 0 and 1; not 3, which is as item 2
    alone = rank_scores(sounds[:2], images, join(2, [0]), inputs_I=inputs[:2])
    assert alone.without == {alignment.NO_POOL: 1}


@pytest.mark.parametrize(
    ("settings", "kind", "reason"),
    [
        ({"pool": [True, False, False]}, "other_recordings", alignment.NO_POOL),
        ({"recordings": ["one", "one", "one"]}, "other_recordings", alignment.NO_POOL),
        ({"labels": [("a",), ("a",), ("a", "b")]}, "other_labels", alignment.NO_POOL_LABEL),
    ],
)
def test_a_pool_of_one_gives_no_rank_and_says_why(settings, kind, reason):
    found = rank_scores(vectors(5, 3, 4), vectors(6, 1, 4), join(3, [0], **settings), kind)

    assert np.isnan(found.values_N).all()
    assert found.without == {reason: 1}


def test_z_scores_need_two_others_that_differ():
    queries = vectors(7, 3, 4)
    alike = np.repeat(vectors(8, 1, 4), 3, axis=0)

    assert z_scores(queries, alike, join(3)).without == {alignment.ALL_EQUAL: 3}
    assert z_scores(queries[:2], alike[:2], join(2)).without == {alignment.NO_OTHERS: 2}


def test_z_scores_look_at_images_of_other_recordings_only():
    queries, images = vectors(9, 5, 6), vectors(10, 10, 6)
    item_of_N = np.repeat(np.arange(5), 2)
    recordings = ["a", "a", "b", "c", "d"]

    found = z_scores(queries, images, join(5, item_of_N, recordings=recordings)).values_N

    cosines = unit(queries[:1]) @ unit(images).T
    others = cosines[0, 4:]  # not the four images of the recording `a`
    assert found[1] == pytest.approx((cosines[0, 1] - others.mean()) / others.std())


def test_a_controls_z_is_among_images_that_are_as_far_from_its_item():
    """Item 1 has the image of item 0, of another class: compared with those whose donors are of others too, and not
    with that of item 3, which truly is of item 1."""
    queries, images = vectors(15, 6, 5), vectors(16, 6, 5)
    donors, labels = [5, 0, 4, 1, 2, 3], [("a",), ("b",), ("b",), ("c",), ("c",), ("d",)]

    found = z_scores(queries, images, join(6, donors=donors, labels=labels))

    cosines = (unit(queries) @ unit(images).T)[1]
    others = cosines[[0, 2, 5]]  # of the donors 5, 4, 3; image 4 is of item 2, of the class of item 1
    assert found.values_N[1] == pytest.approx((cosines[1] - others.mean()) / others.std())


def shuffled(seed, *, across="labels", classes=6, each=4, width=24):
    """A good model's images, each given to another item, mostly of another class: sounds, images, donors, labels."""
    random = np.random.RandomState(seed)
    class_of_I = np.repeat(np.arange(classes), each)
    sounds = random.standard_normal((classes, width))[class_of_I] + 0.7 * random.standard_normal(
        (len(class_of_I), width)
    )
    order = random.permutation(len(class_of_I))
    alike_I = class_of_I if across == "labels" else np.arange(len(class_of_I))
    while (same := np.flatnonzero(alike_I[order] == alike_I)).size:
        other = random.randint(len(order))
        order[[same[0], other]] = order[[other, same[0]]]
    images = sounds[order] + 0.5 * random.standard_normal(sounds.shape)
    return sounds, images, order, [(f"class {c}",) for c in class_of_I]


@pytest.mark.parametrize("kind", ["other_recordings", "other_labels"])
def test_a_shuffled_control_has_rank_50_only_without_the_kin_of_its_donors(kind):
    """1.1 is three standard errors of the mean of 200 trials; z scores of a control are 0 by the same rule."""
    right, zs, without_donors, recording_alone = [], [], [], []
    for seed in range(200):
        sounds, images, order, labels = shuffled(seed)
        whole = join(24, donors=order, labels=labels)
        right.append(rank_scores(sounds, images, whole, kind).values_N.mean())
        zs.append(z_scores(sounds, images, whole).values_N.mean())
        without_donors.append(rank_scores(sounds, images, join(24, labels=labels), kind).values_N.mean())
        recording_alone.append(rank_scores(sounds, images, join(24, donors=order)).values_N.mean())

    assert np.mean(right) == pytest.approx(50, abs=1.1)
    assert np.mean(zs) == pytest.approx(0, abs=0.05)
    assert np.mean(without_donors) < 47
    assert np.mean(recording_alone) < 46  # the rest of the donor's class still wins


def test_a_control_that_is_shuffled_within_labels_too_has_rank_50():
    """Of two classes, as where a label has more than half of the items: some items share the donor's label, and are
    compared with what shares it, the others with what does not."""
    found = []
    for seed in range(300):
        sounds, images, order, labels = shuffled(seed, across="recordings", classes=2, each=8)
        control = join(16, donors=order, labels=labels)
        found.append([score(sounds, images, control).values_N.mean() for score in (rank_scores, z_scores)])

    rank, z = np.mean(found, axis=0)
    assert rank == pytest.approx(50, abs=1.1)
    assert z == pytest.approx(0, abs=0.05)


def test_of_sounds_without_labels_a_shuffled_control_has_rank_50_without_its_donors_alone():
    """50 (1 - 1/|R|) with them: of seven sounds the donor is one in six."""
    right, with_donor = [], []
    for seed in range(300):
        sounds, noise = vectors(seed, 7, 12), vectors(1000 + seed, 7, 12)
        order = np.roll(np.arange(7), 1 + seed % 6)
        images = sounds[order] + 0.1 * noise
        right.append(rank_scores(sounds, images, join(7, donors=order)).values_N.mean())
        with_donor.append(rank_scores(sounds, images, join(7)).values_N.mean())

    assert np.mean(right) == pytest.approx(50, abs=1.5)
    assert np.mean(with_donor) == pytest.approx(50 * (1 - 1 / 6), abs=1.5)


def test_where_all_share_a_label_a_control_is_still_ranked():
    sounds, order = vectors(11, 5, 8), np.roll(np.arange(5), 1)
    control = join(5, donors=order, labels=[("rain",)] * 5)

    assert not np.isnan(rank_scores(sounds, sounds[order], control).values_N).any()
    assert not np.isnan(z_scores(sounds, sounds[order], control).values_N).any()


def test_labels_are_sorted_as_they_are_written():
    names, truth_IL = label_table([("dog", "Rain"), (), ("dog",)])

    assert names == ("Rain", "dog")
    assert truth_IL.tolist() == [[True, True], [False, False], [False, True]]
    assert label_table([(), ()])[1].shape == (2, 0)


def test_ranks_of_labels_count_from_the_nearest_and_the_first_of_equals():
    images = np.array([[1.0, 0.1], [0.0, 0.0]])
    texts = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])

    assert label_ranks(images, texts).tolist() == [[2, 0, 1], [-1, -1, -1]]
    with pytest.raises(ValueError, match="texts: expected vectors of 2, found 1"):
        label_ranks(images, texts[:, :1])
    with pytest.raises(ValueError, match="label 1 is zero"):
        label_ranks(images, texts * np.array([[1], [0], [1]]))


RANKS = np.array([[0, 1, 2, 3], [2, 0, 1, 3], [0, 2, 1, 3], [0, 1, 2, 3], [-1, -1, -1, -1], [0, 1, 2, 3]])
TRUTH = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=bool)


def test_recall_asks_for_any_label_and_recall_all_for_all_of_them():
    one, two = recall_at(RANKS, TRUTH, 1), recall_all_at(RANKS, TRUTH, 2)
    nan = np.nan

    np.testing.assert_array_equal(one.values_N, [1, 1, 1, nan, nan, 0])
    # the second shows one of its two sources; the third has three labels, the last one
    np.testing.assert_array_equal(two.values_N, [1, 0, nan, nan, nan, nan])
    assert one.without == {alignment.BAD_IMAGE: 1, alignment.NO_LABEL: 1}
    assert two.without == {
        alignment.BAD_IMAGE: 1,
        alignment.NO_LABEL: 1,
        alignment.TOO_MANY_LABELS: 1,
        alignment.ONE_LABEL: 1,
    }
    assert recall_all_at(RANKS, TRUTH, 3).values_N[:3].tolist() == [1, 1, 1]
    assert recall_all_at(RANKS, TRUTH, 2, least=1).values_N[5] == 1


def test_clip_scores_take_the_mean_of_the_captions_on_three_scales():
    images = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    captions = np.array([[3.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])

    found = clip_scores(images, captions, [0, 0, 1], np.array([0, 1, 0, 2]))

    np.testing.assert_allclose(found.cosine.values_N, [0, 1, np.nan, np.nan], atol=1e-12)
    # of the two captions one is opposite: it counts 0, and the best alone would give 2.5
    np.testing.assert_allclose(found.hessel.values_N, [1.25, 2.5, np.nan, np.nan])
    np.testing.assert_allclose(found.torchmetrics.values_N, [50, 100, np.nan, np.nan])
    with pytest.raises(ValueError, match="one width, found 1 and 2"):
        clip_scores(images, captions[:, :1], [0, 0, 1], np.array([0, 1, 0, 2]))
    with pytest.raises(ValueError, match="expected 2 and 4, found 3 and 4"):
        clip_scores(images, captions, [0, 1], np.array([0, 1, 0, 2]))
    assert found.hessel.without == {alignment.BAD_IMAGE: 1, alignment.NO_CAPTION: 1}


def test_the_bridge_over_labels_is_a_correlation():
    sounds, images = vectors(12, 3, 9), vectors(13, 6, 9)
    sounds[2] = 0.5

    found = label_bridge(sounds, images, np.array([0, 0, 1, 1, 1, 2]))

    right = [np.corrcoef(sounds[i], images[n])[0, 1] for n, i in enumerate([0, 0, 1, 1, 1])]
    np.testing.assert_allclose(found.values_N[:5], right, rtol=1e-12)
    assert np.isnan(found.values_N[5])
    assert found.without == {alignment.FLAT: 1}
    assert label_bridge(2 * images + 1, images, np.arange(6)).values_N == pytest.approx(1.0)


def test_the_bridge_refuses_few_labels():
    with pytest.raises(ValueError, match="at least 8 to correlate over, found 7"):
        label_bridge(vectors(0, 2, 7), vectors(1, 2, 7), np.arange(2))


def test_a_score_is_the_mean_of_recordings_of_items_of_images():
    values = np.array([1.0, 3.0, 8.0, np.nan, np.nan, 5.0])

    found = aggregate(values, np.array([0, 0, 1, 1, 3, 4]), ["b", "a", "a", "b", "b"])

    np.testing.assert_array_equal(found.values_I, [2, 8, np.nan, np.nan, 5])
    assert found.recordings_R == ("b", "a")
    assert found.values_R.tolist() == [3.5, 8.0]
    assert found.mean_over_images == 17 / 4
    assert (found.images, found.without) == (4, 2)


def test_a_recording_without_a_value_is_left_out():
    found = aggregate(np.array([np.nan, 2.0]), np.array([0, 1]), ["a", "b"])
    nothing = aggregate(np.array([np.nan]), np.array([0]), ["a"])

    assert (found.recordings_R, found.values_R.tolist()) == (("b",), [2.0])
    assert nothing.recordings_R == ()
    assert np.isnan(nothing.mean_over_images)


def test_with_as_many_images_everywhere_both_means_are_one():
    values = vectors(14, 24)

    found = aggregate(values, np.repeat(np.arange(12), 2), [f"{i // 3}" for i in range(12)])

    assert found.values_R.mean() == pytest.approx(found.mean_over_images)


@pytest.mark.parametrize(
    ("queries", "images", "settings", "message"),
    [
        (vectors(0, 3, 4), vectors(1, 3, 5), {}, "one width, found 4 and 5"),
        (vectors(0, 3), vectors(1, 3, 5), {}, "one a row"),
        (vectors(0, 2, 4), vectors(1, 3, 4), {"owner_Q": [0, 1, 2]}, "expected 3 and 3, found 2 and 3"),
        (vectors(0, 4, 4), vectors(1, 3, 4), {}, "expected 3 items"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(queries, images, settings, message):
    with pytest.raises(ValueError, match=message):
        cosine_scores(queries, images, join(3), **settings)
