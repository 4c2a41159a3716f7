"""Fine-tuning of a part: what learns of a text checkpoint under `train: adapters`, and the ordinary network of it.

All else is frozen, in the precision that it computes in: it needs no gradient, no moments, no average, and a checkpoint
of the run does not hold it.
"""

from typing import Any, cast

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import nn

from sonify.errors import InputError
from train.checkpoints import Averaged, load_learning
from train.config import Adapters, TrainConfig
from train.model import PROJECTION, init_transformer

LORA = "lora"
CROSS_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
OTHERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")


def adapt(model: PixArtTransformer2DModel, config: TrainConfig) -> None:
    """Freeze a model in place but for what learns, low-rank matrices among it, whose first values follow from the seed.

    It computes what it did: the second matrix of each pair is zero at first.
    """
    adapters = config.adapters
    model.requires_grad_(False)
    if low_rank := low_rank_layers(adapters):
        _inject(model, low_rank, adapters.rank, config.seed)
    for name, parameter in model.named_parameters():
        whole = name.startswith(PROJECTION) or (adapters.cross_attention == "full" and ".attn2." in name)
        parameter.requires_grad_(whole or ".lora_" in name)
    if config.precision == "bf16":
        _halve_frozen(model)


def low_rank_layers(adapters: Adapters) -> tuple[str, ...]:
    """The linear layers of a block that learn by low-rank matrices beside them."""
    cross = CROSS_ATTENTION if adapters.cross_attention == "lora" else ()
    return (*cross, *(OTHERS if adapters.others == "lora" else ()))


def _inject(model: nn.Module, layers: tuple[str, ...], rank: int, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - takes seconds, and few runs need it

    names = "|".join(layer.replace(".", r"\.") for layer in layers)
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=rf"transformer_blocks\.\d+\.(?:{names})")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(settings, model, LORA)


def _halve_frozen(model: nn.Module) -> None:
    """Keep what autocast would turn anyway; tables of shifts and scales are added outside of it, and stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
            module.to(torch.bfloat16)


@torch.no_grad()
def merge(model: PixArtTransformer2DModel) -> PixArtTransformer2DModel:
    """An ordinary network of a model with adapters, in float32: frozen weights as they were computed with, and what
    low-rank matrices add to them."""
    state = model.state_dict()
    tensors = {
        name.replace(".base_layer.", "."): tensor.float() for name, tensor in state.items() if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + cast(Any, module).get_delta_weight(LORA).float()
    with torch.random.fork_rng(devices=[]):  # whose first weights are drawn, and overwritten
        plain = cast(PixArtTransformer2DModel, PixArtTransformer2DModel.from_config(cast(Any, model).config))
    plain.load_state_dict(tensors)
    return cast(PixArtTransformer2DModel, nn.Module.to(plain, model.device).eval())


def merge_averaged(config: TrainConfig, averaged: Averaged) -> PixArtTransformer2DModel:
    """The ordinary network of a checkpoint that holds adapters only.

    Raises:
        InputError: the model that they were learned on cannot be had, or is another one now.
    """
    model = adapted_base(config, averaged.base)
    load_learning(model, averaged.weights)
    return merge(model)


def adapted_base(config: TrainConfig, base: str | None) -> PixArtTransformer2DModel:
    """The model that adapters were learned on, with adapters that have learned nothing.

    Raises:
        InputError: it cannot be had, or is another one than `base` now.
    """
    init = config.model.init.model_copy(update={"projector": None})  # which is among what was learned
    model, report = init_transformer(config.model.model_copy(update={"init": init}), config.seed)
    if report.identity != base:
        raise InputError(
            f"model.init.model: the adapters were learned on {base}, and it is {report.identity} now; bring that one"
            " back, or set model.init.revision to it"
        )
    adapt(model, config)
    return model
