"""RUN/index.html: a training run to look at, its curves and its grids of pictures. One file that opens from disk; the
grids lie beside it. It is written anew whenever a grid or a checkpoint is.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from sonify.errors import InputError
from sonify.io.write import write_whole
from train.metrics import read_metrics

log = logging.getLogger(__name__)

PAGE = "index.html"
SAMPLES = "samples"
GRID = re.compile(r"step-\d{8}\.png")
WIDTH, HEIGHT = 560, 200
LEFT, RIGHT, TOP, BOTTOM = 74, 8, 12, 26  # around a curve, for the axes' words
HUGE = 1e300  # neither is what is not a number below it
POINTS = 280  # of a curve: each is the mean of its part of the run
INKS = ("var(--accent)", "var(--focus)", "#7a6fd0", "#b0476b")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:"
CSS = f"""
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); margin: 1rem 0; }}
.plot {{ padding: 0.7rem; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }}
.plot svg {{ display: block; width: 100%; height: auto; max-width: {WIDTH}px; }}
.plot text {{ fill: var(--muted); font-size: 15px; }}
.plot h2 {{ font-size: 0.9375rem; }}
.plot p, .lead {{ color: var(--muted); font-size: 0.8125rem; }}
.grids img {{ max-width: 100%; image-rendering: pixelated; }}
.grids {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); }}
.grids h2 {{ grid-column: 1 / -1; }}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One diagram: its curves are keys of the metrics' lines; with `log` its axis is logarithmic."""

    title: str
    keys: Mapping[str, str]
    log: bool = False


PLOTS = (
    Plot(title="Loss", keys={"loss": "in all"}),
    Plot(
        title="Loss by quartile of the timestep",
        keys={f"loss_q{n}": name for n, name in enumerate(("least noise", "second", "third", "most noise"), start=1)},
        log=True,
    ),
    Plot(title="Gradient norm, before clipping", keys={"gradient_norm": "norm"}, log=True),
    Plot(title="Learning rate", keys={"learning_rate": "rate"}),
    Plot(title="Images a second", keys={"images_per_sec": "all devices"}),
    Plot(title="Shares", keys={"mfu": "of the matrix-product peak", "data_wait": "of the time, waiting for data"}),
)
NAMED = {"step", *(key for plot in PLOTS for key in plot.keys)}


def write_page(run_dir: Path, max_steps: int) -> Path:
    """Write the page of what a run has so far; one that cannot be written is said, and ends no training."""
    page = run_dir / PAGE
    grids = sorted((path for path in (run_dir / SAMPLES).glob("*.png") if GRID.fullmatch(path.name)), reverse=True)
    text = "".join(_page(run_dir.resolve().name, read_metrics(run_dir), grids, max_steps))
    try:
        write_whole(page, text.encode(errors="replace"))
    except (OSError, InputError) as error:
        log.warning("%s; the training goes on without the page", error)
    return page


def _page(name: str, lines: Sequence[Mapping[str, float]], grids: Sequence[Path], max_steps: int) -> Iterator[str]:
    style = (resources.files("sonify.report") / "gallery_assets" / "gallery.css").read_text(encoding="utf-8")
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    yield '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
    yield f"<title>{escape(name)}</title>\n<style>{style}{CSS}</style>\n</head>\n<body>\n"
    yield f'<header class="masthead"><div class="title"><p class="brand">sonify training</p><h1>{escape(name)}</h1>'
    done = int(lines[-1]["step"]) if lines else 0
    yield f'<p class="lead">step {done:,} of {max_steps:,}</p></div></header>\n<main>\n'
    parts = sorted({key for line in lines for key in line} - NAMED)
    for plot in (*PLOTS, *(Plot(title=f"Part of the loss: {key}", keys={key: key}) for key in parts)):
        yield from _plot(plot, lines, max_steps)
    yield '</main>\n<section class="grids"><h2>Pictures of the same sounds and seeds, the newest first</h2>\n'
    if not grids:
        yield '<p class="lead">None yet: samples.every and samples.sounds say when, and of how many sounds.</p>\n'
    for grid in grids:
        step = f"step {int(grid.stem.removeprefix('step-')):,}"
        yield f'<figure><img src="{SAMPLES}/{escape(grid.name)}" alt="grid of pictures at {step}" loading="lazy">'
        yield f"<figcaption>{step}</figcaption></figure>\n"
    yield "</section>\n</body>\n</html>\n"


def _plot(plot: Plot, lines: Sequence[Mapping[str, float]], max_steps: int) -> Iterator[str]:
    curves = {name: curve for key, name in plot.keys.items() if len(curve := _curve(lines, key, plot.log))}
    if not curves:
        return
    values = np.concatenate([curve[:, 1] for curve in curves.values()])
    low, high = float(values.min()), float(values.max())
    span = high - low or abs(high) or 1.0
    yield f'<section class="plot"><h2>{escape(plot.title)}</h2><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    yield f"<title>{escape(plot.title)}</title>"
    for at, value in ((HEIGHT - BOTTOM, low), (TOP, low + span)):
        said = f"{10**value if plot.log else value:.3g}"
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" stroke="var(--line)"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{said}</text>'
    yield f'<text x="{LEFT}" y="{HEIGHT - 6}">step 1</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{max_steps:,}</text>'
    for ink, curve in zip(INKS, curves.values(), strict=False):
        across = LEFT + curve[:, 0] / max_steps * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (curve[:, 1] - low) / span * (HEIGHT - BOTTOM - TOP)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True))
        yield f'<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="1.5"/>'
    yield "</svg><p>"
    last = {name: 10 ** curve[-1, 1] if plot.log else curve[-1, 1] for name, curve in curves.items()}
    yield ", ".join(
        f'<b style="color:{ink}">{escape(name)}</b> {value:.4g}'
        for ink, (name, value) in zip(INKS, last.items(), strict=False)
    )
    yield "</p></section>\n"


def _curve(lines: Sequence[Mapping[str, float]], key: str, log: bool) -> np.ndarray:
    """A metric's (steps, values), at most `POINTS` of them; what is not finite, or has no logarithm, is left out."""
    values = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    kept = np.array([(step, value) for step, value in values if -HUGE < value < HUGE and (value > 0 or not log)])
    if log and len(kept):
        kept[:, 1] = np.log10(kept[:, 1])
    parts = np.array_split(kept, min(POINTS, len(kept))) if len(kept) else []
    return np.array([part.mean(axis=0) for part in parts])
