"""The training loader, against webdataset as a user would set it up on the same shards.

Run as `python -m benchmarks.loader`; two minutes. Images of 512 pixels: latents (4, 64, 64), two scenes of (49, 768),
from the page cache. Both shuffle, read every member of a sample and give float32 batches. Ours also checks each
sample's sha256, every array's type and values, and makes noise, timesteps and drops, which with webdataset the training
loop would have to. Start-up is not counted.

`loader_remix` is the same loader on a run of `sonify`'s own, with scenes of three sounds mixed anew at each visit
(`data.scenes: remix`) against the stored ones, in turns; what AST takes of the device is not in it.

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
from sonify.config import Config
from sonify.config.loader import make_settings
from sonify.running import run
from tests.builders import SUBJECTS, small_config, write_photos, write_sounds
from tests.feature_runs import make_feature_run
from train.config import TrainConfig
from train.loader import make_loader
from train.scenes import prepare_remix
from train.shards import open_feature_data
from train.tiny import write_tiny_ast, write_tiny_vae

IMAGES = 1024
UNITS = 8
SCENES = ("cogvlm", "llava")
PER_DEVICE = 40
BATCHES = 50  # that are timed
ROUNDS = 3
REMIXED = 96  # images of the run that is mixed anew
RECORDINGS = 256  # of its pool
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


def sonified(root: Path) -> Config:
    """A run whose images have scenes of three sounds, each drawn among a hundred clips; its networks are tiny."""
    captions = [" and ".join(SUBJECTS[(n + k) % len(SUBJECTS)] for k in (0, 2, 5)) for n in range(REMIXED)]
    write_photos(root / "photos", {f"{n:04d}.jpg": f"a {caption}" for n, caption in enumerate(captions)})
    write_sounds(root / "sounds", {f"{n:04d}.flac": SUBJECTS[n % len(SUBJECTS)] for n in range(RECORDINGS)})
    networks = {"vae": str(write_tiny_vae(root / "vae")), "ast": str(write_tiny_ast(root / "ast"))}
    config = small_config(
        root, images={"shard_size": REMIXED // 4}, retrieval={"top_k_share": None}, features={"size": 512, **networks}
    )
    run(config)
    return config


def of_scenes(scenes: str, config: Config, workers: int, out: Path) -> Iterator[Any]:
    """Batches of a run with its scenes as they are stored, or mixed anew."""
    assert config.features is not None
    raw = {
        "run_dir": str(out),
        "max_steps": 1_000_000,
        "data": {"runs": [str(config.run_dir)], "workers": workers, "scenes": scenes},
        "ast": config.features.ast,
        "batch": {"total": PER_DEVICE, "per_device": PER_DEVICE},
    }
    training = make_settings(raw, TrainConfig)
    data = open_feature_data(training.data)
    remix = prepare_remix(training, data) if scenes == "remix" else None
    return make_loader(data, training, 0.18215, start_step=0, rank=0, world=1, remix=remix)


def compare_scenes(root: Path) -> None:
    """Print the rates of both, for one worker and for two."""
    config = sonified(root)
    for workers in (1, 2):
        rates: dict[str, list[float]] = {"remix": [], "stored": []}
        for _ in range(ROUNDS):
            for scenes, found in rates.items():
                found.append(measure_rate(of_scenes(scenes, config, workers, root / "training")))
        remix, stored = (statistics.median(found) for found in rates.values())
        h200s = round(remix / GPU_IMAGES_PER_SEC, 1)
        report("loader_remix", remix, stored, "images/s", workers=workers, h200s_fed=h200s)


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
        made = make_feature_run(
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
                    rates[way.__name__].append(measure_rate(way(made, workers)))
            of_ours, of_plain = (statistics.median(rates[way.__name__]) for way in ways)
            h200s = round(of_ours / GPU_IMAGES_PER_SEC, 1)
            report("loader", of_ours, of_plain, "images/s", workers=workers, h200s_fed=h200s)
        waits = [measure_wait_share(way(made, 1)) for way in ways]
        compare_scenes(Path(folder, "sonified"))
        print(json.dumps({"name": "loader_wait_share", "ours": waits[0], "theirs": waits[1], "workers": 1}))
