"""Loudness interpolation: does the louder of two sounds show more in the picture?

    python -m eval.loudness --model DIR --fixed waves.wav --swept dog.wav --gains-db -24 -18 -12 -6 0 6 --seeds 8 \
        --out DIR

One source stays at its loudness, the other is swept over gains; writes loudness.png and loudness.json with Spearman's
rank correlation of gain and class score, for both sources. Needs a released model and a CLIP.

    G  gains, B  images (one a seed), L  labels
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.loudness", extra="eval"))

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr

from eval.figures import Interval, image_grid, mean_interval, plot_intervals
from eval.studio import PictureParser, Studio, check_arguments, check_labels, open_studio
from eval.study import label_sounds, read_heard, run_study, write_study
from sonify.errors import InputError
from sonify.media.clips import CutClip
from train.windows import TARGET_LUFS, make_windows

log = logging.getLogger(__name__)

GAINS_DB = (-24.0, -18.0, -12.0, -6.0, 0.0, 6.0)
SHOWN_SEEDS = 4
CURVES_INCHES = 3.0


def correlate(gains_db: Sequence[float], scores_GB: np.ndarray) -> list[float]:
    """Spearman's rank correlation of gain and score for each seed; 0 where a seed's scores do not change at all."""
    return [
        float(spearmanr(gains_db, scores_G).statistic) if np.ptp(scores_G) > 0 else 0.0  # pyright: ignore[reportAttributeAccessIssue]
        for scores_G in scores_GB.T
    ]


def check_gains(gains_db: Sequence[float]) -> list[float]:
    """The gains in ascending order."""
    if not all(math.isfinite(gain_db) for gain_db in gains_db):
        raise InputError(f"--gains-db: expected finite numbers, found {' '.join(map(str, gains_db))}")
    if len(set(gains_db)) < 3:
        raise InputError(f"--gains-db: expected three different gains at least, found {len(set(gains_db))}")
    return sorted(set(gains_db))


def sweep(
    studio: Studio, fixed: CutClip, swept: CutClip, gains_db: Sequence[float], labels: Sequence[str]
) -> tuple[list[list[Image.Image]], np.ndarray]:
    """The images by gain, and their (G, B, L) scores."""
    images, scores = [], []
    for gain_db in gains_db:
        log.info("painting %s at %+g dB", labels[1], gain_db)
        window = make_windows([[fixed], [swept]], [0.0, gain_db], TARGET_LUFS, separate=False)[0]
        images.append(studio.paint(studio.listen(window.parts_NS)))
        scores.append(studio.score(images[-1], labels))
    return images, np.stack(scores)


def summarise(gains_db: Sequence[float], scores_GBL: np.ndarray, labels: Sequence[str], seed: int) -> dict[str, Any]:
    """For both sources: the mean over seeds of Spearman's correlation with its interval, and the scores by gain."""
    summary: dict[str, Any] = {}
    for role, label, scores_GB in zip(("fixed", "swept"), labels, np.moveaxis(scores_GBL, 2, 0), strict=True):
        by_seed = correlate(gains_db, scores_GB)
        summary[role] = {
            "label": label,
            "spearman": mean_interval(by_seed, seed),
            "spearman_by_seed": by_seed,
            "scores_by_gain": [mean_interval(scores_B, seed) for scores_B in scores_GB],
        }
    return summary


def draw(
    images: Sequence[Sequence[Image.Image]],
    gains_db: Sequence[float],
    scores_GBL: np.ndarray,
    summary: dict[str, Any],
    seeds: Sequence[int],
) -> Figure:
    """A row a seed, a column a gain; below, the mean scores."""
    shown = range(min(SHOWN_SEEDS, len(seeds)))
    fixed, swept = summary["fixed"]["label"], summary["swept"]["label"]
    figure, axes = image_grid(
        [[of_gain[n] for of_gain in images] for n in shown],
        [f"seed {seeds[n]}" for n in shown],
        [[f"{fixed} {scores[n, 0]:.2f}\n{swept} {scores[n, 1]:.2f}" for scores in scores_GBL] for n in shown],
        f"{swept} swept over {fixed}",
        extra_inches=CURVES_INCHES,
    )
    for top, gain_db in zip(axes[0], gains_db, strict=True):
        top.set_title(f"{gain_db:+g} dB", fontsize=9)
    width, height = figure.get_size_inches()
    below = figure.add_axes((0.9 / width, 0.55 / height, 1 - 1.1 / width, (CURVES_INCHES - 0.75) / height))
    curves: dict[str, dict[float, Interval]] = {}
    for role in ("swept", "fixed"):
        rho: Interval = summary[role]["spearman"]
        name = f"{summary[role]['label']} ({role}): Spearman {rho.mean:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]"
        curves[name] = dict(zip(gains_db, summary[role]["scores_by_gain"], strict=True))
    plot_intervals(below, curves, f"gain of {swept} (dB)", "class score")
    return figure


def main(argv: Sequence[str] | None = None, prog: str = "eval.loudness") -> int:
    """Run the study and return its exit code."""
    parser = PictureParser(prog, "Does the louder of two sounds show more in the picture?")
    parser.add_argument("--fixed", type=Path, required=True, help="the recording that stays")
    parser.add_argument("--swept", type=Path, required=True, help="the recording whose gain changes")
    parser.add_argument("--gains-db", type=float, nargs="+", default=GAINS_DB, help="of the swept (default: -24 to 6)")
    arguments = parser.parse_args(argv)

    def work() -> None:
        gains_db = check_gains(arguments.gains_db)
        paths = [arguments.fixed, arguments.swept]
        labels = label_sounds(paths, arguments.labels)
        check_labels(labels, arguments.others)
        clip_seconds = check_arguments(arguments)
        fixed, swept = (read_heard(path, clip_seconds) for path in paths)
        studio, settings = open_studio(arguments)
        images, scores_GBL = sweep(studio, fixed, swept, gains_db, labels)
        summary = summarise(gains_db, scores_GBL, labels, arguments.seed)
        items = [
            {"gain_db": gain_db, "scores": {label: scores_BL[:, n].tolist() for n, label in enumerate(labels)}}
            for gain_db, scores_BL in zip(gains_db, scores_GBL, strict=True)
        ]
        facts = {"fixed": paths[0], "swept": paths[1], "labels": labels, "gains_db": gains_db}
        result = {
            "study": "loudness",
            "settings": settings | facts | {"target_lufs": TARGET_LUFS},
            "items": items,
            "summary": summary,
        }
        figure = draw(images, gains_db, scores_GBL, summary, studio.painting.seeds)
        write_study(arguments.out, "loudness", result, figure)

    return run_study(prog, work)
