import math

import numpy as np
import pytest

from sonify.demo.blocks import RATE, band, bubble, buzz, formants, lay, noise, resonances, shape
from sonify.demo.synth import KINDS, VARIATIONS, synthesise

KIND = {kind.name: kind for kind in KINDS}
RECORDINGS = [(kind.name, variation) for kind in KINDS for variation in range(VARIATIONS)]

# Where the power's centre of gravity must lie, in Hz; white noise has it at 11,025.
CENTRE_HZ = {
    "rain": (3000, 9000),
    "wind": (150, 900),
    "sea-waves": (600, 3500),
    "thunder": (50, 600),
    "stream": (1000, 4000),
    "fire": (3000, 9000),
    "dripping-tap": (500, 3000),
    "pouring": (800, 3500),
    "cat-purring": (30, 300),
    "cat-meowing": (1200, 3500),
    "dog-barking": (500, 1800),
    "horse-neighing": (1000, 3000),
    "horse-hooves": (700, 2500),
    "rooster": (1000, 3000),
    "birds": (2500, 7500),
    "crickets": (3500, 6000),
    "owl": (250, 700),
    "frogs": (800, 3000),
    "bees": (200, 1500),
    "church-bell": (300, 2000),
    "bicycle-bell": (1800, 4500),
    "telephone": (900, 2500),
    "clock": (2500, 9000),
    "wind-chimes": (600, 2500),
    "footsteps": (400, 2000),
    "knocking": (100, 900),
    "page-turning": (2000, 7500),
    "spoon": (4500, 10500),
    "coins": (4500, 10500),
    "camera": (1500, 5500),
    "keyboard": (2000, 6000),
    "motorcycle": (80, 1000),
    "car-idling": (100, 2500),
    "rocket": (20, 300),
    "jet": (300, 2500),
    "helicopter": (50, 1000),
    "siren": (800, 2500),
    "car-horn": (600, 2500),
    "train": (500, 3000),
    "radio-static": (4000, 9500),
    "spacecraft-radio": (700, 2700),
    "babble": (300, 1500),
    "crowd": (300, 1500),
    "applause": (800, 3000),
    "whistling": (1200, 2800),
}

# What comes again and again, in times a second.
REPEATS_HZ = {
    ("clock", 0): 1.0,
    ("clock", 1): 2.0,
    ("telephone", 0): 20.0,
    ("cat-purring", 0): 26.5,
    ("cat-purring", 1): 31.8,
    ("horse-hooves", 1): 2 / 0.72,
    ("footsteps", 0): 2.0,
    ("helicopter", 0): 11.5,
    ("crickets", 0): 2.3,
    ("church-bell", 0): 1 / 1.9,
    ("page-turning", 0): 1 / 2.1,
    ("sea-waves", 1): 1 / 3.2,
}


@pytest.fixture(scope="module")
def recordings() -> dict[tuple[str, int], np.ndarray]:
    return {(name, variation): synthesise(KIND[name], variation) for name, variation in RECORDINGS}


@pytest.fixture(scope="module")
def mono(recordings: dict[tuple[str, int], np.ndarray]) -> dict[tuple[str, int], np.ndarray]:
    return {key: s if s.ndim == 1 else s.mean(axis=1) for key, s in recordings.items()}


def centre_hz(sound: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float((power * np.fft.rfftfreq(len(sound), 1 / RATE)).sum() / power.sum())


def loudest_hz(sound: np.ndarray, low_hz: float, high_hz: float) -> float:
    frequency_hz = np.fft.rfftfreq(len(sound), 1 / RATE)
    within = (frequency_hz >= low_hz) & (frequency_hz <= high_hz)
    return float(frequency_hz[within][np.abs(np.fft.rfft(sound))[within].argmax()])


def repetition(sound: np.ndarray, expected_hz: float) -> tuple[float, float]:
    """The rate between 0.6 and 1.6 times the expected at which the envelope resembles itself most, and how much."""
    frame = max(1, int(RATE / expected_hz / 100))
    envelope = np.sqrt((sound[: len(sound) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1))
    smooth = np.convolve(envelope - envelope.mean(), np.hanning(9), mode="same")
    likeness = np.correlate(smooth, smooth, mode="full")[len(smooth) - 1 :]
    lags = np.arange(int(100 / 1.6), int(100 / 0.6))
    best = lags[likeness[lags].argmax()]
    return RATE / (frame * best), float(likeness[best] / likeness[0])


def tonality(sound: np.ndarray) -> float:
    """How far the spectrum's geometric mean lies below its arithmetic one, in dB: white noise has 2.5."""
    power = np.abs(np.fft.rfft(sound)) ** 2 + 1e-12
    return 10 * math.log10(power.mean() / math.exp(np.log(power).mean()))


def test_there_are_many_kinds_with_names_that_are_safe_in_file_names() -> None:
    names = [kind.name for kind in KINDS]
    assert len(names) >= 28
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalpha() and name.islower() for name in names)
    assert len({kind.text for kind in KINDS}) == len(names)
    assert set(CENTRE_HZ) == set(names)


@pytest.mark.parametrize("name", ["rain", "church-bell", "babble", "motorcycle"])
def test_a_recording_is_the_same_every_time_and_its_variation_is_another(name: str) -> None:
    first, again, other = (synthesise(KIND[name], variation) for variation in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize(("name", "variation"), RECORDINGS)
def test_every_recording_is_sound(recordings: dict[tuple[str, int], np.ndarray], name: str, variation: int) -> None:
    sound = recordings[name, variation]
    assert sound.dtype == np.float32
    assert sound.ndim == 1 or sound.shape[1] == 2
    assert 6 * RATE <= len(sound) <= 12 * RATE
    peak = np.abs(sound).max()
    assert 20 * math.log10(peak) == pytest.approx(KIND[name].peak_dbfs, abs=0.01)
    assert peak < 1
    edges = np.concatenate([sound[:20], sound[-20:]])  # half a millisecond
    assert np.abs(edges).max() < 0.01 * peak
    assert sound.std() > 1e-3


@pytest.mark.parametrize(("name", "variation"), RECORDINGS)
def test_every_five_second_clip_of_a_recording_holds_its_sound(
    mono: dict[tuple[str, int], np.ndarray], name: str, variation: int
) -> None:
    sound = mono[name, variation]
    clips = [clip for clip in np.split(sound, range(5 * RATE, len(sound), 5 * RATE)) if len(clip) >= RATE]
    assert all(np.abs(clip).max() > 0.2 * np.abs(sound).max() for clip in clips)


def test_levels_differ_as_they_do_in_nature(recordings: dict[tuple[str, int], np.ndarray]) -> None:
    level_db = {key: 20 * math.log10(sound.std()) for key, sound in recordings.items()}
    assert max(level_db.values()) - min(level_db.values()) > 30
    assert level_db["rocket", 0] > level_db["car-idling", 0] > level_db["clock", 0]


@pytest.mark.parametrize(("name", "variation"), RECORDINGS)
def test_the_spectrum_lies_where_the_kind_has_it(
    mono: dict[tuple[str, int], np.ndarray], name: str, variation: int
) -> None:
    low, high = CENTRE_HZ[name]
    assert low < centre_hz(mono[name, variation]) < high


@pytest.mark.parametrize(("name", "variation"), REPEATS_HZ)
def test_what_repeats_does_so_at_its_rate(mono: dict[tuple[str, int], np.ndarray], name: str, variation: int) -> None:
    expected_hz = REPEATS_HZ[name, variation]
    sound = mono[name, variation]
    if name == "telephone":
        sound = sound[: 2 * RATE]  # the first ring, without the pause
    rate_hz, likeness = repetition(sound, expected_hz)
    assert rate_hz == pytest.approx(expected_hz, rel=0.1)
    assert likeness > 0.25


def test_noise_has_no_repetition_to_find() -> None:
    sound = noise(np.random.default_rng(1), 8)
    assert all(repetition(sound, rate_hz)[1] < 0.2 for rate_hz in REPEATS_HZ.values())


@pytest.mark.parametrize("name", ["church-bell", "bicycle-bell", "telephone", "wind-chimes", "whistling", "car-horn"])
def test_what_rings_has_lines_in_its_spectrum(mono: dict[tuple[str, int], np.ndarray], name: str) -> None:
    assert tonality(mono[name, 0]) > 20
    assert tonality(noise(np.random.default_rng(2), 7)) < 4


def test_a_church_bell_has_its_minor_third(mono: dict[tuple[str, int], np.ndarray]) -> None:
    ringing = mono["church-bell", 0][RATE // 2 : 2 * RATE]
    prime_hz, tierce_hz = loudest_hz(ringing, 440, 520), loudest_hz(ringing, 540, 620)
    assert tierce_hz / prime_hz == pytest.approx(1.2, rel=0.01)


def test_the_spacecraft_opens_and_closes_the_channel_with_quindar_tones(
    mono: dict[tuple[str, int], np.ndarray],
) -> None:
    sound = mono["spacecraft-radio", 0]
    opening, closing = sound[int(0.52 * RATE) : int(0.73 * RATE)], sound[int(3.12 * RATE) : int(3.33 * RATE)]
    assert loudest_hz(opening, 100, 20_000) == pytest.approx(2525, abs=5)
    assert loudest_hz(closing, 100, 20_000) == pytest.approx(2475, abs=5)


def test_the_glass_fills_and_its_resonance_climbs(mono: dict[tuple[str, int], np.ndarray]) -> None:
    pouring = mono["pouring", 0]
    empty, full = (shape(pouring[int(a * RATE) : int(b * RATE)], band(300, 4000)) for a, b in ((1, 2.5), (4.5, 6)))
    assert centre_hz(full) > 1.15 * centre_hz(empty)


def test_the_jets_whine_falls_as_it_passes(mono: dict[tuple[str, int], np.ndarray]) -> None:
    passing = mono["jet", 1]
    coming, going = passing[RATE // 2 : RATE], passing[-RATE : -RATE // 2]
    assert loudest_hz(coming, 3500, 7000) > 1.3 * loudest_hz(going, 3500, 7000)


def test_the_siren_sweeps_more_than_an_octave(mono: dict[tuple[str, int], np.ndarray]) -> None:
    wail = mono["siren", 0]
    pitches = [loudest_hz(wail[start : start + RATE // 10], 500, 1700) for start in range(0, 4 * RATE, RATE // 10)]
    assert max(pitches) > 2 * min(pitches)


def test_speech_pauses_and_static_does_not_pause_like_it(mono: dict[tuple[str, int], np.ndarray]) -> None:
    levels = mono["babble", 0][: 6 * RATE].reshape(-1, RATE // 50).std(axis=1)
    assert (levels < 0.1 * levels.max()).mean() > 0.1
    assert (levels > 0.3 * levels.max()).mean() > 0.2


def test_a_buzz_has_no_harmonic_far_above_its_cutoff() -> None:
    spectrum = np.abs(np.fft.rfft(buzz(np.full(RATE, 200.0), 2000.0)))
    assert spectrum[200] > 100 * spectrum[6000:].max()
    assert spectrum[2000] / spectrum[200] == pytest.approx(math.exp(-1), rel=0.05)


def test_formants_follow_their_centre() -> None:
    centre = np.concatenate([np.full(RATE, 500.0), np.full(RATE, 3000.0)])
    sound = formants(noise(np.random.default_rng(3), 2), (centre, 100.0, 1.0))
    assert loudest_hz(sound[: RATE - 2000], 50, 20_000) == pytest.approx(500, abs=150)
    assert loudest_hz(sound[RATE + 2000 :], 50, 20_000) == pytest.approx(3000, abs=150)


def test_a_still_formant_is_the_plain_resonance() -> None:
    sound = noise(np.random.default_rng(4), 1)
    moving, still = formants(sound, (800.0, 2000.0, 1.0)), shape(sound, resonances((800, 2000, 1)))
    inner = slice(2000, -2000)
    assert np.corrcoef(moving[inner], still[inner])[0, 1] > 0.99


def test_a_small_bubble_sings_higher_and_shorter() -> None:
    small, large = bubble(1.0), bubble(3.0)
    assert len(small) < len(large)
    assert loudest_hz(np.pad(small, (0, RATE)), 100, 9000) == pytest.approx(3000, rel=0.1)
    assert loudest_hz(np.pad(large, (0, RATE)), 100, 9000) == pytest.approx(1000, rel=0.1)


def test_sounds_that_pass_the_end_are_cut() -> None:
    laid = lay(0.01, [(0.0, np.ones(10)), (0.005, np.ones(RATE)), (9.0, np.ones(5))])
    assert len(laid) == 441
    assert laid.sum() == 10 + (441 - round(0.005 * RATE))
