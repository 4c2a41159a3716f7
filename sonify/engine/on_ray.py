"""The executor on Ray Core: a pool of actors, each with its stage loaded, does unit after unit.

Only paths travel. An actor that dies is replaced and its unit tried again; a unit that kills twice is halved until
the rows that kill are found, and these are rejected.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayActorError, RayTaskError

from sonify.config import Config, Engine
from sonify.engine.job import Task
from sonify.engine.stage import Stage
from sonify.engine.worker import Outcome, TooManyKillers, Worker, find_killers
from sonify.errors import InputError, WorkError

# Units travel as paths, so next to nothing is ever stored.
OBJECT_STORE_BYTES = 100 << 20
# One death may be the machine's fault (a node lost, memory taken by others); a second one is looked into.
DEATHS_BEFORE_SEARCH = 2
LOOPBACK = "127.0.0.1"


class RayExecutor:
    """Does tasks on Ray actors, which stay for the next stage where it asks for the same resources."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._actors: list[Any] = []
        self._resources: tuple[float, float] | None = None
        connect(config)

    def __call__(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes as units end.

        Raises:
            WorkError: the stage cannot be loaded.
        """
        self._prepare(stage, len(tasks))
        waiting = deque((task, 0) for task in tasks)
        idle = list(self._actors)
        running: dict[Any, tuple[Any, Task, int]] = {}
        while waiting or running:
            while waiting and idle:
                actor, (task, deaths) = idle.pop(), waiting.popleft()
                running[actor.run.remote(stage.key, task, {})] = (actor, task, deaths)
            (ended,), _ = ray.wait(list(running))
            actor, task, deaths = running.pop(ended)
            try:
                yield ray.get(ended)
            except RayActorError:
                actor = self._replace(actor, stage)
                if deaths + 1 < DEATHS_BEFORE_SEARCH:
                    waiting.appendleft((task, deaths + 1))
                else:
                    actor, outcome = self._search(actor, stage, task)
                    yield outcome
            idle.append(actor)

    def close(self) -> None:
        """Stop the actors, and the Ray that was started here."""
        for actor in self._actors:
            ray.kill(actor)
        ray.shutdown()

    def _prepare(self, stage: Stage, num_tasks: int) -> None:
        resources = _resources(stage)
        if resources != self._resources:
            for actor in self._actors:
                ray.kill(actor)
            self._actors, self._resources = [], resources
        # more actors than the cluster has room for would be waited for in vain
        wanted = min(num_tasks, self._config.engine.workers or num_tasks, _room_for(stage.key, resources))
        while len(self._actors) < wanted:
            self._actors.append(self._start(stage))
        loading = [(actor, actor.load.remote(stage.key)) for actor in self._actors]
        for actor, loaded in loading:
            try:
                ray.get(loaded)
            except RayActorError:
                self._load_again(actor, stage)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, InputError | WorkError) else error from error

    def _load_again(self, dead: Any, stage: Stage) -> None:
        """One death may be the machine's fault; two while loading are the stage's."""
        try:
            ray.get(self._replace(dead, stage).load.remote(stage.key))
        except RayActorError as error:
            reason = " ".join(str(error).split())[:300]
            raise WorkError(f"{stage.key}: workers die while they load it: {reason}") from error

    def _start(self, stage: Stage) -> Any:
        # Ray gives a worker's numeric libraries as many threads as the stage has CPUs
        num_cpus, num_gpus = _resources(stage)
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(Worker)
        return remote.remote(self._config)

    def _replace(self, dead: Any, stage: Stage) -> Any:
        fresh = self._start(stage)
        self._actors = [fresh if actor is dead else actor for actor in self._actors]
        return fresh

    def _search(self, actor: Any, stage: Stage, task: Task) -> tuple[Any, Outcome]:
        """Halve a unit that killed its worker until the rows that kill are known, then do the rest."""

        def survives(start: int, stop: int) -> bool:
            nonlocal actor
            try:
                ray.get(actor.probe.remote(stage.key, task.unit, start, stop))
            except RayActorError:
                actor = self._replace(actor, stage)
                return False
            except RayTaskError:
                return True  # raising is not dying: the worker finds such rows by itself
            return True

        try:
            num_rows: int = ray.get(actor.count.remote(stage.key, task.unit))
            killers: Mapping[int, str] = dict.fromkeys(find_killers(0, num_rows, survives), "kills its worker")
            return actor, ray.get(actor.run.remote(stage.key, task, killers))
        except TooManyKillers:
            return actor, Outcome(
                unit=task.unit, error="so many of its rows kill their worker that the fault is not theirs"
            )
        except RayActorError as error:
            return self._replace(actor, stage), Outcome(unit=task.unit, error=f"its worker dies again: {error}")


def _resources(stage: Stage) -> tuple[float, float]:
    """CPUs and GPUs of one actor; what may run on a GPU does where there is any."""
    without = stage.gpu_optional and not ray.cluster_resources().get("GPU", 0)
    return stage.num_cpus, 0 if without else stage.num_gpus


def _room_for(stage: str, resources: tuple[float, float]) -> int:
    """How many actors the cluster has room for.

    Raises:
        InputError: not even one: Ray would wait for it without a word.
    """
    cluster = ray.cluster_resources()
    rooms = [cluster.get(name, 0) / asked for name, asked in zip(("CPU", "GPU"), resources, strict=True) if asked]
    room = int(min(rooms) + 1e-9)  # ten tenths of a GPU are one
    if room < 1:
        found = f"{cluster.get('CPU', 0):g} CPUs and {cluster.get('GPU', 0):g} GPUs"
        raise InputError(
            f"{stage}: a worker asks for {resources[0]:g} CPUs and {resources[1]:g} GPUs, and Ray has {found}: lower"
            " its `cpus` or `gpus`, or set `device: cpu`"
        )
    return room


def connect(config: Config) -> None:
    """Join the cluster that is named by the config or by RAY_ADDRESS, or start one on this machine.

    A Ray that is started here listens on loopback only and has no dashboard.

    Raises:
        InputError: the cluster is on another machine and lacks token authentication or a shared run directory.
    """
    address = config.engine.address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        address = None
    if address and not _is_local(address):
        _check_remote(config.engine, config, address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"engine.address: no cluster answers at {address}: {' '.join(str(error).split())}"
            ) from error
        return
    # Ray has one switch that makes it bind to loopback, meant for laptops: read by this process here, and by the
    # processes that it starts from the environment. Without it, every Ray port listens on all interfaces (measured).
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    terminate = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",
        num_cpus=max(config.engine.workers or 0, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address=LOOPBACK,
        **quiet,
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray puts its own handler there, which ends the process at once
    if any(node["NodeManagerAddress"] != LOOPBACK for node in ray.nodes()):
        ray.shutdown()
        raise WorkError("Ray does not listen on loopback only; start it yourself and set engine.address")


def _is_local(address: str) -> bool:
    host = address.removeprefix("ray://").rpartition(":")[0]
    return address == "auto" or host in (LOOPBACK, "localhost", "[::1]")


def _check_remote(engine: Engine, config: Config, address: str) -> None:
    if os.environ.get("RAY_AUTH_MODE") != "token" and not engine.unauthenticated:
        raise InputError(
            f"engine.address: {address} is not on this machine and RAY_AUTH_MODE is not 'token': whoever reaches an"
            " open Ray port runs code there; set RAY_AUTH_MODE=token on all nodes, or engine.unauthenticated=true"
        )
    if not config.run_dir.is_absolute():
        raise InputError(f"run_dir: a cluster needs an absolute path that all nodes see, found {config.run_dir}")
