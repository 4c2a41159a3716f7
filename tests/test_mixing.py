"""Gains, sums and the ceiling: what is recorded is what was done."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sonify.config import Prominence
from sonify.media.loudness import SILENCE_DBFS, measure_loudness
from sonify.mixing import gain_to_target_db, mix_clips, pcm_sha256, prominence_db
from sonify.rows import Concept

RATE_HZ = 16_000

CLIP = arrays.arrays(np.int16, 64, elements=st.integers(-32768, 32767))
SOURCES = st.lists(st.tuples(CLIP, st.floats(-60, 30)), min_size=1, max_size=5)
CEILING_DBFS = st.floats(-40, 0)


def noise(seed: int, amplitude: float = 3000.0, frames: int = 5 * RATE_HZ) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).normal(0, amplitude, frames)).clip(-32768, 32767).astype(np.int16)


def exact_sum(clips: list[np.ndarray], gains_db: list[float]) -> np.ndarray:
    return np.sum([clip * 10.0 ** (gain / 20) for clip, gain in zip(clips, gains_db, strict=True)], axis=0)


@pytest.mark.parametrize(
    ("loudness_lufs", "target_lufs", "expected"),
    [(-20.0, -30.0, -10.0), (-50.0, -30.0, 20.0), (-70.0, -30.0, 30.0), (-30.123456, -30.0, 0.1235)],
)
def test_the_gain_is_the_difference_up_to_its_limit(loudness_lufs: float, target_lufs: float, expected: float) -> None:
    assert gain_to_target_db(loudness_lufs, target_lufs, max_gain_db=30.0) == expected


def test_no_gain_is_a_positive_zero() -> None:
    assert math.copysign(1, gain_to_target_db(-29.99999, -30.0, 30.0)) == 1


@pytest.mark.parametrize("loudness_lufs", [-math.inf, math.nan])
def test_silence_has_no_gain(loudness_lufs: float) -> None:
    with pytest.raises(ValueError, match="no gain"):
        gain_to_target_db(loudness_lufs, -30.0, 30.0)


@pytest.mark.parametrize("target_lufs", [-32.0, -28.0])
def test_a_clip_mixed_alone_has_the_target_loudness(target_lufs: float) -> None:
    clip = noise(0)
    gain_db = gain_to_target_db(measure_loudness(clip, RATE_HZ), target_lufs, 30.0)

    mix = mix_clips([clip], [gain_db], peak_dbfs=-1.0)

    assert mix.mix_gain_db == 0.0
    assert measure_loudness(mix.samples, RATE_HZ) == pytest.approx(target_lufs, abs=0.01)


def test_a_quiet_sum_is_the_plain_sum() -> None:
    clips, gains_db = [noise(1), noise(2)], [-6.0, -12.5]

    mix = mix_clips(clips, gains_db, peak_dbfs=0.0)

    assert np.abs(mix.samples - exact_sum(clips, gains_db)).max() < 0.51


def test_a_loud_sum_is_lowered_as_a_whole() -> None:
    clips, gains_db = [noise(1, 9000), noise(2, 9000)], [3.0, 6.0]

    mix = mix_clips(clips, gains_db, peak_dbfs=-1.0)

    assert mix.mix_gain_db < -1.0
    lowered = exact_sum(clips, gains_db) * 10 ** (mix.mix_gain_db / 20)
    assert np.abs(mix.samples - lowered).max() < 0.51
    assert mix.peak_dbfs == pytest.approx(-1.0, abs=0.001)


@given(sources=SOURCES, peak_dbfs=CEILING_DBFS)
def test_the_ceiling_holds_and_nothing_wraps(sources: list[tuple[np.ndarray, float]], peak_dbfs: float) -> None:
    clips, gains_db = [clip for clip, _ in sources], [gain for _, gain in sources]

    mix = mix_clips(clips, gains_db, peak_dbfs)

    assert mix.samples.dtype == np.int16
    assert np.abs(mix.samples.astype(int)).max() <= 32768 * 10 ** (peak_dbfs / 20)
    expected = exact_sum(clips, gains_db) * 10 ** (mix.mix_gain_db / 20)
    assert np.abs(mix.samples - expected).max() < 0.6
    assert mix.mix_gain_db <= 0.0
    assert mix.mix_gain_db == round(mix.mix_gain_db, 4)
    assert math.isfinite(mix.peak_dbfs)


@given(sources=SOURCES, peak_dbfs=CEILING_DBFS)
def test_the_ceiling_takes_off_no_more_than_it_must(sources: list[tuple[np.ndarray, float]], peak_dbfs: float) -> None:
    clips, gains_db = [clip for clip, _ in sources], [gain for _, gain in sources]

    mix = mix_clips(clips, gains_db, peak_dbfs)

    if mix.mix_gain_db < 0:
        assert np.abs(mix.samples.astype(int)).max() >= math.floor(32768 * 10 ** (peak_dbfs / 20)) - 1


def test_both_ends_of_full_scale_survive() -> None:
    ends = np.array([32767, -32767, 0], np.int16)

    assert mix_clips([ends], [0.0], peak_dbfs=0.0).samples.tolist() == [32767, -32767, 0]


def test_sources_that_cancel_give_a_finite_peak() -> None:
    clip = noise(3).clip(-32767, 32767)

    mix = mix_clips([clip, -clip], [0.0, 0.0], peak_dbfs=-1.0)

    assert not mix.samples.any()
    assert (mix.mix_gain_db, mix.peak_dbfs) == (0.0, SILENCE_DBFS)


def test_halves_round_to_even() -> None:
    clip = np.array([1, 3, 5, -1, -3], np.int16)
    half_db = 20 * math.log10(0.5)

    assert mix_clips([clip], [half_db], peak_dbfs=0.0).samples.tolist() == [0, 2, 2, 0, -2]


def test_a_mix_leaves_its_clips_as_they_were() -> None:
    clip = noise(4, 20_000)
    before = clip.copy()

    mix_clips([clip, clip], [20.0, 20.0], peak_dbfs=-1.0)

    assert np.array_equal(clip, before)


def test_a_clip_without_a_gain_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        mix_clips([noise(0), noise(1)], [0.0], peak_dbfs=-1.0)


def test_clips_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        mix_clips([noise(0), noise(1)[:-1]], [0.0, 0.0], peak_dbfs=-1.0)


def test_a_ceiling_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no 16-bit sample"):
        mix_clips([noise(0)], [0.0], peak_dbfs=-91.0)


def test_the_hash_is_of_little_endian_pcm() -> None:
    samples = np.array([0, 1, -1, 32767, -32768], np.int16)
    # printf '\x00\x00\x01\x00\xff\xff\xff\x7f\x00\x80' | sha256sum
    expected = "b9e94d97ecf4a49c39ef6481b1f8c35640ec3c9040053f25268b0140ae60c10b"

    assert pcm_sha256(samples) == expected
    assert pcm_sha256(samples.astype(">i2")) == expected
    assert pcm_sha256(np.repeat(samples, 2)[::2]) == expected


@pytest.mark.parametrize(
    ("word", "area", "expected_db"),
    [
        ("foreground", 0.0, 0.0),
        ("background", 0.0, -6.0),
        ("ambience", 0.0, -9.0),
        ("", 0.0, 0.0),
        ("background", 0.02, -10.0),  # the box counts, not the word: 10 log10(0.02 / 0.2)
        ("background", 0.2, 0.0),
        ("foreground", 0.9, 0.0),
        ("foreground", 0.0001, -12.0),
        ("ambience", 0.9, -9.0),
    ],
)
def test_prominence_lowers_by_box_or_by_word(word: str, area: float, expected_db: float) -> None:
    concept = Concept(concept="dog", description="", prominence=word, area=area)

    assert prominence_db(concept, Prominence()) == pytest.approx(expected_db)
    assert prominence_db(concept, None) == 0.0
