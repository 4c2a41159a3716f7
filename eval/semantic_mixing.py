"""Semantic mixing: does a mixture of two sounds give a picture of both?

    python -m eval.semantic_mixing --model DIR --audio dog.wav waves.wav ... --out DIR
    python -m eval.semantic_mixing --model DIR --pool RUN --pairs 50 --seed 0 --out DIR

Each sound alone and every pair of them, mixed at equal loudness; writes semantic_mixing.png and semantic_mixing.json
with the class scores of all concepts in all pictures. With --pool the pairs are drawn, as the paper does it: two random
excerpts of a run's pool, by default of recordings of validation, whose labels have nothing in common. Each pair is
scored on its own two labels, which are the texts of its clips. The same seed draws the same pairs, and more --pairs
only add to them. Needs a released model and a CLIP.

    B  images, L  labels
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.semantic_mixing", extra="eval"))

import argparse
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
from eval.pairing import classes_of, plain
from eval.studio import PictureParser, Studio, check_arguments, check_labels, open_studio
from eval.study import at_least, label_sounds, read_heard, run_study, write_study
from sonify import layout
from sonify.config.inputs import to_run_dir
from sonify.engine.record import config_of_run
from sonify.errors import InputError
from sonify.io.places import is_file
from sonify.keys import hash64
from sonify.media.clips import CutClip
from sonify.pool import ClipSamples, clip_columns
from sonify.retrieval.candidates import drawable
from sonify.stores import Place
from sonify.terminal import argument_of
from train.windows import SAMPLE_RATE_HZ, TARGET_LUFS, make_windows

log = logging.getLogger(__name__)

DEFAULT_PAIRS = 10
SHOWN_PAIRS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """A clip of a pool that was drawn: what it is called there, and whose it is."""

    clip: str
    recording: str
    label: str


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


def draw_pairs(
    run_dir: Place, split: str, pairs: int, seed: int, others: Sequence[str]
) -> list[tuple[Excerpt, Excerpt]]:
    """Draw pairs of clips by hash, each of a recording of its own; `others` are labels that none may have.

    Copies of a recording count as one, and of a copy of what was trained on nothing is drawn. The clips are in an order
    of chance: the first that is left begins a pair, and the next that shares no label with it ends it.

    Raises:
        InputError: the run has no pool, or not as many pairs.
    """
    table = clip_columns(run_dir, ("clip", "recording", "split", "text"))
    joined = is_file(run_dir / layout.DUPLICATES)
    of_clip, parts = drawable(run_dir, table, None, joined=joined)
    names, texts = (table[column].to_pylist() for column in ("clip", "text"))
    recordings, banned = table["recording"].to_pylist(), {plain(other) for other in others}
    left: dict[int, Excerpt] = {}
    for at in sorted(parts.get(split, ()), key=lambda at: hash64(seed, "semantic_mixing", names[at])):
        label = " ".join(texts[at].replace("_", " ").split())
        if label and banned.isdisjoint(classes_of(label)) and int(of_clip[at]) not in left:
            left[int(of_clip[at])] = Excerpt(clip=names[at], recording=recordings[at], label=label)
    drawn: list[tuple[Excerpt, Excerpt]] = []
    waiting = list(left.values())
    while waiting and len(drawn) < pairs:
        first, *rest = waiting
        classes = classes_of(first.label)
        second = next((one for one in rest if classes.isdisjoint(classes_of(one.label))), None)
        if second is None:  # nor has any other of its label one
            waiting = [one for one in rest if one.label != first.label]
            continue
        drawn.append((first, second))
        waiting = [one for one in rest if one is not second]
    if len(drawn) < pairs:
        raise InputError(
            f"--pool {run_dir}: expected {pairs} pairs of labelled recordings of {split} with different labels, found"
            f" {len(drawn)} of {len(left)} recordings; ask for fewer --pairs, or take the other --split"
        )
    return drawn


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


def draw_each(pairs: Sequence[tuple[Sequence[str], Sequence[PaintedSounds]]]) -> Figure:
    """A row for each pair: one sound alone, both, the other alone."""
    shown = [(labels, (one, both, other)) for labels, (one, other, both) in pairs[:SHOWN_PAIRS]]
    captions = [
        ["\n".join(f"{labels[n][:24]} {painted.scores_BL[0, n]:.2f}" for n in (0, 1)) for painted in row]
        for labels, row in shown
    ]
    rows = [[painted.images[0] for painted in row] for _, row in shown]
    titles = ["\n+ ".join(label[:24] for label in labels) for labels, _ in shown]
    figure, axes = image_grid(rows, titles, captions, "Pairs of the pool")
    for top, title in zip(axes[0], ("first alone", "mixed", "second alone"), strict=True):
        top.set_title(title, fontsize=9)
    return figure


def _items(painted: Sequence[PaintedSounds], labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "sounds": [labels[n] for n in one.heard],
            "scores": {label: one.scores_BL[:, n].tolist() for n, label in enumerate(labels)},
        }
        for one in painted
    ]


def summarise_pairs(pairs: Sequence[PairScores], seed: int) -> dict[str, Interval]:
    """Over the pairs: what shows of the weaker concept in the mixture, and at best in one of the sounds alone."""
    mixed = np.array([pair.both_mixed.mean for pair in pairs])
    alone = np.array([max(each.mean for each in pair.both_alone) for pair in pairs])
    return {
        "both_mixed": mean_interval(mixed, seed),
        "both_alone": mean_interval(alone, seed),
        "gain": mean_interval(mixed - alone, seed),
    }


def main(argv: Sequence[str] | None = None, prog: str = "eval.semantic_mixing") -> int:
    """Run the study and return its exit code."""
    parser = PictureParser(prog, "Does a mixture of two sounds give a picture of both?")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--audio", type=Path, nargs="+", help="recordings, two at least")
    given.add_argument(
        "--pool", type=argument_of(to_run_dir), metavar="RUN", help="a run, pairs of whose pool are drawn"
    )
    parser.add_argument("--pairs", type=int, help=f"with --pool: how many (default: {DEFAULT_PAIRS})")
    parser.add_argument("--split", choices=layout.SPLITS, help="with --pool: of which recordings (default: validation)")
    arguments = parser.parse_args(argv)
    return run_study(prog, lambda: _mix_pool(arguments) if arguments.pool is not None else _mix_sounds(arguments))


def _mix_sounds(arguments: argparse.Namespace) -> None:
    for option in ("pairs", "split"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option}: goes with --pool; of the sounds of --audio every pair is mixed")
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


def _mix_pool(arguments: argparse.Namespace) -> None:
    if arguments.labels:
        raise InputError("--labels: with --pool, the texts of the clips are the labels")
    number = DEFAULT_PAIRS if arguments.pairs is None else arguments.pairs
    split = arguments.split or "validation"
    at_least("--pairs", number, 2)  # one has no interval
    clip_seconds = check_arguments(arguments)
    _check_pool(arguments.pool, clip_seconds)
    drawn = draw_pairs(arguments.pool, split, number, arguments.seed, arguments.others)
    samples = ClipSamples(arguments.pool)
    studio, settings = open_studio(arguments)
    items, compared, shown = [], [], []
    for pair in drawn:
        labels = [excerpt.label for excerpt in pair]
        clips = [
            CutClip(index=0, start_sec=0.0, duration_sec=clip_seconds, samples=samples[excerpt.clip])
            for excerpt in pair
        ]
        painted = paint_sounds(studio, clips, labels)
        compared += compare_pairs(painted, labels, arguments.seed)
        items += [
            item | {"clips": [pair[n].clip for n in one.heard]}
            for one, item in zip(painted, _items(painted, labels), strict=True)
        ]
        if len(shown) < SHOWN_PAIRS:  # of many pairs not all pictures are held
            shown.append((labels, painted))
    asked = {"pool": str(arguments.pool), "split": split, "pairs": number, "seed": arguments.seed}
    result = {
        "study": "semantic_mixing",
        "settings": settings | asked | {"target_lufs": TARGET_LUFS},
        "items": items,
        "summary": {"pairs": compared, "over_pairs": summarise_pairs(compared, arguments.seed)},
    }
    write_study(arguments.out, "semantic_mixing", result, draw_each(shown))


def _check_pool(run_dir: Place, clip_seconds: float) -> None:
    audio = config_of_run(run_dir).audio
    if (audio.sample_rate, audio.clip_seconds) != (SAMPLE_RATE_HZ, clip_seconds):
        raise InputError(
            f"--pool {run_dir}: expected clips of {clip_seconds:g} s at {SAMPLE_RATE_HZ} Hz, which the model hears,"
            f" found {audio.clip_seconds:g} s at {audio.sample_rate} Hz"
        )
