"""Reverberation: what does the room in which a sound is heard change in the picture?

    python -m eval.reverberation --model DIR --audio clap.wav --out DIR
    python -m eval.reverberation --model DIR --recordings FOLDER --out DIR

A dry sound is put into rooms of growing RT60 by their simulated responses, or, with --recordings, real recordings are
taken: FOLDER/<room>/ holds those of one room. All are brought to one loudness. Writes reverberation.png and
reverberation.json with the class scores of the sound and of each room, and the distances of the features between
rooms. Needs a released model and a CLIP.

    B  images (one a seed and recording), L  labels (the sound, then the rooms), R  rooms, T D  times and width
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial.distance import cdist

from eval.figures import image_grid, plot_intervals
from eval.intervals import Interval, mean_interval
from eval.rooms import ROOMS, reverberate, reverberation_time_sec, room_response
from eval.scores import check_labels
from eval.studio import Studio, check_arguments, open_studio
from eval.study import PictureParser, label_sounds, read_heard, run_study, spoken, write_study
from sonify.errors import InputError
from sonify.media.clips import CutClip
from train.sounds import SAMPLE_RATE_HZ, TARGET_LUFS, make_windows

log = logging.getLogger(__name__)

DRY = "no room"
SHOWN = 4
CURVES_INCHES = 2.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something is heard, once or more; the RT60 is known of simulated rooms only, and 0 without a room."""

    name: str
    rt60_sec: float | None
    clips: tuple[CutClip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the model makes of a place: its mean feature vector (D,), the pictures and their (B, L) scores."""

    place: Place
    features_D: np.ndarray
    images: list[Image.Image]
    scores_BL: np.ndarray


def simulate_places(dry: CutClip) -> list[Place]:
    """The dry sound, then the same in each room."""
    places = [Place(name=DRY, rt60_sec=0.0, clips=(dry,))]
    for room in ROOMS:
        response_S = room_response(room, SAMPLE_RATE_HZ)
        wet = replace(dry, samples=reverberate(dry.samples, response_S))
        rt60_sec = reverberation_time_sec(response_S, SAMPLE_RATE_HZ)
        places.append(Place(name=room.name, rt60_sec=rt60_sec, clips=(wet,)))
    return places


def read_places(folder: Path, clip_seconds: float) -> list[Place]:
    """One place for each folder of recordings.

    Raises:
        InputError: there are not two folders with recordings, or one cannot be read.
    """
    rooms = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(rooms) < 2:
        raise InputError(f"--recordings: {folder}: expected a folder for each room, two at least, found {len(rooms)}")
    return [Place(name=spoken(room), rt60_sec=None, clips=_read_clips(room, clip_seconds)) for room in rooms]


def _read_clips(room: Path, clip_seconds: float) -> tuple[CutClip, ...]:
    files = sorted(path for path in room.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise InputError(f"{room}: expected recordings, found no file")
    return tuple(read_heard(path, clip_seconds) for path in files)


def listen_and_paint(studio: Studio, place: Place, labels: Sequence[str]) -> Heard:
    """Every recording of a place, with all seeds."""
    log.info("painting %s", place.name)
    means, images = [], []
    for clip in place.clips:
        features_TD = studio.listen(make_windows([[clip]], [0.0], TARGET_LUFS, separate=False)[0].parts_NS)
        means.append(features_TD.mean(axis=0, dtype=np.float64))
        images += studio.paint(features_TD)
    scores_BL = studio.score(images, labels)
    return Heard(place=place, features_D=np.mean(means, axis=0), images=images, scores_BL=scores_BL)


def feature_distances(features_RD: np.ndarray) -> np.ndarray:
    """(R, R): 1 - cosine of the places' mean feature vectors."""
    return cdist(features_RD, features_RD, metric="cosine").clip(min=0)


def summarise(heard: Sequence[Heard], labels: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """For each place the mean score of the sound and of every room, and how far its features are from the first's."""
    distances_RR = feature_distances(np.stack([one.features_D for one in heard]))
    return [
        {
            "room": one.place.name,
            "rt60_sec": one.place.rt60_sec,
            "scores": {label: mean_interval(one.scores_BL[:, n], seed) for n, label in enumerate(labels)},
            "feature_distances": dict(zip([other.place.name for other in heard], distances_R.tolist(), strict=True)),
        }
        for one, distances_R in zip(heard, distances_RR, strict=True)
    ]


def draw(heard: Sequence[Heard], summary: Sequence[dict[str, Any]], labels: Sequence[str]) -> Figure:
    """A row a room; below, the sound's score and the distance from the first room."""
    figure, _ = image_grid(
        [one.images[:SHOWN] for one in heard],
        [_title(one.place) for one in heard],
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


def _captions(heard: Heard, labels: Sequence[str]) -> list[str]:
    """The scores of the sound and of the room that it is heard in."""
    shown = [n for n, label in enumerate(labels) if n == 0 or label == heard.place.name]
    return ["\n".join(f"{labels[n]} {scores_L[n]:.2f}" for n in shown) for scores_L in heard.scores_BL[:SHOWN]]


def _title(place: Place) -> str:
    return place.name if not place.rt60_sec else f"{place.name}\nRT60 {place.rt60_sec:.1f} s"


def _items(heard: Sequence[Heard], labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "room": one.place.name,
            "recordings": len(one.place.clips),
            "scores": {label: one.scores_BL[:, n].tolist() for n, label in enumerate(labels)},
        }
        for one in heard
    ]


def _read(arguments: argparse.Namespace) -> tuple[list[Place], list[str]]:
    """Check the arguments and read all sounds; the places, and the labels of the sound and of the rooms."""
    clip_seconds = check_arguments(arguments)
    sound = arguments.audio or arguments.recordings
    if arguments.audio:
        places = simulate_places(read_heard(arguments.audio, clip_seconds))
        rooms = [place.name for place in places[1:]]
    else:
        places = read_places(arguments.recordings, clip_seconds)
        rooms = [place.name for place in places]
    labels = [*label_sounds([sound], arguments.labels), *rooms]
    check_labels(labels, arguments.others)
    return places, labels


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = PictureParser("eval.reverberation", "What does the room in which a sound is heard change in the picture?")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--audio", type=Path, help="a dry recording, put into simulated rooms")
    given.add_argument("--recordings", type=Path, help="folder of folders, each with real recordings of one room")
    arguments = parser.parse_args(argv)

    def work() -> None:
        places, labels = _read(arguments)
        studio, settings = open_studio(arguments)
        heard = [listen_and_paint(studio, place, labels) for place in places]
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

    return run_study("eval.reverberation", work)


if __name__ == "__main__":
    sys.exit(main())
