"""Things that are struck, stepped on, turned or typed on: modes that ring, and grains that scrape."""

import numpy as np
from numpy.random import Generator

from sonify.demo.blocks import (
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

# The partials of a tuned church bell against its prime, how long each rings against the hum, and its gain.
_BELL = (
    (0.5, 1.0, 0.6),  # hum
    (1.0, 0.6, 0.8),  # prime
    (1.2, 0.5, 0.9),  # tierce: the minor third that makes it a bell
    (1.5, 0.3, 0.35),  # quint
    (2.0, 0.3, 1.0),  # nominal
    (2.66, 0.15, 0.5),
    (3.0, 0.12, 0.3),
    (4.1, 0.08, 0.3),
    (5.4, 0.05, 0.2),
)


def church_bell(rng: Generator, variation: int) -> Sound:
    """Every partial is a pair a little apart, for no bell is round; they beat as they fade."""
    prime_hz, hum_sec, interval_sec = ((420, 4.0, 2.3), (560, 2.8, 1.5))[variation]
    modes = [
        (prime_hz * ratio * (1 + sign * 0.0008), hum_sec * ring, gain)
        for ratio, ring, gain in _BELL
        for sign in (-1, 1)
    ]
    stroke = struck(8, *modes) + lay(8, [(0, 2 * burst(rng, 0.05, band(800, 5000, 1)))])
    tolling = [(t + rng.normal(0, 0.04), rng.uniform(0.7, 1) * stroke) for t in np.arange(0.3, 10, interval_sec)]
    return room(rng, lay(12, tolling), 1.5, 0.05) * line(12, (10.5, 1), (12, 0))


def bicycle_bell(rng: Generator, variation: int) -> Sound:
    """A small steel cap: one ding-dong stroke of a spring, or the trill of a geared thumb bell."""
    cap_hz = (2150, 2650)[variation]
    cap = struck(1.6, *((cap_hz * r, s, g) for r, s, g in _cap_modes()))
    if variation == 0:
        strokes = [(t + n * 0.28, 1 - 0.4 * n) for t in (0.3, 2.1, 4.4) for n in range(2)]
    else:
        strokes = [(t + n * 0.052, 0.6 + 0.4 * np.sin(np.pi * n / 9)) for t in (0.3, 2.0, 4.5) for n in range(10)]
    return lay(7, [(t, gain * rng.uniform(0.85, 1) * cap) for t, gain in strokes])


def _cap_modes() -> tuple[tuple[float, float, float], ...]:
    return ((0.997, 0.45, 1), (1.003, 0.45, 1), (1.62, 0.3, 0.5), (2.44, 0.2, 0.6), (3.51, 0.12, 0.35))


def telephone_ringing(rng: Generator, variation: int) -> Sound:
    """Two small gongs under one clapper, 20 strokes a second; rings of 2 s, or the British double ring."""
    rings = (
        ((0.3, 2.0), (6.3, 2.0)),
        ((0.3, 0.4), (0.9, 0.4), (3.3, 0.4), (3.9, 0.4), (6.3, 0.4), (6.9, 0.4)),
    )[variation]
    size = (1.0, 1.25)[variation]
    gongs = [struck(0.8, *((size * hz * r, 0.6 * s, g) for r, s, g in _cap_modes())) for hz in (1050, 1330)]
    strokes = [
        (start + n / 20, rng.uniform(0.8, 1) * gongs[n % 2]) for start, length in rings for n in range(int(20 * length))
    ]
    return room(rng, lay(9, strokes), 0.3, 0.05)


def clock_ticking(rng: Generator, variation: int) -> Sound:
    """One tick a second of a wall clock, or the tick and tock of a pendulum, two a second."""
    interval_sec, case = (
        (1.0, ((2600, 500, 1.0), (4400, 900, 0.8))),
        (0.5, ((1500, 300, 1.0), (3100, 700, 0.6))),
    )[variation]
    parts = ((0, 0.5), (0.006, 1), (0.019, 0.4), (0.031, 0.2))  # pallet, wheel, and their rebound
    ticks = []
    for n, start in enumerate(np.arange(0.4, 10, interval_sec)):
        lower = 1 - 0.2 * (variation and n % 2)
        for later, gain in parts:
            tick = burst(rng, 0.012, resonances(*((hz * lower, width, g) for hz, width, g in case)))
            ticks.append((start + later, gain * tick))
    return room(rng, lay(10, ticks), 0.25, 0.05)


def wind_chimes(rng: Generator, variation: int) -> Sound:
    """Tubes free at both ends ring at 1 : 2.76 : 5.40; a breeze stirs them now and then."""
    lowest_hz, strokes_per_sec = ((620, 2.2), (980, 4.0))[variation]
    tubes = [
        struck(3.5, (hz, 1.1, 1), (2.756 * hz, 0.45, 0.5), (5.404 * hz, 0.15, 0.2))
        for hz in lowest_hz * 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
    ]
    return sprinkle(rng, 10, strokes_per_sec, tubes, 5) * line(10, (7.5, 1), (10, 0))


def footsteps_on_gravel(rng: Generator, variation: int) -> Sound:
    """Hundreds of stones grind in each step, first under the heel and then under the toe."""
    step_sec, weight = ((0.6, 0.5), (0.37, 0.8))[variation]
    stones = clicks(rng, 40, 0.01, 600, 7000)
    press = line(0.34, (0, 0), (0.025, 1), (0.09, 0.4), (0.17, 0.8), (0.34, 0))
    steps = []
    for start in np.arange(0.2, 8.5, step_sec):
        crunch = sprinkle(rng, 0.34, 1800, stones, 6) * press
        heel = burst(rng, 0.1, resonances((110, 120, 1), (300, 300, 0.3)))
        steps += [(start + rng.normal(0, 0.015), rng.uniform(0.7, 1) * crunch / 3), (start, weight * heel)]
    return lay(9, steps)


def knocking_on_a_door(rng: Generator, variation: int) -> Sound:
    """Knuckles on a panel: a thud, the panel's modes, and the hall behind it."""
    size, pattern = ((1.0, (0, 0.22, 0.44)), (0.7, (0, 0.17, 0.34, 0.51, 0.68)))[variation]
    panel = [(70, 80, 0.7), (150, 90, 1), (290, 150, 1), (520, 250, 0.6), (1300, 900, 0.15)]
    body = resonances(*((hz / size, width, gain) for hz, width, gain in panel))
    starts = [s + t + rng.normal(0, 0.012) for s in (0.4, 2.4, 4.6) for t in pattern]
    knocks = [(start, rng.uniform(0.6, 1) * burst(rng, 0.09, body)) for start in starts]
    return room(rng, lay(7, knocks), 0.5, 0.12)


def turning_pages(rng: Generator, variation: int) -> Sound:
    """A sheet slides, bends and falls: a sweep of rustle with small crackles where the paper buckles."""
    interval_sec, sheet_sec = ((2.1, 1.0), (1.1, 0.6))[variation]
    buckles = clicks(rng, 24, 0.006, 1200, 8000)
    leaves = []
    for start in np.arange(0.4, 8.2 - sheet_sec, interval_sec) + rng.uniform(0, 0.3):
        rising = line(sheet_sec, (0, 0), (0.3 * sheet_sec, 0.5), (0.75 * sheet_sec, 1), (sheet_sec, 0))
        swish = shape(noise(rng, sheet_sec), band(500, 5000, 1)) * wander(rng, sheet_sec, 30, 0.1, 1) ** 2
        crackle = sprinkle(rng, sheet_sec, 300, buckles, 8)
        leaves.append((start, (swish + 0.5 * crackle) * rising))
        leaves.append((start + 0.85 * sheet_sec, burst(rng, 0.12, band(150, 2500, 1))))
    return lay(9, leaves)


def stirring_with_a_spoon(rng: Generator, variation: int) -> Sound:
    """Porcelain rings high and briefly where the spoon meets the wall, a few times a turn."""
    cup_hz, clinks_per_sec = ((2100, 4.2), (2900, 6.0))[variation]
    clinks = []
    for start in np.arange(0.4, 7.0, 1 / clinks_per_sec):
        spot = rng.uniform(0.96, 1.04)  # modes split by the handle: each spot has a pitch of its own
        clinks.append((start + rng.normal(0, 0.04), rng.uniform(0.2, 1) * _clink(rng, cup_hz * spot, 1)))
    taps = [(t, rng.uniform(0.8, 1) * _clink(rng, cup_hz, 2)) for t in (7.1, 7.3)]
    swirl = shape(noise(rng, 8), band(300, 2500, 1)) * (0.6 + 0.4 * np.sin(2 * np.pi * 1.4 * times(8)))
    return lay(8, clinks + taps) + 0.02 * swirl


def _clink(rng: Generator, cup_hz: float, ring: float) -> Sound:
    ratios = (1, 1.37, 1.83, 2.15, 2.64, 3.08, 3.7, 4.2, 4.9)
    modes = [(cup_hz * r, ring * 0.05 / r, rng.uniform(0.3, 1)) for r in ratios]
    return struck(0.5, *modes) + lay(0.5, [(0, burst(rng, 0.006, band(3000, 12000, 1)))])


def coins_clinking(rng: Generator, variation: int) -> Sound:
    """Coins shaken in a hand, or dropped one by one: each bounce comes sooner than the one before."""
    coins = [_coin(rng, hz) for hz in rng.uniform(3800, 7000, 8)]
    if variation == 0:
        shaking = np.maximum(0, np.sin(2 * np.pi * 1.3 * times(7)))
        return sprinkle(rng, 7, 40, coins, 6) * (0.15 + 0.85 * shaking)
    bounces = []
    for n, start in enumerate((0.3, 1.5, 2.2, 3.6, 4.7)):
        gaps = 0.34 * 0.72 ** np.arange(14)
        at = start + np.concatenate([[0], np.cumsum(gaps)])
        bounces += [(t, 0.8**k * rng.uniform(0.7, 1) * coins[n]) for k, t in enumerate(at)]
    return room(rng, lay(7, bounces), 0.3, 0.05)


def _coin(rng: Generator, hz: float) -> Sound:
    ratios = (1, 1.48, 1.73, 2.1, 2.36, 2.9)
    ring = struck(0.4, *((hz * r, 0.08 / r, rng.uniform(0.3, 1)) for r in ratios))
    return ring + lay(0.4, [(0, 2 * burst(rng, 0.005, band(4000, 14000, 1)))])


def camera_shutter(rng: Generator, variation: int) -> Sound:
    """Mirror up, curtain, mirror down; then a motor, or a lever, winds the film on."""
    shots_sec, exposure_sec = (((0.5, 2.3, 3.7, 5.4), 0.07), ((0.6, 1.1, 1.6, 4.0, 4.5, 5.0), 0.045))[variation]
    clack = struck(0.06, (420, 0.008, 0.8), (1250, 0.006, 1), (2900, 0.004, 0.7), (5200, 0.002, 0.5))
    grit = clicks(rng, 6, 0.03, 1500, 6000)
    wind_on = shape(noise(rng, 0.28), resonances((1900, 500, 1), (3800, 900, 0.6)))
    wind_on *= (0.5 + 0.5 * np.sin(2 * np.pi * 85 * times(0.28))) * line(
        0.28, (0, 0), (0.02, 1), (0.25, 0.8), (0.28, 0)
    )
    parts = []
    for start in shots_sec:
        parts += [(start, clack), (start + 0.004, 0.7 * grit[rng.integers(6)])]
        parts += [(start + exposure_sec, 0.8 * clack), (start + exposure_sec, 0.8 * grit[rng.integers(6)])]
        parts += [(start + exposure_sec + 0.04, 0.12 * wind_on / wind_on.std())]
    return room(rng, lay(6.5, parts), 0.2, 0.05)


def typing_on_a_keyboard(rng: Generator, variation: int) -> Sound:
    """Words in bursts: a key goes down, hits bottom and comes up again; the space bar is duller."""
    keys_per_sec, plate_hz = ((6.5, 700), (9.0, 1100))[variation]
    keys = [_key(rng, plate_hz * rng.uniform(0.85, 1.2)) for _ in range(12)]
    space = _key(rng, 0.55 * plate_hz)
    strokes, now = [], 0.3
    while now < 8.6:
        for _ in range(rng.integers(3, 9)):
            strokes.append((now, rng.uniform(0.5, 1) * keys[rng.integers(12)]))
            now += rng.gamma(9, 1 / keys_per_sec / 9)
        strokes.append((now, 0.9 * space))
        now += rng.uniform(0.15, 0.6)
    return room(rng, lay(9, strokes), 0.2, 0.05)


def _key(rng: Generator, plate_hz: float) -> Sound:
    down = burst(rng, 0.02, resonances((2.5 * plate_hz, 1500, 1), (7 * plate_hz, 3000, 0.7)))
    bottom = burst(rng, 0.035, resonances((plate_hz, 500, 0.6), (3 * plate_hz, 1200, 1), (6 * plate_hz, 2500, 0.6)))
    return lay(0.16, [(0, 0.3 * down), (0.012, bottom), (0.095, 0.35 * down)])
