"""People: voices by formants, without words, whistles and hands."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from sonify.demo.blocks import (
    RATE,
    Sound,
    band,
    burst,
    buzz,
    formants,
    line,
    noise,
    pan,
    phase_of,
    resonances,
    room,
    shape,
    sprinkle,
    times,
    unit,
    wander,
    wide,
)

# The first three formants in Hz of men's vowels. Source: Peterson and Barney 1952, table II.
_VOWELS = (
    (270, 2290, 3010),  # heed
    (530, 1840, 2480),  # head
    (660, 1720, 2410),  # had
    (730, 1090, 2440),  # hod
    (570, 840, 2410),  # hawed
    (300, 870, 2240),  # who'd
    (640, 1190, 2390),  # hud
    (490, 1350, 1690),  # heard
)


@dataclass(frozen=True, slots=True)
class _Syllable:
    """A consonant and a vowel; `melody` is the pitch against the speaker's, `hiss` the consonant's loudness."""

    start_sec: float
    length_sec: float
    melody: float
    stress: float
    hiss: float
    vowel: tuple[int, int, int]


def murmur(rng: Generator, duration_sec: float, pitch_hz: float) -> Sound:
    """Babble with the rhythm, melody and vowels of speech, but no words: about six syllables a second."""
    low = pitch_hz < 160
    tract, second, third, sibilance = (1.03, 1.05, 0.25, 0.5) if low else (1.2, 0.3, 0.63, 0.13)
    syllables = _syllables(rng, duration_sec)

    def track(*points: tuple[float, float]) -> Sound:
        return line(duration_sec, (0, points[0][1]), *points)

    def formant(n: int, onset_hz: float) -> Sound:
        held = [(s, s.start_sec + 0.35 * s.length_sec, s.start_sec + 0.8 * s.length_sec) for s in syllables]
        points = [p for s, a, b in held for p in ((s.start_sec, onset_hz), (a, s.vowel[n]), (b, s.vowel[n]))]
        return tract * track(*points)

    melody = pitch_hz * track(*((s.start_sec + 0.5 * s.length_sec, s.melody) for s in syllables))
    folds = buzz(melody * wander(rng, duration_sec, 30, 0.985, 1.015), 1200)
    peaks = ((formant(0, 300), 65.0, 1.0), (formant(1, 1450), 90.0, second), (formant(2, 2500), 130.0, third))
    vowels = formants(folds + 0.33 * noise(rng, duration_sec), *peaks, (3500 * tract, 300.0, 0.6 * third))
    hiss = unit(shape(noise(rng, duration_sec), resonances((5000, 3000, 1), (2500, 1500, 0.4))))
    voiced, unvoiced = track(*_voicing(syllables)), track(*_hissing(syllables))
    return shape(unit(vowels) * voiced + sibilance * hiss * unvoiced, band(190, 9000, 1))


def _syllables(rng: Generator, duration_sec: float) -> list[_Syllable]:
    """Phrases of three to eight syllables that fall towards their end, with a breath between."""
    syllables, now = [], rng.uniform(0.1, 0.4)
    while now < duration_sec - 1:
        phrase = int(rng.integers(3, 9))
        for n in range(phrase):
            syllable = _Syllable(
                start_sec=now,
                length_sec=rng.uniform(0.1, 0.19),
                melody=1.22 + 0.1 * rng.uniform(-1, 1) - 0.45 * n / phrase,
                stress=rng.uniform(0.5, 1),
                hiss=rng.uniform(0.2, 1) * (rng.random() < 0.35),
                vowel=_VOWELS[rng.integers(len(_VOWELS))],
            )
            syllables.append(syllable)
            now += syllable.length_sec
        now += rng.uniform(0.1, 0.35)
    return syllables


def _voicing(syllables: list[_Syllable]) -> list[tuple[float, float]]:
    points = [(0.0, 0.0)]
    for s in syllables:
        if s.start_sec > points[-1][0] + 0.08:  # a breath: silent until just before the next phrase
            points += [(points[-1][0] + 0.04, 0.0), (s.start_sec - 0.02, 0.0)]
        shares = ((0, 0.22), (0.21, 0.22), (0.35, s.stress), (0.8, 0.8 * s.stress), (0.99, 0.22))
        points += [(s.start_sec + share * s.length_sec, level) for share, level in shares]
    return [*points, (points[-1][0] + 0.04, 0.0)]


def _hissing(syllables: list[_Syllable]) -> list[tuple[float, float]]:
    shares = ((0, 0), (0.17, 1), (0.35, 0))
    return [(s.start_sec + share * s.length_sec, s.hiss * on) for s in syllables for share, on in shares]


def speech_like_babble(rng: Generator, variation: int) -> Sound:
    """One voice in a small room, low or high."""
    return room(rng, murmur(rng, 8, (125, 206)[variation]), 0.3, 0.07)


def crowd_murmuring(rng: Generator, variation: int) -> Sound:
    """Many voices at once: a few renderings, each heard again shifted in time, pitch and place."""
    copies, hall_sec = ((2, 1.0), (3, 1.5))[variation]
    at = np.arange(9 * RATE)
    hall = np.zeros((len(at), 2))
    for pitch_hz in (110, 135, 205, 235):
        voice = murmur(rng, 6, pitch_hz)
        for _ in range(copies):
            speed, start, place = rng.uniform(0.93, 1.09), rng.integers(len(voice)), rng.uniform(-1, 1)
            nearest = (start + speed * at).astype(np.intp) % len(voice)  # the error of not interpolating drowns
            hall += pan(rng.uniform(0.6, 1) * voice[nearest], place)
    return wide(*(room(rng, channel, hall_sec, 0.07) for channel in hall.T))


def applause(rng: Generator, variation: int) -> Sound:
    """Each pair of hands has its own cavity; the far ones merge into a band from 0.6 to 2.6 kHz, a few stand out."""
    far_per_sec, near_per_sec = ((300, 8), (800, 4))[variation]
    far = [burst(rng, 0.03, resonances((hz, 800, 1))) for hz in rng.uniform(900, 2300, 40)]
    near = [burst(rng, 0.02, resonances((hz, 900, 1), (2.5 * hz, 3000, 0.3))) for hz in rng.uniform(900, 2300, 20)]
    rising = line(9, (0, 0.1), (1.0, 1), (6, 0.9), (9, 0.1))

    def side() -> Sound:
        hall = room(rng, unit(sprinkle(rng, 9, far_per_sec, far, 3)), 0.8, 0.2)
        return (shape(hall, band(600, 2600)) + 2.5 * sprinkle(rng, 9, near_per_sec, near, 4)) * rising

    return wide(side(), side())


def whistling(rng: Generator, variation: int) -> Sound:
    """A tune on the lips: an almost pure tone that glides from note to note, with breath in it."""
    tonic_hz, beat_sec = ((1360, 0.42), (1540, 0.5))[variation]
    tune = (0, 4, 7, 4, 5, 2, 0, 7, 9, 7, 5, 4, 2, 0)[: int(6.4 / beat_sec)]
    starts = 0.3 + beat_sec * np.arange(len(tune))
    notes_hz = tonic_hz * 2 ** (np.array(tune) / 12)
    glides = [p for t, hz in zip(starts, notes_hz, strict=True) for p in ((t, hz), (t + 0.7 * beat_sec, hz))]
    tongue = [p for t in starts for p in ((t, 0.2), (t + 0.3 * beat_sec, 1), (t + 0.9 * beat_sec, 0.7))]
    end = starts[-1] + 1.1 * beat_sec
    pitch = line(7, *glides) * (1 + 0.015 * np.sin(2 * np.pi * 6.4 * times(7)))
    breath = unit(formants(noise(rng, 7), (pitch, 300.0, 1)))
    return room(rng, (np.sin(phase_of(pitch)) + 0.18 * breath) * line(7, (0.25, 0), *tongue, (end, 0)), 0.4, 0.1)
