"""Distances against the numbers that the peers' own programs gave, and what must hold for any sets."""

import numpy as np
import pytest

from eval.metrics import distributions
from eval.metrics.distributions import (
    authentic_percent,
    c_t,
    cmmd,
    cmmd_estimate,
    fid_infinity,
    frechet,
    frechet_estimate,
    inception_score,
    kid,
    kid_estimate,
    prdc,
    prdc_estimate,
)
from tests.eval.features import golden, relu_features, unit_features, with_copies

PEERS = golden("distribution_metrics")
DGM = golden("dgm_eval")
PAIRS = ("wide_2048", "tall_64", "same_set_64")
PRDC = ("precision", "recall", "density", "coverage")
ESTIMATES = {"frechet": frechet_estimate, "kid": kid_estimate}
VALUES = {"frechet": frechet, "kid": kid}


def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    return relu_features(*PEERS[name]["a"]), relu_features(*PEERS[name]["b"])


def made_by_dgm(name: str) -> np.ndarray:
    return with_copies() if name == "g2" else relu_features(4, 400, 64, 0.2)


def units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dealt(seed: int, count: int, groups: int = 20) -> np.ndarray:
    """Groups of unequal sizes."""
    return np.random.default_rng(seed).integers(0, groups, count)


@pytest.mark.parametrize("name", PAIRS)
def test_the_features_are_those_of_the_recipe(name):
    a, b = pair(name)
    checks = PEERS[name]["input_checks"]
    assert a[0, :4].tolist() == pytest.approx(checks["a00"], abs=0)
    assert (a.sum(dtype=np.float64), b.sum(dtype=np.float64)) == pytest.approx((checks["a_sum"], checks["b_sum"]))


@pytest.mark.parametrize("name", PAIRS)
def test_the_frechet_distance_is_that_of_four_libraries(name):
    found, theirs = frechet(*pair(name)), PEERS[name]["fid"]
    assert found == pytest.approx(theirs["gram_identity_float64"], rel=1e-12, abs=1e-11)
    exact = ("pytorch_fid_float64", "torchmetrics_float64")  # the others keep a mean in float32
    for library in (*exact, "torch_fidelity", "clean_fid"):
        rel, least = (0.0, 1e-3) if name == "wide_2048" else (1e-6, 1e-11)
        assert found == pytest.approx(theirs[library], rel=rel, abs=least)
    if name == "tall_64":
        assert found == pytest.approx(theirs["pytorch_fid_float64"], rel=1e-12)


def test_the_frechet_distance_is_neither_of_population_covariances_nor_of_float32():
    a, b = pair("tall_64")
    biased = np.sqrt(((len(a) - 1) / len(a), (len(b) - 1) / len(b)))
    shrunk = [(side - side.mean(axis=0)) * by + side.mean(axis=0) for side, by in zip((a, b), biased, strict=True)]
    expected = PEERS["tall_64"]["fid"]["pytorch_fid_float64"]
    assert abs(frechet(*shrunk) / expected - 1) > 1e-4
    rounded = [side - side.mean(axis=0) for side in (a, b)]
    trace = np.linalg.svd(rounded[0] @ rounded[1].T, compute_uv=False).sum() / np.sqrt(499 * 399)
    parts = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + sum(np.sum(side**2) / (len(side) - 1) for side in rounded)
    assert abs((parts - 2 * trace) / expected - 1) > 1e-9  # what 1e-12 above tells apart


def test_the_distance_of_normal_distributions_is_the_formulas():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 3))
    rows = np.linalg.qr(rows - rows.mean(axis=0))[0] * np.sqrt(39)  # covariance 1, mean 0
    scaled = rows * np.array([1.0, 2.0, 3.0]) + np.array([0.0, 0.0, 5.0])
    assert frechet(rows, scaled) == pytest.approx(25 + 0 + 1 + 4)


@pytest.mark.parametrize("name", PAIRS)
def test_kid_is_over_all_pairs_and_over_torch_fidelitys_subsets_what_that_has(name):
    a, b = pair(name)
    assert kid(a, b) == pytest.approx(PEERS[name]["kid_full_ustat_float64"], rel=1e-10)
    m = PEERS[name]["kid_mmd2_first_m_float64"]
    assert kid(a[: m["m"]], b[: m["m"]]) == pytest.approx(m["unbiased"], rel=1e-10)
    assert abs(kid(a[: m["m"]], b[: m["m"]]) - m["biased"]) > 1e-3
    rng = np.random.RandomState(2020)
    values = [kid(*(side[rng.choice(len(side), 100, replace=False)] for side in (a, b))) for _ in range(20)]
    theirs = PEERS[name]["kid_torch_fidelity_20x100_seed2020"]
    assert (np.mean(values), np.std(values)) == pytest.approx(tuple(theirs.values()), abs=1e-6)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("k", [3, 5])
def test_prdc_is_exactly_the_librarys(name, k):
    a, b = pair(name)
    assert prdc(b, a, k) == pytest.approx(PEERS[name][f"prdc_k{k}_b_real_a_fake"], rel=1e-15)


def test_prdc_has_five_neighbours_unless_told():
    a, b = pair("tall_64")
    assert prdc(b, a) == prdc(b, a, 5) != prdc(b, a, 3)


@pytest.mark.parametrize("name", ["unit_same_direction", "unit_shifted"])
def test_cmmd_is_the_formula_and_near_both_programs(name):
    recorded = golden("cmmd")[name]
    a, b = unit_features(*recorded["a"]), unit_features(*recorded["b"])
    assert a[0, :3].tolist() == pytest.approx(recorded["x00"])
    assert cmmd(a, b) == pytest.approx(recorded["formula_float64"], rel=1e-9)
    assert cmmd(a, b) == pytest.approx(recorded["google_jax_float32"], abs=5e-4)
    assert cmmd(a, b) == pytest.approx(recorded["sayakpaul_torch_float32"], abs=5e-4)
    # vectors 11.3 times as long under the same kernel are these under a narrower one
    assert cmmd(a, b, sigma=10 / 11.3) == pytest.approx(recorded["scaled_11.3_formula_float64"], rel=1e-6)


def test_cmmd_refuses_vectors_that_are_not_of_unit_length():
    a, b = unit_features(11, 20, 0.0), unit_features(12, 20, 0.0)
    assert cmmd(a.astype(np.float16), b) == pytest.approx(cmmd(a, b), abs=0.05)
    for compute in (cmmd, lambda a, b: cmmd_estimate(a, b, dealt(0, 20), dealt(0, 20))):
        with pytest.raises(ValueError, match=r"expected unit vectors, found a length that is 10\.3 off"):
            compute(a, b * 11.3)


def test_the_inception_score_is_torch_fidelitys():
    logits = (np.random.RandomState(7).standard_normal((500, 1008)) * 2.0).astype(np.float32)
    for splits, name in ((10, "splits10_shuffle_seed2020"), (1, "splits1")):
        theirs = PEERS["inception_score"][name]
        assert inception_score(logits, splits) == pytest.approx(tuple(theirs.values()), abs=1e-9)
    unshuffled = PEERS["inception_score"]["splits10_noshuffle"]["inception_score_mean"]
    assert abs(inception_score(logits)[0] - unshuffled) > 1e-4


def test_the_inception_score_counts_classes_and_bears_a_probability_of_zero():
    logits = np.where(np.eye(4)[np.arange(40) % 4] > 0, 0.0, -2000.0)
    assert inception_score(logits, splits=1) == pytest.approx((4.0, 0.0))


@pytest.mark.parametrize("name", ["b", "g2"])
def test_infinity_copies_and_prdc_are_dgm_evals(name):
    train, held_out, made = relu_features(3, 500, 64, 0.0), relu_features(8, 450, 64, 0.0), made_by_dgm(name)
    value, reason = fid_infinity(train, made)
    assert (value, reason) == (pytest.approx(DGM[name]["fd_infinity_default_rng0"], abs=1e-6), "")
    assert frechet(train, made) == pytest.approx(DGM[name]["fd_with_reps"], abs=1e-6)
    assert prdc(train, made) == pytest.approx(DGM[name]["prdc_k5"], rel=1e-15)
    assert authentic_percent(train, made) == pytest.approx(DGM[name]["authpct"], rel=1e-15)
    assert c_t(train, held_out, made) == pytest.approx(DGM[name]["ct_zu_test_h_gen_train_a"], rel=1e-12)


def test_there_is_no_infinity_of_too_few_pictures():
    a, b = pair("tall_64")
    assert fid_infinity(a, b[:127]) == (
        None,
        "it takes 128 pictures of each set (twice the width of the features), found 127",
    )
    assert fid_infinity(a[:127], b)[0] is None
    assert fid_infinity(a[:128], b[:128])[0] is not None


def test_the_jackknife_is_the_golden_one_group_by_group():
    recorded = golden("statistics")["fid_delete_group_jackknife"]
    a, b, groups = relu_features(3, 500, 64, 0.0)[:400], relu_features(4, 400, 64, 0.2), np.arange(400) % 20
    found = frechet_estimate(a, b, groups, groups)
    assert found.value == pytest.approx(recorded["fid"], rel=1e-12)
    assert found.replicates == pytest.approx(recorded["leave_out"], rel=1e-12)
    assert found.standard_error == pytest.approx(recorded["standard_error"], abs=1e-9)
    assert found.low == pytest.approx(recorded["fid"] - 1.96 * recorded["standard_error"], abs=1e-9)
    assert 20 * found.value - 19 * np.mean(found.replicates) == pytest.approx(recorded["corrected"], abs=1e-9)


SHAPES = [(90, 70, 128), (70, 90, 128), (160, 130, 32), (30, 160, 64), (160, 30, 64), (33, 34, 32)]


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize(("n", "m", "width"), SHAPES)
def test_a_replicate_is_the_distance_of_the_pictures_that_are_left(name, n, m, width):
    a, b = relu_features(1, n, width, 0.0), relu_features(2, m, width, 0.1)
    real, made = dealt(0, n), dealt(1, m)
    found = ESTIMATES[name](a, b, real, made)
    groups = sorted({*real.tolist(), *made.tolist()})
    assert found.value == pytest.approx(VALUES[name](a, b), rel=1e-10)
    assert found.replicates == pytest.approx([VALUES[name](a[real != g], b[made != g]) for g in groups], rel=1e-10)


@pytest.mark.parametrize("groups", [20, 3])  # with three, all neighbours that are kept of a picture may go at once
@pytest.mark.parametrize(("n", "m"), [(150, 120), (20, 90)])
def test_the_replicates_of_prdc_and_cmmd_are_those_of_the_pictures_that_are_left(n, m, groups):
    a, b = units(relu_features(1, n, 16, 0.0)), units(relu_features(2, m, 16, 0.1))
    real, made = np.arange(n) * groups // n, np.arange(m) * groups // m
    a[real == 0] = units(a[real == 0] + 9.0)  # one group apart from all others
    left = [(a[real != g], b[made != g]) for g in range(groups)]
    found = prdc_estimate(a, b, real, made)
    for name in PRDC:
        assert found[name].replicates == pytest.approx([prdc(*sets)[name] for sets in left], abs=1e-15)
    expected = [cmmd(*sets) for sets in left]
    assert cmmd_estimate(a, b, real, made).replicates == pytest.approx(expected, rel=1e-9)


def test_large_sets_are_taken_in_blocks(monkeypatch):
    a, b, real, made = *pair("tall_64"), dealt(0, 500), dealt(1, 400)
    whole = [kid_estimate(a, b, real, made), prdc_estimate(a, b, real, made), c_t(a, b, b), authentic_percent(a, b)]
    monkeypatch.setattr(distributions, "BLOCK", 37)
    blocks = [kid_estimate(a, b, real, made), prdc_estimate(a, b, real, made), c_t(a, b, b), authentic_percent(a, b)]
    assert blocks[0].replicates == pytest.approx(whole[0].replicates, rel=1e-10)
    assert blocks[1:] == whole[1:]


def test_singular_covariances_cost_time_and_no_digits():
    rng = np.random.default_rng(0)
    few = relu_features(1, 12, 64, 0.0)
    for n, m in ((60, 50), (200, 150)):  # the same twelve pictures over and over: most eigenvalues are rounding
        a, b = (
            few[rng.integers(0, 12, n)],
            np.concatenate([few[rng.integers(0, 12, m - 20)], relu_features(2, 20, 64, 0)]),
        )
        real, made = dealt(0, n, 5), dealt(1, m, 5)
        expected = [frechet(a[real != g], b[made != g]) for g in range(5)]
        assert frechet_estimate(a, b, real, made).replicates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "width"), [(60, 256), (300, 64), (65, 64)])
def test_a_set_is_no_distance_from_itself(n, width):
    a, groups = relu_features(1, n, width, 0.0), dealt(0, n)
    found = frechet_estimate(a, a[::-1], groups, groups[::-1])
    assert abs(frechet(a, a)) < 1e-9
    assert abs(found.value) < 1e-9
    assert np.max(np.abs(found.replicates)) < 1e-6
    assert cmmd(units(a), units(a)) == pytest.approx(0, abs=1e-9)
    assert prdc(a, a) == {"precision": 1.0, "recall": 1.0, "density": pytest.approx(1.0), "coverage": 1.0}


def test_distances_do_not_depend_on_order_nor_on_where_zero_is():
    a, b = relu_features(1, 80, 32, 0.0), relu_features(2, 70, 32, 0.1)
    real, made = dealt(0, 80), dealt(1, 70)
    rng = np.random.default_rng(0)
    i, j = rng.permutation(80), rng.permutation(70)
    for estimate in (frechet_estimate, kid_estimate):
        found, expected = estimate(a[i], b[j], real[i], made[j]), estimate(a, b, real, made)
        assert found.replicates == pytest.approx(expected.replicates, rel=1e-9)
        assert (found.value, found.low) == pytest.approx((expected.value, expected.low), rel=1e-9)
        swapped = estimate(b, a, made, real)
        assert swapped.replicates == pytest.approx(expected.replicates, rel=1e-9)
    shift = rng.standard_normal(32)
    assert frechet(a + shift, b + shift) == pytest.approx(frechet(a, b), rel=1e-9)
    assert prdc(a + shift, b + shift) == prdc(a, b) == prdc(a[i], b[j])
    assert authentic_percent(a[i], b[j]) == authentic_percent(a, b)


def test_groups_may_be_named_by_anything_and_be_of_one_set_alone():
    a, b = relu_features(1, 30, 8, 0.0), relu_features(2, 20, 8, 0.1)
    found = frechet_estimate(a, b, np.arange(30) % 3 * 7 + 100, np.full(20, 100))
    # without the group 100 nothing made is left
    assert found.low is None
    assert found.note == "no interval: without one group of recordings 0 pictures of a set are left, 2 are needed"
    found = frechet_estimate(a, b, np.arange(30) % 3 * 7 + 100, np.arange(20) % 2 * 7 + 100)
    assert found.replicates[2] == pytest.approx(frechet(a[np.arange(30) % 3 != 2], b), rel=1e-10)
    assert found.note == "rough interval: 3 recordings, fewer than 10"


def test_what_has_no_interval_says_why():
    a, b, one = relu_features(1, 30, 8, 0.0), relu_features(2, 20, 8, 0.1), np.zeros(30, int)
    found = [
        frechet_estimate(a, b, one, one[:20]),
        kid_estimate(a, b, one, one[:20]),
        cmmd_estimate(units(a + 1), units(b + 1), one, one[:20]),
        *prdc_estimate(a, b, one, one[:20]).values(),
    ]
    for estimate in found:
        assert (estimate.low, estimate.standard_error, estimate.replicates) == (None, None, ())
        assert estimate.note == "no interval: all pictures are of one group of recordings"
    assert found[0].value == frechet(a, b)
    assert found[1].value == pytest.approx(kid(a, b), rel=1e-10)
    many = prdc_estimate(a[:6], b[:6], np.arange(6), np.arange(6))["density"]
    assert (many.low, many.value) == (None, prdc(a[:6], b[:6])["density"])
    assert "5 pictures of a set are left, 6 are needed" in many.note


def test_pictures_that_are_all_the_same_have_a_distance_of_their_means():
    a, b = np.full((30, 8), 0.25), np.full((20, 8), 0.75)
    groups = np.arange(30) % 10
    assert frechet(a, b) == pytest.approx(8 * 0.25)
    assert frechet_estimate(a, b, groups, groups[:20]).replicates == pytest.approx([2.0] * 10)
    assert frechet_estimate(np.full((30, 64), 0.25), np.full((20, 64), 0.75), groups, groups[:20]).value == 16.0
    assert prdc(a, b) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    assert kid(a, a) == pytest.approx(0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 4)), np.zeros((9, 4)), "features of real pictures: expected 2 pictures at least, found 1"),
        (np.zeros((9, 4)), np.zeros((1, 4)), "features of made pictures: expected 2 pictures at least, found 1"),
        (np.zeros((9, 4)), np.zeros((9, 5)), "expected features of one width, found 4 and 5"),
        (np.zeros(9), np.zeros((9, 5)), r"expected one row a picture, found the shape \(9,\)"),
        (np.zeros((9, 4)), np.full((9, 4), np.nan), "made pictures: expected finite numbers, found 9 of 9 pictures"),
        (np.array([[1.0, np.inf]] + [[0.0, 0.0]] * 3), np.zeros((9, 2)), "found 1 of 4 pictures with others"),
    ],
)
def test_features_that_have_no_distance_are_refused(a, b, message):
    for compute in (frechet, kid, lambda a, b: frechet_estimate(a, b, np.arange(len(a)), np.arange(len(b)))):
        with pytest.raises(ValueError, match=message):
            compute(a, b)


def test_what_cannot_be_asked_is_refused():
    a = relu_features(1, 9, 8, 0.0)
    with pytest.raises(ValueError, match="expected a group for each of 9 real and 9 made pictures, found 9 and 8"):
        kid_estimate(a, a, np.arange(9), np.arange(8))
    with pytest.raises(ValueError, match="expected a group for each of 9 real and 9 made pictures, found 8 and 9"):
        kid_estimate(a, a, np.arange(8), np.arange(9))
    with pytest.raises(ValueError, match="expected 6 pictures at least, found 5"):
        prdc(a, a[:5])
    with pytest.raises(ValueError, match="expected 1 to 9 splits of 9 pictures, found 10"):
        inception_score(a)


def test_copies_are_nearer_than_held_out_pictures():
    train, held_out = relu_features(3, 100, 64, 0.0), relu_features(8, 100, 64, 0.0)
    assert c_t(train, held_out, train) < -10 < -2 < c_t(train, held_out, relu_features(9, 100, 64, 0.0)) < 2
    assert authentic_percent(train, train) == 0.0
    assert authentic_percent(np.concatenate([train, train]), train) == 0.0  # no farther than a twin is
