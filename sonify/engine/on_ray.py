"""The executor on Ray Core: a pool of actors, each with its stage loaded, does unit after unit.

Only paths travel. An actor that dies is replaced and its unit tried again; a unit that kills twice is halved until
the rows that kill are found, and these are rejected. An actor that goes with its node says nothing against its unit.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from sonify.config import Config
from sonify.engine.actors import DEATHS_THAT_TELL, DIED, Actors
from sonify.engine.cluster import connect, live_nodes
from sonify.engine.job import Task
from sonify.engine.metrics import StageMetrics
from sonify.engine.stage import Stage
from sonify.engine.worker import Outcome, TooManyKillers, find_killers
from sonify.errors import InputError, WorkError

SECONDS_BETWEEN_LOOKS = 5.0
# A unit that takes its node with it would empty the cluster.
MOST_LOST_NODES = 5

Step = tuple[Any, ...]  # a method of the worker and what tells this call from others of the same unit
RUN, COUNT, FINISH = ("run",), ("count",), ("finish",)


class RayExecutor:
    """Does tasks on Ray actors, which stay for the next stage where it asks for the same resources."""

    def __init__(self, config: Config) -> None:
        connect(config)
        self._actors = Actors(config)

    def __call__(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes as units end.

        Raises:
            InputError, WorkError: the stage cannot be loaded, or no node can hold its workers.
        """
        actors = self._actors
        actors.begin(stage, len(tasks))
        metrics = StageMetrics(stage.key, len(tasks))
        units = _Units(stage.key, tasks)
        running: dict[Any, tuple[Any, _Unit]] = {}
        while units or running:
            while units and (actor := actors.take()):
                unit = units.take()
                running[unit.send(actor.handle)] = (actor, unit)
            ended, _ = ray.wait([*running, *actors.starting], timeout=SECONDS_BETWEEN_LOOKS)
            for ref in ended:
                if ref not in running:
                    actors.settle(ref)
                    continue
                actor, unit = running.pop(ref)
                try:
                    outcome = unit.receive(ref)
                except DIED as error:
                    actors.replace(actor)
                    outcome = unit.note_death(actor.node_id, error)
                else:
                    actors.put_back(actor)
                if outcome is None:
                    units.put_back(unit)
                else:
                    metrics.add(outcome, unit.seconds)
                    yield outcome
            actors.watch()

    def close(self) -> None:
        """Stop the actors, and the Ray that was started here."""
        self._actors.close()
        ray.shutdown()


class _Units:
    """Units that wait: those that are tried again before new ones."""

    def __init__(self, stage: str, tasks: Sequence[Task]) -> None:
        self._stage = stage
        self._fresh = iter(tasks)
        self._num_fresh = len(tasks)
        self._again: deque[_Unit] = deque()

    def __len__(self) -> int:
        return len(self._again) + self._num_fresh

    def take(self) -> "_Unit":
        if self._again:
            return self._again.popleft()
        self._num_fresh -= 1
        return _Unit(self._stage, next(self._fresh))

    def put_back(self, unit: "_Unit") -> None:
        self._again.append(unit)


class _Unit:
    """A unit on its way: run at once, or counted, probed and run without the rows that kill."""

    def __init__(self, stage: str, task: Task) -> None:
        self._stage = stage
        self._task = task
        self._step: Step = RUN
        self._deaths: dict[Step, list[str]] = {}
        self._num_rows: int = 0
        self._survives: dict[tuple[int, int], bool] = {}
        self._killers: Mapping[int, str] = {}
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def send(self, worker: Any) -> Any:
        """Have a worker do the next step."""
        if self._step == COUNT:
            return worker.count.remote(self._stage, self._task.unit)
        if self._step in (RUN, FINISH):
            return worker.run.remote(self._stage, self._task, self._killers)
        return worker.probe.remote(self._stage, self._task.unit, *self._step)

    def receive(self, ref: Any) -> Outcome | None:
        """How the unit ended, or None where another step follows.

        Raises:
            InputError, WorkError: the worker cannot load the stage any more.
        """
        try:
            result: Any = ray.get(ref)
        except RayTaskError as error:
            if self._step in (RUN, FINISH):
                raise error.cause if isinstance(error.cause, InputError | WorkError) else error from error
            if self._step == COUNT:
                return self._give_up(str(error))
            return self._learn(survives=True)  # raising is not dying: the worker finds such rows by itself
        if isinstance(result, Outcome):
            return result
        if self._step != COUNT:
            return self._learn(survives=True)
        self._num_rows = result
        return self._search()

    def note_death(self, node: str, error: Exception) -> Outcome | None:
        """Do the step again, or draw the conclusion where workers died of it whose nodes live."""
        deaths = self._deaths.setdefault(self._step, [])
        deaths.append(node)
        # looked at again each time: a worker may be known to be dead before its node is
        alive = live_nodes()
        lost = sum(node not in alive for nodes in self._deaths.values() for node in nodes)
        if lost >= MOST_LOST_NODES:
            return self._give_up(f"{lost} nodes were lost while it was done")
        # a wide range that is suspected wrongly costs time, a row would be lost
        wide = self._step not in (RUN, COUNT, FINISH) and self._step[1] - self._step[0] > 1
        if sum(node in alive for node in deaths) < (1 if wide else DEATHS_THAT_TELL):
            return None
        if self._step == RUN:
            self._step = COUNT
            return None
        if self._step in (COUNT, FINISH):
            return self._give_up(f"its worker dies again: {error}")
        return self._learn(survives=False)

    def _learn(self, survives: bool) -> Outcome | None:
        start, stop = self._step
        self._survives[start, stop] = survives
        return self._search()

    def _search(self) -> Outcome | None:
        """Follow the search with what is known so far; it ends at the first range that is not."""

        def survives(start: int, stop: int) -> bool:
            if (start, stop) not in self._survives:
                raise _NotProbedError(start, stop)
            return self._survives[start, stop]

        try:
            self._killers = dict.fromkeys(find_killers(0, self._num_rows, survives), "kills its worker")
        except _NotProbedError as unknown:
            self._step = unknown.args
        except TooManyKillers:
            return self._give_up("so many of its rows kill their worker that the fault is not theirs")
        else:
            self._step = FINISH
        return None

    def _give_up(self, reason: str) -> Outcome:
        return Outcome(unit=self._task.unit, error=reason)


class _NotProbedError(Exception):
    """Whether the rows of a range kill is not known yet."""
