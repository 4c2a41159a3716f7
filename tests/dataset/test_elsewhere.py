"""A published dataset, rendered from another copy of its images and recordings."""

import csv
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from sonify.dataset.committed import compare_with_published
from sonify.dataset.render_from import adopt_settings
from sonify.dataset.write import publish
from sonify.engine.record import require_record
from sonify.errors import InputError, WorkError
from sonify.report.status import read_status
from sonify.report.verify import verify
from sonify.running import run
from sonify.stages.copies import is_as_loud
from sonify.stages.published import images_at_once
from tests.builders import SUBJECTS, picture, small_config, write_photos, write_sounds, write_tar
from tests.dataset.folders import (
    TEXTS,
    elsewhere,
    mixes,
    own_run,
    pairs,
    remove_recording,
    shard_hashes,
)


def test_another_copy_gives_the_same_shards(first, copy):
    counts = run(elsewhere(copy))
    assert shard_hashes(copy / "run") == shard_hashes(first / "run")
    assert counts["pair"].rejected == {}
    found = compare_with_published(adopt_settings(elsewhere(copy)))
    shards = shard_hashes(first / "run")
    assert {path.split("/")[1] for path in shards} == {"train", "validation"}
    assert (found.shards_identical, found.shards_different, found.shards_absent) == (len(shards), 0, 0)
    assert (found.scenes_identical, found.scenes_different, found.scenes_absent) == (40, 0, 0)


def test_a_second_call_does_nothing_and_status_and_verify_know_the_run(copy):
    config = elsewhere(copy)
    run(config)
    before = {path: path.stat().st_mtime_ns for path in (copy / "run" / "commits").rglob("*.json")}
    run(config)
    assert before == {path: path.stat().st_mtime_ns for path in (copy / "run" / "commits").rglob("*.json")}
    assert not verify(copy / "run").damage
    shutil.rmtree(copy / "published")
    stages = {stage.stage: stage for stage in read_status(copy / "run").stages}
    assert stages["copies"].units_to_do == stages["render"].units_to_do == 0
    assert stages["pair"].rows_out == 40


def test_what_was_rendered_elsewhere_can_be_published_again(first, copy):
    run(elsewhere(copy))
    publish(copy / "run", copy / "again")
    for name in ("data", "shards"):
        for path in (copy / "published" / name).iterdir():
            assert (copy / "again" / name / path.name).read_bytes() == path.read_bytes()


def test_stop_lists_what_is_missing_before_anything_is_rendered(first, copy):
    clip = remove_recording(copy, first / "run")
    (copy / "photos" / "004.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of \d+ clips .*\(folder 1\), .*; 1 of 20 images are missing") as caught:
        run(elsewhere(copy))
    assert "copies.csv" in str(caught.value)
    assert not (copy / "run" / "pairs").exists()
    with (copy / "run" / "copies.csv").open() as file:
        rows = {row["clip"]: row for row in csv.DictReader(file)}
    assert next(iter(rows)) == clip  # what is lost comes first
    assert [name for name, row in rows.items() if row["state"] != "exact"] == [clip]
    assert rows[clip]["correlation"] == ""
    assert rows[clip]["state"] == "missing"
    assert (copy / "run" / "missing-images.txt").read_text() == "004_2ejpg\n"


@pytest.mark.parametrize(
    ("difference_lu", "local_peak_dbfs", "published_peak_dbfs", "as_loud"),
    [
        (0.5, -6.0, -6.0, True),
        (-0.6, -6.0, -6.0, False),
        (-0.6, -0.0003, -6.0, True),  # lowered by what its decoder overshot
        (0.6, -0.0003, -6.0, False),
        (0.6, -6.0, -0.0003, True),
        (-3.1, -0.0003, -6.0, False),
    ],
)
def test_a_clip_that_touches_full_scale_may_have_been_lowered(
    difference_lu, local_peak_dbfs, published_peak_dbfs, as_loud
):
    assert is_as_loud(difference_lu, local_peak_dbfs, published_peak_dbfs) == as_loud


def test_what_was_missing_is_found_by_the_same_command_once_it_is_here(first, copy):
    remove_recording(copy, first / "run")
    (copy / "photos" / "004.jpg").unlink()
    with pytest.raises(InputError, match="are missing"):
        run(elsewhere(copy))
    for name in ("photos", "sounds"):
        shutil.copytree(first / name, copy / name, dirs_exist_ok=True)
    run(elsewhere(copy))
    assert shard_hashes(copy / "run") == shard_hashes(first / "run")


def test_after_a_stop_the_same_run_goes_on_with_repair(first, copy):
    remove_recording(copy, first / "run")
    with pytest.raises(InputError, match="are missing"):
        run(elsewhere(copy))
    counts = run(elsewhere(copy, "repair"))
    assert counts["render"].rows_out == 40


def test_skip_leaves_out_the_images_of_lost_clips_and_renders_the_others_alike(first, copy):
    clip = remove_recording(copy, first / "run")
    (copy / "photos" / "004.jpg").unlink()
    counts = run(elsewhere(copy, "skip"))
    lost = {key for (key, _), pair in pairs(first / "run").items() if clip in [s.clip for s in pair.sources]}
    lost.add("004_2ejpg")
    left = {key: value for key, value in mixes(first / "run").items() if key[0] not in lost}
    assert 0 < len(left) < 40
    assert mixes(copy / "run") == left
    assert counts["pair"].rejected["missing"] + counts["pair"].rejected.get("missing_scene", 0) == 40 - len(left)
    assert compare_with_published(adopt_settings(elsewhere(copy, "skip"))).scenes_identical == len(left)


def test_repair_draws_another_clip_for_a_lost_one_and_says_so(first, copy):
    clip = remove_recording(copy, first / "run")
    counts = run(elsewhere(copy, "repair"))
    assert counts["pair"].rejected == {}
    published, repaired = pairs(first / "run"), pairs(copy / "run")
    assert repaired.keys() == published.keys()
    replaced = 0
    for key, pair in published.items():
        found = repaired[key]
        assert [s.concept for s in found.sources] == [s.concept for s in pair.sources]
        assert [s.target_lufs for s in found.sources] == [s.target_lufs for s in pair.sources]
        assert len({s.clip for s in found.sources}) == len(found.sources)
        for before, now in zip(pair.sources, found.sources, strict=True):
            if before.clip == clip:
                assert now.clip != clip
                assert now.copy == "repaired"
                replaced += 1
            else:
                assert now == before
    assert replaced
    changed = {key for key, pair in published.items() if clip in [s.clip for s in pair.sources]}
    assert {key for key, value in mixes(copy / "run").items() if value != mixes(first / "run")[key]} == changed
    assert compare_with_published(adopt_settings(elsewhere(copy, "repair"))).scenes_different == len(changed)
    assert [one["split"] for one in require_record(copy / "run").acted["splits"]] == ["train", "validation"]


def test_repair_with_a_pool_that_shares_nothing_pairs_as_pairing_would(first, copy):
    shutil.rmtree(copy / "sounds")
    texts = {f"other-{n:03d}.flac": SUBJECTS[n % len(SUBJECTS)] for n in range(24)}
    write_sounds(copy / "sounds", texts)
    for n in range(24):  # other recordings, too
        rng = np.random.default_rng(1000 + n)
        soundfile.write(copy / "sounds" / f"other-{n:03d}.flac", 0.1 * rng.standard_normal(80000), 16000)
    run(elsewhere(copy, "repair"))
    swapped = pairs(copy / "run")
    assert {s.copy for pair in swapped.values() for s in pair.sources} == {"repaired"}
    fresh = small_config(copy, "fresh", **own_run(copy))
    run(fresh)
    compared = 0
    for key, pair in pairs(copy / "fresh").items():
        if len(pair.sources) == len(swapped[key].sources):  # a concept that found nothing was not published
            compared += 1
            assert [(s.clip, s.gain_db) for s in swapped[key].sources] == [(s.clip, s.gain_db) for s in pair.sources]
    assert compared > 20


def test_repair_without_a_candidate_rejects_the_image(first, copy):
    shutil.rmtree(copy / "sounds")
    write_sounds(copy / "sounds", {"other.flac": "dog"})  # one recording, which is in one of the splits
    counts = run(elsewhere(copy, "repair"))
    (split,) = {pair.split for pair in pairs(copy / "run").values()}
    published = pairs(first / "run")
    most = {key: max(len(p.sources) for (image, _), p in published.items() if image == key) for key, _ in published}
    splits = {image: pair.split for (image, _), pair in published.items()}
    can_be_heard = {image for image, sources in most.items() if sources == 1 and splits[image] == split}
    assert {image for image, _ in pairs(copy / "run")} == can_be_heard
    assert counts["pair"].rejected["no_match"] >= 20 - len(can_be_heard)


@pytest.fixture(scope="module")
def real(test_data, tmp_path_factory):
    """A published run over real recordings."""
    root = tmp_path_factory.mktemp("real")
    captions = {f"{n}.jpg": f"a photo of a {name}" for n, name in enumerate(["dog", "cat", "rooster", "rain"] * 3)}
    write_photos(root / "photos", captions)
    (root / "sounds").mkdir()
    with (test_data / "sounds" / "metadata.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["text"] in ("dog", "cat", "rooster", "rain")]
    for row in rows:
        shutil.copy(test_data / "sounds" / row["file"], root / "sounds")
    write_metadata(root / "sounds", {row["file"]: row["text"] for row in rows})
    config = small_config(root)
    run(config)
    publish(config.run_dir, root / "published")
    return root


def write_metadata(folder, texts):
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "text"), *texts.items()])


def test_other_encodings_of_the_recordings_are_equivalent_and_flagged(real, tmp_path):
    for name in ("photos", "published"):
        shutil.copytree(real / name, tmp_path / name)
    (tmp_path / "sounds").mkdir()
    for path in (real / "sounds").glob("*.flac"):
        samples, rate_hz = soundfile.read(path)
        soundfile.write(tmp_path / "sounds" / f"{path.stem}.ogg", samples, rate_hz)
    counts = run(elsewhere(tmp_path, "skip"))
    with (tmp_path / "run" / "copies.csv").open() as file:
        rows = list(csv.DictReader(file))
    states = [row["state"] for row in rows]
    assert states.count("equivalent") > 0.7 * len(states)
    assert not {"exact", "missing"} & set(states)
    for row in rows:
        close = float(row["correlation"]) >= 0.95 and abs(float(row["loudness_difference_lu"])) <= 0.5
        assert close == (row["state"] == "equivalent")
    assert counts["render"].rows_out > 0
    for pair in pairs(tmp_path / "run").values():
        assert {source.copy for source in pair.sources} == {"equivalent"}
        assert all(source.clip.endswith(".ogg#0") for source in pair.sources)
    found = compare_with_published(adopt_settings(elsewhere(tmp_path, "skip")))
    assert found.scenes_identical == 0
    assert found.scenes_different == counts["render"].rows_out


def test_other_recordings_under_the_same_names_are_different(first, copy):
    for path in (copy / "sounds").glob("*.flac"):
        rng = np.random.default_rng(int(path.stem))
        soundfile.write(path, 0.1 * rng.standard_normal(80000), 16000)
    with pytest.raises(InputError, match="are missing or different"):
        run(elsewhere(copy))
    with (copy / "run" / "copies.csv").open() as file:
        assert {row["state"] for row in csv.DictReader(file)} == {"different"}


def test_the_same_recordings_in_other_places_are_exact(first, copy):
    (copy / "sounds" / "below").mkdir()
    for path in (copy / "sounds").glob("*.flac"):
        path.rename(copy / "sounds" / "below" / f"renamed-{path.name}")
    run(elsewhere(copy))
    assert mixes(copy / "run") == mixes(first / "run")


@pytest.mark.parametrize(("scenes", "images"), [(1, 512), (8, 512), (9, 455), (1000, 4)])
def test_many_scenes_an_image_are_fewer_images_in_work(scenes, images):
    assert images_at_once(("scene",) * scenes) == images


def test_a_lost_disk_is_not_taken_for_missing_images(first, copy):
    images = copy / "photos"
    images.rename(copy / "away")
    images.mkdir()
    with pytest.raises(WorkError, match="given up"):
        run(elsewhere(copy, missing="skip"))
    assert not (copy / "run" / "commits" / "concepts").exists()
    images.rmdir()
    (copy / "away").rename(images)
    run(elsewhere(copy, missing="skip"))
    assert len(pq.read_table(copy / "run" / "pairs")) == len(pq.read_table(first / "run" / "pairs"))


def test_images_in_archives(tmp_path):
    for number in range(2):
        members = {}
        for n in range(4):
            members |= {f"{n}.jpg": picture(10 * number + n), f"{n}.txt": b"a dog and a cat"}
        write_tar(tmp_path / "photos" / f"{number}.tar", members)
    write_sounds(tmp_path / "sounds", TEXTS)
    images = {"kind": "webdataset", "path": str(tmp_path / "photos"), "validation": 0.0}
    config = small_config(tmp_path, images=images)
    run(config)
    publish(config.run_dir, tmp_path / "published")
    hashes = shard_hashes(tmp_path / "run")
    again = elsewhere(tmp_path, run_dir=str(tmp_path / "again"), images=images)
    run(again)
    assert shard_hashes(tmp_path / "again") == hashes
    write_tar(tmp_path / "photos" / "0.tar", {f"{n}.jpg": picture(n) for n in range(3)})
    (tmp_path / "photos" / "1.tar").unlink()
    counts = run(elsewhere(tmp_path, "skip", run_dir=str(tmp_path / "third"), images=images))
    assert counts["pair"].rejected == {"missing": 5}
    assert counts["render"].rows_out == 3
