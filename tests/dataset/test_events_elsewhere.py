"""A published dataset whose scenes have events and ambience, rendered from other copies of its recordings."""

import subprocess

import numpy as np
import pytest

from sonify.dataset.write import publish
from sonify.media.events import cut_active, measure_part
from sonify.pool import ClipSamples
from sonify.report.status import pairs_of_run
from sonify.running import run
from tests.builders import noise, refused, small_config, write_csv, write_photos, write_sound
from tests.dataset.folders import copy_of, elsewhere, mixes, seal, shard_hashes
from tests.dataset.test_read import look_at, rewrite_pairs, with_source

RATE_HZ = 16_000
MIX = {"snr_db": [8.0, 12.0], "events": {"count": [2, 3]}}


def write_recordings(folder):
    """Dogs that bark for a while of their own, and rain."""
    names = []
    for n in range(8):
        samples = noise(n, 5 * RATE_HZ, 0.02)
        if n % 2:
            samples = np.zeros(5 * RATE_HZ)
            length = round((0.3 + 0.1 * n) * RATE_HZ)
            samples[RATE_HZ : RATE_HZ + length] = (
                noise(n, length) * np.repeat(np.random.default_rng(n).random(10), -(-length // 10))[:length]
            )
        write_sound(folder / f"{n}.flac", samples, RATE_HZ)
        names.append((f"{n}.flac", "dog" if n % 2 else "rain"))
    write_csv(folder / "metadata.csv", ("file", "text"), names)


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    root = tmp_path_factory.mktemp("placed")
    write_photos(root / "photos", {f"{n:03d}.jpg": "a dog in the rain" for n in range(12)})
    write_recordings(root / "sounds")
    config = small_config(root, mix=MIX)
    run(config)
    publish(config.run_dir, root / "published")
    return root


@pytest.fixture
def there(placed, tmp_path):
    return copy_of(placed, tmp_path)


def events_of(root):
    return {
        (pair.image, source.concept): source
        for pair in pairs_of_run(root / "run")
        for source in pair.sources
        if source.onsets_sec
    }


def test_the_same_bytes_are_rendered_elsewhere_whatever_the_settings_there(placed, there):
    run(elsewhere(there))
    assert len(events_of(there)) == 12
    assert shard_hashes(there / "run") == shard_hashes(placed / "run")
    assert events_of(there) == events_of(placed)


def test_events_in_another_encoding_are_as_loud_and_at_the_same_times(placed, there):
    for path in (there / "sounds").glob("*.flac"):
        encoded = path.with_suffix(".ogg")
        subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-c:a", "libvorbis", "-q:a", "8", encoded], check=True)
        path.unlink()
    table = there / "sounds" / "metadata.csv"
    table.write_text(table.read_text().replace(".flac", ".ogg"))
    run(elsewhere(there))
    samples, before, after = ClipSamples(there / "run"), events_of(placed), events_of(there)
    assert after.keys() == before.keys()
    for key, source in after.items():
        assert source.copy == "equivalent"
        assert source.onsets_sec == before[key].onsets_sec
        assert (source.active_sec, source.target_lufs) == (before[key].active_sec, before[key].target_lufs)
        assert (source.role, source.snr_db) == ("foreground", before[key].snr_db)
        part = cut_active(samples[source.clip], source.active_start_sec, source.active_sec, RATE_HZ)
        reached = measure_part(part, RATE_HZ) + source.gain_db
        assert reached == pytest.approx(source.target_lufs, abs=1e-3)


def test_an_event_in_the_place_of_a_lost_one_is_heard_at_its_times(placed, there):
    before = events_of(placed)
    lost = sorted({source.clip for source in before.values()})[-1]
    (there / "sounds" / lost.partition("/")[2].partition("#")[0]).unlink()
    table = there / "sounds" / "metadata.csv"
    name = lost.partition("/")[2].partition("#")[0]
    table.write_text("".join(line for line in table.read_text().splitlines(keepends=True) if not line.startswith(name)))
    run(elsewhere(there, "repair"))
    repaired = {key: source for key, source in events_of(there).items() if source.copy == "repaired"}
    assert repaired
    for key, source in repaired.items():
        assert source.clip != lost
        assert set(source.onsets_sec) <= set(before[key].onsets_sec)
        assert source.active_sec != before[key].active_sec
        assert (source.role, source.snr_db) == (before[key].role, before[key].snr_db)
    same = {key for key, mix in mixes(there / "run").items() if mixes(placed / "run")[key] == mix}
    assert len(same) == 12 - len(repaired)


def test_ambience_in_the_place_of_lost_ambience_is_as_loud_as_that_was(placed, there):
    rain = {(p.image, s.concept): s for p in pairs_of_run(placed / "run") for s in p.sources if s.role == "ambience"}
    lost = sorted({source.clip for source in rain.values()})[0]
    (there / "sounds" / lost.partition("/")[2].partition("#")[0]).unlink()
    run(elsewhere(there, "repair"))
    repaired = {
        (pair.image, source.concept): source
        for pair in pairs_of_run(there / "run")
        for source in pair.sources
        if source.copy == "repaired"
    }
    assert repaired
    for key, source in repaired.items():
        assert (source.target_lufs, source.role, source.snr_db) == (
            rain[key].target_lufs,
            "ambience",
            rain[key].snr_db,
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"onsets_sec": [7.0]}, "begins after 7 seconds, and a scene has 5"),
        ({"onsets_sec": [5.0]}, "begins after 5 seconds"),
        ({"onsets_sec": [1e300]}, "times that are none"),
        ({"onsets_sec": [-0.1]}, "times that are none"),
        ({"onsets_sec": [float("nan")]}, "a number that is none"),
        ({"onsets_sec": []}, "times that are none"),
        ({"active_sec": 0.0}, "times that are none"),
        ({"active_sec": float("inf")}, "times that are none"),
        ({"active_start_sec": -1.0}, "times that are none"),
        ({"onsets_sec": [0.1] * 21}, "21 values in one row, at most 20 are read"),
        ({"onsets_sec": [0.1] * 10_000}, "values in one row group: too many"),
        ({"role": "evil"}, "its role is 'evil'"),
        ({"snr_db": 1e9}, "its snr_db 1000000000.0"),
        ({"snr_db": float("nan")}, "its snr_db nan"),
    ],
)
def test_times_that_nobody_publishes_are_refused_in_one_line(there, fields, message):
    rewrite_pairs(
        there / "published", lambda row: row if not row["sources"][0]["onsets_sec"] else with_source(row, **fields)
    )
    with refused(message):
        look_at(there)
    with refused(None):
        run(elsewhere(there))
    assert not (there / "run" / "pool").exists()


def test_a_table_whose_columns_are_named_in_no_utf8_is_refused_in_one_line(there):
    path = sorted((there / "published" / "data").iterdir())[0]
    path.write_bytes(path.read_bytes().replace(b"onsets_sec", b"onsets_\xb8ec"))
    seal(there / "published")
    with refused("not a Parquet file"):
        look_at(there)
