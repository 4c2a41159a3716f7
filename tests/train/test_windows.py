"""Windows of sounds: cut as the pool cuts, at the loudness of training, mixed or one after the other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sonify.errors import InputError
from sonify.media.clips import cut_recording
from sonify.media.mixing import FULL_SCALE, measure_loudness
from tests.builders import RATE_HZ, as_pcm, noise, refused, write_sound
from train.hearing import Level
from train.windows import TARGET_LUFS, make_windows, read_sound

CLIP_SECONDS = 2.0


def write_noise(
    path: Path, seconds: float = 2.0, level: float = 0.05, seed: int = 0, rate_hz: int = RATE_HZ, channels: int = 1
) -> Path:
    return write_sound(path, noise(seed, (round(seconds * rate_hz), channels), level), rate_hz)


def loudness(samples_S: np.ndarray) -> float:
    return measure_loudness(as_pcm(samples_S), RATE_HZ)


def test_the_default_loudness_is_the_middle_of_what_training_draws() -> None:
    assert TARGET_LUFS == -30.0


@pytest.mark.parametrize("target_lufs", [-30.0, -34.5])
def test_every_window_is_brought_to_the_target(target_lufs: float, tmp_path: Path) -> None:
    quiet, loud = write_noise(tmp_path / "q.wav", level=0.002), write_noise(tmp_path / "l.wav", level=0.3, seconds=5.0)

    for path, count in ((quiet, 1), (loud, 3)):
        windows = make_windows([read_sound(path, CLIP_SECONDS)], [0.0], target_lufs, separate=False)
        assert [window.start_sec for window in windows] == [0.0, 2.0, 4.0][:count]
        for window in windows:
            assert window.parts_NS.shape == (1, 32_000)
            assert window.parts_NS.dtype == np.float32
            assert loudness(window.parts_NS[0]) == pytest.approx(target_lufs, abs=0.05)


def test_a_gain_changes_the_loudness_by_as_much(tmp_path: Path) -> None:
    sound = read_sound(write_noise(tmp_path / "a.wav"), CLIP_SECONDS)

    levels = [loudness(make_windows([sound], [gain], -30.0, separate=False)[0].parts_NS[0]) for gain in (0.0, -6.0)]

    assert levels[0] - levels[1] == pytest.approx(6.0, abs=0.05)


def test_a_level_of_the_recording_is_one_gain_for_all_windows(tmp_path: Path) -> None:
    samples = noise(size=6 * RATE_HZ, level=0.05) * np.repeat([1.0, 0.1, 0.5], 2 * RATE_HZ)
    sound = read_sound(write_sound(tmp_path / "a.wav", samples), CLIP_SECONDS)

    def levels(target_lufs: float, level: Level) -> list[float]:
        windows = make_windows([sound], [0.0], target_lufs, separate=False, level=level)
        return [loudness(window.parts_NS[0]) for window in windows]

    first, quiet, last = levels(-30.0, "recording")
    assert (first - quiet, first - last) == (pytest.approx(20.0, abs=0.2), pytest.approx(6.0, abs=0.1))
    assert levels(-30.0, "window") == pytest.approx([-30.0] * 3, abs=0.05)
    # the ceiling takes the same off all of them
    first, quiet, last = levels(-5.0, "recording")
    assert (first - quiet, first - last) == (pytest.approx(20.0, abs=0.2), pytest.approx(6.0, abs=0.1))


def test_the_whole_recording_is_brought_to_the_target(tmp_path: Path) -> None:
    samples = noise(size=6 * RATE_HZ, level=0.05) * np.repeat([1.0, 0.1, 0.5], 2 * RATE_HZ)
    sound = read_sound(write_sound(tmp_path / "a.wav", samples), CLIP_SECONDS)

    windows = make_windows([sound], [0.0], -30.0, separate=False, level="recording")

    assert loudness(np.concatenate([window.parts_NS[0] for window in windows])) == pytest.approx(-30.0, abs=0.01)


def test_a_mixture_is_the_sum_of_its_sounds(tmp_path: Path) -> None:
    sounds = [read_sound(write_noise(tmp_path / f"{n}.wav", seed=n), CLIP_SECONDS) for n in range(2)]

    (mixed,) = make_windows(sounds, [0.0, -6.0], -30.0, separate=False)
    (apart,) = make_windows(sounds, [0.0, -6.0], -30.0, separate=True)

    assert mixed.parts_NS.shape == (1, 32_000)
    assert apart.parts_NS.shape == (2, 32_000)
    assert np.abs(mixed.parts_NS[0] - apart.parts_NS.sum(0)).max() <= 1.5 / FULL_SCALE
    assert loudness(apart.parts_NS[0]) - loudness(apart.parts_NS[1]) == pytest.approx(6.0, abs=0.05)


def test_the_mixing_has_the_ceiling_of_the_toolkit(tmp_path: Path) -> None:
    sounds = [read_sound(write_noise(tmp_path / "a.wav"), CLIP_SECONDS)]

    (window,) = make_windows(sounds, [40.0], -30.0, separate=False)

    assert np.abs(window.parts_NS).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)


def test_a_sound_that_has_ended_is_silent(tmp_path: Path) -> None:
    short, long = (write_noise(tmp_path / f"{seconds}.wav", seconds=seconds) for seconds in (2.0, 6.0))
    sounds = [read_sound(path, CLIP_SECONDS) for path in (short, long)]

    windows = make_windows(sounds, [0.0, 0.0], -30.0, separate=True)
    alone = make_windows(sounds[1:], [0.0], -30.0, separate=True)

    assert [window.parts_NS.shape[0] for window in windows] == [2, 1, 1]
    assert np.array_equal(windows[2].parts_NS, alone[2].parts_NS)


def test_a_silent_stretch_makes_no_window(tmp_path: Path) -> None:
    heard = noise(size=2 * RATE_HZ)
    write_sound(tmp_path / "a.wav", np.concatenate([heard, np.zeros(2 * RATE_HZ), heard]))

    windows = make_windows([read_sound(tmp_path / "a.wav", CLIP_SECONDS)], [0.0], -30.0, separate=False)

    assert [window.start_sec for window in windows] == [0.0, 4.0]


def test_a_short_sound_is_padded_and_a_short_tail_is_dropped(tmp_path: Path) -> None:
    (window,) = make_windows(
        [read_sound(write_noise(tmp_path / "s.wav", seconds=0.3), CLIP_SECONDS)], [0.0], -30.0, separate=False
    )
    assert window.parts_NS.shape == (1, 32_000)
    assert not window.parts_NS[0, 4_801:].any()
    assert len(read_sound(write_noise(tmp_path / "t.wav", seconds=4.9), CLIP_SECONDS)) == 2


@pytest.mark.parametrize(
    ("ending", "rate_hz", "channels"), [("wav", 44_100, 2), ("flac", 8_000, 1), ("ogg", 48_000, 2)]
)
def test_any_file_of_the_pool_is_cut_as_the_pool_cuts_it(
    ending: str, rate_hz: int, channels: int, tmp_path: Path
) -> None:
    path = write_noise(tmp_path / f"a.{ending}", seconds=5.0, rate_hz=rate_hz, channels=channels)

    clips = read_sound(path, CLIP_SECONDS)

    in_pool = list(cut_recording(path, RATE_HZ, CLIP_SECONDS))
    assert [clip.start_sec for clip in clips] == [0.0, 2.0, 4.0]
    assert all(np.array_equal(ours.samples, theirs.samples) for ours, theirs in zip(clips, in_pool, strict=True))


def test_real_recordings_are_read(test_data: Path) -> None:
    path = sorted((test_data / "sounds").glob("*.flac"))[0]

    windows = make_windows([read_sound(path, 5.0)], [0.0], -30.0, separate=False)

    assert loudness(windows[0].parts_NS[0]) == pytest.approx(-30.0, abs=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("file,label\na.wav,dog\n"), "unreadable"),
        (lambda path: path.write_bytes(b""), "found none"),
        (lambda path: write_sound(path, np.zeros(0)), "too_short"),
        (lambda path: write_sound(path, np.zeros(RATE_HZ)), "silent"),
        (Path.mkdir, "no such file"),
        (lambda _path: None, "no such file"),
    ],
    ids=["text", "nothing", "no samples", "silence", "folder", "no file"],
)
def test_what_has_no_sound_is_named(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.wav"
    make(path)

    with refused(message) as error:
        read_sound(path, CLIP_SECONDS)

    assert str(path) in str(error.value)


def test_a_name_that_is_too_long_for_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read \\(File name too long\\)"):
        read_sound(tmp_path / ("x" * 300), CLIP_SECONDS)


def test_gains_and_sounds_must_be_as_many(tmp_path: Path) -> None:
    sound = read_sound(write_noise(tmp_path / "a.wav"), CLIP_SECONDS)

    with pytest.raises(ValueError, match="expected 1 gains, found 2"):
        make_windows([sound], [0.0, -6.0], -30.0, separate=False)
