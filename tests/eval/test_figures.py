import numpy as np
import pytest

from eval.figures import mean_interval


def test_the_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).standard_normal(400)
    found = mean_interval(values, seed=0)
    assert found.mean == pytest.approx(values.mean())
    expected = 1.96 * values.std() / 20
    assert found.high - found.mean == pytest.approx(expected, rel=0.1)
    assert found.mean - found.low == pytest.approx(expected, rel=0.1)


def test_equal_values_leave_no_doubt_and_a_seed_gives_the_same():
    found = mean_interval([0.25] * 5, seed=0)
    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)
    values = [0.1, 0.4, 0.2]
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="two values"):
        mean_interval([1.0], seed=0)
