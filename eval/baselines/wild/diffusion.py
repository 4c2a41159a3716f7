"""Stable Diffusion as the system samples it: pseudo linear multistep (PLMS) over 40 steps, which is 41 evaluations,
over the model's own schedule.

A gradient may go through all of them.

P  places of CLIP's text, D  width of the text tower, C H W  of the latents
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from train.stable_diffusion import StableDiffusion, load_stable_diffusion

Denoise = Callable[[Tensor, Tensor], Tensor]


def plms(sampler: PNDMScheduler, denoise: Denoise, start_1CHW: Tensor, steps: int) -> Tensor:
    """Sample by PLMS; `denoise` takes latents and a time to the noise in them. `sampler` is left as it is.

    With `steps_offset` 1, which the loader sets, it gives the published program's numbers, with 0 others.
    """
    scheduler: Any = deepcopy(sampler)
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


class Painter:
    """A Stable Diffusion in float32 that draws what a conditioning says; none of its weights is trained."""

    def __init__(self, sd: StableDiffusion, device: torch.device) -> None:
        self.device = device
        self.tokenizer: Any = sd.tokenizer
        self._unet: Any = sd.unet
        self._vae: Any = sd.vae
        self._text: Any = sd.text_encoder
        self._sampler = sd.scheduler
        self.times: int = sd.scheduler.config["num_train_timesteps"]  # of its schedule
        with torch.no_grad():
            self._null_1PD = self.encode(self._tokens(""))

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
        latents = plms(self._sampler, guided(chosen, y_1PD, self._null_1PD, guidance), start_1CHW, steps)
        pixels = self._vae.decode(latents / self._vae.config.scaling_factor).sample
        return ((pixels + 1) / 2).clamp(0, 1)


def open_painter(model: str, revision: str | None, device: torch.device) -> Painter:
    """Load a Stable Diffusion of diffusers' layout.

    Raises:
        InputError: it cannot be had or used.
    """
    return Painter(load_stable_diffusion(model, revision, device, torch.float32, with_vae=True), device)
