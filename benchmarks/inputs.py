"""Seeded photos and recordings for the benchmarks of whole stages."""

import csv
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.image_decode import make_photo
from sonify.config import Config, make_config

SUBJECTS = (
    "dog", "cat", "church bell", "rain", "train", "rooster", "helicopter", "frog", "cow", "siren", "wind", "engine",
    "keyboard typing", "thunder", "footsteps", "applause", "sheep", "clock ticking", "sea waves", "bird chirping",
)  # fmt: skip
DIFFERENT_PHOTOS = 40
PHOTO_SIZE = (640, 480)  # 0.3 megapixels
RECORDINGS = 400
RECORDING_RATE_HZ = 44_100


def write_photos(folder: Path, count: int) -> None:
    """Write `count` JPEG files and captions that name one to three subjects."""
    folder.mkdir(parents=True)
    photos = [make_photo(*PHOTO_SIZE, seed) for seed in range(DIFFERENT_PHOTOS)]
    rng = np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "caption"))
        for n in range(count):
            (folder / f"{n:06d}.jpg").write_bytes(photos[n % len(photos)])
            named = rng.choice(SUBJECTS, 1 + n % 3, replace=False)
            table.writerow((f"{n:06d}.jpg", f"a photo of a {' and a '.join(named)}"))


def write_sounds(folder: Path) -> None:
    """Write recordings of five seconds at 44.1 kHz, of many loudnesses, and metadata.csv."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "text", "licence", "attribution"))
        for n in range(RECORDINGS):
            samples = rng.standard_normal(5 * RECORDING_RATE_HZ) * 10 ** rng.uniform(-3, -1)
            soundfile.write(folder / f"{n:04d}.flac", samples.clip(-1, 1), RECORDING_RATE_HZ)
            table.writerow((f"{n:04d}.flac", SUBJECTS[n % len(SUBJECTS)], "CC0-1.0", ""))


def config_for(root: Path, run: str, shard_size: int, engine: dict[str, object]) -> Config:
    """A run over `root/photos` and `root/sounds` with the default settings."""
    return make_config(
        {
            "run_dir": str(root / run),
            "images": {"kind": "folder", "path": str(root / "photos"), "shard_size": shard_size, "validation": 0},
            "audio": {"sources": [{"kind": "folder", "path": str(root / "sounds")}], "validation": 0},
            "engine": engine,
        }
    )
