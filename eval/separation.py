"""Separated against mixed: do two sources show better when they are heard one after the other?

    python -m eval.separation --model DIR --audio dog.wav waves.wav --out DIR
    python -m eval.separation --model DIR --stems FOLDER --out DIR

Mixed, the model hears the sum; separated, it hears the features of each source joined along time. With --stems, real
mixtures: FOLDER/<name>/ holds a recording called `mixture` and one for each source, at the level that it has in the
mixture. Writes separation.png and separation.json with the class scores of each source in both. Needs a released
model and a CLIP.

    B  images (one a seed), L  labels, N  sources, S  samples, T D  times and width of a condition
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.separation", extra="eval"))

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from eval.figures import image_grid, mean_interval
from eval.studio import PictureParser, Studio, check_arguments, check_labels, open_studio
from eval.study import label_sounds, read_heard, run_study, spoken, write_study
from sonify.config import Mix
from sonify.errors import InputError
from sonify.media.clips import CutClip
from sonify.media.mixing import FULL_SCALE, gain_to_target_db, measure_loudness, mix_clips
from train.windows import SAMPLE_RATE_HZ, TARGET_LUFS, is_heard, make_windows, read_sound

log = logging.getLogger(__name__)

MIXTURE = "mixture"
SHOWN_SEEDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The same sources mixed, (1, S), and one after the other, (N, S); float32, full scale at 1.0."""

    name: str
    labels: tuple[str, ...]
    start_sec: float
    mixed_1S: np.ndarray
    separated_NS: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """The pictures of one condition with their (B, L) scores; `num_times` is the condition's length."""

    num_times: int
    images: list[Image.Image]
    scores_BL: np.ndarray


def mix_sources(clips: Sequence[CutClip], labels: Sequence[str]) -> Sources:
    """Sources that the toolkit mixes at equal loudness."""
    sounds, gains_db = [[clip] for clip in clips], [0.0] * len(clips)
    mixed, separated = (make_windows(sounds, gains_db, TARGET_LUFS, separate)[0] for separate in (False, True))
    return Sources(
        name=" + ".join(labels),
        labels=tuple(labels),
        start_sec=0.0,
        mixed_1S=mixed.parts_NS,
        separated_NS=separated.parts_NS,
    )


def read_stems(folder: Path, clip_seconds: float) -> Sources:
    """A real mixture and its sources, in the first window in which two of them are heard.

    One gain brings the mixture to the loudness that the model was trained on; its sources get the same.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    mixtures = [path for path in files if path.stem == MIXTURE]
    stems = [path for path in files if path.stem != MIXTURE]
    if len(mixtures) != 1 or len(stems) < 2:
        raise InputError(
            f"{folder}: expected one recording called {MIXTURE} and two sources at least, found {len(mixtures)} and"
            f" {len(stems)}"
        )
    sounds = [read_sound(path, clip_seconds) for path in stems]
    for mixture, *clips in zip_longest(read_sound(mixtures[0], clip_seconds), *sounds):
        heard = [n for n, clip in enumerate(clips) if clip is not None and is_heard(clip)]
        if mixture is None or not is_heard(mixture) or len(heard) < 2:
            continue
        loudness_lufs = measure_loudness(mixture.samples, SAMPLE_RATE_HZ)
        gain_db = gain_to_target_db(loudness_lufs, TARGET_LUFS, Mix().max_gain_db)
        return Sources(
            name=spoken(folder),
            labels=tuple(spoken(stems[n]) for n in heard),
            start_sec=mixture.start_sec,
            mixed_1S=_amplified([mixture], gain_db),
            separated_NS=_amplified([clips[n] for n in heard], gain_db),
        )
    raise InputError(f"{folder}: no window of {clip_seconds:g} s in which the mixture and two of its sources are heard")


def _amplified(clips: Sequence[CutClip], gain_db: float) -> np.ndarray:
    samples = [mix_clips([clip.samples], [gain_db], Mix().peak_dbfs).samples for clip in clips]
    return np.stack(samples).astype(np.float32) / FULL_SCALE


def paint_both(studio: Studio, sources: Sources) -> tuple[Painted, Painted]:
    """Mixed, then separated, with the same seeds."""
    log.info("painting %s", sources.name)
    painted = []
    for parts_NS in (sources.mixed_1S, sources.separated_NS):
        features_TD = studio.listen(parts_NS)
        images = studio.paint(features_TD)
        scores_BL = studio.score(images, sources.labels)
        painted.append(Painted(num_times=len(features_TD), images=images, scores_BL=scores_BL))
    return painted[0], painted[1]


def compare(mixed_BL: np.ndarray, separated_BL: np.ndarray, labels: Sequence[str], seed: int) -> dict[str, Any]:
    """Mean scores of each source in both, and what separation adds to the score of the source that shows least."""
    return {
        "sources": [
            {
                "label": label,
                "mixed": mean_interval(mixed_BL[:, n], seed),
                "separated": mean_interval(separated_BL[:, n], seed),
                "gain": mean_interval(separated_BL[:, n] - mixed_BL[:, n], seed),
            }
            for n, label in enumerate(labels)
        ],
        "gain_of_weakest": mean_interval(separated_BL.min(axis=1) - mixed_BL.min(axis=1), seed),
    }


def draw(results: Sequence[tuple[Sources, Painted, Painted]]) -> Figure:
    """Two rows for each mixture, a column a seed."""
    rows, titles, captions = [], [], []
    for sources, *both in results:
        for way, painted in zip(("mixed", "separated"), both, strict=True):
            rows.append(painted.images[:SHOWN_SEEDS])
            titles.append(f"{sources.name}\n{way}\n({painted.num_times} vectors)")
            captions.append(
                [
                    "\n".join(f"{label} {score:.2f}" for label, score in zip(sources.labels, scores, strict=True))
                    for scores in painted.scores_BL[:SHOWN_SEEDS]
                ]
            )
    return image_grid(rows, titles, captions, "Sources mixed, and one after the other")[0]


def _item(sources: Sources, mixed: Painted, separated: Painted) -> dict[str, Any]:
    ways = {
        way: {
            "num_times": painted.num_times,
            "scores": {label: painted.scores_BL[:, n].tolist() for n, label in enumerate(sources.labels)},
        }
        for way, painted in (("mixed", mixed), ("separated", separated))
    }
    return {"name": sources.name, "start_sec": sources.start_sec, **ways}


def main(argv: Sequence[str] | None = None, prog: str = "eval.separation") -> int:
    """Run the study and return its exit code."""
    parser = PictureParser(prog, "Do two sources show better when they are heard one after the other?")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--audio", type=Path, nargs="+", help="recordings that are mixed here, two at least")
    given.add_argument("--stems", type=Path, help="folder of folders, each with a `mixture` and its sources")
    arguments = parser.parse_args(argv)

    def work() -> None:
        mixtures = _read_mixtures(arguments)
        studio, settings = open_studio(arguments)
        results = [(sources, *paint_both(studio, sources)) for sources in mixtures]
        compared = [
            {"name": sources.name, **compare(mixed.scores_BL, separated.scores_BL, sources.labels, arguments.seed)}
            for sources, mixed, separated in results
        ]
        result = {
            "study": "separation",
            "settings": settings | {"audio": arguments.audio, "stems": arguments.stems, "target_lufs": TARGET_LUFS},
            "items": [_item(*one) for one in results],
            "summary": {"mixtures": compared},
        }
        write_study(arguments.out, "separation", result, draw(results))

    return run_study(prog, work)


def _read_mixtures(arguments: argparse.Namespace) -> list[Sources]:
    """Check the arguments, and read all sounds before a model is loaded."""
    if arguments.audio:
        labels = label_sounds(arguments.audio, arguments.labels)
        if len(labels) < 2:
            raise InputError(f"--audio: expected two sounds at least, found {len(labels)}: nothing to separate")
        clip_seconds = check_arguments(arguments)
        mixtures = [mix_sources([read_heard(path, clip_seconds) for path in arguments.audio], labels)]
    else:
        if arguments.labels:
            raise InputError("--labels: with --stems, the names of the files are the labels")
        clip_seconds = check_arguments(arguments)
        mixtures = [read_stems(folder, clip_seconds) for folder in _folders(arguments.stems)]
    for sources in mixtures:
        check_labels(sources.labels, arguments.others)
    return mixtures


def _folders(stems: Path) -> list[Path]:
    folders = sorted(path for path in stems.iterdir() if path.is_dir()) if stems.is_dir() else []
    if not folders:
        raise InputError(f"--stems: {stems}: expected a folder of folders, each with a {MIXTURE} and its sources")
    return folders
