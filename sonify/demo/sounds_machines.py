"""Engines and signals: a firing order through an exhaust, blades through air, tones through a loudspeaker."""

import numpy as np
from numpy.random import Generator

from sonify.demo.blocks import (
    RATE,
    Sound,
    band,
    burst,
    buzz,
    formants,
    lay,
    line,
    noise,
    per_cycle,
    phase_of,
    pulse,
    resonances,
    room,
    shape,
    times,
    unit,
    wander,
    wide,
)
from sonify.demo.sounds_people import murmur


def motorcycle_engine(rng: Generator, variation: int) -> Sound:
    """A twin through a short exhaust: idling and revved up, or riding up through the gears."""
    if variation == 0:
        revs_hz = line(9, (0, 27), (2.4, 27), (2.9, 63), (3.5, 34), (4.7, 27), (5.2, 72), (5.9, 36), (7, 27))
    else:
        revs_hz = line(9, (0, 32), (2.4, 80), (2.6, 54), (5.4, 94), (5.6, 68), (9, 100))
    phase = phase_of(revs_hz * (1 + 0.035 * wander(rng, 9, 25, -1, 1)))
    charge = per_cycle(rng, phase, 0.45)
    pulses, gas = pulse(phase, 58) * charge, noise(rng, 9) * pulse(phase - 0.6, 4) * charge
    exhaust = resonances((90, 80, 1.0), (210, 150, 1.1), (480, 300, 0.9), (1100, 800, 1.0), (2600, 2000, 0.7))
    beat = unit(shape(unit(pulses) + 0.46 * unit(gas), exhaust)) * (1 + 0.5 * np.cos(0.5 * phase))  # fires in pairs
    load = 0.35 + revs_hz / revs_hz.max()
    return np.tanh(2 * beat * load) + 0.1 * shape(noise(rng, 9), band(1500, 7000, 1)) * load


def car_idling(rng: Generator, variation: int) -> Sound:
    """The hum of the block at the firing rate, the rush of the fan, and valves that clatter at every stroke."""
    firing_hz, clatter = ((22.5, 0.6), (29.0, 0.35))[variation]
    phase = phase_of(firing_hz * wander(rng, 9, 3, 0.985, 1.015))
    cylinder = rng.uniform(0.85, 1.15, 4)[(phase / (2 * np.pi)).astype(np.intp) % 4]
    hum = (np.sin(phase) + np.sin(2 * phase)) * cylinder
    block = shape(noise(rng, 9), resonances((95, 50, 1)))
    fan = shape(noise(rng, 9), band(200, 2300, 1))
    valves = shape(noise(rng, 9) * pulse(phase, 8) * cylinder, resonances((1750, 700, 1), (3800, 1050, 0.6)))
    return 0.65 * hum + 0.1 * unit(block) + 0.5 * unit(fan) + clatter * unit(valves)


def rocket_rumble(rng: Generator, variation: int) -> Sound:
    """Jet noise below 300 Hz, from ignition to a distant roar; steep shock fronts make it crackle."""
    rise_sec, peak_hz = ((0.6, 80), (2.5, 55))[variation]
    thrust = line(10, (0, 0.02), (0.5, 0.05), (0.5 + rise_sec, 1), (6, 0.85), (10, 0.15))

    def side() -> Sound:
        roar = unit(shape(noise(rng, 10), band(0.4 * peak_hz, 2.6 * peak_hz)) * wander(rng, 10, 12, 0.7, 1))
        shocks = unit(np.maximum(0, shape(noise(rng, 10), band(90, 220, 1))) ** 3)  # rare and steep
        hiss = unit(shape(noise(rng, 10), band(300, 1000, 1)))
        return (roar + 0.5 * shocks * thrust + 0.08 * hiss) * thrust

    return np.tanh(0.6 * wide(side(), side()))


def jet_passing(rng: Generator, variation: int) -> Sound:
    """Broad roar that swells and fades, and the fan's whine, shifted down by Doppler as the aircraft passes."""
    closest_sec, speed, fan_hz = ((5.0, 0.5, 3400), (3.5, 0.9, 2900))[variation]
    offset = (times(10) - closest_sec) * speed
    near = 0.4 + 0.6 / (1 + offset**2)
    doppler = 1 - 0.2 * speed * offset / np.sqrt(1 + offset**2)
    roar = formants(noise(rng, 10), (580 + 320 * near, 280.0, 1.0), (1750 + 950 * near, 560.0, 0.5))
    rumble, hiss = shape(noise(rng, 10), band(30, 100)), shape(noise(rng, 10), band(2500, 9000, 1))
    fan = phase_of(fan_hz * doppler)
    whine = np.sin(fan) + 0.5 * np.sin(1.62 * fan) + 0.4 * np.sin(0.5 * fan)
    steady = unit(roar) * wander(rng, 10, 9, 0.8, 1) + 0.8 * unit(rumble)
    return (steady + 0.2 * unit(hiss) * near + 0.35 * whine * near) * near


def helicopter(rng: Generator, variation: int) -> Sound:
    """Each blade slaps the wake of the one before, about eleven times a second; the turbine whines."""
    slap_hz, sharpness, whine_hz = ((11.5, 6, 2200), (17.0, 1.5, 3100))[variation]
    blade = phase_of(slap_hz * wander(rng, 9, 1, 0.99, 1.01))
    slap = pulse(blade, sharpness) * per_cycle(rng, blade, 0.08)
    thump = shape(slap * (1 + 0.3 * noise(rng, 9)), resonances((40, 60, 1), (85, 70, 0.8), (190, 150, 0.5)))
    chop = shape(noise(rng, 9), resonances((250, 300, 1), (900, 900, 0.4))) * (0.15 + slap)
    engine = shape(noise(rng, 9), band(80, 1500, 1))
    whine = np.sin(phase_of(whine_hz * wander(rng, 9, 1, 0.995, 1.005)))
    coming = line(9, (0, 0.35), (5, 1), (9, 0.5))
    return (unit(thump) + unit(chop) + 0.4 * unit(engine) + 0.02 * whine) * coming


def siren(rng: Generator, variation: int) -> Sound:
    """A wail that sweeps up and down every four seconds, or a yelp three times a second."""
    period_sec = (4.2, 0.32)[variation]
    pitch = 1050 - 450 * np.cos(2 * np.pi * times(9) / period_sec)
    horn = shape(buzz(pitch, 6000), resonances((1100, 900, 1), (2600, 1500, 0.5)))
    return room(rng, horn, 1.0, 0.15) * wander(rng, 9, 0.7, 0.75, 1)


def car_horn(rng: Generator, variation: int) -> Sound:
    """Two diaphragms a third apart."""
    low_hz, honks = (
        (405, ((0.3, 0.25), (0.75, 1.2), (5.2, 0.9))),
        (345, ((0.4, 0.35), (1.1, 0.35), (4.0, 1.8))),
    )[variation]
    blasts = []
    for start, length in honks:
        plates = sum(buzz(np.full(round(length * RATE), hz), 5500) for hz in (low_hz, 1.22 * low_hz))
        blasts.append((start, plates * line(length, (0, 0), (0.02, 1), (length - 0.03, 1), (length, 0))))
    horn = shape(lay(7, blasts), resonances((900, 800, 1), (2300, 1200, 0.8), (450, 300, 0.6)))
    return room(rng, horn, 0.8, 0.1)


def train_passing(rng: Generator, variation: int) -> Sound:
    """A chord of air horns, and wheels in pairs over the joints of the rails."""
    root_hz, joints_per_sec, gap_sec = ((370, 0.75, 0.19), (345, 0.95, 0.22))[variation]
    blow = line(10, (0.5, 0), (0.7, 1), (2.2, 1), (2.5, 0), (3.0, 0), (3.2, 1), (5.0, 1), (5.6, 0))
    reeds = sum(buzz(np.full(len(blow), root_hz * r * rng.uniform(0.995, 1.005)), 4600) for r in (1, 1.19, 1.41, 1.78))
    horn = unit(shape(np.asarray(reeds), resonances((600, 600, 1), (1500, 900, 0.6)))) * blow
    clack = [burst(rng, 0.14, resonances((750, 450, 1), (2550, 2550, 0.5))) for _ in range(4)]
    starts = np.arange(0.2, 9.6, 1 / joints_per_sec)
    joints = [(t + n * gap_sec, rng.uniform(0.6, 1) * clack[rng.integers(4)]) for t in starts for n in range(2)]
    rolling = shape(noise(rng, 10), band(130, 1800, 1)) * wander(rng, 10, 7, 0.6, 1)
    return room(rng, horn, 1.5, 0.35) + 3 * lay(10, joints) + 0.6 * unit(rolling)


def radio_static(rng: Generator, variation: int) -> Sound:
    """Between two stations: hiss that fades and drops out, and the whistle of a carrier that drifts by."""
    fades_hz, whistle = ((2.5, 0.07), (0.8, 0.2))[variation]
    reception = wander(rng, 8, fades_hz, 0.45, 1) * np.where(wander(rng, 8, 14, 0, 1) > 0.75, 0.13, 1)
    drift_hz = np.abs(wander(rng, 8, 0.8, -1800, 2600)) + 80
    carrier = np.sin(phase_of(drift_hz)) * wander(rng, 8, 1.5, 0, 1)
    return shape(noise(rng, 8) * reception + whistle * carrier, band(750, 8500, 1))


def spacecraft_radio(rng: Generator, variation: int) -> Sound:
    """Quindar tones around a voice: 2525 Hz opens the channel and 2475 Hz closes it, 0.25 s each."""
    pitch_hz, calls = ((118, ((0.5, 2.6), (4.6, 2.8))), (140, ((0.4, 1.5), (2.7, 1.3), (5.0, 2.9))))[variation]
    on_air = sum(line(8.5, (t + 0.3, 0), (t + 0.32, 1), (t + d - 0.05, 1), (t + d, 0)) for t, d in calls)
    beeps = [beep for t, d in calls for beep in ((t, _beep(2525)), (t + d, _beep(2475)))]
    talk = unit(murmur(rng, 8.5, pitch_hz)) * on_air + 0.06 * noise(rng, 8.5)
    return 0.5 * np.tanh(1.5 * shape(talk, band(350, 2800, 3))) + 0.5 * lay(8.5, beeps)


def _beep(hz: float) -> Sound:
    return np.sin(2 * np.pi * hz * times(0.25)) * line(0.25, (0, 0), (0.004, 1), (0.246, 1), (0.25, 0))
