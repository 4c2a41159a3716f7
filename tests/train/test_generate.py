"""From the command line to images: names, mixing, folders that go on, and one clear line for what is wrong."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from sonify.errors import InputError
from sonify.io.commits import digest_of
from sonify.io.write import sha256_of
from tests.builders import RATE_HZ, write_sound
from tests.tiny_networks import band_separator, edit_json, edit_weights, tiny_separator, write_tiny_pixart
from train.generate import main
from train.manifest import GenerationSettings, read_manifest
from train.released import load_pipeline
from train.separator import find_separator, load_separator, take_apart
from train.windows import make_windows, read_sound

FAST = ["--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pixart(tmp_path_factory.mktemp("model") / "tiny", clip_seconds=2.0)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a` is a low tone, `b` a high one, both of one window; `long` has three."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, hz, seconds in (("a", 300, 2), ("b", 3000, 2), ("long", 1000, 6)):
        time_sec = np.arange(seconds * RATE_HZ) / RATE_HZ
        soundfile.write(folder / f"{name}.wav", 0.1 * np.sin(2 * np.pi * hz * time_sec * (1 + time_sec / 20)), RATE_HZ)
    return folder


def run(*words: object) -> int:
    return main([*(str(word) for word in words), *FAST])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_one_sound_gives_one_file(model: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "out.png"

    assert run("--model", model, "--audio", sounds / "a.wav", "--seed", 7, "--out", out) == 0

    assert capsys.readouterr().out == f"{out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["out.png"]
    (window,) = make_windows([read_sound(sounds / "a.wav", 2.0)], [0.0], -30.0, separate=False)
    pipeline = load_pipeline(model, torch.device("cpu"), torch.float32)
    (expected,) = pipeline(audio_BS=window.parts_NS, seeds=[7], num_inference_steps=2).images
    assert np.array_equal(pixels(out), np.asarray(expected))
    (heard,) = pipeline(str(sounds / "a.wav"), seeds=[7], num_inference_steps=2).images
    assert np.array_equal(pixels(out), np.asarray(heard))


def test_a_long_sound_gives_one_image_a_window(
    model: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("--model", model, "--audio", sounds / "long.wav", "--out", tmp_path / "out.png") == 0

    made = sorted(tmp_path.iterdir())
    assert [path.name for path in made] == ["out-000.png", "out-001.png", "out-002.png"]
    assert not np.array_equal(pixels(made[0]), pixels(made[1]))
    assert capsys.readouterr().out == "".join(f"{path}\n" for path in made)


def test_the_help_says_what_is_written(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    text = " ".join(capsys.readouterr().out.split())
    whole = "each recording as a whole, by one gain"
    for expected in ("dog-000.png, dog-001.png", "dB relative to --lufs", "before its gain", "examples:", whole):
        assert expected in text


def test_mixing_gains_order_and_separation_are_heard(model: Path, sounds: Path, tmp_path: Path) -> None:
    def image(name: str, *words: object) -> np.ndarray:
        assert run("--model", model, "--out", tmp_path / f"{name}.png", "--audio", *words) == 0
        return pixels(tmp_path / f"{name}.png")

    a, b = sounds / "a.wav", sounds / "b.wav"
    mixed = image("mixed", a, b)

    assert np.array_equal(image("again", a, b, "--gains-db", 0, 0), mixed)
    others = {
        "quieter": image("quieter", a, b, "--gains-db", 0, -20),
        "separate": image("separate", a, b, "--separate"),
        "alone": image("alone", a),
        "louder": image("louder", a, b, "--lufs", -20),
        "guided": image("guided", a, b, "--guidance", 9),
    }
    for name, other in others.items():
        assert not np.array_equal(other, mixed), name


def test_separate_sounds_are_joined_in_time(model: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert run("--model", model, "--audio", sounds / "a.wav", sounds / "b.wav", "--separate", "--out", out) == 0

    pipeline = load_pipeline(model, torch.device("cpu"), torch.float32)
    parts = [
        pipeline.encode_audio(make_windows([read_sound(sounds / name, 2.0)], [0.0], -30.0, separate=False)[0].parts_NS)
        for name in ("a.wav", "b.wav")
    ]
    (joined,) = pipeline(audio_features=torch.cat(parts, dim=1), seeds=[0], num_inference_steps=2).images
    assert np.abs(pixels(out).astype(int) - np.asarray(joined)).max() <= 1


def test_the_sources_of_a_recording_are_heard_one_after_the_other(model: Path, sounds: Path, tmp_path: Path) -> None:
    a, b = (soundfile.read(sounds / name)[0] for name in ("a.wav", "b.wav"))
    write_sound(tmp_path / "both.wav", a + b / 2)
    bands = band_separator(tmp_path / "bands", [1000])
    sources = ("--separate", "sources", "--separator", bands)

    assert run("--model", model, "--audio", tmp_path / "both.wav", *sources, "--out", tmp_path / "out.png") == 0

    pipeline = load_pipeline(model, torch.device("cpu"), torch.float32)
    (window,) = make_windows([read_sound(tmp_path / "both.wav", 2.0)], [0.0], -30.0, separate=False)
    separator = load_separator(find_separator(str(bands)), torch.device("cpu"))
    found_NS = take_apart(separator, window.parts_NS[0], "both.wav")
    assert len(found_NS) == 2
    features_TD = pipeline.encode_audio(found_NS).flatten(0, 1)
    (expected,) = pipeline(audio_features=features_TD[None], seeds=[0], num_inference_steps=2).images
    assert np.array_equal(pixels(tmp_path / "out.png"), np.asarray(expected))
    assert run("--model", model, "--audio", tmp_path / "both.wav", "--out", tmp_path / "mixed.png") == 0
    assert not np.array_equal(pixels(tmp_path / "out.png"), pixels(tmp_path / "mixed.png"))


def test_separate_without_a_value_means_the_sounds(model: Path, sounds: Path, tmp_path: Path) -> None:
    for name, words in {"old": ["--separate"], "new": ["--separate", "sounds"]}.items():
        audio = ["--audio", sounds / "a.wav", sounds / "b.wav"]
        assert run("--model", model, *audio, *words, "--seeds", 1, "--out", tmp_path / name) == 0
    assert (tmp_path / "old/manifest.jsonl").read_bytes() == (tmp_path / "new/manifest.jsonl").read_bytes()
    settings = json.loads((tmp_path / "old/manifest.jsonl").read_text())["settings"]
    assert settings["separate"] is True
    assert "separator" not in settings  # as it was before there were any


def test_a_folder_tells_which_separator_was_heard_and_another_one_makes_it_anew(
    model: Path, sounds: Path, tmp_path: Path
) -> None:
    listed = write_list(tmp_path, sounds, ["a.wav", "long.wav"])
    separator, out = tiny_separator(tmp_path / "apart"), tmp_path / "out"
    words = ("--model", model, "--list", listed, "--separate", "sources", "--separator", separator, "--out", out)

    assert run(*words) == 0
    rows = read_manifest(out)
    assert [row.settings.separate for row in rows if isinstance(row.settings, GenerationSettings)] == [True] * 4
    identity = find_separator(str(separator)).identity
    assert {row.settings.separator for row in rows if isinstance(row.settings, GenerationSettings)} == {identity}
    made = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert run(*words) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()} == made

    tiny_separator(separator, seed=1)
    assert run(*words) == 0
    after = read_manifest(out)
    assert all(path.stat().st_mtime_ns > was for path, was in made.items())
    assert {row.settings.separator for row in after if isinstance(row.settings, GenerationSettings)}.isdisjoint(
        {identity}
    )


def test_a_separator_that_hears_nothing_is_one_line(
    model: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    separator = tiny_separator(tmp_path / "apart")
    edit_weights(separator / "model.safetensors", lambda tensors: tensors["decoder.weight"].zero_())
    words = ("--separate", "sources", "--separator", separator, "--out", tmp_path / "out.png")
    assert run("--model", model, "--audio", sounds / "long.wav", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "long.wav, at 0 s: the separator returned silence" in line
    assert not (tmp_path / "out.png").exists()


def write_list(folder: Path, sounds: Path, names: list[str]) -> Path:
    """A CSV with paths relative to itself, and another column."""
    path = folder / "sounds.csv"
    rows = [f"{os.path.relpath(sounds / name, folder)},x" for name in names]
    path.write_text("\n".join(["sound,label", *rows]) + "\n", encoding="utf-8")
    return path


def test_a_list_and_seeds_give_a_folder_with_a_manifest(model: Path, sounds: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, sounds, ["a.wav", "long.wav"])
    out = tmp_path / "out"

    assert run("--model", model, "--list", listed, "--seeds", 2, "--seed", 5, "--out", out) == 0

    rows = read_manifest(out)
    assert [(Path(row.sound).name, row.start_sec, row.seed) for row in rows] == [
        (name, start_sec, seed)
        for name, starts in (("a.wav", [0.0]), ("long.wav", [0.0, 2.0, 4.0]))
        for start_sec in starts
        for seed in (5, 6)
    ]
    assert all(Path(row.sound).resolve() == (sounds / Path(row.sound).name).resolve() for row in rows)
    assert {row.model for row in rows} == {str(model)}
    first = json.loads((out / "manifest.jsonl").read_text().splitlines()[0])
    assert sorted(first) == [
        *("image", "mixed_with", "model", "model_sha256", "seed", "settings", "sound", "sound_sha256", "start_sec"),
    ]
    assert first["sound_sha256"] == [sha256_of(sounds / "a.wav")]
    assert first["settings"] == {
        "clip_seconds": 2.0,
        "gains_db": [0.0],
        "guidance": 4.5,
        "precision": "float32",
        "separate": False,
        "steps": 2,
        "target_lufs": -30.0,
    }
    assert len({(out / row.image).read_bytes() for row in rows}) == 8
    single = tmp_path / "single.png"
    assert run("--model", model, "--audio", sounds / "a.wav", "--seed", 6, "--out", single) == 0
    assert np.array_equal(pixels(single), pixels(out / rows[1].image))


def test_a_text_file_is_a_list_as_well(model: Path, sounds: Path, tmp_path: Path) -> None:
    path = tmp_path / "sounds.txt"
    path.write_text(f"{sounds / 'b.wav'}\n\n{sounds / 'a.wav'}\n")

    assert run("--model", model, "--list", path, "--out", tmp_path / "out") == 0

    assert [Path(row.sound).name for row in read_manifest(tmp_path / "out")] == ["b.wav", "a.wav"]


def test_a_mixture_with_seeds_names_all_its_sounds(model: Path, sounds: Path, tmp_path: Path) -> None:
    words = ["--audio", sounds / "a.wav", sounds / "b.wav", "--gains-db", 0, -6, "--seeds", 1]

    assert run("--model", model, *words, "--out", tmp_path / "out") == 0

    (row,) = read_manifest(tmp_path / "out")
    assert (row.sound, row.mixed_with) == (str(sounds / "a.wav"), (str(sounds / "b.wav"),))
    assert row.sound_sha256 == (sha256_of(sounds / "a.wav"), sha256_of(sounds / "b.wav"))
    assert isinstance(row.settings, GenerationSettings)
    assert row.settings.gains_db == (0.0, -6.0)


@pytest.mark.parametrize("replaced", ["first.wav", "second.wav"])
def test_a_sound_that_is_replaced_makes_its_own_image(replaced: str, model: Path, sounds: Path, tmp_path: Path) -> None:
    for name in ("first.wav", "second.wav"):
        shutil.copy(sounds / "a.wav", tmp_path / name)
    words = ["--model", model, "--audio", tmp_path / "first.wav", tmp_path / "second.wav", "--seeds", 1]
    words += ["--out", tmp_path / "out"]
    assert run(*words) == 0
    (before,) = read_manifest(tmp_path / "out")
    old = pixels(tmp_path / "out" / before.image)
    shutil.copy(sounds / "b.wav", tmp_path / replaced)

    assert run(*words) == 0

    (after,) = read_manifest(tmp_path / "out")
    assert after.sound_sha256 != before.sound_sha256
    assert not np.array_equal(pixels(tmp_path / "out" / after.image), old)


def test_images_of_an_earlier_request_are_removed(
    model: Path, sounds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    out = tmp_path / "out"
    words = ["--model", model, "--audio", sounds / "a.wav", "--out", out]
    assert run(*words, "--seeds", 4) == 0
    Image.new("RGB", (8, 8)).save(out / "images" / "holiday.png")
    caplog.clear()

    assert run(*words, "--seeds", 3, "--seed", 2) == 0

    images = {row.image for row in read_manifest(out)}
    assert len(images) == 3
    assert {f"images/{path.name}" for path in (out / "images").iterdir()} == {*images, "images/holiday.png"}
    assert caplog.messages == ["3 images, of which 2 are there", "2 images of an earlier request removed"]


def test_what_is_made_is_not_made_again(model: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--model", model, "--list", write_list(tmp_path, sounds, ["a.wav", "b.wav"]), "--seeds", 2, "--out", out]
    assert run(*words) == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted((out / "images").iterdir())}
    first, second, *rest = before
    first.unlink()
    second.write_bytes(before[second][0][:100])
    manifest = (out / "manifest.jsonl").read_bytes()

    assert run(*words) == 0

    assert {path: path.read_bytes() for path in before} == {path: data for path, (data, _) in before.items()}
    assert [path.stat().st_mtime_ns for path in rest] == [before[path][1] for path in rest]
    assert (out / "manifest.jsonl").read_bytes() == manifest


@pytest.mark.parametrize("changed", [["--guidance", "2"], ["--lufs", "-25"], ["--level", "recording"]])
def test_other_settings_make_other_images(changed: list[str], model: Path, sounds: Path, tmp_path: Path) -> None:
    swell = np.repeat([0.02, 0.2], 2 * RATE_HZ) * np.random.default_rng(0).normal(0, 1, 4 * RATE_HZ)
    soundfile.write(tmp_path / "swell.wav", swell[: 3 * RATE_HZ], RATE_HZ)
    words = ["--model", model, "--audio", tmp_path / "swell.wav", "--seeds", 1, "--out", tmp_path / "out"]
    assert run(*words) == 0
    before, _ = read_manifest(tmp_path / "out")
    old = pixels(tmp_path / "out" / before.image)

    assert run(*words, *changed) == 0

    after, _ = read_manifest(tmp_path / "out")
    assert after.settings != before.settings
    assert not np.array_equal(pixels(tmp_path / "out" / after.image), old)


def test_what_the_model_was_trained_on_is_the_default(model: Path, sounds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    edit_json(folder / "model_index.json", lambda index: index.update(level="recording", loudness_lufs=[-24.0, -20.0]))

    assert run("--model", folder, "--audio", sounds / "a.wav", "--seeds", 1, "--out", tmp_path / "out") == 0

    (row,) = read_manifest(tmp_path / "out")
    assert isinstance(row.settings, GenerationSettings)
    assert (row.settings.level, row.settings.target_lufs) == ("recording", -22.0)


def test_a_folder_of_before_there_were_levels_goes_on(model: Path, sounds: Path, tmp_path: Path) -> None:
    words = ["--model", model, "--audio", sounds / "a.wav", "--seeds", 2, "--out", tmp_path / "out"]
    assert run(*words) == 0
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])

    # what the version before wrote, byte for byte: the digest of it is in the image
    assert "level" not in line["settings"]
    with Image.open(tmp_path / "out" / line["image"]) as image:
        assert image.info["manifest_line_sha256"] == digest_of(line)


def test_a_model_released_anew_makes_its_own_images(sounds: Path, tmp_path: Path) -> None:
    folder = write_tiny_pixart(tmp_path / "model", clip_seconds=2.0)
    words = ["--model", folder, "--audio", sounds / "a.wav", "--seeds", 1, "--out", tmp_path / "out"]
    assert run(*words) == 0
    (before,) = read_manifest(tmp_path / "out")
    old = pixels(tmp_path / "out" / before.image)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    edit_json(scheduler, lambda settings: settings.update(timestep_spacing="leading"))

    assert run(*words) == 0

    (after,) = read_manifest(tmp_path / "out")
    assert after.model_sha256 != before.model_sha256
    assert not np.array_equal(pixels(tmp_path / "out" / after.image), old)


def test_a_sound_without_samples_stops_a_list_before_anything_is_written(
    model: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("empty.wav", "empty2.wav"):
        soundfile.write(tmp_path / name, np.zeros(0), RATE_HZ)
    listed = tmp_path / "sounds.txt"
    listed.write_text(f"{sounds / 'a.wav'}\nempty.wav\nempty2.wav\n")

    assert run("--model", model, "--list", listed, "--out", tmp_path / "out") == 2

    error = capsys.readouterr().err
    assert f"{tmp_path / 'empty.wav'}: expected a recording" in error
    assert "and 1 more of 3 cannot be used" in error
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--audio", "A", "B", "--gains-db", "0", "-6", "3"], "--gains-db: expected 2, one for each sound, found 3"),
        (["--audio", "A", "--gains-db", "nan"], "--gains-db"),
        (["--audio", "A", "--seeds", "0"], "--seeds: expected 1 to 1,000,000, found 0"),
        (["--audio", "A", "--seeds", "1000001"], "--seeds: expected 1 to 1,000,000"),
        (["--list", "LIST", "--seeds", "600000"], "expected at most 1,000,000 images, found 1,200,000"),
        (["--audio", "A", "--seeds", "-3"], "--seeds"),
        (["--audio", "A", "--seeds", "two"], "--seeds"),
        (["--audio", "A", "--seed", "-1"], "--seed"),
        (["--audio", "A", "--seed", str(2**63 - 1), "--seeds", "2"], "--seed"),
        (["--audio", "A", "--guidance", "0.5"], "--guidance: expected 1 to 100, found 0.5"),
        (["--audio", "A", "--guidance", "101"], "--guidance: expected 1 to 100"),
        (["--audio", "LONG"], "cannot be read (File name too long)"),
        (["--list", "WIDE"], "cannot be read as CSV (field larger than field limit"),
        (["--audio", "A", "--lufs", "3"], "--lufs"),
        (["--audio", "A", "--level", "clip"], "--level"),
        (["--audio", "A", "--batch-size", "0"], "--batch-size"),
        (["--audio", "TEXT"], "expected a recording, found none"),
        (["--audio", "A", "MISSING"], "no such file"),
        (["--list", "MISSING"], "--list"),
        (["--list", "A"], "--list"),
        (["--list", "CSV"], "expected a column `sound`, found name, label"),
        (["--list", "EMPTY"], "names no sound"),
        (["--list", "LIST", "--separate"], "--separate"),
        (["--audio", "A", "--separate", "sources"], "--separate sources: expected a --separator"),
        (["--audio", "A", "--separator", "A"], "--separator: goes with --separate sources"),
        (["--audio", "A", "--separate", "sources", "--separator", "/no/where"], "--separator: /no/where: there is no"),
        (["--audio", "A", "--list", "LIST"], "not allowed with"),
        ([], "required"),
    ],
)
def test_wrong_input_is_one_clear_line(
    words: list[str], message: str, model: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    texts = {
        "TEXT": ("notes.wav", "not a sound"),
        "CSV": ("names.csv", "name,label\na.wav,x\n"),
        "EMPTY": ("empty.txt", "\n"),
        "LIST": ("list.txt", f"{sounds / 'a.wav'}\n" * 2),
        "WIDE": ("wide.csv", f"sound\n{'x' * 200_000}\n"),
    }
    places = {"A": sounds / "a.wav", "B": sounds / "b.wav", "MISSING": tmp_path / "missing.wav"}
    places["LONG"] = tmp_path / f"{'x' * 300}.wav"
    for word, (name, text) in texts.items():
        places[word] = tmp_path / name
        places[word].write_text(text)
    out = ["--out", tmp_path / "out" if {"--list", "--seeds"} & {*words} else tmp_path / "out.png"]

    try:
        code = run("--model", model, *(places.get(word, word) for word in words), *out)
    except SystemExit as end:
        code = end.code

    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("out.jpg", "expected the name of a .png file"),
        ("folder", "expected the name of a .png file"),
        ("out.png --seeds 2", "expected a folder"),
        ("file --seeds 2", "expected a folder"),
        ("file/out.png", "cannot be written to"),
        ("file/out --seeds 2", "cannot be written to"),
        (f"{'x' * 300}.png", "cannot be written to (File name too long)"),
        (f"{'x' * 240}.png", "cannot be written to (File name too long)"),
        (f"{'x' * 300} --seeds 2", "cannot be written to (File name too long)"),
    ],
)
def test_a_place_that_does_not_fit_is_refused(
    words: str, message: str, model: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    out, *seeds = words.split()

    assert run("--model", model, "--audio", sounds / "a.wav", *seeds, "--out", tmp_path / out) == 2

    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["another", "without_ast", "cut"])
def test_another_model_is_refused(kind: str, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "model"
    if kind == "another":
        folder.mkdir()
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    else:
        write_tiny_pixart(folder, audio=kind != "without_ast")
        weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[: -1 if kind == "cut" else None])

    assert run("--model", folder, "--audio", sounds / "a.wav", "--out", tmp_path / "out.png") == 2

    error = capsys.readouterr().err
    assert str(folder) in error
    assert {"another": "found StableDiffusionPipeline", "without_ast": "without an AST", "cut": "transformer"}[
        kind
    ] in error


def write_rows(folder: Path, **changes: object) -> None:
    """A manifest of one line, that of `test_a_mixture_...` with some fields changed."""
    settings = {"guidance": 4.5, "steps": 2, "precision": "float32", "target_lufs": -30.0, "gains_db": [0.0]}
    settings |= {"separate": False, "clip_seconds": 2.0}
    row = {"image": "images/0.png", "sound": "/a.wav", "mixed_with": [], "start_sec": 0.0, "seed": 0, "model": "/m"}
    row |= {"sound_sha256": ["0"], "model_sha256": "0", "settings": settings}
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(b"")
    (folder / "manifest.jsonl").write_text(json.dumps(row | changes) + "\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "line 1: seed"),
        ({"odd": 1}, "line 1: odd"),
        ({"settings": {}}, "line 1: settings.guidance"),
        ({"image": "images/1.png"}, "missing"),
        ({"image": "../outside.png"}, "missing"),
    ],
)
def test_a_manifest_is_checked_when_it_is_read(changes: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(b"")
    folder = tmp_path / "out"
    folder.mkdir()
    write_rows(folder, **changes)

    with pytest.raises(InputError, match=message):
        read_manifest(folder)


def test_a_good_manifest_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path)

    assert [row.sound for row in read_manifest(tmp_path)] == ["/a.wav"]
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path / "images")


def test_an_interrupted_folder_goes_on(
    model: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    words = ["--model", model, "--audio", sounds / "long.wav", "--seeds", 8, "--out", out]

    def images() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.glob("images/*.png")}

    def interrupt() -> None:
        while len(images()) < 2:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = main([*map(str, words), *FAST, "--steps", "30"])
    thread.join()
    before = images()

    assert code == 130
    assert "interrupted" in capsys.readouterr().err
    assert 2 <= len(before) < 24
    assert sorted(path.name for path in out.iterdir()) == ["images"]
    assert {path.suffix for path in (out / "images").iterdir()} == {".png"}

    assert main([*map(str, words), *FAST, "--steps", "30"]) == 0
    assert len(read_manifest(out)) == 24
    assert images().items() >= before.items()
