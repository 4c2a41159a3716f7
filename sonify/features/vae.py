"""Latents: images through diffusers' AutoencoderKL or AutoencoderTiny, and back.

B  images, C  channels, H, W  height and width
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.utils import logging

from sonify.models.fetch import FetchedModel, diffusers_class
from sonify.models.loading import check_whole, place_network, read_network

Vae = AutoencoderKL | AutoencoderTiny


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """What an image may be in latent space, unscaled float32; an AutoencoderTiny has no deviation."""

    mean_BCHW: torch.Tensor
    std_BCHW: torch.Tensor


def load_vae(fetched: FetchedModel, device: torch.device, dtype: torch.dtype) -> Vae:
    """Load an autoencoder, fetched as `VAE_FILES`."""
    kind: Any = AutoencoderKL if diffusers_class(fetched.path) == "AutoencoderKL" else AutoencoderTiny
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it would warn of is refused below
    vae, report = read_network(kind, fetched, torch_dtype=dtype)
    check_whole(vae, report, fetched)
    return place_network(vae, device, fetched)


def scaling_factor(vae: Vae) -> float:
    """What latents are multiplied by for a diffusion model: 0.18215 for Stable Diffusion's, 1 for TAESD."""
    return float(vae.config["scaling_factor"])


@torch.no_grad()
def encode(vae: Vae, pixels_BHWC: np.ndarray | torch.Tensor) -> Posterior:
    """Encode (B, H, W, 3) uint8 images, whose sides the VAE's factor divides."""
    pixels_BCHW = torch.as_tensor(pixels_BHWC).to(vae.device).permute(0, 3, 1, 2)
    # both classes take -1 to 1; AutoencoderTiny brings it to TAESD's 0 to 1 by itself
    images_BCHW = (pixels_BCHW.float() / 127.5 - 1).to(vae.dtype)
    encoded: Any = vae.encode(images_BCHW)
    if isinstance(vae, AutoencoderTiny):
        mean_BCHW = encoded.latents.float()
        return Posterior(mean_BCHW=mean_BCHW, std_BCHW=torch.zeros_like(mean_BCHW))
    posterior = encoded.latent_dist
    return Posterior(mean_BCHW=posterior.mean.float(), std_BCHW=posterior.std.float())


@torch.no_grad()
def decode(vae: Vae, latents_BCHW: torch.Tensor) -> np.ndarray:
    """Decode unscaled latents to (B, H, W, 3) uint8 images."""
    decoded: Any = vae.decode(cast(Any, latents_BCHW.to(vae.device, vae.dtype)))  # annotated as an older torch's type
    pixels_BCHW = ((decoded.sample.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
