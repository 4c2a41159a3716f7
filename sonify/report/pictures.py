"""What the gallery shows: figures of a whole run, the images that are chosen, and their previews, sounds, spectrograms.

One pass over a run's tables holds a unit at a time, and beyond it the chosen images and the names of clips in use.
"""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
from PIL import Image
from soundfile import LibsndfileError

from sonify import layout
from sonify.errors import InputError, WorkError
from sonify.installed import spell, spell_again
from sonify.io.machine import usable_cpus
from sonify.io.places import open_place, stems
from sonify.io.tables import read_rows
from sonify.io.tars import Member, index_tar, read_member
from sonify.keys import hash64, member_name, split_member
from sonify.media.audio import decode_flac
from sonify.media.mixing import is_cut_off
from sonify.media.pixels import UnreadableImage, decode_rgb
from sonify.pool import iter_clips
from sonify.rows import Clip, Pair, Render
from sonify.stages.evidence import weaknesses
from sonify.stores import Place

COSINE_STEP = 0.05
GAIN_STEP_DB = 2.0
PREVIEW_PX = (640, 480)  # longer and shorter side at most
SPECTROGRAM_PX = (640, 96)
# Equal steps of OKLab lightness from ink over teal and sand to cream, so that equal steps in dB look equal.
# The dark end is not black: it reads as a screen on a white page and as a panel on a dark one.
ANCHORS_RGB = (
    (6, 13, 28),
    (17, 37, 75),
    (19, 73, 99),
    (5, 109, 119),
    (32, 148, 125),
    (114, 180, 116),
    (208, 201, 98),
    (248, 220, 134),
    (253, 247, 225),
)
LOWEST_HZ = 40.0
WINDOW_SEC = 0.032
RANGE_DB = 70.0
# Blocks that stay in the cache, and below the size for which the allocator asks the system: four times as fast.
WINDOWS_AT_ONCE = 64
# The brightest colour is the sound's loudest point, but never below this: hiss must not look like a storm.
DIMMEST_PEAK_DBFS = -60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownScene:
    """One soundscape of an image: what was paired and what rendering did."""

    pair: Pair
    render: Render


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A rendered image with all its scenes; the unit names its shard."""

    key: str
    unit: str
    split: str
    scenes: tuple[ShownScene, ...]


@dataclass(slots=True, kw_only=True)
class Summary:
    """Figures of a whole run; `clips` are those that are heard, `by_text` says what compared them.

    The histograms count steps: bin 3 of `cosines` starts at 3 * COSINE_STEP.
    """

    run: str
    by_text: bool = False
    images: int = 0
    scenes: int = 0
    limited_scenes: int = 0
    cut_scenes: int = 0
    weak_sounds: int = 0
    clips: set[str] = field(default_factory=set)
    concepts_in_scene: Counter[int] = field(default_factory=Counter)
    cosines: Counter[int] = field(default_factory=Counter)
    gains_db: Counter[int] = field(default_factory=Counter)

    def add(self, picture: Picture) -> None:
        """Count an image, its scenes and their sources."""
        self.images += 1
        self.scenes += len(picture.scenes)
        self.limited_scenes += sum(scene.render.mix_gain_db < 0 for scene in picture.scenes)
        self.cut_scenes += sum(is_cut_off(scene.render.mix_gain_db, scene.render.peak_dbfs) for scene in picture.scenes)
        for scene in picture.scenes:
            self.concepts_in_scene[len(scene.pair.sources)] += 1
            for source in scene.pair.sources:
                self.clips.add(source.clip)
                self.weak_sounds += bool(weaknesses(source, self.by_text))
                self.cosines[math.floor(source.cosine / COSINE_STEP)] += 1
                self.gains_db[math.floor(source.gain_db / GAIN_STEP_DB)] += 1


def survey_run(run_dir: Place, num_pictures: int, by_text: bool) -> tuple[Summary, list[Picture]]:
    """Return the run's figures and the `num_pictures` images with the lowest hash, sorted by key."""
    summary = Summary(run=run_dir.resolve().name, by_text=by_text)
    chosen: list[tuple[int, str, Picture]] = []
    for unit in stems(run_dir / layout.RENDERS):
        pictures = _read_unit(run_dir, unit)
        for picture in pictures:
            summary.add(picture)
        candidates = ((hash64("gallery", picture.key), picture.key, picture) for picture in pictures)
        chosen = heapq.nsmallest(num_pictures, chain(chosen, candidates), key=itemgetter(0, 1))
    if not chosen:
        raise InputError(f"{run_dir}: no rendered images to show; make them with `{spell_again()}`")
    return summary, [picture for _, _, picture in sorted(chosen, key=itemgetter(1))]


def _read_unit(run_dir: Place, unit: str) -> list[Picture]:
    rendered = {(row.image, row.scene): row for row in read_rows(run_dir / layout.renders(unit), Render)}
    pairs = run_dir / layout.pairs(unit)
    scenes: dict[str, list[ShownScene]] = {}
    for pair in read_rows(pairs, Pair):
        if render := rendered.pop((pair.image, pair.scene), None):
            scenes.setdefault(pair.image, []).append(ShownScene(pair=pair, render=render))
    if rendered:
        raise WorkError(f"{pairs}: lacks {len(rendered)} rendered scenes; run `{spell('verify', run_dir)}`")
    return [
        Picture(key=key, unit=unit, split=found[0].pair.split, scenes=tuple(found)) for key, found in scenes.items()
    ]


def clips_of(run_dir: Place, pictures: Sequence[Picture]) -> dict[str, Clip]:
    """Return the pool's clips that the pictures use, by id, and the near misses that it has."""
    pairs = [scene.pair for picture in pictures for scene in picture.scenes]
    wanted = {source.clip for pair in pairs for source in pair.sources}
    near = {refused.clip for pair in pairs for refused in pair.refused}  # in a rendering, of somebody else's pool
    clips = {row.clip: row for row in iter_clips(run_dir) if row.clip in wanted or row.clip in near}
    if missing := wanted - clips.keys():
        raise WorkError(
            f"{run_dir / layout.CLIPS}: lacks {len(missing)} clips that pairs use, such as {min(missing)};"
            f" run `{spell('verify', run_dir)}`"
        )
    return clips


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Files of one scene, relative to the gallery."""

    audio: str
    spectrogram: str
    duration_sec: float
    sample_rate_hz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Files of one image, relative to the gallery; the size is the preview's, sounds are in scene order."""

    preview: str
    width: int
    height: int
    sounds: tuple[Sound, ...]


def write_media(run_dir: Place, pictures: Sequence[Picture], folder: Path) -> list[Media]:
    """Write the files of every picture under FOLDER/media, numbered in the pictures' order."""
    (folder / "media").mkdir()
    members = _locate(run_dir, pictures)

    def write(number: int, picture: Picture) -> Media:
        files = [members[name] for name in _member_names(picture)]
        # Numbered, because a key may be longer than a file name can be.
        return _write_picture(run_dir / _shard(picture), files, folder, f"media/{number:06d}")

    with ThreadPoolExecutor(usable_cpus()) as pool:  # decoding, encoding and FFTs run outside the interpreter's lock
        return list(pool.map(write, range(1, len(pictures) + 1), pictures))


def _shard(picture: Picture) -> str:
    return layout.shard(picture.split, picture.unit)


def _member_names(picture: Picture) -> list[tuple[str, str]]:
    endings = ("jpg", *(f"{scene.pair.scene}.flac" for scene in picture.scenes))
    return [(picture.key, ending) for ending in endings]


def _locate(run_dir: Place, pictures: Sequence[Picture]) -> dict[tuple[str, str], Member]:
    """Find all members that are needed, by key and ending, walking each shard's headers once."""
    wanted: dict[str, set[tuple[str, str]]] = {}
    for picture in pictures:
        wanted.setdefault(_shard(picture), set()).update(_member_names(picture))
    located: dict[tuple[str, str], Member] = {}
    for shard, names in wanted.items():
        try:
            members, _ = index_tar(run_dir / shard, shard)
        except OSError as error:
            raise WorkError(
                f"{run_dir / shard}: not readable ({error.strerror}); run `{spell('verify', run_dir)}`"
            ) from error
        found = ((split_member(member.name), member) for member in members)
        located |= {name: member for name, member in found if name in names}
        if missing := names - located.keys():
            lost = member_name(*min(missing))
            raise WorkError(f"{run_dir / shard}: lacks {lost}; run `{spell('verify', run_dir)}`")
    return located


def _write_picture(shard: Place, members: Sequence[Member], folder: Path, stem: str) -> Media:
    with open_place(shard) as file:
        image, *sounds = [read_member(file, member) for member in members]
    try:
        preview = _preview(image)
        written = tuple(_write_sound(data, folder, f"{stem}-{n}") for n, data in enumerate(sounds, start=1))
    except (UnreadableImage, LibsndfileError) as error:
        raise WorkError(
            f"{shard}: {members[0].name} or its sounds are damaged; run `{spell('verify', 'RUN')}`"
        ) from error
    preview.save(folder / f"{stem}.jpg", quality=82)
    return Media(preview=f"{stem}.jpg", width=preview.width, height=preview.height, sounds=written)


def _preview(data: bytes) -> Image.Image:
    image = decode_rgb(data, min_side=min(PREVIEW_PX))
    image.thumbnail((max(PREVIEW_PX), max(PREVIEW_PX)))
    return image


def _write_sound(data: bytes, folder: Path, stem: str) -> Sound:
    samples, sample_rate_hz = decode_flac(data)
    (folder / f"{stem}.flac").write_bytes(data)
    picture = spectrogram_image(samples / np.float32(2**15), sample_rate_hz, *SPECTROGRAM_PX)
    # At this quality as good to the eye as WebP, in a tenth of the time.
    picture.save(folder / f"{stem}-spectrogram.jpg", quality=80)
    return Sound(
        audio=f"{stem}.flac",
        spectrogram=f"{stem}-spectrogram.jpg",
        duration_sec=round(len(samples) / sample_rate_hz, 3),
        sample_rate_hz=sample_rate_hz,
    )


def spectrogram_image(samples: np.ndarray, sample_rate_hz: int, width: int, height: int) -> Image.Image:
    """Draw mono samples in [-1, 1]; a row of pixels is a mel band, from 40 Hz up to half the sample rate."""
    bands = _band_power(samples.astype(np.float32, copy=False), sample_rate_hz, width, height)
    level_db = 10.0 * np.log10(np.maximum(bands, 1e-20)).T
    top_db = max(float(level_db.max()), DIMMEST_PEAK_DBFS)
    shade = np.clip((level_db - top_db) * (255.0 / RANGE_DB) + 255.0, 0.0, 255.0).astype(np.uint8)
    return Image.fromarray(_colours()[shade[::-1]])


def _band_power(samples: np.ndarray, sample_rate_hz: int, width: int, height: int) -> np.ndarray:
    """Power by column and mel band, lowest first; 1.0 is a sine of full scale in a narrow band.

    A column of a long sound is the loudest of several windows, so that no click falls between two columns.
    """
    window_size = 1 << round(np.log2(WINDOW_SEC * sample_rate_hz))
    windows_in_column = max(1, -(-len(samples) // (width * window_size // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, window_size // 2), window_size)
    starts = np.linspace(0, max(len(samples) - 1, 0), width * windows_in_column).astype(np.int64)
    columns = starts.reshape(width, windows_in_column)
    at_once = max(1, WINDOWS_AT_ONCE // windows_in_column)
    edges = _band_edges(sample_rate_hz, window_size, height)
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window_size) / window_size)
    taper = (hann * 2.0 / hann.sum()).astype(np.float32)  # a sine of full scale has the power 1 in its bin
    bands: list[np.ndarray] = []
    for first in range(0, width, at_once):
        spectrum = np.fft.rfft(windows[columns[first : first + at_once]] * taper)
        bands.append(_mel_bands((spectrum.real**2 + spectrum.imag**2).max(axis=1), *edges))
    return np.concatenate(bands)


def _band_edges(sample_rate_hz: int, window_size: int, num_bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each mel band begins and ends, lowest first, in bins; bin k spreads from k to k + 1.

    Where bands are narrower than a bin, at low frequencies, they reach one bin to each side, which blends
    neighbours instead of drawing steps.
    """
    edges_mel = np.linspace(_mel(LOWEST_HZ), _mel(sample_rate_hz / 2.0), num_bands + 1)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    edges_bin = edges_hz * window_size / sample_rate_hz + 0.5
    centres = (edges_bin[1:] + edges_bin[:-1]) / 2.0
    reach = np.maximum(np.diff(edges_bin) / 2.0, 1.0)
    num_bins = window_size // 2 + 1
    return np.clip(centres - reach, 0.0, num_bins), np.clip(centres + reach, 0.0, num_bins)


def _mel_bands(power: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mean power between band edges, by column.

    Differences of the running sum over frequency: a product with a matrix of filters wakes a BLAS thread on
    every core for each picture, and doubled the gallery's CPU time.
    """
    running = np.zeros((power.shape[0], power.shape[1] + 2))
    np.cumsum(power, axis=1, dtype=np.float64, out=running[:, 1:-1])
    running[:, -1] = running[:, -2]

    def sum_to(position: np.ndarray) -> np.ndarray:
        below = position.astype(np.int64)
        return running[:, below] + (position - below) * (running[:, below + 1] - running[:, below])

    return ((sum_to(high) - sum_to(low)) / (high - low)).astype(np.float32)


def _mel(frequency_hz: float) -> float:
    return 2595.0 * float(np.log10(1.0 + frequency_hz / 700.0))


def _colours() -> np.ndarray:
    """The anchors interpolated to 256 colours."""
    positions = np.linspace(0.0, len(ANCHORS_RGB) - 1.0, 256)
    channels = [
        np.interp(positions, np.arange(len(ANCHORS_RGB)), channel) for channel in zip(*ANCHORS_RGB, strict=True)
    ]
    return np.stack(channels, axis=1).round().astype(np.uint8)
