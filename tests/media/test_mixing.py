"""The meter against EBU Tech 3341, what lets a clip be measured once; gains, sums and the ceiling that they keep."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sonify.config import Prominence
from sonify.media.mixing import (
    SILENCE_DBFS,
    gain_to_target_db,
    measure_loudness,
    measure_peak,
    mix_clips,
    pcm_sha256,
    prominence_db,
)
from sonify.rows import Concept
from tests.builders import as_pcm, noise

RATE_HZ = 16_000

CLIP = arrays.arrays(np.int16, 64, elements=st.integers(-32768, 32767))
SOURCES = st.lists(st.tuples(CLIP, st.floats(-60, 30)), min_size=1, max_size=5)
CEILING_DBFS = st.floats(-40, 0)


def noise_clip(seed: int, amplitude: float = 3000.0) -> np.ndarray:
    return as_pcm(noise(seed, level=amplitude / 32768))


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
    clip = noise_clip(0)
    gain_db = gain_to_target_db(measure_loudness(clip, RATE_HZ), target_lufs, 30.0)

    mix = mix_clips([clip], [gain_db], peak_dbfs=-1.0)

    assert mix.mix_gain_db == 0.0
    assert measure_loudness(mix.samples, RATE_HZ) == pytest.approx(target_lufs, abs=0.01)


def test_a_quiet_sum_is_the_plain_sum() -> None:
    clips, gains_db = [noise_clip(1), noise_clip(2)], [-6.0, -12.5]

    mix = mix_clips(clips, gains_db, peak_dbfs=0.0)

    assert np.abs(mix.samples - exact_sum(clips, gains_db)).max() < 0.51


def test_a_loud_sum_is_lowered_as_a_whole() -> None:
    clips, gains_db = [noise_clip(1, 9000), noise_clip(2, 9000)], [3.0, 6.0]

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
    clip = noise_clip(3).clip(-32767, 32767)

    mix = mix_clips([clip, -clip], [0.0, 0.0], peak_dbfs=-1.0)

    assert not mix.samples.any()
    assert (mix.mix_gain_db, mix.peak_dbfs) == (0.0, SILENCE_DBFS)


def test_halves_round_to_even() -> None:
    clip = np.array([1, 3, 5, -1, -3], np.int16)
    half_db = 20 * math.log10(0.5)

    assert mix_clips([clip], [half_db], peak_dbfs=0.0).samples.tolist() == [0, 2, 2, 0, -2]


def test_a_mix_leaves_its_clips_as_they_were() -> None:
    clip = noise_clip(4, 20_000)
    before = clip.copy()

    mix_clips([clip, clip], [20.0, 20.0], peak_dbfs=-1.0)

    assert np.array_equal(clip, before)


def test_a_clip_without_a_gain_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        mix_clips([noise_clip(0), noise_clip(1)], [0.0], peak_dbfs=-1.0)


def test_clips_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        mix_clips([noise_clip(0), noise_clip(1)[:-1]], [0.0, 0.0], peak_dbfs=-1.0)


def test_a_ceiling_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no 16-bit sample"):
        mix_clips([noise_clip(0)], [0.0], peak_dbfs=-91.0)


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


def stereo_sine(levels_dbfs: list[tuple[float, float]], rate_hz: int = 48_000) -> np.ndarray:
    """A 1 kHz sine on both channels, (level, seconds) after (level, seconds)."""
    parts = []
    for level, seconds in levels_dbfs:
        t = np.arange(round(seconds * rate_hz)) / rate_hz
        parts.append(32768 * 10 ** (level / 20) * np.sin(2 * np.pi * 1000 * t))
    mono = np.rint(np.concatenate(parts)).astype(np.int16)
    return np.stack([mono, mono], axis=1)


# EBU Tech 3341 (2023), table 1, cases 1 to 4.
@pytest.mark.parametrize(
    ("levels_dbfs", "expected_lufs"),
    [
        ([(-23, 20)], -23.0),
        ([(-33, 20)], -33.0),
        ([(-36, 10), (-23, 60), (-36, 10)], -23.0),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),
    ],
)
def test_check_signals_read_as_the_standard_says(levels_dbfs: list[tuple[float, float]], expected_lufs: float) -> None:
    assert measure_loudness(stereo_sine(levels_dbfs), 48_000) == pytest.approx(expected_lufs, abs=0.1)


def test_one_channel_reads_half_the_power_of_two() -> None:
    stereo = stereo_sine([(-23, 20)])

    difference = measure_loudness(stereo, 48_000) - measure_loudness(stereo[:, 0], 48_000)

    assert difference == pytest.approx(10 * math.log10(2), abs=1e-6)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_the_sample_rate_does_not_change_the_reading(rate_hz: int) -> None:
    assert measure_loudness(stereo_sine([(-23, 5)], rate_hz), rate_hz) == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_loudness_is_exact_under_gain(factor: int) -> None:
    clip = np.rint(np.random.default_rng(0).normal(0, 800, 80_000)).astype(np.int16)

    louder = measure_loudness(clip * np.int16(factor), 16_000)

    assert louder - measure_loudness(clip, 16_000) == pytest.approx(20 * math.log10(factor), abs=1e-9)


@pytest.mark.parametrize("amplitude", [0, 1])
def test_silence_is_minus_infinity_without_a_warning(amplitude: int) -> None:
    clip = np.zeros(80_000, np.int16)
    clip[::1000] = amplitude

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_loudness(clip, 16_000) == -math.inf


def test_padding_after_the_sound_is_gated_out() -> None:
    sound = np.rint(np.random.default_rng(0).normal(0, 3000, 32_000)).astype(np.int16)
    padded = np.concatenate([sound, np.zeros(48_000, np.int16)])

    # The blocks that straddle the end count, and hold less: a little under the sound alone.
    assert measure_loudness(padded, 16_000) == pytest.approx(measure_loudness(sound, 16_000), abs=0.5)


def test_less_than_a_gating_block_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="block"):
        measure_loudness(np.ones(6_399, np.int16), 16_000)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0, 0], SILENCE_DBFS),
        ([1, 0], -90.309),
        ([-1, 0], -90.309),
        ([16384, 0], -6.0206),
        ([-32768, 5], 0.0),
    ],
)
def test_the_peak_is_of_either_sign(samples: list[int], expected: float) -> None:
    assert measure_peak(np.array(samples, np.int16)) == expected
