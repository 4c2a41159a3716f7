"""Sampling: equal to the published program's on its toy, and a gradient through all of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from eval.baselines.wild.diffusion import Painter, guided, open_painter, plms
from tests.builders import refused
from tests.eval.baselines.wild.built import facts, uniform
from tests.eval.towers.built import golden
from tests.tiny_networks import edit_json
from train.stable_diffusion import load_stable_diffusion
from train.tiny import TEXT_WIDTH, write_tiny_sd

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture(scope="module")
def tiny(folder) -> Painter:
    return open_painter(str(folder), None, CPU)


@pytest.fixture(scope="module")
def sampler(folder) -> PNDMScheduler:
    """As the loader makes it of version 1.4's schedule, which the tiny one has."""
    return load_stable_diffusion(str(folder), None, CPU, torch.float32, with_vae=False).scheduler


def test_the_sampler_is_the_published_programs(sampler):
    arrays, given = golden("in_the_wild")[0], facts("plms")
    times: list[int] = []

    def predict(x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        times.append(int(time))
        return 0.6 * x + 0.1 * torch.sin(3 * x) * time / 1000 + text.mean((1, 2))[:, None, None, None]

    given_text, null = uniform(6201, 1, 77, 16) * 0.5, uniform(6202, 1, 77, 16) * 0.5
    start = torch.from_numpy(arrays["plms_start"])
    assert torch.equal(start, uniform(6200, 1, 4, 8, 8) * 1.7)
    end = plms(sampler, guided(predict, given_text, null, 7.5), start, 40)
    assert np.abs(end.numpy() - arrays["plms_final"]).max() < 1e-4
    assert times == given["diffusers PNDM steps_offset=1 timesteps"]
    assert len(times) == given["model_calls"] == 41


def test_a_model_is_sampled_over_its_own_schedule(tiny, tmp_path):
    """And with the steps of version 1.4, whatever its file says of them."""
    seen = []
    for name, changed in (("steps", {"steps_offset": 0, "skip_prk_steps": False}), ("schedule", {"beta_end": 0.02})):
        other = write_tiny_sd(tmp_path / name)
        edit_json(other / "scheduler" / "scheduler_config.json", lambda config, to=changed: config.update(to))
        seen.append(open_painter(str(other), None, CPU))
    y = uniform(1, 1, 77, TEXT_WIDTH)
    with torch.no_grad():
        usual, steps, schedule = (painter.draw(y, painter.noise(0), 4, 7.5) for painter in (tiny, *seen))
    assert torch.equal(usual, steps)
    assert not torch.allclose(usual, schedule, atol=1e-3)


def test_sampling_leaves_the_sampler_as_it_was(sampler):
    plms(sampler, lambda x, _time: 0.1 * x, uniform(1, 1, 4, 8, 8), 7)
    assert sampler.num_inference_steps is None
    assert sampler.ets == []


def test_a_gradient_through_all_evaluations_is_the_same_with_and_without_checkpointing(tiny):
    found = []
    for checkpointing in (True, False):
        y = (uniform(1, 1, 77, TEXT_WIDTH) * 0.5).requires_grad_()
        image = tiny.draw(y, tiny.noise(3), 6, 7.5, checkpointing)
        image.square().mean().backward()
        assert y.grad is not None
        found.append((image.detach(), y.grad))
    (one, with_it), (other, without) = found
    assert torch.equal(one, other)
    assert with_it.abs().max() > 0
    assert torch.allclose(with_it, without, rtol=1e-4, atol=1e-9)


def test_a_picture_depends_on_seed_and_text_and_is_in_range(tiny):
    y, other = uniform(1, 1, 77, TEXT_WIDTH), uniform(2, 1, 77, TEXT_WIDTH)
    with torch.no_grad():
        pictures = [tiny.draw(text, tiny.noise(seed), 4, 7.5) for text, seed in ((y, 0), (y, 0), (y, 1), (other, 0))]
    assert pictures[0].shape == (1, 3, 64, 64)
    assert 0 <= float(pictures[0].min()) < float(pictures[0].max()) <= 1
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[3])


def test_guidance_is_against_the_empty_prompt(tiny):
    """With a scale of 1 the empty prompt has no part, and a conditioning that is the empty prompt's needs no scale."""
    empty = tiny.encode(tiny._tokens(""))
    with torch.no_grad():
        one, other = (tiny.draw(empty, tiny.noise(0), 4, scale) for scale in (1.0, 7.5))
    assert torch.allclose(one, other, atol=1e-4)


def test_weights_of_a_stable_diffusion_are_not_trained(tiny):
    assert not any(p.requires_grad for part in (tiny._unet, tiny._vae, tiny._text) for p in part.parameters())


def test_a_unet_of_another_width_than_the_text_tower_is_refused(tmp_path):
    folder = write_tiny_sd(tmp_path / "sd")
    config = json.loads((folder / "unet" / "config.json").read_text())
    shape: dict[str, Any] = {key: value for key, value in config.items() if key[0] != "_"} | {"cross_attention_dim": 48}
    UNet2DConditionModel(**shape).save_pretrained(folder / "unet")
    with refused(
        f"its UNet takes text of width 48, and its text tower gives {TEXT_WIDTH}; take all parts of one model"
    ):
        open_painter(str(folder), None, CPU)


def test_what_is_no_stable_diffusion_is_refused(tmp_path, folder):
    with refused("expected a Stable Diffusion in diffusers' layout.*found no unet/"):
        open_painter(str(tmp_path), None, CPU)
    with refused("expected a Stable Diffusion.*found no unet/"):
        open_painter(str(folder / "vae"), None, CPU)


def test_a_tokenizer_of_more_places_than_the_text_tower_is_refused(tmp_path):
    folder = write_tiny_sd(tmp_path / "sd")
    edit_json(folder / "tokenizer" / "tokenizer_config.json", lambda config: config.update(model_max_length=120))
    with refused("its tokenizer fills places up to 120, and its text tower has 77"):
        open_painter(str(folder), None, CPU)
