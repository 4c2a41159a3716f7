"""Stable Diffusion as the system samples it: pseudo linear multistep (PLMS) over 40 steps, which is 41 evaluations.

A gradient may go through all of them.

P  places of CLIP's text, D  width of the text tower, C H W  of the latents
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from sonify.errors import InputError
from sonify.models.fetch import FetchedModel, Files, check_tokenizer, check_weights, fetch_model
from sonify.models.loading import check_whole, load_network, load_part, place_network, read_network

Denoise = Callable[[Tensor, Tensor], Tensor]
PARTS = ("unet", "vae", "text_encoder", "tokenizer")


def _check_parts(folder: Path) -> None:
    """Refuse what is no Stable Diffusion in the folders that diffusers writes."""
    lacking = [part for part in PARTS if not (folder / part).is_dir()]
    if lacking:
        raise InputError(
            f"{folder}: expected a Stable Diffusion in diffusers' folders, such as CompVis/stable-diffusion-v1-4; found"
            f" no {lacking[0]}/"
        )
    for part in PARTS[:3]:
        check_weights(folder / part)
    check_tokenizer(folder / "tokenizer")


FILES = Files(
    patterns=(
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"),
        *("vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors"),
        "tokenizer/*",
    ),
    checks=(_check_parts,),
    ignored=(),
)


def plms(denoise: Denoise, start_1CHW: Tensor, steps: int) -> Tensor:
    """Sample by PLMS; `denoise` takes latents and a time to the noise in them.

    With `steps_offset` 1 diffusers' scheduler gives the published program's numbers, with 0 others.
    """
    scheduler: Any = PNDMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    latents = start_1CHW
    for time in scheduler.timesteps:
        latents = scheduler.step(denoise(latents, time), time, latents).prev_sample
    return latents


def guided(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor], y_1PD: Tensor, null_1PD: Tensor, scale: float
) -> Denoise:
    """Classifier-free guidance: `predict` takes two latents, a time, and both conditionings to the noise in each."""
    both_2PD = torch.cat([null_1PD, y_1PD])

    def denoise(latents: Tensor, time: Tensor) -> Tensor:
        without, given = predict(latents.repeat(2, 1, 1, 1), time, both_2PD).chunk(2)
        return without + scale * (given - without)

    return denoise


class StableDiffusion:
    """The parts of a Stable Diffusion, in float32; none of their weights is trained."""

    def __init__(self, fetched: FetchedModel, device: torch.device) -> None:
        def at(part: str) -> FetchedModel:
            return replace(fetched, path=fetched.path / part)

        def load(network_class: Any, part: str) -> Any:
            network, report = read_network(network_class, at(part))
            check_whole(network, report, at(part))
            return place_network(network, device, at(part)).requires_grad_(False)

        self.device = device
        self._unet: Any = load(UNet2DConditionModel, "unet")
        self._vae: Any = load(AutoencoderKL, "vae")
        self._text: Any = load_network(CLIPTextModel, at("text_encoder"), device, torch.float32).requires_grad_(False)
        self.tokenizer: Any = load_part(CLIPTokenizer, at("tokenizer"))
        self._check_fit(fetched.model)
        with torch.no_grad():
            self._null_1PD = self.encode(self._tokens(""))

    def _check_fit(self, model: str) -> None:
        width, asked = self._text.config.hidden_size, self._unet.config.cross_attention_dim
        if asked != width:
            raise InputError(
                f"{model}: its UNet takes text of width {asked}, and its text tower gives {width}; take both of one"
                " model"
            )
        places, most = self.tokenizer.model_max_length, self._text.config.max_position_embeddings
        if places > most:
            raise InputError(
                f"{model}: its tokenizer fills {places} places, and its text tower has {most}; take both of one model"
            )
        if self._unet.config.in_channels != self._vae.config.latent_channels:
            raise InputError(
                f"{model}: its UNet takes {self._unet.config.in_channels} channels of latents, and its VAE has"
                f" {self._vae.config.latent_channels}; take both of one model"
            )

    def _tokens(self, text: str) -> Tensor:
        tokens = self.tokenizer(
            text, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        return tokens["input_ids"].to(self.device)

    def encode(self, tokens_1P: Tensor) -> Tensor:
        """The text tower's (1, P, D) last hidden state."""
        return self._text(input_ids=tokens_1P).last_hidden_state

    def noise(self, seed: int) -> Tensor:
        """The (1, C, H, W) noise of a seed, the same on every device."""
        side = self._unet.config.sample_size
        shape = (1, self._unet.config.in_channels, side, side)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def draw(
        self, y_1PD: Tensor, start_1CHW: Tensor, steps: int, guidance: float, checkpointing: bool = True
    ) -> Tensor:
        """A picture (1, 3, H, W) in 0 to 1. With `checkpointing` each evaluation of the UNet is computed again for its
        gradient, so that the memory is that of one and not of 41."""

        def predict(latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
            return self._unet(latents, time, encoder_hidden_states=text).sample

        def lean(latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
            return checkpoint(predict, latents, time, text, use_reentrant=False)  # pyright: ignore[reportReturnType]

        chosen = lean if checkpointing and torch.is_grad_enabled() else predict
        latents = plms(guided(chosen, y_1PD, self._null_1PD, guidance), start_1CHW, steps)
        pixels = self._vae.decode(latents / self._vae.config.scaling_factor).sample
        return ((pixels + 1) / 2).clamp(0, 1)


def open_stable_diffusion(model: str, revision: str | None, device: torch.device) -> StableDiffusion:
    """Load a Stable Diffusion of diffusers' layout, with a UNet and a text tower of one width.

    Raises:
        InputError: it cannot be had or used.
    """
    return StableDiffusion(fetch_model(model, revision, FILES), device)
