"""Does tasks, wherever it runs: in this process or as a Ray actor. It loads a stage once and keeps it."""

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sonify.engine.job import Job, Resources, Stage, Task, count_rows_in, probe_task, run_task
from sonify.errors import ConcernsAll, DiskFull, InputError, TransientError, WorkError
from sonify.io.commits import Commit
from sonify.stores import Place

# In one unit; each costs some ten passes over a part of it.
MOST_KILLERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a task ended: with a commit, or with an error that leaves the unit undone.

    `seconds` are the worker's own, without loading the stage; `load_seconds` come with the first unit after it.
    """

    unit: str
    commit: Commit | None = None
    error: str = ""
    disk_full: bool = False
    concerns_all: bool = False  # no other unit would fare better
    seconds: float = 0.0
    load_seconds: float = 0.0


class Worker:
    """One stage at a time, unit after unit."""

    def __init__(self, run_dir: Place, stages: Sequence[Stage]) -> None:
        self._run_dir = run_dir
        self._stages = {stage.key: stage for stage in stages}
        self._stage_key = ""
        self._job: Job | None = None
        self._load_seconds = 0.0

    def _load(self, stage_key: str) -> Job:
        if self._job is None or stage_key != self._stage_key:
            self.close()  # before the next model is loaded beside it
            started = time.monotonic()
            try:
                self._job, self._stage_key = self._stages[stage_key].load(), stage_key
            except TransientError as error:
                raise WorkError(f"{stage_key}: {error}") from error
            self._load_seconds = time.monotonic() - started
        return self._job

    def close(self) -> None:
        """End what the loaded stage has started."""
        if self._job is not None:
            self._job.close()
        self._job = None

    def load(self, stage_key: str) -> None:
        """Load a stage now, so that what is wrong with its models or settings shows before any unit."""
        self._load(stage_key)

    def run(self, stage_key: str, task: Task, crashed: Mapping[int, str]) -> Outcome:
        """Do one unit. A row that raises is found by halving the unit and rejected; other errors leave it undone."""
        job = self._load(stage_key)
        started = time.monotonic()
        outcome = self._do(job, task, crashed)
        loading, self._load_seconds = self._load_seconds, 0.0
        return replace(outcome, seconds=time.monotonic() - started, load_seconds=loading)

    def _do(self, job: Job, task: Task, crashed: Mapping[int, str]) -> Outcome:
        try:
            return self._attempt(job, task, crashed)
        except (OSError, MemoryError) as error:
            return Outcome(unit=task.unit, error=_traceback(error))  # the machine's trouble, not a row's
        except Exception as error:  # noqa: BLE001 - recorded with the unit: a bad unit never stops a run
            return self._search(job, task, crashed, error)

    def _attempt(self, job: Job, task: Task, crashed: Mapping[int, str]) -> Outcome:
        try:
            return Outcome(unit=task.unit, commit=run_task(self._run_dir, job, task, crashed))
        except DiskFull as error:
            return Outcome(unit=task.unit, error=str(error), disk_full=True)
        except (InputError, TransientError, WorkError) as error:
            return _undone(task, error)

    def _search(self, job: Job, task: Task, crashed: Mapping[int, str], error: Exception) -> Outcome:
        found: dict[int, str] = {}

        def survives(start: int, stop: int) -> bool:
            try:
                probe_task(job, task.unit, start, stop, crashed)
            except (InputError, TransientError, WorkError):
                raise  # no row's fault: the unit stays undone
            except Exception as row_error:  # noqa: BLE001 - the row is named in the rejects with this
                if stop - start == 1:
                    found[start] = f"{type(row_error).__name__}: {row_error}"
                return False
            return True

        try:
            find_killers(0, count_rows_in(job, task.unit), survives)
            if found:
                return self._attempt(job, task, {**crashed, **found})
        except (InputError, TransientError, WorkError) as again:
            return _undone(task, again)
        except TooManyKillers:
            pass  # rows in numbers do not break by themselves: it is the stage, and the unit stays undone
        except Exception as again:  # noqa: BLE001 - as in `_do`
            error = again
        return Outcome(unit=task.unit, error=_traceback(error))

    def probe(self, stage_key: str, unit: str, start: int, stop: int) -> None:
        """Process some rows and keep nothing."""
        probe_task(self._load(stage_key), unit, start, stop, {})

    def count(self, stage_key: str, unit: str) -> int:
        """How many rows a unit reads."""
        return count_rows_in(self._load(stage_key), unit)


def _undone(task: Task, error: Exception) -> Outcome:
    return Outcome(unit=task.unit, error=str(error), concerns_all=isinstance(error, ConcernsAll))


class TooManyKillers(Exception):
    """So many rows do not survive that the fault is not theirs."""


def find_killers(start: int, stop: int, survives: Callable[[int, int], bool]) -> list[int]:
    """Halve a range of rows until each row that does not survive on its own is found."""
    killers: list[int] = []
    ranges = [(start, stop)]
    while ranges:
        first, last = ranges.pop()
        if first >= last or survives(first, last):
            continue
        if last - first > 1:
            middle = (first + last) // 2
            ranges += [(middle, last), (first, middle)]
            continue
        killers.append(first)
        if len(killers) > MOST_KILLERS:
            raise TooManyKillers
    return killers


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class LocalExecutor:
    """Does tasks here; a row that kills the process kills the run, which resumes."""

    def __init__(self, run_dir: Place, stages: Sequence[Stage]) -> None:
        self._worker = Worker(run_dir, stages)

    def __call__(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes in the order of the tasks."""
        for task in tasks:
            yield self._worker.run(stage.key, task, {})

    def held_by(self, stage: Stage) -> Resources:
        """What a stage takes of this machine; where a GPU is a matter of choice, once the stage is loaded."""
        torch = sys.modules.get("torch")  # by now imported by whatever has a network
        without = stage.gpu_optional and not (torch and torch.cuda.is_available())
        return Resources(stage.num_cpus, 0 if without else stage.num_gpus)

    def close(self) -> None:
        """End what the last stage has started."""
        self._worker.close()
