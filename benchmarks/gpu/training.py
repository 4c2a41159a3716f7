"""Steps of training: their rate, the share of the peak, memory against the estimate, saving.

A step here is two micro-batches, an update and the average: what one of eight GPUs does for the paper's 640 images.
"""

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.gpu.report import Figure
from benchmarks.gpu.room import Room
from sonify.config.loader import make_settings
from sonify.errors import WorkError
from tests.feature_runs import make_feature_run
from train.checkpoints import FOLDER, Saver
from train.config import TrainConfig
from train.device import device_bytes, forget, peak_bytes, reset_peak
from train.launch import start_accelerator
from train.memory import GB, checkpoint_bytes, count_parameters, estimate_memory
from train.metrics import forward_flops, matmul_peak_flops
from train.model import init_transformer
from train.shards import open_feature_data
from train.trial import Trainee, make_batch

MICRO_BATCHES = 2
BUDGET = 0.8  # of activations, as the paper's configuration has it
NOISE = 0.01  # on every weight: those that begin as zero would spare a GPU work and power


def step(room: Room) -> Iterator[Figure]:
    """Compiled blocks in bfloat16 within a budget, as `configs/train/pixart_xl_512.yaml` has them."""
    peak = matmul_peak_flops(room.device, torch.bfloat16)
    yield Figure(name="matrix products, bfloat16", value=round(peak / 1e12, 3), unit="TFLOP/s")
    yield Figure(name="parameters", value=count_parameters(room.sizes.model))
    yield from _first_that_fits(room, {"compile": True, "activation_memory_budget": BUDGET}, peak)


def memory(room: Room) -> Iterator[Figure]:
    """The other ways of computing the same, for what they take and what they are worth."""
    peak = matmul_peak_flops(room.device, torch.bfloat16)
    yield from _first_that_fits(room, {"compile": True}, peak)
    yield from _first_that_fits(room, {"compile": True, "recompute": True}, peak)
    yield from _first_that_fits(room, {"compile": False}, peak)


def checkpoint(room: Room) -> Iterator[Figure]:
    """What a step waits for each `checkpoints.every` steps, and how long a thread then writes, syncs and hashes."""
    config = _config(room, 1, {"compile": False})
    needed, stat = checkpoint_bytes(config), os.statvfs(room.folder)
    if stat.f_bavail * stat.f_frsize < 1.2 * needed:
        raise WorkError(f"{room.folder}: needs {1.2 * needed / GB:.1f} GB for one checkpoint")
    run = make_feature_run(room.folder / "data", num_images=8)
    data = open_feature_data(config.data.model_copy(update={"runs": (run,)}))
    trainee = _trainee(config, room)
    trainee.step([make_batch(config, room.sizes.condition_vectors)])  # the moments are there after one step
    with Saver(config, data, trainee.learner) as saver:
        saver.save(1)
        saver.wait()
        started = time.perf_counter()
        saver.save(1)  # into memory that the first one took
        waited = time.perf_counter() - started
        saver.wait()
        seconds = time.perf_counter() - started
    files = [path for path in (config.run_dir / FOLDER).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    yield Figure(name="a step waits for the copy", value=round(waited, 3), unit="s")
    yield Figure(name="saving a checkpoint", value=round(seconds, 2), unit="s")
    yield Figure(name="size of a checkpoint", value=round(size / GB, 3), unit="GB")
    yield Figure(name="estimated size", value=round(needed / GB, 3), unit="GB")
    yield Figure(name="rate of saving", value=round(size / GB / seconds, 3), unit="GB/s")


def _first_that_fits(room: Room, settings: dict[str, Any], peak_flops: float) -> Iterator[Figure]:
    """Steps of the most images at once that fit: by the estimate, and where that is too low by trying fewer."""
    available = device_bytes(room.device)
    way = "compiled" if settings["compile"] else "not compiled"
    way += ", recomputing" if settings.get("recompute") else ""
    way += f", within {settings['activation_memory_budget']:g}" if "activation_memory_budget" in settings else ""
    for per_device in room.sizes.per_device:
        config = _config(room, per_device, settings)
        estimate = estimate_memory(config, room.sizes.condition_vectors)
        if available is not None and estimate.total > available:
            continue
        try:
            figures = _measure_steps(config, room, peak_flops)
        except torch.OutOfMemoryError:
            note = f"{estimate.total / GB:.1f} GB were estimated"
            yield Figure(name=f"{way}: does not fit", value=per_device, unit="images at once", note=note)
        else:
            for figure in figures:
                yield Figure(name=f"{way}: {figure.name}", value=figure.value, unit=figure.unit, note=figure.note)
            return
        finally:
            forget(room.device)
    raise WorkError(f"{way}: not even {room.sizes.per_device[-1]} images at once fit")


def _measure_steps(config: TrainConfig, room: Room, peak_flops: float) -> list[Figure]:
    vectors = room.sizes.condition_vectors
    batches = [make_batch(config, vectors, seed).to(room.device) for seed in range(MICRO_BATCHES)]
    counters.clear()
    trainee = _trainee(config, room)
    reset_peak(room.device)
    first = trainee.step(batches)
    steps = [trainee.step(batches) for _ in range(room.sizes.steps)]
    seconds = statistics.median(each.seconds for each in steps)
    rate = MICRO_BATCHES * config.batch.per_device / seconds
    share = rate * 3 * forward_flops(config.model, vectors) / peak_flops
    figures = [
        Figure(name="rate", value=round(rate, 2), unit="images/s"),
        Figure(name="share of the measured peak", value=round(share, 3)),
        Figure(name="images at once", value=config.batch.per_device),
        Figure(name="first step", value=round(first.seconds, 2), unit="s"),
        Figure(name="loss of the last step", value=round(steps[-1].loss, 4)),
    ]
    estimated, peak = estimate_memory(config, vectors), peak_bytes(room.device)
    if peak is not None:
        error = estimated.allocated / peak - 1
        figures += [Figure(name="allocated at the peak", value=round(peak / GB, 2), unit="GB", note=f"{error:+.1%}")]
    if config.compile:
        breaks = counters["graph_break"]
        why = "; ".join(f"{reason}: {count}" for reason, count in breaks.items())
        figures.append(Figure(name="graphs compiled", value=counters["stats"]["unique_graphs"]))
        figures.append(Figure(name="graph breaks", value=sum(breaks.values()), note=why))
    return [*figures, Figure(name="estimated for that", value=round(estimated.allocated / GB, 2), unit="GB")]


def _config(room: Room, per_device: int, settings: dict[str, Any]) -> TrainConfig:
    raw = {
        "run_dir": str(room.folder / "run"),
        "max_steps": 1,
        "data": {"runs": [str(room.folder)]},
        "batch": {"total": MICRO_BATCHES * per_device, "per_device": per_device},
        "trackers": [],
    }
    config = make_settings(raw, TrainConfig)
    return config.model_copy(update={"model": room.sizes.model, **settings})


def _trainee(config: TrainConfig, room: Room) -> Trainee:
    transformer, _ = init_transformer(config.model, seed=0)
    nn.Module.to(transformer, room.device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    null_TD = torch.zeros(room.sizes.condition_vectors, config.model.caption_channels)
    return Trainee(config, start_accelerator(config), transformer, null_TD)
