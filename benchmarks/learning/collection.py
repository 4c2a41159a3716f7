"""The photographs and recordings that are learned from: six classes, recordings in five folds."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonify.media.audio import decode_flac
from sonify.media.mixing import gain_to_target_db, measure_loudness, mix_clips
from sonify.media.pixels import decode_square

CLASSES = ("cat", "chirping_birds", "dog", "engine", "insects", "sea_waves")
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


def read_photos(folder: Path) -> list[Photo]:
    """The rows of photos.csv."""
    return [Photo(file=row["file"], name=row["class"], label=row["label"]) for row in _rows(folder / "photos.csv")]


def read_recordings(folder: Path) -> list[Recording]:
    """The rows of sounds.csv."""
    rows = _rows(folder / "sounds.csv")
    return [Recording(file=row["file"], name=row["class"], fold=int(row["fold"])) for row in rows]


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def read_levelled(path: Path) -> np.ndarray:
    """A recording's (frames,) int16 samples, as loud as a scene of one source."""
    samples, rate = decode_flac(path.read_bytes())
    assert rate == SAMPLE_RATE_HZ, path
    gain_db = gain_to_target_db(measure_loudness(samples, rate), TARGET_LUFS, MAX_GAIN_DB)
    return mix_clips([samples], [gain_db], PEAK_DBFS).samples


def read_squares(paths: Sequence[Path], side: int) -> np.ndarray:
    """Photographs as (N, side, side, 3) uint8, cut as `sonify features` cuts them."""
    return np.stack([decode_square(path.read_bytes(), side) for path in paths])
