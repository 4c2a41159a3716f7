"""What the synthesised sounds are built of: oscillators, shaped noise, struck modes, grains, a room.

A `Sound` is float64 at `RATE`, shape (samples,) or (samples, 2). Nothing here keeps state: randomness comes from the
generator that is passed in.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

RATE = 44_100

Sound = NDArray[np.float64]
Response = Callable[[Sound], Sound]  # gain at each frequency in Hz
Track = Sound | float  # a value at each sample, or one for all
Event = tuple[float, Sound]  # when, in seconds, and what
Peak = tuple[Track, float, Track]  # a resonance: centre in Hz, bandwidth in Hz, gain

_FRAME = 1024  # 23 ms: resolves formants and still follows a syllable


def times(duration_sec: float) -> Sound:
    """The time of each sample."""
    return np.arange(round(duration_sec * RATE)) / RATE


def noise(rng: Generator, duration_sec: float) -> Sound:
    """White noise of unit power."""
    return rng.standard_normal(round(duration_sec * RATE))


def unit(sound: Sound) -> Sound:
    """Scale to unit power, so that a sum of sounds says how loud each is."""
    return sound / sound.std()


def decay(duration_sec: float, time_constant_sec: float) -> Sound:
    """An exponential decay from 1."""
    return np.exp(-times(duration_sec) / time_constant_sec)


def line(duration_sec: float, *points: tuple[float, float]) -> Sound:
    """Straight lines through (seconds, value), constant outside."""
    at, values = zip(*points, strict=True)
    return np.interp(times(duration_sec), at, values)


def wander(rng: Generator, duration_sec: float, changes_hz: float, low: float, high: float) -> Sound:
    """A smooth random curve between two values, with a new goal `changes_hz` times a second."""
    goals = rng.uniform(low, high, int(duration_sec * changes_hz) + 2)
    position = times(duration_sec) * changes_hz
    index = position.astype(np.intp)
    part = position - index
    return goals[index] + (goals[index + 1] - goals[index]) * part * part * (3 - 2 * part)


def phase_of(frequency_hz: Sound) -> Sound:
    """The phase in radians of an oscillator whose frequency changes."""
    return 2 * np.pi * np.cumsum(frequency_hz) / RATE


def pulse(phase: Sound, sharpness: float) -> Sound:
    """One smooth pulse of height 1 in each cycle, narrower the sharper."""
    return np.exp(sharpness * (np.cos(phase) - 1))


def buzz(frequency_hz: Sound, cutoff_hz: Track) -> Sound:
    """A pulse train of unit power without aliasing: its harmonic at `cutoff_hz` is 1/e of the first.

    exp(k cos x) has the harmonics I_n(k), which fall as exp(-n^2 / 2k).
    """
    k = 0.5 * (cutoff_hz / frequency_hz) ** 2
    pulses = np.exp(np.maximum(k * (np.cos(phase_of(frequency_hz)) - 1), -40))  # below are slow denormals
    return unit(pulses - pulses.mean())


def per_cycle(rng: Generator, phase: Sound, spread: float) -> Sound:
    """A random gain around 1 that changes only between the cycles of an oscillator: no two strokes are alike."""
    cycle = (phase / (2 * np.pi)).astype(np.intp)
    return 1 + spread * rng.standard_normal(cycle[-1] + 1)[cycle]


def shape(sound: Sound, response: Response) -> Sound:
    """Filter without delay: multiply the spectrum by a gain."""
    spectrum = np.fft.rfft(sound)
    spectrum *= response(_bins_hz(len(sound)))
    return np.fft.irfft(spectrum, len(sound))


def _bins_hz(samples: int) -> Sound:
    return np.arange(samples // 2 + 1, dtype=np.float64) * (RATE / samples)


def band(low_hz: float, high_hz: float, order: int = 2) -> Response:
    """A Butterworth band; each edge falls by 6 dB an octave and order."""

    def response(frequency_hz: Sound) -> Sound:
        above = (frequency_hz / low_hz) ** (2 * order)
        below = (frequency_hz / high_hz) ** (2 * order)
        return np.sqrt(above / ((1 + above) * (1 + below)))

    return response


def resonances(*peaks: tuple[float, float, float]) -> Response:
    """Resonances side by side, each (centre in Hz, bandwidth in Hz, gain)."""

    def response(frequency_hz: Sound) -> Sound:
        return sum((_resonance(frequency_hz, *peak) for peak in peaks), np.zeros_like(frequency_hz))

    return response


def formants(sound: Sound, *peaks: Peak) -> Sound:
    """Filter by resonances that move, side by side."""
    hop = _FRAME // 2
    window = np.sqrt(np.hanning(_FRAME + 1)[:-1])  # twice, half-overlapped, they sum to 1
    padded = np.pad(sound, (hop, _FRAME + hop - len(sound) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::hop] * window
    at = np.minimum(np.arange(len(frames)) * hop, len(sound) - 1)
    frequency_hz = _bins_hz(_FRAME)
    gain = np.zeros((len(frames), len(frequency_hz)))
    for centre_hz, width_hz, height in peaks:
        gain += _resonance(frequency_hz, _column(centre_hz, at), width_hz, _column(height, at))
    filtered = np.fft.irfft(np.fft.rfft(frames) * gain) * window
    out = np.zeros((len(frames) + 1) * hop)
    out[:-hop] += filtered[:, :hop].ravel()
    out[hop:] += filtered[:, hop:].ravel()
    return out[hop : hop + len(sound)]


def _resonance(frequency_hz: Sound, centre_hz: Track, width_hz: float, height: Track) -> Sound:
    return height / np.sqrt(1 + ((frequency_hz - centre_hz) / (0.5 * width_hz)) ** 2)


def _column(track: Track, at: NDArray[np.intp]) -> Track:
    return track[at, None] if isinstance(track, np.ndarray) else track


def struck(duration_sec: float, *modes: tuple[float, float, float]) -> Sound:
    """A body that was struck: each mode (frequency in Hz, time constant in seconds, gain) rings and dies away."""
    at = times(duration_sec)
    sound = sum(
        (gain * np.exp(-at / fade) * np.sin(2 * np.pi * hz * at) for hz, fade, gain in modes), np.zeros_like(at)
    )
    return sound * np.minimum(1, at / 0.0005)  # a mallet is not infinitely hard


def burst(rng: Generator, duration_sec: float, response: Response) -> Sound:
    """A knock without pitch: shaped noise that dies away within its duration, peak 1."""
    knock = shape(noise(rng, duration_sec), response) * decay(duration_sec, duration_sec / 5)
    return knock / np.abs(knock).max()


def clicks(rng: Generator, number: int, duration_sec: float, low_hz: float, high_hz: float) -> list[Sound]:
    """Bursts, each with a resonance of its own between the two frequencies."""
    centres = np.exp(rng.uniform(np.log(low_hz), np.log(high_hz), number))
    return [burst(rng, duration_sec, resonances((hz, 0.6 * hz, 1))) for hz in centres]


def bubble(radius_mm: float) -> Sound:
    """The blip of an air bubble in water, rising in pitch as it nears the surface.

    Source: Minnaert's frequency; damping and rise of van den Doel, "Physically based models for liquid sounds", 2005.
    """
    radius_m = radius_mm / 1000
    damping = 0.13 / radius_m + 0.0072 * radius_m**-1.5
    at = times(min(6 / damping, 0.15))
    hz = 3.0 / radius_m * (1 + 0.1 * damping * at / 2)
    return radius_mm**1.5 * np.exp(-damping * at) * np.sin(2 * np.pi * hz * at)


def lay(duration_sec: float, events: Iterable[Event]) -> Sound:
    """Add sounds at their times; what passes the end is cut."""
    out = np.zeros(round(duration_sec * RATE))
    for start_sec, sound in events:
        start = max(0, round(start_sec * RATE))
        piece = sound[: max(0, len(out) - start)]
        out[start : start + len(piece)] += piece
    return out


def sprinkle(
    rng: Generator, duration_sec: float, per_sec: float, grains: Sequence[Sound], spread_db: float = 6
) -> Sound:
    """Grains at independent random times, their levels normally distributed in dB."""
    number = rng.poisson(per_sec * duration_sec)
    starts = rng.uniform(0, duration_sec, number)
    gains = 10 ** (rng.normal(0, spread_db, number) / 20)
    picks = rng.integers(len(grains), size=number)
    return lay(duration_sec, ((t, g * grains[p]) for t, g, p in zip(starts, gains, picks, strict=True)))


def room(rng: Generator, sound: Sound, reverberation_sec: float, wet: float) -> Sound:
    """Add the diffuse tail of a room; `wet` is the tail's energy against the direct sound's.

    The time constant is RT60 / 6.9: 60 dB are ln(1000) = 6.9 in amplitude.
    """
    tail = noise(rng, reverberation_sec) * decay(reverberation_sec, reverberation_sec / 6.9)
    tail = shape(tail, band(150, 5000, 1))
    tail *= np.sqrt(wet / np.sum(tail**2))
    size = _fast_size(len(sound) + len(tail))
    echo = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size), size)
    return sound + echo[: len(sound)]


def _fast_size(at_least: int) -> int:
    step = 11_025  # 3^2 5^2 7^2: no large prime slows the transform
    return -(-at_least // step) * step


def wide(left: Sound, right: Sound) -> Sound:
    """Two independent renderings as a stereo field; a little of each in the other keeps it one place."""
    return np.column_stack([left + 0.4 * right, right + 0.4 * left])


def pan(sound: Sound, position: float) -> Sound:
    """Place a sound between left (-1) and right (1) at constant power."""
    angle = np.pi / 4 * (1 + position)
    return np.column_stack([sound * np.cos(angle), sound * np.sin(angle)])


def finish(rng: Generator, sound: Sound, peak_dbfs: float) -> NDArray[np.float32]:
    """Bring the peak to its level, over the air that every microphone hears, and fade both ends within 20 ms."""
    samples = len(sound)
    ramp = 0.5 - 0.5 * np.cos(np.pi * times(0.02) / 0.02)
    air = np.resize(unit(shape(noise(rng, 1), band(60, 1500, 1))), samples)  # filtered in a ring: repeats without seam
    scaled = (sound / np.abs(sound).max()).T + 0.001 * air  # -60 dB
    scaled[..., : len(ramp)] *= ramp
    scaled[..., -len(ramp) :] *= ramp[::-1]
    return (scaled.T * (10 ** (peak_dbfs / 20) / np.abs(scaled).max())).astype(np.float32)
