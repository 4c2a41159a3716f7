"""Copies of training images are found among real photographs that are none, and each figure says what it is of."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.memorisation import correlate, detectable_of, embed_real, find_memorisation, main, read_pairs, read_real
from eval.metrics.copying import look_up, near_excess, ratio_excess
from eval.pictures import Made
from eval.suites.suite import Suite
from eval.towers.config import Random
from eval.towers.random import open_random
from eval.towers.tower import Judges, Tower, Way
from sonify.media.likeness import perceptual_hash
from sonify.running import run
from tests.builders import encoded, picture, refused, small_config, small_input, write_csv
from tests.eval.made_built import make_made
from tests.eval.suites_built import make_suite

SOUNDS, PLANTED = 24, 6
TRAINING, HELD_OUT = 60, 45
LABELS = ("dog", "rain")
SIDE = 96


@cache
def tower(width: int = 128) -> Tower:
    """No network: 16 x 16 pixels, projected. It knows a copy of a photograph, and nothing of what is shown."""
    return open_random(Random(kind="random", width=width), "dinov2")


def square(data: bytes, crop: float = 1.0) -> Image.Image:
    """The middle of a picture."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = round(crop * min(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def near_copy(data: bytes, n: int) -> bytes:
    """A near copy as a PNG: through JPEG of quality 75, or 95 % of width and height, in turns."""
    image = square(data, 1.0 if n % 2 else 0.95)
    return encoded(Image.open(io.BytesIO(encoded(image, "JPEG", quality=75))), "PNG")


@dataclass(frozen=True)
class Bench:
    suite: Suite
    training: Path
    held_out: Path
    photos: Sequence[bytes]  # in no folder
    trained: Sequence[bytes]


@pytest.fixture(scope="module")
def bench(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Real photographs, of which none looks like another: for training, held out, and to stand for pictures."""
    root = tmp_path_factory.mktemp("memorisation")
    photos: list[bytes] = []
    seen: set[bytes] = set()
    for path in sorted((test_data / "photos").glob("*.jpg")):
        if len(photos) == TRAINING + HELD_OUT + SOUNDS:
            break
        data = path.read_bytes()
        if (bits := perceptual_hash(data).tobytes()) not in seen:
            seen.add(bits)
            photos.append(encoded(square(data), "JPEG", quality=92))
    training, held_out = root / "training", root / "held-out"
    for n, data in enumerate(photos[: TRAINING + HELD_OUT]):
        path = training / f"{n:03d}.jpg" if n < TRAINING else held_out / LABELS[n % 2] / f"{n:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    suite = make_suite(root, SOUNDS, LABELS, others=0)
    return Bench(suite, training, held_out, photos[-SOUNDS:], photos[:TRAINING])


def made_of(bench: Bench, folder: Path, planted: int, sounds: int = SOUNDS) -> Made:
    """A real photograph for each sound, of which the first so many are near copies of training images."""
    pictures = {}
    for n, (item, photo) in enumerate(zip(bench.suite.items[:sounds], bench.photos[:sounds], strict=True)):
        copy = near_copy(bench.trained[n], n) if n < planted else encoded(square(photo), "PNG")
        pictures[item.id] = [copy]
    return make_made(bench.suite, folder, pictures)


def compare(bench: Bench, made: Made, **settings):
    judges = settings.pop("judges", Judges(dinov2=tower()))
    return find_memorisation(
        bench.suite, made, training=bench.training, held_out=bench.held_out, judges=judges, **settings
    )


def test_planted_copies_are_found_and_their_originals_named(bench: Bench, tmp_path: Path):
    found, train, near = compare(bench, made_of(bench, tmp_path / "made", PLANTED))
    assert found.verdict == "copies"
    assert found.nearness.share >= PLANTED / SOUNDS
    assert found.ratio.share >= PLANTED / SOUNDS
    assert [train.names[row] for row in near.row_N[:PLANTED]] == [f"{n:03d}.jpg" for n in range(PLANTED)]
    assert (found.training_images, found.images, found.recordings) == (TRAINING, SOUNDS, SOUNDS)
    assert found.labels_matched
    assert found.tower_sha256 == tower().sha256
    assert any("SSCD tells copies" in note for note in found.notes)


def test_what_would_have_been_found_is_what_both_tests_would_have(bench: Bench, tmp_path: Path):
    found, _, _ = compare(bench, made_of(bench, tmp_path / "made", 0))
    assert found.detectable == max(found.nearness.detectable or 0, found.ratio.detectable or 0)
    blind = replace(found.ratio, detectable=None)
    assert detectable_of(found.nearness, replace(found.ratio, detectable=0.9)) == 0.9
    assert detectable_of(found.nearness, blind) is None
    assert detectable_of(blind, found.nearness) is None


def test_photographs_that_copy_nothing_are_not_said_to(bench: Bench, tmp_path: Path):
    found, _, _ = compare(bench, made_of(bench, tmp_path / "made", 0))
    assert found.verdict == "none found"
    assert found.nearness.p_held_out > 0.05
    assert found.own_pair is None
    assert found.authentic_percent is not None


def test_held_out_images_that_were_trained_on_are_left_out(bench: Bench, tmp_path: Path):
    made = made_of(bench, tmp_path / "made", 0)
    leaky = tmp_path / "held-out"
    for n, data in enumerate([*bench.trained[:20], *bench.photos]):
        path = leaky / f"{n:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(square(data), "JPEG", quality=60))
    (leaky / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    found, _, _ = find_memorisation(
        bench.suite, made, training=bench.training, held_out=leaky, judges=Judges(dinov2=tower())
    )
    assert (found.held_out_left_out, found.held_out_images, found.unreadable_images) == (20, SOUNDS, 1)
    assert not found.labels_matched
    with refused(f"each of its {TRAINING} images looks like a training image"):
        find_memorisation(
            bench.suite, made, training=bench.training, held_out=bench.training, judges=Judges(dinov2=tower())
        )


def test_sscd_is_asked_first_and_without_either_it_is_said(bench: Bench, tmp_path: Path):
    made = made_of(bench, tmp_path / "made", 0)
    found, _, _ = compare(bench, made, judges=Judges(dinov2=tower(), sscd=tower(64)))
    assert found.tower == tower(64).name
    assert not any("SSCD" in note for note in found.notes)
    with refused("expected sscd .* or dinov2, found neither"):
        compare(bench, made, judges=Judges(clip_b32=tower()))


def test_sounds_that_give_back_what_they_were_trained_with_are_told_from_others(bench: Bench, tmp_path: Path):
    """Half of the sounds are shown with their training image, the others with somebody's photograph."""
    seen = SOUNDS // 2
    made = made_of(bench, tmp_path / "made", seen)
    rows = [(item.id, f"{n:03d}.jpg") for n, item in enumerate(bench.suite.items[:seen])]
    pairs = read_pairs(write_csv(tmp_path / "pairs.csv", ("item", "image"), rows), bench.suite)
    found, _, _ = compare(bench, made, pairs=pairs)
    own = found.own_pair
    assert own is not None
    assert (own.seen, own.unseen, own.seen_recordings, own.unseen_recordings) == (1.0, 0.0, seen, SOUNDS - seen)
    assert own.difference.low == 1.0
    assert own.chance == pytest.approx(1 / (TRAINING + SOUNDS - seen))


def test_a_reference_that_is_found_again_though_it_was_not_trained_with_cancels(bench: Bench, tmp_path: Path):
    """A model that paints what the references show does so for all sounds: nothing was learned by heart."""
    files = {item.id: bench.suite.folder / item.references[0].file for item in bench.suite.items}
    references = {name: [encoded(square(path.read_bytes()), "PNG")] for name, path in files.items()}
    seen = {item.id: [near_copy(bench.trained[n], n)] for n, item in enumerate(bench.suite.items) if n < SOUNDS // 2}
    made = make_made(bench.suite, tmp_path / "made", references | seen)
    pairs = {item.id: [f"{n:03d}.jpg"] for n, item in enumerate(bench.suite.items[: SOUNDS // 2])}
    own = compare(bench, made, pairs=pairs)[0].own_pair
    assert own is not None
    assert (own.seen, own.unseen, own.difference.value) == (1.0, 1.0, 0.0)


def test_the_images_of_a_run_are_those_of_its_splits(bench: Bench, tmp_path: Path):
    small_input(tmp_path, 24, 8)
    run(small_config(tmp_path, images={"validation": 0.4}, audio={"validation": 0.4}))
    train, held = (dict(read_real(tmp_path / "run", split)) for split in ("train", "validation"))
    assert len(train) > 1
    assert len(held) > 1
    assert not train.keys() & held.keys()
    made = made_of(bench, tmp_path / "made", 0)
    key = next(iter(train))
    pairs = {bench.suite.items[0].id: [key, key.replace("_2e", ".")]}
    found, _, _ = find_memorisation(
        bench.suite,
        made,
        training=tmp_path / "run",
        held_out=tmp_path / "run",
        judges=Judges(dinov2=tower()),
        pairs=pairs,
    )
    assert (found.training_images, found.held_out_images + found.held_out_left_out) == (len(train), len(held))
    with refused("none that is called 'nobody.jpg'"):
        compare(bench, made, pairs={bench.suite.items[0].id: ["nobody.jpg"]})


def test_a_run_without_rendered_images_says_so(tmp_path: Path):
    small_input(tmp_path, 8, 4)
    run(small_config(tmp_path), stages=["pool"])
    with refused("has no rendered image of the split 'train'"):
        dict(read_real(tmp_path / "run", "train"))


def test_the_correlation_is_one_of_the_picture_itself_and_none_of_a_blank_one():
    one, other = (Image.open(io.BytesIO(picture(n, (64, 64)))) for n in (1, 2))
    assert correlate(one, one) == pytest.approx(1)
    assert abs(correlate(one, other)) < 0.9
    assert correlate(one, Image.new("RGB", (64, 64))) == 0.0
    assert correlate(one, Image.eval(one, lambda value: 255 - value)) == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize(
    ("vectors", "why"),
    [
        (np.zeros((3, 4), np.float32), "zero or not finite"),
        (np.full((3, 4), np.nan, np.float32), "zero or not finite"),
        (np.ones((2, 4), np.float32), "expected a vector for each of 3 pictures"),
        (np.ones(3, np.float32), "expected a vector for each of 3 pictures"),
    ],
)
def test_a_tower_that_gives_no_vectors_is_one_line(vectors: np.ndarray, why: str):
    broken = Tower(name="broken", model="", sha256="0" * 64, images=Way(preprocessing="", embed=lambda _: vectors))
    with refused(why):
        embed_real([(f"{n}.jpg", picture(n)) for n in range(3)], broken)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected the columns item,image"),
        ("item,image\n", "names no pair"),
        ("item,image\nnobody,a.jpg\n", "line 2: expected an item of the suite"),
        ("item,image\ns000,\n", "line 2: expected an item of the suite and an image"),
        ("item,image\ns000\n", "line 2"),
        ('item,image\n"s000,a\n', "cannot be read as a table"),
    ],
)
def test_damaged_pairs_are_one_line(bench: Bench, tmp_path: Path, text: str, why: str):
    (tmp_path / "pairs.csv").write_text(text)
    with refused(why):
        read_pairs(tmp_path / "pairs.csv", bench.suite)
    with refused("cannot be read"):
        read_pairs(tmp_path / "nowhere.csv", bench.suite)


def test_the_command_writes_what_it_found_and_the_same_twice(bench: Bench, tmp_path: Path, capsys):
    made = made_of(bench, tmp_path / "made", PLANTED, sounds=8)
    towers = tmp_path / "towers.yaml"
    towers.write_text("towers:\n  dinov2: {kind: random}\n")
    words = ["--manifest", str(made.folder), "--suite", str(bench.suite.folder), "--towers", str(towers)]
    words += ["--training", str(bench.training), "--held-out", str(bench.held_out)]
    for name in ("a", "b"):
        assert main([*words, "--out", str(tmp_path / name)]) == 0
    assert "a model: copies" in capsys.readouterr().out
    for name in ("memorisation.json", "memorisation.png", "nearest.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    found = json.loads((tmp_path / "a" / "memorisation.json").read_text())["memorisation"]
    rows = list(csv.DictReader((tmp_path / "a" / "nearest.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert sum(int(row["near"]) for row in rows) == round(8 * found["nearness"]["share"])
    assert {row["nearest"] for row in rows if row["alone"] == "1"} >= {f"{n:03d}.jpg" for n in range(PLANTED)}
    assert [float(row["cosine"]) for row in rows] == sorted((float(row["cosine"]) for row in rows), reverse=True)


def test_no_images_are_one_line(bench: Bench, tmp_path: Path, capsys):
    made = made_of(bench, tmp_path / "made", 0)
    (tmp_path / "empty").mkdir()
    words = ["--manifest", str(made.folder), "--suite", str(bench.suite.folder), "--out", str(tmp_path / "out")]
    towers = tmp_path / "towers.yaml"
    towers.write_text("towers:\n  dinov2: {kind: random}\n")
    words += ["--towers", str(towers), "--training", str(tmp_path / "empty"), "--held-out", str(bench.held_out)]
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_planted_copies_of_photographs_are_found_and_few_others(test_data: Path):
    """One picture in twenty is a near copy. Sixty divisions of 445 photographs, by 16 x 16 pixels."""
    files = sorted([*(test_data / "photos").glob("*.jpg"), *(test_data / "learning" / "photos").glob("*/*.jpg")])
    photos = embed_real(((path.as_posix(), path.read_bytes()) for path in files), tower(256))
    hashes = np.stack(photos.hashes)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=-1)
    kept = [n for n in range(len(files)) if not (apart[n, :n] <= 6).any()]
    copies = embed_real(((files[n].as_posix(), near_copy(files[n].read_bytes(), n)) for n in kept), tower(256))
    own, copied = photos.vectors_ND[kept], copies.vectors_ND
    rng = np.random.default_rng(0)
    found, false = [], []
    for _ in range(60):
        train, held_out, rest = np.split(rng.permutation(len(kept)), [200, 325])
        planted = len(rest) // 20
        made = np.concatenate([copied[train[:planted]], own[rest[planted:]]])
        near, near_H = look_up(own[train], made), look_up(own[train], own[held_out])
        names, weights = [str(n) for n in rest], np.ones(len(held_out))
        by_both = (near.cosine_N > near_excess(near, names, near_H, weights).threshold) & (
            near.ratio_N < ratio_excess(near, names, near_H, weights).threshold
        )
        found.append(by_both[:planted].mean())
        false.append(by_both[planted:].mean())
    assert np.mean(found) >= 0.9
    assert np.mean(false) <= 0.015


@pytest.mark.slow
def test_models_that_copy_one_picture_in_twenty_are_told_from_those_that_do_not():
    """The verdict, over 200 draws of 2,000 training, 1,000 held-out images and 400 pictures: features in 64 numbers."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((8, 64)) / np.sqrt(8) * 0.5

    def draw(count: int) -> np.ndarray:
        return np.maximum(rng.standard_normal((count, 8)) @ base + 0.3 * rng.standard_normal((count, 64)), 0)

    said: dict[bool, list[bool]] = {True: [], False: []}
    names, weights = [str(n) for n in range(400)], np.ones(1000)
    for _ in range(200):
        train, held_out, clean = (draw(count) for count in (2000, 1000, 400))
        unit = (train / np.linalg.norm(train, axis=1, keepdims=True)).astype(np.float32)
        copied = np.concatenate([train[:20] + 0.05 * rng.standard_normal((20, 64)), clean[20:]])
        near_H = look_up(unit, held_out)
        for copies, made in ((True, copied), (False, clean)):
            near = look_up(unit, made)
            tests = [excess(near, names, near_H, weights) for excess in (near_excess, ratio_excess)]
            said[copies].append(all(test.is_more for test in tests))
    assert np.mean(said[True]) >= 0.9
    assert np.mean(said[False]) <= 0.015
