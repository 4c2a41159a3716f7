import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.learning.__main__ import measure, order_of_work
from benchmarks.learning.bench import ARMS, Model, evidence_file, mixed_pairs, targets
from benchmarks.learning.collection import (
    CLASSES,
    Photo,
    mix_levelled,
    read_distractors,
    read_levelled,
    read_photos,
    read_recordings,
    read_squares,
)
from benchmarks.learning.judging import LEVELS_DB, Evidence, Gallery, Judged, distances, write_grid
from benchmarks.learning.pairing import (
    DRAWS,
    MISMATCHED,
    PHOTOS_PER_CLASS,
    SCENES,
    WIDE_LUFS,
    Heard,
    Paired,
    balanced,
    count_sounds,
    make_pool,
    mismatched,
    pair_by_class,
    pair_by_sonify,
    pair_freshly,
    recording_file,
    rules_of,
    shuffled,
    sonify_photos,
)
from benchmarks.learning.recall import read_table, write_picture
from benchmarks.learning.report import above_wrong, both, either, estimates, json_line, markdown, right, spearman
from benchmarks.learning.senses import SCALE, Ear, Eye, class_members, nearest_class
from benchmarks.learning.verdicts import (
    ABOVE,
    CHANCE,
    LOSS_OF_SONIFY,
    Estimate,
    Measured,
    balanced_accuracy,
    confusion,
    estimate,
    verdicts,
)
from sonify.errors import InputError
from sonify.media.mixing import measure_loudness


def some_photos(**counts: int) -> list[Photo]:
    return [
        Photo(file=f"{name}/{n}.jpg", name=name, label=f"{name} {n}") for name in CLASSES for n in range(counts[name])
    ]


def a_scene(name: str, n: int) -> Heard:
    return Heard(recordings=(f"{name}-{n}.flac",), names=(name,), audio_TD=np.full((9, 521), n, np.float32))


FEW = {"cat": 3, "chirping_birds": 30, "dog": 59, "engine": 8, "insects": 10, "sea_waves": 5}


# Statistics


def measured(true_R: np.ndarray, value_R: np.ndarray, uploads_R: np.ndarray | None = None) -> Measured:
    uploads_R = np.arange(len(true_R)) if uploads_R is None else uploads_R
    return Measured(true_R=true_R, uploads_R=uploads_R, value_R=value_R.astype(float))


def test_a_large_class_counts_no_more_than_a_small_one():
    one = measured(np.array([0] * 8 + [1] * 2), np.array([1.0] * 8 + [0.0] * 2))
    assert balanced_accuracy(one.true_R, one.value_R) == 0.5
    for same in (True, False):
        assert estimate([one], same_recordings=same) == Estimate(value=0.5, low=0.5, high=0.5, floor=0.5)


@pytest.mark.parametrize("same", [True, False])
def test_the_interval_holds_the_truth_as_often_as_it_says(same):
    true, rng = np.repeat(np.arange(6), 12), np.random.default_rng(0)
    drawn = [measured(true, rng.binomial(8, rng.beta(2, 3, true.size)) / 8) for _ in range(60)]
    found = [estimate([one], same_recordings=same) for one in drawn]
    assert 0.85 < np.mean([one.low <= 0.4 <= one.high for one in found]) < 1
    assert all(one.low < one.floor < one.value for one in found)


def test_takes_of_an_upload_are_one_draw_and_models_that_differ_widen_the_interval():
    true, rng = np.repeat(np.arange(6), 12), np.random.default_rng(0)
    alike = np.repeat(rng.random(24), 3)  # each upload has three takes of one value
    apart = estimate([measured(true, alike)], same_recordings=True)
    joined = estimate([measured(true, alike, np.repeat(np.arange(24), 3))], same_recordings=True)
    assert joined.high - joined.low > 1.3 * (apart.high - apart.low)
    seeds = [measured(true, np.full(72, level)) for level in (0.2, 0.4, 0.6)]
    for same in (True, False):
        wide = estimate(seeds, same_recordings=same)
        assert wide.value == pytest.approx(0.4)
        assert wide.high - wide.low > 0.2


def test_pictures_are_counted_by_class_and_shares_by_recording():
    judged = Judged(
        true_R=np.array([0, 2]), seen_RS=np.array([[0, 0, 1, 0], [2, 1, 1, 0]]), first_RHWC=np.zeros((2, 8, 8, 3))
    )
    assert judged.right_R.tolist() == [0.75, 0.25]
    assert confusion(judged.true_R, judged.seen_RS, 3).tolist() == [[3, 1, 0], [0, 0, 0], [1, 2, 1]]


# Verdicts

GOOD = {
    "a": Estimate(value=0.5, low=0.4, high=0.6),
    "c": Estimate(value=0.17, low=0.1, high=0.24),
    "b - a": Estimate(value=-0.01, low=-0.06, high=0.04, floor=-0.04),
    **{key: Estimate(value=0.3, low=0.2, high=0.4) for _, key in ABOVE},
}


def test_all_thresholds_hold_for_a_model_that_hears():
    assert all(verdict.passed for verdict in verdicts(0.9, 0.95, GOOD))


@pytest.mark.parametrize("key", [key for _, key in ABOVE])
def test_each_threshold_fails_by_its_own_figure_and_says_where_the_opposite_holds(key):
    unclear = verdicts(0.9, 0.95, GOOD | {key: replace(GOOD[key], low=0.0)})
    assert [str(verdict) for verdict in unclear if not verdict.passed] == ["FAIL: not shown"]
    lost = verdicts(0.9, 0.95, GOOD | {key: Estimate(value=-0.2, low=-0.3, high=-0.1)})
    assert [str(verdict) for verdict in lost if not verdict.passed] == ["LOSS: the opposite holds"]


def test_sonify_may_cost_five_points_one_sided_and_a_must_have_learned():
    claim = 2
    assert "at most 5 points below" in verdicts(0.9, 0.95, GOOD)[claim].expected
    for wrong in (
        {"b - a": replace(GOOD["b - a"], floor=-LOSS_OF_SONIFY)},
        {"a": replace(GOOD["a"], low=CHANCE)},
    ):
        assert not verdicts(0.9, 0.95, GOOD | wrong)[claim].passed


def test_blind_eyes_deaf_ears_and_shuffled_pairs_that_teach_fail():
    assert not verdicts(0.5, 0.95, GOOD)[0].passed
    assert not verdicts(0.9, 0.5, GOOD)[1].passed
    assert not verdicts(0.9, 0.95, GOOD | {"c": Estimate(value=0.3, low=0.2, high=0.4)})[3].passed


def test_what_was_not_measured_is_neither_won_nor_lost():
    assert {str(verdict) for verdict in verdicts(0.9, 0.95, {})[2:]} == {"not measured"}


# Pairs


def test_every_class_has_as_many_photographs_and_none_comes_twice_under_one_number():
    chosen = balanced(some_photos(**FEW), seed=1)
    assert [sum(photo.name == name for photo, _ in chosen) for name in CLASSES] == [PHOTOS_PER_CLASS] * 6
    assert len({(photo.file, number) for photo, number in chosen}) == len(chosen)
    assert len({photo.file for photo, _ in chosen if photo.name == "insects"}) == FEW["insects"]
    assert all(number == 0 for photo, number in chosen if photo.name == "dog")


def true_pairs() -> list[Paired]:
    return [
        Paired(photo=photo, number=number, scenes=tuple(a_scene(photo.name, n) for n in range(SCENES)))
        for photo, number in balanced(some_photos(**FEW), seed=1)
    ]


def heard_in(pairs: list[Paired]) -> list[str]:
    return [scene.recordings[0] for pair in pairs for scene in pair.scenes]


def of_own_class(pairs: list[Paired]) -> float:
    return float(np.mean([scene.names == (pair.photo.name,) for pair in pairs for scene in pair.scenes]))


def test_shuffled_pairs_are_the_same_sounds_elsewhere():
    pairs = true_pairs()
    mixed = shuffled(pairs, seed=1)
    assert of_own_class(mixed) == pytest.approx(1 / 6, abs=0.04)
    assert sorted(heard_in(pairs)) == sorted(heard_in(mixed))


def test_as_many_pairs_are_mismatched_as_annotators_find_and_all_of_them_by_another_class():
    pairs = true_pairs()
    others = [a_scene(name, 100) for name in (*CLASSES, "rain")]
    wild = mismatched(pairs, others, seed=1)
    assert of_own_class(wild) == pytest.approx(1 - MISMATCHED, abs=0.001)
    assert sum(file.endswith("-100.flac") for file in heard_in(wild)) == round(MISMATCHED * len(heard_in(pairs)))
    assert {pair.photo for pair in wild} == {pair.photo for pair in pairs}


def test_pairs_by_class_are_of_the_class_and_as_loud_as_sonify_would_have_them(test_data):
    recordings = read_recordings(test_data / "learning")
    some = [one for name in CLASSES for one in [r for r in recordings if r.name == name][:2]]
    heard: list[np.ndarray] = []

    def ear(samples: np.ndarray) -> np.ndarray:
        heard.append(samples)
        return np.zeros((9, 521), np.float32)

    sounds = test_data / "learning" / "sounds"
    pairs = pair_by_class(balanced(some_photos(**FEW), seed=1)[::12], sounds, some, ear, seed=1)  # pyright: ignore
    assert of_own_class(pairs) == 1
    assert all(len({scene.recordings for scene in pair.scenes}) == 2 for pair in pairs)
    levels = [measure_loudness(samples, 16_000) for samples in heard]
    assert -32.4 < min(levels) < max(levels) < -27.6
    assert np.ptp(levels) > 2


class Drawn:
    """Scenes of `sonify`, as `Sonified` gives them, by number."""

    def hear(self, file: str, number: int) -> Heard:
        return a_scene(file, number)


def test_a_repeated_photograph_has_other_scenes_and_a_fresh_one_has_all(test_data):
    chosen = [(photo, number) for photo in some_photos(**FEW)[:1] for number in range(DRAWS // SCENES)]
    drawn: object = Drawn()
    eight, one, fresh = (
        pair_by_sonify(chosen, drawn),  # pyright: ignore[reportArgumentType] - it draws what is asked for
        pair_by_sonify(chosen, drawn, scenes=1),  # pyright: ignore[reportArgumentType] - as above
        pair_freshly(chosen[:1], drawn),  # pyright: ignore[reportArgumentType] - as above
    )
    assert len(set(heard_in(eight))) == DRAWS
    assert len(set(heard_in(one))) == len(chosen)
    assert {len(pair.scenes) for pair in one} == {1}
    assert len(set(heard_in(fresh))) == DRAWS
    assert len({(pair.photo.file, pair.number) for pair in fresh}) == len(fresh)


def test_the_rules_are_those_of_the_shipped_configurations():
    shipped, wide, paper = (rules_of(name) for name in ("shipped", "wide", "paper"))
    assert (shipped["retrieval"]["margin"], shipped["retrieval"]["min_cosine"]) == (0.8, 0.2)
    assert "limit" not in shipped["retrieval"]  # the calibrated default
    assert wide == shipped | {"mix": shipped["mix"] | {"lufs": list(WIDE_LUFS)}}
    assert (paper["retrieval"]["margin"], paper["retrieval"]["limit"], paper["mix"]["peak_dbfs"]) == (0, None, None)
    assert {one["retrieval"]["encoder"]["kind"] for one in (shipped, wide, paper)} == {"text"}


def test_the_pool_holds_no_upload_that_is_held_out_and_mostly_distractors(test_data):
    recordings = read_recordings(test_data / "learning")
    distractors = read_distractors(test_data / "sounds", recordings)
    for fold in range(1, 6):
        pool = make_pool(test_data, [one for one in recordings if one.fold != fold], distractors)
        held = {one.upload for one in recordings if one.fold == fold}
        assert not held & {name.split("-")[1] for name in pool.names}
        assert pool.distractors > 0.6
        assert len(pool.names) == len(pool.files)


def test_sonify_pairs_the_photographs_from_a_small_pool_and_scenes_are_heard_as_rendered(test_data, tmp_path):
    recordings = [one for one in read_recordings(test_data / "learning") if one.name in ("dog", "engine")][:8]
    others = read_distractors(test_data / "sounds", recordings)[:4]
    pool = make_pool(test_data, recordings, others)
    ear = Ear(test_data / "weights" / "yamnet")
    data = tmp_path / "learning"
    (data / "photos").mkdir(parents=True)
    rows = ["file,class,label", "dog.jpg,dog,beagle", "cat.jpg,cat,tabby"]
    (data / "photos.csv").write_text("\n".join(rows) + "\n")
    of_class = {photo.name: photo.file for photo in read_photos(test_data / "learning")}
    for name in ("dog", "cat"):
        (data / "photos" / f"{name}.jpg").symlink_to((test_data / "learning" / "photos" / of_class[name]).resolve())
    made = sonify_photos(data, pool, tmp_path / "out", "shipped", ear)
    assert len(made.scenes["dog.jpg"]) == DRAWS
    assert "cat.jpg" not in made.scenes
    scene = made.hear("dog.jpg", 5)
    assert scene.names == ("dog",)
    assert scene.audio_TD.shape == (9, 521)
    assert len(made.alone()) == len(pool.files)
    photos = [Photo(file=f"{name}.jpg", name=name, label=name) for name in ("dog", "cat")]
    table = count_sounds(made, [*photos, *(Photo(file=f"{n}", name=n, label=n) for n in CLASSES)])
    assert table["dog"]["right"] == table["dog"]["with_sound"] == 0.5
    assert table["cat"]["none"] == 1
    for row in table.values():
        assert sum(row[kind] for kind in ("right", "near", "other_class", "distractor", "none")) == pytest.approx(1)
    assert recording_file("folder/1-100032-A-0.flac#0") == "1-100032-A-0.flac"
    again = sonify_photos(data, pool, tmp_path / "out", "shipped", ear)
    assert again.scenes == made.scenes


# Instruments


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
    looks = [eye.look(square) for square in squares]
    assert [CLASSES[look.classes_K.argmax()] for look in looks] == list(CLASSES)
    assert eye(squares[0]) == pytest.approx(looks[0].classes_K)
    features_NF = np.stack([look.features_F for look in looks])
    cosines = features_NF @ features_NF.T
    assert np.diag(cosines) == pytest.approx(1, abs=1e-5)
    assert cosines[~np.eye(len(CLASSES), dtype=bool)].max() < 0.9


def test_the_ear_hears_each_recording_as_loud_as_a_scene(test_data):
    ear, recordings = Ear(test_data / "weights" / "yamnet"), read_recordings(test_data / "learning")
    some = [one for name in CLASSES for one in [r for r in recordings if r.name == name][:4]]
    samples = [read_levelled(test_data / "learning" / "sounds" / recording.file) for recording in some]
    assert [measure_loudness(one, 16_000) for one in samples] == pytest.approx([-30.0] * len(samples), abs=0.3)
    audio = np.stack([ear(one) for one in samples])
    assert audio.shape == (24, 9, 521)
    assert 0 < audio.max() <= SCALE
    known, names = audio[::2].mean(axis=1), [recording.name for recording in some[::2]]
    right_R = [nearest_class(one, known, names) == of.name for one, of in zip(audio[1::2], some[1::2], strict=True)]
    assert np.mean(right_R) > 0.7


def test_mixtures_are_of_two_classes_at_the_level_that_is_asked_for(test_data):
    recordings = [one for one in read_recordings(test_data / "learning") if one.fold == 5]
    pairs = mixed_pairs(recordings)
    assert len(pairs) == 45
    assert len({frozenset((one.name, other.name)) for one, other in pairs}) == 15
    paths = [test_data / "learning" / "sounds" / one.file for one in pairs[0]]
    loud, soft = targets(12.0)
    assert (loud - soft, (loud + soft) / 2) == (12.0, -30.0)
    together = mix_levelled(paths, (loud, soft)).astype(float)
    alone = [read_levelled(path, lufs).astype(float) for path, lufs in zip(paths, (loud, soft), strict=True)]
    assert np.abs(together - sum(alone)).max() <= 2


# What is known of a model


def evidence(own: float, seed: int = 0, pairs: bool = False) -> Evidence:
    """Of a model that is right in a share `own` of its pictures, whose mixtures show what is louder."""
    rng = np.random.default_rng(seed)
    true_R = np.repeat(np.arange(6), 7)
    target_RS = np.where(rng.random((42, 4)) < own, true_R[:, None], rng.integers(0, 6, (42, 4)))
    seen_RSK = np.eye(6)[target_RS]
    classes_P2 = np.array([[i, j] for i in range(6) for j in range(i + 1, 6)]) if pairs else np.zeros((0, 2), int)
    mixed_PLSK = np.zeros((len(classes_P2), len(LEVELS_DB) if pairs else 0, 2, 6)) - 5
    for number, (first, second) in enumerate(classes_P2):
        for place, level in enumerate(LEVELS_DB):
            mixed_PLSK[number, place, :, first] = level / 10
            mixed_PLSK[number, place, :, second] = 0.01
    return Evidence(
        true_R=true_R, uploads_R=np.array([f"{n}" for n in range(42)]), seen_RSK=seen_RSK, unguided_RSK=seen_RSK[::-1],
        feature_distance_RS=np.full((42, 4), 0.1), latent_distance_RS=np.full((42, 4), 0.5),
        nearest_RS=np.zeros((42, 4), int), first_RHWC=np.zeros((42, 8, 8, 3), np.uint8), classes_P2=classes_P2,
        mixed_PLSK=mixed_PLSK,
    )  # fmt: skip


def test_what_is_known_is_read_as_it_was_written(tmp_path):
    one = evidence(0.5, pairs=True)
    one.save(tmp_path / "fold-5" / "b-0.npz")
    again = Evidence.load(tmp_path / "fold-5" / "b-0.npz")
    assert (again.seen_RSK == one.seen_RSK).all()
    assert (again.judged().seen_RS == one.judged().seen_RS).all()
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_model_that_guesses_is_not_above_sounds_of_wrong_classes_and_one_that_hears_is():
    assert balanced_accuracy(evidence(1.0).true_R, above_wrong(evidence(1.0)).value_R) == 1
    chance = replace(evidence(0.0), seen_RSK=np.tile(np.eye(6)[[0, 1, 2, 3, 4, 5]], (42, 1, 1)))
    assert balanced_accuracy(chance.true_R, right(chance).value_R) == pytest.approx(CHANCE)
    assert balanced_accuracy(chance.true_R, above_wrong(chance).value_R) == pytest.approx(0)


def test_the_louder_of_two_sounds_is_followed_or_not():
    one = evidence(0.5, pairs=True)
    assert spearman(one).value_R == pytest.approx(1)
    backwards = replace(one, mixed_PLSK=one.mixed_PLSK[:, ::-1])
    assert spearman(backwards).value_R == pytest.approx(-1)
    deaf = replace(one, mixed_PLSK=np.repeat(one.mixed_PLSK[:, :1], len(LEVELS_DB), axis=1))
    assert spearman(deaf).value_R == pytest.approx(0)
    assert both(one).value_R == pytest.approx(1)
    assert either(one).value_R == pytest.approx(1)
    neither = replace(one, mixed_PLSK=-one.mixed_PLSK)
    assert both(neither).value_R.mean() == 0
    assert either(neither).value_R.mean() == 0


def test_the_nearest_photograph_is_found_and_a_copy_is_at_no_distance():
    rng = np.random.default_rng(0)
    latents, features = rng.standard_normal((5, 4, 12, 12)).astype(np.float32), rng.random((5, 32)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    gallery = Gallery(latents_NCHW=latents, features_NF=features, names=("cat",) * 5, files=("a",) * 5)
    by_features, by_latents, nearest = distances(gallery, latents[[3]], features[[3]])
    assert (by_features[0], by_latents[0], nearest[0]) == pytest.approx((0, 0, 3), abs=1e-3)
    (_, shifted, _) = distances(gallery, latents[[3]] + 0.25, features[[3]])
    assert shifted[0] == pytest.approx(0.25, abs=1e-3)


def known(models: list[tuple[int, str, int, float]]) -> dict[Model, Evidence]:
    return {
        Model(fold=fold, arm=arm, seed=seed): evidence(own, seed=fold + 7 * seed, pairs=arm in ("b", "g-wide"))
        for fold, arm, seed, own in models
    }


FACTS = {
    "steps": 4,
    "eye": 0.9,
    "ear": 0.9,
    "counted": {},
    "yardsticks": {
        str(fold): {
            "features": [0.3, 0.4], "latents": [0.8, 0.9], "trained": ["cat.jpg"], "trained_classes": ["cat"],
            "classes": ["cat", "dog"],
        }
        for fold in range(1, 6)
    },
}  # fmt: skip


def test_folds_decide_where_all_are_there_and_seeds_of_one_fold_before():
    some = [(5, arm, seed, 0.5) for arm in ("a", "b") for seed in range(2)]
    assert estimates(known(some))["b - a"].basis == "fold 5, 2 seeds"
    found = estimates(known([*some, *[(fold, arm, 0, 0.5) for arm in ("a", "b") for fold in range(1, 5)]]))
    assert found["b - a"].basis == "5 folds"
    assert found["b - a @5"].basis == "fold 5, 2 seeds"
    assert found["b - a"].estimate.value == 0
    assert found["spearman b"].estimate.value == pytest.approx(1)
    assert "c" not in found


def test_the_page_says_what_is_measured_and_what_is_not():
    one = known([(5, arm, 0, 0.5) for arm in ("a", "b", "g-wide")])
    found = {name: value.estimate for name, value in estimates(one).items()}
    held = verdicts(0.9, 0.9, found)
    page, line = markdown(one, FACTS, held), json_line(one, FACTS, held)
    assert "not measured" in page
    assert all(f"({arm}) " in page for arm in ARMS)
    assert line["recall"]["a"]["copies"] == 1.0
    assert line["recall"]["a"]["features, pictures"] == pytest.approx(0.1)
    assert set(line["by_class"]["a"]) == set(CLASSES)
    json.dumps(line)


def test_the_order_of_work_has_each_model_once_and_what_is_worth_most_first():
    models = order_of_work()
    assert len(set(models)) == len(models)
    assert {model.arm for model in models[:5]} == {"a", "b", "c", "d", "f"}
    assert {(model.fold, model.seed) for model in models[:5]} == {(5, 0)}
    for arm in ("a", "b", "c", "d"):
        assert {model.fold for model in models if model.arm == arm and model.seed == 0} == {1, 2, 3, 4, 5}
        assert {model.seed for model in models if model.arm == arm and model.fold == 5} == {0, 1, 2}
    assert {model.arm for model in models} == set(ARMS)


def test_a_grid_has_a_row_for_each_class(tmp_path):
    true = np.repeat(np.arange(6), 7)
    pixels = np.zeros((42, 96, 96, 3), np.uint8)
    write_grid(Judged(true_R=true, seen_RS=np.zeros((42, 2), int), first_RHWC=pixels), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_whole_measurement_by_models_that_have_hardly_begun(test_data, tmp_path):
    models = [Model(fold=5, arm="a", seed=0), Model(fold=5, arm="g-wide", seed=0)]
    page, line = measure(test_data, tmp_path, 4, models)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(line))
    assert (tmp_path / "report.md").read_text() == page
    assert line["eye"] > 0.85
    assert line["ear"] > 0.8
    assert set(line["models"]) == {"fold-5/a-0", "fold-5/g-wide-0"}
    made = [*tmp_path.rglob("*.npz"), *tmp_path.glob("fold-5/train-*/checkpoints/*/*")]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert len(made) > len(models)
    assert evidence_file(tmp_path.resolve(), models[0], 4) in before
    assert measure(test_data, tmp_path, 4, models)[1] == line
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_picture_has_the_nearest_photograph_beside_each_sound_and_fits_on_a_page(test_data, tmp_path):
    photos = [next(photo for photo in read_photos(test_data / "learning") if photo.name == name) for name in CLASSES]
    sounds = [(name, f"{number}") for name in CLASSES for number in range(3)]
    pixels = np.zeros((len(sounds), 96, 96, 3), np.uint8)
    nearest = [photo for photo in photos for _ in range(3)]
    write_picture(sounds, pixels, nearest, test_data / "learning" / "photos", tmp_path / "recall.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["recall.jpg"]
    with Image.open(tmp_path / "recall.jpg") as picture:
        seen = np.asarray(picture.convert("RGB")).astype(float)
    columns, rows = 4, len(CLASSES)
    height, width = seen.shape[0] / rows, seen.shape[1] / columns
    middles = [
        seen[int(height * (row + 0.35)), int(width * (column + 0.5))] for row in range(rows) for column in (0, 2)
    ]
    assert np.max(middles) < 30  # what was painted is black
    beside = seen[: int(height * 0.7), int(width * 1.1) : int(width * 1.9)]
    assert beside.std() > 10


def test_a_table_of_photographs_that_lacks_a_class_is_refused(tmp_path):
    table = tmp_path / "photos.csv"
    table.write_text("file,class\n" + "".join(f"{name}.jpg,{name}\n" for name in CLASSES))
    assert [photo.name for photo in read_table(table)] == list(CLASSES)
    table.write_text("file,class\ncat.jpg,cat\nrain.jpg,rain\n")
    with pytest.raises(InputError, match=r"expected photographs of cat, .* found none or others: \['chirping_birds'"):
        read_table(table)
