import numpy as np
import pytest

from sonify.report.pictures import ANCHORS_RGB, LOWEST_HZ, spectrogram_image
from tests.builders import RATE_HZ, noise, sine

WIDTH, HEIGHT = 480, 96


def lightness(samples: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    picture = spectrogram_image(samples, RATE_HZ, width, height)
    return np.asarray(picture.convert("L"), dtype=np.float64)


def row_of(frequency_hz: float) -> float:
    def mel(hz: float) -> float:
        return 2595 * np.log10(1 + hz / 700)

    share = (mel(frequency_hz) - mel(LOWEST_HZ)) / (mel(RATE_HZ / 2) - mel(LOWEST_HZ))
    return HEIGHT * (1 - share) - 0.5


@pytest.mark.parametrize("frequency_hz", [100.0, 440.0, 1000.0, 3000.0, 7000.0])
def test_a_sine_is_one_bright_row_at_its_frequency(frequency_hz: float) -> None:
    light = lightness(sine(frequency_hz, level=0.3))

    rows = light[:, 10:-10].mean(axis=1)

    assert abs(int(rows.argmax()) - row_of(frequency_hz)) <= 1.5
    far = np.abs(np.arange(HEIGHT) - row_of(frequency_hz)) > 15
    assert rows[far].max() < rows.max() / 4


def test_a_chirp_climbs_from_left_to_right() -> None:
    t = np.arange(5 * RATE_HZ) / RATE_HZ
    light = lightness(np.sin(2 * np.pi * (200 * t + 700 * t**2)))  # 200 Hz to 7,200 Hz

    brightest = light[:, 5:-5].argmax(axis=0)

    assert (np.diff(brightest) <= 0).all()
    columns = np.arange(5, WIDTH - 5)
    expected = np.array([row_of(200 + 1400 * column * 5 / WIDTH) for column in columns])
    assert np.abs(brightest - expected).max() <= 2.5


def test_silence_is_the_darkest_colour_everywhere() -> None:
    picture = np.asarray(spectrogram_image(np.zeros(5 * RATE_HZ, np.float32), RATE_HZ, WIDTH, HEIGHT))

    assert (picture == ANCHORS_RGB[0]).all()


def test_faint_hiss_stays_dark_and_a_quiet_scene_does_not() -> None:
    assert lightness(noise(level=1e-5)).mean() < 40
    assert lightness(noise(level=0.03)).mean() > 120  # about -30 dBFS, where mixes lie


def test_a_click_in_a_long_sound_is_not_lost_between_columns() -> None:
    samples = np.zeros(60 * RATE_HZ, np.float32)
    samples[25 * RATE_HZ + 777] = 0.9

    light = lightness(samples)

    assert abs(int(light.max(axis=0).argmax()) - WIDTH * 25 / 60) <= 2


@pytest.mark.parametrize("num_samples", [0, 1, 100, RATE_HZ])
@pytest.mark.parametrize("size", [(480, 96), (33, 7)])
def test_any_length_fills_the_size_asked_for(num_samples: int, size: tuple[int, int]) -> None:
    picture = spectrogram_image(np.zeros(num_samples), RATE_HZ, *size)

    assert picture.size == size
    assert picture.mode == "RGB"


@pytest.mark.parametrize("sample_rate_hz", [8000, 44100, 48000])
def test_the_top_is_half_the_sample_rate(sample_rate_hz: int) -> None:
    highest = sine(0.48 * sample_rate_hz, 2, sample_rate_hz, level=1.0)

    picture = spectrogram_image(highest, sample_rate_hz, WIDTH, HEIGHT)

    rows = np.asarray(picture.convert("L"), dtype=np.float64).mean(axis=1)
    assert int(rows.argmax()) <= 2


def test_colours_grow_lighter_in_equal_steps() -> None:
    linear = (np.array(ANCHORS_RGB) / 255.0) ** 2.2
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])

    steps = np.diff(np.cbrt(luminance))

    assert (steps > 0).all()
    assert steps.max() < 2 * steps.min()
