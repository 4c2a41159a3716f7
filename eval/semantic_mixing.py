"""Semantic mixing: does a mixture of two sounds give a picture of both?

    python -m eval.semantic_mixing --model DIR --audio dog.wav waves.wav ... --out DIR

Each sound alone and every pair of them, mixed at equal loudness; writes semantic_mixing.png and semantic_mixing.json
with the class scores of all concepts in all pictures. Needs a released model and a CLIP.

    B  images, L  labels
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.semantic_mixing", extra="eval"))

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from eval.figures import Interval, image_grid, mean_interval
from eval.studio import PictureParser, Studio, check_arguments, check_labels, open_studio
from eval.study import label_sounds, read_heard, run_study, write_study
from sonify.errors import InputError
from sonify.media.clips import CutClip
from train.windows import TARGET_LUFS, make_windows

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaintedSounds:
    """One sound, or two mixed: the labels heard, an image for each seed, and (B, L) scores of all labels."""

    heard: tuple[int, ...]
    images: list[Image.Image]
    scores_BL: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """The scores of two concepts in their mixture, and of each in the picture of its own sound and of the other's.

    `both` is the smaller of the two scores in a picture: large only where both are to be seen. Intervals are over
    seeds.
    """

    labels: tuple[str, str]
    mixed: tuple[Interval, Interval]
    alone: tuple[Interval, Interval]
    with_other_alone: tuple[Interval, Interval]
    both_mixed: Interval
    both_alone: tuple[Interval, Interval]


def paint_sounds(studio: Studio, clips: Sequence[CutClip], labels: Sequence[str]) -> list[PaintedSounds]:
    """Every sound alone, then every pair."""
    conditions: list[tuple[int, ...]] = [*combinations(range(len(clips)), 1), *combinations(range(len(clips)), 2)]
    painted = []
    for heard in conditions:
        log.info("painting %s", " + ".join(labels[n] for n in heard))
        window = make_windows([[clips[n]] for n in heard], [0.0] * len(heard), TARGET_LUFS, separate=False)[0]
        images = studio.paint(studio.listen(window.parts_NS))
        painted.append(PaintedSounds(heard=heard, images=images, scores_BL=studio.score(images, labels)))
    return painted


def compare_pairs(painted: Sequence[PaintedSounds], labels: Sequence[str], seed: int) -> list[PairScores]:
    """What became of both concepts in each mixture."""
    scores = {one.heard: one.scores_BL for one in painted}

    def of(heard: tuple[int, ...], label: int) -> Interval:
        return mean_interval(scores[heard][:, label], seed)

    def both(heard: tuple[int, ...], a: int, b: int) -> Interval:
        return mean_interval(np.minimum(scores[heard][:, a], scores[heard][:, b]), seed)

    return [
        PairScores(
            labels=(labels[a], labels[b]),
            mixed=(of((a, b), a), of((a, b), b)),
            alone=(of((a,), a), of((b,), b)),
            with_other_alone=(of((b,), a), of((a,), b)),
            both_mixed=both((a, b), a, b),
            both_alone=(both((a,), a, b), both((b,), a, b)),
        )
        for a, b in combinations(range(len(labels)), 2)
    ]


def draw(painted: Sequence[PaintedSounds], labels: Sequence[str]) -> Figure:
    """A square: sounds alone on the diagonal, mixtures beside it; below the diagonal, another seed's."""
    by_heard = {one.heard: one for one in painted}
    sounds = range(len(labels))

    def cell(row: int, column: int) -> tuple[Image.Image, str]:
        heard = tuple(sorted({row, column}))
        one, n = by_heard[heard], 1 if row > column else 0
        return one.images[n], "\n".join(f"{labels[h]} {one.scores_BL[n, h]:.2f}" for h in heard)

    cells = [[cell(row, column) for column in sounds] for row in sounds]
    figure, axes = image_grid(
        [[image for image, _ in row] for row in cells],
        labels,
        [[caption for _, caption in row] for row in cells],
        "Sounds alone (diagonal) and mixed; below the diagonal another seed",
    )
    for top, label in zip(axes[0], labels, strict=True):
        top.set_title(label, fontsize=9)
    return figure


def _items(painted: Sequence[PaintedSounds], labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "sounds": [labels[n] for n in one.heard],
            "scores": {label: one.scores_BL[:, n].tolist() for n, label in enumerate(labels)},
        }
        for one in painted
    ]


def main(argv: Sequence[str] | None = None, prog: str = "eval.semantic_mixing") -> int:
    """Run the study and return its exit code."""
    parser = PictureParser(prog, "Does a mixture of two sounds give a picture of both?")
    parser.add_argument("--audio", type=Path, nargs="+", required=True, help="recordings, two at least")
    arguments = parser.parse_args(argv)

    def work() -> None:
        if len(arguments.audio) < 2:
            raise InputError(f"--audio: expected two sounds at least, found {len(arguments.audio)}: nothing to mix")
        labels = label_sounds(arguments.audio, arguments.labels)
        check_labels(labels, arguments.others)
        clip_seconds = check_arguments(arguments)
        clips = [read_heard(path, clip_seconds) for path in arguments.audio]
        studio, settings = open_studio(arguments)
        painted = paint_sounds(studio, clips, labels)
        result = {
            "study": "semantic_mixing",
            "settings": settings | {"audio": arguments.audio, "labels": labels, "target_lufs": TARGET_LUFS},
            "items": _items(painted, labels),
            "summary": {"pairs": compare_pairs(painted, labels, arguments.seed)},
        }
        write_study(arguments.out, "semantic_mixing", result, draw(painted, labels))

    return run_study(prog, work)
