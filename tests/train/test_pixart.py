import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sonify.errors import InputError, WorkError
from sonify.running import open_run
from tests.feature_runs import MadeSample, make_feature_run
from tests.train.runs import WIDTH, training_config, training_input, write_config
from train.checkpoints import load_averaged
from train.config import Optimizer
from train.loop import learning_rate_at, start_learner
from train.metrics import read_metrics
from train.pixart import main, train

LOSSES = ("loss", "mse", "vb", "gradient_norm")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory, one_thread) -> Path:
    folder = tmp_path_factory.mktemp("training")
    training_input(folder)
    return folder


@pytest.fixture(scope="module")
def straight(root) -> Path:
    """A run of six steps that was never stopped."""
    config = training_config(root, "straight")
    train(config)
    return config.run_dir


def losses(run_dir: Path) -> list[tuple[float, ...]]:
    return [tuple(line[name] for name in LOSSES) for line in read_metrics(run_dir)]


def last_weights(run_dir: Path) -> dict[str, str]:
    folder = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "train.pixart", "--config", str(config)]


def test_a_run_leaves_metrics_checkpoints_and_a_pipeline(straight):
    lines = read_metrics(straight)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["images_per_sec"] > 0 and 0 < line["mfu"] < 1 and 0 <= line["data_wait"] < 1 for line in lines)
    assert [line["learning_rate"] for line in lines[:3]] == pytest.approx([1e-3 * 32**-0.5 / 2, *2 * [1e-3 * 32**-0.5]])
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    recordings = straight / "checkpoints" / "step-00000006" / "recordings.txt"
    assert recordings.read_text() == (straight / "pipeline" / "recordings.txt").read_text() != ""
    assert list(straight.glob("**/events.out.tfevents*"))
    assert [path.name for path in (straight / "samples").iterdir()] == ["step-00000005.png"]
    assert (straight / "pipeline" / "model_index.json").exists()


def test_a_resumed_run_has_the_losses_and_weights_of_one_never_stopped(root, straight):
    for steps in (1, 4, 6):  # a checkpoint at the end of each, at 1 between two that are due
        train(training_config(root, "resumed", max_steps=steps))
    resumed = training_config(root, "resumed").run_dir
    assert losses(resumed) == losses(straight)
    assert last_weights(resumed) == last_weights(straight)


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_been(root, straight, after):
    config = write_config(root, f"killed-{after}", optimizer={"learning_rate": 1e-3})
    run_dir = root / f"killed-{after}"
    process = subprocess.Popen(command(config), stderr=subprocess.DEVNULL)
    while len(read_metrics(run_dir)) < after:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert len(read_metrics(run_dir)) < 6
    assert main(["--config", str(config)]) == 0
    assert losses(run_dir) == losses(straight)
    assert last_weights(run_dir) == last_weights(straight)


def test_recomputed_activations_give_the_same_losses(root, straight):
    config = training_config(root, "recomputed", recompute=True, max_steps=2)
    train(config)
    np.testing.assert_allclose(losses(config.run_dir), losses(straight)[:2], rtol=1e-5)


def test_sigterm_saves_and_exits(root, straight):
    config = write_config(root, "terminated", checkpoints={"every": 1000})
    run_dir = root / "terminated"
    process = subprocess.Popen(command(config), stderr=subprocess.PIPE, text=True)
    while not read_metrics(run_dir):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "is saved; the same command goes on from there" in said
    assert "Traceback" not in said
    assert main(["--config", str(config)]) == 0
    assert losses(run_dir) == losses(straight)


TWO_PROCESSES = {
    "plain": [
        sys.executable,
        "-c",
        "import sys; from train.launch import launch_processes;"
        " sys.exit(launch_processes(2, 'train.pixart', sys.argv[1:], 'sonify train'))",
    ],
    "torchrun": [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "train.pixart",
    ],
    "accelerate": [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes=2",
        "-m",
        "train.pixart",
    ],
}


def in_two_processes(how: str, config: Path, **options: Any) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*TWO_PROCESSES[how], "--config", str(config)]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("how", TWO_PROCESSES)
def test_two_processes_have_the_losses_of_one_with_the_same_total_batch(root, straight, how):
    process = in_two_processes(how, write_config(root, f"two-{how}", batch={"per_device": 2}))
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    np.testing.assert_allclose(losses(root / f"two-{how}"), losses(straight), rtol=1e-4)


def test_two_processes_that_are_asked_to_end_save_and_say_so_once(root, straight):
    config = write_config(root, "two-ended", batch={"per_device": 2}, max_steps=2000, checkpoints={"every": 5000})
    process = in_two_processes("plain", config)
    while not read_metrics(root / "two-ended"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130
    assert said.count("the same command goes on from there") == 1
    assert "Traceback" not in said
    assert list((root / "two-ended" / "checkpoints").iterdir())


def test_what_one_of_two_processes_finds_damaged_ends_both_with_its_one_line(root, tmp_path):
    data = training_input(tmp_path)
    (archive, *_) = sorted(data.glob("features/train/*.tar"))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    process = in_two_processes("plain", write_config(tmp_path, "run", batch={"per_device": 2}))
    _, said = process.communicate(timeout=240)
    assert process.returncode == 3
    assert said.count("its bytes are not those that were committed") == 1
    assert "Traceback" not in said


def test_a_killed_loader_process_is_one_line(root):
    config = write_config(root, "loaders", max_steps=2000, data={"workers": 1}, checkpoints={"every": 2})
    process = subprocess.Popen(command(config), stderr=subprocess.PIPE, text=True)
    while len(read_metrics(root / "loaders")) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    loaders = [pid for pid in children if "train.pixart" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(loaders[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 3, said
    assert "a loader process was lost" in said
    assert "Traceback" not in said


def test_sigterm_while_starting_says_no_traceback(root):
    process = subprocess.Popen(command(write_config(root, "early")), stderr=subprocess.PIPE, text=True)
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode in (130, -signal.SIGTERM)  # the handler comes with the last import
    assert "Traceback" not in said


def test_a_folder_that_is_something_else_is_not_trained_into(root, straight):
    for folder in (root / "data", root / "data" / "shards", straight / "pipeline"):
        with pytest.raises(InputError, match="choose another folder"):
            train(training_config(root, run_dir=str(folder)))
    (root / "occupied" / "pipeline").mkdir(parents=True)
    with pytest.raises(InputError, match="is in the way"):
        train(training_config(root, "occupied"))


def test_a_run_that_is_past_its_last_step_says_so(root, straight):
    with pytest.raises(InputError, match=r"max_steps: 4, and .* has a checkpoint of step 6"):
        train(training_config(root, "straight", max_steps=4))


def test_mixed_precision_trains_and_keeps_float32_weights(root, straight):
    config = training_config(root, "bf16", precision="bf16")
    train(config)
    mixed, full = ([loss for loss, *_ in losses(run_dir)] for run_dir in (config.run_dir, straight))
    assert mixed != full
    np.testing.assert_allclose(mixed, full, rtol=0.02)
    weights = load_averaged(config.run_dir, None).weights
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(root, straight):
    config = training_config(root, "compiled", compile=True)
    train(config)
    np.testing.assert_allclose(losses(config.run_dir), losses(straight), rtol=1e-4)


def test_a_run_dir_in_which_another_training_works_is_refused(root, straight):
    with open_run(straight), pytest.raises(InputError, match="another command is at work"):
        train(training_config(root, "straight"))


def overfitted_loss(folder: Path, heard: bool) -> float:
    """Return the last losses' mean of a run on one batch: eight images, each with a sound of its own or with silence.

    The images are so small that noise hides which of them it is: only the sound tells.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((8, 4, 2, 2)) / 0.18215  # of unit size once they are scaled
    sounds = rng.standard_normal((8, 5, WIDTH)) * heard
    # four visits of each image make a step's losses less noisy
    samples = [MadeSample(key=f"k{n}", latent_CHW=latents[n % 8], audio_TD={"a": sounds[n % 8]}) for n in range(32)]
    training_input(folder, samples)
    config = training_config(
        folder,
        max_steps=600,
        batch={"total": 32, "per_device": 32},
        model={"sample_size": 2, "head_dim": 32},
        optimizer={"learning_rate": 3e-3, "reference_batch": 32},
        condition_dropout=0.0,
        checkpoints={"every": 1000},
        samples={"every": 1000},
        log_every=10,  # a line is the mean of its steps
    )
    train(config)
    return float(np.mean([line["mse"] for line in read_metrics(config.run_dir)[-10:]]))


def test_one_batch_overfits_and_stays_worse_without_sound(root):
    heard = overfitted_loss(root / "heard", heard=True)
    silent = overfitted_loss(root / "silent", heard=False)
    assert heard < 0.07  # 0.058 was measured
    assert silent > 1.3 * heard  # 0.085


def test_a_loss_that_is_not_finite_stops_before_damage_and_names_step_and_keys(root):
    config = training_config(root, "exploding", optimizer={"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": 1e30})
    with pytest.raises(WorkError, match=r"step \d: the (loss|gradient) is not finite; images: train-0-0"):
        train(config)
    folders = sorted((config.run_dir / "checkpoints").glob("step-*"))
    assert len(folders) <= 2


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"batch": {"total": 64, "per_device": 8}}, "12"),
        ({"batch": {"per_device": 3}}, "per_device"),
        ({"devices": 8}, "asks for 8 GPU(s), and torch finds"),
        ({"model": {"caption_channels": 48}}, "caption_channels"),
        ({"model": {"sample_size": 16}}, "sample_size"),
        ({"data": {"split": "validation"}, "batch": {"total": 4}}, "2"),
        ({"vae": "/no/such/vae"}, "/no/such/vae"),
        ({"run_dir": "/dev/null"}, "run_dir: /dev/null cannot be written"),
        ({"run_dir": "."}, "run_dir: is the current folder"),
        ({"trackers": ["mlflow"]}, "trackers: mlflow is not installed here"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(root, capfd, sections, message):
    assert main(["--config", str(write_config(root, "wrong", **sections))]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("train.pixart: ")
    assert message in said


def test_features_of_another_vae_are_refused(root, tmp_path):
    training_input(tmp_path)
    make_feature_run(
        tmp_path / "data", audio_shape=(5, WIDTH), features={"vae": "other"}, models={"other": "elsewhere"}
    )
    with pytest.raises(InputError, match="vae"):
        train(training_config(tmp_path))


def test_a_checkpoint_of_another_model_is_refused(root, straight):
    with pytest.raises(InputError, match=r"model\.layers was 2 .* is 3 now"):
        train(training_config(root, "straight", model={"layers": 3}))


def test_the_papers_rate_follows_from_the_square_root_rule() -> None:
    assert learning_rate_at(1000, Optimizer(), total_batch=640) == pytest.approx(3.162e-5, rel=1e-4)
    assert learning_rate_at(1000, Optimizer(), total_batch=256) == 2.0e-5


def test_the_rate_rises_linearly_and_stays() -> None:
    config = Optimizer(learning_rate=1.0, reference_batch=1, warmup_steps=4)
    assert [learning_rate_at(step, config, 1) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_without_warmup_the_first_step_has_the_whole_rate() -> None:
    assert learning_rate_at(1, Optimizer(learning_rate=0.5, reference_batch=4, warmup_steps=0), 4) == 0.5


def test_every_parameter_decays_and_moves_by_the_rate() -> None:
    model = nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = Optimizer(learning_rate=0.01, weight_decay=0.5)
    optimizer = start_learner(model, config).optimizer
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        # Adam's first step is the gradient's sign (here 1 everywhere) times the rate
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.01 * 0.5) - 0.01)


def test_the_settings_are_the_configurations() -> None:
    (group,) = start_learner(nn.Linear(1, 1), Optimizer(betas=(0.8, 0.95), eps=1e-7)).optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-7, 3.0e-2)
