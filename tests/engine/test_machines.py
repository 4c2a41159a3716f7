"""Machines as people have them: where no cluster answers, where sockets do not fit, where CPUs are others'."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from sonify.config import Engine
from sonify.engine import cluster
from sonify.engine.cluster import BELOW_RAY, connect, named_address
from sonify.io.machine import MAX_SOCKET_PATH_BYTES
from sonify.running import run
from tests.builders import hash_run, refused, small_config, small_input
from tests.processes import run_on_small_disk

LOOPBACK = "127.0.0.1"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of a short name, for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


# --- addresses


@contextmanager
def a_closed_port():
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
    yield f"{LOOPBACK}:{port}"


@contextmanager
def a_port_that_drops_what_comes():
    """A listener whose queue is full: the system answers nobody else, as a firewall does."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"{LOOPBACK}:{server.getsockname()[1]}"


@contextmanager
def a_port_that_says_nothing():
    with socket.create_server((LOOPBACK, 0)) as server:
        yield f"{LOOPBACK}:{server.getsockname()[1]}"


@contextmanager
def a_web_server():
    with ThreadingHTTPServer((LOOPBACK, 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"{LOOPBACK}:{server.server_port}"
        server.shutdown()


@contextmanager
def another_service_of_the_same_protocol():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    yield f"{LOOPBACK}:{port}"
    server.stop(None)


@contextmanager
def a_name_that_nobody_has():
    yield "no-such-host.invalid:6379"


DEAD = [
    (a_closed_port, "nothing answers at .* (Connection refused)"),
    (a_port_that_drops_what_comes, "nothing answers at .*(timed out|no answer)"),
    (a_name_that_nobody_has, "nothing answers at no-such-host.invalid:6379"),
    (a_port_that_says_nothing, "what answers at .* is no Ray"),
    (a_web_server, "what answers at .* is no Ray"),
    (another_service_of_the_same_protocol, "what answers at .* is no Ray, .*unimplemented"),
]


@pytest.mark.parametrize(("opened", "said"), DEAD, ids=[opened.__name__ for opened, _ in DEAD])
def test_where_no_cluster_is_that_is_said_at_once_and_in_one_line(tmp_path, monkeypatch, capfd, opened, said):
    for name in ("http_proxy", "grpc_proxy"):  # which is not asked
        monkeypatch.setenv(name, f"http://{LOOPBACK}:1")
    began = time.monotonic()
    with opened() as address, refused(said.replace("(C", r"\(C").replace("d)", r"d\)")) as error:
        monkeypatch.setenv("RAY_ADDRESS", f" {address} ")
        connect(Engine(kind="ray", unauthenticated=True), tmp_path)
    assert str(error.value).startswith("RAY_ADDRESS: ")
    assert time.monotonic() - began < 10
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not cluster.ray.is_initialized()


@pytest.mark.parametrize("address", ["localhost", "6379", ":6379", "localhost:", "localhost:ray", "localhost:99999999"])
def test_what_is_no_address_is_refused(tmp_path, address):
    with refused("engine.address: (expected HOST:PORT|nothing answers at)"):
        connect(Engine(kind="ray", address=address, unauthenticated=True), tmp_path)


@pytest.mark.parametrize("blank", ["", " ", "\t\n", "local"])
def test_a_blank_address_is_none(monkeypatch, blank):
    monkeypatch.setenv("RAY_ADDRESS", blank)
    assert named_address(Engine(kind="ray")) is None
    assert named_address(Engine(kind="ray", address=blank)) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    named = named_address(Engine(kind="ray", address=" "))
    assert named is not None
    assert (named.by, named.address) == ("RAY_ADDRESS", "10.0.0.1:6379")
    named = named_address(Engine(kind="ray", address="10.0.0.2:6379"))
    assert named is not None
    assert (named.by, named.address) == ("engine.address", "10.0.0.2:6379")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "HTTPS://cluster.example", "http://[::1]:8265"])
def test_a_job_servers_address_is_said_to_be_one(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with refused("RAY_ADDRESS: .* is the address of a job server, .* `ray job submit` .*HOST:6379"):
        named_address(Engine(kind="ray"))


def test_a_client_address_is_said_to_be_one():
    with refused("engine.address: ray://127.0.0.1:10001 is a Ray client's"):
        named_address(Engine(kind="ray", address="ray://127.0.0.1:10001"))


# in a process namespace of its own, where no Ray of another test is found
ALONE = """
import sys
from pathlib import Path
from sonify.config import Engine
from sonify.engine.cluster import connect
from sonify.errors import InputError
try:
    connect(Engine(kind="ray", address="auto"), Path("/run"))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kept", "said"),
    [("", "auto is the Ray that runs on this machine, and none does"), ("127.0.0.1:1", "nothing answers")],
)
def test_auto_without_a_cluster_is_refused_also_where_one_was(short, kept, said):
    if subprocess.run(["unshare", "-rmpf", "--mount-proc", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no process namespaces on this machine")
    if kept:
        (short / "ray").mkdir()
        (short / "ray" / "ray_current_cluster").write_text(kept)
    command = ["unshare", "-rmpf", "--mount-proc", sys.executable, "-c", ALONE]
    done = subprocess.run(
        command, env={**os.environ, "RAY_TMPDIR": str(short)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("engine.address: "), done.stderr
    assert said in done.stdout
    assert len(done.stdout.splitlines()) == 1


# --- where Ray's files go


def folder_of(length: int, within: Path) -> Path:
    folder = within / ("x" * (length - len(os.fsencode(within)) - 1))
    folder.mkdir()
    return folder


ROOM = MAX_SOCKET_PATH_BYTES - len("/ray") - len(BELOW_RAY)


def test_rays_own_folder_is_used_as_far_as_its_sockets_fit(short, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(folder_of(ROOM, short)))
    assert cluster._own_folder() is None
    monkeypatch.setenv("RAY_TMPDIR", str(folder_of(ROOM + 1, short)))  # which counts before TMPDIR
    folder = cluster._own_folder()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()


def wrong_folders(root: Path) -> dict[str, str]:
    (root / "file").write_bytes(b"")
    (root / "taken").mkdir()
    (root / "taken" / "ray").write_bytes(b"")
    return {
        "a file": str(root / "file"),
        "not there": str(root / "none"),
        "empty": "",
        "relative": ".",
        "not to be written": "/proc",
        "taken": str(root / "taken"),
    }


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("wrong", ["a file", "not there", "empty", "relative", "not to be written", "taken"])
def test_where_the_named_folder_cannot_be_used_there_is_one_of_our_own(short, monkeypatch, caplog, name, wrong):
    caplog.set_level("INFO")
    monkeypatch.setenv(name, wrong_folders(short)[wrong])
    folder = cluster._own_folder()
    assert folder is not None
    (line,) = caplog.messages
    assert line.startswith(f"{name}: ")
    assert line.endswith(f"Ray's files are in {folder} while it runs")
    folder.rmdir()


def test_where_there_is_no_room_anywhere_that_is_one_line(monkeypatch):
    monkeypatch.setattr("sonify.io.machine.SHORT_FOLDERS", ("/proc", "/none"))
    monkeypatch.setenv("TMPDIR", "/none")
    with refused("TMPDIR: '/none' is no folder, and no usual folder can be used"):
        cluster._own_folder()


FULL = """
import os, sys
from sonify.engine.cluster import _own_folder
os.environ["TMPDIR"] = sys.argv[1]
folder = _own_folder()
print(folder)
folder.rmdir()
"""


def test_a_full_disk_is_seen(short):
    done = run_on_small_disk(short / "d", "16k", FULL, short / "d")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/tmp/sonify-")


# --- whole runs


def sonify(config: Path, *command: str, without: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in without}
    words = [*command, sys.executable, "-m", "sonify", "run", "--config", str(config)]
    return subprocess.run(words, env=kept | environment, capture_output=True, text=True, check=False)


@pytest.fixture
def local(tmp_path):
    """A run without Ray, to compare with."""
    small_input(tmp_path, photos=6)
    config = small_config(tmp_path, run="local", images={"shard_size": 2})
    run(config)
    return hash_run(config.run_dir)


def test_a_run_goes_well_on_a_machine_where_all_is_odd(tmp_path, short, local):
    """One CPU, no home, no room for sockets, little shared memory, proxies that are gone, a name that nobody knows."""
    config = small_config(tmp_path, images={"shard_size": 2}, engine={"kind": "ray"})
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    odd = 'hostname no-such-host-anywhere && mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-rmu", "sh", "-c", odd, "sh"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        command = []
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy"), f"http://{LOOPBACK}:1")
    before = set(Path("/tmp").glob("sonify-*"))
    done = sonify(
        path, *command, "taskset", "-c", str(min(os.sched_getaffinity(0))),
        HOME=str(tmp_path / "no/home"), RAY_TMPDIR=str(folder_of(ROOM + 40, short)), RAY_ADDRESS=" ", **proxies,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hash_run(config.run_dir) == local
    assert len(done.stderr.splitlines()) <= 8, done.stderr  # one for each stage, the folder, the end
    assert set(Path("/tmp").glob("sonify-*")) <= before
    assert not (tmp_path / "no").exists()


CPUS = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import ray
from pathlib import Path
from sonify.config import Engine
from sonify.engine.cluster import connect
end = connect(Engine(kind="ray"), Path("/run"))
print(int(ray.cluster_resources()["CPU"]))
end()
assert not ray.is_initialized()
"""


def test_ray_gets_the_cpus_that_we_may_use():
    done = subprocess.run([sys.executable, "-c", CPUS], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["1"], done.stderr


def test_a_machine_without_loopback_is_told_what_to_do(tmp_path):
    if subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces on this machine")
    code = "from pathlib import Path; from sonify.config import Engine; from sonify.engine.cluster import connect;"
    code += "connect(Engine(kind='ray'), Path('/run'))"
    bare = 'ip link set lo up 2>/dev/null; ip addr flush dev lo 2>/dev/null; exec "$@"'
    command = ["unshare", "-rn", "sh", "-c", bare, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "InputError: engine.kind: this machine has no 127.0.0.1" in done.stderr


@pytest.mark.parametrize("name", ["sonify.py", "sonify/__init__.py"])
def test_a_script_called_as_the_package_is_told_before_workers_take_it(tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    with refused(f"{name}: Ray's workers would take it for this package: call it otherwise"):
        connect(Engine(kind="ray"), tmp_path / "run")
