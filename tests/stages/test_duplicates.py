"""Copies in a pool: found by their sound, one recording in a scene, and never in both splits."""

import io
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from sonify import layout
from sonify.dataset.write import publish
from sonify.keys import split_of
from sonify.pool import Duplicate, DuplicateCounts, count_duplicates, read_duplicates
from sonify.report.status import compare_usage, pairs_of_run, print_status, read_status, run_usage
from sonify.report.verify import verify
from sonify.rows import Clip
from sonify.running import run
from sonify.stages.duplicates import groups_of
from sonify.stages.pair import check_splits
from tests.builders import hash_run, refused, small_config, stored, write_csv, write_photos, write_sound

RATE_HZ = 16_000


def lively(seed, seconds=5.0):
    """Noise whose level and colour change all the time, different for each seed."""
    rng = np.random.default_rng(seed)
    steps = round(seconds * 20)
    level = np.repeat(10 ** rng.uniform(-2.5, -1, steps), RATE_HZ // 20)
    sound = rng.standard_normal(len(level))
    dull = np.repeat(rng.random(steps), RATE_HZ // 20)
    return level * (dull * sound + (1 - dull) * np.concatenate([[0], sound[:-1]]))


def both_corpora(root, **mix):
    """Eight recordings of dogs, and in a second corpus the first six again under other names and as MP3."""
    write_photos(root / "photos", {f"{n:03d}.jpg": "a dog" for n in range(12)})
    for n in range(8):
        write_sound(root / "a" / f"{n}.flac", lively(n), RATE_HZ)
    (root / "b").mkdir()
    for n in range(6):
        command = ["ffmpeg", "-loglevel", "error", "-i", root / "a" / f"{n}.flac", "-b:a", "64k"]
        subprocess.run([*command, root / "b" / f"upload-{n}.mp3"], check=True)
    for folder in ("a", "b"):
        names = sorted(path.name for path in (root / folder).iterdir())
        write_csv(root / folder / "metadata.csv", ("file", "text"), [(name, "dog") for name in names])
    return root


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return both_corpora(tmp_path_factory.mktemp("corpora"))


def config_of(root, run_name, duplicates="join", validation=0.5, **sections):
    sources = [{"kind": "folder", "path": str(root / name), "name": name} for name in ("a", "b")]
    audio = {"sources": sources, "validation": validation, "duplicates": duplicates}
    images = {"path": str(root / "photos"), "shard_size": 8, "validation": 0.5 if validation else 0}
    return small_config(root, run_name, audio=audio, images=images, **sections)


@pytest.fixture(scope="module")
def joined(corpora):
    config = config_of(corpora, "joined", retrieval={"draws": 6})
    run(config)
    return config


def test_copies_are_found_under_other_names(joined):
    found = read_duplicates(joined.run_dir)
    groups = {}
    for copy in found.values():
        groups.setdefault(copy.group, []).append(copy.recording)
    assert sorted(map(sorted, groups.values())) == [[f"a/{n}.flac", f"b/upload-{n}.mp3"] for n in range(6)]
    assert set(groups) == {f"a/{n}.flac" for n in range(6)}


def test_copies_are_counted_and_none_where_they_are_kept(joined, tmp_path):
    left_out = sum(copy.left_out for copy in read_duplicates(joined.run_dir).values())
    assert count_duplicates(joined.run_dir) == DuplicateCounts(recordings=12, groups=6, largest=2, left_out=left_out)
    assert count_duplicates(tmp_path) is None


def said_of(run_dir):
    said = io.StringIO()
    print_status(read_status(run_dir), Console(file=said, width=160))
    return said.getvalue()


def test_the_status_and_a_publication_say_what_joining_came_to(joined, tmp_path):
    found = count_duplicates(joined.run_dir)
    assert found is not None
    assert read_status(joined.run_dir).duplicates == found
    assert f"copies: 12 recordings of the pool are 6, at most 2 of one; {found.left_out} of v" in said_of(
        joined.run_dir
    )
    published = publish(joined.run_dir, tmp_path / "out").record.statistics
    assert published.duplicates == asdict(found)


def test_what_training_has_a_copy_of_is_not_heard_in_validation(joined):
    clips = {clip.clip: clip for clip in stored(joined.run_dir / layout.CLIPS, Clip)}
    copies = read_duplicates(joined.run_dir)
    split = {clip.recording: clip.split for clip in clips.values()}
    assert any(copy.left_out for copy in copies.values())
    for copy in copies.values():
        others = {split[other.recording] for other in copies.values() if other.group == copy.group}
        assert copy.left_out == (split[copy.recording] == "validation" and "train" in others)
    heard = {
        side: {
            copies[name].group if name in copies else name
            for pair in pairs_of_run(joined.run_dir)
            if pair.split == side
            for name in (clips[source.clip].recording for source in pair.sources)
        }
        for side in layout.SPLITS
    }
    for pair in pairs_of_run(joined.run_dir):
        for name in (clips[source.clip].recording for source in pair.sources):
            assert name not in copies or not copies[name].left_out
    assert heard["train"]
    assert heard["validation"]
    assert not heard["train"] & heard["validation"]


def test_draws_are_compared_over_what_joining_left(joined):
    assert compare_usage(joined, {"as it is": {}}) == {"as it is": run_usage(joined.run_dir)}


def test_a_sound_is_in_a_scene_once_however_many_copies_there_are(tmp_path):
    write_photos(tmp_path / "photos", {f"{n:03d}.jpg": "a dog and a cat" for n in range(16)})
    for name, text in (("a", "dog"), ("b", "cat")):
        write_sound(tmp_path / name / f"{name}.flac", lively(0), RATE_HZ)
        write_csv(tmp_path / name / "metadata.csv", ("file", "text"), [(f"{name}.flac", text)])
    for duplicates, heard in (("keep", 2), ("join", 1)):
        config = config_of(tmp_path, duplicates, duplicates, validation=0)
        run(config)
        assert {len(pair.sources) for pair in pairs_of_run(config.run_dir)} == {heard}


def test_a_pool_is_the_same_with_and_without_and_so_are_pairs_where_nothing_is_joined(corpora, joined):
    kept = config_of(corpora, "kept", "keep", retrieval={"draws": 6})
    run(kept)
    assert not (kept.run_dir / layout.DUPLICATES).exists()
    before, after = hash_run(kept.run_dir), hash_run(joined.run_dir)
    of_pool = {path for path in before if path.startswith(("pool/", "commits/pool/", "commits/embeddings/"))}
    assert of_pool
    assert all(before[path] == after[path] for path in of_pool)


def test_a_second_call_does_nothing_and_the_run_is_sound(joined):
    before = hash_run(joined.run_dir)
    run(joined)
    assert hash_run(joined.run_dir) == before
    assert not verify(joined.run_dir).damage


def test_a_run_that_kept_copies_joins_them_on_redoing_pair_without_another_pool(corpora):
    run(config_of(corpora, "changed", "keep"))
    assert read_status(corpora / "changed").duplicates is None
    config = config_of(corpora, "changed", "join")
    with refused("audio.duplicates"):
        run(config)
    pools = {path: path.stat().st_mtime_ns for path in (config.run_dir / "pool" / "audio").iterdir()}
    run(config, redo="pair")
    assert pools == {path: path.stat().st_mtime_ns for path in (config.run_dir / "pool" / "audio").iterdir()}
    assert len(read_duplicates(config.run_dir)) == 12
    back = config_of(corpora, "changed", "keep")
    run(back, redo="pair")
    assert read_status(back.run_dir).duplicates is None  # a table of before is there, and nothing was joined
    assert "copies" not in said_of(back.run_dir)
    assert publish(back.run_dir, corpora / "published").record.statistics.duplicates == {}


def test_what_is_known_of_copies_goes_with_the_pool_that_it_is_of(corpora):
    config = config_of(corpora, "withdrawn", "join")
    run(config)
    run(config, stages=["pool"], redo="pool")
    assert read_status(config.run_dir).duplicates is None
    assert not (config.run_dir / layout.DUPLICATES).exists()


def test_a_validation_split_of_copies_alone_is_refused_in_one_line(tmp_path):
    seed = next(
        s for s in range(200) if [split_of(s, "recording", f"{c}/0.flac", 0.5) for c in "ab"] == ["train", "validation"]
    )
    write_photos(tmp_path / "photos", {f"{n:03d}.jpg": "a dog" for n in range(12)})
    for name in "ab":
        write_sound(tmp_path / name / "0.flac", lively(0), RATE_HZ)
        write_csv(tmp_path / name / "metadata.csv", ("file", "text"), [("0.flac", "dog")])
    with refused("of 1 recordings training has a copy, audio.duplicates"):
        run(config_of(tmp_path, "run", seed=seed))


def test_a_recording_that_repeats_itself_is_no_copy(tmp_path):
    write_photos(tmp_path / "photos", {"0.jpg": "a dog"})
    for name, sound in (("a", np.tile(lively(0), 2)), ("b", lively(1))):
        write_sound(tmp_path / name / "0.flac", sound, RATE_HZ)
        write_csv(tmp_path / name / "metadata.csv", ("file", "text"), [("0.flac", "dog")])
    config = config_of(tmp_path, "run", validation=0)
    run(config)
    assert len(stored(config.run_dir / layout.CLIPS, Clip)) == 3
    assert read_duplicates(config.run_dir) == {}
    assert "copies: no recording of the pool is one of another\n" in said_of(config.run_dir)


def test_splits_are_checked_without_a_pool(tmp_path, joined):
    check_splits(tmp_path, joined.images, 0, without_copies=True)


def test_links_make_groups_in_the_order_of_names():
    names = ["e", "d", "c", "b", "a", "z"]
    links = np.array([(0, 2), (3, 4), (2, 1), (1, 0)])
    assert [[names[n] for n in group] for group in groups_of(links, names)] == [["a", "b"], ["c", "d", "e"]]
    assert groups_of(np.zeros((0, 2), int), names) == []
    assert groups_of(np.array([(0, 1), (0, 2), (3, 2)]), names) == [[3, 2, 1, 0]]


def test_ten_thousand_links_make_one_group():
    links = np.stack([np.arange(10_000, 0, -1), np.arange(9_999, -1, -1)], axis=1)
    assert [len(group) for group in groups_of(links, [f"{n:06d}" for n in range(10_001)])] == [10_001]


def test_a_table_of_duplicates_names_each_recording_once(joined):
    rows = stored(joined.run_dir / "pool", Duplicate)
    assert [row.recording for row in rows] == sorted({row.recording for row in rows})
