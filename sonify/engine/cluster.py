"""The Ray that a run works on: joined where one is named, else started on this machine; and what it has room for."""

import logging
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import grpc
import ray
from ray._common.tls_utils import load_certs_from_env
from ray._private import ray_constants
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import AuthenticationError, RaySystemError

from sonify.config import Engine
from sonify.engine.job import Resources, Stage
from sonify.errors import InputError, WorkError
from sonify.installed import ROOT
from sonify.io.machine import short_folder, usable_cpus, why_no_sockets
from sonify.stores import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Named:
    """The address of a cluster to join, and what names it: the configuration's key or the environment's variable."""

    by: str
    address: str


def named_address(engine: Engine) -> Named | None:
    """The cluster to join, by the config or by RAY_ADDRESS (which a job finds set); None where Ray is started here.

    Raises:
        InputError: it is the address of something else.
    """
    found = (("engine.address", engine.address), ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS")))
    named = next((Named(by, address.strip()) for by, address in found if address and address.strip()), None)
    if named is None or named.address == "local":
        return None
    scheme = named.address.partition("://")[0].lower()
    if scheme in ("http", "https"):
        raise InputError(
            f"{named.by}: {named.address} is the address of a job server, by which `ray job submit` sends a command to"
            " a cluster: submit this one, or give the cluster's own address (HOST:6379), or unset it to start Ray here"
        )
    if scheme == "ray":
        raise InputError(f"{named.by}: {named.address} is a Ray client's: give HOST:PORT, or submit the run as a job")
    return named


def check_seen_by_workers(engine: Engine, run_dir: Place) -> None:
    """Workers of a cluster that is joined run in directories of their own, and those of a job in a copy."""
    named = named_address(engine) if engine.kind == "ray" else None
    if named and not run_dir.is_absolute():
        raise InputError(
            f"run_dir: the workers of the cluster at {named.address} run in other directories (a job's in a temporary"
            f" copy of its working directory): expected an absolute path that all nodes see or s3://..., found"
            f" {run_dir}"
        )


# Units travel as paths, so next to nothing is ever stored.
OBJECT_STORE_BYTES = 100 << 20
LOOPBACK = "127.0.0.1"
QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
# A cluster answers in milliseconds; Ray itself tries for minutes, and says so on many lines.
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 4.0
# Any request that a cluster's head knows.
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
# What Ray puts behind the folder that it is given, and behind `TMPDIR`; a process's id has 7 digits at most.
BELOW_RAY = "/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"


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


def _check_not_shadowed() -> None:
    """Ray's workers look into the working folder first, where a script is easily called as this package is."""
    for path in (Path.cwd() / "sonify.py", Path.cwd() / "sonify" / "__init__.py"):
        if path.is_file() and not path.is_relative_to(ROOT):
            raise InputError(
                f"{path}: Ray's workers would take it for this package: call it otherwise, run from another folder, or"
                " set engine.kind=local"
            )


def connect(engine: Engine, run_dir: Place) -> Callable[[], None]:
    """Join the cluster that is named, or start one on this machine.

    A Ray that is started here listens on loopback only and has no dashboard.

    Returns:
        What ends it again, with all that it left.

    Raises:
        InputError: no cluster answers, its workers would not find the run directory, or it is on another machine and
            open to all; or nothing can be written for a Ray that is started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS", "-").strip():
        del os.environ["RAY_ADDRESS"]  # Ray takes a blank for an address
    _check_not_shadowed()
    named = named_address(engine)
    with _keep_signals():
        if named is None:
            return _start(engine)
        check_seen_by_workers(engine, run_dir)
        _join(engine, named)
        return ray.shutdown


@contextmanager
def _keep_signals() -> Iterator[None]:
    """Ray puts its own handler for SIGTERM there, which ends the process at once."""
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)


def _join(engine: Engine, named: Named) -> None:
    try:
        address = _resolve(named)
        if not _is_local(address) and not engine.unauthenticated:
            _check_token(named.by, address)
        else:
            _ask_strangely(named.by, address)
        ray.init(address=address, **QUIET)
    except (AuthenticationError, ConnectionError, RaySystemError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{named.by}: no cluster lets us in at {named.address}: {' '.join(str(error).split())[:300]}"
        ) from error


def _resolve(named: Named) -> str:
    """What `auto` stands for: the cluster that was started on this machine, or the one that a job runs on."""
    if named.address != "auto":
        return named.address
    try:
        return get_ray_address_from_environment("auto", None).strip()
    except ConnectionError as error:
        raise InputError(
            f"{named.by}: auto is the Ray that runs on this machine, and none does: `ray start --head` starts one, and"
            " without an address the run does"
        ) from error


def _check_token(by: str, address: str) -> None:
    why = "whoever reaches an open Ray port runs code there; set RAY_AUTH_MODE=token on all nodes and here"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise InputError(
            f"{by}: {address} is not on this machine and RAY_AUTH_MODE is not 'token': {why}, or"
            " engine.unauthenticated=true"
        )
    if _ask_strangely(by, address):
        raise InputError(f"{by}: {address} answers those who have no token: {why}, or engine.unauthenticated=true")


def _ask_strangely(by: str, address: str) -> bool:
    """Ask a cluster's head, without a token, whether it is alive: False where it wants one.

    Not by Ray, which tries for minutes and ends the process where it fails: this ends in `CONNECT_SECONDS` and
    `PROBE_SECONDS`.

    Raises:
        InputError: nothing answers there, or something else than Ray.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not host:
        raise InputError(f"{by}: expected HOST:PORT, such as 10.0.0.1:6379, found {address!r}")
    if why := _why_unreachable(host.strip("[]"), int(port)):
        raise InputError(
            f"{by}: nothing answers at {address} ({why}): is the cluster up, and is it its head's address?"
        )
    code = _answer_of(address)
    if code is grpc.StatusCode.OK:
        return True
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return False
    raise InputError(
        f"{by}: what answers at {address} is no Ray, or one that is not well ({code.name.lower()}): give the port of"
        " the head (6379 where none was chosen), not of its dashboard"
    )


def _why_unreachable(host: str, port: int) -> str:
    """What keeps us from a port; empty where it is open. Not even a resolver without an end holds us up."""
    said: Queue[str] = Queue()

    def look() -> None:
        try:
            with socket.create_connection((host, port), CONNECT_SECONDS):
                said.put("")
        except (OSError, UnicodeError, OverflowError) as error:
            said.put(getattr(error, "strerror", "") or str(error) or type(error).__name__)

    threading.Thread(target=look, daemon=True).start()
    try:
        return said.get(timeout=CONNECT_SECONDS + 1)
    except Empty:
        return f"no answer in {CONNECT_SECONDS:g} s"


def _answer_of(address: str) -> grpc.StatusCode:
    """How a server takes a request of Ray's without a token; a proxy is not asked."""
    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        chain, key, authority = load_certs_from_env()
        credentials = grpc.ssl_channel_credentials(authority, key, chain)
        channel = grpc.secure_channel(address, credentials, options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            return error.code()  # pyright: ignore[reportAttributeAccessIssue] - of a call, which this is
    return grpc.StatusCode.OK


def _start(engine: Engine) -> Callable[[], None]:
    # Ray has one switch that makes it bind to loopback, meant for laptops: read by this process here, and by the
    # processes that it starts from the environment. Without it, every Ray port listens on all interfaces (measured).
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    _check_loopback()
    _give_token()
    folder = _own_folder()

    def end() -> None:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    try:
        ray.init(
            address="local",
            num_cpus=max(engine.workers or 0, usable_cpus()),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address=LOOPBACK,
            _temp_dir=None if folder is None else str(folder),
            **QUIET,
        )
        if any(node["NodeManagerAddress"] != LOOPBACK for node in ray.nodes()):
            raise WorkError("Ray does not listen on loopback only; start it yourself and set engine.address")
    except (RuntimeError, RaySystemError, ConnectionError, OSError) as error:
        end()
        raise WorkError(
            f"Ray does not start on this machine: {' '.join(str(error).split())[:300]}; engine.kind=local does without"
        ) from error
    except BaseException:
        end()
        raise
    return end


def _check_loopback() -> None:
    """Ray tries for half a minute where it has no address to listen on."""
    try:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
    except OSError as error:
        raise InputError(
            f"engine.kind: this machine has no {LOOPBACK} ({error.strerror}), and Ray listens there: set"
            " engine.kind=local"
        ) from error


def _give_token() -> None:
    """Ray keeps the token of what it starts in the home folder; who has none that can be written gets one for now."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(exist_ok=True)
        is_writable = (folder / "auth_token").is_file() or os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # no such home, or none at all
        is_writable = False
    if not is_writable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _own_folder() -> Path | None:
    """A folder for Ray's sockets and logs where the one that it would take cannot be used; None where it can."""
    names = [name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ]
    by, wanted = (names[0], os.environ[names[0]]) if names else ("TMPDIR", "/tmp")  # noqa: S108 - as Ray does
    below = os.path.join(wanted, "ray")
    why = why_no_sockets(wanted, len("/ray") + len(BELOW_RAY))
    if not why and os.path.lexists(below):  # of an earlier Ray, perhaps somebody else's
        why = why_no_sockets(below, len(BELOW_RAY))
    if not why:
        return None
    folder = short_folder(len(BELOW_RAY))
    if folder is None:
        raise InputError(f"{by}: {wanted!r} {why}, and no usual folder can be used: name one, of a short name")
    log.info("%s: %r %s: Ray's files are in %s while it runs", by, wanted, why, folder)
    return folder


def _is_local(address: str) -> bool:
    return address.rpartition(":")[0] in (LOOPBACK, "localhost", "[::1]")
