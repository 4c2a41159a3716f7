"""Two ways of doing the same work, measured side by side in one process."""

import json
import statistics
import time
from collections.abc import Callable

from sonify.io.machine import processor
from sonify.retrieval.halves import has_half_units


def interleaved(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 5) -> tuple[float, float]:
    """Return the median seconds of each, taken in turns so that the machine's other work falls on both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(1 + rounds):
        for work, taken in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            work()
            if turn > 0:  # the first warms caches and lazy imports
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def report(name: str, ours: float, theirs: float, unit: str, **extra: object) -> None:
    """Print one JSON line. `ours` and `theirs` are rates: more is better, and so is a ratio above 1."""
    line = {
        "name": name,
        "ours": round(ours, 3),
        "theirs": round(theirs, 3),
        "ratio": round(ours / theirs, 3),
    }
    print(json.dumps({**line, "unit": unit, **extra}))


def cpu_name() -> str:
    """The CPU that the figures are of, and whether it has half-precision units."""
    return processor() + (", avx512_bf16" if has_half_units() else "")
