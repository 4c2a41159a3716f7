"""Intervals and tests against their golden numbers, against scipy, and what must hold for any values."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import permutation_test

from eval.figures import mean_interval
from eval.statistics import (
    Estimate,
    difference_estimate,
    groups_of,
    holm,
    jackknife,
    jackknife_difference,
    mean_estimate,
    recording_means,
    seed_spread,
    sign_flip,
    unpaired_estimate,
)
from tests.eval.features import golden

GOLDEN = golden("statistics")
A, B = GOLDEN["data"]["a"], GOLDEN["data"]["b"]
RECORDINGS = [f"recording {number:02d}" for number in GOLDEN["data"]["recording"]]
DIFFERENCES = GOLDEN["paired_sign_flip"]["differences"]


def names(count: int, prefix: str = "r") -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


def test_the_mean_and_its_interval_are_by_recording():
    order, means = recording_means(A, RECORDINGS)
    assert order == sorted(set(RECORDINGS))
    assert means == pytest.approx(GOLDEN["per_recording_mean"]["a"], rel=1e-14)
    expected, found = GOLDEN["mean_interval_a_by_recording"], mean_estimate(means, seed=0)
    assert (found.value, found.low, found.high) == (expected["mean"], expected["low"], expected["high"])
    assert (found.method, found.note) == ("bootstrap", "")
    assert found.standard_error == pytest.approx(means.std() / np.sqrt(12), rel=0.05)
    wrong = mean_estimate(A, seed=0)
    assert wrong.value == pytest.approx(GOLDEN["mean_interval_a_by_image_wrong"]["mean"])
    assert wrong.low == pytest.approx(GOLDEN["mean_interval_a_by_image_wrong"]["low"])
    assert wrong.low != pytest.approx(found.low, abs=1e-3)


def test_items_of_one_recording_twice_leave_the_interval_as_it_is():
    more = [at for at, recording in enumerate(RECORDINGS) if recording == "recording 04"]
    values, recordings = [*A, *(A[at] for at in more)], [*RECORDINGS, *(RECORDINGS[at] for at in more)]
    found, expected = (mean_estimate(recording_means(*both)[1], 0) for both in ((values, recordings), (A, RECORDINGS)))
    assert (found.low, found.value, found.high) == pytest.approx(
        (expected.low, expected.value, expected.high), rel=1e-14
    )
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(60)
    means = recording_means([A[at] for at in shuffled], [RECORDINGS[at] for at in shuffled])[1]
    assert mean_estimate(means, 0).low == pytest.approx(expected.low, rel=1e-14)


def test_few_recordings_are_said_and_one_has_no_interval():
    assert mean_estimate([0.5], 0) == Estimate(value=0.5, note="no interval: it takes two recordings, found 1")
    assert mean_estimate(np.arange(9.0), 0).note == "rough interval: 9 recordings, fewer than 10"
    assert mean_estimate(np.arange(10.0), 0).note == ""
    assert difference_estimate([0.5], 0).p is None


def test_the_studies_have_the_same_interval():
    values = recording_means(A, RECORDINGS)[1]
    found, expected = mean_interval(values, seed=3), mean_estimate(values, seed=3)
    assert (found.mean, found.low, found.high) == (expected.value, expected.low, expected.high)


@pytest.mark.parametrize("recordings", [1, 2, 7, 19, 20, 21, 50, 309])
def test_groups_are_of_recordings_balanced_and_never_empty(recordings):
    items = [name for name in names(recordings) for _ in range(3)]
    groups = groups_of(items)
    sizes = np.bincount(groups) // 3
    assert len(sizes) == min(20, recordings)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    assert all(len(set(groups[at : at + 3])) == 1 for at in range(0, len(items), 3))


def test_a_group_depends_on_the_set_of_recordings_alone():
    recordings = names(50)
    of = dict(zip(recordings, groups_of(recordings).tolist(), strict=True))
    again = np.random.default_rng(0).permutation([*recordings, *recordings[:9]]).tolist()
    assert dict(zip(again, groups_of(again).tolist(), strict=True)) == of
    assert [of[name] for name in recordings] != [n % 20 for n in range(50)]  # not the order of the list
    assert (of["r0"], of["r1"], of["r2"]) == (0, 1, 18)  # nor that of one machine
    assert groups_of(recordings, groups=3).max() == 2
    assert groups_of([]).tolist() == []


def test_the_jackknife_is_the_golden_one():
    recorded = GOLDEN["fid_delete_group_jackknife"]
    found = jackknife(recorded["fid"], recorded["leave_out"])
    assert found.standard_error == pytest.approx(recorded["standard_error"], abs=1e-12)
    assert (found.method, found.note, found.replicates) == ("jackknife", "", tuple(recorded["leave_out"]))


def test_the_jackknife_of_a_mean_is_the_error_of_a_mean():
    values = np.random.default_rng(0).standard_normal(12)
    found = jackknife(values.mean(), [np.delete(values, at).mean() for at in range(12)])
    expected = values.std(ddof=1) / np.sqrt(12)
    assert found.standard_error == pytest.approx(expected, rel=1e-12)
    # Student's t with 11 degrees of freedom, from a table
    half = 2.2010 * expected
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-4)


@pytest.mark.parametrize(("groups", "errors"), [(3, 4.3027), (5, 2.7764), (19, 2.1009), (20, 1.96)])
def test_the_fewer_the_groups_the_wider_the_interval(groups: int, errors: float):
    found = jackknife(0.0, np.arange(groups))
    assert found.standard_error is not None
    assert (found.low, found.high) == pytest.approx(
        (-errors * found.standard_error, errors * found.standard_error), rel=1e-4
    )


def test_the_mean_of_other_recordings_is_taken_off_with_an_interval_of_both():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(40) + 1, rng.standard_normal(12)
    found = unpaired_estimate(a, b, seed=0)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.standard_error == pytest.approx(np.sqrt(a.var() / 40 + b.var() / 12), rel=0.05)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert (found.method, found.note) == ("bootstrap", "")
    assert unpaired_estimate(a, b[:9], seed=0).note == "rough interval: 9 recordings, fewer than 10"
    assert unpaired_estimate(a, b[:1], seed=0).note == "no interval: it takes two recordings of each kind, found 1"


def test_the_jackknife_says_where_it_is_rough_or_none():
    for count in (1, 2):
        note = f"no interval: it takes 3 groups of recordings at least, found {count}"
        assert jackknife(1.0, [1.0] * count) == Estimate(value=1.0, note=note)
    assert jackknife(1.0, [1.0] * 9).note == "rough interval: 9 recordings, fewer than 10"
    assert jackknife(1.0, [1.0] * 10).note == ""


def test_a_difference_of_distances_is_paired_by_group():
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal(20), 0.01 * rng.standard_normal(20)
    a, b = jackknife(5.0, 5 + common + own), jackknife(4.9, 4.9 + common)
    found = jackknife_difference(a, b)
    expected = np.sqrt(19 / 20 * np.sum((own - own.mean()) ** 2))
    assert found.standard_error == pytest.approx(expected)
    assert (found.value, found.z) == (pytest.approx(0.1), pytest.approx(0.1 / expected))
    # Student's t with 19 degrees of freedom, from a table
    assert (found.low, found.high) == pytest.approx((0.1 - 2.0930 * expected, 0.1 + 2.0930 * expected), rel=1e-4)
    at_the_edge = jackknife_difference(jackknife(5.0, a.replicates), jackknife(5 - 2.0930 * expected, b.replicates))
    assert at_the_edge.p == pytest.approx(0.05, rel=1e-3)
    swapped = jackknife_difference(b, a)
    assert (swapped.value, swapped.z, swapped.p) == (-found.value, -(found.z or 0), found.p)


def test_a_model_does_not_differ_from_itself():
    a = jackknife(5.0, [4.0, 5.0, 6.0])
    assert (jackknife_difference(a, a).p, jackknife_difference(a, a).z) == (1.0, None)
    always = jackknife(6.0, [5.0, 6.0, 7.0])
    assert jackknife_difference(always, a).p == 0.0


def test_differences_that_cannot_be_paired_are_refused_and_those_without_replicates_have_no_p():
    a, b = jackknife(5.0, [4.0, 5.0, 6.0, 7.0]), jackknife(5.0, [4.0, 5.0, 6.0])
    with pytest.raises(ValueError, match="expected replicates of the same groups of recordings, found 4 and 3"):
        jackknife_difference(a, b)
    found = jackknife_difference(Estimate(value=3.0), Estimate(value=1.0))
    assert (found.value, found.low, found.p) == (2.0, None, None)
    assert found.note == "no interval: it takes 3 groups of recordings at least, found 0"
    few = jackknife(5.0, [4.0, 5.0])
    assert jackknife_difference(few, few).note == few.note


def test_signs_are_flipped_exactly_for_twelve_recordings():
    recorded = GOLDEN["paired_sign_flip"]
    assert sign_flip(DIFFERENCES, seed=0) == recorded["exact_p_two_sided"] == 0.552734375
    assert sign_flip(DIFFERENCES, seed=0) * 2**12 == recorded["count"]
    found = difference_estimate(DIFFERENCES, seed=0)
    assert (found.low, found.high) == tuple(GOLDEN["difference_interval"][end] for end in ("low", "high"))
    assert (found.value, found.p) == (recorded["mean"], 0.552734375)


def test_the_golden_differences_are_those_of_recordings():
    differences = recording_means(B, RECORDINGS)[1] - recording_means(A, RECORDINGS)[1]
    assert differences == pytest.approx(DIFFERENCES, rel=1e-11)
    assert sign_flip(differences, seed=0) == 0.552734375


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_every_choice_of_signs_counts_once(count):
    differences = np.round(np.random.default_rng(count).standard_normal(count), 1)  # with ties
    sums = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=count)]
    expected = np.mean([total >= abs(differences.sum()) - 1e-9 for total in sums])
    assert sign_flip(differences, seed=0) == expected


def test_ties_count_whatever_the_order_they_are_added_in():
    assert sign_flip([0.1, 0.2, 0.3, -0.6], seed=0) == 1.0
    assert sign_flip([0.1] * 10, seed=0) == 2 / 2**10
    assert sign_flip([0.0] * 5, seed=0) == sign_flip([0.0] * 30, seed=0) == 1.0


def test_many_recordings_are_drawn_and_agree_with_scipy():
    differences = np.random.default_rng(0).standard_normal(21) + 0.4
    found = sign_flip(differences, seed=0)
    expected = permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=100_000,
        rng=np.random.default_rng(5),
    ).pvalue
    assert found == pytest.approx(expected, abs=0.004)
    assert found == sign_flip(differences, seed=0) != sign_flip(differences, seed=1)
    assert sign_flip([1.0] * 40, seed=0) == 1 / 100_001  # never zero
    assert sign_flip(differences[:20], seed=0) == sign_flip(differences[:20], seed=1)  # counted, not drawn


@pytest.mark.parametrize("count", [12, 30])
def test_swapping_the_models_turns_the_sign_and_not_p(count):
    differences = np.random.default_rng(1).standard_normal(count) + 0.3
    one, other = difference_estimate(differences, seed=0), difference_estimate(-differences, seed=0)
    assert (one.value, one.p) == (-other.value, other.p)
    assert (one.low, one.high) == pytest.approx((-(other.high or 0), -(other.low or 0)))


def test_holm_is_golden_and_keeps_the_order():
    assert holm(GOLDEN["holm"]["p"]) == pytest.approx(GOLDEN["holm"]["adjusted"], rel=1e-15)
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([]) == ()
    with pytest.raises(ValueError, match="expected p between 0 and 1"):
        holm([0.5, float("nan")])


def test_the_spread_of_seeds_is_that_of_the_suites_mean():
    recordings = [name for name in names(3) for _ in range(4)]
    seeds = [0, 0, 1, 1] * 3
    values = np.array([0.0, 0, 1, 1] * 3) + np.repeat([0.0, 10.0, 20.0], 4)
    assert seed_spread(values, recordings, seeds) == pytest.approx(np.std([0.0, 1.0], ddof=1))
    # a recording of one seed alone says nothing of the spread, nor does a seed more of it
    assert seed_spread([*values, 99.0], [*recordings, "r9"], [*seeds, 1]) == pytest.approx(np.sqrt(0.5))
    assert seed_spread(values, recordings, [0] * 12) is None
    assert seed_spread([1.0, 2.0], ["r0", "r1"], [0, 1]) is None


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, float("nan")], [float("inf")]])
def test_what_is_no_row_of_finite_numbers_is_refused(values):
    for compute in (mean_estimate, sign_flip, difference_estimate):
        with pytest.raises(ValueError, match="expected"):
            compute(values, 0)
    with pytest.raises(ValueError, match="expected a recording for each of 2 values, found 1"):
        recording_means([1.0, 2.0], ["r0"])
