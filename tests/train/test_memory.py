"""The estimate against a table that was derived by hand, and against what a step allocates on this CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sonify.config.loader import make_settings
from train.config import TrainConfig, Transformer
from train.diffusion import NUM_TIMESTEPS, add_noise, diffusion_loss
from train.execution import set_execution
from train.loop import start_learner
from train.memory import GB, DeviceMemory, count_parameters, estimate_memory, most_that_fits, with_batch
from train.model import init_transformer, predict

SMALL = {"layers": 4, "heads": 4, "head_dim": 72, "sample_size": 32}
TOKENS = 50


def config_of(root: Path, **sections: Any) -> TrainConfig:
    return make_settings(
        {"run_dir": str(root / "run"), "max_steps": 1, "data": {"runs": [str(root)]}} | sections, TrainConfig
    )


@pytest.mark.parametrize(
    ("per_device", "compiled", "recompute", "gigabytes"),
    [
        (20, True, False, 51),
        (40, True, False, 83),
        (80, True, False, 147),
        (20, False, False, 57),
        (40, False, False, 96),
        (20, True, True, 23),
        (40, True, True, 26),
        (80, True, True, 34),
    ],
)
def test_the_papers_model_takes_what_was_derived_for_it(tmp_path, per_device, compiled, recompute, gigabytes):
    config = with_batch(config_of(tmp_path, compile=compiled), per_device, recompute)
    assert estimate_memory(config, TOKENS, 8).total / GB == pytest.approx(gigabytes, rel=0.06)


@pytest.mark.parametrize("model", [{}, SMALL, {"layers": 1, "latent_channels": 16, "patch_size": 1, "sample_size": 4}])
def test_parameters_are_those_that_are_built(model):
    settings = Transformer(**model)
    with torch.device("meta"):
        built, _ = init_transformer(settings.model_copy(update={"layers": min(settings.layers, 2)}), 0)
    counted = count_parameters(settings.model_copy(update={"layers": min(settings.layers, 2)}))
    assert counted == sum(parameter.numel() for parameter in built.parameters())


def allocated(config: TrainConfig) -> int:
    """The most that is allocated while a second micro-batch is added to the gradients of a first."""
    model, _ = init_transformer(config.model, 0)
    torch.nn.Module.train(model)
    learner = start_learner(model, config.optimizer)
    set_execution(model, compiled=config.compile, recompute=config.recompute)
    size = config.batch.per_device
    shape = (size, config.model.latent_channels, config.model.sample_size, config.model.sample_size)
    latents, noise, timesteps = torch.randn(shape), torch.randn(shape), torch.randint(NUM_TIMESTEPS, (size,))
    audio = torch.randn(size, TOKENS, config.model.caption_channels)

    def learn() -> None:
        noisy = add_noise(latents, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            output = predict(model, noisy, timesteps, audio)
        diffusion_loss(output, latents, noisy, noise, timesteps).total_B.mean().backward()

    learn()
    learner.optimizer.step()
    weights = [tensor for parameter in model.parameters() for tensor in (parameter, parameter.grad)]
    there = sum(tensor.nbytes for tensor in weights if tensor is not None)
    there += sum(tensor.nbytes for tensor in learner.ema.state_dict().values())
    there += sum(tensor.nbytes for state in learner.optimizer.state.values() for tensor in state.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        learn()
    trace = config.run_dir.parent / "trace.json"
    profiled.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    levels = [event["args"]["Total Allocated"] for event in events]
    return there + max(levels) - levels[0] + events[0]["args"]["Bytes"]


WAYS = [
    pytest.param(precision, compiled, recompute, marks=[pytest.mark.slow] if compiled else [])
    for compiled in (False, True)
    for precision in ("bf16", "fp32")
    for recompute in (False, True)
]


@pytest.mark.parametrize(("precision", "compiled", "recompute"), WAYS)
def test_a_step_allocates_what_is_estimated(tmp_path, precision, compiled, recompute):
    config = config_of(
        tmp_path,
        model=SMALL,
        batch={"total": 16, "per_device": 8},
        precision=precision,
        compile=compiled,
        recompute=recompute,
    )
    estimate = estimate_memory(config, TOKENS)
    assert estimate.allocated == pytest.approx(allocated(config), rel=0.04)


def test_gradients_are_held_twice_where_processes_add_up_micro_batches(tmp_path):
    config = config_of(tmp_path, batch={"total": 640, "per_device": 40})

    def second(config: TrainConfig, processes: int) -> int:
        return estimate_memory(config, TOKENS, processes).second_gradients

    assert second(config, 1) == 0
    assert second(config, 8) == 4 * count_parameters(config.model)
    assert second(with_batch(config, 80), 8) == 0


@pytest.mark.parametrize(("memory_gb", "most"), [(80, 20), (90, 40), (200, 80), (20, None)])
def test_the_most_images_that_fit_divide_the_share_of_a_process(tmp_path, memory_gb, most):
    config = config_of(tmp_path, batch={"total": 640, "per_device": 40})
    assert most_that_fits(config, TOKENS, 8, memory_gb * GB) == most
    if most:
        assert estimate_memory(with_batch(config, most), TOKENS, 8).total <= memory_gb * GB


def test_an_estimate_names_its_parts_and_leaves_out_what_is_nothing():
    memory = DeviceMemory(state=12 * GB, half_weights=0, second_gradients=GB, activations=5 * GB // 2, context=3 * GB)
    assert str(memory) == "18.5 GB (state 12.0, second gradients 1.0, activations 2.5, context 3.0)"
