"""Between the state of a training run in memory and its checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
import yaml
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

from sonify.engine.files import write_whole
from train.card import CONFIG
from train.checkpoints import State, restore_checkpoint, save_checkpoint
from train.config import TrainConfig
from train.ema import Ema
from train.shards import FeatureData


def write_config(config: TrainConfig) -> None:
    """Write RUN/config.yaml, resolved: a release of any checkpoint is made with it."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_whole(config.run_dir / CONFIG, text.encode())


def bound_settings(config: TrainConfig, data: FeatureData) -> dict[str, Any]:
    """What a run that resumes must have in common with the one that it goes on from, for the same losses."""
    plain = config.model_dump(mode="json", include={"seed", "model", "optimizer", "condition_dropout"})
    return plain | {"batch.total": config.batch.total, "data": data.digest, "data.split": config.data.split}


def save(
    config: TrainConfig,
    data: FeatureData,
    step: int,
    transformer: PixArtTransformer2DModel,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Save everything that training goes on from.

    Raises:
        DiskFull: no room is left; the checkpoints that are there stay.
    """
    state = State(
        step=step,
        model=transformer.state_dict(),
        ema=ema.state_dict(),
        optimizer=_pack(transformer, optimizer),
    )
    bound = bound_settings(config, data)
    save_checkpoint(config.run_dir, state, bound, config.checkpoints.keep, data.recordings())


def restore(
    config: TrainConfig,
    data: FeatureData,
    transformer: PixArtTransformer2DModel,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Load the newest whole checkpoint, if there is any, and return how many steps are done.

    Raises:
        InputError: it belongs to a run under other settings.
        WorkError: there are checkpoints, and all are damaged.
    """
    state = restore_checkpoint(config.run_dir, bound_settings(config, data))
    if state is None:
        return 0
    transformer.load_state_dict(state.model)
    ema.load_state_dict(state.ema)
    _unpack(transformer, optimizer, state.optimizer)
    return state.step


def _pack(transformer: PixArtTransformer2DModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors under the names of the parameters that they belong to."""
    return {
        f"{name}/{kind}": tensor
        for name, parameter in transformer.named_parameters()
        for kind, tensor in optimizer.state[parameter].items()
    }


def _unpack(
    transformer: PixArtTransformer2DModel, optimizer: torch.optim.Optimizer, packed: Mapping[str, torch.Tensor]
) -> None:
    parameters = dict(transformer.named_parameters())
    for key, tensor in packed.items():
        name, _, kind = key.rpartition("/")
        device = "cpu" if kind == "step" and not optimizer.defaults["fused"] else parameters[name].device
        optimizer.state[parameters[name]][kind] = tensor.to(device)
