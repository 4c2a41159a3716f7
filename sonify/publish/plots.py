"""The pictures of a dataset's card: what is heard how often, how much at once, how loud, and from how many clips."""

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sonify.publish.markdown import plain
from sonify.publish.rows import Statistics

FOLDER = "plots"
MOST_CONCEPTS = 30
USES_SHOWN = 20  # clips that are heard more often share the last bar
LOUDNESS_STEP = 0.5  # LU, of `Statistics.target_lufs`
COLOUR = "#3465a4"


def write_plots(out: Path, statistics: Statistics) -> None:
    """Write `plots/*.png`; the same numbers give the same bytes."""
    (out / FOLDER).mkdir(exist_ok=True)
    figures = {
        "concepts": lambda: _concepts(statistics.concepts, statistics.distinct_concepts),
        "sources": lambda: _sources(statistics.sources_in_scene),
        "loudness": lambda: _loudness(statistics.target_lufs),
        "clip_use": lambda: _clip_use(statistics.clip_uses),
    }
    # the settings of whoever runs this are not the dataset's; a script that the font lacks is drawn as boxes
    with mpl.rc_context(mpl.rcParamsDefault), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, draw in figures.items():
            draw().savefig(out / plot(name), metadata={"Software": None})  # it would name the library's version


def plot(name: str) -> str:
    """Where a picture lies in DIR."""
    return f"{FOLDER}/{name}.png"


def _axes(title: str, x: str, y: str, height_inches: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, height_inches), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _concepts(concepts: Mapping[str, int], distinct: int) -> Figure:
    shown = sorted(concepts.items(), key=lambda counted: (-counted[1], counted[0]))[:MOST_CONCEPTS]
    title = f"The {len(shown)} most frequent of {distinct:,} concepts"
    figure, axes = _axes(title, "times heard", "", height_inches=1.2 + 0.21 * len(shown))
    axes.barh(range(len(shown)), [times for _, times in shown], color=COLOUR)
    # a name with dollar signs is no formula
    axes.set_yticks(range(len(shown)), [plain(name, 40) for name, _ in shown], parse_math=False)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _sources(scenes: Mapping[str, int]) -> Figure:
    return _bars("Sounds in a scene", ("sounds", "scenes"), {int(number): times for number, times in scenes.items()})


def _clip_use(uses: Mapping[str, int]) -> Figure:
    shown: Counter[int] = Counter()
    for times, clips in uses.items():
        shown[min(int(times), USES_SHOWN)] += clips
    last = f" ({USES_SHOWN}: as often or more)" if USES_SHOWN in shown else ""
    return _bars("How often a clip is heard", (f"times heard{last}", "clips"), shown)


def _bars(title: str, labels: tuple[str, str], counted: Mapping[int, int]) -> Figure:
    figure, axes = _axes(title, *labels)
    axes.bar(list(counted), list(counted.values()), color=COLOUR)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _loudness(sources: Mapping[str, int]) -> Figure:
    """Each bar covers the half LU above its name."""
    figure, axes = _axes("Target loudness of a sound", "integrated loudness, LUFS", "sounds")
    lows = [float(low) for low in sources]
    axes.bar(lows, list(sources.values()), width=LOUDNESS_STEP, align="edge", color=COLOUR, edgecolor="white")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
