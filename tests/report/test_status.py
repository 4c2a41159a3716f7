from collections import Counter

import pytest

from sonify.report.status import compare_usage, gini, measure_usage, run_usage
from sonify.running import run
from tests.builders import small_config, small_input


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([1, 1, 1, 1], 0.0), ([0, 0, 0, 4], 0.75), ([0, 1], 0.5), ([1, 2, 3], 2 / 9), ([0, 0], 0.0)],
)
def test_gini_of_known_distributions(counts, expected):
    assert gini(counts, len(counts)) == pytest.approx(expected)


def test_usage_counts_clips_and_recordings_of_the_whole_pool():
    recording_of = {"a": "r", "b": "r", "c": "s", "d": "t"}
    usage = measure_usage(Counter("aabc"), recording_of)
    assert usage.draws == 4
    assert usage.clips_used_share == 0.75
    assert usage.recordings_used_share == round(2 / 3, 4)
    assert usage.most_used[0] == ("a", 2)
    assert usage.clips_gini == pytest.approx(gini([2, 1, 1], 4), abs=1e-4)


def test_a_run_is_compared_with_what_other_settings_would_draw(tmp_path):
    small_input(tmp_path, photos=16)
    config = small_config(tmp_path)
    assert run_usage(config.run_dir) is None
    run(config)
    compared = compare_usage(config)
    assert compared["square root, margin 0.8"] == run_usage(config.run_dir)
    assert compared["square root, no margin (the paper)"].draws == 16
