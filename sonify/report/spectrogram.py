"""A sound as a picture: frequency upwards on the mel scale, time to the right, level as colour."""

from functools import lru_cache

import numpy as np
from PIL import Image

# Equal steps of OKLab lightness from ink over teal and sand to cream, so that equal steps in dB look equal.
# The dark end is not black: it reads as a screen on a white page and as a panel on a dark one.
ANCHORS_RGB = (
    (6, 13, 28),
    (17, 37, 75),
    (19, 73, 99),
    (5, 109, 119),
    (32, 148, 125),
    (114, 180, 116),
    (208, 201, 98),
    (248, 220, 134),
    (253, 247, 225),
)
LOWEST_HZ = 40.0
WINDOW_SEC = 0.032
RANGE_DB = 70.0
# Blocks that stay in the cache, and below the size for which the allocator asks the system: four times as fast.
WINDOWS_AT_ONCE = 64
# The brightest colour is the sound's loudest point, but never below this: hiss must not look like a storm.
DIMMEST_PEAK_DBFS = -60.0


def spectrogram_image(samples: np.ndarray, sample_rate_hz: int, width: int, height: int) -> Image.Image:
    """Draw mono samples in [-1, 1]; a row of pixels is a mel band, from 40 Hz up to half the sample rate."""
    bands = _band_power(samples.astype(np.float32, copy=False), sample_rate_hz, width, height)
    level_db = 10.0 * np.log10(np.maximum(bands, 1e-20)).T
    top_db = max(float(level_db.max()), DIMMEST_PEAK_DBFS)
    shade = np.clip((level_db - top_db) * (255.0 / RANGE_DB) + 255.0, 0.0, 255.0).astype(np.uint8)
    return Image.fromarray(_colours()[shade[::-1]])


def _band_power(samples: np.ndarray, sample_rate_hz: int, width: int, height: int) -> np.ndarray:
    """Power by column and mel band, lowest first; 1.0 is a sine of full scale in a narrow band.

    A column of a long sound is the loudest of several windows, so that no click falls between two columns.
    """
    window_size = 1 << round(np.log2(WINDOW_SEC * sample_rate_hz))
    windows_in_column = max(1, -(-len(samples) // (width * window_size // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, window_size // 2), window_size)
    starts = np.linspace(0, max(len(samples) - 1, 0), width * windows_in_column).astype(np.int64)
    columns = starts.reshape(width, windows_in_column)
    at_once = max(1, WINDOWS_AT_ONCE // windows_in_column)
    edges = _band_edges(sample_rate_hz, window_size, height)
    blocks = (columns[first : first + at_once] for first in range(0, width, at_once))
    return np.concatenate([_mel_bands(_power(windows[block]), *edges) for block in blocks])


def _power(windows: np.ndarray) -> np.ndarray:
    """Power by column and frequency bin from (columns, windows in each, samples)."""
    spectrum = np.fft.rfft(windows * _hann(windows.shape[-1]))
    return (spectrum.real**2 + spectrum.imag**2).max(axis=1)


@lru_cache(maxsize=4)
def _hann(size: int) -> np.ndarray:
    """A Hann window scaled so that a sine of full scale has the power 1 in its bin."""
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(size) / size)
    return (window * 2.0 / window.sum()).astype(np.float32)


@lru_cache(maxsize=4)
def _band_edges(sample_rate_hz: int, window_size: int, num_bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each mel band begins and ends, lowest first, in bins; bin k spreads from k to k + 1.

    Where bands are narrower than a bin, at low frequencies, they reach one bin to each side, which blends
    neighbours instead of drawing steps.
    """
    edges_mel = np.linspace(_mel(LOWEST_HZ), _mel(sample_rate_hz / 2.0), num_bands + 1)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    edges_bin = edges_hz * window_size / sample_rate_hz + 0.5
    centres = (edges_bin[1:] + edges_bin[:-1]) / 2.0
    reach = np.maximum(np.diff(edges_bin) / 2.0, 1.0)
    num_bins = window_size // 2 + 1
    return np.clip(centres - reach, 0.0, num_bins), np.clip(centres + reach, 0.0, num_bins)


def _mel_bands(power: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mean power between band edges, by column.

    Differences of the running sum over frequency: a product with a matrix of filters wakes a BLAS thread on
    every core for each picture, and doubled the gallery's CPU time.
    """
    running = np.zeros((power.shape[0], power.shape[1] + 2))
    np.cumsum(power, axis=1, dtype=np.float64, out=running[:, 1:-1])
    running[:, -1] = running[:, -2]

    def sum_to(position: np.ndarray) -> np.ndarray:
        below = position.astype(np.int64)
        return running[:, below] + (position - below) * (running[:, below + 1] - running[:, below])

    return ((sum_to(high) - sum_to(low)) / (high - low)).astype(np.float32)


def _mel(frequency_hz: float) -> float:
    return 2595.0 * float(np.log10(1.0 + frequency_hz / 700.0))


@lru_cache(maxsize=1)
def _colours() -> np.ndarray:
    """The anchors interpolated to 256 colours."""
    positions = np.linspace(0.0, len(ANCHORS_RGB) - 1.0, 256)
    anchors = np.array(ANCHORS_RGB, dtype=np.float64)
    channels = [np.interp(positions, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)
