"""Animals, by how they make their sound: a source (folds, wings, a file and scraper) and what resonates."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from sonify.demo.blocks import (
    RATE,
    Peak,
    Sound,
    band,
    burst,
    buzz,
    clicks,
    formants,
    lay,
    line,
    noise,
    pan,
    per_cycle,
    phase_of,
    pulse,
    resonances,
    room,
    shape,
    sprinkle,
    times,
    unit,
    wander,
)


def _voice(rng: Generator, pitch_hz: Sound, breath: float, peaks: Sequence[Peak], cutoff_hz: float) -> Sound:
    """Vocal folds and breath through a mouth; `breath` is the noise's share."""
    duration = len(pitch_hz) / RATE
    jitter = 1 + 0.012 * wander(rng, duration, 90, -1, 1)
    folds = buzz(pitch_hz * jitter, cutoff_hz)
    return formants(folds * (1 - breath) + noise(rng, duration) * breath, *peaks)


def cat_purring(rng: Generator, variation: int) -> Sound:
    """The larynx snaps open about 25 times a second, louder breathing in than breathing out."""
    rate_hz, breath_sec, chest_hz = ((25.0, 0.9, 350), (30.0, 0.7, 290))[variation]
    breathing = np.sin(np.pi * times(10) / breath_sec)
    inhaling = breathing > 0
    phase = phase_of(rate_hz * np.where(inhaling, 1.06, 0.96) * wander(rng, 10, 8, 0.96, 1.04))
    opening = pulse(phase, 14) * per_cycle(rng, phase, 0.45)
    rattle = shape(0.45 * unit(opening) + noise(rng, 10) * opening, resonances((chest_hz, 420, 1.0), (900, 800, 0.3)))
    airflow = shape(noise(rng, 10), band(100, 400, 1))
    return (unit(rattle) + 0.08 * unit(airflow)) * np.abs(breathing) ** 0.4 * np.where(inhaling, 1, 0.25)


def cat_meowing(rng: Generator, variation: int) -> Sound:
    """The pitch hardly moves; it is the mouth that opens from [i] to [a] and closes again."""
    base_hz, length_sec, starts = ((740, 0.63, (0.4, 1.9, 3.3, 5.2)), (640, 0.85, (0.3, 2.2, 4.6)))[variation]
    calls = [(t, _meow(rng, base_hz * rng.uniform(0.95, 1.06), length_sec * rng.uniform(0.9, 1.15))) for t in starts]
    return room(rng, lay(7, calls), 0.4, 0.08)


def _meow(rng: Generator, base_hz: float, duration_sec: float) -> Sound:
    d = duration_sec
    pitch = base_hz * line(d, (0, 0.86), (0.25 * d, 1.0), (0.6 * d, 1.03), (d, 0.92))
    opening = line(d, (0, 0), (0.3 * d, 1), (0.7 * d, 0.9), (d, 0.2))
    level = line(d, (0, 0), (0.08 * d, 0.5), (0.35 * d, 1), (0.8 * d, 0.8), (d, 0))
    mouth = [(1000 + 1200 * opening, 200.0, 1.0), (3200.0, 650.0, 0.75 * opening), (5000.0, 1500.0, 0.1)]
    return _voice(rng, pitch, 0.25, mouth, 9000) * level


def dog_barking(rng: Generator, variation: int) -> Sound:
    """Harsh bursts of voice, an arch in pitch and less than a fifth of a second long, in twos and threes."""
    base_hz, length_sec, throat_hz = ((430, 0.18, (800, 1500)), (700, 0.13, (1100, 2100)))[variation]
    barks = []
    for start in np.cumsum(rng.choice([0.4, 0.48, 1.2], size=14, p=[0.4, 0.3, 0.3])):
        bark = _bark(rng, base_hz * rng.uniform(0.93, 1.07), length_sec, throat_hz)
        barks.append((start, rng.uniform(0.7, 1) * bark))
    return room(rng, lay(8, barks), 0.5, 0.1)


def _bark(rng: Generator, base_hz: float, duration_sec: float, throat_hz: tuple[float, float]) -> Sound:
    d = duration_sec
    pitch = base_hz * line(d, (0, 0.7), (0.35 * d, 1.2), (0.6 * d, 1.15), (d, 0.7))
    level = line(d, (0, 0), (0.12 * d, 0.7), (0.4 * d, 1), (0.65 * d, 0.6), (d, 0)) ** 1.5
    jaw = line(d, (0, 0.7), (0.4 * d, 1), (d, 0.7))
    throat = [(throat_hz[0] * jaw, 300.0, 1.0), (throat_hz[1], 400.0, 0.4), (2800.0, 900.0, 0.08)]
    return _voice(rng, pitch, 0.35, throat, 2500) * level


def horse_neighing(rng: Generator, variation: int) -> Sound:
    """A squeal, rough with breath, that falls in pitch and breaks into a tremor of eight a second."""
    top_hz, tremor_hz = ((1550, 8.3), (1400, 7.4))[variation]
    calls = [(0.4, _neigh(rng, top_hz, tremor_hz)), (3.6, _neigh(rng, 0.93 * top_hz, tremor_hz))]
    return room(rng, lay(6.5, calls), 0.7, 0.12)


def _neigh(rng: Generator, top_hz: float, tremor_hz: float) -> Sound:
    d = 2.0
    shaking = np.sin(phase_of(tremor_hz * wander(rng, d, 4, 0.85, 1.15)))
    depth = line(d, (0, 0.01), (0.3, 0.015), (0.9, 0.05), (d, 0.075))
    rough = wander(rng, d, 200, -1, 1)
    falling = line(d, (0, 0.6), (0.2, 1), (0.6 * d, 0.85), (d, 0.64))
    pitch = top_hz * falling * (1 + depth * shaking) * (1 + 0.01 * rough)
    level = line(d, (0, 0), (0.1, 0.7), (0.4, 1), (0.7 * d, 0.7), (d, 0)) * (1 + 0.9 * wander(rng, d, 150, -1, 1))
    breaking = 1 - line(d, (0, 0.1), (0.5, 0.4), (d, 1)) * (0.5 - 0.5 * shaking)
    octave_below = 1 + 0.3 * np.sin(0.5 * phase_of(pitch))
    nose = [(1390.0, 900.0, 1.0), (2600.0, 1000.0, 0.7), (4100.0, 1200.0, 0.3)]
    return _voice(rng, pitch, 0.45, nose, 5000) * octave_below * level * breaking


def horse_hooves(rng: Generator, variation: int) -> Sound:
    """On a road, a canter's three beats and a late fourth, or a trot's even clip-clop."""
    beats, hoof_sec, hoof = (
        ((0, 0.2, 0.33, 0.62), 0.08, resonances((1010, 150, 1.0), (4000, 4000, 0.04))),
        ((0, 0.5), 0.14, resonances((1200, 170, 0.7), (1070, 220, 1.0), (2500, 2500, 0.04))),
    )[variation]
    stride_sec = 0.72
    steps = []
    for start in [stride + beat * stride_sec for stride in np.arange(0.2, 7.8, stride_sec) for beat in beats]:
        steps.append((start + rng.normal(0, 0.015), rng.uniform(0.6, 1) * burst(rng, hoof_sec, hoof)))
    grit = sprinkle(rng, 8, 60, clicks(rng, 12, 0.01, 800, 5000), 8)
    return room(rng, lay(8, steps) + 0.06 * grit, 0.3, 0.03)


def rooster_crowing(rng: Generator, variation: int) -> Sound:
    """Three hoarse notes and a long clear one that sinks at its end: cock-a-doodle-doo."""
    base_hz, long_sec = ((930, 1.05), (820, 1.3))[variation]
    notes = ((0, 0.14, 0.85, 0.6), (0.24, 0.16, 1.0, 0.6), (0.46, 0.4, 1.05, 0.6), (0.9, long_sec, 1.1, 0.2))
    crows = [(s + t, _crow(rng, base_hz * up, d, breath)) for s in (0.4, 3.9) for t, d, up, breath in notes]
    return room(rng, lay(7, crows), 0.5, 0.06)


def _crow(rng: Generator, base_hz: float, duration_sec: float, breath: float) -> Sound:
    d = duration_sec
    pitch = base_hz * line(d, (0, 0.9), (0.08, 1), (0.7 * d, 0.98), (d, 0.82)) * (1 + 0.01 * wander(rng, d, 60, -1, 1))
    level = line(d, (0, 0), (0.03, 1), (0.8 * d, 0.9), (d, 0)) * (1 + 0.8 * breath * wander(rng, d, 150, -1, 1))
    throat = [(1550.0, 230.0, 1.0), (3500.0, 700.0, 0.12), (6200.0, 1500.0, 0.1)]
    return _voice(rng, pitch, breath, throat, 5000) * level


def birds_chirping(rng: Generator, variation: int) -> Sound:
    """A few singers, each with a motif of its own that it repeats from its own branch."""
    low_hz, singers = ((2600, 3), (3800, 5))[variation]
    songs = np.zeros((len(times(10)), 2))
    for branch in np.linspace(-0.8, 0.8, singers):
        motif = [_chirp(rng, low_hz) for _ in range(rng.integers(2, 6))]
        starts = np.cumsum(rng.uniform(1.2, 2.6, 8)) - rng.uniform(0, 1.2)
        notes = [(s + 0.16 * n, note) for s in starts for n, note in enumerate(motif)]
        songs += pan(rng.uniform(0.3, 1) * lay(10, notes), branch)
    return songs + pan(0.004 * shape(noise(rng, 10), band(200, 3000, 1)), 0)


def _chirp(rng: Generator, low_hz: float) -> Sound:
    d = rng.uniform(0.05, 0.14)
    ends = low_hz * rng.uniform(1, 2, 3)
    sweep = line(d, (0, ends[0]), (0.5 * d, ends[1]), (d, ends[2]))
    trill = 1 + 0.04 * np.sin(2 * np.pi * rng.choice([0, 45, 90]) * times(d))
    return np.sin(phase_of(sweep * trill)) * np.sin(np.pi * times(d) / d) ** 1.2


def crickets(rng: Generator, variation: int) -> Sound:
    """A scraper over a file: a chirp is a few pulses of a nearly pure tone; some sing almost together."""
    carrier_hz, chirps_per_sec, pulses = ((4400, 2.3, 3), (4700, 3.3, 2))[variation]
    field = 0.005 * shape(noise(rng, 10), band(3000, 7000))
    for distance, detune in ((1.0, 1.0), (0.4, 1.06), (0.15, 0.93)):
        scrape = _stridulation(carrier_hz * detune)
        starts = rng.uniform(0, 0.3) + np.arange(0, 10, 1 / (chirps_per_sec * detune))
        field += distance * lay(10, [(s + 0.035 * n, (0.5 + 0.2 * n) * scrape) for s in starts for n in range(pulses)])
    return field


def _stridulation(tone_hz: float) -> Sound:
    at = times(0.012)
    return np.sin(2 * np.pi * tone_hz * (1 - 0.6 * at) * at) * np.sin(np.pi * at / 0.012)


def owl_hooting(rng: Generator, variation: int) -> Sound:
    """A low, almost pure voice that swells and dies: five hoots, or a deep pair."""
    pitch_hz, hoots = (
        (400, ((0, 0.4), (0.65, 0.3), (1.15, 0.3), (1.8, 0.4), (2.6, 0.4))),
        (310, ((0, 0.45), (0.8, 0.45))),
    )[variation]
    calls = [(s + t, _hoot(rng, pitch_hz, d)) for s in (0.4, 4.6) for t, d in hoots]
    return lay(9, calls) + 0.015 * shape(noise(rng, 9), band(100, 2500, 1))


def _hoot(rng: Generator, pitch_hz: float, duration_sec: float) -> Sound:
    d = duration_sec
    pitch = pitch_hz * line(d, (0, 0.72), (0.25 * d, 1.0), (0.8 * d, 1.0), (d, 0.86)) * wander(rng, d, 8, 0.99, 1.01)
    breath = unit(shape(noise(rng, d), resonances((pitch_hz, 200, 1))))
    phase = phase_of(pitch)
    return (np.sin(phase) + 0.22 * np.sin(2 * phase) + 0.25 * breath) * np.sin(np.pi * times(d) / d) ** 1.4


def frogs_croaking(rng: Generator, variation: int) -> Sound:
    """A croak is a train of pulses, each ringing in the throat sac; the pond has a few of them."""
    throat_hz, pulses_per_sec, length_sec = ((950, 42, 0.4), (1700, 65, 0.22))[variation]
    pond = 0.003 * shape(noise(rng, 8), band(200, 4000, 1))
    for distance, size in ((1.0, 1.0), (0.5, 1.15), (0.35, 0.87)):
        starts = rng.uniform(0.1, 0.9) + np.arange(14) * length_sec * 2.4 * rng.uniform(0.85, 1.15)
        croaks = [(s, _croak(rng, throat_hz * size, pulses_per_sec, length_sec)) for s in starts if s < 7.4]
        pond += distance * lay(8, croaks)
    return room(rng, pond, 0.5, 0.1)


def _croak(rng: Generator, throat_hz: float, pulses_per_sec: float, length_sec: float) -> Sound:
    d = length_sec
    rate = pulses_per_sec * line(d, (0, 0.85), (d, 1.15)) * wander(rng, d, 20, 0.97, 1.03)
    sac = [(throat_hz * line(d, (0, 0.8), (0.6 * d, 1.05), (d, 1)), 200.0, 1.0), (2.1 * throat_hz, 350.0, 0.4)]
    croak = shape(formants(buzz(rate, 5000), *sac), band(0.6 * throat_hz, 6000, 3))
    return unit(croak) * line(d, (0, 0), (0.15 * d, 0.6), (0.7 * d, 1), (d, 0))


def bees_buzzing(rng: Generator, variation: int) -> Sound:
    """Wings at about 240 beats a second in rushing air; each bee comes near, bends its pitch and leaves."""
    wing_hz, bees = ((240, 3), (200, 5))[variation]
    swarm = np.zeros((len(times(8)), 2))
    for _ in range(bees):
        near = wander(rng, 8, 2.2, 0.03, 1) ** 2.6
        unsteady = wander(rng, 8, 1.5, 0.92, 1.08) * wander(rng, 8, 40, 0.96, 1.04)
        wings = buzz(wing_hz * rng.uniform(0.85, 1.15) * unsteady, 1550 + 1550 * near)
        swarm += pan(wings * wander(rng, 8, 150, 0.65, 1.35) * near, rng.uniform(-0.8, 0.8))
    body = resonances((470, 500, 1), (2350, 900, 0.7), (3000, 2000, 0.25))
    return np.column_stack([shape(unit(channel) + 0.45 * noise(rng, 8), body) for channel in swarm.T])
