"""Real files made small, for every test that needs images, sounds or a whole run."""

import csv
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from sonify.config import Config, make_config


def picture(seed: int = 0, size: tuple[int, int] = (48, 32), image_format: str = "JPEG") -> bytes:
    """A small smooth picture, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(buffer, image_format)
    return buffer.getvalue()


def tone(seed: int = 0, seconds: float = 5.0, sample_rate_hz: int = 16000) -> np.ndarray:
    """A decaying tone with a little noise, different for each seed: (samples,) float64."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    hum = np.sin(2 * np.pi * (200 + 37 * (seed % 50)) * time) * np.exp(-time / seconds)
    return 0.3 * hum + 0.01 * rng.standard_normal(len(time))


def write_photos(folder: Path, captions: Mapping[str, str], table: bool = True) -> Path:
    """Write a picture for each file name; captions go into captions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(captions):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed))
    if table:
        with (folder / "captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "caption"), *captions.items()])
    return folder


def write_sounds(folder: Path, texts: Mapping[str, str], seconds: float = 5.0) -> Path:
    """Write a tone for each file name, and metadata.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(texts):
        soundfile.write(folder / name, tone(seed, seconds), 16000)
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = [(name, text, "CC0-1.0", f"by {n}") for n, (name, text) in enumerate(texts.items())]
        csv.writer(file).writerows([("file", "text", "licence", "attribution"), *rows])
    return folder


SUBJECTS = ("dog", "cat", "church bell", "rain", "train", "rooster", "helicopter", "frog")


def small_input(root: Path, photos: int = 24, recordings: int = 16) -> tuple[Path, Path]:
    """Photos and sounds of a few subjects, in folders below `root`."""
    captions = {f"{n:03d}.jpg": f"a photo of a {SUBJECTS[n % len(SUBJECTS)]}" for n in range(photos)}
    texts = {f"{n:03d}.flac": SUBJECTS[n % len(SUBJECTS)] for n in range(recordings)}
    return write_photos(root / "photos", captions), write_sounds(root / "sounds", texts)


def small_config(root: Path, run: str = "run", **sections: object) -> Config:
    """A run over `small_input`, in this process, of units of 8 photos; sections replace whole sections."""
    base: dict[str, object] = {
        "run_dir": str(root / run),
        "images": {"kind": "folder", "path": str(root / "photos"), "shard_size": 8, "validation": 0},
        "audio": {"sources": [{"kind": "folder", "path": str(root / "sounds")}], "validation": 0},
        "engine": {"kind": "local"},
    }
    return make_config(base | sections)


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write an archive as anyone would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path
