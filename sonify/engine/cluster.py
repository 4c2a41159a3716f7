"""The Ray that a run works on: joined where one is named, else started on this machine; and what it has room for."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import AuthenticationError, RaySystemError

from sonify.config import Engine
from sonify.engine.job import Stage
from sonify.errors import InputError, WorkError
from sonify.stores import Place


def named_address(engine: Engine) -> str | None:
    """The cluster to join, by the config or by RAY_ADDRESS (which a job finds set); None where Ray is started here."""
    address = engine.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def check_seen_by_workers(engine: Engine, run_dir: Place) -> None:
    """Workers of a cluster that is joined run in directories of their own, and those of a job in a copy."""
    address = named_address(engine) if engine.kind == "ray" else None
    if address and not run_dir.is_absolute():
        raise InputError(
            f"run_dir: the workers of the cluster at {address} run in other directories (a job's in a temporary copy"
            f" of its working directory): expected an absolute path that all nodes see or s3://..., found"
            f" {run_dir}"
        )


# Units travel as paths, so next to nothing is ever stored.
OBJECT_STORE_BYTES = 100 << 20
LOOPBACK = "127.0.0.1"
QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
PROBE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker of a stage takes."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def resources_of(stage: Stage, engine: Engine) -> Resources:
    """What may run on a GPU does where there is any, or where the cluster would fetch one."""
    without = stage.gpu_optional and not engine.autoscale and not ray.cluster_resources().get("GPU", 0)
    return Resources(stage.num_cpus, 0 if without else stage.num_gpus)


def room_for(resources: Resources) -> int:
    """How many such workers the live nodes could hold if nobody else worked there; one has to fit on one node."""
    asked = [(name, number) for name, number in (("CPU", resources.cpus), ("GPU", resources.gpus)) if number]
    # ten tenths of a GPU are one
    return sum(
        int(min(node["Resources"].get(name, 0) / number for name, number in asked) + 1e-9)
        for node in ray.nodes()
        if node["Alive"]
    )


def found_resources() -> str:
    """What there is, in words."""
    cluster = ray.cluster_resources()
    nodes = len(live_nodes())
    return f"{cluster.get('CPU', 0):g} CPUs and {cluster.get('GPU', 0):g} GPUs on {nodes} node{'s' * (nodes != 1)}"


def live_nodes() -> frozenset[str]:
    """The ids of the nodes that are there."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def connect(engine: Engine, run_dir: Place) -> None:
    """Join the cluster that is named, or start one on this machine.

    A Ray that is started here listens on loopback only and has no dashboard.

    Raises:
        InputError: no cluster answers, its workers would not find the run directory, or it is on another machine and
            open to all.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = named_address(engine)
    with _keep_signals():
        if address is None:
            _start(engine)
        else:
            check_seen_by_workers(engine, run_dir)
            _join(engine, address)


@contextmanager
def _keep_signals() -> Iterator[None]:
    """Ray puts its own handler for SIGTERM there, which ends the process at once."""
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)


def _join(engine: Engine, address: str) -> None:
    try:
        address = _resolve(address)
        if not _is_local(address) and not engine.unauthenticated:
            _check_token(address)
        ray.init(address=address, **QUIET)
    except (AuthenticationError, ConnectionError, RaySystemError, RuntimeError, ValueError) as error:
        raise InputError(
            f"engine.address: no cluster lets us in at {address}: {' '.join(str(error).split())[:300]}"
        ) from error


def _check_token(address: str) -> None:
    why = "whoever reaches an open Ray port runs code there; set RAY_AUTH_MODE=token on all nodes and here"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise InputError(
            f"engine.address: {address} is not on this machine and RAY_AUTH_MODE is not 'token': {why}, or"
            " engine.unauthenticated=true"
        )
    if not _refuses_strangers(address):
        raise InputError(
            f"engine.address: {address} answers those who have no token: {why}, or engine.unauthenticated=true"
        )


def _refuses_strangers(address: str) -> bool:
    """A cluster that was started without authentication takes any token, ours as well."""
    without = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH_")}
    # another process: this one's Ray has read its token already
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        probe = subprocess.run(  # noqa: S603 - our interpreter, and an address of the user's configuration
            command,
            env=without | {"RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"engine.address: nothing answers at {address} for {PROBE_SECONDS:g} s") from error
    said = probe.stderr.decode(errors="replace")
    if probe.returncode != 0 and AuthenticationError.__name__ not in said:
        last = (said.strip().splitlines() or ["nothing"])[-1][:200]
        raise InputError(f"engine.address: no cluster answers at {address}: {last}")
    return probe.returncode != 0


def _start(engine: Engine) -> None:
    # Ray has one switch that makes it bind to loopback, meant for laptops: read by this process here, and by the
    # processes that it starts from the environment. Without it, every Ray port listens on all interfaces (measured).
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray.init(
        address="local",
        num_cpus=max(engine.workers or 0, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address=LOOPBACK,
        **QUIET,
    )
    if any(node["NodeManagerAddress"] != LOOPBACK for node in ray.nodes()):
        ray.shutdown()
        raise WorkError("Ray does not listen on loopback only; start it yourself and set engine.address")


def _resolve(address: str) -> str:
    """What `auto` stands for: RAY_ADDRESS, or the cluster that was started on this machine."""
    if address.startswith("ray://"):
        raise InputError(f"engine.address: {address} is a Ray client's: give HOST:PORT, or submit the run as a job")
    return str(get_ray_address_from_environment(address, None)) if address == "auto" else address


def _is_local(address: str) -> bool:
    return address.rpartition(":")[0] in (LOOPBACK, "localhost", "[::1]")
