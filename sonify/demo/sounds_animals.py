"""Animals, by how they make their sound: a source (folds, wings, a file and scraper) and what resonates."""

import numpy as np
from numpy.random import Generator

from sonify.demo.blocks import (
    RATE,
    Sound,
    Track,
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
    resonances,
    room,
    shape,
    sprinkle,
    times,
    wander,
)


def _voice(
    rng: Generator,
    pitch_hz: Sound,
    breath: Track,
    peaks: list[tuple[Track, float, Track]],
    cutoff_hz: float = 4000,
) -> Sound:
    """Vocal folds and breath through a mouth; `breath` is the noise's share."""
    duration = len(pitch_hz) / RATE
    jitter = 1 + 0.012 * wander(rng, duration, 90, -1, 1)
    folds = buzz(pitch_hz * jitter, cutoff_hz) * (1 - breath)
    return formants(folds + noise(rng, duration) * breath, *peaks)


def cat_purring(rng: Generator, variation: int) -> Sound:
    """The larynx opens about 25 times a second, breathing in and out; the turn of the breath is a short gap."""
    rate_hz, breath_sec = ((24.0, 1.5), (28.0, 1.1))[variation]
    breathing = np.sin(np.pi * times(10) / breath_sec)
    inhaling = breathing > 0
    phase = phase_of(rate_hz * np.where(inhaling, 1.06, 0.96) * wander(rng, 10, 8, 0.94, 1.06))
    opening = np.exp(2.5 * (np.cos(phase) - 1)) * per_cycle(rng, phase, 0.25)
    rattle = shape(noise(rng, 10), resonances((90, 120, 1.0), (240, 200, 0.8), (650, 500, 0.35), (1800, 1500, 0.08)))
    airflow = shape(noise(rng, 10), band(400, 3000, 1))
    strength = np.abs(breathing) ** 0.4 * np.where(inhaling, 1, 0.65)
    return (rattle / rattle.std() * (0.1 + opening) + 0.02 * airflow) * strength


def cat_meowing(rng: Generator, variation: int) -> Sound:
    """Pitch rises and falls while the mouth opens from [i] to [a] and closes to [u]."""
    base_hz, starts = ((520, (0.4, 2.5, 4.9)), (700, (0.3, 1.7, 3.2, 5.0)))[variation]
    calls = [(start, _meow(rng, base_hz * rng.uniform(0.92, 1.08), rng.uniform(0.7, 1.0))) for start in starts]
    return room(rng, lay(7, calls), 0.4, 0.05)


def _meow(rng: Generator, base_hz: float, duration_sec: float) -> Sound:
    d = duration_sec
    pitch = base_hz * line(d, (0, 0.85), (0.25 * d, 1.25), (0.6 * d, 1.15), (d, 0.75))
    opening = line(d, (0, 0), (0.35 * d, 1), (0.65 * d, 0.8), (d, 0.1))
    level = line(d, (0, 0), (0.08 * d, 0.5), (0.35 * d, 1), (0.7 * d, 0.7), (d, 0))
    mouth = [
        (600 + 900 * opening, 300.0, 1.0),
        (2600 - 900 * opening, 400.0, 0.35 + 0.4 * opening),
        (4200.0, 900.0, 0.12),
    ]
    return _voice(rng, pitch, 0.06, mouth, 5000) * level


def dog_barking(rng: Generator, variation: int) -> Sound:
    """A burst of harsh voice of 0.2 s, falling in pitch; barks come in twos and threes."""
    base_hz, size = ((420, 1.0), (800, 1.55))[variation]
    starts = np.cumsum(rng.choice([0.42, 0.48, 1.3], size=13, p=[0.4, 0.3, 0.3]))
    barks = [(t, _bark(rng, base_hz * rng.uniform(0.94, 1.06), size)) for t in starts if t < 7.3]
    return room(rng, lay(8, barks), 0.6, 0.08)


def _bark(rng: Generator, base_hz: float, size: float) -> Sound:
    d = 0.22
    pitch = base_hz * line(d, (0, 0.75), (0.05, 1.3), (0.12, 1.1), (d, 0.6))
    level = line(d, (0, 0), (0.015, 0.8), (0.06, 1), (0.12, 0.6), (d, 0))
    mouth = [
        (size * line(d, (0, 500), (0.06, 950), (d, 550)), 250.0, 1.0),
        (size * line(d, (0, 1200), (0.06, 1750), (d, 1200)), 400.0, 0.6),
        (size * 3000.0, 1000.0, 0.15),
    ]
    return _voice(rng, pitch, line(d, (0, 0.5), (0.05, 0.25), (d, 0.5)), mouth) * level


def horse_neighing(rng: Generator, variation: int) -> Sound:
    """A squeal that descends with a tremor of about ten a second, then a snort with fluttering lips."""
    top_hz, tremor_hz = ((1250, 9.0), (1000, 11.0))[variation]
    calls = [(0.4, _neigh(rng, top_hz, tremor_hz)), (2.7, _snort(rng))]
    calls += [(4.4, _neigh(rng, 0.93 * top_hz, tremor_hz)), (6.8, _snort(rng))]
    return room(rng, lay(8, calls), 0.7, 0.1)


def _neigh(rng: Generator, top_hz: float, tremor_hz: float) -> Sound:
    d = 2.1
    depth = line(d, (0, 0), (0.3, 0.04), (0.9, 0.12), (d, 0.2))
    tremor = np.sin(phase_of(tremor_hz * wander(rng, d, 4, 0.9, 1.1)))
    pitch = top_hz * line(d, (0, 0.55), (0.25, 1), (0.8, 0.85), (d, 0.35)) * (1 + depth * tremor)
    level = line(d, (0, 0), (0.1, 0.7), (0.4, 1), (1.5, 0.7), (d, 0)) * (1 - 2.5 * depth * (0.5 - 0.5 * tremor))
    mouth = [(1100.0, 700.0, 1.0), (2400.0, 900.0, 0.7), (3900.0, 1200.0, 0.3)]
    return _voice(rng, pitch, 0.12, mouth, 5000) * level


def _snort(rng: Generator) -> Sound:
    flutter = 1 + 0.6 * np.sin(phase_of(22 * wander(rng, 0.9, 10, 0.8, 1.2)))
    breath = shape(noise(rng, 0.9), resonances((450, 500, 1), (1500, 1500, 0.5), (3500, 3000, 0.2)))
    return 0.4 * breath / breath.std() * flutter * line(0.9, (0, 0), (0.2, 1), (0.9, 0))


def horse_galloping(rng: Generator, variation: int) -> Sound:
    """Four beats and a moment in the air on turf; on stones a trot's even clip-clop."""
    if variation == 0:
        beats_sec, stride_sec, ground = (
            (0, 0.1, 0.19, 0.3),
            0.52,
            ((90, 90, 1.0), (200, 200, 0.5), (700, 900, 0.12)),
        )
    else:
        beats_sec, stride_sec, ground = (
            (0, 0.32),
            0.64,
            ((620, 160, 0.8), (1050, 220, 1.0), (2300, 1200, 0.25)),
        )
    hooves = []
    for stride in np.arange(0.2, 8.6, stride_sec):
        for beat in beats_sec:
            pitch = rng.uniform(0.88, 1.12)
            hoof = burst(rng, (0.16, 0.07)[variation], resonances(*((hz * pitch, w, g) for hz, w, g in ground)))
            hooves.append((stride + beat + rng.normal(0, 0.012), rng.uniform(0.6, 1) * hoof))
    grit = sprinkle(rng, 9, 60, clicks(rng, 12, 0.01, 800, 5000), 8)
    return room(rng, lay(9, hooves) + 0.02 * grit, 0.3, 0.06)


def birds_chirping(rng: Generator, variation: int) -> Sound:
    """A few singers, each with a motif of its own that it repeats from its own branch."""
    low_hz, singers = ((2600, 3), (3800, 5))[variation]
    songs = []
    for branch in np.linspace(-0.8, 0.8, singers):
        motif = [_chirp(rng, low_hz) for _ in range(rng.integers(2, 6))]
        starts = rng.uniform(0, 2) + np.cumsum(rng.uniform(1.2, 2.6, 8))
        notes = [(s + 0.16 * n, note) for s in starts for n, note in enumerate(motif)]
        songs.append(pan(rng.uniform(0.3, 1) * lay(10, notes), branch))
    air = pan(0.004 * shape(noise(rng, 10), band(200, 3000, 1)), 0)
    return sum(songs) + air


def _chirp(rng: Generator, low_hz: float) -> Sound:
    d = rng.uniform(0.05, 0.14)
    ends = low_hz * rng.uniform(1, 2, 3)
    sweep = line(d, (0, ends[0]), (0.5 * d, ends[1]), (d, ends[2]))
    trill = 1 + 0.04 * np.sin(2 * np.pi * rng.choice([0, 45, 90]) * times(d))
    return np.sin(phase_of(sweep * trill)) * np.sin(np.pi * times(d) / d) ** 1.2


def crickets(rng: Generator, variation: int) -> Sound:
    """A scraper over a file: a chirp is three or four pulses of a nearly pure tone; two sing almost together."""
    carrier_hz, chirps_per_sec = ((4300, 2.4), (4900, 3.5))[variation]
    field = 0.01 * shape(noise(rng, 10), band(3000, 7000))
    for distance, detune in ((1.0, 1.0), (0.4, 1.06), (0.25, 0.93)):
        starts = rng.uniform(0, 0.3) + np.arange(0, 10, 1 / (chirps_per_sec * detune))
        tone = carrier_hz * detune
        pulses = [(s + 0.03 * n, (0.5 + 0.2 * n) * _stridulation(tone)) for s in starts for n in range(3)]
        field += distance * lay(10, pulses)
    return field


def _stridulation(tone_hz: float) -> Sound:
    at = times(0.022)
    return np.sin(2 * np.pi * tone_hz * (1 - 0.6 * at) * at) * np.sin(np.pi * at / 0.022)


def owl_hooting(rng: Generator, variation: int) -> Sound:
    """A low, almost pure voice; a tawny owl's long quaver, or a great horned owl's five hoots."""
    pitch_hz, hoots = (
        (780, ((0.3, 0.7), (3.0, 0.18), (3.5, 1.3))),
        (330, ((0.4, 0.4), (0.95, 0.16), (1.2, 0.3), (1.9, 0.45), (2.8, 0.45))),
    )[variation]
    calls = [(start + repeat, _hoot(rng, pitch_hz, d, variation == 0)) for repeat in (0, 5.3) for start, d in hoots]
    night = 0.004 * shape(noise(rng, 10.5), band(100, 1500, 1))
    return room(rng, lay(10.5, calls), 1.2, 0.25) + night


def _hoot(rng: Generator, pitch_hz: float, duration_sec: float, quaver: bool) -> Sound:
    d = duration_sec
    pitch = pitch_hz * line(d, (0, 0.93), (0.25 * d, 1.0), (0.8 * d, 1.0), (d, 0.95)) * wander(rng, d, 8, 0.995, 1.005)
    tremble = 1 - 0.5 * (quaver and d > 1) * (0.5 + 0.5 * np.sin(2 * np.pi * 13 * times(d)))
    tone = np.sin(phase_of(pitch)) + 0.12 * np.sin(2 * phase_of(pitch)) + 0.04 * np.sin(3 * phase_of(pitch))
    breath = 0.03 * shape(noise(rng, d), resonances((pitch_hz, 200, 1)))
    return (tone + breath) * np.sin(np.pi * times(d) / d) ** 0.6 * tremble


def frogs_croaking(rng: Generator, variation: int) -> Sound:
    """A croak is a train of pulses, each ringing in the throat sac."""
    throat_hz, pulses_per_sec, length_sec = ((950, 42, 0.4), (1700, 65, 0.22))[variation]
    pond = 0.003 * shape(noise(rng, 9), band(200, 4000, 1))
    for distance, size in ((1.0, 1.0), (0.5, 1.15), (0.35, 0.87)):
        starts = rng.uniform(0.1, 0.6) + np.cumsum(rng.uniform(0.7, 1.3, 14) * length_sec * 2.4)
        croaks = [(s, _croak(rng, throat_hz * size, pulses_per_sec, length_sec)) for s in starts if s < 8.4]
        pond += distance * lay(9, croaks)
    return room(rng, pond, 0.5, 0.1)


def _croak(rng: Generator, throat_hz: float, pulses_per_sec: float, length_sec: float) -> Sound:
    d = length_sec
    rate = pulses_per_sec * line(d, (0, 0.85), (d, 1.15)) * wander(rng, d, 20, 0.97, 1.03)
    sac = [
        (throat_hz * line(d, (0, 0.8), (0.6 * d, 1.05), (d, 1)), 200.0, 1.0),
        (2.1 * throat_hz, 350.0, 0.4),
    ]
    croak = shape(formants(buzz(rate, 5000), *sac), band(0.6 * throat_hz, 6000, 3))
    return croak / croak.std() * line(d, (0, 0), (0.15 * d, 0.6), (0.7 * d, 1), (d, 0))


def bees_buzzing(rng: Generator, variation: int) -> Sound:
    """Wings at about 230 beats a second; each bee comes near, bends its pitch and leaves."""
    wing_hz, bees = ((235, 4), (190, 6))[variation]
    swarm = np.zeros((len(times(9)), 2))
    for _ in range(bees):
        near = wander(rng, 9, 0.8, 0.03, 1) ** 2
        unsteady = wander(rng, 9, 1.5, 0.88, 1.12) * wander(rng, 9, 40, 0.98, 1.02)
        wings = buzz(wing_hz * rng.uniform(0.85, 1.15) * unsteady, 1500 + 1500 * near)
        rough = wings * wander(rng, 9, 120, 0.5, 1.5) * near
        swarm += pan(rough, rng.uniform(-0.8, 0.8))
    body = resonances((350, 500, 1), (1300, 900, 0.5), (3000, 2000, 0.25))
    return np.column_stack([shape(channel, body) for channel in swarm.T])


def rooster_crowing(rng: Generator, variation: int) -> Sound:
    """Four notes, the last long, risen and falling: cock-a-doodle-doo."""
    base_hz = (620, 760)[variation]
    crow = [(0.0, 0.16, 0.85), (0.2, 0.16, 1.1), (0.4, 0.3, 1.2), (0.75, 1.1, 1.35)]
    notes = [(s + t, _crow(rng, base_hz * up, d)) for s in (0.5, 4.3) for t, d, up in crow]
    return room(rng, lay(7.5, notes), 0.6, 0.08)


def _crow(rng: Generator, base_hz: float, duration_sec: float) -> Sound:
    d = duration_sec
    pitch = base_hz * line(d, (0, 0.8), (0.2 * d, 1.05), (0.6 * d, 1), (d, 0.65))
    throat = [(1300.0, 500.0, 1.0), (2500.0, 700.0, 0.7), (3700.0, 900.0, 0.3)]
    return _voice(rng, pitch, 0.1, throat, 5000) * line(d, (0, 0), (0.1 * d, 1), (0.6 * d, 0.9), (d, 0))
