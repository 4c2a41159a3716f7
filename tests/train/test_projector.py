"""Pre-training of the projector: what it learns, what it writes, and that training reads it."""

import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from sonify.config.loader import load_settings, make_settings
from sonify.errors import InputError, WorkError
from sonify.keys import hash64
from tests.feature_runs import MadeSample, make_feature_run
from tests.tiny_networks import tiny_t5
from train.config import Transformer
from train.loader import generator
from train.metrics import read_metrics
from train.model import init_transformer, load_text_projection
from train.projector import (
    Pairs,
    ProjectorConfig,
    contrastive_loss,
    learn,
    main,
    pretrain_projector,
    regression_loss,
    retrieve,
)
from train.tiny import write_tiny_sd

SHIPPED = sorted(Path(__file__).parents[2].glob("configs/train/projector*.yaml"))
SOUNDS = ("dog", "rain", "engine", "bird", "sea", "bell")
WIDTH, CHANNELS = 16, 12
MODEL = {"layers": 1, "heads": 2, "head_dim": 8, "sample_size": 8, "caption_channels": CHANNELS}


def sounding(count: int, split: str = "train", labels: tuple[str, ...] = SOUNDS, per_recording: int = 1) -> Any:
    """Samples whose vectors are those of their label, with noise: what is held out can be told from what is known."""
    means = {label: generator("sound", label).standard_normal(CHANNELS) for label in labels}
    samples = []
    for n in range(count):
        label = labels[n % len(labels)]
        noise = generator("noise", split, n).standard_normal((5, CHANNELS))
        samples.append(
            MadeSample(
                key=f"{split}-{n:03d}",
                latent_CHW=np.zeros((4, 8, 8)),
                audio_TD={"captions": means[label] + 0.3 * noise},
                split=split,
                label=label,
                recordings=(f"{split}-{label}-{n // len(labels) // per_recording}",),
            )
        )
    return samples


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("projector")
    make_feature_run(folder / "data", [*sounding(36), *sounding(12, "validation")])
    write_tiny_sd(folder / "sd")
    tiny_t5(folder / "t5")
    text, _ = init_transformer(Transformer.model_validate(MODEL | {"caption_channels": 32}), seed=4)
    text.save_pretrained(folder / "pixart" / "transformer")
    return folder


def plain(root: Path, run: str, **sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "run_dir": str(root / run),
        "data": {"runs": [str(root / "data")]},
        "text": {"kind": "clip", "model": str(root / "sd")},
        "model": MODEL,
        "batch": 12,
        "steps": 60,
        "learning_rate": 0.01,
        "log_every": 20,
    }
    return base | sections


def config_of(root: Path, run: str, **sections: Any) -> ProjectorConfig:
    return make_settings(plain(root, run, **sections), ProjectorConfig)


def checkpointed(root: Path) -> dict[str, Any]:
    init = {"kind": "checkpoint", "model": str(root / "pixart")}
    return {"text": {"kind": "t5", "model": str(root / "t5")}, "model": MODEL | {"init": init}}


@pytest.fixture(scope="module")
def made(root: Path) -> Path:
    return pretrain_projector(config_of(root, "made"))


def test_it_tells_sounds_that_it_never_heard(root: Path, made: Path) -> None:
    lines = read_metrics(made.parent)
    assert [line["step"] for line in lines] == [1, 20, 40, 60]
    assert lines[-1]["recall_at_1"] >= 0.9 > lines[0]["recall_at_1"]
    assert lines[-1]["loss"] < lines[0]["loss"] / 4
    assert lines[-1]["mean_rank"] < 1.2
    assert lines[-1]["temperature"] != pytest.approx(0.07)


@pytest.mark.parametrize("kind", ["scratch", "checkpoint"])
def test_training_begins_with_what_it_writes(root: Path, made: Path, kind: str) -> None:
    init = {"kind": kind, "projector": str(made)} | ({"model": str(root / "pixart")} if kind == "checkpoint" else {})
    model, report = init_transformer(Transformer.model_validate(MODEL | {"init": init}), seed=0)
    written = load_file(made)
    assert (
        set(report.projector)
        == set(written)
        == {f"caption_projection.linear_{n}.{what}" for n in (1, 2) for what in ("weight", "bias")}
    )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in written.items())
    assert "from the projector" in str(report)
    init.pop("projector")
    without, _ = init_transformer(Transformer.model_validate(MODEL | {"init": init}), seed=0)
    others = {name: tensor for name, tensor in without.state_dict().items() if name not in written}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others.items()), "the same elsewhere"
    assert not report.projector.keys() & report.new.keys()


def test_t5_before_a_checkpoint_is_heard_through_the_checkpoints_own_projection(root: Path) -> None:
    path = pretrain_projector(config_of(root, "by-t5", **checkpointed(root)))
    lines = read_metrics(path.parent)
    assert lines[-1]["regression"] < 0.3, "most of the projected texts' spread is explained"
    assert lines[-1]["recall_at_1"] >= 0.9
    assert "the text projection of sha256:" in (path.parent / "README.md").read_text()
    kept = load_file(path.parent / "texts.safetensors")["vectors"]
    assert kept.shape == (len(SOUNDS), WIDTH)


def test_regression_alone_comes_to_the_texts_own_vectors(root: Path) -> None:
    sections = checkpointed(root) | {"loss": {"contrastive": 0.0}, "steps": 200}
    path = pretrain_projector(config_of(root, "regressed", **sections))
    lines = read_metrics(path.parent)
    assert lines[0]["regression"] > 1
    assert lines[-1]["regression"] < 0.1


def test_the_card_says_what_it_is_made_of(made: Path) -> None:
    card, heard = (made.parent / "README.md").read_text(), (made.parent / "recordings.txt").read_text().splitlines()
    assert heard == sorted({f"train-{label}-{n}" for label in SOUNDS for n in range(6)})
    for word in ("36", "an-ast-identity", "chance 0.167", "found no gain", "the validation split"):
        assert word in " ".join(card.split())
    assert str(made.parents[1]) not in card, "a card names no folder of this machine"


def test_it_is_a_function_of_its_settings_and_stays(root: Path, made: Path, caplog) -> None:
    again = pretrain_projector(config_of(root, "again"))
    assert again.read_bytes() == made.read_bytes()
    stamp = made.stat().st_mtime_ns
    caplog.set_level("INFO")
    assert pretrain_projector(config_of(root, "made", log_every=7)) == made
    assert "is there already" in caplog.text
    assert made.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="was made from other settings"):
        pretrain_projector(config_of(root, "made", seed=1))
    other = pretrain_projector(config_of(root, "other", seed=1))
    assert other.read_bytes() != made.read_bytes()


def test_texts_are_embedded_once(root: Path, monkeypatch, caplog) -> None:
    made = pretrain_projector(config_of(root, "once"))
    before = made.read_bytes()
    made.unlink()  # as if a kill had come before it was written
    monkeypatch.setattr("train.texts.load_network", None)
    assert pretrain_projector(config_of(root, "once")).read_bytes() == before
    made.unlink()
    cache = made.parent / "texts.safetensors"
    cache.write_bytes(cache.read_bytes()[:-1] + b"x")
    with pytest.raises(TypeError):
        pretrain_projector(config_of(root, "once"))


def test_a_share_of_the_recordings_is_held_out(root: Path, tmp_path: Path) -> None:
    make_feature_run(tmp_path / "data", sounding(60))
    sections = {"data": {"runs": [str(tmp_path / "data")]}, "held_out": 0.3}
    path = pretrain_projector(config_of(tmp_path, "run", text={"kind": "clip", "model": str(root / "sd")}, **sections))
    heard = set((path.parent / "recordings.txt").read_text().split())
    everything = {f"train-{label}-{n}" for label in SOUNDS for n in range(10)}
    assert heard < everything
    assert 0.1 < 1 - len(heard) / len(everything) < 0.5
    assert read_metrics(path.parent)[-1]["recall_at_1"] >= 0.8


def two_sources(count: int) -> Any:
    """Scenes of two recordings each, every one beside each of two others."""
    samples = sounding(count)
    names = [sample.recordings[0] for sample in samples]
    return [
        replace(sample, recordings=(names[n], names[(n + len(SOUNDS)) % count])) for n, sample in enumerate(samples)
    ]


def test_scenes_with_recordings_of_both_sides_are_in_neither(root: Path, tmp_path: Path, caplog) -> None:
    samples = two_sources(120)
    make_feature_run(tmp_path / "data", samples)
    sections = {"data": {"runs": [str(tmp_path / "data")]}, "held_out": 0.3, "steps": 1}
    caplog.set_level("INFO")

    path = pretrain_projector(config_of(tmp_path, "run", text={"kind": "clip", "model": str(root / "sd")}, **sections))

    known = {name for sample in samples for name in sample.recordings if is_known(name)}
    sides = [len(known & set(sample.recordings)) for sample in samples]
    assert min(sides.count(n) for n in range(3)) > 5
    assert f"{sides.count(2)} scenes to learn from, {sides.count(0)} held out" in caplog.text
    assert f"{sides.count(1)} scenes are left out: they have recordings of both sides" in caplog.text
    heard = {name for sample, side in zip(samples, sides, strict=True) if side == 2 for name in sample.recordings}
    assert (path.parent / "recordings.txt").read_text().split() == sorted(heard)
    assert f"left out: {sides.count(1)} scenes with recordings of both sides" in (path.parent / "README.md").read_text()


def is_known(recording: str) -> bool:
    return hash64("held out", 0, recording) >= 0.3 * 2**64


def test_what_another_run_is_trained_on_is_not_held_out(root: Path, tmp_path: Path, caplog) -> None:
    held = sounding(18, "validation")
    again = [replace(sample, key=f"train-again-{n}", split="train") for n, sample in enumerate(held[:5])]
    make_feature_run(tmp_path / "data", [*sounding(12), *held])
    make_feature_run(tmp_path / "more", again)
    sections = {"data": {"runs": [str(tmp_path / "data"), str(tmp_path / "more")]}, "steps": 1}
    caplog.set_level("INFO")

    pretrain_projector(config_of(tmp_path, "run", text={"kind": "clip", "model": str(root / "sd")}, **sections))

    assert "17 scenes to learn from, 13 held out" in caplog.text
    assert "5 scenes are left out: they have recordings of both sides" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_leaves_no_projector(root: Path, number: int) -> None:
    run = root / f"killed-{number}"
    path = root / f"killed-{number}.yaml"
    path.write_text(yaml.safe_dump(plain(root, run.name, steps=10**6)))
    command = [sys.executable, "-m", "train.projector", "--config", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (run / "texts.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert {name.name for name in run.iterdir()} <= {"texts.safetensors", "lock", "tmp"}
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert "no projector was written; the same command begins again" in said
    assert main(["--config", str(path), "steps=5"]) == 0
    assert (run / "projector.safetensors").exists()


def test_equal_texts_are_no_negatives() -> None:
    audio, text = torch.eye(3), torch.eye(3)
    scale = torch.tensor(5.0)
    apart, right = contrastive_loss(audio, text, torch.tensor([0, 1, 2]), scale)
    expected = -math.log(math.exp(5) / (math.exp(5) + 2))
    assert float(apart) == pytest.approx(expected, rel=1e-5)
    assert float(right) == 1
    same, _ = contrastive_loss(audio, text, torch.tensor([0, 0, 1]), scale)
    two = -math.log(math.exp(5) / (math.exp(5) + 1))
    assert float(same) == pytest.approx((2 * two + expected) / 3, rel=1e-5)
    alone, right = contrastive_loss(audio, text, torch.zeros(3, dtype=torch.long), scale)
    assert (float(alone), float(right)) == (0, 1)


def test_both_directions_of_the_contrastive_loss_count() -> None:
    audio = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found, right = contrastive_loss(audio, text, torch.tensor([0, 1]), torch.tensor(1.0))
    log = math.log
    by_sound = (log(1 + math.exp(-1)) + log(1 + math.exp(1))) / 2
    by_text = log(2)
    assert float(found) == pytest.approx((by_sound + by_text) / 2, rel=1e-6)
    assert float(right) == 0.5


def test_regression_is_a_share_of_the_spread_or_a_cosine() -> None:
    audio, text = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 1.0]])
    assert float(regression_loss(audio, text, 4.0)) == pytest.approx(0.5)
    assert float(regression_loss(2 * audio, 9 * audio, None)) == pytest.approx(0, abs=1e-6)
    assert float(regression_loss(audio, -audio, None)) == pytest.approx(2)


def test_ties_share_their_places() -> None:
    pairs = Pairs(audio_STD=torch.ones(4, 1, 3), text_S=torch.tensor([5, 7, 8, 7]))
    vectors = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    silent = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(silent.weight)
    found = retrieve(silent, nn.Identity(), pairs, vectors)
    assert (found.scenes, found.texts, found.recall_at_1, found.mean_rank) == (4, 3, 0, 2)


def test_a_loss_that_is_not_finite_is_named(root: Path) -> None:
    config = config_of(root, "inf", batch=2)
    pairs = Pairs(audio_STD=torch.full((4, 2, CHANNELS), torch.inf), text_S=torch.tensor([0, 1, 0, 1]))
    with pytest.raises(WorkError, match="step 1: the loss is not finite"):
        learn(config, pairs, pairs, torch.randn(2, 8), own=False)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": MODEL | {"caption_channels": 13}}, "features are 12 wide, and model.caption_channels is 13"),
        ({"text": {"kind": "t5", "model": "{root}/sd"}}, "expected a text model of type 't5'.*found 'clip_text_model'"),
        ({"text": {"kind": "clip", "model": "{root}/t5"}}, "expected a text model of type 'clip'.*found 't5'"),
        ({"text": {"kind": "clip", "model": "{root}/data"}}, "no config.json, so it is not the folder of a model"),
        ({"batch": 37}, "36 scenes to learn from, fewer than the 37 of one step"),
        ({"run_dir": "{root}/data"}, "run_dir .*: is data.runs.0"),
        ({"run_dir": "{root}/sd"}, "holds something else than a projector"),
        ({"reads": "label"}, "reads .*: expected 'description' or 'concept'"),
        ({"loss": {"contrastive": 0, "regression": 0}}, "contrastive and regression are both 0"),
        ({"model": MODEL | {"init": {"kind": "scratch", "projector": "{root}/sd"}}}, "is what this makes: take it out"),
        ({"data": {"runs": ["{root}/data"], "split": "validation"}}, "is the split that is held out"),
        ({"model": MODEL | {"heads": 4}, "t5": True}, "its projection is 16 wide, and .* is 32"),
    ],
)
def test_what_is_wrong_is_one_line(root: Path, capsys, sections: dict[str, Any], message: str) -> None:
    raw = plain(root, "wrong", **sections)
    if raw.pop("t5", False):
        raw = raw | checkpointed(root)
        raw["model"] = raw["model"] | {"heads": 4}
    path = root / "wrong.yaml"
    path.write_text(yaml.safe_dump(raw).replace("{root}", str(root)))
    assert main(["--config", str(path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.search(message, said[0]), said


def test_a_text_encoder_of_another_width_than_the_checkpoints_is_one_line(root: Path, tmp_path: Path) -> None:
    sections = checkpointed(root) | {"text": {"kind": "t5", "model": str(tiny_t5(tmp_path / "t5", width=24))}}
    with pytest.raises(InputError, match=r"its vectors are 24 wide, and .* reads texts of 32"):
        pretrain_projector(config_of(root, "narrow", **sections))


@pytest.mark.parametrize(
    ("samples", "reads", "message"),
    [
        (sounding(12, labels=("dog",)), "description", "to learn from say only 'sound of dog': expected two texts"),
        (sounding(12, labels=("dog", " ")), "concept", "train-001: scene captions names no concept"),
    ],
)
def test_texts_that_teach_nothing_are_one_line(root: Path, tmp_path: Path, samples, reads: str, message: str) -> None:
    make_feature_run(tmp_path / "data", [*samples, *sounding(4, "validation")])
    sections = {"data": {"runs": [str(tmp_path / "data")]}, "reads": reads}
    sections["text"] = {"kind": "clip", "model": str(root / "sd")}
    with pytest.raises(InputError, match=message):
        pretrain_projector(config_of(tmp_path, "run", **sections))


def test_runs_that_hold_nothing_out_say_what_to_do(root: Path, tmp_path: Path) -> None:
    make_feature_run(tmp_path / "data", sounding(12))
    sections = {"data": {"runs": [str(tmp_path / "data")]}, "text": {"kind": "clip", "model": str(root / "sd")}}
    with pytest.raises(InputError, match="or set held_out to a share of the recordings"):
        pretrain_projector(config_of(tmp_path, "run", **sections))
    with pytest.raises(InputError, match="the scenes held out say no sound"):
        pretrain_projector(config_of(tmp_path, "run", **sections, held_out=1e-6))


def test_a_projection_of_texts_that_is_not_there_is_one_line(root: Path, tmp_path: Path) -> None:
    model, _ = init_transformer(Transformer.model_validate(MODEL), seed=0)
    model.caption_projection = None
    model.save_pretrained(tmp_path / "transformer")
    init = Transformer.model_validate(MODEL | {"init": {"kind": "checkpoint", "model": str(tmp_path)}}).init
    assert init.kind == "checkpoint"
    with pytest.raises(InputError, match="has no projection of a text"):
        load_text_projection(init, WIDTH)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"dtype"', b'"dtyqe"', 1))
    with pytest.raises(InputError, match="the library cannot load"):
        load_text_projection(init, WIDTH)


def test_a_projector_that_is_damaged_is_not_written_over(root: Path) -> None:
    path = pretrain_projector(config_of(root, "damaged"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        pretrain_projector(config_of(root, "damaged"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_load_and_refuse_a_misspelt_key(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    assert make_settings(raw, ProjectorConfig, check_paths=False)
    assert path.read_text().startswith("#")
    for section in [key for key, value in raw.items() if isinstance(value, dict)]:
        with pytest.raises(InputError, match=r"no such key"):
            make_settings({**raw, section: {**raw[section], "learning_rat": 3}}, ProjectorConfig, check_paths=False)


def test_the_shipped_projector_is_the_papers_models() -> None:
    folder = SHIPPED[0].parent
    ours = load_settings(folder / "projector.yaml", [], ProjectorConfig, check_paths=False).model
    paper = yaml.safe_load((folder / "pixart_xl_512.yaml").read_text())["model"]
    assert ours.init.model_dump(mode="json", exclude_none=True) == paper["init"]
    assert (ours.heads, ours.head_dim, ours.caption_channels) == tuple(
        paper[key] for key in ("heads", "head_dim", "caption_channels")
    )
