"""Units on Ray: the workers of a stage as actors, and the tasks that they are given.

A worker without room is asked for and not waited for: the others do the work, and it joins when there is room.
"""

import logging
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.util.metrics import Counter, Gauge, Histogram

from sonify.config import Engine
from sonify.engine.cluster import connect, found_resources, live_nodes, resources_of, room_for
from sonify.engine.job import Resources, Stage, Task
from sonify.engine.worker import Outcome, TooManyKillers, Worker, find_killers
from sonify.errors import InputError, WorkError
from sonify.stores import Place

log = logging.getLogger(__name__)
SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]  # bounds of the histogram


class StageMetrics:
    """Counts what a stage does in this run of the command."""

    def __init__(self, stage: str, num_units: int) -> None:
        self._stage = {"stage": stage}
        tags = ("stage",)
        self._to_do = Gauge("sonify_units_to_do", "Units that the stage has still to do.", tags)
        self._done = Counter("sonify_units_done", "Units that were committed.", tags)
        self._given_up = Counter("sonify_units_given_up", "Units that stay undone.", tags)
        self._seconds = Histogram("sonify_unit_seconds", "From a unit's start to its end.", SECONDS, tags)
        self._rows_in = Counter("sonify_rows_in", "Rows that were read.", tags)
        self._rows_out = Counter("sonify_rows_out", "Rows that were written.", tags)
        self._rejected = Counter("sonify_rows_rejected", "Rows that left, by reason.", (*tags, "reason"))
        self._left = num_units
        self._to_do.set(num_units, self._stage)

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Count a unit that ended."""
        self._left -= 1
        self._to_do.set(self._left, self._stage)
        self._seconds.observe(seconds, self._stage)
        if outcome.commit is None:
            self._given_up.inc(1, self._stage)
            return
        self._done.inc(1, self._stage)
        rows = outcome.commit.rows
        for counter, number in ((self._rows_in, rows.rows_in), (self._rows_out, rows.rows_out)):
            if number:  # Ray counts no nothing
                counter.inc(number, self._stage)
        for reason, number in rows.rejected.items():
            self._rejected.inc(number, {**self._stage, "reason": reason})


# How a worker is found dead; one that Ray kills because memory runs out is not called an actor's error.
DIED = (RayActorError, OutOfMemoryError, NodeDiedError, RuntimeEnvSetupError, ActorUnschedulableError)
# One death may be the machine's fault (memory taken by others); two of the same kind are looked into.
DEATHS_THAT_TELL = 2
SECONDS_BETWEEN_WARNINGS = 60.0
# A node that was lost may come back: pods are started again, spot machines are bought again.
SECONDS_WITHOUT_NODE = 600.0


@dataclass(slots=True, eq=False)
class Actor:
    """A worker: `node` is known once it has a place, `loaded` ends when the stage is loaded."""

    handle: Any
    node: Any
    loaded: Any
    load_deaths: int = 0

    @property
    def node_id(self) -> str:
        """Where it runs, or ran; empty where it never had a place."""
        try:
            return ray.get(self.node, timeout=0)
        except (GetTimeoutError, *DIED):
            return ""


class Actors:
    """The actors of one run; they stay for the next stage where it asks for the same resources."""

    def __init__(self, engine: Engine, run_dir: Place, stages: Sequence[Stage]) -> None:
        self._engine = engine
        self._for_worker = (run_dir, tuple(stages))
        self._stage = ""
        self._resources: Resources | None = None
        self._remote: Any = None
        self._starting: dict[Any, Actor] = {}
        self._ready: list[Actor] = []
        self._busy: set[Actor] = set()
        self._lonely_since = self._said = 0.0

    @property
    def starting(self) -> Collection[Any]:
        """What ends when a worker is ready or dead: for `settle`."""
        return self._starting.keys()

    def begin(self, stage: Stage, num_tasks: int) -> None:
        """Have workers load a stage."""
        assert not self._busy, self._busy
        resources = resources_of(stage, self._engine)
        wanted = self._wanted(stage.key, resources, num_tasks)
        if resources != self._resources:
            self.close()
            # Ray gives a worker's numeric libraries as many threads as the stage has CPUs
            self._remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(Worker)
            self._resources = resources
        kept = [*self._ready, *self._starting.values()]
        self._stage = stage.key
        self._ready, self._starting = [], {}
        self._lonely_since = self._said = time.monotonic()
        for actor in kept:
            self._load(Actor(handle=actor.handle, node=actor.node, loaded=actor.handle.load.remote(stage.key)))
        for _ in range(wanted - len(kept)):
            self._start()

    def held_by(self, stage: Stage) -> Resources:
        """What each worker of the stage that is being done was given."""
        assert self._resources is not None, stage.key
        return self._resources

    def take(self) -> Actor | None:
        """A worker that has loaded the stage, if one is free."""
        if not self._ready:
            return None
        actor = self._ready.pop()
        self._busy.add(actor)
        return actor

    def put_back(self, actor: Actor) -> None:
        """Take a worker back that has done what it was given."""
        self._busy.remove(actor)
        self._ready.append(actor)

    def replace(self, dead: Actor) -> None:
        """Ask for a new worker in the place of one that died at its work."""
        self._busy.remove(dead)
        ray.kill(dead.handle)  # where only the way to it was lost, it must not go on
        self._start()

    def settle(self, ended: Any) -> None:
        """See how a worker's loading ended.

        Raises:
            InputError, WorkError: the stage cannot be loaded.
        """
        actor = self._starting.pop(ended)
        try:
            ray.get(ended)
        except DIED as error:
            self._start_again(actor, error)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, InputError | WorkError) else error from error
        else:
            self._ready.append(actor)

    def watch(self) -> None:
        """Say it now and then while the stage waits for its first worker to get a place."""
        now = time.monotonic()
        if self._ready or self._busy:
            self._lonely_since = self._said = now
            return
        if now - self._said < SECONDS_BETWEEN_WARNINGS or any(actor.node_id for actor in self._starting.values()):
            return
        assert self._resources is not None
        self._said = now
        text = f"{self._stage}: no worker has a place: {len(self._starting)} are asked for, each with"
        text += f" {self._resources}, and the cluster has {found_resources()}"
        if self._engine.autoscale or room_for(self._resources):
            log.warning("%s, others' work included; waiting", text)
        elif now - self._lonely_since < SECONDS_WITHOUT_NODE:
            log.warning("%s; waiting for a node to come back", text)
        else:
            raise WorkError(f"{text}; none came back in {SECONDS_WITHOUT_NODE / 60:g} minutes")

    def close(self) -> None:
        """Stop all of them."""
        for actor in (*self._ready, *self._starting.values(), *self._busy):
            ray.kill(actor.handle)
        self._ready, self._starting, self._busy = [], {}, set()

    def _wanted(self, stage: str, resources: Resources, num_tasks: int) -> int:
        engine = self._engine
        if engine.autoscale:  # a cluster grows because it is asked for more than it has
            assert engine.workers is not None, engine
            return min(num_tasks, engine.workers)
        room = room_for(resources)
        if room < 1:
            raise InputError(
                f"{stage}: a worker asks for {resources}, and Ray has {found_resources()}, none with room for one:"
                " lower its `cpus` or `gpus`, or set `device: cpu`; engine.autoscale=true waits for new nodes"
            )
        return min(num_tasks, engine.workers or num_tasks, room)

    def _start(self, load_deaths: int = 0) -> None:
        handle = self._remote.remote(*self._for_worker)
        node = handle.__ray_call__.remote(_node_of)
        self._load(Actor(handle=handle, node=node, loaded=handle.load.remote(self._stage), load_deaths=load_deaths))

    def _load(self, actor: Actor) -> None:
        self._starting[actor.loaded] = actor

    def _start_again(self, dead: Actor, error: Exception) -> None:
        ray.kill(dead.handle)
        deaths = dead.load_deaths + (dead.node_id in live_nodes() or not dead.node_id)
        if deaths < DEATHS_THAT_TELL:
            self._start(deaths)
            return
        reason = " ".join(str(error).split())[:300]
        if not (self._ready or self._busy or self._starting):
            raise WorkError(f"{self._stage}: workers die while they load it: {reason}") from error
        log.warning("%s: a worker died twice while loading it and is given up: %s", self._stage, reason)


def _node_of(_worker: Worker) -> str:
    return ray.get_runtime_context().get_node_id()


SECONDS_BETWEEN_LOOKS = 5.0
# A unit that takes its node with it would empty the cluster.
MOST_LOST_NODES = 5
Step = tuple[Any, ...]  # a method of the worker and what tells this call from others of the same unit
RUN, COUNT, FINISH = ("run",), ("count",), ("finish",)


class RayExecutor:
    """Does tasks on Ray actors, which stay for the next stage where it asks for the same resources."""

    def __init__(self, engine: Engine, run_dir: Place, stages: Sequence[Stage]) -> None:
        self._disconnect = connect(engine, run_dir)
        self._actors = Actors(engine, run_dir, stages)

    def __call__(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes as units end."""
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

    def held_by(self, stage: Stage) -> Resources:
        """What each of the workers at a stage was given."""
        return self._actors.held_by(stage)

    def close(self) -> None:
        """Stop the actors, and the Ray that was started here."""
        self._actors.close()
        self._disconnect()


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
        """How the unit ended, or None where another step follows."""
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
