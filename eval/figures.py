"""Figures of the studies: means with the interval that says how far to trust them, grids of images, curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from eval.statistics import mean_estimate

# Told apart by readers who see red and green as one (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("o-", "s--", "^:", "D-.", "v-", "P--")  # lines that lie upon each other are all seen
CELL_INCHES = 1.7
LEFT_INCHES = 1.6  # for the titles of the rows
IMAGE_PIXELS = 256  # in the figure; more would not be seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its 95 % bootstrap interval (percentile method)."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float] | np.ndarray, seed: int) -> Interval:
    """The mean of independent values (one a seed, or one a clip) with its interval."""
    found = mean_estimate(values, seed)
    if found.low is None or found.high is None:
        raise ValueError("expected two values at least, found 1")
    return Interval(mean=found.value, low=found.low, high=found.high)


def image_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    title: str,
    extra_inches: float = 0.0,
) -> tuple[Figure, np.ndarray]:
    """Images in rows, the caption of each below it; returns the figure and the axes of the cells.

    `extra_inches` are left free at the bottom, for curves.
    """
    columns = max(len(row) for row in rows)
    width = max(LEFT_INCHES + columns * CELL_INCHES, 5.0)
    height = 0.7 + len(rows) * (CELL_INCHES + 0.35) + extra_inches
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        len(rows),
        columns,
        left=LEFT_INCHES / width,
        right=1 - 0.1 / width,
        top=1 - 0.55 / height,
        bottom=(extra_inches + 0.4) / height,
        hspace=0.3,
        wspace=0.06,
    )
    axes = np.array([[figure.add_subplot(grid[r, c]) for c in range(columns)] for r in range(len(rows))])
    figure.suptitle(title, fontsize=11, y=1 - 0.15 / height, va="top")
    for row_axes, row, row_title, row_captions in zip(axes, rows, row_titles, captions, strict=True):
        for cell in row_axes:
            cell.set_axis_off()
        for cell, image, caption in zip(row_axes, row, row_captions, strict=False):
            if image is not None:
                show_image(cell, image, caption)
        row_axes[0].text(
            -0.08, 0.5, row_title, transform=row_axes[0].transAxes, ha="right", va="center", fontsize=9, wrap=True
        )
    return figure, axes


def show_image(axes: Axes, image: Image.Image, caption: str) -> None:
    """One image without axes, its caption below it."""
    axes.imshow(np.asarray(image.convert("RGB").resize((IMAGE_PIXELS, IMAGE_PIXELS))), interpolation="nearest")
    axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha="center", va="top", fontsize=7)


def plot_intervals(axes: Axes, curves: Mapping[str, Mapping[float, Interval]], x_label: str, y_label: str) -> None:
    """One curve a name, from zero up: means, and their intervals as a band."""
    for (name, points), colour, style in zip(curves.items(), COLOURS, STYLES, strict=False):
        x = sorted(points)
        axes.plot(x, [points[at].mean for at in x], style, color=colour, label=name, markersize=6)
        axes.fill_between(
            x, [points[at].low for at in x], [points[at].high for at in x], color=colour, alpha=0.18, linewidth=0
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=8)
