"""The workers of a stage as Ray actors: those that are starting, and those that have loaded it and are ready.

A worker without room is asked for and not waited for: the others do the work, and it joins when there is room.
"""

import logging
import time
from collections.abc import Collection
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

from sonify.config import Config
from sonify.engine.cluster import Resources, found_resources, live_nodes, resources_of, room_for
from sonify.engine.stage import Stage
from sonify.engine.worker import Worker
from sonify.errors import InputError, WorkError

log = logging.getLogger(__name__)

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

    def __init__(self, config: Config) -> None:
        self._config = config
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
        """Have workers load a stage.

        Raises:
            InputError: no live node could hold a worker, and the cluster does not grow.
        """
        assert not self._busy, self._busy
        resources = resources_of(stage, self._config.engine)
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
        """Say it now and then while the stage waits for its first worker to get a place.

        Raises:
            WorkError: the last node that could hold one is gone, and none came in its place.
        """
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
        if self._config.engine.autoscale or room_for(self._resources):
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
        engine = self._config.engine
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
        handle = self._remote.remote(self._config)
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
