"""The training loader, against webdataset as a user would set it up on the same shards.

Run as `python -m benchmarks.loader`; a minute. Images of 512 pixels: latents (4, 64, 64), two scenes of (49, 768), from
the page cache. Both shuffle, read every member of a sample and give float32 batches. Ours also checks each sample's
sha256, every array's type and values, and makes noise, timesteps and drops, which with webdataset the training loop
would have to. Start-up is not counted.

The last line plays a GPU: a consumer that takes a batch and sleeps as long as an H200 would need for it (108 images/s,
half of its matrix-product peak: a derived figure, no GPU was there), and how long it waits for the next.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.loader", extra="dev"))

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from webdataset.compat import WebDataset, WebLoader

from benchmarks.measure import report
from sonify.config.loader import make_settings
from tests.feature_runs import make_feature_run
from train.config import TrainConfig
from train.loader import make_loader
from train.shards import open_feature_data

IMAGES = 1024
UNITS = 8
SCENES = ("cogvlm", "llava")
PER_DEVICE = 40
BATCHES = 50  # that are timed
ROUNDS = 3
GPU_IMAGES_PER_SEC = 108


def ours(run: Path, workers: int) -> Iterator[Any]:
    raw = {
        "run_dir": "unused",
        "max_steps": 1_000_000,
        "data": {"runs": [str(run)], "workers": workers},
        "batch": {"total": PER_DEVICE, "per_device": PER_DEVICE},
    }
    config = make_settings(raw, TrainConfig)
    return make_loader(open_feature_data(config.data), config, 0.18215, start_step=0, rank=0, world=1)


def plain(run: Path, workers: int) -> Iterator[Any]:
    shards = [str(path) for path in sorted(run.glob("features/train/*.tar"))]
    dataset = (
        WebDataset(shards, shardshuffle=len(shards))
        .repeat()
        .shuffle(1000)  # pyright: ignore[reportAttributeAccessIssue] - `repeat` is typed as a plainer class
        .decode()
        .map(_choose_scene)
        .batched(PER_DEVICE, partial=False)
    )
    return iter(WebLoader(dataset, batch_size=None, num_workers=workers))


def _choose_scene(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    audio = sample[f"{np.random.choice(SCENES)}.audio.npy"]
    return torch.from_numpy(sample["latent.npy"]).float() * 0.18215, torch.from_numpy(audio).float()


def measure_rate(batches: Iterator[Any]) -> float:
    """Images a second, from the first batch on."""
    next(batches)
    start = time.perf_counter()
    for _ in islice(batches, BATCHES):
        pass
    return PER_DEVICE * BATCHES / (time.perf_counter() - start)


def measure_wait_share(batches: Iterator[Any]) -> float:
    """The share of its time that a consumer of a GPU's speed waits for the next batch."""
    next(batches)
    waited = 0.0
    start = time.perf_counter()
    for _ in range(BATCHES // 2):
        time.sleep(PER_DEVICE / GPU_IMAGES_PER_SEC)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - start)


def main(_argv: Sequence[str] | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = make_feature_run(
            Path(folder, "run"),
            num_images=IMAGES,
            units=UNITS,
            scenes=SCENES,
            latent_shape=(4, 64, 64),
            audio_shape=(49, 768),
        )
        ways: tuple[Callable[[Path, int], Iterator[Any]], ...] = (ours, plain)
        for workers in (1, 2):
            rates: dict[str, list[float]] = {way.__name__: [] for way in ways}
            for _ in range(ROUNDS):
                for way in ways:
                    rates[way.__name__].append(measure_rate(way(run, workers)))
            of_ours, of_plain = (statistics.median(rates[way.__name__]) for way in ways)
            h200s = round(of_ours / GPU_IMAGES_PER_SEC, 1)
            report("loader", of_ours, of_plain, "images/s", workers=workers, h200s_fed=h200s)
        waits = [measure_wait_share(way(run, 1)) for way in ways]
        print(json.dumps({"name": "loader_wait_share", "ours": waits[0], "theirs": waits[1], "workers": 1}))
