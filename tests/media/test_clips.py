"""From recordings to clips: how many, how long, how loud, and with how much memory."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonify.media.audio import UnreadableSound
from sonify.media.clips import CutClip, cut_recording
from sonify.media.mixing import measure_loudness, measure_peak
from sonify.rows import Reason
from tests.builders import noise, sine, write_sound
from tests.processes import run_python

POOL_HZ = 16_000


def cut(path: Path, sample_rate_hz: int = POOL_HZ, clip_seconds: float = 5.0) -> list[CutClip]:
    return list(cut_recording(path, sample_rate_hz, clip_seconds))


def write(path: Path, samples: np.ndarray, rate_hz: int = POOL_HZ, subtype: str = "PCM_16") -> Path:
    return write_sound(path, samples, rate_hz, subtype=subtype)


def loudness(clip: CutClip) -> float:
    return measure_loudness(clip.samples, POOL_HZ)


@pytest.mark.parametrize("rate_hz", [POOL_HZ, 44_100])
@pytest.mark.parametrize(
    ("seconds", "durations"),
    [
        (34.0, [5.0] * 6 + [4.0]),
        (10.0, [5.0, 5.0]),
        (5.9, [5.0]),
        (6.0, [5.0, 1.0]),
        (0.9, [0.9]),
        (0.1, [0.1]),
    ],
)
def test_clips_do_not_overlap_and_short_tails_are_dropped(
    tmp_path: Path, rate_hz: int, seconds: float, durations: list[float]
) -> None:
    clips = cut(write(tmp_path / "sound.wav", sine(440, seconds, rate_hz), rate_hz))

    assert [clip.duration_sec for clip in clips] == durations
    assert [clip.index for clip in clips] == list(range(len(durations)))
    assert [clip.start_sec for clip in clips] == [5.0 * n for n in range(len(durations))]
    for clip in clips:
        assert (clip.samples.dtype, clip.samples.shape) == (np.int16, (5 * POOL_HZ,))
        assert not clip.samples[round(clip.duration_sec * POOL_HZ) :].any()


def test_a_recording_at_the_pools_rate_keeps_its_samples(tmp_path: Path) -> None:
    half = np.random.default_rng(0).integers(-32767, 32768, 6 * POOL_HZ).astype(np.int16)
    samples = np.concatenate([half, -half])
    samples[:3] = 32767, -32768, 1 - samples[3:].astype(int).sum()
    assert samples.astype(int).sum() == 0

    clips = cut(write(tmp_path / "sound.wav", samples))

    assert np.array_equal(np.concatenate([clip.samples for clip in clips])[: len(samples)], samples)


@pytest.mark.parametrize("seconds", [12.0, 100.0])
def test_clips_of_a_recording_in_memory_are_those_of_its_file(tmp_path: Path, seconds: float) -> None:
    path = write(tmp_path / "sound.flac", np.column_stack([sine(440, seconds, 44_100)] * 2), 44_100)

    in_memory = list(cut_recording(path.read_bytes(), POOL_HZ, 5.0))

    assert len(in_memory) == len(cut(path))
    for ours, theirs in zip(in_memory, cut(path), strict=True):
        assert np.array_equal(ours.samples, theirs.samples)


def test_one_sample_gives_one_clip(tmp_path: Path) -> None:
    (clip,) = cut(write(tmp_path / "sound.wav", np.array([0.5])))

    assert clip.duration_sec == 1 / POOL_HZ


@pytest.mark.parametrize(("samples", "rate_hz"), [([], POOL_HZ), ([0.5], 192_000)])
def test_no_samples_at_the_pools_rate_is_too_short(tmp_path: Path, samples: list[float], rate_hz: int) -> None:
    path = write(tmp_path / "sound.wav", np.array(samples), rate_hz)

    with pytest.raises(UnreadableSound) as caught:
        cut(path)
    assert caught.value.reason is Reason.TOO_SHORT


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
@pytest.mark.parametrize("position", [0, 20 * POOL_HZ - 1])
def test_bad_samples_anywhere_refuse_the_recording_before_its_first_clip(
    tmp_path: Path, bad: float, position: int
) -> None:
    samples = sine(440, 20.0)
    samples[position] = bad
    path = write(tmp_path / "sound.wav", samples, subtype="FLOAT")

    with pytest.raises(UnreadableSound) as caught:
        next(cut_recording(path, POOL_HZ, 5.0))
    assert caught.value.reason is Reason.BAD_SAMPLES


@pytest.mark.parametrize("level", [0.0, 0.185, -1.0])
@pytest.mark.parametrize("rate_hz", [POOL_HZ, 44_100])
def test_silence_and_bare_dc_are_silent(tmp_path: Path, level: float, rate_hz: int) -> None:
    (clip,) = cut(write(tmp_path / "sound.wav", np.full(3 * rate_hz, level), rate_hz))

    assert not clip.samples.any()


def test_dc_is_removed_without_touching_the_sound(tmp_path: Path) -> None:
    (shifted,) = cut(write(tmp_path / "shifted.wav", sine(440, 5.0) + 0.185, subtype="FLOAT"))
    (plain,) = cut(write(tmp_path / "plain.wav", sine(440, 5.0), subtype="FLOAT"))

    assert np.abs(shifted.samples.astype(int) - plain.samples).max() <= 1


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 192_000])
def test_resampling_keeps_pitch_and_level(tmp_path: Path, rate_hz: int) -> None:
    (clip,) = cut(write(tmp_path / "sound.wav", sine(440, 5.0, rate_hz), rate_hz))
    (reference,) = cut(write(tmp_path / "reference.wav", sine(440, 5.0)))

    assert np.abs(np.fft.rfft(clip.samples)).argmax() == 440 * 5
    assert loudness(clip) == pytest.approx(loudness(reference), abs=0.01)


def test_resampling_removes_what_the_pools_rate_cannot_hold(tmp_path: Path) -> None:
    (clip,) = cut(write(tmp_path / "sound.wav", sine(12_000, 5.0, 48_000), 48_000))

    # The onset of the tone has other frequencies in it; past it nothing is left.
    assert np.abs(clip.samples[POOL_HZ : 4 * POOL_HZ]).max() <= 1


def test_antiphase_stereo_keeps_its_loudness(tmp_path: Path) -> None:
    left = noise(0, 5 * POOL_HZ)
    (clip,) = cut(write(tmp_path / "antiphase.wav", np.stack([left, -0.9 * left], axis=1)))
    (reference,) = cut(write(tmp_path / "left.wav", left))

    assert loudness(clip) == pytest.approx(loudness(reference), abs=0.01)


def test_antiphase_is_decided_over_the_whole_recording(tmp_path: Path) -> None:
    left = noise(0, 10 * POOL_HZ)
    right = np.concatenate([left[: 2 * POOL_HZ], -left[2 * POOL_HZ :]])

    clips = cut(write(tmp_path / "sound.wav", np.stack([left, right], axis=1)))

    expected = np.rint(left * 32768).reshape(2, -1)
    for clip, part in zip(clips, expected, strict=True):
        assert np.corrcoef(clip.samples, part)[0, 1] > 0.999


def test_ordinary_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    both = noise(0, (5 * POOL_HZ, 2))

    (clip,) = cut(write(tmp_path / "sound.wav", both))

    mean = both.mean(axis=1)
    assert np.abs(clip.samples - (mean - mean.mean()) * 32768).max() < 2


def test_a_dead_channel_does_not_halve_the_other(tmp_path: Path) -> None:
    right = noise(0, 5 * POOL_HZ)
    (clip,) = cut(write(tmp_path / "dead.wav", np.stack([np.zeros_like(right), right], axis=1)))
    (reference,) = cut(write(tmp_path / "right.wav", right))

    assert np.array_equal(clip.samples, reference.samples)


def test_eight_channels_of_one_sound_are_that_sound(tmp_path: Path) -> None:
    mono = sine(440, 5.0)
    (clip,) = cut(write(tmp_path / "eight.wav", np.repeat(mono[:, None], 8, axis=1)))
    (reference,) = cut(write(tmp_path / "mono.wav", mono))

    assert np.abs(clip.samples.astype(int) - reference.samples).max() <= 1


def test_a_clipped_recording_that_overshoots_is_lowered_not_clipped_again(tmp_path: Path) -> None:
    square = np.sign(sine(500, 5.0, 44_100)) * 0.99997
    (clip,) = cut(write(tmp_path / "square.wav", square, 44_100))

    # Without its upper harmonics a square wave overshoots: one sample touches full scale, few are near it.
    assert measure_peak(clip.samples) == pytest.approx(0.0, abs=0.001)
    assert np.count_nonzero(np.abs(clip.samples.astype(int)) >= 32766) < len(clip.samples) * 0.01


def test_float_samples_above_full_scale_keep_their_shape(tmp_path: Path) -> None:
    (loud,) = cut(write(tmp_path / "loud.wav", sine(440, 5.0) * 40, subtype="FLOAT"))
    (plain,) = cut(write(tmp_path / "plain.wav", sine(440, 5.0), subtype="FLOAT"))

    assert measure_peak(loud.samples) == pytest.approx(0.0, abs=0.001)
    assert np.corrcoef(loud.samples, plain.samples)[0, 1] > 0.999999


def test_the_same_file_gives_the_same_clips_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "sound.flac", noise(0, (12 * 44_100, 2)), 44_100)

    once, again = ([clip.samples.tobytes() for clip in cut(path)] for _ in range(2))

    assert once == again


def test_long_recordings_are_cut_like_short_ones(tmp_path: Path) -> None:
    # 60 s of stereo are more values than are held, so the file is decoded twice.
    seconds = 60
    path = write(tmp_path / "sound.flac", noise(0, (seconds * 48_000, 2)) + 0.01, 48_000)

    clips = cut(path, sample_rate_hz=48_000)

    mono = soundfile.read(path)[0].mean(axis=1)
    joined = np.concatenate([clip.samples for clip in clips])
    assert len(clips) == seconds // 5
    assert np.abs(joined - (mono - mono.mean()) * 32768).max() < 1


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    # A sparse file: 20 minutes of 44.1 kHz stereo, 212 MB as 16 bits and 423 MB as float32.
    data_bytes = 20 * 60 * 44_100 * 4
    fmt = struct.pack("<HHIIHH", 1, 2, 44_100, 44_100 * 4, 4, 16)
    header = b"RIFF" + struct.pack("<I", 36 + data_bytes) + b"WAVEfmt \x10\0\0\0" + fmt
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(header + b"data" + struct.pack("<I", data_bytes))
        file.truncate(44 + data_bytes)
    short = write(tmp_path / "short.wav", np.zeros((10 * 44_100, 2)), 44_100)
    script = """
import sys
from pathlib import Path
from sonify.media.clips import cut_recording
from tests.processes import peak_kib

def count_and_peak(path):
    count = sum(1 for _ in cut_recording(Path(path), 16000, 5.0))
    return count, peak_kib()

print(*count_and_peak(sys.argv[1]), *count_and_peak(sys.argv[2]))
"""

    short_clips, short_kib, long_clips, long_kib = map(int, run_python(script, short, path).stdout.split())
    assert (short_clips, long_clips) == (2, 240)
    assert long_kib - short_kib < 48 * 1024


def test_real_recordings_give_loud_enough_clips(test_data: Path) -> None:
    paths = sorted((test_data / "sounds").glob("*.flac"))[::10]
    assert paths

    for path in paths:
        clips = cut(path)
        assert [clip.duration_sec for clip in clips] == [5.0], path.name
        assert -70 < loudness(clips[0]) < 0, path.name
