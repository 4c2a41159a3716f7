import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonify.config.loader import load_settings
from sonify.config.shipped import find_config
from sonify.doctor import machine
from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.gpus import how_to_mend, look_for_gpus
from tests.feature_runs import make_feature_run
from tests.servers import MODEL, away_from_hub, running_hub
from tests.train.runs import WIDTH, training_config, training_input
from train import doctor
from train.config import TrainConfig
from train.doctor import examine_training, judge_estimate, judge_loader, judge_peak, judge_step
from train.memory import GB, estimate_memory, with_batch
from train.model import init_transformer
from train.trial import Step

LOOKED_AT = ["run_dir", "devices", "batch", "vae", "ast", "networks", "data", "features", "samples", "memory", "disk"]
LOOKED_AT += ["/dev/shm", "loader", "a step"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    training_input(folder)
    return folder


@pytest.fixture(autouse=True)
def _quickly(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "LOADER_SECONDS", 0.2)
    away_from_hub(monkeypatch, tmp_path / "cache")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def examined(config: TrainConfig) -> dict[str, Finding]:
    return {finding.about: finding for finding in examine_training(config)}


def told(findings: Iterable[Finding], outcome: Outcome) -> dict[str, str]:
    return {finding.about: finding.found for finding in findings if finding.outcome is outcome}


def test_what_trains_is_found_whole_in_order_and_leaves_nothing(root):
    config = training_config(root, data={"workers": 1}, max_steps=10_000)
    findings = examined(config)
    assert list(findings) == LOOKED_AT
    assert told(findings.values(), Outcome.FAULT) == told(findings.values(), Outcome.NOT_TRIED) == {}
    assert findings["loader"].facts["images_per_sec"] > 10
    assert findings["batch"].found == "8 images a step: 4 at once x 2 times"
    step = findings["a step"]
    assert step.facts["images"] == 4
    assert 0.5 < step.facts["losses"][0] < 2
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    ("sections", "about", "says", "not_tried"),
    [
        ({"devices": 8, "batch": {"per_device": 1}}, "devices", "asks for 8 GPU(s)", {"a step"}),
        ({"batch": {"per_device": 3}}, "batch", "does not divide", {"a step"}),
        ({"batch": {"total": 64, "per_device": 8}}, "loader", "fewer than the 64", {"a step"}),
        ({"model": {"sample_size": 16}}, "features", "sample_size", {"loader", "a step"}),
        ({"data": {"split": "validation"}}, "loader", "fewer than", {"a step"}),
        ({"run_dir": "."}, "run_dir", "is the current folder", set()),
        ({"trackers": ["mlflow"]}, "a step", "trackers: mlflow is not installed here", set()),
        ({"vae": "no such thing"}, "vae", "not a hub id", {"networks", "features", "loader", "a step"}),
        ({"model": {"layers": 10**6}}, "disk", "GB free, ", {"a step"}),
        ({"data": {"workers": 64}, "batch": {"total": 10**8, "per_device": 10**8}}, "/dev/shm", "MB are", {"a step"}),
    ],
)
def test_what_does_not_fit_is_a_fault_and_what_depends_on_it_is_not_tried(root, sections, about, says, not_tried):
    findings = examined(training_config(root, **sections))
    assert says in told(findings.values(), Outcome.FAULT)[about]
    assert told(findings.values(), Outcome.NOT_TRIED).keys() == not_tried
    assert not findings[about].found.startswith(f"{about}: ")


def test_what_loaders_hold_and_what_is_written_are_counted_in_full(root):
    """Against the configuration by hand: no data of theirs is read to say so."""
    config = training_config(root, data={"workers": 3, "runs": ["."]}, checkpoints={"keep": 4}, batch={"per_device": 4})
    one = examined(config)
    (two,) = [row for row in examine_training(config.model_copy(update={"devices": 2})) if row.about == "/dev/shm"]
    sample = 4 * (2 * 4 * 8 * 8 + 49 * WIDTH)
    assert one["/dev/shm"].facts["needed_bytes"] == 3 * 2 * 4 * sample
    assert two.facts["needed_bytes"] == 2 * one["/dev/shm"].facts["needed_bytes"]
    disk = one["disk"].facts
    assert disk["needed_bytes"] == 5 * disk["checkpoint_bytes"] + disk["release_bytes"]


def test_a_disk_that_is_nearly_full_is_told_though_the_training_fits(root, monkeypatch):
    config = training_config(root)
    monkeypatch.setattr(machine, "SPARE_BYTES", 1 << 62)
    disk = examined(config)["disk"]
    assert disk.outcome is Outcome.NOTE
    assert "to spare" in disk.todo
    assert disk.todo.endswith("; or set checkpoints.keep lower")


def test_what_others_say_is_one_line_that_no_terminal_obeys(root, tmp_path):
    run = tmp_path / "a\x1b[31m\nrun"
    run.mkdir()
    data = examined(training_config(root, data={"runs": [str(run)]}))["data"]
    assert data.outcome is Outcome.FAULT
    assert data.found.isprintable()
    assert "/a run: not a run" in data.found


def test_without_data_all_else_is_looked_at(root, tmp_path):
    config = training_config(root, data={"runs": [str(tmp_path)]})
    findings = examined(config)
    assert told(findings.values(), Outcome.FAULT).keys() == {"data"}
    assert told(findings.values(), Outcome.NOT_TRIED).keys() == {"loader", "a step"}
    assert findings["memory"].facts["condition_tokens"] == 49


def test_features_of_another_vae_are_a_fault(tmp_path):
    training_input(tmp_path)
    others = {"vae": "other", "ast": str(tmp_path / "ast")}
    make_feature_run(tmp_path / "data", audio_shape=(5, WIDTH), features=others, models={"other": "elsewhere"})
    findings = examined(training_config(tmp_path))
    assert "were made by vae other (elsewhere)" in told(findings.values(), Outcome.FAULT)["features"]


def test_a_damaged_sample_is_a_fault_of_the_loader(tmp_path):
    data = training_input(tmp_path)
    for archive in data.glob("features/train/*.tar"):
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 1
        archive.write_bytes(content)
    findings = examined(training_config(tmp_path, max_steps=10_000))
    assert "its bytes are not those that were committed" in told(findings.values(), Outcome.FAULT)["loader"]
    assert told(findings.values(), Outcome.NOT_TRIED).keys() == {"a step"}


def test_networks_that_are_not_here_are_told_and_fetched_only_when_asked(root, tmp_path, monkeypatch):
    config = training_config(root, vae=MODEL)
    with running_hub(monkeypatch, tmp_path / "cache", root / "vae") as hub:
        findings = examined(config)
        assert not any("/resolve/" in path for path in hub.asked)
        fetched = {finding.about: finding for finding in examine_training(config, fetch=True)}
    assert told(findings.values(), Outcome.FAULT) == {}
    assert f"{MODEL} is not here" in told(findings.values(), Outcome.NOTE)["vae"]
    assert told(findings.values(), Outcome.NOT_TRIED).keys() == {"networks", "features", "loader", "a step"}
    assert findings["data"].outcome is Outcome.OK
    # its commit is another identity than the folder's that the features were made with
    assert fetched["networks"].outcome is Outcome.OK
    assert told(fetched.values(), Outcome.FAULT).keys() == {"features"}


def test_networks_that_are_neither_here_nor_to_be_had_are_a_fault(root):
    findings = examined(training_config(root, vae=MODEL))
    assert "the hub was not reached" in told(findings.values(), Outcome.FAULT)["vae"]
    assert told(findings.values(), Outcome.NOT_TRIED).keys() == {"networks", "features", "loader", "a step"}


def test_a_step_has_random_weights_where_the_checkpoint_is_not_here(root):
    findings = examined(training_config(root, model={"init": {"kind": "checkpoint", "revision": "50f7"}}))
    assert "PixArt-alpha/PixArt-XL-2-512x512@50f7 is not here" in told(findings.values(), Outcome.FAULT)["model"]
    assert "`hf download PixArt-alpha/PixArt-XL-2-512x512 --revision 50f7" in findings["model"].todo
    assert "4 images of random weights on cpu" in findings["a step"].found


def test_a_gpu_that_was_reserved_and_is_not_found_is_a_fault_and_no_cpu_stands_in_for_it(root, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    findings = examined(training_config(root))
    assert "reserved by CUDA_VISIBLE_DEVICES=0, and torch" in told(findings.values(), Outcome.FAULT)["devices"]
    assert findings["devices"].todo == how_to_mend(look_for_gpus(with_torch=True))
    assert told(findings.values(), Outcome.NOT_TRIED).keys() == {"a step"}


def test_a_step_has_the_checkpoints_weights_where_it_is_here(root, tmp_path):
    sizes = training_config(root).model
    model, _ = init_transformer(sizes, seed=1)
    model.save_pretrained(tmp_path / "text" / "transformer")
    init = {"kind": "checkpoint", "model": str(tmp_path / "text")}
    findings = examined(training_config(root, model={"init": init}))
    assert findings["model"].outcome is findings["a step"].outcome is Outcome.OK
    assert "random" not in findings["a step"].found
    other = examined(training_config(root, model={"init": init, "layers": 3}))
    assert "num_layers is 2" in told(other.values(), Outcome.FAULT)["a step"]


def test_a_run_that_is_begun_is_told(root, tmp_path):
    (tmp_path / "begun" / "checkpoints" / "step-00000004").mkdir(parents=True)
    findings = examined(training_config(root, run_dir=str(tmp_path / "begun")))
    whole = findings["disk"].facts["needed_bytes"]
    (tmp_path / "begun" / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(bytes(1000))
    again = examined(training_config(root, run_dir=str(tmp_path / "begun")))
    assert again["disk"].facts["needed_bytes"] == whole - 1000  # what is written already needs no room again
    assert findings["run_dir"].found.endswith("goes on from its newest checkpoint, step-00000004")


BUDGET, AGAIN = "activation_memory_budget=0.8", "recompute=true (24 GB, a third more work)"


def paper() -> TrainConfig:
    raw = find_config("pixart_xl_512", "train")
    return load_settings(raw, ["data.runs.0=.", "data.workers=0", "activation_memory_budget=null"], TrainConfig)


@pytest.mark.parametrize(
    ("has_gb", "outcome", "todo"),
    [
        (141, Outcome.OK, ""),
        (80, Outcome.NOTE, f"set {BUDGET} (56 GB, no more matrix products) or batch.per_device=20 or {AGAIN}"),
        (60, Outcome.FAULT, f"set {BUDGET} (56 GB, no more matrix products) or batch.per_device=20 or {AGAIN}"),
        (24, Outcome.FAULT, "set batch.per_device=4"),
        (8, Outcome.FAULT, "take a GPU with more memory, or a smaller model"),
    ],
)
def test_memory_that_is_too_little_is_told_with_what_would_fit(has_gb, outcome, todo):
    found = judge_estimate(paper(), 49, 8, has_gb * GB)
    assert (found.outcome, found.todo) == (outcome, todo)
    assert f"it has {has_gb}.0 GB" in found.found


def test_what_is_proposed_fits():
    config = with_batch(paper(), 20)
    assert judge_estimate(config, 49, 8, 80 * GB).outcome is Outcome.OK
    again = with_batch(paper(), 40, recompute=True)
    assert estimate_memory(again, 49).total / GB == pytest.approx(24, abs=0.5)


def test_without_a_gpu_memory_is_not_compared():
    found = judge_estimate(paper(), 49, 8, None)
    assert found.outcome is Outcome.NOTE
    assert found.found.endswith("there is none here to compare it with")


GOOD = Step(loss=1.5, gradient_norm=2.0, seconds=0.5)


@pytest.mark.parametrize("wrong", [{"loss": math.nan}, {"loss": math.inf}, {"gradient_norm": math.nan}])
def test_a_step_without_numbers_is_a_fault(wrong: dict[str, Any]):
    found = judge_step([GOOD, replace(GOOD, **wrong)], 8, "8 images on cpu")
    assert found.outcome is Outcome.FAULT
    assert "is not finite" in found.found


def test_a_step_counts_as_fast_as_the_fastest_was():
    found = judge_step([replace(GOOD, seconds=30.0), GOOD, replace(GOOD, seconds=0.4)], 8, "8 images on cuda")
    assert found.outcome is Outcome.OK
    assert found.facts["images_per_sec"] == pytest.approx(20)
    assert "the first step took 30.0 s" in found.found


@pytest.mark.parametrize(
    ("peak", "outcome"), [(95, Outcome.OK), (105, Outcome.OK), (80, Outcome.NOTE), (120, Outcome.NOTE)]
)
def test_a_peak_far_from_the_estimate_is_told(peak, outcome):
    assert judge_peak(peak * GB, 100 * GB).outcome is outcome


@pytest.mark.parametrize(("read", "outcome"), [(200, Outcome.OK), (99, Outcome.NOTE)])
def test_a_loader_that_is_slower_than_the_device_is_told(read, outcome):
    assert judge_loader(read, 100).outcome is outcome
