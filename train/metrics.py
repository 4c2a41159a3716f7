"""What a training run says of itself: `metrics.jsonl`, one line every `log_every` steps.

B  images
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from sonify.io.write import write_whole
from train.diffusion import Losses

METRICS = "metrics.jsonl"
QUARTILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """A step's losses, added up over its images and all processes; the first two by quartile of the timestep."""

    losses: Sequence[float]
    images: Sequence[float]
    mse: float
    vb: float
    num_not_finite: int
    stop: bool  # whether any process was asked to end

    def means(self) -> dict[str, float]:
        """The losses as they are logged; a quartile that no image fell into has none."""
        images = sum(self.images)
        means = {"loss": sum(self.losses) / images, "mse": self.mse / images, "vb": self.vb / images}
        return means | {f"loss_q{n + 1}": self.losses[n] / self.images[n] for n in range(QUARTILES) if self.images[n]}


class StepTally:
    """Sums over the images of one step, on the device: one reduction over the processes is all their talk.

    float64, so that the sums do not depend on the number of processes in the digits that are logged.
    """

    def __init__(self, num_timesteps: int, device: torch.device) -> None:
        self._num_timesteps = num_timesteps
        self._sums = torch.zeros(2 * QUARTILES + 4, dtype=torch.float64, device=device)
        self._seen: list[tuple[torch.Tensor, tuple[str, ...]]] = []

    def add(self, losses: Losses, timesteps_B: torch.Tensor, keys: tuple[str, ...]) -> None:
        """Add the images of a micro-batch."""
        quartile_B = timesteps_B * QUARTILES // self._num_timesteps
        total_B = losses.total_B.detach().double()
        self._sums[:QUARTILES].index_add_(0, quartile_B, total_B)
        self._sums[QUARTILES : 2 * QUARTILES].index_add_(0, quartile_B, torch.ones_like(total_B))
        finite_B = torch.isfinite(total_B)
        self._sums[-4] += losses.mse_B.detach().double().sum()
        self._sums[-3] += losses.vb_B.detach().double().sum()
        self._sums[-2] += (~finite_B).sum()
        self._seen.append((finite_B, keys))

    def reduce(self, accelerator: Accelerator, stop: bool) -> StepSums:
        """Add up over all processes; `stop` is whether this one was asked to end."""
        self._sums[-1] += float(stop)
        sums = accelerator.reduce(self._sums, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue] - a tensor
        return StepSums(
            losses=sums[:QUARTILES],
            images=sums[QUARTILES : 2 * QUARTILES],
            mse=sums[-4],
            vb=sums[-3],
            num_not_finite=round(sums[-2]),
            stop=sums[-1] > 0,
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
    except ValueError:
        return None
    whole = isinstance(values, dict) and isinstance(values.get("step"), int) and "loss" in values
    return values if whole else None
