"""One display of progress, by the driver: a live line on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from sonify.io.commits import Count

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class StageProgress:
    """Counts one stage's units and rows, and says how fast it goes and how long it will take.

    The time left is reckoned from the units of this call, and from the end of the first on: before it, workers start
    and load models, once and not once a unit. It is said when that has been watched for as long as the first unit took.
    """

    def __init__(self, stage: str, units_done: int, units_total: int) -> None:
        self._stage = stage
        self._total = units_total
        self._done = units_done
        self._finished = 0
        self._rows = 0
        self._rejected = 0
        self._started = time.monotonic()
        self._first: float | None = None
        self._said = self._started

    def add(self, rows: Count) -> None:
        """Count a finished unit."""
        self._done += 1
        self._finished += 1
        self._rows += rows.rows_in
        self._rejected += sum(rows.rejected.values())
        if self._first is None:
            self._first = time.monotonic()

    @property
    def units(self) -> tuple[int, int]:
        """Units done and in all."""
        return self._done, self._total

    @property
    def due(self) -> bool:
        """Whether a plain line is due; asking resets the clock."""
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_LINES:
            return False
        self._said = now
        return True

    def line(self) -> str:
        """The state in words."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        left = self._seconds_left()
        time_left = "" if left is None else f", {spell_duration(left)} left"
        return (
            f"{self._stage}: {self._done}/{self._total} units, {self._rows / seconds:,.1f} rows/s,"
            f" {self._rejected:,} rejected{time_left}"
        )

    def _seconds_left(self) -> float | None:
        to_do = self._total - self._done
        if self._first is None or self._finished < 2 or not to_do:
            return None
        watched = time.monotonic() - self._first
        return to_do * watched / (self._finished - 1) if watched >= self._first - self._started else None


class Display:
    """Shows stages one after the other."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def start(self, state: StageProgress) -> None:
        """Show a new stage."""
        if self._progress is not None:
            self._task = self._progress.add_task(state.line(), total=state.units[1], completed=state.units[0])

    def update(self, state: StageProgress) -> None:
        """Show a stage's new state."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=state.units[0], description=state.line())
        elif state.due and state.units[0] < state.units[1]:
            _say(state.line())

    def finish(self, state: StageProgress) -> None:
        """Leave the stage's last state standing."""
        if self._progress is None:
            _say(state.line())
        self._task = None


@contextmanager
def open_display() -> Iterator[Display]:
    """A live display where stderr is a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Display(None)
        return
    with Progress(BarColumn(bar_width=20), TextColumn("{task.description}"), console=console) as progress:
        yield Display(progress)


def _say(line: str) -> None:
    """Log a line where logging was set up for it, else write it: a notebook sets nothing up, and would show nothing.

    Whoever gives the logger `sonify` a level of its own has set it up.
    """
    if log.isEnabledFor(logging.INFO) or logging.getLogger("sonify").level != logging.NOTSET:
        log.info(line)
    else:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def spell_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
