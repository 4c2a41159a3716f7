"""Steps of a training that nobody keeps, and reading that nothing learns from: what they take in time and memory.

B  images of a micro-batch, C H W  channels, height and width of the latents, T D  times and width of the condition
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor

from train.adapters import adapt
from train.config import TrainConfig
from train.device import wait_for
from train.diffusion import NUM_TIMESTEPS
from train.execution import choose_linears, set_execution
from train.loader import Batch
from train.loop import clip_gradients, finish_step, learning_rate_at, start_learner
from train.metrics import matmul_peak_flops, training_flops
from train.pixart import loss_of

# On a CPU a micro-batch may take an hour: as many of its images are tried as need so long at a share of the peak.
CPU_SECONDS, CPU_SHARE = 10.0, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step: its mean loss, the gradient's norm, and the seconds until the device had done it."""

    loss: float
    gradient_norm: float
    seconds: float


class Trainee:
    """A model on one device with all that training keeps beside it; its steps are those of `train.pixart`."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, transformer: PixArtTransformer2DModel, null_TD: Tensor
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self.transformer = transformer.to(accelerator.device)
        torch.nn.Module.train(transformer)
        if config.train == "adapters":
            adapt(transformer, config)
        self.learner = start_learner(transformer, config.optimizer, lengths=config.ema.lengths)
        set_execution(
            transformer,
            compiled=config.compile,
            recompute=config.recompute,
            budget=config.activation_memory_budget,
            linears=choose_linears(config, accelerator.device),
        )
        self._model = accelerator.prepare_model(transformer)
        self._null_TD = null_TD.to(accelerator.device)

    def step(self, batches: Sequence[Batch]) -> Step:
        """Learn from micro-batches: with two of them gradients are there while activations are, as with more."""
        device, settings = self._accelerator.device, self._config.optimizer
        wait_for(device)
        started = time.perf_counter()
        total = torch.zeros((), device=device)
        for batch in batches:
            loss = loss_of(self._model, batch.to(device), self._null_TD, self._config).total_B.mean() / len(batches)
            self._accelerator.backward(loss)
            total += loss.detach()
        norm = clip_gradients(self._accelerator, self._model, settings)
        learning_rate = learning_rate_at(1, settings, self._config.batch.total)
        finish_step(self.learner, learning_rate, 1)
        wait_for(device)
        return Step(loss=float(total), gradient_norm=float(norm), seconds=time.perf_counter() - started)


def make_batch(config: TrainConfig, condition_tokens: int, seed: int = 0) -> Batch:
    """A micro-batch of the configuration's shape, of normal numbers."""
    size, model = config.batch.per_device, config.model
    random = torch.Generator().manual_seed(seed)
    shape = (size, model.latent_channels, model.sample_size, model.sample_size)
    return Batch(
        position=0,
        keys=tuple(f"made-{n}" for n in range(size)),
        latents_BCHW=torch.randn(shape, generator=random),
        noise_BCHW=torch.randn(shape, generator=random),
        timesteps_B=torch.randint(NUM_TIMESTEPS, (size,), generator=random),
        audio_BTD=torch.randn(size, condition_tokens, model.caption_channels, generator=random),
        dropped_B=torch.rand(size, generator=random) < config.condition_dropout,
    )


def images_for_cpu(config: TrainConfig, condition_tokens: int) -> int:
    """How many images of a micro-batch are tried on a CPU; 0 where one alone would take too long."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    rate = CPU_SHARE * matmul_peak_flops(torch.device("cpu"), dtype)
    seconds = training_flops(config, condition_tokens) / rate
    return min(config.batch.per_device, int(CPU_SECONDS / seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a loader gave: its first micro-batches, and how many images a second when it was under way."""

    batches: Sequence[Batch]
    images_per_sec: float


def read_for(batches: Iterator[Batch], seconds: float, kept: int, warm_up: int) -> Reading:
    """Read micro-batches for some seconds, as fast as they come; the first `warm_up` (one at least) are not timed.

    What the processes of a loader made ahead of the first request would else count as made in no time.
    """
    first: list[Batch] = []
    images, untimed = 0, max(warm_up, 1)
    started = time.perf_counter()
    for number, batch in enumerate(batches, start=1):
        if len(first) < kept:
            first.append(batch)
        if number > untimed:
            images += len(batch.keys)
        if number == untimed:
            started = time.perf_counter()
        elif time.perf_counter() - started > seconds:
            break
    return Reading(batches=first, images_per_sec=images / (time.perf_counter() - started))
