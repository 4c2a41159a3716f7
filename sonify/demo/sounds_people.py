"""People: voices by formants, without words, and hands."""

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
    resonances,
    room,
    shape,
    sprinkle,
    times,
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


def murmur(rng: Generator, duration_sec: float, pitch_hz: float) -> Sound:
    """Babble with the rhythm, melody and vowels of speech, but no words: about five syllables a second."""
    track = _syllables(rng, duration_sec)
    size = 1 if pitch_hz < 160 else 1.17  # a shorter vocal tract has higher formants
    melody = pitch_hz * line(duration_sec, *track["pitch"]) * wander(rng, duration_sec, 30, 0.98, 1.02)
    folds = buzz(melody, 2500)
    source = folds / folds.std() + 0.04 * noise(rng, duration_sec)
    f1, f2, f3 = (size * line(duration_sec, *track[name]) for name in ("f1", "f2", "f3"))
    vowels = formants(source, (f1, 90.0, 1.0), (f2, 120.0, 0.5), (f3, 180.0, 0.25), (3500.0 * size, 300.0, 0.12))
    hiss = shape(noise(rng, duration_sec), resonances((4500, 2500, 1), (2500, 1500, 0.5)))
    return vowels / vowels.std() * line(duration_sec, *track["voice"]) + 0.25 * hiss * line(
        duration_sec, *track["hiss"]
    )


def _syllables(rng: Generator, duration_sec: float) -> dict[str, list[tuple[float, float]]]:
    """Breakpoints of pitch, formants, voice and consonant noise, phrase by phrase."""
    track: dict[str, list[tuple[float, float]]] = {k: [(0, 0)] for k in ("voice", "hiss")}
    track |= {"pitch": [(0, 1.0)], "f1": [(0, 500.0)], "f2": [(0, 1500.0)], "f3": [(0, 2500.0)]}
    now = rng.uniform(0.1, 0.4)
    while now < duration_sec - 1:
        syllables = int(rng.integers(4, 11))
        for n in range(syllables):
            d = rng.uniform(0.13, 0.24)
            accent = rng.uniform(0, 0.25) - 0.25 * n / syllables  # phrases fall towards their end
            f1, f2, f3 = _VOWELS[rng.integers(len(_VOWELS))]
            onset = 0.3 * d
            if rng.random() < 0.5:
                loud = rng.uniform(0.2, 1)
                track["hiss"] += [(now, 0), (now + 0.5 * onset, loud), (now + onset, 0)]
            track["voice"] += [
                (now, 0.1),
                (now + onset, rng.uniform(0.6, 1)),
                (now + 0.8 * d, 0.7),
                (now + d, 0.15),
            ]
            track["pitch"].append((now + 0.5 * d, 1.05 + accent))
            track["f1"] += [(now, 350), (now + onset, f1), (now + 0.8 * d, f1)]
            track["f2"] += [(now, rng.uniform(1000, 1900)), (now + onset, f2), (now + 0.8 * d, f2)]
            track["f3"] += [(now + onset, f3), (now + 0.8 * d, f3)]
            now += d
        track["voice"].append((now + 0.05, 0))
        now += rng.uniform(0.25, 0.7)
        track["voice"].append((now - 0.02, 0))
    return track


def speech_like_babble(rng: Generator, variation: int) -> Sound:
    """One voice in a small room, low or high."""
    return room(rng, murmur(rng, 9, (112, 205)[variation]), 0.35, 0.04)


def crowd_murmuring(rng: Generator, variation: int) -> Sound:
    """Many voices at once: a few renderings, each heard again and again shifted in time, pitch and place."""
    copies, hall_sec = ((3, 0.7), (5, 1.4))[variation]
    at = np.arange(10 * RATE)
    hall = np.zeros((len(at), 2))
    for pitch_hz in (110, 135, 205, 235):
        voice = murmur(rng, 7, pitch_hz)
        for _ in range(copies):
            speed, start, place = rng.uniform(0.93, 1.07), rng.uniform(0, len(voice)), rng.uniform(-1, 1)
            other = np.interp(start + speed * at, np.arange(len(voice)), voice, period=len(voice))
            hall += pan(rng.uniform(0.3, 1) * other, place)
    return wide(*(shape(room(rng, channel, hall_sec, 0.3), band(120, 5000, 1)) for channel in hall.T))


def applause(rng: Generator, variation: int) -> Sound:
    """Each pair of hands has its own cavity, from a dull clap to a bright one; a hall's worth merges."""
    claps_per_sec = (120, 600)[variation]
    hands = [burst(rng, 0.05, resonances((hz, 700, 1), (2.2 * hz, 1500, 0.5))) for hz in rng.uniform(800, 1700, 40)]
    rising = line(9, (0, 0.1), (1.0, 1), (6, 0.9), (9, 0.1))

    def side() -> Sound:
        return room(rng, sprinkle(rng, 9, claps_per_sec, hands, 3) * rising, 0.9, 0.25)

    return wide(side(), side())


def whistling(rng: Generator, variation: int) -> Sound:
    """A tune on the lips: an almost pure tone that glides from note to note, with breath in it."""
    tonic_hz, beat_sec = ((1050, 0.42), (1400, 0.3))[variation]
    steps = np.array([0, 4, 7, 4, 5, 2, 0, 7, 9, 7, 5, 4, 2, 0])
    points, level = [], []
    for n, step in enumerate(steps[: int(6.4 / beat_sec)]):
        start, hz = 0.3 + n * beat_sec, tonic_hz * 2 ** (step / 12)
        points += [(start, hz), (start + 0.8 * beat_sec, hz)]
        level += [(start, 0.25), (start + 0.2 * beat_sec, 1), (start + 0.9 * beat_sec, 0.7)]
    level += [(level[-1][0] + 0.2, 0)]
    pitch = line(7, *points) * (1 + 0.008 * np.sin(2 * np.pi * 5.5 * times(7)))
    breath = formants(noise(rng, 7), (pitch, 150.0, 1))
    tone = np.sin(phase_of_lips := 2 * np.pi * np.cumsum(pitch) / RATE) + 0.05 * np.sin(2 * phase_of_lips)
    return room(rng, (tone + 0.15 * breath) * line(7, (0.25, 0), *level), 0.5, 0.06)
