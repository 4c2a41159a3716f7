"""Times a training run and writes what it says of itself: to the log, to `metrics.jsonl` and to the trackers."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from train.config import TrainConfig
from train.metrics import MetricsFile, StepSums
from train.throughput import forward_flops, matmul_peak_flops

log = logging.getLogger(__name__)


class Recorder:
    """A context over the steps of a run; only the main process writes.

    `mfu` is the share of the matrix-product peak that was measured on this device when the run began.
    """

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, num_condition_tokens: int, first_step: int
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self._first_step = first_step
        # the backward pass is twice the forward
        self._flops = 3 * forward_flops(config.model, num_condition_tokens) * config.batch.total
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._peak_flops = matmul_peak_flops(accelerator.device, dtype) * accelerator.num_processes
        self._waited_sec = 0.0
        self._lines = MetricsFile(config.run_dir, first_step) if accelerator.is_main_process else None

    def __enter__(self) -> "Recorder":
        # a resumed run overwrites the curve of the steps that are done again
        purge = {"tensorboard": {"purge_step": self._first_step + 1}}
        self._accelerator.init_trackers(self._config.run_dir.name, init_kwargs=purge)
        self._since, self._since_step = time.perf_counter(), self._first_step
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
        values = sums.means() | {
            "gradient_norm": float(gradient_norm),
            "learning_rate": learning_rate,
            "images_per_sec": steps * self._config.batch.total / seconds,
            "mfu": steps * self._flops / seconds / self._peak_flops,
            "data_wait": self._waited_sec / seconds,
        }
        self._since, self._since_step, self._waited_sec = now, step, 0.0
        self._lines.write({"step": step, **values})
        self._accelerator.log(values, step=step)
        log.info(
            "step %s of %s  loss %.4f  gradient %.3g  %.1f images/s  MFU %.0f %%  waiting for data %.1f %%",
            f"{step:,}",
            f"{self._config.max_steps:,}",
            values["loss"],
            values["gradient_norm"],
            values["images_per_sec"],
            100 * values["mfu"],
            100 * values["data_wait"],
        )

    def _is_due(self, step: int) -> bool:
        return step % self._config.log_every == 0 or step in (self._first_step + 1, self._config.max_steps)
