"""An average of any length, made after training of the power-function averages that a run stored, and its choice.

    python -m train.ema TRAINRUN --sweep [--step N] [--out DIR]      the losses of several lengths on held-out images
    python -m train.ema TRAINRUN --length 0.08 --out DIR [--step N]  a release of that length

A length is chosen on the validation split of the run's own data, at noise and timesteps that are the same for all. An
evaluation suite whose scores chose it would be no evaluation of the model any more.

    B N  images, C H W  channels, height and width of the latents, T D  times and width of the condition
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.ema", extra="train"))

import argparse
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from safetensors.torch import load_file

from sonify.errors import InputError
from sonify.features.vae import load_vae, scaling_factor
from sonify.installed import spell
from sonify.models.fetch import VAE_FILES, fetch_model
from sonify.models.loading import choose_device
from sonify.terminal import Parser, run_command
from train.adapters import adapted_base
from train.averages import Fit, Held, Power
from train.checkpoints import FOLDER as CHECKPOINTS
from train.checkpoints import Averaged, Tensors, load_averaged, load_learning
from train.config import LONGEST, SHORTEST, TrainConfig, Training, read_config
from train.diffusion import NUM_TIMESTEPS
from train.execution import set_execution
from train.loader import Batch, generator
from train.pixart import loss_of
from train.release import add_licences, find_place, read_licences, release_averaged
from train.shards import FeatureData, TrainingSample, open_feature_data
from train.snapshots import Snapshots, is_had, open_snapshots

log = logging.getLogger(__name__)

LENGTHS = (0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.13, 0.16, 0.20, 0.25)
NOISES = 8  # of each image, at timesteps spread over all of them


def main(argv: Sequence[str] | None = None, prog: str = "train.ema") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Make an average of any length of what a training run stored.")
    parser.add_argument("run", type=Path, metavar="TRAINRUN", help="a run that was trained with ema.lengths")
    parser.add_argument("--length", type=float, help="sigma_rel: the spread of the averaged steps as a share of all")
    parser.add_argument("--sweep", action="store_true", help="compare lengths on held-out images; --out has the best")
    parser.add_argument("--lengths", type=float, nargs="+", default=LENGTHS, help="of --sweep (default: %(default)s)")
    parser.add_argument("--images", type=int, default=256, help="of --sweep, at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of --sweep's noise (default: %(default)s)")
    parser.add_argument("--step", type=int, help="one whose averages are stored (default: the newest)")
    parser.add_argument("--out", type=Path, help="the release's folder; a release there is replaced")
    add_licences(parser)
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    config = read_config(arguments.run, spell("train", "--config", "F"))
    terms = read_licences(arguments, None)
    if arguments.out is not None:
        find_place(arguments.out)
    snapshots = open_snapshots(arguments.run, arguments.step)
    length, losses, images = arguments.length, {}, 0
    if arguments.sweep:
        losses, images = _sweep(arguments, config, snapshots)
        length = min(losses, key=lambda each: losses[each])
    if arguments.out is not None:
        averaged = average_of(snapshots, length)
        held = Held(rule=averaged.rule, losses=losses, images=images)
        release_averaged(arguments.run, config, averaged, held, arguments.out, terms)
        print(arguments.out)  # noqa: T201 - the command's result


def _check(arguments: argparse.Namespace) -> None:
    if arguments.sweep == (arguments.length is not None):
        raise InputError("expected either --length L, such as 0.08, or --sweep, which compares several")
    if not arguments.sweep and arguments.out is None:
        raise InputError("--out: expected the folder for the release of --length")
    if arguments.images < 1 or arguments.seed < 0:
        raise InputError("--images: expected 1 or more, and --seed 0 or more")
    alone = [] if arguments.length is None else [arguments.length]
    for option, lengths in (("length", alone), ("lengths", arguments.lengths)):
        if odd := [length for length in lengths if not SHORTEST <= length <= LONGEST]:
            raise InputError(f"--{option}: expected at least {SHORTEST} and at most {LONGEST}, found {odd[0]:g}")


def average_of(snapshots: Snapshots, length: float) -> Averaged:
    """The average of a length at the last of the snapshots.

    Raises:
        InputError: they do not hold such a length.
    """
    found = snapshots.fit(length)
    if not is_had(found):
        raise InputError(f"--length {length:g}: {_tell_lacking(found)}; take a longer one, or store more snapshots")
    (weights,) = snapshots.combine([found])
    return Averaged(
        step=snapshots.step,
        network=snapshots.network,
        weights=weights,
        rule=Power(length=length),
        base=snapshots.base,
    )


def _tell_lacking(found: Fit) -> str:
    return (
        f"not held by what is stored: it misses {found.misfit:.1%} of the average's weights, and rounding grows"
        f" {found.growth:.1f}-fold"
    )


def _sweep(arguments: argparse.Namespace, config: Training, snapshots: Snapshots) -> tuple[dict[float, float], int]:
    """Print the loss of each length that is held; return them, and of how many images they are."""
    if not isinstance(config, TrainConfig):
        raise InputError(f"{arguments.run}: --sweep is for runs of train.pixart; choose another's --length yourself")
    fits = {length: snapshots.fit(length) for length in sorted(set(arguments.lengths))}
    for length, lacking in fits.items():
        if not is_had(lacking):
            log.warning("length %g is left out: %s", length, _tell_lacking(lacking))
    fits = {length: found for length, found in fits.items() if is_had(found)}
    if not fits:
        raise InputError("--lengths: none of them is held by what is stored")
    batches = read_held_out(config, arguments.images, arguments.seed)
    images = len(dict.fromkeys(key for batch in batches for key in batch.keys))
    log.info("step %s, %d held-out images at %d timesteps each", f"{snapshots.step:,}", images, NOISES)
    judge = Judge(config, snapshots, batches)
    losses = {
        length: judge(weights) for length, weights in zip(fits, snapshots.combine(list(fits.values())), strict=True)
    }
    others = {name: judge(weights) for name, weights in _beside(arguments.run, snapshots.step)}
    for line in tell_sweep(losses, others):
        print(line)  # noqa: T201 - the command's result
    return {length: float(loss_N.mean()) for length, loss_N in losses.items()}, images


def _beside(run_dir: Path, step: int) -> Iterator[tuple[str, Tensors]]:
    """What else there is of that step, to compare with: not among what is chosen from."""
    folder = run_dir / CHECKPOINTS / f"step-{step:08d}"
    if folder.is_dir():
        averaged = load_averaged(run_dir, step)
        yield "the last step's weights", load_file(folder / "model.safetensors")
        yield str(averaged.rule), averaged.weights


def read_held_out(config: TrainConfig, images: int, seed: int) -> list[Batch]:
    """The first images of the validation split, each with one of its scenes and `NOISES` draws of noise; the same ones
    for the same seed.

    Raises:
        InputError: nothing is held out.
    """
    data = open_feature_data(config.data.model_copy(update={"split": "validation"}))
    vae = load_vae(fetch_model(config.vae, config.vae_revision, VAE_FILES), torch.device("cpu"), torch.float32)
    rows = [row for sample in islice(data.samples(), images) for row in _draw(sample, data, scaling_factor(vae), seed)]
    size = config.batch.per_device
    return [_stack(rows[first : first + size]) for first in range(0, len(rows), size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    key: str
    timestep: int
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray]  # latents, noise, audio


def _draw(sample: TrainingSample, data: FeatureData, scaling: float, seed: int) -> Iterator[_Row]:
    random = generator(seed, "held out", sample.key)
    scene = sample.scenes[int(random.integers(len(sample.scenes)))]
    latents_CHW = sample.decode("latent.npy", data.latent_shape) * scaling
    audio_TD = sample.decode(f"{scene}.audio.npy", data.audio_shape)
    for number in range(NOISES):
        timestep = int((number + random.random()) * NUM_TIMESTEPS / NOISES)
        noise_CHW = random.standard_normal(data.latent_shape, np.float32)
        yield _Row(key=sample.key, timestep=timestep, arrays=(latents_CHW, noise_CHW, audio_TD))


def _stack(rows: Sequence[_Row]) -> Batch:
    latents_BCHW, noise_BCHW, audio_BTD = (
        torch.from_numpy(np.stack([row.arrays[n] for row in rows])) for n in range(3)
    )
    return Batch(
        position=0,
        keys=tuple(row.key for row in rows),
        latents_BCHW=latents_BCHW,
        noise_BCHW=noise_BCHW,
        timesteps_B=torch.tensor([row.timestep for row in rows]),
        audio_BTD=audio_BTD,
        dropped_B=torch.zeros(len(rows), dtype=torch.bool),
    )


class Judge:
    """The squared error of the predicted noise on held-out images, one number an image, for whatever weights."""

    def __init__(self, config: TrainConfig, snapshots: Snapshots, batches: Sequence[Batch]) -> None:
        self._device = choose_device("auto")
        if config.train == "adapters":
            model = adapted_base(config, snapshots.base)
        else:
            model = PixArtTransformer2DModel.from_config(dict(snapshots.network))
        assert isinstance(model, PixArtTransformer2DModel)
        torch.nn.Module.to(model, self._device).eval()  # diffusers' own is typed for its decorator
        set_execution(model, compiled=False)
        self._model = model
        self._config = config.model_copy(update={"routing": None})
        self._half = config.precision == "bf16" and self._device.type == "cuda"
        self._batches = batches

    @torch.no_grad()
    def __call__(self, weights: Tensors) -> np.ndarray:
        load_learning(self._model, weights)
        errors = []
        for batch in self._batches:
            null_TD = torch.zeros_like(batch.audio_BTD[0], device=self._device)  # no condition is dropped
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
                errors.append(
                    loss_of(self._model, batch.to(self._device), null_TD, self._config).mse_B.double().cpu().numpy()
                )
        return np.concatenate(errors).reshape(-1, NOISES).mean(axis=1)


def tell_sweep(losses: Mapping[float, np.ndarray], others: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A table with, for each, by how much it is above the best length, and the standard error of that over images."""
    best = min(losses, key=lambda length: losses[length].mean())
    rows = [(f"{length:g}", loss_N) for length, loss_N in losses.items()] + list(others.items())
    yield f"{'error':<9} {'above the best':<22} length"
    for name, loss_N in rows:
        above_N = loss_N - losses[best]
        spread = float(above_N.std(ddof=1)) / math.sqrt(len(above_N)) if len(above_N) > 1 else math.nan
        told = "the best" if loss_N is losses[best] else f"{above_N.mean():+.5f} +- {spread:.5f}"
        yield f"{loss_N.mean():<9.5f} {told:<22} {name}"
