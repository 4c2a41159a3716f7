"""The study that compares training from a random projector and from a pre-trained one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.projector_start import Held, Point, interval, judge, main, read_held, steps_of, summarise
from sonify.errors import InputError
from tests.feature_runs import MadeSample, make_feature_run
from tests.train.runs import WIDTH, training_config, training_input, write_config
from train.checkpoints import load_averaged
from train.loader import generator
from train.metrics import read_metrics
from train.model import init_transformer
from train.pixart import train
from train.shards import open_feature_data

LABELS = ("dog", "rain", "bell")


def telling(count: int, split: str = "train") -> list[MadeSample]:
    """Images that look as they sound."""
    looks = {label: generator("look", label).standard_normal((4, 8, 8)) for label in LABELS}
    sounds = {label: generator("sound", label).standard_normal((5, WIDTH)) for label in LABELS}
    labels = [LABELS[n % len(LABELS)] for n in range(count)]
    return [
        MadeSample(
            key=f"{split}-{n:03d}",
            latent_CHW=looks[label],
            audio_TD={"captions": sounds[label]},
            split=split,
            label=label,
            recordings=(f"{split}-{label}-{n}",),
        )
        for n, label in enumerate(labels)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("starts")
    training_input(folder, [*telling(12), *telling(6, "validation")])
    other, _ = init_transformer(training_config(folder).model, seed=77)
    tensors = {name: t.clone() for name, t in other.state_dict().items() if name.startswith("caption_projection.")}
    save_file(tensors, folder / "projector.safetensors")
    (folder / "recordings.txt").write_text("only/heard-before\n")
    return folder


def words(root: Path, out: str, *more: str, **sections: Any) -> list[str]:
    config = write_config(root, f"config-{out}", max_steps=4, **sections)
    said = ["--config", config, "--projector", root / "projector.safetensors", "--out", root / out]
    return [*map(str, said), "--seeds", "2", "--points", "2", *more]


@pytest.fixture(scope="module")
def done(root: Path) -> Path:
    assert main(words(root, "done")) == 0
    return root / "done"


def test_both_starts_are_trained_and_judged(root: Path, done: Path) -> None:
    result = json.loads((done / "projector_start.json").read_text())
    assert set(result["items"]) == {"random", "pre-trained"}
    for runs in result["items"].values():
        assert list(runs) == ["0", "1"]
        for points in runs.values():
            assert [point["step"] for point in points] == [2, 4]
            assert all(0 <= point["accuracy"] <= 1 and point["held_loss"] > 0 for point in points)
    assert (done / "projector_start.png").stat().st_size > 10_000
    assert set(result["summary"]["says"]) == {"held_loss", "accuracy"}
    first = {start: runs["0"][0]["held_loss"] for start, runs in result["items"].items()}
    assert first["random"] != first["pre-trained"]


def test_a_run_is_what_the_trainer_does_by_itself(root: Path, done: Path) -> None:
    alone = training_config(root, "alone", max_steps=4, samples={"sounds": 0}, seed=1)
    train(alone)
    studied = read_metrics(done / "runs" / "random-1")
    assert [line["loss"] for line in studied] == [line["loss"] for line in read_metrics(alone.run_dir)]
    points = json.loads((done / "runs" / "random-1.json").read_text())["points"]
    assert points[1]["train_loss"] == pytest.approx(np.mean([line["mse"] for line in studied[2:]]))


def test_what_a_projector_was_learned_from_is_named_by_what_begins_with_it(done: Path) -> None:
    for start, names in (("random", 0), ("pre-trained", 1)):
        run = done / "runs" / f"{start}-0"
        for place in (run / "checkpoints" / "step-00000004", run / "pipeline"):
            assert (place / "recordings.txt").read_text().split().count("only/heard-before") == names


def test_every_step_counts_however_seldom_training_logs(root: Path, done: Path) -> None:
    assert main(words(root, "seldom", log_every=100)) == 0
    assert (root / "seldom" / "projector_start.json").read_bytes() == (done / "projector_start.json").read_bytes()


def test_the_starts_differ_in_nothing_but_the_projector(root: Path, done: Path) -> None:
    lines = {start: read_metrics(done / "runs" / f"{start}-0") for start in ("random", "pre-trained")}
    # before the first step no block adds the condition and the model predicts zero: the same images, the same noise
    assert lines["random"][0]["loss"] == lines["pre-trained"][0]["loss"]
    weights = {start: load_averaged(done / "runs" / f"{start}-0", 4).weights for start in lines}
    differing = {name for name, one in weights["random"].items() if (one - weights["pre-trained"][name]).std() > 0.01}
    assert differing == {f"caption_projection.linear_{n}.weight" for n in (1, 2)}


def test_what_is_done_is_not_done_again(root: Path, done: Path, monkeypatch) -> None:
    again = shutil.copytree(done, root / "again")
    before = (again / "projector_start.json").read_bytes()
    monkeypatch.setattr("eval.projector_start.train", None)
    (again / "projector_start.json").unlink()
    assert main(words(root, "again")) == 0
    assert (again / "projector_start.json").read_bytes() == before
    (again / "runs" / "random-1.json").unlink()
    with pytest.raises(TypeError):
        main(words(root, "again"))


def test_it_goes_on_from_what_is_done(root: Path, done: Path) -> None:
    shutil.copytree(done, root / "cut")
    before = (root / "cut" / "projector_start.json").read_bytes()
    for name in ("runs/pre-trained-1.json", "projector_start.json"):
        (root / "cut" / name).unlink(missing_ok=True)
    shutil.rmtree(root / "cut" / "runs" / "pre-trained-1")
    assert main(words(root, "cut")) == 0
    assert (root / "cut" / "projector_start.json").read_bytes() == before


def test_other_settings_or_another_projector_need_another_folder(root: Path, done: Path, capsys) -> None:
    assert main(words(root, "done", optimizer={"learning_rate": 2e-3})) == 2
    assert "another projector; choose another folder" in capsys.readouterr().err
    tensors = load_file(root / "projector.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, root / "second.safetensors")
    changed = [word.replace("/projector.safetensors", "/second.safetensors") for word in words(root, "done")]
    assert main(changed) == 2


def test_a_model_that_listens_is_told_from_one_that_does_not(root: Path) -> None:
    config = training_config(
        root, "listening", max_steps=300, checkpoints={"every": 300}, log_every=50, samples={"sounds": 0},
        optimizer={"learning_rate": 1e-2, "warmup_steps": 5, "ema_decay": 0.9}, condition_dropout=0.0,
    )  # fmt: skip
    train(config)
    held = read_held(open_feature_data(config.data.model_copy(update={"split": "validation"})), 6, 1.0, seed=0)
    model, _ = init_transformer(config.model, seed=0)
    cpu = torch.device("cpu")
    loss_before, before = judge(model.eval(), held, 0, 4, cpu)
    assert before == 0.5, "a model that predicts zero ties"
    assert loss_before == pytest.approx(1, abs=0.1)
    model.load_state_dict(load_averaged(config.run_dir, None).weights)
    loss, accuracy = judge(model.eval(), held, 0, 4, cpu)
    assert accuracy == 1
    assert loss < 0.7
    assert judge(model, held, 0, 6, cpu) == pytest.approx((loss, 1), rel=1e-4), "however many at once"
    swapped = Held(keys=held.keys, latents_NCHW=held.latents_NCHW, audio_NTD=held.other_NTD, other_NTD=held.audio_NTD)
    assert judge(model, swapped, 0, 4, cpu)[1] == 0


def test_the_other_audio_shares_no_concept(root: Path) -> None:
    data = open_feature_data(training_config(root).data.model_copy(update={"split": "validation"}))
    held = read_held(data, 6, 0.5, seed=0)
    assert held.keys == tuple(f"validation-{n:03d}" for n in range(6))
    sounds = {label: torch.from_numpy(generator("sound", label).standard_normal((5, WIDTH))) for label in LABELS}
    for n in range(6):
        assert torch.allclose(held.audio_NTD[n].double(), sounds[LABELS[n % 3]], atol=0.01)
        others = [torch.allclose(held.other_NTD[n].double(), sounds[label], atol=0.01) for label in LABELS]
        assert sum(others) == 1
        assert not others[n % 3]
    look = torch.from_numpy(generator("look", "dog").standard_normal((4, 8, 8)))
    assert torch.allclose(held.latents_NCHW[0].double(), look / 2, atol=0.01), "scaled"


def test_held_out_scenes_of_one_concept_are_one_line(root: Path, tmp_path: Path) -> None:
    make_feature_run(tmp_path / "data", audio_shape=(5, WIDTH))
    config = training_config(root, data={"runs": [str(tmp_path / "data")]})
    with pytest.raises(InputError, match="each shares a concept with every other"):
        read_held(open_feature_data(config.data), 8, 1.0, 0)


@pytest.mark.parametrize(
    ("max_steps", "points", "steps"), [(4, 2, [2, 4]), (5, 2, [3, 5]), (3, 9, [1, 2, 3]), (7, 1, [7])]
)
def test_the_last_step_is_always_judged(max_steps: int, points: int, steps: list[int]) -> None:
    assert steps_of(max_steps, points) == steps


def test_intervals_are_students() -> None:
    found = interval(np.array([1.0, 2.0, 3.0]))
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_differences_are_paired_by_seed() -> None:
    def runs(*values: float) -> list[list[Point]]:
        return [[Point(step=5, train_loss=1, held_loss=value, accuracy=value)] for value in values]

    found = summarise({"random": runs(0.1, 0.5, 0.9), "pre-trained": runs(0.2, 0.6, 1.0)})
    assert (found["difference"]["held_loss"][5].low, found["difference"]["held_loss"][5].high) == pytest.approx(
        (0.1, 0.1)
    )
    assert found["says"] == {
        "held_loss": "the pre-trained start is worse",
        "accuracy": "the pre-trained start is better",
    }
    same = summarise({"random": runs(0.1, 0.5, 0.9), "pre-trained": runs(0.5, 0.1, 0.9)})
    assert set(same["says"].values()) == {"no difference is shown"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "1"], "--seeds: expected at least 2, found 1"),
        (["--points", "0"], "--points: expected at least 1"),
        (["--projector", "nothing.safetensors"], "nothing.safetensors: cannot be read as safetensors"),
        (["model.caption_channels=33"], "caption_projection.linear_1.weight has the shape"),
    ],
)
def test_what_is_wrong_is_one_line(root: Path, capsys, more: list[str], message: str) -> None:
    assert main([*words(root, "wrong"), *more]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert message in said[0]


def test_nothing_held_out_is_one_line(root: Path, tmp_path: Path, capsys) -> None:
    training_input(tmp_path, telling(12))
    shutil.copy(root / "projector.safetensors", tmp_path)
    assert main(words(tmp_path, "out")) == 2
    assert "no samples of split 'validation'" in capsys.readouterr().err
    assert main(words(tmp_path, "out", "--split", "train", "max_steps=1", "--points", "1")) == 0
