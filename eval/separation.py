"""Separated against mixed: do two sources show better when they are heard one after the other?

    python -m eval.separation --model DIR --audio dog.wav waves.wav --out DIR
    python -m eval.separation --model DIR --stems FOLDER --out DIR
    python -m eval.separation --model DIR --separate sources --separator DIR --audio beach.wav \
        --labels "dog + waves" --out DIR

Mixed, the model hears the sum; separated, it hears the features of each source joined along time. With --stems, real
mixtures: FOLDER/<name>/ holds a recording called `mixture` and one for each source, at the level that it has in the
mixture. With `--separate sources` a separator (train/separator.py) makes the sources out of the mixture: each recording
of --audio is a mixture by itself, whose sources nobody has alone. Which of the sources is which label is then not
known, and not needed: labels are scored in the pictures, which are made of all sources together. With --stems it is
known how good the sources are: their SI-SDR, in the assignment that is best for them. Writes separation.png and
separation.json with the class scores of each source in both. Needs a released model and a CLIP.

    B  images (one a seed), L  labels, N  sources, S  samples, T D  times and width of a condition
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.separation", extra="eval"))

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.optimize import linear_sum_assignment

from eval.figures import image_grid, mean_interval
from eval.studio import PictureParser, Studio, check_arguments, check_labels, open_studio
from eval.study import label_sounds, read_heard, run_study, spoken, write_study
from sonify.config import Mix
from sonify.errors import InputError
from sonify.media.clips import CutClip
from sonify.media.mixing import FULL_SCALE, gain_to_target_db, measure_loudness, mix_clips
from sonify.models.loading import choose_device
from train.separator import (
    SILENT_DB,
    Separator,
    check_separator,
    find_separator,
    levels_below,
    load_separator,
    take_apart,
)
from train.windows import SAMPLE_RATE_HZ, TARGET_LUFS, is_heard, make_windows, read_sound

log = logging.getLogger(__name__)

MIXTURE = "mixture"
SHOWN_SEEDS = 4
# Between labels of one recording; a name of a file or of a sound may hold a comma.
AND = "+"
# A source that is its reference to the bit would have an infinite SI-SDR, which JSON has no number for.
MAX_SI_SDR_DB = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The same sources mixed, (1, S), and one after the other, (N, S); float32, full scale at 1.0."""

    name: str
    labels: tuple[str, ...]
    start_sec: float
    mixed_1S: np.ndarray
    separated_NS: np.ndarray
    found: "FoundSources | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSources:
    """What a separator made of a mixture: the level of each source in it, and how good it is where there are stems."""

    levels_db: tuple[float, ...]
    matches: tuple["Match", ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which source was given to a label, from 0, and the SI-SDR of it and of the mixture; None where none was left."""

    label: str
    source: int | None
    si_sdr_db: float | None
    mixture_si_sdr_db: float


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
        gain_db = _gain_db(mixture)
        return Sources(
            name=spoken(folder),
            labels=tuple(spoken(stems[n]) for n in heard),
            start_sec=mixture.start_sec,
            mixed_1S=_amplified([mixture], gain_db),
            separated_NS=_amplified([clips[n] for n in heard], gain_db),
        )
    raise InputError(f"{folder}: no window of {clip_seconds:g} s in which the mixture and two of its sources are heard")


def read_mixture(path: Path, labels: Sequence[str], clip_seconds: float, separator: Separator) -> Sources:
    """A recording of several sounds, in the first window in which the separator finds two sources."""
    for clip in filter(is_heard, read_sound(path, clip_seconds)):
        mixed_1S = _amplified([clip], _gain_db(clip))
        sources = Sources(
            name=" + ".join(labels),
            labels=tuple(labels),
            start_sec=clip.start_sec,
            mixed_1S=mixed_1S,
            separated_NS=take_apart(separator, mixed_1S[0], f"{path}, at {clip.start_sec:g} s"),
        )
        if len(sources.separated_NS) > 1:
            return replace(sources, found=FoundSources(levels_db=_levels_db(sources), matches=None))
    raise InputError(
        f"{path}: no window of {clip_seconds:g} s in which the separator finds two sources within {-SILENT_DB:g} dB of"
        " the mixture: nothing to hear apart"
    )


def separate_stems(stems: Sources, separator: Separator) -> Sources:
    """A mixture with stems, taken apart by a separator instead, with how near its sources come to the stems."""
    found_NS = take_apart(separator, stems.mixed_1S[0], f"{stems.name}, at {stems.start_sec:g} s")
    separated = replace(stems, separated_NS=found_NS)
    matches = match_sources(found_NS, stems.separated_NS, stems.mixed_1S[0], stems.labels)
    return replace(separated, found=FoundSources(levels_db=_levels_db(separated), matches=matches))


def match_sources(
    found_NS: np.ndarray, stems_LS: np.ndarray, mixture_S: np.ndarray, labels: Sequence[str]
) -> tuple[Match, ...]:
    """Give each label its source, so that the SI-SDR is the highest in the mean: what a listener could do at best."""
    scores_LN = np.array([[si_sdr_db(found_S, stem_S) for found_S in found_NS] for stem_S in stems_LS])
    of_label = dict(zip(*(indices.tolist() for indices in linear_sum_assignment(-scores_LN)), strict=True))
    return tuple(
        Match(
            label=label,
            source=of_label.get(n),
            si_sdr_db=float(scores_LN[n, of_label[n]]) if n in of_label else None,
            mixture_si_sdr_db=si_sdr_db(mixture_S, stems_LS[n]),
        )
        for n, label in enumerate(labels)
    )


def si_sdr_db(estimate_S: np.ndarray, reference_S: np.ndarray) -> float:
    """The scale-invariant ratio of a reference to what else is in its estimate, within 100 dB.

    Source: Le Roux et al., SDR - half-baked or well done? (arXiv 1811.02508).
    """
    estimate_S, reference_S = estimate_S.astype(np.float64), reference_S.astype(np.float64)
    wanted_S = reference_S * (estimate_S @ reference_S) / (reference_S @ reference_S)
    wanted, other = (float(np.square(part_S).sum()) for part_S in (wanted_S, estimate_S - wanted_S))
    least = 10 ** (-MAX_SI_SDR_DB / 10)
    return float(10 * np.log10(np.clip(wanted / max(other, least * wanted, 1e-300), least, None)))


def _levels_db(sources: Sources) -> tuple[float, ...]:
    return tuple(levels_below(sources.separated_NS, sources.mixed_1S[0]).tolist())


def _gain_db(mixture: CutClip) -> float:
    return gain_to_target_db(measure_loudness(mixture.samples, SAMPLE_RATE_HZ), TARGET_LUFS, Mix().max_gain_db)


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
    found = {} if sources.found is None else {"found": sources.found}
    return {"name": sources.name, "start_sec": sources.start_sec, **found, **ways}


def main(argv: Sequence[str] | None = None, prog: str = "eval.separation") -> int:
    """Run the study and return its exit code."""
    parser = PictureParser(prog, "Do two sources show better when they are heard one after the other?")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--audio",
        type=Path,
        nargs="+",
        help="recordings that are mixed here, two at least; with --separate sources each is a mixture, its labels with"
        ' + between them ("dog + waves")',
    )
    given.add_argument("--stems", type=Path, help="folder of folders, each with a `mixture` and its sources")
    parser.add_argument(
        "--separate",
        choices=("sounds", "sources"),
        default="sounds",
        help="what is heard one after the other: the sounds as they are given, or what --separator makes of the mixture"
        " (default: %(default)s)",
    )
    parser.add_argument("--separator", metavar="DIR", help="a ConvTasNet: its folder, or a hub id")
    arguments = parser.parse_args(argv)

    def work() -> None:
        mixtures, identity = _read_mixtures(arguments)
        studio, settings = open_studio(arguments)
        results = [(sources, *paint_both(studio, sources)) for sources in mixtures]
        compared = [
            {"name": sources.name, **compare(mixed.scores_BL, separated.scores_BL, sources.labels, arguments.seed)}
            for sources, mixed, separated in results
        ]
        result = {
            "study": "separation",
            "settings": settings
            | {name: getattr(arguments, name) for name in ("audio", "stems", "separate", "separator")}
            | {"separator_identity": identity, "target_lufs": TARGET_LUFS},
            "items": [_item(*one) for one in results],
            "summary": {"mixtures": compared},
        }
        write_study(arguments.out, "separation", result, draw(results))

    return run_study(prog, work)


def _read_mixtures(arguments: argparse.Namespace) -> tuple[list[Sources], str | None]:
    """Check the arguments, and read all sounds before a model is loaded; with the separator's identity, if any."""
    check_separator(arguments)
    labelled = _read_labels(arguments)
    clip_seconds = check_arguments(arguments)
    fetched = find_separator(arguments.separator) if arguments.separator is not None else None
    separator = load_separator(fetched, choose_device("auto")) if fetched is not None else None
    if arguments.stems:
        mixtures = [read_stems(folder, clip_seconds) for folder in _folders(arguments.stems)]
        for sources in mixtures:
            check_labels(sources.labels, arguments.others)
        if separator is not None:
            mixtures = [separate_stems(sources, separator) for sources in mixtures]
    elif separator is not None:
        pairs = zip(arguments.audio, labelled, strict=True)
        mixtures = [read_mixture(path, labels, clip_seconds, separator) for path, labels in pairs]
    else:
        clips = [read_heard(path, clip_seconds) for path in arguments.audio]
        mixtures = [mix_sources(clips, [label for labels in labelled for label in labels])]
    return mixtures, fetched.identity if fetched is not None else None


def _read_labels(arguments: argparse.Namespace) -> list[list[str]]:
    """What is heard in each recording of --audio, checked."""
    if not arguments.audio:
        if arguments.labels:
            raise InputError("--labels: with --stems, the names of the files are the labels")
        return []
    named = label_sounds(arguments.audio, arguments.labels)
    if arguments.separate == "sounds":
        if len(named) < 2:
            raise InputError(
                f"--audio: expected two sounds at least, found {len(named)}: nothing to separate (one recording of"
                " several sounds is taken apart with --separate sources)"
            )
        check_labels(named, arguments.others)
        return [[label] for label in named]
    labelled = [[part.strip() for part in name.split(AND) if part.strip()] for name in named]
    for path, labels in zip(arguments.audio, labelled, strict=True):
        if len(labels) < 2:
            raise InputError(
                f"{path}: expected two labels at least with {AND} between them, what is heard in it, as in --labels"
                f' "dog {AND} waves", found {" ".join(labels) or "none"!r}'
            )
        check_labels(labels, arguments.others)
    return labelled


def _folders(stems: Path) -> list[Path]:
    folders = sorted(path for path in stems.iterdir() if path.is_dir()) if stems.is_dir() else []
    if not folders:
        raise InputError(f"--stems: {stems}: expected a folder of folders, each with a {MIXTURE} and its sources")
    return folders
