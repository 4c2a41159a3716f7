"""AdamW and its learning rate."""

import math

import torch
from torch import nn

from train.config import Optimizer


def make_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """AdamW in one kernel; every parameter decays, as in PixArt-alpha. The rate is set at each step."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_at(step: int, config: Optimizer, total_batch: int) -> float:
    """Return the rate of a step, counted from 1: linear up to the square-root rule's rate, then constant."""
    peak = config.learning_rate * math.sqrt(total_batch / config.reference_batch)
    return peak * min(1.0, step / config.warmup_steps) if config.warmup_steps else peak
