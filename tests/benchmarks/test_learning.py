import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning.__main__ import measure
from benchmarks.learning.collection import CLASSES, Photo, read_levelled, read_photos, read_recordings, read_squares
from benchmarks.learning.ear import SCALE, Ear, nearest_class
from benchmarks.learning.eye import Eye, class_members
from benchmarks.learning.judging import Judged, join, write_grid
from benchmarks.learning.pairing import (
    DRAWS,
    PHOTOS_PER_CLASS,
    SCENES,
    Heard,
    balanced,
    count_pairs,
    pair_by_class,
    pair_by_sonify,
    recording_file,
    shuffled,
)
from benchmarks.learning.statistics import Estimate, balanced_accuracy, confusion, estimate
from benchmarks.learning.verdicts import CHANCE, LOSS_OF_SONIFY, verdicts
from sonify.media.mixing import measure_loudness


def some_photos(**counts: int) -> list[Photo]:
    return [
        Photo(file=f"{name}/{n}.jpg", name=name, label=f"{name} {n}") for name in CLASSES for n in range(counts[name])
    ]


def some_heard(per_class: int) -> list[Heard]:
    return [
        Heard(recordings=(f"{name}-{n}.flac",), names=(name,), audio_TD=np.full((9, 521), n, np.float32))
        for name in CLASSES
        for n in range(per_class)
    ]


FEW = {"cat": 3, "chirping_birds": 30, "dog": 59, "engine": 8, "insects": 10, "sea_waves": 5}


def test_a_large_class_counts_no_more_than_a_small_one():
    true, right = np.array([0] * 8 + [1] * 2), np.array([1.0] * 8 + [0.0] * 2)
    assert balanced_accuracy(true, right) == 0.5
    assert estimate(true, right) == Estimate(value=0.5, low=0.5, high=0.5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    true, rng = np.repeat(np.arange(6), 12), np.random.default_rng(0)
    drawn = [estimate(true, rng.binomial(8, rng.beta(2, 3, true.size)) / 8, seed=n) for n in range(200)]
    held = np.mean([one.low <= 0.4 <= one.high for one in drawn])
    assert 0.88 < held < 0.99


def test_two_models_that_fail_at_the_same_recordings_do_not_differ():
    true = np.repeat(np.arange(6), 7)
    right = np.random.default_rng(0).random(true.size)
    alone, paired = estimate(true, right), estimate(true, (right + 0.1) - right)
    assert alone.high - alone.low > 0.1
    assert paired.low == pytest.approx(0.1)
    assert paired.high == pytest.approx(0.1)


def test_pictures_are_counted_by_class_and_shares_by_recording():
    judged = Judged(
        true_R=np.array([0, 2]), seen_RS=np.array([[0, 0, 1, 0], [2, 1, 1, 0]]), first_RHWC=np.zeros((2, 8, 8, 3))
    )
    assert judged.right_R.tolist() == [0.75, 0.25]
    assert confusion(judged.true_R, judged.seen_RS, 3).tolist() == [[3, 1, 0], [0, 0, 0], [1, 2, 1]]
    assert join([judged, judged]).right_R.tolist() == [0.75, 0.25, 0.75, 0.25]


GOOD = {
    "a": Estimate(value=0.5, low=0.4, high=0.6),
    "b": Estimate(value=0.48, low=0.38, high=0.58),
    "c": Estimate(value=0.17, low=0.1, high=0.24),
    "a - zeroed": Estimate(value=0.3, low=0.2, high=0.4),
    "b - zeroed": Estimate(value=0.3, low=0.2, high=0.4),
    "a - c": Estimate(value=0.3, low=0.2, high=0.4),
    "b - a": Estimate(value=-0.02, low=-0.1, high=0.06),
}  # fmt: skip


def test_all_thresholds_hold_for_a_model_that_hears():
    assert all(verdict.passed for verdict in verdicts(0.9, 0.95, GOOD))


@pytest.mark.parametrize(
    ("key", "low"),
    [
        ("b", CHANCE),
        ("a - zeroed", 0.0),
        ("b - zeroed", 0.0),
        ("a - c", 0.0),
        ("b - a", -LOSS_OF_SONIFY),
    ],
)
def test_each_threshold_fails_by_its_own_figure(key, low):
    held = verdicts(0.9, 0.95, GOOD | {key: replace(GOOD[key], low=low)})
    assert [verdict.passed for verdict in held].count(False) == 1


def test_equal_models_that_learned_nothing_show_nothing():
    held = verdicts(0.9, 0.95, GOOD | {"a": replace(GOOD["a"], low=CHANCE)})
    assert [verdict.passed for verdict in held].count(False) == 2


def test_blind_eyes_deaf_ears_and_shuffled_pairs_that_teach_fail():
    assert not verdicts(0.5, 0.95, GOOD)[0].passed
    assert not verdicts(0.9, 0.5, GOOD)[1].passed
    assert not verdicts(0.9, 0.95, GOOD | {"c": Estimate(value=0.3, low=0.2, high=0.4)})[-1].passed


def test_every_class_has_as_many_photographs_and_none_comes_twice_under_one_number():
    chosen = balanced(some_photos(**FEW), seed=1)
    assert [sum(photo.name == name for photo, _ in chosen) for name in CLASSES] == [PHOTOS_PER_CLASS] * 6
    assert len({(photo.file, number) for photo, number in chosen}) == len(chosen)
    assert len({photo.file for photo, _ in chosen if photo.name == "insects"}) == FEW["insects"]
    assert all(number == 0 for photo, number in chosen if photo.name == "dog")


def test_pairs_by_class_are_of_the_class_and_shuffled_ones_are_the_same_sounds_elsewhere():
    pairs = pair_by_class(balanced(some_photos(**FEW), seed=1), some_heard(per_class=29), seed=1)
    mixed = shuffled(pairs, seed=1)
    own = [[scene.names == (pair.photo.name,) for pair in made for scene in pair.scenes] for made in (pairs, mixed)]
    assert all(own[0])
    assert np.mean(own[1]) == pytest.approx(1 / 6, abs=0.04)
    assert sorted(heard_in(pairs)) == sorted(heard_in(mixed))
    assert all(len({scene.recordings for scene in pair.scenes}) == SCENES for pair in pairs)


def heard_in(pairs):
    return [scene.recordings[0] for pair in pairs for scene in pair.scenes]


def test_a_photograph_that_is_repeated_has_other_scenes_of_sonify():
    (cat, *_) = some_photos(**FEW)
    scenes = {cat.file: some_heard(per_class=DRAWS)[:DRAWS]}
    pairs = pair_by_sonify([(cat, number) for number in range(DRAWS // SCENES)], scenes)
    assert heard_in(pairs) == [scene.recordings[0] for scene in scenes[cat.file]]


def test_pairs_of_sonify_are_counted_by_both_classes(test_data):
    photos, recordings = some_photos(**FEW), read_recordings(test_data / "learning")[:1]
    assert recordings[0].name == "dog"
    file = recording_file(f"folder/{Path(recordings[0].file).name}#0")
    table = count_pairs({"cat/0.jpg": [file, file], "dog/7.jpg": [file]}, photos, recordings)
    assert (table["cat"]["dog"], table["cat"]["with sound"], table["cat"]["photographs"]) == (2, 1, 3)
    assert (table["dog"]["dog"], table["sea_waves"]["with sound"]) == (1, 0)


def test_the_eye_knows_each_class_from_all_others(test_data):
    folder = test_data / "weights" / "mobilenet_v2"
    photos = read_photos(test_data / "learning")
    labels = (folder / "imagenet_labels.txt").read_text().splitlines()[1:]
    members = [class_members(name, labels, photos) for name in CLASSES]
    assert len(labels) == 1000
    assert len({one for rows in members for one in rows}) == sum(len(rows) for rows in members)
    eye = Eye(folder, photos)
    some = [next(photo for photo in photos if photo.name == name) for name in CLASSES]
    squares = read_squares([test_data / "learning" / "photos" / photo.file for photo in some], 224)
    assert [CLASSES[eye(square).argmax()] for square in squares] == list(CLASSES)
    assert eye(squares[0]) == pytest.approx(eye(squares[0].copy()))


def test_the_ear_hears_each_recording_as_loud_as_a_scene(test_data):
    ear, recordings = Ear(test_data / "weights" / "yamnet"), read_recordings(test_data / "learning")
    some = [one for name in CLASSES for one in [r for r in recordings if r.name == name][:4]]
    samples = [read_levelled(test_data / "learning" / "sounds" / recording.file) for recording in some]
    assert [measure_loudness(one, 16_000) for one in samples] == pytest.approx([-30.0] * len(samples), abs=0.3)
    audio = np.stack([ear(one) for one in samples])
    assert audio.shape == (24, 9, 521)
    assert 0 < audio.max() <= SCALE
    known, names = audio[::2].mean(axis=1), [recording.name for recording in some[::2]]
    right = [nearest_class(one, known, names) == of.name for one, of in zip(audio[1::2], some[1::2], strict=True)]
    assert np.mean(right) > 0.7


def test_a_grid_has_a_row_for_each_class(tmp_path):
    true = np.repeat(np.arange(6), 7)
    pixels = np.zeros((42, 96, 96, 3), np.uint8)
    write_grid(Judged(true_R=true, seen_RS=np.zeros((42, 2), int), first_RHWC=pixels), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_whole_measurement_by_a_model_that_has_hardly_begun(test_data, tmp_path):
    page, line = measure(test_data, tmp_path, steps=4, folds=[5], num_seeds=1)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(line))
    assert (tmp_path / "report.md").read_text() == page
    assert line["eye"] > 0.85
    assert line["ear"] > 0.8
    for name in ("a", "b", "c"):
        for kind in ("audio", "zeroed"):
            assert np.sum(line["confusion"][f"{name} {kind}"]) == 42
            assert (tmp_path / f"grid-{name}-{kind}.png").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("fold-5/train-*/checkpoints/*")}
    assert before
    assert measure(test_data, tmp_path, steps=4, folds=[5], num_seeds=1)[1] == line
    assert {path: path.stat().st_mtime_ns for path in before} == before
