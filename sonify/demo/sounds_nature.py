"""Weather, water and fire."""

import numpy as np
from numpy.random import Generator

from sonify.demo.blocks import (
    Sound,
    band,
    bubble,
    clicks,
    decay,
    formants,
    lay,
    line,
    noise,
    room,
    shape,
    sprinkle,
    times,
    unit,
    wander,
    wide,
)


def rain(rng: Generator, variation: int) -> Sound:
    """Single drops over the hiss of those farther away; in a downpour they merge."""
    drops_per_sec, hiss = ((120, 0.05), (1000, 0.25))[variation]
    drops = clicks(rng, 32, 0.004, 1500, 9000) + [0.3 * bubble(r) for r in rng.uniform(0.7, 1.5, 6)]

    def side() -> Sound:
        far = shape(noise(rng, 10), band(900, 9000, 1)) * wander(rng, 10, 0.5, 0.85, 1.15)
        return hiss * far + 0.3 * sprinkle(rng, 10, drops_per_sec, drops)

    return wide(side(), side())


def wind(rng: Generator, variation: int) -> Sound:
    """Turbulence whose pitch and level follow the gusts; around a corner it whistles."""
    changes_hz, whistle = ((0.3, 0.1), (0.45, 0.4))[variation]
    gust = wander(rng, 10, changes_hz, 0.35, 1) * wander(rng, 10, 9, 0.75, 1)

    def side() -> Sound:
        body = (80 + 150 * gust, 400.0, gust**2.5)
        edge = (550 + 500 * gust, 60.0, whistle * gust**3)
        return formants(shape(noise(rng, 10), band(60, 2700, 1)), body, edge)

    return wide(side(), side())


def sea_waves(rng: Generator, variation: int) -> Sound:
    """Each wave swells dark, breaks bright and runs back over the sand."""
    period_sec = (4.6, 3.2)[variation]
    breaks = [at + rng.uniform(-0.4, 0.4) for at in np.arange(1.5, 11, period_sec)]
    swell = 0.25 + np.sum([_surge(10, at, 0.4, 1.7) for at in breaks], axis=0)
    foam = np.sum([_surge(10, at + 0.7, 0.2, 0.6) for at in breaks], axis=0)

    def side() -> Sound:
        dark = shape(noise(rng, 10), band(50, 350, 1))
        bright = shape(noise(rng, 10), band(1100, 4500, 1))
        return dark * swell + 0.4 * bright * foam

    return wide(side(), side())


def _surge(duration_sec: float, peak_sec: float, rise_sec: float, fall_sec: float) -> Sound:
    offset = times(duration_sec) - peak_sec
    return np.exp(-np.abs(offset) / np.where(offset < 0, rise_sec, fall_sec))


def thunder(rng: Generator, variation: int) -> Sound:
    """Over rain, the near end of the bolt; its far parts arrive later and duller: air absorbs the treble first."""
    nearness = (0.25, 0.0)[variation]
    arrivals = 0.8 + np.concatenate([[0], np.cumsum(rng.exponential(0.5, 11))])
    strengths = rng.uniform(0.3, 1, 12) * np.exp(-arrivals / 5.5)

    def arriving(time_constant_sec: float, rise_sec: float) -> Sound:
        clap = decay(4, time_constant_sec) * (1 - decay(4, rise_sec))
        return lay(10, zip(arrivals, strengths[:, None] * clap, strict=True))

    rolling, rattling = arriving(0.6, 0.4), arriving(0.3, 0.06)

    def side() -> Sound:
        low = unit(shape(noise(rng, 10), band(65, 170)))
        crack = unit(shape(noise(rng, 10), band(300, 3000, 1)))
        rainfall = unit(shape(noise(rng, 10), band(800, 8000, 1)))
        return 1.5 * low * rolling + nearness * crack * rattling**2 + 0.05 * rainfall

    return wide(side(), side())


def stream(rng: Generator, variation: int) -> Sound:
    """Bubbles by the thousand, small ones far more often than large ones, in the rush of the water."""
    bubbles_per_sec, smallest_mm = ((700, 1.0), (1500, 0.8))[variation]
    bubbles = [bubble(r) for r in smallest_mm * (1 + rng.pareto(3, 200)).clip(max=4.5)]

    def side() -> Sound:
        rush = shape(noise(rng, 9), band(550, 2700, 1)) * wander(rng, 9, 10, 0.6, 1)
        return unit(sprinkle(rng, 9, bubbles_per_sec, bubbles, 7.5)) + 0.7 * unit(rush)

    return wide(side(), side())


def fire(rng: Generator, variation: int) -> Sound:
    """A soft roar, and wood that cracks: most cracks faint, a few sharp."""
    cracks_per_sec, pops_per_sec = ((60, 2), (140, 6))[variation]
    roar = unit(shape(noise(rng, 10), band(120, 1300, 1)) * wander(rng, 10, 11, 0.3, 1))
    hiss = unit(shape(noise(rng, 10), band(2000, 9000, 1)) * wander(rng, 10, 2, 0.3, 1))
    cracks = sprinkle(rng, 10, cracks_per_sec, clicks(rng, 32, 0.003, 3300, 11000), 3.5)
    pops = sprinkle(rng, 10, pops_per_sec, clicks(rng, 8, 0.012, 700, 2500), 3.5)
    return 0.05 * roar + 0.025 * hiss + cracks + pops


def dripping_tap(rng: Generator, variation: int) -> Sound:
    """Each drop ticks on the surface and draws a few bubbles under, which sing; the basin answers."""
    interval_sec, radius_mm = ((1.0, 3.2), (0.55, 2.3))[variation]
    starts = np.arange(0.3, 7.4, interval_sec)
    drops = []
    for start in starts + rng.normal(0, 0.1 * interval_sec, len(starts)):
        drops.append((start, 2.5 * clicks(rng, 1, 0.006, 3500, 9000)[0]))
        drops += [
            (start + 0.02 + 0.045 * n, bubble(radius_mm * rng.uniform(0.7, 1.2))) for n in range(rng.integers(1, 4))
        ]
    return room(rng, lay(8, drops), 0.3, 0.2)


def pouring(rng: Generator, variation: int) -> Sound:
    """The air column above the water shortens as the vessel fills, and its resonance climbs."""
    start_hz, end_hz = ((570, 1550), (650, 1200))[variation]
    filling = line(8, (0.6, 0), (6.5, 1))
    open_tap = line(8, (0.4, 0), (0.7, 1), (6.3, 1), (6.7, 0))
    air_hz = start_hz * (end_hz / start_hz) ** filling
    bubbles = unit(sprinkle(rng, 8, 250, [bubble(r) / r**1.2 for r in rng.uniform(0.95, 4, 60)], 8.5))
    splash = unit(sprinkle(rng, 8, 1300, clicks(rng, 24, 0.005, 2000, 8500), 8))
    ringing = unit(formants(splash + 0.5 * bubbles, (air_hz, 260.0, 1.0), (3 * air_hz, 520.0, 0.9)))
    drips = lay(8, [(t, 3 * bubble(2.5)) for t in (6.9, 7.3)])
    return (ringing + 0.25 * bubbles + 0.18 * splash) * open_tap + 0.3 * drips
