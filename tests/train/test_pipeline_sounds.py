"""A sound becomes the clips that `sonify generate` makes of it, whatever it is given as."""

import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
import soxr
import torch

from sonify.config import Mix
from sonify.media.clips import MAX_DOWNMIX_LOSS_DB, CutRules
from tests.builders import RATE_HZ, noise, sine, write_sound
from tests.tiny_networks import tiny_pipeline
from train import hearing as code
from train.hearing import Level, measure_loudness, read_file, resample, to_mono
from train.pipeline import AudioPixArtPipeline
from train.windows import make_windows, read_sound

CLIP_SECONDS = 2.0
STEP = 1 / 32768  # of 16 bits


@pytest.fixture(scope="module")
def pipeline() -> AudioPixArtPipeline:
    return tiny_pipeline(clip_seconds=CLIP_SECONDS)


def db(ratio: float) -> float:
    return float(20 * np.log10(ratio))


def swell(rate_hz: int = RATE_HZ) -> np.ndarray:
    """Two seconds of noise, two that are 20 dB quieter, two that are silent, and two as the first."""
    gains = np.repeat([1.0, 0.1, 0.0, 1.0], 2 * rate_hz)
    return noise(size=8 * rate_hz, level=0.1) * gains


@pytest.mark.parametrize("level", ["window", "recording"])
@pytest.mark.parametrize("loud", [1.0, 0.2, 9.0])
def test_the_clips_are_those_of_the_command(
    level: Level, loud: float, pipeline: AudioPixArtPipeline, tmp_path: Path
) -> None:
    peaks = swell() * loud
    peaks[::4_001] *= 8  # which the ceiling takes off
    path = write_sound(tmp_path / "a.wav", peaks.clip(-1, 1), RATE_HZ)

    clips_WS, windows = pipeline.cut(path, level=level)

    expected = make_windows([read_sound(path, CLIP_SECONDS)], [0.0], -30.0, separate=False, level=level)
    assert clips_WS.dtype == np.float32
    assert windows == [(0, window.start_sec) for window in expected] == [(0, 0.0), (0, 2.0), (0, 6.0)]
    # the DC is summed in another order there
    assert np.abs(clips_WS - np.concatenate([window.parts_NS for window in expected])).max() <= 1.01 * STEP


def test_a_level_of_the_recording_keeps_its_dynamics(pipeline: AudioPixArtPipeline) -> None:
    def loudness(level: Level, **given: Any) -> list[float]:
        clips_WS, _ = pipeline.cut(swell(), RATE_HZ, level, **given)
        return [measure_loudness(clip_S) for clip_S in clips_WS]

    assert loudness("window") == pytest.approx([-30.0] * 3, abs=0.01)
    loud, quiet, last = loudness("recording")
    assert loud - quiet == pytest.approx(20.0, abs=0.1)
    assert last == pytest.approx(loud, abs=0.1)
    # the gate of BS.1770 keeps the quiet third from the whole
    assert loud == pytest.approx(-30.0, abs=0.5)
    assert loudness("recording", target_lufs=-40.0)[0] == pytest.approx(loud - 10, abs=0.05)


def test_the_ceiling_lowers_a_recording_as_a_whole(pipeline: AudioPixArtPipeline) -> None:
    sound = swell()
    sound[1_000] = 0.9  # far above the noise: it would be clipped

    clips_WS, _ = pipeline.cut(sound, RATE_HZ, "recording", target_lufs=-14.0)

    assert db(np.abs(clips_WS).max()) == pytest.approx(Mix().peak_dbfs or 0, abs=0.01)
    first, quiet, last = (measure_loudness(clip_S) for clip_S in clips_WS)
    assert last - quiet == pytest.approx(20.0, abs=0.1)
    assert first - last == pytest.approx(0.0, abs=0.5)  # the peak itself is heard as well


def test_what_a_model_was_trained_on_is_what_it_hears() -> None:
    trained = tiny_pipeline(clip_seconds=CLIP_SECONDS, level="recording", loudness_lufs=(-24.0, -20.0))

    clips_WS, _ = trained.cut(swell(), RATE_HZ)

    assert measure_loudness(clips_WS[0]) == pytest.approx(-22.0, abs=0.5)
    assert measure_loudness(clips_WS[0]) - measure_loudness(clips_WS[1]) == pytest.approx(20.0, abs=0.1)


def test_the_rules_of_a_clip_are_the_pools() -> None:
    mix, rules = Mix(), CutRules()

    assert (mix.max_gain_db, mix.peak_dbfs) == (code.MAX_GAIN_DB, code.PEAK_DBFS)
    assert (rules.min_tail_sec, MAX_DOWNMIX_LOSS_DB) == (code.MIN_TAIL_SEC, code.MAX_DOWNMIX_LOSS_DB)
    assert tiny_pipeline().config["loudness_lufs"] == [*mix.lufs]


def test_a_sound_in_any_form_is_the_same_sound(pipeline: AudioPixArtPipeline, tmp_path: Path) -> None:
    stereo = (
        np.stack([sine(400, seconds=2, sample_rate_hz=44_100), sine(700, seconds=2, sample_rate_hz=44_100)], axis=1) / 4
    )
    soundfile.write(tmp_path / "a.wav", stereo, 44_100, subtype="FLOAT")
    expected_WS, _ = pipeline.cut(tmp_path / "a.wav")

    floats = stereo.astype(np.float32)
    for form in (floats, floats.T, floats.mean(1), torch.from_numpy(floats), torch.from_numpy(floats.T.copy())):
        assert np.abs(pipeline.cut(form, 44_100)[0] - expected_WS).max() <= STEP
    for form in (str(tmp_path / "a.wav"), {"array": floats, "sampling_rate": 44_100, "path": None}):
        assert np.array_equal(pipeline.cut(form)[0], expected_WS)
    whole = np.rint(floats * 32767).astype(np.int16)
    assert np.abs(pipeline.cut(whole, 44_100)[0] - expected_WS).max() <= 3 * STEP
    # the same numbers at another rate are another sound
    assert np.abs(pipeline.cut(floats, 16_000)[0][0] - expected_WS[0]).max() > 0.01


def test_images_follow_recordings_and_their_windows(pipeline: AudioPixArtPipeline, tmp_path: Path) -> None:
    long = np.concatenate([sine(300, seconds=2), sine(900, seconds=2)]) * 0.1
    path = write_sound(tmp_path / "long.wav", long, RATE_HZ)
    given: Any = {"sampling_rate": RATE_HZ, "num_inference_steps": 2, "output_type": "latent"}

    made = pipeline([path, sine(2000, seconds=2)], num_images_per_prompt=2, seeds=range(6), **given)

    assert made.windows == [(0, 0.0), (0, 0.0), (0, 2.0), (0, 2.0), (1, 0.0), (1, 0.0)]
    last = pipeline(sine(2000, seconds=2), seeds=[5], **given)
    assert torch.equal(last.images[0], made.images[5])
    assert last.seeds == [5]


def meter() -> pyloudnorm.Meter:
    return pyloudnorm.Meter(RATE_HZ, filter_class="DeMan")


@pytest.mark.parametrize("num_samples", [6_400, 6_401, 7_999, 80_000, 123_457])
@pytest.mark.parametrize("shape", ["white", "rumble", "burst", "faint"])
def test_loudness_is_pyloudnorms(num_samples: int, shape: str) -> None:
    samples = np.random.default_rng(num_samples).normal(0, 0.05, num_samples)
    if shape == "rumble":
        samples = np.cumsum(samples) / 20
    if shape == "burst":
        samples[num_samples // 4 :] *= 0.003
    if shape == "faint":
        samples *= 10 ** (-48 / 20)  # about the absolute gate

    expected = meter().integrated_loudness(samples)

    assert measure_loudness(samples) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("samples", [np.zeros(80_000), np.full(80_000, 1e-5), np.ones(6_000)])
def test_what_is_silent_or_too_short_has_no_loudness(samples: np.ndarray) -> None:
    assert measure_loudness(samples) == -np.inf


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 12_345])
def test_resampling_is_soxrs_where_both_pass_everything(rate_hz: int) -> None:
    signal = np.random.default_rng(0).normal(0, 0.1, rate_hz // 2)
    spectrum, hertz = np.fft.rfft(signal), np.fft.rfftfreq(len(signal), 1 / rate_hz)
    spectrum[hertz > 0.85 * min(rate_hz, RATE_HZ) / 2] = 0
    passed = np.fft.irfft(spectrum, len(signal)) * np.hanning(len(signal))

    ours, theirs = resample(passed, rate_hz), soxr.resample(passed, rate_hz, RATE_HZ, quality="HQ")

    assert len(ours) == -(-len(signal) * RATE_HZ // rate_hz)
    length = min(len(ours), len(theirs))
    assert db((ours[:length] - theirs[:length]).std() / theirs.std()) < -70  # -77 to -135 seen


@pytest.mark.parametrize("rate_hz", [11_025, 44_100, 96_000, 44_101])
def test_each_sample_is_the_windowed_sinc_of_those_around_it(rate_hz: int) -> None:
    """By the definition, whatever is reckoned together: places of every block, the last among them."""
    signal = np.random.default_rng(0).normal(0, 0.1, rate_hz)
    heard = resample(signal, rate_hz)
    cutoff = min(1.0, RATE_HZ / rate_hz) * code.ROLLOFF
    for n in [1_000, 1_063, 1_064, 7_777, 14_999, *range(3_190, 3_202)]:
        away = np.arange(rate_hz) - n * rate_hz / RATE_HZ
        within = np.sqrt(np.clip(1 - (away * cutoff / code.ZERO_CROSSINGS) ** 2, 0, None))
        window = np.where(within > 0, np.i0(code.KAISER_BETA * within) / np.i0(code.KAISER_BETA), 0)
        assert heard[n] == pytest.approx(signal @ (cutoff * np.sinc(cutoff * away) * window), abs=1e-9)


def test_an_odd_rate_takes_no_longer_than_it_has_to() -> None:
    started = time.process_time()
    resample(np.random.default_rng(0).normal(0, 0.1, 3 * 44_101), 44_101)
    assert time.process_time() - started < 2  # 0.4 s seen, and 2.7 with weights made one after the other


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 48_000, 44_101])
def test_a_tone_stays_what_it_was(rate_hz: int) -> None:
    """By the definition: a sine at one rate is the sine at the other."""
    heard = resample(sine(3_000, seconds=1, sample_rate_hz=rate_hz), rate_hz)

    expected = sine(3_000, seconds=1, sample_rate_hz=RATE_HZ)
    assert np.abs(heard - expected)[1_000:-1_000].max() < 1e-6


@pytest.mark.parametrize("rate_hz", [44_100, 192_000])
def test_what_lies_above_the_new_rate_is_gone(rate_hz: int) -> None:
    tone = sine(9_000, seconds=1, sample_rate_hz=rate_hz)

    assert db(np.abs(resample(tone, rate_hz)[1_000:-1_000]).max()) < -120


@pytest.mark.parametrize(("seconds", "starts"), [(0.5, [0.0]), (2.9, [0.0]), (3.0, [0.0, 2.0])])
def test_a_short_sound_is_padded_and_a_short_tail_left_out(
    seconds: float, starts: list[float], pipeline: AudioPixArtPipeline
) -> None:
    clips_WS, windows = pipeline.cut(sine(seconds=seconds), RATE_HZ)

    assert clips_WS.shape == (len(starts), 32_000)
    assert windows == [(0, start) for start in starts]
    assert not clips_WS[0, round(seconds * RATE_HZ) :].any()


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_whole_numbers_are_within_one(kind: type) -> None:
    tone = sine(400, seconds=1)

    assert np.allclose(to_mono((tone * np.iinfo(kind).max).astype(kind)), tone, atol=1e-4)


def test_two_channels_that_cancel_each_other_are_heard() -> None:
    tone = sine(400, seconds=1)

    assert np.allclose(to_mono(np.stack([tone, -tone])), tone)
    assert np.allclose(to_mono(np.stack([tone, 0 * tone])), tone)
    assert np.allclose(to_mono(np.stack([tone + 0.3, tone / 2])), 0.75 * tone)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
@pytest.mark.parametrize("channels", [1, 2])
def test_without_soundfile_wav_of_whole_numbers_is_read(
    subtype: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(size=(1_001, channels), level=0.3), 22_050, subtype=subtype)
    # a header of before "extensible", which Python reads from 3.12 on
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.index(b"fmt ") + 8, 1)
    path.write_bytes(data)
    expected = read_file(path)
    monkeypatch.setitem(sys.modules, "soundfile", None)

    samples, rate_hz = read_file(path)

    assert rate_hz == expected[1] == 22_050
    assert samples.shape == (1_001, channels)
    assert np.abs(samples - expected[0]).max() < 1e-7


def write_text(path: Path) -> None:
    path.write_text("not a sound")


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (write_text, r"cannot be read as a sound \(.*pass the samples"),
        (Path.touch, r"cannot be read as a sound \(.*pass the samples"),
        (Path.mkdir, "is a folder, no sound"),
        (lambda _path: None, "no such file"),
    ],
)
def test_a_file_that_is_no_sound_is_named(
    make: Callable[[Path], object],
    why: str,
    installed: bool,
    pipeline: AudioPixArtPipeline,
    tmp_path: Path,
    monkeypatch,
) -> None:
    path = tmp_path / "a.wav"
    make(path)
    if not installed:
        monkeypatch.setitem(sys.modules, "soundfile", None)

    with pytest.raises(ValueError, match=why) as error:
        pipeline.cut(path)

    assert str(error.value).startswith(f"{path}: ")
    assert ("install soundfile" in str(error.value)) == ("read as" in why and not installed)


def test_damaged_files_are_a_refusal_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "whole.wav", noise(size=200), 22_050, subtype="PCM_24")
    whole = np.frombuffer((tmp_path / "whole.wav").read_bytes(), np.uint8)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        data = whole.copy()[: random.integers(1, len(whole) + 1)]
        places = random.integers(0, min(60, len(data)), 3)
        data[places] = random.integers(0, 256, 3)
        (tmp_path / "a.wav").write_bytes(data.tobytes())
        try:
            samples, _ = read_file(tmp_path / "a.wav")
            assert np.abs(samples).max(initial=0) <= 1
        except ValueError as error:
            assert "cannot be read as a sound" in str(error)  # noqa: PT017 - most are refused, some are not
            refused += 1
    assert 50 < refused < 500


@pytest.mark.parametrize(
    ("sound", "given", "message"),
    [
        (swell(), {}, "samples without their rate: pass sampling_rate"),
        (torch.zeros(2, 80_000), {}, "recording 0: samples without their rate"),
        (swell(), {"sampling_rate": 10}, "expected a sampling_rate of 1000 to 192000 Hz, found 10"),
        (np.zeros((100, 100, 2)), {"sampling_rate": 16_000}, "several recordings are a list"),
        (np.zeros((100, 100)), {"sampling_rate": 16_000}, "several recordings are a list"),
        (np.zeros(0), {"sampling_rate": 16_000}, "expected samples of one recording"),
        (np.zeros(80_000), {"sampling_rate": 16_000}, "silent"),
        (np.full(80_000, np.nan), {"sampling_rate": 16_000}, "not finite"),
        (np.zeros(80_000, bool), {"sampling_rate": 16_000}, "floats or signed integers, found bool"),
        ("a.wav", {"sampling_rate": 16_000}, "a file says its own"),
        ([], {}, "an empty list"),
        (swell(), {"sampling_rate": 16_000, "level": "clip"}, "expected a level, window or recording"),
        ([0.1, 0.2], {"sampling_rate": 16_000}, "expected samples of one recording"),
        ([swell(), np.zeros(80_000)], {"sampling_rate": 16_000}, "recording 1: silent"),
    ],
)
def test_what_cannot_be_heard_is_refused(sound: Any, given: dict, message: str, pipeline: AudioPixArtPipeline) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(sound, num_inference_steps=1, **given)
