"""How loud sounds are and how they become one: the measure of a clip, its gain, the sum, and a ceiling that it keeps.

Integrated loudness (BS.1770) and sample peak are both of the 16-bit samples as stored.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyloudnorm

from sonify.config import Prominence
from sonify.rows import Concept

FULL_SCALE = 32768
# Stands for silence, where a number is needed: below the -90.3 dBFS of one 16-bit step.
SILENCE_DBFS = -120.0
# Of the largest sample, as `measure_peak` rounds it.
LOUDEST_DBFS = round(20 * math.log10((FULL_SCALE - 1) / FULL_SCALE), 4)
# What a source's target may be: `mix.lufs` is within -70 and 0, and `mix.prominence` takes at most 40 dB off.
TARGET_LUFS = (-110.0, 0.0)
# The smallest box is not inaudible.
MIN_PROMINENCE_DB = -12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedSound:
    """A mixed scene, (frames,) int16; `mix_gain_db` is what a ceiling took off the whole, or 0.0."""

    samples: np.ndarray
    mix_gain_db: float
    peak_dbfs: float


def measure_loudness(samples: np.ndarray, sample_rate_hz: int) -> float:
    """Return the integrated loudness of (frames,) int16 samples in LUFS, -inf where nothing passes the gate.

    Exact under gain: g dB more give g LU more, as long as no block crosses the gate at -70 LUFS. So a clip is
    measured once and not at each use.

    Raises:
        ValueError: shorter than one gating block of 0.4 s.
    Source: ITU-R BS.1770-5, Annex 1.
    """
    return float(_meter(sample_rate_hz).integrated_loudness(samples / FULL_SCALE))


@lru_cache(maxsize=8)
def _meter(sample_rate_hz: int) -> pyloudnorm.Meter:
    # pyloudnorm's default filters are fitted at 48 kHz: at 16 kHz they read 0.12 LU low on average and 0.16 LU at worst
    # against FFmpeg's ebur128 (measured on 40 recordings); this class, from the standard's analogue prototype, 0.06 LU
    return pyloudnorm.Meter(sample_rate_hz, filter_class="DeMan")


def measure_peak(samples: np.ndarray) -> float:
    """Return the sample peak of int16 samples in dBFS, to 4 decimals; `SILENCE_DBFS` where all are zero."""
    peak = max(int(samples.max()), -int(samples.min()))
    return round(20 * math.log10(peak / FULL_SCALE), 4) if peak else SILENCE_DBFS


def gain_to_target_db(loudness_lufs: float, target_lufs: float, max_gain_db: float | None) -> float:
    """Return the gain that brings a clip to the target, at most `max_gain_db` (None: whatever it takes).

    Rounded to 4 decimals, so that what the tables record is exactly what is applied.

    Raises:
        ValueError: the loudness is not finite: silence has no gain.
    """
    if not math.isfinite(loudness_lufs):
        raise ValueError(f"no gain brings a loudness of {loudness_lufs} LUFS to a target")
    gain_db = target_lufs - loudness_lufs
    return round(gain_db if max_gain_db is None else min(gain_db, max_gain_db), 4) + 0.0  # -0.0 becomes 0.0


def prominence_db(concept: Concept, prominence: Prominence | None) -> float:
    """How far below its target a concept is to be heard: by its box where there is one, else by the model's word.

    Ambience has no place in the image, and one level.
    """
    if prominence is None:
        return 0.0
    if concept.prominence == "ambience":
        return prominence.ambience_db
    if concept.area > 0:
        return max(MIN_PROMINENCE_DB, min(0.0, 10 * math.log10(concept.area / prominence.reference_area)))
    return prominence.background_db if concept.prominence == "background" else 0.0


def mix_clips(clips: Sequence[np.ndarray], gains_db: Sequence[float], peak_dbfs: float | None) -> MixedSound:
    """Sum (frames,) int16 clips, each with its gain; a sum that passes the ceiling is lowered as a whole.

    Without a ceiling no sum is lowered, and samples beyond full scale are cut off there.
    The arithmetic is elementwise in float32 and in the order given, so neither threads nor vector width
    change a sample. No dither: rounding to 16 bits adds noise at -101 dBFS, 69 dB below a mix at -32 LUFS.

    Raises:
        ValueError: the clips differ in length, or in number from the gains, or `peak_dbfs` is below one step.
    """
    total = np.zeros(clips[0].shape, np.float32)
    for clip, gain_db in zip(clips, gains_db, strict=True):
        total += clip * np.float32(10 ** (gain_db / 20))
    mix_gain_db = 0.0 if peak_dbfs is None else _limit_db(float(np.abs(total).max()), peak_dbfs)
    if mix_gain_db:
        total *= np.float32(10 ** (mix_gain_db / 20))
    samples = np.rint(total).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return MixedSound(samples=samples, mix_gain_db=mix_gain_db, peak_dbfs=measure_peak(samples))


def _limit_db(peak: float, peak_dbfs: float) -> float:
    """What brings a peak, in 16-bit steps, below a ceiling; 0.0 where it is."""
    ceiling = min(math.floor(FULL_SCALE * 10 ** (peak_dbfs / 20)), FULL_SCALE - 1)
    if ceiling < 1:
        raise ValueError(f"a ceiling of {peak_dbfs} dBFS leaves no 16-bit sample")
    if np.rint(peak) <= ceiling:
        return 0.0
    # Rounded down: the recorded gain is the applied one, and the ceiling holds.
    return math.floor(20 * math.log10(ceiling / peak) * 10_000) / 10_000


def is_cut_off(mix_gain_db: float, peak_dbfs: float) -> bool:
    """Whether a mix that nothing lowered reaches full scale, beyond which its samples are cut off."""
    return mix_gain_db == 0 and peak_dbfs >= LOUDEST_DBFS


def pcm_sha256(samples: np.ndarray) -> str:
    """Return the SHA-256 of int16 samples as little-endian PCM, which no codec or container changes."""
    return hashlib.sha256(samples.astype("<i2", copy=False).tobytes()).hexdigest()
