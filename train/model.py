"""The diffusion transformer: diffusers' PixArt-alpha over a condition of audio vectors instead of text.

B  images    C H W  channels, height and width of the latents    T D  times and width of the condition
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sonify.errors import InputError
from sonify.models.fetch import (
    FetchedModel,
    Files,
    check_weights,
    diffusers_class,
    fetch_model,
    read_shapes,
    weight_files,
)
from sonify.models.loading import cannot_load, check_whole
from train.config import Checkpoint, Transformer

PROJECTION = "caption_projection."
PART = "transformer"  # where a pipeline's folder has it
CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")  # the second wrote the published checkpoints
SIZES = {
    "layers": "num_layers",
    "heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "patch_size": "patch_size",
    "sample_size": "sample_size",
    "latent_channels": "in_channels",
}
SMALL_STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class InitReport:
    """Where each tensor's first values come from: names and numbers of parameters.

    `source` is the checkpoint with its `identity` (a hub id's commit, a digest of a folder's files).
    """

    source: str
    identity: str | None = None
    kept: dict[str, int]
    projector: dict[str, int]
    new: dict[str, int]

    def __str__(self) -> str:
        parts = {f"kept from {self.source}": self.kept, "from the projector": self.projector, "new": self.new}
        shown = [f"{_count(tensors)} {origin}{_names(tensors)}" for origin, tensors in parts.items() if tensors]
        return f"transformer: {_count({**self.kept, **self.projector, **self.new})}; {'; '.join(shown)}"


def init_transformer(config: Transformer, seed: int) -> tuple[PixArtTransformer2DModel, InitReport]:
    """Build the transformer on the CPU, in float32, with its first weights: a function of the configuration and `seed`.

    Raises:
        InputError: the checkpoint or the projector cannot be had, or does not fit the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if config.init.kind == "scratch":
            model = _build(config)
            _init_weights(model)
            given: dict[str, int] = {}
            if config.init.projector is not None:  # loaded last: all else is what it is without one
                load_projector(str(config.init.projector), cast(PixArtAlphaTextProjection, model.caption_projection))
                given = {name: count for name, count in _sizes(model).items() if name.startswith(PROJECTION)}
            new = {name: count for name, count in _sizes(model).items() if name not in given}
            return model, InitReport(source="scratch", kept={}, projector=given, new=new)
        return _from_checkpoint(config, config.init)


def predict(model: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, audio_BTD: Tensor) -> Tensor:
    """Return the network's output, 2C channels: the noise, then the variance's place.

    The condition has no mask: every image has as many audio vectors, and attention without one has the fastest kernels.
    """
    return model(noisy_BCHW, encoder_hidden_states=audio_BTD, timestep=timesteps_B, return_dict=False)[0]


def drop_condition(audio_BTD: Tensor, dropped_B: Tensor, null_TD: Tensor) -> Tensor:
    """Put the null condition where an image's is dropped."""
    return torch.where(dropped_B[:, None, None], null_TD, audio_BTD)


def _build(config: Transformer) -> PixArtTransformer2DModel:
    width = config.width
    return PixArtTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.latent_channels,
        out_channels=2 * config.latent_channels,
        num_layers=config.layers,
        cross_attention_dim=width,
        sample_size=config.sample_size,
        patch_size=config.patch_size,
        use_additional_conditions=False,
        caption_channels=config.caption_channels,
    )


def _init_weights(model: PixArtTransformer2DModel) -> None:
    """Initialise as PixArt-alpha and DiT do; the tables of scale and shift are drawn by the class itself.

    Source: PixArt-alpha's `initialize_weights`; DiT, arXiv 2212.09748, section 3.2.
    """
    patches = model.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(model.inner_dim, -1))
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear):
            _init_linear(name, linear)


def _init_linear(name: str, linear: nn.Linear) -> None:
    if name.endswith(("attn2.to_out.0", "proj_out")):  # a block adds no condition at first, the model predicts zero
        nn.init.zeros_(linear.weight)
    elif name.startswith(("adaln_single.", PROJECTION)):
        nn.init.normal_(linear.weight, std=SMALL_STD)
    else:
        nn.init.xavier_uniform_(linear.weight, gain=_gain(name))
    nn.init.zeros_(linear.bias)


def _gain(name: str) -> float:
    """Upstream has one matrix for queries, keys and values, and one for keys and values: a bound of more outputs."""
    if name.endswith(("attn1.to_q", "attn1.to_k", "attn1.to_v")):
        return math.sqrt(2 / 4)
    return math.sqrt(2 / 3) if name.endswith(("attn2.to_k", "attn2.to_v")) else 1.0


def _from_checkpoint(config: Transformer, init: Checkpoint) -> tuple[PixArtTransformer2DModel, InitReport]:
    fetched = _fetch(init)
    _check_sizes(config, fetched)
    model = _load(fetched)
    kept = {name: count for name, count in _sizes(model).items() if not name.startswith(PROJECTION)}
    projection = new_projection(config.caption_channels, model.inner_dim)
    model.caption_projection = projection
    model.register_to_config(caption_channels=config.caption_channels)
    fresh = {name: count for name, count in _sizes(model).items() if name not in kept}
    if init.projector is not None:
        load_projector(str(init.projector), projection)
    return model, InitReport(
        source=f"{fetched.model} ({fetched.identity[:19]})",
        identity=fetched.identity,
        kept=kept,
        projector=fresh if init.projector else {},
        new={} if init.projector else fresh,
    )


def new_projection(caption_channels: int, width: int) -> PixArtAlphaTextProjection:
    """A projection of the condition with PixArt-alpha's first weights, by torch's own random numbers."""
    projection = PixArtAlphaTextProjection(in_features=caption_channels, hidden_size=width)
    for name, linear in projection.named_children():
        if isinstance(linear, nn.Linear):
            _init_linear(PROJECTION + name, linear)
    return projection


def load_text_projection(init: Checkpoint, width: int) -> tuple[PixArtAlphaTextProjection, str]:
    """A checkpoint's own projection of T5's vectors, which its cross-attention was trained to read; with its identity.

    Raises:
        InputError: the checkpoint cannot be had, has no such projection, or is of another width.
    """
    fetched = _fetch(init)
    name = f"{PROJECTION}linear_1.weight"
    shape = read_shapes(fetched.path).get(name, [])
    try:
        file = next((file for file in weight_files(fetched.path) if name in _names_in(file)), None)
    except SafetensorError as error:
        raise cannot_load(fetched, error) from error
    if file is None or len(shape) != 2:
        raise InputError(f"{fetched.path}: has no projection of a text ({name}); take a checkpoint of PixArt-alpha")
    if shape[0] != width:
        raise InputError(
            f"{fetched.path}: its projection is {shape[0]} wide, and model.heads times model.head_dim is {width}; set"
            " them to the checkpoint's"
        )
    projection = PixArtAlphaTextProjection(in_features=shape[1], hidden_size=width)
    load_projector(str(file), projection)
    return projection, fetched.identity


def _names_in(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as tensors:
        return set(tensors.keys())


def _fetch(init: Checkpoint) -> FetchedModel:
    """Find the transformer's own folder, which in a pipeline is a part."""
    folder = Path(init.model).expanduser()
    if folder.is_dir():
        return fetch_model(str(transformer_part(folder)), init.revision, TRANSFORMER_FILES)
    fetched = fetch_model(init.model, init.revision, TRANSFORMER_FILES)
    return FetchedModel(model=fetched.model, path=transformer_part(fetched.path), identity=fetched.identity)


def transformer_part(folder: Path) -> Path:
    """The transformer's own folder, which in a pipeline's is a part."""
    return folder / PART if (folder / PART).is_dir() else folder


def _check_transformer(folder: Path) -> None:
    part = transformer_part(folder)
    found = diffusers_class(part)
    if found not in CLASSES:
        raise InputError(
            f"{part}: expected a PixArtTransformer2DModel, such as PixArt-alpha/PixArt-XL-2-512x512 has, found"
            f" '{found}'"
        )
    check_weights(part)


TRANSFORMER_FILES = Files(
    patterns=(f"{PART}/*.json", f"{PART}/*.safetensors"), checks=(_check_transformer,), ignored=()
)


def _check_sizes(config: Transformer, fetched: FetchedModel) -> None:
    found = cast(dict[str, Any], PixArtTransformer2DModel.load_config(fetched.path))
    if found.get("norm_type") != "ada_norm_single":
        raise InputError(
            f"{fetched.path / 'config.json'}: expected `norm_type` ada_norm_single, PixArt's, found"
            f" {found.get('norm_type')}; take a checkpoint of PixArt-alpha"
        )
    wanted = {name: (getattr(config, key), f"model.{key}") for key, name in SIZES.items()}
    wanted["out_channels"] = (2 * config.latent_channels, "twice model.latent_channels, for the learned variance")
    for name, (size, key) in wanted.items():
        if found.get(name) != size:
            raise InputError(
                f"{fetched.path / 'config.json'}: {name} is {found.get(name)}, and the configuration's is {size}"
                f" ({key}); change the configuration, or take a checkpoint of its size"
            )
    if found.get("use_additional_conditions", found["sample_size"] == 128):
        raise InputError(
            f"{fetched.path / 'config.json'}: is conditioned on resolution and aspect ratio as well, which training has"
            " not; take PixArt-XL-2-512x512 or PixArt-XL-2-SAM-256x256"
        )


def _load(fetched: FetchedModel) -> PixArtTransformer2DModel:
    """Load all but the projection of the condition, which is left as the library leaves it."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it warns of what is expected here: settings of the older class
    try:
        model, report = cast(Any, PixArtTransformer2DModel).from_pretrained(
            fetched.path,
            torch_dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # to name them here
            output_loading_info=True,
        )
    except Exception as error:  # of a damaged folder the library raises whatever its code meets
        raise cannot_load(fetched, error) from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    ours = {kind: [key for key in report[kind] if PROJECTION not in str(key)] for kind in report}
    check_whole(model, ours, fetched)
    if unknown := sorted(key for key in ours["unexpected_keys"] if key != "pos_embed.pos_embed"):
        raise InputError(
            f"{fetched.path}: {len(unknown)} tensors have no place in a PixArtTransformer2DModel, such as {unknown[0]};"
            " take a checkpoint of PixArt-alpha"
        )
    return model


def load_projector(file: str, projection: PixArtAlphaTextProjection) -> None:
    """Read `caption_projection`'s tensors; others in the file, such as the rest of a transformer, are not looked at."""
    wanted = projection.state_dict()
    try:
        with safe_open(file, framework="pt") as tensors:
            there = set(tensors.keys())
            found = {name: tensors.get_tensor(PROJECTION + name) for name in wanted if PROJECTION + name in there}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: cannot be read as safetensors ({error}); save the projection's tensors again"
        ) from error
    for name, tensor in wanted.items():
        if name not in found:
            raise InputError(f"{file}: expected a tensor {PROJECTION}{name}, found none")
        if found[name].shape != tensor.shape:
            raise InputError(
                f"{file}: {PROJECTION}{name} has the shape {tuple(found[name].shape)}, and the model's is"
                f" {tuple(tensor.shape)}; take a projector of this model.caption_channels and width"
            )
    projection.load_state_dict(found)


def _sizes(model: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def _count(tensors: dict[str, int]) -> str:
    return f"{sum(tensors.values()):,} parameters in {len(tensors)} tensors"


def _names(tensors: dict[str, int]) -> str:
    return f": {', '.join(tensors)}" if len(tensors) <= 4 else ""
