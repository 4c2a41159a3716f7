"""Each study as its command, on tiny models of the real classes and on sounds made here."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from eval.loudness import correlate, summarise
from eval.separation import compare, mix_sources, paint_both, read_stems
from eval.studio import Painting, Studio
from eval.study import read_heard
from sonify.errors import InputError
from sonify.media.mixing import FULL_SCALE, measure_loudness
from tests.builders import noise, sine
from tests.builders import write_sound as write_samples
from tests.tiny_networks import tiny_clip, tiny_hubert, tiny_pipeline, write_tiny_pixart
from train.tiny import write_tiny_ast
from train.windows import SAMPLE_RATE_HZ, TARGET_LUFS

SECONDS = 5


def write_sound(path: Path, pitch_hz: float, level: float = 0.1) -> Path:
    """A tone with some noise; with `level` 0, silence."""
    tone_S = sine(pitch_hz, SECONDS, SAMPLE_RATE_HZ, level)
    return write_samples(path, tone_S + noise(round(pitch_hz), tone_S.size, 0.1 * level), SAMPLE_RATE_HZ)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models and sounds."""
    folder = tmp_path_factory.mktemp("studies")
    write_tiny_pixart(folder / "model")
    tiny_clip(folder / "clip")
    tiny_hubert(folder / "hubert")
    write_tiny_ast(folder / "ast")
    write_sound(folder / "dog.wav", 300)
    write_sound(folder / "sea_waves.wav", 1000, level=0.02)
    write_sound(folder / "silence.wav", 500, level=0.0)
    return folder


def run(study: str, folder: Path, out: Path, *arguments: str) -> int:
    """A study with few pictures; the paths of `arguments` are relative to the folder."""
    given = [str(folder / word) if (folder / word).exists() else word for word in arguments]
    models = ["--model", str(folder / "model"), "--scorer", str(folder / "clip"), "--steps", "2", "--seeds", "2"]
    if study == "ast_loudness":
        models = ["--ast", str(folder / "ast"), "--hubert", str(folder / "hubert")]
    return importlib.import_module(f"eval.{study}").main([*models, "--out", str(out), *given])


def result_of(out: Path, study: str) -> dict[str, Any]:
    with Image.open(out / f"{study}.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50  # something is drawn
    assert sorted(path.name for path in out.iterdir()) == [f"{study}.json", f"{study}.png"]
    result = json.loads((out / f"{study}.json").read_text())
    assert result["study"] == study
    return result


SOUNDS = ("dog.wav", "sea_waves.wav")
COMMANDS = {
    "semantic_mixing": ("--audio", *SOUNDS),
    "loudness": ("--fixed", "sea_waves.wav", "--swept", "dog.wav", "--gains-db", "-12", "0", "6"),
    "separation": ("--audio", *SOUNDS),
    "reverberation": ("--audio", "dog.wav"),
    "ast_loudness": ("--audio", *SOUNDS, "--gains-db", "-6", "6"),
}


def test_semantic_mixing_scores_each_sound_and_their_mixture(folder, tmp_path):
    assert run("semantic_mixing", folder, tmp_path, *COMMANDS["semantic_mixing"]) == 0
    result = result_of(tmp_path, "semantic_mixing")
    assert [item["sounds"] for item in result["items"]] == [["dog"], ["sea waves"], ["dog", "sea waves"]]
    mixed = result["items"][2]["scores"]
    assert [len(scores) for scores in mixed.values()] == [2, 2]
    (pair,) = result["summary"]["pairs"]
    assert pair["mixed"][0]["mean"] == pytest.approx(np.mean(mixed["dog"]))
    assert pair["alone"][1]["mean"] == pytest.approx(np.mean(result["items"][1]["scores"]["sea waves"]))
    assert pair["both_mixed"]["mean"] == pytest.approx(np.minimum(mixed["dog"], mixed["sea waves"]).mean())


def test_loudness_scores_every_gain(folder, tmp_path):
    assert run("loudness", folder, tmp_path, *COMMANDS["loudness"]) == 0
    result = result_of(tmp_path, "loudness")
    assert [item["gain_db"] for item in result["items"]] == [-12, 0, 6]
    swept = result["summary"]["swept"]
    assert swept["label"] == "dog"
    scores = np.array([item["scores"]["dog"] for item in result["items"]])
    assert np.ptp(scores, axis=0).min() > 0  # the gain reaches the pictures
    assert swept["spearman_by_seed"] == correlate([-12, 0, 6], scores)


def test_the_same_command_writes_the_same_bytes(folder, tmp_path):
    for out in ("once", "again"):
        assert run("loudness", folder, tmp_path / out, *COMMANDS["loudness"]) == 0
    for name in ("loudness.json", "loudness.png"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_spearman_of_a_score_that_grows_with_the_gain_is_one():
    gains_db = [-24.0, -12.0, -6.0, 0.0]
    grows = np.array([[0.1, 0.2], [0.15, 0.5], [0.6, 0.55], [0.61, 0.9]])
    scores_GBL = np.stack([1 - grows, grows], axis=-1)
    summary = summarise(gains_db, scores_GBL, ["waves", "dog"], seed=0)
    assert summary["swept"]["spearman_by_seed"] == pytest.approx([1, 1])
    assert summary["swept"]["spearman"].low == pytest.approx(1)
    assert summary["fixed"]["spearman"].mean == pytest.approx(-1)
    assert correlate(gains_db, np.full((4, 3), 0.5)) == [0, 0, 0]
    assert correlate([0, 1, 2, 3], np.array([[1.0], [3.0], [2.0], [4.0]])) == pytest.approx([0.8])


def test_separated_features_are_joined_along_time(folder, tmp_path):
    assert run("separation", folder, tmp_path, *COMMANDS["separation"]) == 0
    (item,) = result_of(tmp_path, "separation")["items"]
    assert item["separated"]["num_times"] == 2 * item["mixed"]["num_times"] == 2 * 49


def mean_red(images, labels) -> np.ndarray:
    """An eye of its own: how red an image is, and how blue."""
    red_and_blue = np.array([np.asarray(image)[..., [0, 2]].mean(axis=(0, 1)) / 255 for image in images])
    return np.column_stack([red_and_blue, np.zeros((len(images), len(labels) - 2))])


def test_the_model_hears_what_it_hears_of_each_source_and_any_eye_may_judge(folder):
    pipeline = tiny_pipeline()
    studio = Studio(pipeline, mean_red, Painting(seeds=(3, 4), steps=2))
    sources = mix_sources([read_heard(folder / name, SECONDS) for name in SOUNDS], ["dog", "waves"])
    features_TD = studio.listen(sources.separated_NS)
    alone = [pipeline.encode_audio(part_S[None])[0].numpy() for part_S in sources.separated_NS]
    assert np.array_equal(features_TD, np.concatenate(alone))
    mixed, separated = paint_both(studio, sources)
    assert mixed.scores_BL[1, 0] == pytest.approx(np.asarray(mixed.images[1])[..., 0].mean() / 255)
    assert not np.array_equal(mixed.scores_BL, separated.scores_BL)


def test_what_separation_gains_is_paired_by_seed():
    mixed_BL = np.array([[0.1, 0.6], [0.3, 0.4]])
    found = compare(mixed_BL, mixed_BL + np.array([0.2, 0.1]), ["dog", "waves"], seed=0)
    assert found["sources"][0]["gain"].low == pytest.approx(0.2)  # the same for every seed: no doubt
    assert found["gain_of_weakest"].mean == pytest.approx(0.2)


def test_real_mixtures_keep_the_balance_of_their_stems(folder, tmp_path):
    stems = tmp_path / "stems" / "beach"
    dog, waves = (soundfile.read(folder / name, dtype="float64")[0] for name in SOUNDS)
    stems.mkdir(parents=True)
    late = np.concatenate([np.zeros_like(dog), dog])
    for name, samples in {"mixture": late + np.tile(waves, 2), "dog": late, "waves": np.tile(waves, 2)}.items():
        soundfile.write(stems / f"{name}.wav", samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    sources = read_stems(stems, SECONDS)
    assert sources.labels == ("dog", "waves")
    assert sources.start_sec == SECONDS  # in the first window there are only waves
    mixed_S = np.rint(sources.mixed_1S[0] * FULL_SCALE).astype(np.int16)
    assert measure_loudness(mixed_S, SAMPLE_RATE_HZ) == pytest.approx(TARGET_LUFS, abs=0.05)
    assert sources.separated_NS.sum(axis=0) == pytest.approx(sources.mixed_1S[0], abs=2 / FULL_SCALE)
    out = tmp_path / "out"
    assert run("separation", folder, out, "--stems", str(stems.parent)) == 0
    assert result_of(out, "separation")["items"][0]["name"] == "beach"


def test_reverberation_in_simulated_rooms(folder, tmp_path):
    assert run("reverberation", folder, tmp_path, *COMMANDS["reverberation"]) == 0
    rooms = result_of(tmp_path, "reverberation")["summary"]["rooms"]
    assert [room["room"] for room in rooms] == ["no room", "small room", "classroom", "church", "concert hall"]
    assert [room["rt60_sec"] for room in rooms] == sorted(room["rt60_sec"] for room in rooms)
    assert rooms[0]["feature_distances"]["no room"] == pytest.approx(0, abs=1e-9)
    assert rooms[0]["feature_distances"]["concert hall"] == rooms[4]["feature_distances"]["no room"] > 1e-6


def test_reverberation_of_real_recordings(folder, tmp_path):
    rooms = tmp_path / "crowd"
    write_sound(rooms / "hall" / "a.wav", 200)
    write_sound(rooms / "hall" / "b.flac", 250)
    write_sound(rooms / "living_room" / "c.wav", 900)
    out = tmp_path / "out"
    assert run("reverberation", folder, out, "--recordings", str(rooms)) == 0
    result = result_of(out, "reverberation")
    assert [item["recordings"] for item in result["items"]] == [2, 1]
    assert result["settings"]["labels"] == ["crowd", "hall", "living room"]
    assert [len(item["scores"]["crowd"]) for item in result["items"]] == [4, 2]  # two seeds a recording
    assert {room["rt60_sec"] for room in result["summary"]["rooms"]} == {None}


def test_ast_keeps_more_loudness_than_normalised_sound_can(folder, tmp_path):
    assert run("ast_loudness", folder, tmp_path, *COMMANDS["ast_loudness"]) == 0
    result = result_of(tmp_path, "ast_loudness")
    assert [len(items) for items in result["items"].values()] == [4, 4, 4]
    ast, normalised = (result["summary"][name] for name in ("AST", "HuBERT, normalised"))
    # at unit variance no gain reaches the network: rounding is all that moves
    assert normalised["displacement"]["12.0"]["mean"] < 1e-4
    assert ast["displacement"]["12.0"]["mean"] > 0.01
    assert normalised["same_gain"]["mean"] == pytest.approx(normalised["same_gain_chance"])


@pytest.mark.parametrize(
    ("study", "arguments", "message"),
    [
        ("semantic_mixing", ("--audio", "dog.wav"), "expected two sounds at least"),
        ("semantic_mixing", ("--audio", "dog.wav", "silence.wav"), "silent"),
        ("semantic_mixing", ("--audio", "dog.wav", "dog.wav"), "'dog' is there twice"),
        ("semantic_mixing", ("--audio", *SOUNDS, "--labels", "dog"), "--labels: expected 2"),
        ("semantic_mixing", ("--audio", *SOUNDS, "--seeds", "1"), "--seeds: expected at least 2"),
        ("semantic_mixing", ("--audio", *SOUNDS, "--model", "nowhere"), "not a released pipeline"),
        ("semantic_mixing", ("--audio", *SOUNDS, "--scorer", "/no/where/at/all"), "there is no such folder"),
        ("loudness", ("--fixed", "dog.wav", "--swept", "nothing.wav"), "nothing.wav: expected a recording"),
        ("loudness", ("--fixed", "dog.wav", "--swept", "sea_waves.wav", "--gains-db", "0", "nan", "6"), "finite"),
        (
            "loudness",
            ("--fixed", "dog.wav", "--swept", "sea_waves.wav", "--gains-db", "0", "0", "6"),
            "three different",
        ),
        ("separation", ("--audio", "dog.wav"), "nothing to separate"),
        ("separation", ("--stems", "clip"), "folder of folders"),
        ("reverberation", ("--audio", "silence.wav"), "silent"),
        ("reverberation", ("--recordings", "clip"), "a folder for each room"),
        ("ast_loudness", ("--audio", "dog.wav"), "no neighbour to find"),
        ("ast_loudness", ("--audio", *SOUNDS, "--gains-db", "3"), "two different numbers"),
        ("ast_loudness", ("--audio", *SOUNDS, "--hubert", "ast"), "HubertModel"),
        ("ast_loudness", ("--audio", *SOUNDS, "--ast", "hubert"), "expected a model of type"),
        ("ast_loudness", ("--audio", *SOUNDS, "--out", "dog.wav"), "not a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, capsys, study, arguments, message):
    assert run(study, folder, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith(f"eval.{study}: ")
    assert not list(tmp_path.glob("out/*"))


def test_a_gain_that_is_no_number_is_one_line(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("loudness", folder, tmp_path, "--fixed", "dog.wav", "--swept", "dog.wav", "--gains-db", "loud")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--gains-db: invalid float value: 'loud'" in line


def test_a_model_that_cannot_hear_is_refused(folder, tmp_path, capsys):
    write_tiny_pixart(tmp_path / "deaf", audio=False)
    assert run("separation", folder, tmp_path / "out", "--model", str(tmp_path / "deaf"), "--audio", *SOUNDS) == 2
    assert "cannot hear a sound" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["mixture", "dog"])
def test_stems_that_are_no_mixture_are_refused(tmp_path, missing):
    for name in {"mixture", "dog", "waves"} - {missing}:
        write_sound(tmp_path / f"{name}.wav", 300)
    with pytest.raises(InputError, match="expected one recording called mixture and two sources"):
        read_stems(tmp_path, SECONDS)
