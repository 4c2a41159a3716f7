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
    wander,
    wide,
)


def rain(rng: Generator, variation: int) -> Sound:
    """Single drops over the hiss of those farther away; in a downpour they merge."""
    drops_per_sec = (120, 1200)[variation]
    hiss = (0.05, 0.25)[variation]
    drops = clicks(rng, 32, 0.004, 1500, 9000) + [0.3 * bubble(r) for r in rng.uniform(0.7, 1.5, 6)]

    def side() -> Sound:
        far = shape(noise(rng, 10), band(900, 9000, 1)) * wander(rng, 10, 0.5, 0.85, 1.15)
        return hiss * far + 0.3 * sprinkle(rng, 10, drops_per_sec, drops)

    return wide(side(), side())


def wind(rng: Generator, variation: int) -> Sound:
    """Turbulence whose pitch and level follow the gusts; around a corner it whistles."""
    whistle = (0.5, 2.5)[variation]

    gust = wander(rng, 12, 0.6, 0.25, 1) * wander(rng, 12, 3, 0.8, 1)

    def side() -> Sound:
        body = (200 + 350 * gust, 350.0, gust**1.5)
        edge = (450 + 500 * gust, 45.0, whistle * gust**2)
        return formants(shape(noise(rng, 12), band(60, 3000, 1)), body, edge)

    return wide(side(), side())


def sea_waves(rng: Generator, variation: int) -> Sound:
    """Each wave swells dark, breaks bright and runs back over the sand."""
    period_sec = (5.0, 3.5)[variation]
    breaks = [at + rng.uniform(-0.4, 0.4) for at in np.arange(2.0, 14, period_sec)]
    swell = np.sum([_surge(12, at, 1.6, 1.4) for at in breaks], axis=0)
    foam = np.sum([_surge(12, at + 0.4, 0.5, 1.1) for at in breaks], axis=0)

    def side() -> Sound:
        dark = shape(noise(rng, 12), band(60, 700, 1))
        bright = shape(noise(rng, 12), band(600, 2500, 1))
        return dark * (0.25 + swell) + bright * (0.05 + 0.4 * foam)

    return wide(side(), side())


def _surge(duration_sec: float, peak_sec: float, rise_sec: float, fall_sec: float) -> Sound:
    offset = times(duration_sec) - peak_sec
    return np.exp(-np.abs(offset) / np.where(offset < 0, rise_sec / 2, fall_sec))


def thunder(rng: Generator, variation: int) -> Sound:
    """The near end of the bolt cracks, its far parts arrive later and duller: air absorbs the treble first."""
    nearness = (1.0, 0.1)[variation]
    arrivals = 0.8 + np.concatenate([[0], np.cumsum(rng.exponential(0.6, 11))])
    strengths = rng.uniform(0.3, 1, 12) * np.exp(-arrivals / 4)

    def arriving(time_constant_sec: float, rise_sec: float) -> Sound:
        clap = decay(6, time_constant_sec) * (1 - decay(6, rise_sec))
        return lay(12, zip(arrivals, strengths[:, None] * clap, strict=True))

    rolling, rattling = arriving(1.8, 0.12), arriving(0.7, 0.03)

    def side() -> Sound:
        low = shape(noise(rng, 12), band(35, 130)) * rolling
        middle = shape(noise(rng, 12), band(100, 600, 1)) * rattling
        crack = shape(noise(rng, 12), band(300, 3000, 1)) * rattling**2
        return 3 * low + (0.3 + 0.4 * nearness) * middle + 0.25 * nearness * crack

    return wide(side(), side())


def stream(rng: Generator, variation: int) -> Sound:
    """Bubbles by the hundred, small ones far more often than large ones, in the rush of the water."""
    bubbles_per_sec, rush = ((500, 0.25), (1200, 0.5))[variation]
    bubbles = [bubble(r) for r in 0.6 * (1 + rng.pareto(2.2, 80)).clip(max=4)]

    def side() -> Sound:
        water = shape(noise(rng, 10), band(300, 5000, 1)) * wander(rng, 10, 3, 0.7, 1)
        return rush * water + 0.5 * sprinkle(rng, 10, bubbles_per_sec, bubbles)

    return wide(side(), side())


def fire(rng: Generator, variation: int) -> Sound:
    """A soft roar, and wood that cracks: most cracks faint, a few sharp."""
    cracks_per_sec = (22, 45)[variation]
    roar = shape(noise(rng, 10), band(30, 180, 1)) * wander(rng, 10, 5, 0.3, 1)
    hiss = shape(noise(rng, 10), band(1500, 9000, 1)) * wander(rng, 10, 2, 0.3, 1)
    cracks = sprinkle(rng, 10, cracks_per_sec, clicks(rng, 32, 0.004, 2500, 11000), spread_db=10)
    pops = sprinkle(rng, 10, 3, clicks(rng, 8, 0.012, 700, 2500), spread_db=8)
    return 0.6 * roar + 0.05 * hiss + cracks + pops


def dripping_tap(rng: Generator, variation: int) -> Sound:
    """Each drop ticks on the surface and draws bubbles under, which sing; the basin answers."""
    interval_sec, radius_mm = ((1.1, 3.4), (0.55, 2.4))[variation]
    starts = 0.3 + interval_sec * np.arange(int(7 / interval_sec))
    drops = []
    for start in starts + rng.normal(0, 0.07 * interval_sec, len(starts)):
        drops.append((start, 2 * clicks(rng, 1, 0.006, 2500, 6000)[0]))
        for n in range(rng.integers(1, 4)):
            drops.append((start + 0.015 + 0.03 * n, bubble(radius_mm * rng.uniform(0.6, 1.1))))
    return room(rng, lay(8, drops), 0.5, 0.1)


def pouring(rng: Generator, variation: int) -> Sound:
    """The air column above the water shortens as the vessel fills, and its resonance climbs."""
    start_hz, end_hz = ((500, 1600), (650, 1200))[variation]
    filling = line(8, (0.6, 0), (6.5, 1))
    open_tap = line(8, (0.4, 0), (0.7, 1), (6.3, 1), (6.7, 0))
    air_hz = start_hz * (end_hz / start_hz) ** filling
    bubbles = sprinkle(rng, 8, 260, [bubble(r) for r in rng.uniform(0.6, 3.5, 60)], 8)
    splash = sprinkle(rng, 8, 900, clicks(rng, 24, 0.006, 1500, 8000), 8)
    jet = (bubbles / bubbles.std() + 0.8 * splash / splash.std()) * open_tap
    ringing = formants(jet, (air_hz, 350.0, 1.0), (3 * air_hz, 600.0, 0.5))
    drips = lay(8, [(t, 0.6 * bubble(2.5)) for t in (6.9, 7.3)])
    return ringing + 0.8 * jet + drips
