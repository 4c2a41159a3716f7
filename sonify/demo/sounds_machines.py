"""Engines and signals: a firing order through an exhaust, blades through air, tones through a loudspeaker."""

import numpy as np
from numpy.random import Generator

from sonify.demo.blocks import (
    RATE,
    Response,
    Sound,
    band,
    buzz,
    clicks,
    formants,
    lay,
    line,
    noise,
    per_cycle,
    phase_of,
    resonances,
    room,
    shape,
    sprinkle,
    times,
    wander,
    wide,
)
from sonify.demo.sounds_people import murmur


def _firing(rng: Generator, firing_hz: Sound, roughness: float, exhaust: Response) -> Sound:
    """Pressure pulses and the gas noise that rides on them; no two charges burn alike."""
    phase = phase_of(firing_hz * (1 + 0.03 * wander(rng, len(firing_hz) / RATE, 25, -1, 1)))
    charge = per_cycle(rng, phase, roughness)
    pulses = np.exp(30 * (np.cos(phase) - 1)) * charge
    gas = noise(rng, len(firing_hz) / RATE) * np.exp(2 * (np.cos(phase - 0.6) - 1)) * charge
    beat = shape(pulses / pulses.std() + 0.7 * gas / gas.std(), exhaust)
    return beat / beat.std()


def motorcycle_engine(rng: Generator, variation: int) -> Sound:
    """A twin through a short exhaust: idling and revved up, or riding up through the gears."""
    if variation == 0:
        revs = line(10, (0, 19), (3, 19), (3.5, 55), (4.1, 24), (5.5, 19), (6, 66), (6.7, 26), (8, 19))
    else:
        revs = line(10, (0, 32), (2.4, 80), (2.6, 54), (5.4, 94), (5.6, 68), (10, 104))
    exhaust = resonances((90, 80, 1.0), (210, 150, 0.9), (480, 300, 0.7), (1100, 800, 0.4), (2600, 2000, 0.2))
    uneven = 1 + 0.35 * np.cos(0.5 * phase_of(revs))  # a V-twin fires in pairs
    load = 0.35 + revs / revs.max()
    chain = shape(noise(rng, 10), band(1500, 7000, 1)) * load
    return np.tanh(0.8 * _firing(rng, revs, 0.25, exhaust) * uneven * load) + 0.03 * chain


def car_idling(rng: Generator, variation: int) -> Sound:
    """Four cylinders at 850 turns a minute fire 28 times a second; a diesel is slower and knocks."""
    firing_hz, knock = ((28.3, 0.2), (23.0, 0.6))[variation]
    revs = firing_hz * wander(rng, 9, 3, 0.985, 1.015)
    exhaust = resonances((58, 50, 1.0), (115, 80, 0.6), (240, 200, 0.4), (700, 600, 0.2), (1800, 1500, 0.12))
    phase = phase_of(revs)
    strokes = np.exp(12 * (np.cos(phase) - 1)) * per_cycle(rng, phase, 0.3) * noise(rng, 9)
    tappets = shape(strokes, resonances((1300, 900, 1), (2700, 1500, 0.7)))
    fan = shape(noise(rng, 9), band(150, 3000, 1))
    return _firing(rng, revs, 0.15, exhaust) + knock * tappets / tappets.std() + 0.25 * fan / fan.std()


def rocket_rumble(rng: Generator, variation: int) -> Sound:
    """Jet noise below 300 Hz, from ignition to a distant roar; steep shock fronts make it crackle."""
    rise_sec, peak_hz = ((1.0, 75), (3.0, 50))[variation]
    thrust = line(12, (0, 0.02), (0.5, 0.05), (0.5 + rise_sec, 1), (7, 0.85), (12, 0.15))

    def side() -> Sound:
        roar = shape(noise(rng, 12), band(0.5 * peak_hz, 2 * peak_hz)) * wander(rng, 12, 12, 0.6, 1)
        shocks = np.maximum(0, shape(noise(rng, 12), band(150, 900, 1))) ** 3  # rare and steep, as measured ones are
        return (roar / roar.std() + 0.35 * shocks / shocks.std() * thrust) * thrust

    return np.tanh(0.7 * wide(side(), side()))


def jet_passing(rng: Generator, variation: int) -> Sound:
    """Broad roar that darkens as the aircraft leaves, with the fan's whine shifted down by Doppler."""
    closest_sec, speed = ((5.0, 0.25), (4.0, 0.4))[variation]
    offset = (times(12) - closest_sec) * 2 * speed
    near = 1 / (1 + offset**2)
    doppler = 1 - 0.5 * speed * offset / np.sqrt(1 + offset**2)
    roar = formants(noise(rng, 12), (110 + 150 * near, 250.0, 1.0), (450 + 300 * near, 700.0, 0.35))
    hiss = shape(noise(rng, 12), band(800, 4000, 1)) * near**2
    whine = np.sin(phase_of(1900 * doppler)) + 0.5 * np.sin(phase_of(2870 * doppler))
    return (roar / roar.std() * wander(rng, 12, 9, 0.8, 1) + 0.2 * hiss + 0.08 * whine * near) * near


def helicopter(rng: Generator, variation: int) -> Sound:
    """Each blade slaps the wake of the one before, about eleven times a second; the turbine whines."""
    slap_hz, sharpness, whine_hz = ((11.5, 6, 2200), (17.0, 1.5, 3100))[variation]
    blade = phase_of(slap_hz * wander(rng, 10, 1, 0.99, 1.01))
    slap = np.exp(sharpness * (np.cos(blade) - 1)) * per_cycle(rng, blade, 0.08)
    thump = shape(slap * (1 + 0.3 * noise(rng, 10)), resonances((40, 60, 1), (85, 70, 0.8), (190, 150, 0.5)))
    chop = shape(noise(rng, 10), resonances((250, 300, 1), (900, 900, 0.4))) * (0.15 + slap)
    engine = shape(noise(rng, 10), band(80, 1500, 1))
    whine = np.sin(phase_of(whine_hz * wander(rng, 10, 1, 0.995, 1.005)))
    coming = line(10, (0, 0.35), (5, 1), (10, 0.5))
    return (thump / thump.std() + chop / chop.std() + 0.4 * engine / engine.std() + 0.02 * whine) * coming


def siren(rng: Generator, variation: int) -> Sound:
    """A wail that sweeps up and down every four seconds, or a yelp three times a second."""
    period_sec = (4.2, 0.32)[variation]
    pitch = 1050 - 450 * np.cos(2 * np.pi * times(10) / period_sec)
    horn = shape(buzz(pitch, 6000), resonances((1100, 900, 1), (2600, 1500, 0.5)))
    return room(rng, horn, 1.0, 0.15) * wander(rng, 10, 0.7, 0.75, 1)


def car_horn(rng: Generator, variation: int) -> Sound:
    """Two diaphragms a third apart."""
    low_hz, honks = (
        (405, ((0.3, 0.25), (0.75, 1.2), (3.6, 0.9))),
        (345, ((0.4, 0.35), (1.1, 0.35), (3.0, 1.8))),
    )[variation]
    blasts = []
    for start, length in honks:
        envelope = line(length, (0, 0), (0.02, 1), (length - 0.03, 1), (length, 0))
        plates = [buzz(np.full(len(envelope), hz), 5500) for hz in (low_hz, 1.22 * low_hz)]
        blasts.append((start, (plates[0] + plates[1]) * envelope))
    horn = shape(lay(6.5, blasts), resonances((900, 800, 1), (2300, 1200, 0.8), (450, 300, 0.6)))
    return room(rng, horn, 0.8, 0.1)


def train_horn(rng: Generator, variation: int) -> Sound:
    """A chord of air horns, and wheels over the joints of the rails."""
    chord_hz, joints_per_sec = (((277, 330, 392, 494), 1.3), ((311, 370, 466), 1.9))[variation]
    blow = line(11, (0.5, 0), (0.7, 1), (2.6, 1), (2.9, 0), (3.5, 0), (3.7, 1), (6.0, 1), (6.6, 0))
    reeds = [buzz(np.full(len(blow), hz * rng.uniform(0.995, 1.005)), 3500) for hz in chord_hz]
    horn = shape(np.sum(reeds, axis=0), resonances((600, 700, 1), (1500, 1000, 0.6))) * blow
    clack = clicks(rng, 4, 0.06, 300, 1200)
    starts = np.arange(0.2, 10.7, 1 / joints_per_sec)
    joints = lay(11, [(t + n * 0.14, rng.uniform(0.7, 1) * clack[n]) for t in starts for n in range(2)])
    rolling = shape(noise(rng, 11), band(60, 900, 1)) * wander(rng, 11, 3, 0.7, 1)
    return room(rng, horn / horn.std(), 1.5, 0.2) + 0.6 * joints + 0.25 * rolling / rolling.std()


def radio_static(rng: Generator, variation: int) -> Sound:
    """Between two stations: hiss that fades in and out, crackle, and the whistle of a carrier that drifts by."""
    crackles_per_sec, whistle = ((30, 0.1), (12, 0.25))[variation]
    fading = wander(rng, 8, 2.5, 0.15, 1) * np.where(wander(rng, 8, 14, 0, 1) > 0.75, 0.5, 1)
    hiss = noise(rng, 8) * fading
    crackle = sprinkle(rng, 8, crackles_per_sec, clicks(rng, 12, 0.015, 800, 4000), 9)
    drift = np.abs(wander(rng, 8, 0.8, -1800, 2600)) + 80
    tuned = hiss + 3 * crackle + whistle * np.sin(phase_of(drift)) * wander(rng, 8, 1.5, 0, 1)
    return shape(tuned, band(200, 6000))


def spacecraft_radio(rng: Generator, variation: int) -> Sound:
    """Quindar tones around a voice: 2525 Hz opens the channel and 2475 Hz closes it, 0.25 s each."""
    calls = (((0.5, 3.0), (5.0, 3.2)), ((0.4, 1.6), (2.8, 1.4), (5.2, 3.4)))[variation]
    voice = murmur(rng, 9, (115, 150)[variation])
    line_noise = noise(rng, 9)
    on_air = np.zeros_like(line_noise)
    beeps = []
    for start, length in calls:
        beeps += [(start, _beep(2525)), (start + length, _beep(2475))]
        on_air += line(9, (start + 0.3, 0), (start + 0.32, 1), (start + length - 0.05, 1), (start + length, 0))
    talk = voice / voice.std() * on_air + 0.12 * line_noise
    return 0.5 * np.tanh(1.5 * shape(talk, band(350, 2800, 4))) + 0.55 * lay(9, beeps)


def _beep(hz: float) -> Sound:
    return np.sin(2 * np.pi * hz * times(0.25)) * line(0.25, (0, 0), (0.004, 1), (0.246, 1), (0.25, 0))
