"""The meter against the check signals of EBU Tech 3341, and what lets a clip be measured only once."""

import math
import warnings

import numpy as np
import pytest

from sonify.media.loudness import SILENCE_DBFS, measure_loudness, peak_dbfs


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
    assert peak_dbfs(np.array(samples, np.int16)) == expected
