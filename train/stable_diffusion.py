"""A Stable Diffusion as the systems beside PixArt take it: UNet, text tower, tokenizer and sampler, all of them frozen.

C  channels of latents, D  width of the text tower
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from sonify.errors import InputError
from sonify.features.vae import Vae, load_vae
from sonify.models.fetch import (
    FetchedModel,
    Files,
    check_tokenizer,
    check_type,
    check_vae,
    check_weights,
    diffusers_class,
    fetch_model,
)
from sonify.models.loading import check_whole, load_network, load_part, place_network, read_network
from train.checks import (
    TEXT_LAYERS,
    check_finite,
    check_layers,
    check_numbers,
    check_scaling,
    check_schedule,
    check_side,
    check_types,
    check_words,
    load_sampler,
    quiet_libraries,
)

EXAMPLE = "CompVis/stable-diffusion-v1-4"
# The folders of its parts, and the names of their weights.
NETWORKS = {
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}
OTHER_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusion:
    """Its parts; `vae` is None where another one takes its place. `width` is that of the text tower."""

    identity: str
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: PNDMScheduler
    vae: Vae | None

    @property
    def width(self) -> int:
        """D."""
        config: Any = self.text_encoder.config
        return config.hidden_size


def sd_files(*, with_vae: bool) -> Files:
    """What is fetched of a Stable Diffusion, a folder or hub id in diffusers' layout."""
    networks = [name for name in NETWORKS if with_vae or name != "vae"]
    return Files(
        patterns=(
            *(f"{name}/config.json" for name in networks),
            *(f"{name}/{NETWORKS[name]}.safetensors" for name in networks),
            *("tokenizer/*", "scheduler/scheduler_config.json"),
        ),
        checks=(_check_of(networks),),
        ignored=(),
        parts=(*networks, "tokenizer", "scheduler"),
    )


def _check_of(networks: list[str]) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        for name in (*networks, "tokenizer", "scheduler"):
            if not (folder / name).is_dir():
                raise InputError(
                    f"{folder}: expected a Stable Diffusion in diffusers' layout, such as {EXAMPLE}; found no {name}/"
                )
        for name in networks:
            check_weights(folder / name)
            if NETWORKS[name] != "model" and any((folder / name / other).exists() for other in OTHER_WEIGHTS):
                raise InputError(
                    f"{folder / name}: expected its weights as {NETWORKS[name]} alone, found others beside"
                )
        check_tokenizer(folder / "tokenizer")
        if (found := diffusers_class(folder / "unet")) != UNet2DConditionModel.__name__:
            raise InputError(f"{folder / 'unet'}: expected the class {UNet2DConditionModel.__name__}, found {found}")
        _check_settings(folder, networks)

    return check


def _check_settings(folder: Path, networks: list[str]) -> None:
    """Refuse numbers that none has, before anything is built by them."""
    unet, tower = folder / "unet" / "config.json", folder / "text_encoder"
    check_side(unet)
    for name in networks:
        check_numbers(folder / name / "config.json")
    check_types(unet, UNet2DConditionModel)
    check_type("clip_text_model", "Stable Diffusion's")(tower)
    check_layers(tower / "config.json", *TEXT_LAYERS)
    check_words(folder / "tokenizer", tower)
    check_schedule(folder / "scheduler" / "scheduler_config.json", PNDMScheduler)
    if "vae" in networks:
        check_vae(folder / "vae")
        check_types(folder / "vae" / "config.json", VAES[diffusers_class(folder / "vae")])


def load_stable_diffusion(
    model: str, revision: str | None, device: torch.device, dtype: torch.dtype, *, with_vae: bool
) -> StableDiffusion:
    """Fetch and load one; no gradient reaches its weights.

    Raises:
        InputError: it cannot be had or used, or its parts do not belong together.
    """
    fetched = fetch_model(model, revision, sd_files(with_vae=with_vae))
    quiet_libraries()
    unet = _load_unet(_part(fetched, "unet"), device, dtype)
    text_encoder: Any = load_network(CLIPTextModel, _part(fetched, "text_encoder"), device, dtype)
    vae = load_vae(_part(fetched, "vae"), device, torch.float32) if with_vae else None
    for name, network in (("unet", unet), ("text_encoder", text_encoder), ("vae", vae)):
        if network is not None:
            network.requires_grad_(False)
            check_finite(fetched.path / name, network)
    if vae is not None:
        check_scaling(fetched.path / "vae", vae)
    found = StableDiffusion(
        identity=fetched.identity,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=load_part(CLIPTokenizer, _part(fetched, "tokenizer")),
        scheduler=_load_scheduler(_part(fetched, "scheduler")),
        vae=vae,
    )
    _check_parts(fetched, found)
    return found


def _part(fetched: FetchedModel, name: str) -> FetchedModel:
    return replace(fetched, path=fetched.path / name)


def _load_unet(fetched: FetchedModel, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    unet, report = read_network(UNet2DConditionModel, fetched, torch_dtype=dtype)
    check_whole(unet, report, fetched)
    return place_network(unet, device, fetched)


def _load_scheduler(fetched: FetchedModel) -> PNDMScheduler:
    """PNDM over the model's own schedule, with the steps that version 1.4 samples by."""
    return load_sampler(PNDMScheduler, fetched, skip_prk_steps=True, steps_offset=1)


def _check_parts(fetched: FetchedModel, sd: StableDiffusion) -> None:
    unet: Any = sd.unet.config
    checks = (
        ("its UNet takes channels of latents:", unet["in_channels"], "gives", unet["out_channels"]),
        ("its UNet takes text of width", unet["cross_attention_dim"], "its text tower gives", sd.width),
        (
            "its tokenizer fills places up to",
            sd.tokenizer.model_max_length,
            "its text tower has",
            sd.text_encoder.config.max_position_embeddings,
        ),
    )
    if sd.vae is not None:
        channels = sd.vae.config["latent_channels"]
        checks += (("its UNet takes channels of latents:", unet["in_channels"], "its VAE has", channels),)
    for one, first, other, second in checks:
        if first != second:
            raise InputError(f"{fetched.model}: {one} {first}, and {other} {second}; take all parts of one model")
    if (found := sd.scheduler.config["prediction_type"]) != "epsilon":
        raise InputError(f"{fetched.model}: expected a model that predicts the noise (epsilon), found {found}")
