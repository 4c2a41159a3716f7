"""Reverberation: what does the room in which a sound is heard change in the picture?

    python -m eval.reverberation --model DIR --audio clap.wav --out DIR
    python -m eval.reverberation --model DIR --recordings FOLDER --out DIR

A dry sound is put into rooms of growing RT60 by their simulated responses, or, with --recordings, real recordings are
taken: FOLDER/<room>/ holds those of one room. All are brought to one loudness. Writes reverberation.png and
reverberation.json with the class scores of the sound and of each room, and the distances of the features between
rooms. Needs a released model and a CLIP.

    B  images (one a seed and recording), L  labels (the sound, then the rooms), R  rooms, S  samples, T D  times and
    width
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.reverberation", extra="eval"))

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyroomacoustics
from matplotlib.figure import Figure
from PIL import Image
from pyroomacoustics.experimental import measure_rt60
from scipy.signal import fftconvolve
from scipy.spatial.distance import cdist

from eval.figures import Interval, image_grid, mean_interval, plot_intervals
from eval.studio import PictureParser, Studio, check_arguments, check_labels, open_studio
from eval.study import label_sounds, read_heard, run_study, spoken, write_study
from sonify.errors import InputError
from sonify.media.clips import CutClip
from train.windows import SAMPLE_RATE_HZ, TARGET_LUFS, make_windows

log = logging.getLogger(__name__)

DRY = "no room"
SHOWN = 4
CURVES_INCHES = 2.8
# The level, under a full scale, to which a wall must have taken a sound before its further images are left out.
DECAY_DB = 60.0
# The decay that RT60 is told from; at the end of a response, later images are missing.
MEASURED_DECAY_DB = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A box of length, width and height in metres, of which every surface takes `absorption` of a sound's energy."""

    name: str
    size_m: tuple[float, float, float]
    absorption: float


# From dry to a hall: RT60 about 0.3, 0.8, 1.5 and 2.6 s; the study measures them and says so.
ROOMS = (
    Room(name="small room", size_m=(4.0, 3.0, 2.5), absorption=0.27),
    Room(name="classroom", size_m=(9.0, 7.0, 3.0), absorption=0.23),
    Room(name="church", size_m=(20.0, 12.0, 8.0), absorption=0.26),
    Room(name="concert hall", size_m=(35.0, 22.0, 12.0), absorption=0.26),
)


def room_response(room: Room, sample_rate_hz: int) -> np.ndarray:
    """(S,) float64 from a source near one end to an ear near the other, from 2.5 ms before the direct sound on.

    Source: the image-source method, as pyroomacoustics has it.
    """
    images = math.ceil(DECAY_DB / (-10 * math.log10(1 - room.absorption)))
    box = pyroomacoustics.ShoeBox(
        room.size_m, fs=sample_rate_hz, materials=pyroomacoustics.Material(room.absorption), max_order=images
    )
    length, width, height = room.size_m
    # Off the middle, where the images would coincide.
    source = [0.31 * length, 0.43 * width, 0.6 * height]
    ear = [0.72 * length, 0.58 * width, 0.5 * height]
    box.add_source(source)
    box.add_microphone(ear)
    box.compute_rir()
    assert box.rir is not None
    travelled = math.floor(math.dist(source, ear) / box.c * sample_rate_hz)
    return np.asarray(box.rir[0][0], np.float64)[travelled:]


def reverberation_time_sec(response_S: np.ndarray, sample_rate_hz: int) -> float:
    """RT60, from the first 30 dB of the decay after the first 5."""
    return float(measure_rt60(response_S, fs=sample_rate_hz, decay_db=MEASURED_DECAY_DB))


def reverberate(samples_S: np.ndarray, response_S: np.ndarray) -> np.ndarray:
    """(S,) int16 as heard in the room, as long as before; the tail after its end is not heard.

    The peak is brought to the dry one's, so that rounding loses nothing; mixing sets the loudness.
    """
    wet_S = fftconvolve(samples_S.astype(np.float64), response_S)[: samples_S.size]
    peak = np.abs(samples_S.astype(np.float64)).max()
    return np.rint(wet_S * (peak / np.abs(wet_S).max())).clip(-32768, 32767).astype(np.int16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """Where something is heard, once or more; the RT60 is known of simulated rooms only, and 0 without a room."""

    name: str
    rt60_sec: float | None
    clips: tuple[CutClip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaintedVenue:
    """What the model makes of a venue: its mean feature vector (D,), the pictures and their (B, L) scores."""

    venue: Venue
    features_D: np.ndarray
    images: list[Image.Image]
    scores_BL: np.ndarray


def simulate_venues(dry: CutClip) -> list[Venue]:
    """The dry sound, then the same in each room."""
    venues = [Venue(name=DRY, rt60_sec=0.0, clips=(dry,))]
    for room in ROOMS:
        response_S = room_response(room, SAMPLE_RATE_HZ)
        wet = replace(dry, samples=reverberate(dry.samples, response_S))
        rt60_sec = reverberation_time_sec(response_S, SAMPLE_RATE_HZ)
        venues.append(Venue(name=room.name, rt60_sec=rt60_sec, clips=(wet,)))
    return venues


def read_venues(folder: Path, clip_seconds: float) -> list[Venue]:
    """One venue for each folder of recordings."""
    rooms = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(rooms) < 2:
        raise InputError(f"--recordings: {folder}: expected a folder for each room, two at least, found {len(rooms)}")
    return [Venue(name=spoken(room), rt60_sec=None, clips=_read_clips(room, clip_seconds)) for room in rooms]


def _read_clips(room: Path, clip_seconds: float) -> tuple[CutClip, ...]:
    files = sorted(path for path in room.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise InputError(f"{room}: expected recordings, found no file")
    return tuple(read_heard(path, clip_seconds) for path in files)


def listen_and_paint(studio: Studio, venue: Venue, labels: Sequence[str]) -> PaintedVenue:
    """Every recording of a venue, with all seeds."""
    log.info("painting %s", venue.name)
    means, images = [], []
    for clip in venue.clips:
        features_TD = studio.listen(make_windows([[clip]], [0.0], TARGET_LUFS, separate=False)[0].parts_NS)
        means.append(features_TD.mean(axis=0, dtype=np.float64))
        images += studio.paint(features_TD)
    scores_BL = studio.score(images, labels)
    return PaintedVenue(venue=venue, features_D=np.mean(means, axis=0), images=images, scores_BL=scores_BL)


def feature_distances(features_RD: np.ndarray) -> np.ndarray:
    """(R, R): 1 - cosine of the venues' mean feature vectors."""
    return cdist(features_RD, features_RD, metric="cosine").clip(min=0)


def summarise(heard: Sequence[PaintedVenue], labels: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """For each venue the mean score of the sound and of every room, and how far its features are from the first's."""
    distances_RR = feature_distances(np.stack([one.features_D for one in heard]))
    return [
        {
            "room": one.venue.name,
            "rt60_sec": one.venue.rt60_sec,
            "scores": {label: mean_interval(one.scores_BL[:, n], seed) for n, label in enumerate(labels)},
            "feature_distances": dict(zip([other.venue.name for other in heard], distances_R.tolist(), strict=True)),
        }
        for one, distances_R in zip(heard, distances_RR, strict=True)
    ]


def draw(heard: Sequence[PaintedVenue], summary: Sequence[dict[str, Any]], labels: Sequence[str]) -> Figure:
    """A row a room; below, the sound's score and the distance from the first room."""
    figure, _ = image_grid(
        [one.images[:SHOWN] for one in heard],
        [_title(one.venue) for one in heard],
        [_captions(one, labels) for one in heard],
        f"{labels[0]}, heard in rooms",
        extra_inches=CURVES_INCHES,
    )
    width, height = figure.get_size_inches()
    bottom, wide, tall = 0.75 / height, 0.5 - 1.05 / width, (CURVES_INCHES - 1.1) / height
    left = figure.add_axes((0.8 / width, bottom, wide, tall))
    right = figure.add_axes((0.5 + 0.95 / width, bottom, wide, tall))
    scores: dict[float, Interval] = {at: one["scores"][labels[0]] for at, one in enumerate(summary)}
    plot_intervals(left, {labels[0]: scores}, "", f"score of {labels[0]}")
    legend = left.get_legend()
    assert legend is not None
    legend.remove()
    first = summary[0]["room"]
    right.plot([one["feature_distances"][first] for one in summary], "o-", color="#D55E00", markersize=6)
    right.set_ylim(0, 1.1 * right.get_ylim()[1])
    right.set_ylabel(f"feature distance\nfrom {first}")
    for axes in (left, right):
        axes.set_xticks(range(len(summary)), [one["room"] for one in summary], fontsize=7, rotation=20, ha="right")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return figure


def _captions(heard: PaintedVenue, labels: Sequence[str]) -> list[str]:
    """The scores of the sound and of the room that it is heard in."""
    shown = [n for n, label in enumerate(labels) if n == 0 or label == heard.venue.name]
    return ["\n".join(f"{labels[n]} {scores_L[n]:.2f}" for n in shown) for scores_L in heard.scores_BL[:SHOWN]]


def _title(venue: Venue) -> str:
    return venue.name if not venue.rt60_sec else f"{venue.name}\nRT60 {venue.rt60_sec:.1f} s"


def _items(heard: Sequence[PaintedVenue], labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "room": one.venue.name,
            "recordings": len(one.venue.clips),
            "scores": {label: one.scores_BL[:, n].tolist() for n, label in enumerate(labels)},
        }
        for one in heard
    ]


def _read(arguments: argparse.Namespace) -> tuple[list[Venue], list[str]]:
    """Check the arguments and read all sounds; the venues, and the labels of the sound and of the rooms."""
    clip_seconds = check_arguments(arguments)
    sound = arguments.audio or arguments.recordings
    if arguments.audio:
        venues = simulate_venues(read_heard(arguments.audio, clip_seconds))
        rooms = [venue.name for venue in venues[1:]]
    else:
        venues = read_venues(arguments.recordings, clip_seconds)
        rooms = [venue.name for venue in venues]
    labels = [*label_sounds([sound], arguments.labels), *rooms]
    check_labels(labels, arguments.others)
    return venues, labels


def main(argv: Sequence[str] | None = None, prog: str = "eval.reverberation") -> int:
    """Run the study and return its exit code."""
    parser = PictureParser(prog, "What does the room in which a sound is heard change in the picture?")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--audio", type=Path, help="a dry recording, put into simulated rooms")
    given.add_argument("--recordings", type=Path, help="folder of folders, each with real recordings of one room")
    arguments = parser.parse_args(argv)

    def work() -> None:
        venues, labels = _read(arguments)
        studio, settings = open_studio(arguments)
        heard = [listen_and_paint(studio, venue, labels) for venue in venues]
        summary = summarise(heard, labels, arguments.seed)
        facts = {"audio": arguments.audio, "recordings": arguments.recordings, "labels": labels}
        result = {
            "study": "reverberation",
            "settings": settings
            | facts
            | {"target_lufs": TARGET_LUFS, "rooms": list(ROOMS) if arguments.audio else None},
            "items": _items(heard, labels),
            "summary": {"rooms": summary},
        }
        write_study(arguments.out, "reverberation", result, draw(heard, summary, labels))

    return run_study(prog, work)
