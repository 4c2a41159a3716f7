"""From sound files to what the model hears: windows of one clip's length, at the loudness it was trained on.

S  samples at 16 kHz, N  sounds that are heard one after the other
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from sonify.config import Mix
from sonify.config.models import AST_SAMPLE_RATE_HZ
from sonify.errors import InputError
from sonify.media.audio import UnreadableSound
from sonify.media.clips import CutClip, cut_recording
from sonify.media.mixing import FULL_SCALE, gain_to_target_db, measure_loudness, mix_clips

SAMPLE_RATE_HZ = AST_SAMPLE_RATE_HZ
# The middle of the range that training draws from.
TARGET_LUFS = sum(Mix().lufs) / 2
# BS.1770 measures blocks of 0.4 s.
MIN_CLIP_SECONDS = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one image is made from, float32 with full scale at 1.0: one mixture, or sounds that follow each other."""

    start_sec: float
    parts_NS: np.ndarray


def read_sound(path: Path, clip_seconds: float) -> list[CutClip]:
    """Cut a recording into windows, as the pool cuts it: mono, without DC, a tail under one second left out."""
    assert clip_seconds >= MIN_CLIP_SECONDS, clip_seconds
    try:
        clips = list(cut_recording(path, SAMPLE_RATE_HZ, clip_seconds))
    except UnreadableSound as error:
        raise InputError(f"{path}: expected a recording, found none ({error.reason}: {error.detail})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not any(is_heard(clip) for clip in clips):
        raise InputError(f"{path}: silent: no part of it has a measurable loudness")
    return clips


def is_heard(clip: CutClip) -> bool:
    """Whether a window has a loudness; the pool rejects those that have none."""
    return math.isfinite(measure_loudness(clip.samples, SAMPLE_RATE_HZ))


def make_windows(
    sounds: Sequence[Sequence[CutClip]], gains_db: Sequence[float], target_lufs: float, separate: bool
) -> list[Window]:
    """Bring sounds together, window by window; the n-th windows of all sounds make one.

    Each window of each sound is brought to the target loudness, as each clip is in training, and then gets its sound's
    gain. They are summed under the ceiling of the toolkit's mixing; with `separate` they follow each other, and the
    model hears as many clips for the one image. A sound that has ended, or is silent, has no part in a window, and a
    window in which nothing is heard makes no image.
    """
    if len(sounds) != len(gains_db):
        raise ValueError(f"expected {len(sounds)} gains, found {len(gains_db)}")
    windows: list[Window] = []
    for clips in zip_longest(*sounds):
        heard = [(c, gain_db) for c, gain_db in zip(clips, gains_db, strict=True) if c is not None and is_heard(c)]
        if heard:
            levelled = [(clip.samples, _gain_db(clip, target_lufs) + gain_db) for clip, gain_db in heard]
            groups = [[one] for one in levelled] if separate else [levelled]
            parts_NS = np.stack([_mix(group) for group in groups])
            windows.append(Window(start_sec=heard[0][0].start_sec, parts_NS=parts_NS))
    return windows


def _gain_db(clip: CutClip, target_lufs: float) -> float:
    return gain_to_target_db(measure_loudness(clip.samples, SAMPLE_RATE_HZ), target_lufs, Mix().max_gain_db)


def _mix(levelled: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    samples = [samples for samples, _ in levelled]
    mix = mix_clips(samples, [gain_db for _, gain_db in levelled], Mix().peak_dbfs)
    return mix.samples.astype(np.float32) / FULL_SCALE
