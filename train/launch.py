"""One process a GPU: what the plain command becomes on a machine with several of them."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch
from accelerate import Accelerator

from sonify.errors import InputError
from train.config import TrainConfig


def is_distributed() -> bool:
    """Whether torchrun or `accelerate launch` started this process as one of several."""
    return "LOCAL_RANK" in os.environ


def check_devices(devices: int | None) -> int:
    """How many processes the plain command stands for: one for each visible GPU, or one on the CPU.

    Raises:
        InputError: the configuration asks for more GPUs than there are.
    """
    found = torch.cuda.device_count()
    if devices is not None and found < devices:
        raise InputError(
            f"devices: the configuration asks for {devices} GPUs, and torch finds {found} here; set devices=null to use"
            " what there is (the total batch stays the same)"
        )
    return devices or max(found, 1)


def relaunch(processes: int, module: str, argv: Sequence[str]) -> NoReturn:
    """Become torchrun, which starts that many processes of the same command and passes signals on."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", module, *argv])  # noqa: S606


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Join the other processes, if there are any, on this process's GPU or the CPU."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with=list(config.trackers),
        project_dir=config.run_dir,
    )
