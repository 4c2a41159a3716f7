"""What surrounds, how far it is below the rest, and when short sounds are heard."""

import math

import numpy as np
import pytest

from sonify import layout
from sonify.config import Events, Mix
from sonify.keys import uniform
from sonify.media.events import ActivePart, cut_active, find_active, lay_out, measure_part
from sonify.pool import ClipSamples
from sonify.report.status import pairs_of_run
from sonify.rows import Clip, Concept, Render
from sonify.running import run
from sonify.stages.scene import heard_again, is_ambience, is_event, power_sum_db, set_ratio
from tests.builders import (
    as_pcm,
    hash_run,
    noise,
    refused,
    small_config,
    source_row,
    stored,
    write_csv,
    write_photos,
    write_sound,
)

RATE_HZ = 16_000
KEY = (0, "image", "scene")
ON = {"snr_db": (8.0, 12.0), "events": {"count": (2, 3)}}


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("rain", "", True),
        ("rain", "foreground", False),
        ("dog", "", False),
        ("dog", "background", True),
        ("dog", "ambience", True),
        ("waves crashing on the shore", "", True),
        ("dog barking in the rain", "", False),
        ("crowd", "", True),
        ("traffic", "", True),
        ("cat hissing", "", False),
        ("radio", "", False),
        ("something unheard of", "", False),
    ],
)
def test_what_surrounds_is_what_the_model_says_or_else_a_matter_of_kind(name, word, expected):
    assert is_ambience(Concept(concept=name, description="", prominence=word)) is expected


def test_short_sounds_with_a_peak_are_events_where_the_scene_has_room_for_two():
    part, events = ActivePart(1.0, 1.5, 20.0), Events()
    assert is_event(part, events, 5.0)
    assert not is_event(part, events, 2.9)
    assert not is_event(part, Events(max_active_sec=1.4), 5.0)
    assert not is_event(part, Events(min_crest_db=20.1), 5.0)
    assert not is_event(ActivePart(0.0, 0.0, 0.0), Events(min_crest_db=0.0), 5.0)


def sources_at(targets_lufs, loudness_lufs, max_gain_db=30.0):
    return [
        source_row(f"thing {n}", target_lufs=target, gain_db=min(target - lufs, max_gain_db))
        for n, (target, lufs) in enumerate(zip(targets_lufs, loudness_lufs, strict=True))
    ]


def test_the_ambience_is_as_a_whole_as_far_below_the_foreground_as_was_drawn():
    loudness = [-20.0, -25.0, -30.0, -22.0]
    sources = sources_at([-30.0, -28.0, -31.0, -29.0], loudness)
    ambient = [False, True, True, False]
    settled = set_ratio(sources, loudness, ambient, Mix(snr_db=(5.0, 15.0)), KEY)
    drawn = round(5 + 10 * uniform("snr", *KEY), 4)
    levels = [lufs + s.gain_db for s, lufs in zip(settled, loudness, strict=True)]
    ratio = power_sum_db([levels[0], levels[3]]) - power_sum_db(levels[1:3])
    assert ratio == pytest.approx(drawn, abs=2e-4)
    assert [s.role for s in settled] == ["foreground", "ambience", "ambience", "foreground"]
    assert {s.snr_db for s in settled} == {drawn}
    assert settled[1].target_lufs - settled[2].target_lufs == pytest.approx(3.0, abs=2e-4)  # as it was
    assert (settled[0].gain_db, settled[0].target_lufs) == (sources[0].gain_db, sources[0].target_lufs)


def test_the_ratio_is_to_what_the_foreground_reaches_and_not_to_what_it_was_to_be():
    loudness = [-62.0, -25.0]
    sources = sources_at([-30.0, -30.0], loudness, max_gain_db=20.0)
    settled = set_ratio(sources, loudness, [False, True], Mix(snr_db=(10.0, 10.0), max_gain_db=20.0), KEY)
    assert settled[0].gain_db == 20.0
    assert settled[1].target_lufs == -52.0
    assert settled[1].gain_db == -27.0


@pytest.mark.parametrize("ambient", [[False, False], [True, True]])
def test_a_scene_of_one_kind_stays_as_it_is(ambient):
    sources = sources_at([-30.0, -28.0], [-20.0, -25.0])
    assert set_ratio(sources, [-20.0, -25.0], ambient, Mix(snr_db=(5.0, 5.0)), KEY) == tuple(sources)


def test_targets_stay_within_what_a_table_may_say():
    loud = set_ratio(sources_at([0.0, -60.0], [-1.0, -60.0]), [-1.0, -60.0], [False, True], Mix(snr_db=(-30, -30)), KEY)
    assert loud[1].target_lufs == 0.0
    quiet = set_ratio(sources_at([-69.0, 0.0], [0.0, 0.0]), [0.0, 0.0], [False, True], Mix(snr_db=(60, 60)), KEY)
    assert quiet[1].target_lufs == -110.0


@pytest.mark.parametrize(
    ("mix", "match"),
    [
        ({"snr_db": (10.0, 5.0)}, r"snr_db must be \[low, high\] between -30 and 60, found \[10.0, 5.0\]"),
        ({"snr_db": (10.0, 90.0)}, "snr_db must be"),
        ({"events": {"count": (3, 1)}}, r"count must be \[low, high\], found \[3, 1\]"),
        ({"events": {"count": (0, 1)}}, "mix.events.count"),
        ({"events": {"count": (1, 21)}}, "mix.events.count"),
        ({"events": {"onset_sec": (2.0, 1.0)}}, "onset_sec must be"),
        ({"events": {"onset_sec": (-1.0, 1.0)}}, "mix.events.onset_sec"),
        ({"events": {"onset_sec": (5.0, 6.0)}}, "begins at 5, and a scene ends after 5 seconds"),
        ({"events": {"max_active_sec": 0.0}}, "max_active_sec"),
        ({"events": {"onsets": 3}}, "onsets"),
    ],
)
def test_ranges_that_are_none_are_refused_in_one_line(tmp_path, mix, match):
    (tmp_path / "photos").mkdir()
    (tmp_path / "sounds").mkdir()
    with refused(match):
        small_config(tmp_path, mix=mix)


def bark(seed=0, rate_hz=RATE_HZ, seconds=5.0):
    """A burst of 0.4 s after a second of nothing."""
    samples = np.zeros(round(seconds * rate_hz))
    start, length = round(min(1.0, seconds / 4) * rate_hz), round(0.4 * min(1.0, seconds) * rate_hz)
    samples[start : start + length] = noise(seed, length, 0.1)
    return samples


@pytest.fixture
def root(tmp_path):
    return make_input(tmp_path)


def make_input(root, rate_hz=RATE_HZ, seconds=5.0, photos=12):
    """Dogs that bark once, and rain."""
    write_photos(root / "photos", {f"{n:03d}.jpg": "a dog in the rain" for n in range(photos)})
    rows = []
    for n in range(8):
        samples = bark(n, rate_hz, seconds) if n % 2 else noise(n, round(seconds * rate_hz), 0.02)
        write_sound(root / "sounds" / f"{n}.flac", samples, rate_hz)
        rows.append((f"{n}.flac", "dog" if n % 2 else "rain"))
    write_csv(root / "sounds" / "metadata.csv", ("file", "text"), rows)
    return root


def dog_and_rain(pair):
    rain = next(source for source in pair.sources if "dog" not in source.concept)
    (dog,) = (source for source in pair.sources if source is not rain)
    return dog, rain


def clips_of(config):
    return {clip.clip: clip for clip in stored(config.run_dir / layout.CLIPS, Clip)}


def test_a_run_records_what_is_heard_and_renders_it(root):
    config = small_config(root, mix=ON)
    run(config)
    samples, clips = ClipSamples(config.run_dir), clips_of(config)
    renders = {render.image: render for render in stored(config.run_dir / layout.RENDERS, Render)}
    counts, begin = set(), set()
    for pair in pairs_of_run(config.run_dir):
        dog, rain = dog_and_rain(pair)
        counts.add(len(dog.onsets_sec))
        begin.update(dog.onsets_sec)
        assert (dog.role, rain.role) == ("foreground", "ambience")
        assert 8.0 <= dog.snr_db == rain.snr_db <= 12.0
        assert rain.onsets_sec == ()
        assert -32.0 <= dog.target_lufs <= -28.0
        assert rain.target_lufs == pytest.approx(dog.target_lufs - dog.snr_db, abs=3e-4)
        assert rain.gain_db == pytest.approx(rain.target_lufs - clips[rain.clip].loudness_lufs, abs=1e-4)
        part = cut_active(samples[dog.clip], dog.active_start_sec, dog.active_sec, RATE_HZ)
        assert (dog.active_start_sec, dog.active_sec) == (0.99, 0.42)
        gain = 10 ** (dog.gain_db / 20)
        assert measure_part(part * np.float32(gain), RATE_HZ) == pytest.approx(dog.target_lufs, abs=0.01)
        expected = sum(lay_out(part * gain, (onset,), 80_000, RATE_HZ) for onset in dog.onsets_sec)
        expected = expected + samples[rain.clip] * 10 ** (rain.gain_db / 20)
        peak_dbfs = 20 * math.log10(np.abs(np.rint(expected)).max() / 32768)
        render = renders[pair.image]
        assert render.peak_dbfs - render.mix_gain_db == pytest.approx(peak_dbfs, abs=0.01)
    assert counts == {2, 3}
    assert len(begin) > 12


def test_the_same_run_again_and_with_draws_in_another_order_is_the_same(root):
    run(small_config(root, "one", mix=ON))
    run(small_config(root, "two", mix=ON))
    one, two = hash_run(root / "one"), hash_run(root / "two")
    assert {k: v for k, v in one.items() if "commits" not in k} == {k: v for k, v in two.items() if "commits" not in k}


def test_what_surrounds_stays_whole_though_it_is_short(root):
    write_photos(root / "photos", {f"{n:03d}.jpg": "a dog in a thunderstorm" for n in range(4)})
    rows = [(f"{n}.flac", "dog" if n % 2 else "thunder") for n in range(8)]
    for n in range(0, 8, 2):
        write_sound(root / "sounds" / f"{n}.flac", bark(n), RATE_HZ)
    write_csv(root / "sounds" / "metadata.csv", ("file", "text"), rows)
    config = small_config(root, mix=ON)
    run(config)
    for pair in pairs_of_run(config.run_dir):
        dog, thunder = dog_and_rain(pair)
        assert dog.onsets_sec
        assert (thunder.onsets_sec, thunder.role) == ((), "ambience")


def test_without_both_keys_pairs_say_nothing_of_it(root):
    config = small_config(root)
    run(config)
    for pair in pairs_of_run(config.run_dir):
        for source in pair.sources:
            assert (source.onsets_sec, source.active_sec, source.role, source.snr_db) == ((), 0.0, "", 0.0)


@pytest.mark.parametrize(("rate_hz", "seconds"), [(8000, 5.0), (8000, 1.0), (48_000, 1.0)])
def test_scenes_of_other_lengths_and_rates_have_events(tmp_path, rate_hz, seconds):
    make_input(tmp_path, rate_hz, seconds, photos=4)
    audio = {
        "sources": [{"kind": "folder", "path": str(tmp_path / "sounds")}],
        "validation": 0, "sample_rate": rate_hz, "clip_seconds": seconds,
    }  # fmt: skip
    config = small_config(tmp_path, audio=audio, mix={"events": {"min_crest_db": 10.0}})
    run(config)
    placed = [s for pair in pairs_of_run(config.run_dir) for s in pair.sources if s.onsets_sec]
    assert len(placed) == 4
    assert all(0 <= onset <= seconds - s.active_sec + 1e-5 for s in placed for onset in s.onsets_sec)


def test_more_events_than_fit_are_as_many_as_do(root):
    config = small_config(root, mix={"events": {"count": (20, 20), "gap_sec": 0.5}})
    run(config)
    placed = [s for pair in pairs_of_run(config.run_dir) for s in pair.sources if s.onsets_sec]
    assert {len(s.onsets_sec) for s in placed} == {1 + int((5 - 0.42) / 0.92)}


@pytest.mark.parametrize(("lufs", "limited"), [((-45.0, -15.0), None), ((-9.0, -8.0), True), ((-45.0, -40.0), False)])
def test_wide_loudness_ranges_are_kept_and_what_the_ceiling_takes_is_recorded(root, lufs, limited):
    config = small_config(root, mix={"lufs": lufs, "max_gain_db": 20.0, **ON})
    run(config)
    clips = clips_of(config)
    targets = []
    for pair in pairs_of_run(config.run_dir):
        dog, rain = dog_and_rain(pair)
        targets.append(dog.target_lufs)
        assert lufs[0] <= dog.target_lufs <= lufs[1]
        assert max(dog.gain_db, rain.gain_db) <= 20.0
        gain_db = min(rain.target_lufs - clips[rain.clip].loudness_lufs, 20.0)
        assert rain.gain_db == pytest.approx(gain_db, abs=1e-4)
    renders = stored(config.run_dir / layout.RENDERS, Render)
    assert all(render.peak_dbfs <= -1.0 for render in renders)
    if limited is None:
        assert max(targets) - min(targets) > 15
    else:
        assert {render.mix_gain_db < 0 for render in renders} == {limited}


def placed_source(**fields):
    values = {"onsets_sec": (0.5, 2.0, 3.5), "active_start_sec": 0.99, "active_sec": 0.42, "copy": "equivalent"}
    return source_row(**(values | fields))


def test_another_encoding_that_begins_later_is_cut_later_and_heard_at_the_same_times():
    late = as_pcm(np.roll(bark(), 480))
    source, lufs = heard_again(placed_source(), late, -20.0, RATE_HZ)
    assert (source.active_start_sec, source.active_sec) == (1.02, 0.42)
    assert source.onsets_sec == (0.5, 2.0, 3.5)
    part = cut_active(late, 1.02, 0.42, RATE_HZ)
    assert lufs == measure_part(part, RATE_HZ)


def test_another_encoding_whose_noise_is_heard_is_cut_where_the_published_one_was():
    noisy = as_pcm(bark() + noise(5, level=0.01))
    assert find_active(noisy, RATE_HZ).start_sec == 0.0
    source, _ = heard_again(placed_source(), noisy, -20.0, RATE_HZ)
    assert source.active_start_sec == 0.99


def test_a_longer_event_in_the_place_of_a_lost_one_is_heard_where_there_is_room():
    samples = np.zeros(5 * RATE_HZ)
    samples[RATE_HZ : 3 * RATE_HZ] = noise(0, 2 * RATE_HZ)
    source, _ = heard_again(placed_source(copy="repaired"), as_pcm(samples), -20.0, RATE_HZ)
    assert (source.active_start_sec, source.active_sec, source.onsets_sec) == (0.99, 2.02, (0.5,))
    source, _ = heard_again(placed_source(copy="repaired", onsets_sec=(4.0,)), as_pcm(samples), -20.0, RATE_HZ)
    assert source.onsets_sec == (2.98,)


@pytest.mark.parametrize("samples", [as_pcm(noise()), np.zeros(5 * RATE_HZ, np.int16)])
def test_a_clip_without_an_event_in_the_place_of_one_is_heard_whole(samples):
    source, lufs = heard_again(placed_source(copy="repaired"), samples, -20.0, RATE_HZ)
    assert (source.onsets_sec, source.active_start_sec, source.active_sec, lufs) == ((), 0.0, 0.0, -20.0)
