"""Short sounds within their clip: where one is, what is cut out of it, how loud that is, and how it lies in a scene.

A clip's active part reaches from where it first comes near its loudest 10 ms to where it last does, with its attack
before and its decay behind: two barks within a second are one part, and rain, or barks all over the clip, are active
from end to end. The part is recorded in seconds, so a scene's samples follow from its pair and the clips alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sonify.media.mixing import measure_loudness

FRAME_SEC = 0.01
# Of a clip's loudest frame. A recording whose own noise is above the second is active throughout, and stays whole.
# Of the 8 clips of a class of ESC-50, -15/-25, -20/-30 and -20/-40 dB find nearly the same (59, 57 and 49 of 400 within
# two seconds: 7 of cans opening, 6 of knocks and of sneezes, none of rain, engines or church bells).
ATTACK_DB = -20.0
RELEASE_DB = -30.0
# Half a period of 50 Hz: no click at a cut, and no attack is worn off.
FADE_SEC = 0.01
# One gating block of BS.1770: what is shorter is as loud as it is with silence behind it, its momentary loudness.
LEAST_MEASURED_SEC = 0.4
# Recorded times are multiples of this, so that what the tables say is exactly what is cut: finer than a sample.
TIME_DIGITS = 5


@dataclass(frozen=True, slots=True)
class ActivePart:
    """Where a clip is heard, in seconds, and how far its peak is above the RMS of the whole clip."""

    start_sec: float
    length_sec: float
    crest_db: float


def find_active(samples: np.ndarray, sample_rate_hz: int) -> ActivePart:
    """Find the active part of (S,) int16 samples; silence has a part of no length."""
    frame = max(1, round(FRAME_SEC * sample_rate_hz))
    power = np.square(samples.astype(np.float64))
    levels = np.add.reduceat(power, np.arange(0, len(power), frame))
    if not levels.any():
        return ActivePart(0.0, 0.0, 0.0)
    near = np.flatnonzero(levels >= levels.max() * 10 ** (ATTACK_DB / 10))
    quiet = np.flatnonzero(levels < levels.max() * 10 ** (RELEASE_DB / 10))
    before, behind = quiet[quiet < near[0]], quiet[quiet > near[-1]]
    start = (int(before[-1]) + 1) * frame if len(before) else 0
    end = int(behind[0]) * frame if len(behind) else len(samples)
    # the fades lie outside of what is heard
    fade = _fade_frames(sample_rate_hz)
    start, end = max(0, start - fade), min(len(samples), end + fade)
    return ActivePart(
        start_sec=round(start / sample_rate_hz, TIME_DIGITS),
        length_sec=round((end - start) / sample_rate_hz, TIME_DIGITS),
        crest_db=10 * math.log10(power.max() / power.mean()),
    )


def cut_active(samples: np.ndarray, start_sec: float, length_sec: float, sample_rate_hz: int) -> np.ndarray:
    """Cut a part out of (S,) int16 samples, its ends faded: float32, and only what there is of it."""
    start = _position(start_sec, sample_rate_hz, len(samples))
    end = _position(start_sec + length_sec, sample_rate_hz, len(samples))
    part = samples[start:end].astype(np.float32)
    fade = min(_fade_frames(sample_rate_hz), len(part) // 2)
    if fade:
        ramp = (np.arange(fade, dtype=np.float32) + np.float32(0.5)) / np.float32(fade)
        part[:fade] *= ramp
        part[-fade:] *= ramp[::-1]
    return part


def measure_part(part: np.ndarray, sample_rate_hz: int) -> float:
    """Return the integrated loudness of a part that was cut out, in LUFS, -inf where nothing passes the gate."""
    missing = math.ceil(LEAST_MEASURED_SEC * sample_rate_hz) - len(part)
    return measure_loudness(np.pad(part.astype(np.float64), (0, max(0, missing))), sample_rate_hz)


def draw_onsets(
    uniforms: Sequence[float], length_sec: float, gap_sec: float, within_sec: tuple[float, float], scene_sec: float
) -> tuple[float, ...]:
    """Return when a part of `length_sec` begins, as often as there are numbers in [0, 1), or as often as it fits.

    All of it lies in the scene. Beginnings are evenly drawn from all that lie `gap_sec` and the part's length apart.

    Args:
        uniforms: at least one.
        length_sec: at most `scene_sec`.
        gap_sec: silence between two.
        within_sec: when it may begin; a part that would be cut off then begins earlier.
        scene_sec: how long the scene is.
    """
    latest = max(0.0, min(within_sec[1], scene_sec - length_sec))
    earliest = min(within_sec[0], latest)
    step_sec = length_sec + gap_sec
    count = min(len(uniforms), 1 + int((latest - earliest) / step_sec))
    free_sec = latest - earliest - (count - 1) * step_sec
    drawn = (earliest + free_sec * u + n * step_sec for n, u in enumerate(sorted(uniforms[:count])))
    return tuple(math.floor(onset * 10**TIME_DIGITS) / 10**TIME_DIGITS for onset in drawn)


def lay_out(part: np.ndarray, onsets_sec: Sequence[float], frames: int, sample_rate_hz: int) -> np.ndarray:
    """Return a scene of so many frames, float32, in which a part begins at each onset; what is beyond is not heard."""
    scene = np.zeros(frames, np.float32)
    for onset_sec in onsets_sec:
        start = _position(onset_sec, sample_rate_hz, frames)
        heard = part[: frames - start]
        scene[start : start + len(heard)] += heard
    return scene


def _position(seconds: float, sample_rate_hz: int, frames: int) -> int:
    """The frame at a time, within what there is: tables of others may say anything."""
    return round(max(0.0, min(seconds * sample_rate_hz, frames))) if math.isfinite(seconds) else frames


def _fade_frames(sample_rate_hz: int) -> int:
    return round(FADE_SEC * sample_rate_hz)
