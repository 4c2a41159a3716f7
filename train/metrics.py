"""What a training run says of itself, to the log, the trackers and `metrics.jsonl`: its losses, its speed, its waits.

B  images
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from sonify.engine.progress import spell_duration
from sonify.io.write import write_whole
from train.config import Routing, TrainConfig, Training, Transformer
from train.device import wait_for
from train.execution import convolve

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
QUARTILES = 4
TIMESTEP_CHANNELS = 256  # of the sinusoids that the timestep's embedding begins with
PEAK_SECONDS = 0.3
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # of square matrices; large enough for the peak, small enough for the time


class StepLosses(Protocol):
    """The losses of a micro-batch, a value an image; `parts` are what the total is made of, as they are logged."""

    @property
    def total_B(self) -> Tensor:  # noqa: N802 - shape suffix
        """What is minimised."""
        ...

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """The same names at each step."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """A step's losses, added up over its images and all processes; the first two by quartile of the timestep."""

    losses: Sequence[float]
    images: Sequence[float]
    parts: Mapping[str, float]
    num_not_finite: int
    stop: bool  # whether any process was asked to end

    def means(self) -> dict[str, float]:
        """The losses as they are logged; a quartile that no image fell into has none."""
        images = sum(self.images)
        means = {"loss": sum(self.losses) / images} | {name: total / images for name, total in self.parts.items()}
        return means | {f"loss_q{n + 1}": self.losses[n] / self.images[n] for n in range(QUARTILES) if self.images[n]}


class StepTally:
    """Sums over the images of one step, on the device: one reduction over the processes is all their talk.

    float64, so that the sums do not depend on the number of processes in the digits that are logged.
    """

    def __init__(self, num_timesteps: int, device: torch.device) -> None:
        self._num_timesteps = num_timesteps
        self._sums = torch.zeros(2 * QUARTILES + 2, dtype=torch.float64, device=device)
        self._parts: dict[str, Tensor] = {}
        self._seen: list[tuple[torch.Tensor, tuple[str, ...]]] = []

    def add(self, losses: StepLosses, timesteps_B: torch.Tensor, keys: tuple[str, ...]) -> None:
        """Add the images of a micro-batch."""
        quartile_B = timesteps_B * QUARTILES // self._num_timesteps
        total_B = losses.total_B.detach().double()
        self._sums[:QUARTILES].index_add_(0, quartile_B, total_B)
        self._sums[QUARTILES : 2 * QUARTILES].index_add_(0, quartile_B, torch.ones_like(total_B))
        finite_B = torch.isfinite(total_B)
        self._sums[-2] += (~finite_B).sum()
        for name, part_B in losses.parts.items():
            part = part_B.detach().double().sum()
            self._parts[name] = self._parts[name] + part if name in self._parts else part
        self._seen.append((finite_B, keys))

    def reduce(self, accelerator: Accelerator, stop: bool) -> StepSums:
        """Add up over all processes; `stop` is whether this one was asked to end."""
        self._sums[-1] += float(stop)
        mine = torch.cat([self._sums, *(part.view(1) for part in self._parts.values())])
        sums = accelerator.reduce(mine, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue] - a tensor
        return StepSums(
            losses=sums[:QUARTILES],
            images=sums[QUARTILES : 2 * QUARTILES],
            parts=dict(zip(self._parts, sums[2 * QUARTILES + 2 :], strict=True)),
            num_not_finite=round(sums[2 * QUARTILES]),
            stop=sums[2 * QUARTILES + 1] > 0,
        )

    def keys(self, not_finite: bool) -> list[str]:
        """The images of this process: all of the step, or those whose loss is NaN or infinite."""
        return [
            key
            for finite_B, keys in self._seen
            for finite, key in zip(finite_B.tolist(), keys, strict=True)
            if not (finite and not_finite)
        ]


class MetricsFile:
    """Appends lines to `metrics.jsonl`; lines of steps that are about to be done again are removed first."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        self._path = run_dir / METRICS
        kept = [line for line in read_metrics(run_dir) if line["step"] <= first_step]
        write_whole(self._path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())

    def write(self, values: Mapping[str, float]) -> None:
        """Add one line."""
        with self._path.open("a") as file:
            file.write(f"{json.dumps(values)}\n")


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The lines so far; those that a kill or a power cut left damaged are left out."""
    path = run_dir / METRICS
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [values for line in lines if (values := _parse(line)) is not None]


def _parse(line: bytes) -> dict[str, float] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(values, dict) and isinstance(values.get("step"), int) and "loss" in values
    return values if whole else None


class Recorder:
    """A context over the steps of a run; only the main process writes.

    `flops_of` are the operations of a step, by its number, for one image; `mfu` is their share of the matrix-product
    peak that was measured on this device when the run began.
    """

    def __init__(
        self, config: Training, accelerator: Accelerator, flops_of: Callable[[int], int], first_step: int
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self._first_step = first_step
        self._flops_of = flops_of
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._peak_flops = matmul_peak_flops(accelerator.device, dtype) * accelerator.num_processes
        self._waited_sec = 0.0
        self._lines = MetricsFile(config.run_dir, first_step) if accelerator.is_main_process else None

    def __enter__(self) -> "Recorder":
        # a resumed run overwrites the curve of the steps that are done again
        purge = {"tensorboard": {"purge_step": self._first_step + 1}}
        self._accelerator.init_trackers(self._config.run_dir.name, init_kwargs=purge)
        self._since, self._since_step = time.perf_counter(), self._first_step
        self._entered = self._since
        return self

    def __exit__(self, *_exception: object) -> None:
        for tracker in self._accelerator.trackers:
            tracker.finish()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent here is what the loader costs."""
        start = time.perf_counter()
        yield
        self._waited_sec += time.perf_counter() - start

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Time spent here is no part of a step: saving, and drawing samples."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def record(self, step: int, sums: StepSums, gradient_norm: torch.Tensor, learning_rate: float) -> None:
        """Note a finished step; every `log_every` steps, the first and the last are written."""
        if self._lines is None or not self._is_due(step):
            return
        now = time.perf_counter()
        steps, seconds = step - self._since_step, now - self._since
        if step == self._first_step + 1:  # what is left is reckoned from here on: the first step compiles
            self._first_done = now
        flops = self._config.batch.total * sum(map(self._flops_of, range(self._since_step + 1, step + 1)))
        values = sums.means() | {
            "gradient_norm": float(gradient_norm),
            "learning_rate": learning_rate,
            "images_per_sec": steps * self._config.batch.total / seconds,
            "mfu": flops / seconds / self._peak_flops,
            "data_wait": self._waited_sec / seconds,
        }
        self._since, self._since_step, self._waited_sec = now, step, 0.0
        self._lines.write({"step": step, **values})
        self._accelerator.log(values, step=step)
        log.info(
            "step %s of %s  loss %.4f  gradient %.3g  %.1f images/s  MFU %.0f %%  waiting for data %.1f %%  %s",
            f"{step:,}",
            f"{self._config.max_steps:,}",
            values["loss"],
            values["gradient_norm"],
            values["images_per_sec"],
            100 * values["mfu"],
            100 * values["data_wait"],
            self._tell_time(step, now),
        )

    def _tell_time(self, step: int, now: float) -> str:
        """The time since this start, and what is left at the pace so far, with all saving and drawing."""
        passed = f"{spell_duration(now - self._entered)} so far"
        steps = step - self._first_step - 1
        if not steps or step == self._config.max_steps:
            return passed
        return f"{passed}, {spell_duration((now - self._first_done) / steps * (self._config.max_steps - step))} left"

    def _is_due(self, step: int) -> bool:
        return step % self._config.log_every == 0 or step in (self._first_step + 1, self._config.max_steps)


def forward_flops(config: Transformer, num_condition_tokens: int, routing: Routing | None = None) -> int:
    """Return the floating-point operations of one image's forward pass; training needs three times as many.

    Matrix products only, attention's among them; a multiplication with its addition counts as two.
    """
    width, tokens = config.width, config.tokens
    patch = config.patch_size**2 * config.latent_channels

    def block(tokens: int) -> int:
        return (
            4 * tokens * width**2  # self-attention: queries, keys, values, output
            + 2 * tokens**2 * width
            + 2 * tokens * width**2  # cross-attention: queries, output
            + 2 * num_condition_tokens * width**2  # its keys and values
            + 2 * tokens * num_condition_tokens * width
            + 8 * tokens * width**2  # feed-forward, four times as wide inside
        )

    routed = config.layers - routing.first - routing.last if routing else 0
    blocks = (config.layers - routed) * block(tokens)
    if routing:
        blocks += routed * block(routing.kept_of(tokens))
    timestep = TIMESTEP_CHANNELS * width + width**2 + 6 * width**2
    condition = num_condition_tokens * width * (config.caption_channels + width)
    patches = tokens * width * (patch + 2 * patch)  # in, and out with the variance
    return 2 * (blocks + timestep + condition + patches)


def training_flops(config: TrainConfig, num_condition_tokens: int, step: int = 1) -> int:
    """Return the operations of a step, counted from 1, for one image.

    The backward pass is twice the forward, but that frozen weights need no gradients. What low-rank matrices take
    themselves, 3 % at rank 16 of XL, is left out.
    """
    routing = config.routing_at(step)
    forward = forward_flops(config.model, num_condition_tokens, routing)
    return 3 * forward - (_frozen_flops(config, num_condition_tokens, routing) if config.train == "adapters" else 0)


def _frozen_flops(config: TrainConfig, num_condition_tokens: int, routing: Routing | None) -> int:
    """Of the forward pass, the products with weights that are frozen: each has one like it for a weight's gradient."""
    model, tokens = config.model, config.model.tokens
    width, patch = model.width, model.patch_size**2 * model.latent_channels
    routed = model.layers - routing.first - routing.last if routing else 0
    of_all_blocks = (model.layers - routed) * tokens + (routed * routing.kept_of(tokens) if routing else 0)
    of_a_token = 12 * width**2  # self-attention and feed-forward
    if config.adapters.cross_attention == "lora":
        of_a_token += 2 * width**2
    keys_and_values = 2 * num_condition_tokens * width**2 * (config.adapters.cross_attention == "lora")
    beside = TIMESTEP_CHANNELS * width + 7 * width**2 + 3 * tokens * width * patch
    return 2 * (of_all_blocks * of_a_token + model.layers * keys_and_values + beside)


def matmul_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations a second of large matrix products, in under a second.

    MFU here is the share of this peak. Elsewhere it is a share of the data sheet's, which no product reaches, and
    comes out lower.
    """
    size = PEAK_SIZE["cuda" if device.type == "cuda" else "cpu"]
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    products: list[Callable[[], Tensor]] = [lambda: left @ right]
    if device.type == "cpu":  # linear layers run as convolutions there, which may be the faster product
        products.append(lambda: convolve(left.view(4, -1, size), right, None))
    return 2 * size**3 / min(_fastest_sec(product, device) for product in products)


def _fastest_sec(product: Callable[[], Tensor], device: torch.device) -> float:
    product()  # the first loads the library
    wait_for(device)
    fastest, end = float("inf"), time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        wait_for(device)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
