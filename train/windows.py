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
from sonify.media.mixing import FULL_SCALE, MixedSound, measure_loudness, mix_clips
from train.hearing import Level, gains_to_target_db

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
    sounds: Sequence[Sequence[CutClip]],
    gains_db: Sequence[float],
    target_lufs: float,
    separate: bool,
    level: Level = "window",
) -> list[Window]:
    """Bring sounds together, window by window; the n-th windows of all sounds make one.

    Each window of each sound is brought to the target loudness, as each clip is in training, or with the level
    `recording` each sound as a whole, by one gain; then it gets its sound's gain. They are summed under the ceiling of
    the toolkit's mixing; with `separate` they follow each other, and the model hears as many clips for the one image. A
    sound that has ended, or is silent, has no part in a window, and a window in which nothing is heard makes no image.
    """
    if len(sounds) != len(gains_db):
        raise ValueError(f"expected {len(sounds)} gains, found {len(gains_db)}")
    levelled = [_level(clips, level, target_lufs, gain_db) for clips, gain_db in zip(sounds, gains_db, strict=True)]
    starts_sec: list[float] = []
    groups: list[list[list[tuple[np.ndarray, float]]]] = []
    for column in zip_longest(*levelled):
        heard = [(clip, gain_db) for clip, gain_db in filter(None, column) if gain_db is not None]
        if heard:
            starts_sec.append(heard[0][0].start_sec)
            amplified = [(clip.samples, gain_db) for clip, gain_db in heard]
            groups.append([[one] for one in amplified] if separate else [amplified])
    # what the ceiling takes off a recording it takes off all of it
    lowered_db = min((_mix(one).mix_gain_db for group in groups for one in group), default=0.0)
    extra_db = lowered_db if level == "recording" else 0.0
    parts_NS = [np.stack([_as_floats(_mix(one, extra_db)) for one in group]) for group in groups]
    return [Window(start_sec=start, parts_NS=parts) for start, parts in zip(starts_sec, parts_NS, strict=True)]


def _level(
    clips: Sequence[CutClip], level: Level, target_lufs: float, gain_db: float
) -> list[tuple[CutClip, float | None]]:
    """The windows of one sound, each with its gain; None for one in which nothing is heard."""
    to_target = gains_to_target_db([clip.samples / FULL_SCALE for clip in clips], level, target_lufs)
    return [(clip, None if gain is None else gain + gain_db) for clip, gain in zip(clips, to_target, strict=True)]


def _mix(levelled: Sequence[tuple[np.ndarray, float]], extra_db: float = 0.0) -> MixedSound:
    samples = [samples for samples, _ in levelled]
    return mix_clips(samples, [gain_db + extra_db for _, gain_db in levelled], Mix().peak_dbfs)


def _as_floats(mix: MixedSound) -> np.ndarray:
    return mix.samples.astype(np.float32) / FULL_SCALE
