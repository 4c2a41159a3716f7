"""Where a short sound is in its clip, what is cut out of it, how loud that is, and where it lies in a scene."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sonify.media.events import (
    FADE_SEC,
    LEAST_MEASURED_SEC,
    cut_active,
    draw_onsets,
    find_active,
    lay_out,
    measure_part,
)
from sonify.media.mixing import measure_loudness
from tests.builders import as_pcm, noise, sine, tone

RATE_HZ = 16_000


def with_bursts(*bursts_sec, seconds=5.0, rate_hz=RATE_HZ, floor=0.0):
    """Noise from time to time, over a floor of noise: (S,) int16."""
    samples = noise(1, round(seconds * rate_hz), floor) if floor else np.zeros(round(seconds * rate_hz))
    for start, end in bursts_sec:
        part = slice(round(start * rate_hz), round(end * rate_hz))
        samples[part] += noise(2, part.stop - part.start, 0.1)
    return as_pcm(samples)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("burst", [(0.0, 0.3), (1.0, 1.02), (2.5, 4.0), (4.5, 5.0), (0.0, 5.0)])
def test_the_active_part_is_where_the_burst_is(burst, rate_hz):
    part = find_active(with_bursts(burst, rate_hz=rate_hz), rate_hz)
    assert part.start_sec == pytest.approx(max(0.0, burst[0] - FADE_SEC), abs=0.0101)
    assert part.start_sec + part.length_sec == pytest.approx(min(5.0, burst[1] + FADE_SEC), abs=0.0101)


def test_two_bursts_are_one_part_from_the_first_to_the_last():
    part = find_active(with_bursts((1.0, 1.2), (2.0, 2.2)), RATE_HZ)
    assert (part.start_sec, part.length_sec) == (0.99, 1.22)


def test_a_decay_belongs_to_the_part_and_noise_behind_it_does_not():
    rng = np.random.default_rng(0)
    time = np.arange(5 * RATE_HZ) / RATE_HZ
    bang = np.where(time < 1, 0, np.exp(-10 * (time - 1))) * rng.standard_normal(len(time)) * 0.1
    quiet = find_active(as_pcm(bang + 1e-4 * rng.standard_normal(len(time))), RATE_HZ)
    assert 1 + 20 / 87 < quiet.start_sec + quiet.length_sec < 1 + 34 / 87  # it falls by 87 dB a second
    loud = find_active(as_pcm(bang + 1e-2 * rng.standard_normal(len(time))), RATE_HZ)
    assert loud.length_sec == 5.0


def test_steady_sound_is_active_throughout_and_its_crest_is_low():
    part = find_active(as_pcm(sine()), RATE_HZ)
    assert (part.start_sec, part.length_sec) == (0.0, 5.0)
    assert part.crest_db == pytest.approx(3.01, abs=0.01)


def test_silence_has_no_part_and_one_sample_is_one():
    assert find_active(np.zeros(RATE_HZ, np.int16), RATE_HZ).length_sec == 0.0
    click = np.zeros(5 * RATE_HZ, np.int16)
    click[40_000] = -32768
    part = find_active(click, RATE_HZ)
    assert (part.start_sec, part.length_sec) == (2.49, 0.03)
    assert part.crest_db == pytest.approx(10 * math.log10(len(click)))
    cut = cut_active(click, part.start_sec, part.length_sec, RATE_HZ)
    assert cut.min() == -32768.0
    assert math.isfinite(measure_part(cut, RATE_HZ))


def test_what_is_cut_out_is_the_clip_between_its_fades():
    clip = with_bursts((1.0, 1.5))
    cut = cut_active(clip, 0.99, 0.52, RATE_HZ)
    fade = round(FADE_SEC * RATE_HZ)
    assert cut.dtype == np.float32
    assert np.array_equal(cut[fade:-fade], clip[16_000:24_000])
    loud = cut_active(np.full(RATE_HZ, 1000, np.int16), 0.1, 0.5, RATE_HZ)
    assert 0 < loud[0] < loud[1] < loud[fade] == 1000.0
    assert np.array_equal(loud, loud[::-1])


@pytest.mark.parametrize("frames", [1, 2, 3, 100, 319])
def test_a_part_that_is_shorter_than_its_fades_is_still_one(frames):
    cut = cut_active(np.full(RATE_HZ, 1000, np.int16), 0.1, frames / RATE_HZ, RATE_HZ)
    assert len(cut) == frames
    assert cut.max() > 400


def test_a_part_is_as_loud_as_the_standard_says_and_a_short_one_as_it_is_with_silence_behind_it():
    clip = as_pcm(noise(0))
    assert measure_part(clip[:8000].astype(np.float32), RATE_HZ) == measure_loudness(clip[:8000], RATE_HZ)
    half = measure_part(clip[: round(LEAST_MEASURED_SEC * RATE_HZ / 2)].astype(np.float32), RATE_HZ)
    whole = measure_part(clip[: round(LEAST_MEASURED_SEC * RATE_HZ)].astype(np.float32), RATE_HZ)
    assert whole - half == pytest.approx(3.01, abs=0.3)
    assert measure_part(np.zeros(100, np.float32), RATE_HZ) == -math.inf


@given(
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=100),
    length_sec=st.floats(0.00001, 5),
    gap_sec=st.floats(0, 3),
    within_sec=st.tuples(st.floats(0, 4.99), st.floats(0, 60)).map(sorted).map(tuple),
)
def test_events_fit_the_scene_and_keep_their_distance(uniforms, length_sec, gap_sec, within_sec):
    length_sec = round(length_sec, 5)
    onsets = draw_onsets(uniforms, length_sec, gap_sec, within_sec, 5.0)
    assert 1 <= len(onsets) <= len(uniforms)
    assert min(onsets) >= 0
    assert max(onsets) <= max(0.0, 5.0 - length_sec) + 1e-9
    assert max(onsets) <= within_sec[1]
    assert min(onsets) >= min(within_sec[0], 5.0 - length_sec) - 1e-5
    steps = np.diff(onsets)
    assert (steps >= length_sec + gap_sec - 1.1e-5).all()


def test_as_many_events_as_there_is_room_for():
    assert draw_onsets([0.5] * 9, 1.0, 0.5, (0.0, 5.0), 5.0) == (0.5, 2.0, 3.5)
    assert draw_onsets([0.5], 1.0, 0.5, (0.0, 5.0), 5.0) == (2.0,)
    assert draw_onsets([0.5, 0.5], 1.5, 0.0, (4.5, 5.0), 5.0) == (3.5,)
    assert draw_onsets([0.25], 1.0, 0.0, (1.0, 2.0), 5.0) == (1.25,)
    assert draw_onsets([0.9, 0.1], 5.0, 0.0, (0.0, 5.0), 5.0) == (0.0,)


def test_parts_lie_at_their_onsets_and_add_up_where_they_meet():
    part = np.array([1, 2, 3], np.float32)
    assert lay_out(part, (0.0, 0.25), 8, 8).tolist() == [1, 2, 4, 2, 3, 0, 0, 0]


@pytest.mark.parametrize("onset", [1.0, 7.0, 1e300, math.inf, math.nan])
def test_what_is_beyond_the_scene_is_not_heard(onset):
    assert not lay_out(np.ones(3, np.float32), (onset,), 8, 8).any()
    assert lay_out(np.ones(3, np.float32), (0.75,), 8, 8).tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert lay_out(np.ones(3, np.float32), (-4.0,), 8, 8).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


@given(
    samples=arrays.arrays(np.int16, st.integers(1, 400)),
    start_sec=st.floats(allow_nan=True),
    length_sec=st.floats(allow_nan=True),
    rate_hz=st.sampled_from([100, 8000, 48_000]),
)
def test_nothing_is_cut_that_is_not_there(samples, start_sec, length_sec, rate_hz):
    cut = cut_active(samples, start_sec, length_sec, rate_hz)
    assert len(cut) <= len(samples)
    assert np.isfinite(cut).all()


@given(samples=arrays.arrays(np.int16, st.integers(1, 400)), rate_hz=st.sampled_from([100, 1000, 8000]))
def test_any_clip_has_an_active_part_within_it_that_holds_its_peak(samples, rate_hz):
    part = find_active(samples, rate_hz)
    assert 0 <= part.start_sec <= part.start_sec + part.length_sec <= len(samples) / rate_hz + 1e-5
    start, end = round(part.start_sec * rate_hz), round((part.start_sec + part.length_sec) * rate_hz)
    frame = max(1, round(0.01 * rate_hz))
    sums = [float(np.square(samples[n : n + frame].astype(float)).sum()) for n in range(0, len(samples), frame)]
    loudest = int(np.argmax(sums)) * frame
    assert not samples.any() or start <= loudest < end


def test_real_tones_and_their_cut_agree_with_what_was_recorded():
    clip = as_pcm(tone(3))
    part = find_active(clip, RATE_HZ)
    cut = cut_active(clip, part.start_sec, part.length_sec, RATE_HZ)
    assert len(cut) == round(part.length_sec * RATE_HZ)
