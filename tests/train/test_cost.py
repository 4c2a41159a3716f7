"""What a training takes, before it starts: the plan, its operations, and what they come to."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from sonify.config.loader import make_settings
from sonify.io.machine import usable_cpus
from sonify.report.cost import Prices
from tests.builders import hash_run
from tests.train.runs import training_config, training_input, write_config
from train.config import TrainConfig
from train.cost import cost_measured, cost_reckoned, measured_speed, plan_training, tell_flops, tell_plan
from train.metrics import METRICS, forward_flops
from train.pixart import main, train

CONFIGS = Path(__file__).parents[2] / "configs/train"
A100 = Prices(gpu_hour=2.0, gpu_watts=400, currency="USD", device_tflops=312, mfu=0.45)


@pytest.fixture
def root(tmp_path):
    training_input(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def shipped(name, **keys):
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return make_settings({**raw, **keys}, TrainConfig, check_paths=False)


def write_speeds(config, *speeds):
    config.run_dir.mkdir(exist_ok=True)
    lines = [{"step": n, "loss": 1.0, "images_per_sec": speed} for n, speed in enumerate(speeds, start=1)]
    (config.run_dir / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_the_papers_training_is_twelve_days_on_eight_a100():
    plan = plan_training(shipped("pixart_xl_512"))
    assert (plan.steps, plan.images_in_step, plan.devices, plan.condition_vectors) == (500_000, 640, 8, 50)
    assert plan.vectors_from.startswith("assumed, as of five seconds of AST features: ")
    assert "runs/sam: not a run: expected run.json in it" in plan.vectors_from
    total = plan.image_flops * plan.images_in_step * plan.steps
    assert total == 3 * forward_flops(shipped("pixart_xl_512").model, 50) * 320_000_000
    assert total == pytest.approx(1.166e21, rel=1e-3)
    found = cost_reckoned(plan, plan.steps, 312e12 * 0.45, A100)
    assert found.days == pytest.approx(1.166e21 / (8 * 312e12 * 0.45) / 86400, rel=1e-3) == pytest.approx(12.0, abs=0.1)
    assert found.cost.gpu_hours == pytest.approx(12.016 * 24 * 8, rel=1e-3)
    assert found.cost.money == pytest.approx(found.cost.gpu_hours * 2)
    assert found.cost.kwh == pytest.approx(found.cost.gpu_hours * 0.4)
    assert found.cost.cpu_hours == 0


def test_recomputed_activations_are_a_third_more():
    usual, recomputed = (
        plan_training(shipped("pixart_xl_512", recompute=again, activation_memory_budget=None))
        for again in (False, True)
    )
    assert recomputed.image_flops * 3 == usual.image_flops * 4


@pytest.mark.parametrize(("name", "unit"), [("pixart_xl_512", "days"), ("pixart_b_256", "hours")])
def test_a_configurations_header_says_what_is_reckoned(name, unit):
    header = " ".join(line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#"))
    plan = plan_training(shipped(name))
    for device_flops in (312e12 * 0.45, 989e12 * 0.4):
        days = cost_reckoned(plan, plan.steps, device_flops, A100).days
        assert days is not None
        assert f" {days * (1 if unit == 'days' else 24):.1f} {unit} on " in header
    operations = plan.image_flops * plan.images_in_step * plan.steps
    assert f"{operations:.1e} operations".replace("e+", "e") in header


def test_nothing_is_known_of_hours_without_a_speed():
    lines = list(tell_plan(shipped("pixart_xl_512"), Prices(device_tflops=312)))  # without mfu
    assert lines[-4] == (
        "hours: not known before the run has metrics of two steps; or say --prices device_tflops=...,mfu=..."
    )
    assert lines[-3:-1] == ["money: not known: say --prices gpu_hour=...", "kWh: not known: say --prices gpu_watts=..."]
    assert lines[2].startswith(
        "operations: 1.215 TFLOP forward for an image, 3 times that in a step; 1,166 EFLOP in all"
    )


def test_days_want_a_number_of_devices_and_hours_do_not():
    plan = plan_training(shipped("pixart_xl_512", devices=None))
    assert plan.devices is None
    found = cost_reckoned(plan, plan.steps, 312e12 * 0.45, A100)
    assert found.days is None
    assert found.cost.gpu_hours == pytest.approx(2307, abs=2)
    assert any("on GPUs whose number is not known (devices=N says it)" in line
               for line in tell_plan(shipped("pixart_xl_512", devices=None), A100))  # fmt: skip


def test_the_runs_own_speed_is_the_median_without_the_line_that_compiles(root):
    config = training_config(root)
    assert measured_speed(config) is None
    write_speeds(config, 1.0)
    assert measured_speed(config) is None
    write_speeds(config, 0.1, 40.0, 2.0, 50.0)
    assert measured_speed(config) == 40.0
    write_speeds(config, 0.1, float("nan"), -3.0, "fast", 0.0, 30.0, float("inf"))
    assert measured_speed(config) == 30.0
    write_speeds(config, *[9.0] * 50, *[20.0] * 100)
    assert measured_speed(config) == 20.0


@pytest.mark.parametrize("devices", [None, 4])
def test_hours_at_a_measured_speed_are_those_of_what_was_used(root, devices):
    plan = replace(plan_training(training_config(root)), devices=devices, steps=9000, images_in_step=100)
    found = cost_measured(plan, 9000, 50.0, Prices(gpu_hour=2.0, cpu_hour=0.1))
    assert found.days == pytest.approx(5 / 24)  # 900,000 images at 50 a second
    if devices:
        assert (found.cost.gpu_hours, found.cost.cpu_hours) == pytest.approx((20, 0))
        assert found.cost.money == pytest.approx(40)
    else:
        assert (found.cost.gpu_hours, found.cost.cpu_hours) == pytest.approx((0, 5 * usable_cpus()))


@pytest.mark.parametrize(
    ("number", "said"),
    [(1.166e21, "1,166 EFLOP"), (4.24e18, "4.24 EFLOP"), (1.215e12, "1.215 TFLOP"), (4.7e7, "47 MFLOP")],
)
def test_operations_are_told_with_a_prefix(number, said):
    assert tell_flops(number) == said


def test_a_dry_run_prints_config_and_plan_loads_nothing_and_writes_nothing(root, capsys):
    for network in ("vae", "ast"):
        shutil.rmtree(root / network)
    file = write_config(root, optimizer={"warmup_steps": 1})
    before = hash_run(root / "data")
    assert main(["--config", str(file), "model.layers=3", "--dry-run", "seed=5"]) == 0
    out = capsys.readouterr().out
    resolved = yaml.safe_load(out)
    assert (resolved["model"]["layers"], resolved["seed"], resolved["optimizer"]["warmup_steps"]) == (3, 5, 1)
    assert "# steps: 6, 0 done, 6 to do; 48 images in all" in out
    assert f"# condition: 5 vectors, as in {root / 'data'}" in out
    assert "# memory: 4 images at once take a GPU some 3.0 GB (" in out
    assert not (root / "run").exists()
    assert hash_run(root / "data") == before


def test_a_dry_run_counts_the_steps_that_a_run_has_done_and_takes_its_speed(root, capsys):
    train(training_config(root, max_steps=4))
    file = write_config(root)
    assert main(["--config", str(file), "--dry-run", "--prices", "cpu_hour=0.04,cpu_watts=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "# steps: 6, 4 done, 2 to do; 48 images in all" in lines
    speed = next(n for n, line in enumerate(lines) if line.startswith("# at this run's own speed, "))
    assert f"images/s on {usable_cpus()} CPUs (saving and samples not in it):" in lines[speed]
    assert [line.split(":")[0] for line in lines[speed + 1 : speed + 3]] == ["#   in all", "#   to do"]
    assert all("CPU h" in line and "kWh" in line and "money" in line for line in lines[speed + 1 : speed + 3])
    assert not any("not known" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prices", "gpu_hour=2"], "--prices: goes with --dry-run"),
        (["--dry-run", "--prices", "mfu=nan"], "--prices: mfu: input should be"),
        (["--dry-run", "--prices", "gpu=2"], "--prices: gpu: no such key"),
        (["--dry-run", "max_step=2"], "max_step: no such key; did you mean max_steps?"),
    ],
)
def test_what_is_wrong_is_one_line_and_2(root, capsys, words, message):
    assert main(["--config", str(write_config(root)), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_data_of_which_nothing_is_there_yet_are_no_error(root, capsys):
    shutil.rmtree(root / "data")
    assert main(["--config", str(write_config(root)), "--dry-run"]) == 0
    assert "# condition: 50 vectors, assumed, as of five seconds of AST features: " in capsys.readouterr().out
