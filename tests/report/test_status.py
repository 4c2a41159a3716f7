import io
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from sonify.report.status import compare_usage, gini, measure_usage, print_status, read_status, run_usage
from sonify.running import run
from tests.builders import small_config, small_input, vlm_at, write_photos, write_sounds
from tests.vlm.faulty_server import serving


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


def test_the_status_counts_what_speaks_for_the_sounds_and_what_was_refused(tmp_path):
    write_photos(tmp_path / "photos", {"a.jpg": "a dog and a frog", "b.jpg": "a wall"})
    write_sounds(tmp_path / "sounds", {"a.wav": "dog"})
    config = small_config(tmp_path)
    run(config, stages=["pool"])
    assert read_status(config.run_dir).evidence is None
    run(config)
    found = read_status(config.run_dir)
    assert found.evidence is not None
    assert (found.evidence.sounds, found.evidence.limited, found.evidence.refused) == (1, 1, {"no_match": 1})
    said = io.StringIO()
    print_status(found, Console(file=said, width=160))
    assert "sounds in scenes: 1, 0 match weakly\n" in said.getvalue()
    assert "concepts named and not heard: 1 no_match; 1 with a near miss\n" in said.getvalue()


def test_a_run_is_compared_with_what_other_settings_would_draw(tmp_path):
    small_input(tmp_path, photos=16)
    config = small_config(tmp_path)
    assert run_usage(config.run_dir) is None
    run(config)
    compared = compare_usage(config)
    assert compared["square root, margin 0.8"] == run_usage(config.run_dir)
    assert compared["square root, no margin (the paper)"].draws == 16


def draws_as_it_did(config):
    """Whether the run's own rules, unchanged, draw what the run drew."""
    run(config)
    return compare_usage(config, {"as it is": {}}) == {"as it is": run_usage(config.run_dir)}


@pytest.mark.parametrize("limit", [{"risk": 0.05}, None])
def test_draws_are_compared_under_the_limit_of_the_run(tmp_path, limit):
    write_photos(tmp_path / "photos", {f"{n:03d}.jpg": "a dog and a cat" for n in range(12)})
    texts = ("dog", "a dog barks at a cat", "a dog in the rain", "rain", "bell", "a cat", "a wolf howls", "animal")
    write_sounds(tmp_path / "sounds", {f"{n}.wav": text for n, text in enumerate(texts)})
    assert draws_as_it_did(small_config(tmp_path, retrieval={"margin": 0.0, "limit": limit}))


def answer_about(_image, _prompt):
    return "caption: a dog\ndog: rain falling on a roof (foreground)"


@pytest.mark.parametrize("query", ["description", "concept"])
def test_draws_are_compared_by_the_query_of_the_run(tmp_path, query):
    write_photos(tmp_path / "photos", {f"{n:03d}.jpg": "" for n in range(12)})
    texts = ("dog", "rain on a roof", "a dog barks", "rain falling")
    write_sounds(tmp_path / "sounds", {f"{n}.wav": text for n, text in enumerate(texts)})
    encoder = {"kind": "text", "matching": "words"}
    with serving(answer=answer_about) as server:
        config = small_config(
            tmp_path, concepts={"extractors": [vlm_at(server.url)]}, retrieval={"query": query, "encoder": encoder}
        )
        assert draws_as_it_did(config)


def hear(sound, _prompt):
    """Of the tones of `write_sounds`, the first is of a grasshopper and the others are something that buzzes."""
    pitch = float(np.argmax(np.abs(np.fft.rfft(sound)))) * 16_000 / len(sound)
    return "cricket: chirping" if pitch < 220 else "buzz: something buzzes"


def test_draws_are_compared_by_what_was_heard_as_the_run_read_a_bare_name(tmp_path):
    write_photos(tmp_path / "photos", {f"{n:03d}.jpg": "insects" for n in range(12)})
    write_sounds(tmp_path / "sounds", {f"{n}.wav": "insects buzzing" for n in range(4)})
    with serving(answer=hear) as server:
        listener = {"kind": "endpoint", "model": "stub", "url": server.url}
        assert draws_as_it_did(small_config(tmp_path, retrieval={"confirm": listener}))
