"""The photographs and recordings that are learned from: six classes, recordings in five folds, and a pool of others."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sonify.media.audio import decode_flac
from sonify.media.mixing import gain_to_target_db, measure_loudness, mix_clips
from sonify.media.pixels import decode_square

CLASSES = ("cat", "chirping_birds", "dog", "engine", "insects", "sea_waves")
# Classes of the pool that a person would accept for some photographs of a class: neither right nor foreign.
NEAR = {"chirping_birds": ("crow", "hen", "rooster"), "insects": ("crickets",)}
SAMPLE_RATE_HZ = 16_000
# The middle of what `sonify` draws from, and its other defaults: every sound is as loud as one of its scenes.
TARGET_LUFS, MAX_GAIN_DB, PEAK_DBFS = -30.0, 30.0, -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """`file` is relative to the photographs' folder; `label` is ImageNet's name of what it shows."""

    file: str
    name: str  # of its class
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """`file` is relative to the recordings' folder."""

    file: str
    name: str  # of its class
    fold: int

    @property
    def upload(self) -> str:
        """What takes of one sound have in common: ESC-50's `5-9032-B-0.flac` is a take of upload 9032."""
        return Path(self.file).name.split("-")[1]


def read_photos(folder: Path) -> list[Photo]:
    """The rows of photos.csv."""
    return [Photo(file=row["file"], name=row["class"], label=row["label"]) for row in _rows(folder / "photos.csv")]


def read_recordings(folder: Path) -> list[Recording]:
    """The rows of sounds.csv."""
    rows = _rows(folder / "sounds.csv")
    return [Recording(file=row["file"], name=row["class"], fold=int(row["fold"])) for row in rows]


def read_distractors(folder: Path, recordings: Sequence[Recording]) -> list[Recording]:
    """The recordings of a folder's metadata.csv that are of other classes than the six, and of other uploads."""
    rows = _rows(folder / "metadata.csv")
    others = [Recording(file=row["file"], name=row["class"], fold=int(row["fold"])) for row in rows]
    uploads = {recording.upload for recording in recordings}
    return [one for one in others if one.name not in CLASSES and one.upload not in uploads]


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def read_levelled(path: Path, target_lufs: float = TARGET_LUFS) -> np.ndarray:
    """A recording's (frames,) int16 samples, as loud as a scene of one source."""
    samples, loudness_lufs = _measured(path)
    gain_db = gain_to_target_db(loudness_lufs, target_lufs, MAX_GAIN_DB)
    return mix_clips([samples], [gain_db], PEAK_DBFS).samples


def mix_levelled(paths: Sequence[Path], targets_lufs: Sequence[float]) -> np.ndarray:
    """Several recordings together, each at its own loudness, as (frames,) int16 samples."""
    measured = [_measured(path) for path in paths]
    gains_db = [gain_to_target_db(lufs, to, MAX_GAIN_DB) for (_, lufs), to in zip(measured, targets_lufs, strict=True)]
    return mix_clips([samples for samples, _ in measured], gains_db, PEAK_DBFS).samples


@lru_cache(maxsize=1024)
def _measured(path: Path) -> tuple[np.ndarray, float]:
    samples, rate = decode_flac(path.read_bytes())
    assert rate == SAMPLE_RATE_HZ, path
    return samples, measure_loudness(samples, rate)


def read_squares(paths: Sequence[Path], side: int) -> np.ndarray:
    """Photographs as (N, side, side, 3) uint8, cut as `sonify features` cuts them."""
    return np.stack([decode_square(path.read_bytes(), side) for path in paths])
