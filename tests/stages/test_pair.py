import csv
from importlib.resources import files

import pytest

from sonify import layout
from sonify.engine.job import StoredReject
from sonify.engine.record import require_record
from sonify.errors import InputError, WorkError
from sonify.keys import split_of
from sonify.report.status import pairs_of_run
from sonify.retrieval.candidates import RULES_VERSION
from sonify.retrieval.kinds import KINDS_VERSION
from sonify.rows import Clip
from sonify.running import run
from sonify.stages import pair as pair_stage
from tests.builders import (
    refused,
    small_config,
    small_input,
    sounds_in,
    stored,
    tone,
    write_photos,
    write_sound,
    write_sounds,
)

PAIRED = ["pool", "embeddings", "concepts", "pair"]


def pair(config):
    counts = run(config, stages=PAIRED)["pair"]
    return list(pairs_of_run(config.run_dir)), stored(config.run_dir / layout.REJECTS / "pair", StoredReject), counts


def clips_of(config):
    return {clip.clip: clip for clip in stored(config.run_dir / layout.CLIPS, Clip)}


@pytest.fixture
def root(tmp_path):
    small_input(tmp_path, photos=16)
    return tmp_path


def test_a_pair_follows_from_the_pool_and_the_settings(root):
    config = small_config(root)
    pairs, _, _ = pair(config)
    clips = clips_of(config)
    assert len(pairs) == 16
    for row in pairs:
        for source in row.sources:
            assert -32 <= source.target_lufs <= -28
            gain = source.target_lufs - clips[source.clip].loudness_lufs
            assert source.gain_db == pytest.approx(min(gain, 30.0), abs=1e-4)
            assert source.cosine <= 1.000001
            assert source.num_candidates >= 1
            assert source.description == f"This is a sound of {source.concept}"


def test_the_drawn_clip_is_of_the_named_subject(root):
    pairs, _, _ = pair(small_config(root))
    with (root / "sounds" / "metadata.csv").open() as file:
        texts = {row["file"]: row["text"] for row in csv.DictReader(file)}
    for row in pairs:
        drawn = texts[row.sources[0].clip.removeprefix("folder/").partition("#")[0]]
        assert drawn in row.caption


def test_other_seeds_and_scenes_draw_other_clips(root):
    write_sound(root / "sounds" / "more.wav", tone(9, seconds=40))
    one, _, _ = pair(small_config(root, run="one", retrieval={"draws": 3}))
    other, _, _ = pair(small_config(root, run="other", retrieval={"draws": 3}, seed=1))
    assert [row.scene for row in one[:3]] == ["captions-0", "captions-1", "captions-2"]
    assert [row.sources for row in one] != [row.sources for row in other]
    assert len({row.sources[0].clip for row in one if row.image == one[0].image}) > 1


def test_no_recording_is_heard_twice_in_a_scene(tmp_path):
    small_input(tmp_path, photos=0)
    write_photos(
        tmp_path / "photos", {f"{n}.jpg": "a dog, a growling hound, a howling wolf and a puppy" for n in range(8)}
    )
    for file in (tmp_path / "sounds").iterdir():
        file.unlink()
    write_sounds(tmp_path / "sounds", {"a.wav": "dogs growling and howling", "b.wav": "dog"}, seconds=20)
    config = small_config(tmp_path)
    pairs, _, _ = pair(config)
    clips = clips_of(config)
    for row in pairs:
        recordings = [clips[source.clip].recording for source in row.sources]
        assert len(recordings) == len(set(recordings))


def test_a_discard_word_in_any_caption_discards_the_image_in_all_scenes(root):
    (root / "other.csv").write_text("file,caption\n" + "".join(f"{n:03d}.jpg,a dog and a sign\n" for n in range(3)))
    extractors = [{"kind": "captions"}, {"kind": "captions", "name": "other", "file": str(root / "other.csv")}]
    config = small_config(root, concepts={"extractors": extractors})
    with pytest.raises(WorkError, match=r"no image got a sound \(6 discarded, 26 missing_scene\)"):
        pair(config)
    rejects = stored(config.run_dir / layout.REJECTS / "pair", StoredReject)
    discarded = [row for row in rejects if row.reason == "discarded"]
    assert {(row.key, row.scene) for row in discarded} == {
        (f"{n:03d}_2ejpg", scene) for n in range(3) for scene in ("captions", "other")
    }
    assert {row.detail for row in discarded} == {"sign"}


def test_a_missing_scene_is_filled_by_further_draws_where_any_scene_will_do(root):
    (root / "other.csv").write_text("file,caption\n000.jpg,thunder\n")
    extractors = [{"kind": "captions"}, {"kind": "captions", "name": "other", "file": str(root / "other.csv")}]
    config = small_config(root, concepts={"extractors": extractors}, render={"scenes": "any"})
    pairs, _, counts = pair(config)
    assert counts.rows_out == counts.rows_in == 32
    assert {row.scene for row in pairs} == {"scene-0", "scene-1"}
    assert all(row.caption for row in pairs)


@pytest.mark.parametrize(
    ("retrieval", "top_k", "most"),
    [({}, 8, 3), ({"top_k_share": None, "clips_per_recording": None}, 16, 0), ({"top_k": 5}, 5, 3)],
)
def test_the_rules_that_acted_are_recorded_before_anything_is_drawn(root, monkeypatch, retrieval, top_k, most):
    config = small_config(root, retrieval=retrieval)
    run(config, stages=["pool", "embeddings", "concepts"])
    assert require_record(config.run_dir).acted == {}
    seen = []
    monkeypatch.setattr(pair_stage, "pair_job", lambda config: seen.append(require_record(config.run_dir).acted))
    with pytest.raises(WorkError):
        run(config)
    split = {"split": "train", "clips": 16, "recordings": 16, "top_k": top_k, "clips_per_recording": most}
    assert seen[0] == {"version": RULES_VERSION, "kinds": KINDS_VERSION, "splits": [split]}
    monkeypatch.undo()
    run(config)
    run(config)
    assert require_record(config.run_dir).acted == seen[0]


def test_what_acted_is_told_of_each_split_and_of_recordings_as_they_count(tmp_path):
    small_input(tmp_path, photos=8, recordings=0)
    write_sounds(tmp_path / "sounds", {f"{n:03d}.flac": "dog" for n in range(24)}, seconds=10.0)
    words = {"encoder": {"kind": "text", "matching": "words"}, "limit": None, "merge_names": False}
    images = {"kind": "folder", "path": f"{tmp_path}/photos", "validation": 0.5}
    audio = sounds_in(tmp_path / "sounds", validation=0.25)
    config = small_config(tmp_path, images=images, audio=audio, retrieval=words)
    run(config, stages=PAIRED)
    clips = clips_of(config).values()
    acted = require_record(config.run_dir).acted
    assert acted["kinds"] == 0
    assert [(one["split"], one["clips"], one["recordings"]) for one in acted["splits"]] == [
        (split, len(found := [clip for clip in clips if clip.split == split]), len({clip.recording for clip in found}))
        for split in ("train", "validation")
    ]
    assert sum(one["recordings"] for one in acted["splits"]) == 24


def test_a_concept_below_the_lowest_cosine_is_dropped(root):
    write_photos(root / "photos", {"odd.jpg": "a dog beside a didgeridoo", "odder.jpg": "a didgeridoo"})
    pairs, rejects, _ = pair(small_config(root, retrieval={"min_cosine": 0.5}))
    odd = next(row for row in pairs if row.image == "odd_2ejpg")
    assert [source.concept for source in odd.sources] == ["dog barking"]
    assert [(row.key, row.reason) for row in rejects] == [("odder_2ejpg", "no_match")]


def test_two_names_of_one_sound_are_one_source(tmp_path):
    write_photos(tmp_path / "photos", {"a.jpg": "engine revving beside a motorcycle in the rain"})
    write_sounds(tmp_path / "sounds", {"a.wav": "engine", "b.wav": "engine", "c.wav": "rain"})
    (row,), _, _ = pair(small_config(tmp_path))
    assert [source.concept for source in row.sources] == ["engine revving", "rain falling"]
    assert all(0 < source.limit <= source.cosine for source in row.sources)
    assert [(one.concept, one.reason, one.clip) for one in row.refused] == [("motorcycle engine", "same_source", "")]
    (row,), _, _ = pair(small_config(tmp_path, run_dir=str(tmp_path / "both"), retrieval={"merge_names": False}))
    assert [source.concept for source in row.sources] == ["engine revving", "motorcycle engine", "rain falling"]
    assert row.refused == ()


def test_another_name_is_heard_where_the_first_has_nothing(tmp_path):
    """A name that found no clip is not in the scene, so that its other name may still find one."""
    write_photos(tmp_path / "photos", {"a.jpg": "a dog howling at a duck quacking beside a goose"})
    write_sounds(tmp_path / "sounds", {"a.wav": "goose", "b.wav": "duck"})
    (row,), _, _ = pair(small_config(tmp_path))
    assert {source.concept for source in row.sources} == {"duck quacking", "goose honking"}
    (refused,) = row.refused
    assert (refused.concept, refused.reason) == ("howling", "no_match")
    assert refused.clip


@pytest.mark.parametrize(
    ("text", "risk", "said"),
    [
        ("{", 0.05, r"limit\.calibration: .*limits\.json: expected what `python -m eval\.pairing --calibrate` writes"),
        ("[]", 0.05, r"limit\.calibration: .*limits\.json: expected what"),
        ("SHIPPED", 0.005, r"limit: .*limits\.json holds no calibration for a risk of at most 0\.005"),
        ('{"calibrations": []}', 0.05, r"limit: .*limits\.json holds no calibration for a risk"),
    ],
)
def test_a_calibration_that_cannot_act_is_refused_before_anything_is_done(root, text, risk, said):
    shipped = files("sonify.retrieval").joinpath("limits.json").read_text()
    (root / "limits.json").write_text(shipped if text == "SHIPPED" else text)
    limit = {"risk": risk, "calibration": str(root / "limits.json")}
    config = small_config(root, retrieval={"encoder": {"kind": "clap"}, "limit": limit})
    with refused(said):
        run(config, stages=["pool"])
    assert not (root / "run" / layout.COMMITS).exists()
    assert not (root / "run" / layout.UNITS).exists()


def test_a_limit_for_an_encoder_that_nobody_calibrated_stops_before_any_work(root):
    (root / "limits.json").write_text('{"calibrations": []}')
    config = small_config(root, retrieval={"limit": {"calibration": str(root / "limits.json")}})
    with pytest.raises(InputError, match=r"retrieval\.limit: .*limits\.json holds no calibration of .*--calibrate"):
        run(config, stages=["pool"])
    assert not (root / "run" / layout.UNITS).exists()


@pytest.mark.parametrize("line", ["000_2ejpg", "000.jpg"])
def test_excluded_images_leave(root, line):
    (root / "exclude.txt").write_text(line + "\n")
    _, rejects, counts = pair(small_config(root, images={"exclude": str(root / "exclude.txt")}))
    assert [(row.key, row.reason) for row in rejects] == [("000_2ejpg", "excluded")]
    assert counts.rows_out == 15


def test_validation_images_hear_only_validation_recordings(tmp_path):
    small_input(tmp_path, photos=60, recordings=64)
    config = small_config(tmp_path, images={"validation": 0.3}, audio={"validation": 0.3})
    pairs, _, _ = pair(config)
    clips = clips_of(config)
    assert {row.split for row in pairs} == {"train", "validation"}
    for row in pairs:
        assert row.split == split_of(0, "image", row.image, 0.3)
        assert all(clips[source.clip].split == row.split for source in row.sources)


def test_validation_images_without_validation_recordings_are_an_error_before_the_start(tmp_path):
    small_input(tmp_path, photos=30, recordings=2)
    config = small_config(tmp_path, images={"validation": 0.5}, audio={"validation": 0.0001})
    with pytest.raises(InputError, match="no validation recordings"):
        pair(config)
    assert not (config.run_dir / layout.PAIRS).exists()


def test_on_real_photographs_the_drawn_clip_is_of_the_photographs_class(test_data, real_run, tmp_path):
    with (test_data / "photos/sound_class.csv").open() as file:
        classes = {row["file"]: row["sound_class"] for row in csv.DictReader(file)}
    with (test_data / "sounds/metadata.csv").open() as file:
        class_of = {row["file"]: row["class"] for row in csv.DictReader(file)}
    few = tmp_path / "few"
    few.mkdir()
    wanted = sorted(set(classes.values()))
    by_class = {name: [file for file in sorted(class_of) if class_of[file] == name] for name in set(class_of.values())}
    some = [by_class[name][3] for name in wanted] + [by_class[name][5] for name in sorted(by_class)] + [
        by_class[name][1] for name in wanted[:7]
    ]  # fmt: skip
    for file in some[:80]:
        (few / file).symlink_to(test_data / "sounds" / file)
    (few / "metadata.csv").symlink_to(test_data / "sounds" / "metadata.csv")
    assert len(list(few.glob("*.flac"))) == 80
    images = {"path": str(test_data / "photos"), "shard_size": 64}
    of_few = small_config(tmp_path, images=images, audio=sounds_in(few))
    run(of_few, stages=PAIRED)
    for config in (real_run, of_few):
        heard = {
            row.image_uri: {class_of[s.clip.removeprefix("folder/").partition("#")[0]] for s in row.sources}
            for row in pairs_of_run(config.run_dir)
        }
        right = sum(name in heard.get(file, set()) for file, name in classes.items())
        assert right / len(classes) >= 0.95, config.run_dir
