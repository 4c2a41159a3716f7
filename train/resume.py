"""Between the state of a training run in memory and its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

from sonify import layout
from sonify.errors import InputError
from sonify.io.write import write_whole
from train.card import CONFIG
from train.checkpoints import RECORDINGS, Facts, State, restore_checkpoint, save_checkpoint
from train.config import TrainConfig
from train.ema import Ema
from train.shards import FeatureData

RELEASE = "pipeline"
PIPELINE_INDEX = "model_index.json"


def check_run_dir(config: TrainConfig) -> None:
    """Refuse a run_dir where something lies that training would write over, or write among.

    Raises:
        InputError: it is the current folder, lies in a run of `sonify`, or holds a pipeline; or RUN/pipeline is none.
    """
    run_dir = config.run_dir.resolve()
    release = run_dir / RELEASE
    taken = next((folder for folder in (run_dir, *run_dir.parents) if (folder / layout.RUN).exists()), None)
    if run_dir == Path.cwd():
        raise InputError("run_dir: is the current folder; name one of its own, such as runs/mine")
    if taken is not None:
        raise InputError(f"run_dir: {run_dir} lies in {taken}, a run of `sonify`; choose another folder")
    if (run_dir / PIPELINE_INDEX).exists():
        raise InputError(f"run_dir: {run_dir} is a released pipeline; choose another folder")
    if release.exists() and not (release / RECORDINGS).exists():
        raise InputError(f"run_dir: {release} is in the way: it is no release; move it, or choose another folder")


def write_config(config: TrainConfig) -> None:
    """Write RUN/config.yaml, resolved: a release of any checkpoint is made with it."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_whole(config.run_dir / CONFIG, text.encode())


def bound_settings(config: TrainConfig, data: FeatureData) -> dict[str, Any]:
    """What a run that resumes must have in common with the one that it goes on from, for the same losses."""
    plain = config.model_dump(
        mode="json",
        include={"seed": True, "model": True, "optimizer": True, "condition_dropout": True, "precision": True},
        exclude={"model": {"init"}},  # where the first weights came from no longer matters
    )
    read = {"batch.total": config.batch.total, "data": data.digest, "data.split": config.data.split}
    return plain | read | {"hears": config.ast is not None}


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
    facts = Facts(bound=bound, transformer=dict(transformer.config), recordings=data.recordings())
    save_checkpoint(config.run_dir, state, facts, config.checkpoints.keep)


def restore(
    config: TrainConfig,
    data: FeatureData,
    transformer: PixArtTransformer2DModel,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    *,
    check: bool,
) -> int:
    """Load the newest whole checkpoint, if there is any, and return how many steps are done.

    `check` hashes the files and sets damaged ones aside: one process does so before the others load.

    Raises:
        InputError: it belongs to a run under other settings.
        WorkError: there are checkpoints, and all are damaged.
    """
    state = restore_checkpoint(config.run_dir, bound_settings(config, data), check)
    if state is None:
        return 0
    if state.step > config.max_steps:
        raise InputError(
            f"max_steps: {config.max_steps}, and {config.run_dir} has a checkpoint of step {state.step}; set at least"
            " that, or make a release of an earlier one with `python -m train.release --step`"
        )
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
        optimizer.state[parameters[name]][kind] = tensor.to(parameters[name].device)
