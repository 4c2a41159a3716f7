"""Things that are struck, stepped on, turned or typed on: modes that ring, and grains that scrape."""

import numpy as np
from numpy.random import Generator

from sonify.demo.blocks import (
    Response,
    Sound,
    band,
    burst,
    clicks,
    lay,
    line,
    noise,
    resonances,
    room,
    shape,
    sprinkle,
    struck,
    times,
    wander,
)

# The partials of a tuned church bell against its prime, and how long each rings against the hum.
_BELL = (
    (0.5, 1.0),  # hum
    (1.0, 0.6),  # prime
    (1.2, 0.5),  # tierce: the minor third that makes it a bell
    (1.5, 0.3),  # quint
    (2.0, 0.15),  # nominal
    (2.66, 0.08),
    (3.0, 0.06),
    (4.1, 0.04),
    (5.4, 0.025),
)
_CAP = ((0.994, 1, 1), (1.006, 1, 1), (1.62, 0.67, 0.8), (2.44, 0.45, 0.8), (3.51, 0.27, 0.35))  # a small steel bell
_CUP = (1, 1.37, 1.83, 2.15, 2.64, 3.08, 3.7)
_COIN = (1, 1.48, 1.73, 2.1, 2.36, 2.9)


def church_bell(rng: Generator, variation: int) -> Sound:
    """Every partial is a pair a little apart, for no bell is round; they beat as they fade."""
    prime_hz, hum_sec, interval_sec = ((480, 4.5, 1.9), (650, 4.0, 1.1))[variation]
    modes = [
        (prime_hz * ratio * split, hum_sec * ring, (ratio / 2) ** 0.3 * rng.uniform(0.6, 1))
        for ratio, ring in _BELL
        for split in (0.998, 1.002)
    ]
    stroke = struck(7, *modes) + lay(7, [(0, 5 * burst(rng, 0.05, band(800, 5000, 1)))])
    tolling = [(t + rng.normal(0, 0.07), rng.uniform(0.7, 1) * stroke) for t in np.arange(0.3, 8.8, interval_sec)]
    return room(rng, lay(10, tolling), 1.5, 0.3) * line(10, (9, 1), (10, 0))


def bicycle_bell(rng: Generator, variation: int) -> Sound:
    """The ding-ding of a spring hammer, or the longer trill of a geared thumb bell."""
    if variation == 0:
        modes = ((0.998, 1, 1), (1.002, 1, 1), (1.44, 0.67, 0.9), (2.73, 0.45, 0.9), (3.51, 0.27, 0.35))
        cap = struck(1.8, *((1830 * ratio, 0.72 * ring, gain) for ratio, ring, gain in modes))
        cap += lay(1.8, [(0, 1.5 * burst(rng, 0.006, band(2500, 9000, 1)))])
        dings = [(s + later, gain * cap) for s in (0.3, 2.3, 4.5) for later, gain in ((0, 1), (0.28, 0.68))]
        return room(rng, lay(7, dings), 0.3, 0.05)
    cap = struck(1.6, *((1920 * ratio, 0.5 * ring, gain) for ratio, ring, gain in _CAP))
    strokes = [s + 0.117 * n + rng.normal(0, 0.012) for s in (0.3, 2.4, 4.6) for n in range(12)]
    return room(rng, lay(7, [(t, rng.uniform(0.5, 1) * cap) for t in strokes]), 0.3, 0.03)


def telephone_ringing(rng: Generator, variation: int) -> Sound:
    """Two small gongs and one clapper, 20 strokes a second; one long ring, or the British double ring."""
    long_ring, double_ring = ((0.3, 2.0), (6.3, 2.0)), tuple((t, 0.4) for t in (0.3, 0.9, 3.3, 3.9, 6.3, 6.9))
    size, rings = ((1.0, long_ring), (1.25, double_ring))[variation]
    gongs = [
        struck(0.8, *((size * hz * ratio, 0.27 * ring, gain) for ratio, ring, gain in _CAP)) for hz in (1050, 1330)
    ]
    strokes = [(t + n / 20, rng.uniform(0.8, 1) * gongs[n % 2]) for t, length in rings for n in range(int(20 * length))]
    return room(rng, lay(9, strokes), 0.3, 0.05)


def clock_ticking(rng: Generator, variation: int) -> Sound:
    """One tick a second of a wall clock, or the tick and tock of a pendulum, two a second."""
    interval_sec, case, tick_sec, rattle_sec = (
        (1.0, ((2600, 1060, 1.0), (11000, 2000, 0.57)), 0.029, 0.017),
        (0.5, ((2950, 700, 1.0), (9000, 1450, 1.4)), 0.008, 0.008),
    )[variation]
    ticks = []
    for n, start in enumerate(np.arange(0.4, 10, interval_sec)):
        lower = 1 - 0.14 * (variation and n % 2)
        escapement = resonances(*((hz * lower, width, gain) for hz, width, gain in case))
        for bounce, gain in enumerate((0.45, 1, 0.15)):  # pallet, wheel, rebound
            ticks.append((start + bounce * rattle_sec, gain * burst(rng, tick_sec, escapement)))
    return room(rng, lay(10, ticks), 0.2, 0.25) + 0.02 * shape(noise(rng, 10), band(80, 1500, 1))


def wind_chimes(rng: Generator, variation: int) -> Sound:
    """Tubes free at both ends ring at 1 : 2.76 : 5.40; a breeze stirs them now and then."""
    lowest_hz, strokes_per_sec = ((620, 2.2), (820, 4.0))[variation]
    tubes = [
        struck(3.5, (hz, 1.1, 1), (2.756 * hz, 0.45, 0.5), (5.404 * hz, 0.15, 0.2))
        for hz in lowest_hz * 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
    ]
    return sprinkle(rng, 10, strokes_per_sec, tubes, 5) * line(10, (7.5, 1), (10, 0))


def footsteps_on_gravel(rng: Generator, variation: int) -> Sound:
    """Hundreds of stones grind in each step, first under the heel and then under the toe."""
    step_sec, brightest_hz = ((0.5, 850), (0.36, 1300))[variation]
    stones = clicks(rng, 40, 0.03, 440, 6300)
    press = line(0.34, (0, 0), (0.025, 1), (0.09, 0.4), (0.17, 0.35), (0.34, 0))
    steps = []
    for start in np.arange(0.2, 7.6, step_sec):
        crunch = sprinkle(rng, 0.34, 800, stones, 8.5) * press
        steps.append((start + rng.normal(0, 0.015), rng.uniform(0.6, 1) * crunch / np.abs(crunch).max()))
    return shape(lay(8, steps), band(60, brightest_hz, 1))


def knocking_on_a_door(rng: Generator, variation: int) -> Sound:
    """Knuckles on a panel: a thud, the panel's modes, and the hall behind it."""
    size, knocks, gap_sec = ((1.05, 4, 0.21), (0.85, 3, 0.26))[variation]
    panel = ((70, 80, 0.3), (150, 90, 1), (290, 150, 1.2), (520, 300, 0.2), (1300, 900, 0.1))
    body = resonances(*((hz / size, width, gain) for hz, width, gain in panel))
    starts = [s + n * gap_sec + rng.normal(0, 0.015) for s in (0.4, 2.4, 4.6) for n in range(knocks)]
    return room(rng, lay(7, [(t, rng.uniform(0.6, 1) * burst(rng, 0.12, body)) for t in starts]), 0.25, 0.05)


def turning_pages(rng: Generator, variation: int) -> Sound:
    """A sheet slides, bends and falls: a sweep of rustle with small crackles where the paper buckles."""
    interval_sec, sheet_sec = ((2.1, 1.0), (1.1, 0.6))[variation]
    buckles = clicks(rng, 24, 0.008, 1200, 8000)
    leaves = []
    for start in np.arange(0.4, 7.8 - sheet_sec, interval_sec) + rng.uniform(0, 0.3):
        rising = line(sheet_sec, (0, 0), (0.3 * sheet_sec, 0.5), (0.75 * sheet_sec, 1), (sheet_sec, 0))
        swish = shape(noise(rng, sheet_sec), band(500, 5000, 1)) * wander(rng, sheet_sec, 30, 0.1, 1) ** 2
        leaves.append((start, (swish + 0.4 * sprinkle(rng, sheet_sec, 300, buckles, 8)) * rising))
        leaves.append((start + 0.85 * sheet_sec, burst(rng, 0.12, band(150, 2500, 1))))
    return lay(8, leaves)


def stirring_with_a_spoon(rng: Generator, variation: int) -> Sound:
    """Porcelain rings high and briefly where the spoon meets the wall, a few times a turn."""
    cup_hz, clinks_per_sec = ((4500, 5.6), (5000, 7.5))[variation]
    clinks = []
    for start in np.arange(0.4, 7.0, 1 / clinks_per_sec):
        spot = rng.uniform(0.97, 1.03)  # the handle splits the modes: each spot of the wall has a pitch of its own
        clinks.append((start + rng.normal(0, 0.06), rng.uniform(0.2, 1) * _clink(rng, cup_hz * spot, 0.016)))
    taps = [(t, rng.uniform(0.8, 1) * _clink(rng, cup_hz, 0.05)) for t in (7.1, 7.35)]
    return room(rng, lay(8, clinks + taps), 0.3, 0.05)


def _clink(rng: Generator, cup_hz: float, ring_sec: float) -> Sound:
    ring = struck(0.4, *((cup_hz * r, ring_sec / r, r**0.3 * rng.uniform(0.3, 1)) for r in _CUP if cup_hz * r < 18_000))
    return ring + lay(0.4, [(0, 4 * burst(rng, 0.006, band(2500, 12000, 1)))])


def coins_clinking(rng: Generator, variation: int) -> Sound:
    """Coins shaken in a hand, or dropped one by one: each bounce comes sooner than the one before."""
    coins = [_coin(rng, hz) for hz in rng.uniform(4500, 8500, 8)]
    if variation == 0:
        shaking = np.maximum(0, np.sin(2 * np.pi * 1.3 * times(7)))
        return room(rng, sprinkle(rng, 7, 40, coins, 6) * (0.15 + 0.85 * shaking), 0.3, 0.15)
    bounces = []
    for coin, start in zip(coins, (0.3, 1.5, 2.2, 3.6, 4.7), strict=False):
        landings = start + np.concatenate([[0], np.cumsum(0.3 * 0.78 ** np.arange(14))])
        bounces += [(t, 0.85**n * rng.uniform(0.7, 1) * coin) for n, t in enumerate(landings)]
    return room(rng, lay(7, bounces) + 0.4 * sprinkle(rng, 7, 5, coins), 0.3, 0.15)


def _coin(rng: Generator, lowest_hz: float) -> Sound:
    ring = struck(0.4, *((lowest_hz * r, 0.05 / r, rng.uniform(0.3, 1)) for r in _COIN if lowest_hz * r < 18_000))
    return ring + lay(0.4, [(0, 5 * burst(rng, 0.005, band(2000, 14000, 1)))])


def camera_shutter(rng: Generator, variation: int) -> Sound:
    """Mirror up, curtain, mirror down; then a motor winds on."""
    shots_sec, exposure_sec = (((0.5, 1.8, 3.3, 5.5), 0.053), ((0.5, 1.0, 1.5, 3.4, 5.4, 5.9), 0.037))[variation]
    motor = shape(noise(rng, 0.2), resonances((2500, 750, 1), (5000, 1200, 0.6)))
    motor *= (0.5 + 0.5 * np.sin(2 * np.pi * 35 * times(0.2))) * line(0.2, (0, 0), (0.02, 1), (0.17, 0.8), (0.2, 0))
    parts = []
    for start in shots_sec:
        parts += [(start, _clack(rng)), (start + exposure_sec, _clack(rng))]
        parts += [(start + exposure_sec + 0.02, 0.4 * _clack(rng))]
        parts.append((start + exposure_sec + 0.05, 0.6 * motor / np.abs(motor).max()))
    return room(rng, lay(7, parts), 0.2, 0.03)


def _clack(rng: Generator) -> Sound:
    box_hz = 900 * rng.uniform(0.9, 1.1)
    return burst(rng, 0.04, resonances((box_hz, 0.6 * box_hz, 0.7), (4300, 2500, 1)))


def typing_on_a_keyboard(rng: Generator, variation: int) -> Sound:
    """Words in bursts: a key goes down, hits bottom and comes up again."""
    keys_per_sec, key = ((5.7, _mechanical_key), (7.2, _flat_key))[variation]
    keys = [key(rng, rng.uniform(0.85, 1.2)) for _ in range(12)]
    strokes, now = [], 0.3
    while now < 7.5:
        for _ in range(rng.integers(3, 9)):
            strokes.append((now, rng.uniform(0.5, 1) * keys[rng.integers(12)]))
            now += rng.gamma(9, 1 / keys_per_sec / 9)
        now += rng.uniform(0.1, 0.5)
    return room(rng, lay(8.5, strokes), 0.2, 0.15)


def _mechanical_key(rng: Generator, size: float) -> Sound:
    return _key(rng, resonances((300 * size, 250, 0.4), (2700 * size, 2400, 1), (3000, 2500, 1.6)), 0.3)


def _flat_key(rng: Generator, size: float) -> Sound:
    return _key(rng, resonances((3400 * size, 2800, 1), (3200, 3100, 1.6)), 0.17)


def _key(rng: Generator, plate: Response, release: float) -> Sound:
    touch = burst(rng, 0.01, resonances((2000, 1500, 1), (4500, 2500, 1.7)))
    return lay(0.16, [(0, 0.2 * touch), (0.012, burst(rng, 0.036, plate)), (0.095, release * touch)])
