"""Sampling: equal to the published program's on its toy, and a gradient through all of it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from eval.baselines.wild.diffusion import Painter, guided, open_painter, plms
from sonify.models.fetch import fetch_model
from tests.builders import refused
from tests.eval.baselines.wild.built import facts, uniform
from tests.eval.towers.built import golden
from tests.processes import run_python
from tests.tiny_networks import edit_json, edit_weights
from train.stable_diffusion import load_stable_diffusion, sd_files
from train.tiny import TEXT_WIDTH, write_tiny_sd

CPU = torch.device("cpu")
SCHEDULE = "scheduler/scheduler_config.json"


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


BETAS = [0.01] * 999


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        *(
            ("unet/config.json", {"sample_size": side}, "expected sample_size, the side of latents, of 1 to 512")
            for side in (10**6, 0, -1, None, "x", [8, 8], 4096)
        ),
        ("unet/config.json", {"layers_per_block": 10**5}, "expected layers_per_block of 65536 at most"),
        ("unet/config.json", {"layers_per_block": 60_000}, "expected layers_per_block of"),
        ("unet/config.json", {"cross_attention_dim": 10**7}, "expected cross_attention_dim of 65536 at most"),
        ("unet/config.json", {"norm_eps": []}, "expected norm_eps as UNet2DConditionModel takes it"),
        ("unet/config.json", {"norm_num_groups": 0.5}, "expected norm_num_groups as UNet2DConditionModel takes it"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "expected num_hidden_layers of 65536 at most"),
        ("text_encoder/config.json", {"num_hidden_layers": 3}, "expected num_hidden_layers 2, as many as in its"),
        ("text_encoder/config.json", {"vocab_size": 10**9}, "expected vocab_size of 65536 at most"),
        ("text_encoder/config.json", {"vocab_size": 500}, "tokenizer.json: expected numbers of words below 500"),
        ("vae/config.json", {"scaling_factor": "x"}, "expected scaling_factor as AutoencoderKL takes it"),
        ("vae/config.json", {"scaling_factor": None}, "expected scaling_factor as AutoencoderKL takes it"),
        ("vae/config.json", {"scaling_factor": 0}, "expected a scaling_factor above 0, found 0"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "expected scaling_factor as a finite number"),
        (SCHEDULE, {"num_train_timesteps": 10**9}, "expected num_train_timesteps 1000, found 1000000000"),
        (SCHEDULE, {"num_train_timesteps": 10}, "expected num_train_timesteps 1000, found 10"),
        (SCHEDULE, {"beta_end": 2.0}, "expected beta_start and beta_end in order between 0 and 1"),
        (SCHEDULE, {"beta_start": float("nan")}, "expected beta_start and beta_end in order between 0 and 1"),
        (SCHEDULE, {"beta_schedule": "x"}, "expected beta_schedule linear or scaled_linear or squaredcos_cap_v2"),
        (SCHEDULE, {"trained_betas": BETAS}, "expected trained_betas as 1000 numbers between 0 and 1, found 999"),
        (SCHEDULE, {"trained_betas": [*BETAS, 2]}, "expected trained_betas as 1000 numbers between 0 and 1"),
        (SCHEDULE, {"trained_betas": "x"}, "expected trained_betas as PNDMScheduler takes it"),
    ],
)  # fmt: skip
def test_numbers_that_no_stable_diffusion_has_are_refused_before_it_is_built(
    file, settings, said, folder, tmp_path, monkeypatch
):
    copied = Path(shutil.copytree(folder, tmp_path / "sd"))
    edit_json(copied / file, lambda config: config.update(settings))
    if "above 0" not in said:
        monkeypatch.setattr("train.stable_diffusion.read_network", None)
    with refused(re.escape(said)) as error:
        open_painter(str(copied), None, CPU)
    assert str(copied) in str(error.value)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_are_not_finite_are_refused(part, folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "sd"))

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        next(tensor for name, tensor in tensors.items() if "norm" in name).fill_(float("nan"))

    edit_weights(next((copied / part).glob("*.safetensors")), spoil)
    with refused(f"sd/{part}: expected finite weights, found NaN or infinity in .*norm"):
        open_painter(str(copied), None, CPU)


def test_the_libraries_say_nothing_beside_our_line(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "sd"))
    edit_json(copied / "unet" / "config.json", lambda config: config.update(unknown=1))
    edit_json(copied / "text_encoder" / "config.json", lambda config: config.update(intermediate_size=48))
    code = """
import sys
import torch
from eval.baselines.wild.diffusion import open_painter
from sonify.errors import InputError
try:
    open_painter(sys.argv[1], None, torch.device("cpu"))
except InputError as error:
    print(error)
"""
    done = run_python(code, copied)
    assert "of the tensors of CLIPTextModel are not in the weights" in done.stdout
    assert not done.stderr


def test_the_identity_of_a_folder_is_that_of_all_its_parts(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "sd"))
    files = sd_files(with_vae=True)
    before = fetch_model(str(folder), None, files).identity
    assert fetch_model(str(copied), None, files).identity == before
    found = {before}
    for number, path in enumerate(sorted(copied.glob("*/*.safetensors")), start=2):
        edit_weights(path, lambda tensors: next(iter(tensors.values())).add_(1))
        found.add(fetch_model(str(copied), None, files).identity)
        assert len(found) == number
    edit_json(copied / SCHEDULE, lambda config: config.update(beta_end=0.013))
    assert fetch_model(str(copied), None, files).identity not in found
    shutil.copy(copied / "unet" / "diffusion_pytorch_model.safetensors", copied / "unet" / "model.safetensors")
    with refused("unet: expected its weights as diffusion_pytorch_model alone, found others beside"):
        fetch_model(str(copied), None, files)
