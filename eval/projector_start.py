"""Does training gain by a projector that was pre-trained? Both starts by the product's trainer, with curves.

    python -m eval.projector_start --config TRAIN.yaml --projector FILE --seeds 3 --out DIR [key=value ...]

Trains from a random projector and from FILE, each with every seed, which decides the other first weights, the order of
the images and the noise alike for both. At every point the averaged weights are judged on held-out scenes, always the
same ones with the same noise; neither pictures nor an eye are needed. The steps of the pre-training itself are not
counted. Writes DIR/projector_start.png and .json; the same command goes on from what is done.

    N  held-out scenes, K  timesteps, T D  times and width of the condition, C H W  of the latents
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.projector_start", extra="eval"))

import argparse
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from scipy.stats import t
from torch import Tensor

from eval.figures import Interval, plot_intervals
from eval.study import at_least, check_out, write_study
from sonify.config import explain_option, load_settings
from sonify.config.shipped import find_config
from sonify.errors import InputError, WorkError
from sonify.features.vae import load_vae, scaling_factor
from sonify.io.commits import digest_of
from sonify.io.write import sha256_of, write_whole
from sonify.models.fetch import VAE_FILES, fetch_model, read_json
from sonify.models.loading import choose_device
from sonify.terminal import Parser, run_command
from train.checkpoints import FOLDER, load_averaged
from train.config import Checkpoints, TrainConfig
from train.diffusion import add_noise
from train.frozen import remake_transformer
from train.launch import check_devices, launch_processes
from train.loader import generator
from train.metrics import read_metrics
from train.model import load_projector, new_projection, predict
from train.pixart import train
from train.shards import FeatureData, open_feature_data
from train.texts import read_said

log = logging.getLogger(__name__)

NAME = "projector_start"
SETTINGS = "settings.json"
RANDOM, PRETRAINED = "random", "pre-trained"
STARTS = (RANDOM, PRETRAINED)
TIMESTEPS = (50, 200, 400, 600, 800)
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Held-out scenes: scaled latents, what is heard, and what is heard with another that shares no concept."""

    keys: tuple[str, ...]
    latents_NCHW: Tensor
    audio_NTD: Tensor
    other_NTD: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a run has learned after so many steps.

    train_loss: the mean squared error of the predicted noise in training since the point before.
    held_loss: the same error of the averaged weights on the held-out scenes, each under its own audio, the mean of
        `TIMESTEPS`.
    accuracy: the share of held-out scenes whose error is smaller under their own audio than under that of another
        scene, at the same noise and timesteps; a tie is half. 0.5 is a model that does not listen.
    """

    step: int
    train_loss: float
    held_loss: float
    accuracy: float


def read_held(data: FeatureData, items: int, scaling: float, seed: int) -> Held:
    """The first scene of the first images as they are stored, each with the audio of another.

    Raises:
        InputError: no two scenes can be told apart, or a scene names no concept.
    """
    keys, latents, audio, concepts = [], [], [], []
    for sample in islice(data.samples(), items):
        scene = sample.scenes[0]
        keys.append(sample.key)
        latents.append(sample.decode("latent.npy", data.latent_shape) * scaling)
        audio.append(sample.decode(f"{scene}.audio.npy", data.audio_shape))
        concepts.append(frozenset(read_said(sample, "concept")[scene].texts))
    others = [[m for m, those in enumerate(concepts) if not these & those] for these in concepts]
    kept = [n for n, fitting in enumerate(others) if fitting]
    if not kept:
        raise InputError(
            f"data.runs: {len(keys)} held-out scenes, and each shares a concept with every other: none can be told from"
            " another; give runs with more of them, or a larger --items"
        )
    if len(kept) < len(keys):
        log.warning("%d of %d held-out scenes share a concept with every other and are left out", *_left(kept, keys))
    chosen = [int(generator(seed, "other", keys[n]).choice(others[n])) for n in kept]
    return Held(
        keys=tuple(keys[n] for n in kept),
        latents_NCHW=torch.from_numpy(np.stack([latents[n] for n in kept])).float(),
        audio_NTD=torch.from_numpy(np.stack([audio[n] for n in kept])),
        other_NTD=torch.from_numpy(np.stack([audio[n] for n in chosen])),
    )


def _left(kept: Sequence[int], keys: Sequence[str]) -> tuple[int, int]:
    return len(keys) - len(kept), len(keys)


@torch.inference_mode()
def judge(model: torch.nn.Module, held: Held, seed: int, at_once: int, device: torch.device) -> tuple[float, float]:
    """The held-out loss and the accuracy, as `Point` has them."""
    own_NK, other_NK = (np.empty((len(held.keys), len(TIMESTEPS))) for _ in range(2))
    for start in range(0, len(held.keys), at_once):
        rows = slice(start, start + at_once)
        latents_BCHW = held.latents_NCHW[rows]
        for k, timestep in enumerate(TIMESTEPS):
            noise = [_noise(seed, key, timestep, latents_BCHW[0].shape) for key in held.keys[rows]]
            noise_BCHW = torch.from_numpy(np.stack(noise))
            timesteps_B = torch.full((len(noise),), timestep)
            noisy_BCHW = add_noise(latents_BCHW, noise_BCHW, timesteps_B)
            for errors_NK, audio_NTD in ((own_NK, held.audio_NTD), (other_NK, held.other_NTD)):
                given = (noisy_BCHW.to(device), timesteps_B.to(device), audio_NTD[rows].to(device))
                predicted_BCHW = predict(model, *given).chunk(2, dim=1)[0].cpu()
                errors_NK[rows, k] = (predicted_BCHW - noise_BCHW).double().square().flatten(1).mean(1).numpy()
    own_N, other_N = own_NK.mean(1), other_NK.mean(1)
    return float(own_N.mean()), float(((own_N < other_N) + 0.5 * (own_N == other_N)).mean())


def _noise(seed: int, key: str, timestep: int, shape: Sequence[int]) -> np.ndarray:
    return generator(seed, "held noise", key, timestep).standard_normal(tuple(shape), np.float32)


def steps_of(max_steps: int, points: int) -> list[int]:
    """The steps after which runs are judged, the last among them."""
    every = math.ceil(max_steps / points)
    return sorted({*range(every, max_steps + 1, every), max_steps})


def run_config(base: TrainConfig, start: str, seed: int, projector: Path, out: Path, points: int) -> TrainConfig:
    """The training of one start and seed; checkpoints at the points, no samples, and a line of each step.

    A point's `train_loss` is the mean of the steps since the point before, and a line of metrics is of one step.
    """
    init = base.model.init.model_copy(update={"projector": projector if start == PRETRAINED else None})
    update: dict[str, Any] = {
        "run_dir": out / "runs" / f"{start}-{seed}",
        "seed": seed,
        "model": base.model.model_copy(update={"init": init}),
        "samples": base.samples.model_copy(update={"sounds": 0}),
        "log_every": 1,
        "checkpoints": Checkpoints(every=math.ceil(base.max_steps / points), keep=base.max_steps),
    }
    return base.model_copy(update=update)


def train_and_judge(config: TrainConfig, held: Held, steps: Sequence[int], seed: int) -> list[Point]:
    """Train a run and judge it at each point; one that is done already is read."""
    result = config.run_dir.with_name(f"{config.run_dir.name}.json")
    if result.exists():
        return [Point(**point) for point in read_json(result)["points"]]
    _train(config)
    device = choose_device("auto")
    metrics = read_metrics(config.run_dir)
    points = []
    for before, step in zip([0, *steps], steps, strict=False):
        model = remake_transformer(config, load_averaged(config.run_dir, step))
        torch.nn.Module.to(model, device)  # diffusers' own is typed for its decorator
        loss, accuracy = judge(model.eval(), held, seed, config.batch.per_device, device)
        seen = [line["mse"] for line in metrics if before < line["step"] <= step]
        points.append(Point(step=step, train_loss=float(np.mean(seen)), held_loss=loss, accuracy=accuracy))
        log.info("%s, step %s: held-out loss %.4f  accuracy %.3f", config.run_dir.name, f"{step:,}", loss, accuracy)
    write_whole(result, json.dumps({"points": [asdict(point) for point in points]}, indent=2).encode())
    for checkpoint in sorted((config.run_dir / FOLDER).glob("step-*"))[:-1]:  # each is as large as the model, fourfold
        shutil.rmtree(checkpoint)
    return points


def _train(config: TrainConfig) -> None:
    processes = check_devices(config.devices)
    if processes == 1:
        train(config)
        return
    file = config.run_dir.with_name(f"{config.run_dir.name}.yaml")
    write_whole(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    code = launch_processes(processes, "train.pixart", ["--config", str(file)], f"eval.{NAME}")
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise WorkError(f"{config.run_dir}: training ended with exit code {code}, as it says above")


def summarise(points: Mapping[str, Sequence[Sequence[Point]]]) -> dict[str, Any]:
    """The curves of both starts with their intervals over seeds, and the paired difference, pre-trained less random."""
    names = ("train_loss", "held_loss", "accuracy")
    curves = {start: {name: _curve(runs, name) for name in names} for start, runs in points.items()}
    difference = {
        name: _curve_of(_values(points[PRETRAINED], name) - _values(points[RANDOM], name), points) for name in names
    }
    return {"curves": curves, "difference": difference, "says": _say(difference)}


def _say(difference: Mapping[str, Mapping[int, Interval]]) -> dict[str, str]:
    """What the last point tells, for each measure that was held out."""

    def verdict(name: str, better: Callable[[float], bool]) -> str:
        last = difference[name][max(difference[name])]
        if last.low <= 0 <= last.high:
            return "no difference is shown"
        return "the pre-trained start is better" if better(last.mean) else "the pre-trained start is worse"

    return {
        "held_loss": verdict("held_loss", lambda mean: mean < 0),
        "accuracy": verdict("accuracy", lambda mean: mean > 0),
    }


def _values(runs: Sequence[Sequence[Point]], name: str) -> np.ndarray:
    """(seeds, points)."""
    return np.array([[getattr(point, name) for point in run] for run in runs], np.float64)


def _curve(runs: Sequence[Sequence[Point]], name: str) -> dict[int, Interval]:
    return {point.step: interval(column) for point, column in zip(runs[0], _values(runs, name).T, strict=True)}


def _curve_of(values: np.ndarray, points: Mapping[str, Sequence[Sequence[Point]]]) -> dict[int, Interval]:
    steps = [point.step for point in points[RANDOM][0]]
    return {step: interval(column) for step, column in zip(steps, values.T, strict=True)}


def interval(values: np.ndarray) -> Interval:
    """A mean over seeds with Student's interval of 95 %: of three values a bootstrap's would be far too narrow."""
    mean = float(values.mean())
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def draw(summary: Mapping[str, Any], seeds: int) -> Figure:
    """Losses and accuracy by the steps of training."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    titles = {
        "train_loss": "error in training",
        "held_loss": "error on held-out scenes",
        "accuracy": "own audio better than another's",
    }
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        curves = {f"{start} projector": summary["curves"][start][name] for start in STARTS}
        plot_intervals(axes, curves, "steps", title)
        axes.relim()
        axes.autoscale(axis="y")
        if name == "accuracy":
            axes.axhline(0.5, color="black", linestyle="--", linewidth=1)
    figure.suptitle(f"means of {seeds} seeds, Student's intervals of 95 %", fontsize=10)
    return figure


def _bind(out: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with runs of other settings, data or another projector."""
    path = out / SETTINGS
    now = {"digest": digest_of(json.loads(json.dumps(facts, default=str)))}
    if path.exists() and read_json(path) != now:
        raise InputError(f"--out: {out} has runs of other settings, data or another projector; choose another folder")
    write_whole(path, json.dumps(now).encode())


def _parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Does training gain by a projector that was pre-trained?",
        explain=explain_option(TrainConfig),
    )
    parser.add_argument(
        "--config", required=True, metavar="F", help="train.pixart's: a file, or the name of a shipped one"
    )
    parser.add_argument("--projector", type=Path, required=True, help="what train.projector wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, the picture and the JSON")
    parser.add_argument("--seed", type=int, default=0, help="of what is judged, not of training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each start (default: %(default)s)")
    parser.add_argument(
        "--points",
        type=int,
        default=5,
        help="at which runs are judged; a run keeps a checkpoint of each until it is (default: %(default)s)",
    )
    parser.add_argument("--items", type=int, default=256, help="held-out scenes at most (default: %(default)s)")
    parser.add_argument(
        "--split",
        choices=("validation", "train"),
        default="validation",
        help="`train` judges by what is learned: it tells of learning by heart (default: %(default)s)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None, prog: str = "eval.projector_start") -> int:
    """Run the study and return its exit code."""
    arguments = _parse(argv, prog)
    return run_command(prog, lambda: _study(arguments))


def _study(arguments: argparse.Namespace) -> None:
    base = load_settings(find_config(arguments.config, "train"), arguments.overrides, TrainConfig)
    for name, least in (("seeds", 2), ("points", 1), ("items", 2), ("seed", 0)):
        at_least(f"--{name}", getattr(arguments, name), least)
    model, projector, out = base.model, arguments.projector.resolve(), arguments.out.resolve()
    load_projector(str(projector), new_projection(model.caption_channels, model.width))  # does it fit?
    data = open_feature_data(base.data)
    held_data = open_feature_data(base.data.model_copy(update={"split": arguments.split}))
    vae = load_vae(fetch_model(base.vae, base.vae_revision, VAE_FILES), torch.device("cpu"), torch.float32)
    held = read_held(held_data, arguments.items, scaling_factor(vae), arguments.seed)
    check_out(out)
    steps = steps_of(base.max_steps, arguments.points)
    settings = {
        "config": base.model_dump(mode="json", exclude={"run_dir", "data", "log_every", "trackers"}),
        "projector_sha256": sha256_of(projector),
        "data": [data.digest, held_data.digest],
        "split": arguments.split,
        "scenes": len(held.keys),
        "timesteps": TIMESTEPS,
        "steps": steps,
        "seed": arguments.seed,
    }
    _bind(out, settings)
    seeds = [base.seed + n for n in range(arguments.seeds)]
    points: dict[str, list[list[Point]]] = {start: [] for start in STARTS}
    for seed in seeds:
        for start in STARTS:
            config = run_config(base, start, seed, projector, out, arguments.points)
            points[start].append(train_and_judge(config, held, steps, arguments.seed))
    summary = summarise(points)
    runs = {start: dict(zip(map(str, seeds), of_start, strict=True)) for start, of_start in points.items()}
    result = {"study": NAME, "settings": settings | {"seeds": seeds}, "items": runs, "summary": summary}
    write_study(out, NAME, result, draw(summary, len(seeds)))
    for name, words in summary["says"].items():
        last = summary["difference"][name][steps[-1]]
        log.info("%s: %s (%+.4f [%+.4f, %+.4f], pre-trained less random)", name, words, last.mean, last.low, last.high)
