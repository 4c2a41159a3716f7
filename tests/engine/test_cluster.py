"""Several nodes on this machine: one is killed, one joins late, others' work is in the way; and a job is submitted."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from sonify.engine.cluster import connect
from sonify.engine.job import Stage
from sonify.engine.on_ray import Actors
from sonify.errors import InputError
from sonify.running import run
from tests.builders import hash_run, small_config, small_input
from tests.processes import children_of, meanwhile, run_first

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).parents[2]
STORE_BYTES = 80 << 20
IMAGES = {"shard_size": 2}

# In the workers: each image takes a while and says on which node it was looked at. After some, the first node waits
# for another to begin.
SLOW = """
import os, sys, time
if any("default_worker" in word for word in sys.orig_argv):
    from sonify.stages import concepts
    inspect = concepts.inspect_image
    def slowly(data):
        import ray
        with open(os.path.join(os.environ["SEEN"], ray.get_runtime_context().get_node_id()), "ab") as file:
            file.write(b".")
            enough = file.tell() > 8
        while enough and len(os.listdir(os.environ["SEEN"])) < int(os.environ["NODES"]):
            time.sleep(0.05)
        time.sleep(0.1)
        return inspect(data)
    concepts.inspect_image = slowly
"""

OTHERS_WORK = """
import ray, time
ray.init(logging_level="ERROR")
actor = ray.remote(num_cpus=1)(type("Others", (), {})).remote()
ray.get(actor.__ray_ready__.remote())
print("here", flush=True)
time.sleep(600)
"""


@pytest.fixture
def ray_tmp(monkeypatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ry", dir="/tmp"))  # sockets lie below it, and their paths must be short
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def seen(tmp_path, monkeypatch) -> Path:
    """A file for each node that looked at images; workers are slowed down."""
    run_first(monkeypatch, tmp_path, SLOW)
    (tmp_path / "seen").mkdir()
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("NODES", "2")
    return tmp_path / "seen"


@pytest.fixture
def cluster(ray_tmp, monkeypatch, request) -> Iterator[Cluster]:
    """A head node with one CPU; all listens on loopback."""
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    cluster = Cluster()
    add_node(cluster, include_dashboard=False, _system_config={"metrics_report_interval_ms": 500})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster, num_cpus=1, **options):
    return cluster.add_node(num_cpus=num_cpus, object_store_memory=STORE_BYTES, node_ip_address=LOOPBACK, **options)


def raylet_of(node) -> int:
    return node.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.pid


def kill_node(node) -> None:
    """As if the power went: the raylet, and all that it started."""
    raylet = raylet_of(node)
    for pid in [raylet, *children_of(raylet)]:
        os.kill(pid, signal.SIGKILL)


def on(cluster, **options):
    return {"kind": "ray", "address": cluster.address, "workers": 2} | options


@contextmanager
def once(condition: Callable[[], bool], act: Callable[[], object]) -> Iterator[list[bool]]:
    """Act in the background as soon as a condition holds; the list is filled once it was done."""
    done: list[bool] = []

    def look() -> bool:
        if condition():
            act()
            done.append(True)
        return bool(done)

    with meanwhile(look):
        yield done


def commits_of(run_dir, stage) -> int:
    return len(list((run_dir / "commits" / stage).glob("*/*.json")))


@pytest.fixture
def local(tmp_path):
    """The same run without Ray, to compare with."""
    small_input(tmp_path, photos=40)
    run(small_config(tmp_path, run="local", images=IMAGES))
    return tmp_path


def test_a_node_that_is_lost_costs_nothing_but_time(local, seen, cluster):
    node = add_node(cluster)
    run_dir = local / "ray"
    seen_there = seen / node.node_id
    with once(lambda: seen_there.exists() and seen_there.stat().st_size > 4, lambda: kill_node(node)) as killed:
        run(small_config(local, run="ray", images=IMAGES, engine=on(cluster)))
    assert killed
    assert seen_there.stat().st_size < 20  # of 40 images
    assert hash_run(run_dir) == hash_run(local / "local")


def test_a_cluster_that_grows_puts_new_nodes_to_work(local, seen, cluster):
    run_dir = local / "ray"
    config = small_config(local, run="ray", images=IMAGES, engine=on(cluster, autoscale=True))
    cluster._shutdown_at_exit = False  # which only the main thread may ask for; the fixture sees to it
    with once(lambda: commits_of(run_dir, "concepts") >= 2, lambda: add_node(cluster)) as added:
        run(config)
    assert added
    assert len(list(seen.iterdir())) == 2
    assert hash_run(run_dir) == hash_run(local / "local")


def test_a_stage_without_room_says_so_and_waits(tmp_path, cluster, monkeypatch, caplog):
    small_input(tmp_path, photos=4)
    monkeypatch.setattr("sonify.engine.on_ray.SECONDS_BETWEEN_WARNINGS", 0.5)
    monkeypatch.setattr("sonify.engine.on_ray.SECONDS_BETWEEN_LOOKS", 0.2)
    busy = subprocess.Popen(
        [sys.executable, "-c", OTHERS_WORK],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
    )
    assert busy.stdout is not None
    assert busy.stdout.readline() == b"here\n"
    with once(lambda: "others' work included" in caplog.text, busy.kill) as freed:
        run(small_config(tmp_path, engine=on(cluster)))
    busy.kill()
    busy.wait()
    assert freed
    assert "no worker has a place: 1 are asked for, each with 1 CPUs and 0 GPUs" in caplog.text


def test_a_worker_must_fit_on_one_node(tmp_path, cluster):
    small_input(tmp_path, photos=2)
    add_node(cluster, num_cpus=2)
    config = small_config(tmp_path, engine=on(cluster))
    connect(config.engine, config.run_dir)
    stage = Stage(name="big", version=1, listing="pool", settings={}, load=pytest.fail, num_cpus=3)
    with pytest.raises(InputError, match=r"big: a worker asks for 3 CPUs and 0 GPUs, and Ray has 3 CPUs .* on 2 nodes"):
        Actors(config.engine, config.run_dir, [stage]).begin(stage, 1)


def test_growth_has_an_end(tmp_path):
    small_input(tmp_path, photos=2)
    with pytest.raises(InputError, match="engine: autoscale needs kind: ray and `workers`"):
        small_config(tmp_path, engine={"kind": "ray", "autoscale": True})


def test_the_nodes_port_for_prometheus_shows_each_stage(local, seen, cluster):
    (seen / "other").touch()  # nobody to wait for
    shown = {}

    def scrape() -> bool:
        for node in ray.nodes() if ray.is_initialized() else []:
            try:
                with urllib.request.urlopen(f"http://{LOOPBACK}:{node['MetricsExportPort']}/metrics") as answer:
                    lines = answer.read().decode().splitlines()
            except OSError:
                continue
            shown.update(line.rpartition(" ")[::2] for line in lines if line.startswith("ray_sonify_"))
        return False

    with meanwhile(scrape):
        run(small_config(local, run="ray", images=IMAGES, engine=on(cluster, workers=1)))

    def value(name: str, *tags: str) -> float:
        return sum(
            float(shown[key]) for key in shown if key.startswith(f"ray_sonify_{name}{{") and all(t in key for t in tags)
        )

    stage = 'stage="concepts/captions"'
    assert 0 < value("units_done_total", stage) <= 20
    assert 0 < value("rows_in_total", stage) <= 40
    assert value("unit_seconds_bucket", stage, 'le="100.0"') > 0
    assert value("units_to_do", stage) < 20


# Says which code it is, and whether it is a worker's.
MARK = """
import os, sys
where = "worker" if any("default_worker" in word for word in sys.orig_argv) else "driver"
open(os.path.join(os.environ["SEEN"], where), "w").write(__file__)
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        return server.getsockname()[1]


@contextmanager
def started_head(mode: str, *options: str) -> Iterator[str]:
    """What `ray start --head` makes, on loopback only: its address."""
    address = f"{LOOPBACK}:{free_port()}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={address.rpartition(':')[2]}", f"--object-store-memory={STORE_BYTES}", *options]
    environment = os.environ | {"RAY_AUTH_MODE": mode, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(address)
        yield address
    finally:
        head.terminate()
        head.wait()


def wait_for(address: str) -> None:
    host, port = address.split(":")
    for _ in range(600):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"nothing listens at {address}")


def sonify(root: Path, address: str, **environment: str) -> subprocess.CompletedProcess:
    config = root / "config.yaml"
    config.write_text(
        json.dumps(small_config(root, engine={"kind": "ray", "address": address}).model_dump(mode="json"))
    )
    # the address counts as another machine's
    elsewhere = "import sys; from sonify.engine import cluster; cluster._is_local = lambda _address: False;"
    elsewhere += "from sonify.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", elsewhere, "run", "--config", str(config)],
        env=os.environ | {"RAY_AUTH_MODE": "token", ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_cluster_elsewhere_must_refuse_those_without_its_token(tmp_path, ray_tmp, monkeypatch):
    small_input(tmp_path, photos=2)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with started_head("disabled", "--include-dashboard=false") as address:
        refused = sonify(tmp_path, address)
    assert refused.returncode == 2, refused.stderr
    assert f"{address} answers those who have no token" in refused.stderr
    with started_head("token", "--include-dashboard=false") as address:
        wrong = sonify(tmp_path, address, RAY_AUTH_TOKEN="b" * 64)
    assert wrong.returncode == 2, wrong.stderr
    assert wrong.stderr.strip().splitlines()[-1].startswith("sonify: engine.address: no cluster lets us in")
    assert "bbbb" not in wrong.stderr


def test_a_job_runs_the_code_that_it_was_submitted_with(tmp_path, ray_tmp, monkeypatch):
    small_input(tmp_path, photos=4)
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "sonify", checkout / "sonify", ignore=shutil.ignore_patterns("__pycache__"))
    marked = checkout / "sonify" / "stages" / "concepts.py"
    marked.write_text(marked.read_text() + MARK)
    config = small_config(tmp_path, engine={"kind": "ray", "workers": 2})
    (checkout / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    (tmp_path / "seen").mkdir()
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    port = free_port()
    agent = f"--dashboard-agent-listen-port={free_port()}"  # a Ray of another test may have the usual one

    def submit(*overrides: str) -> subprocess.CompletedProcess:
        command = ["-m", "ray.scripts.scripts", "job", "submit", "--address", f"http://{LOOPBACK}:{port}"]
        entry = [sys.executable, "-m", "sonify", "run", "--config", "config.yaml", *overrides]
        command += ["--working-dir", str(checkout), "--", *entry]
        while True:  # until Ray's agent, which comes after the dashboard, is there
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=tmp_path)
            if "No available agent" not in done.stdout + done.stderr:
                return done

    with started_head("token", "--include-dashboard=true", f"--dashboard-port={port}", agent):
        wait_for(f"{LOOPBACK}:{port}")
        relative = submit("run_dir=run")
        done = submit()
    assert relative.returncode == 1, relative.stdout + relative.stderr
    assert "expected an absolute path that all nodes see or s3://..., found run" in relative.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert "render: 1/1 units" in done.stdout + done.stderr
    for where in ("driver", "worker"):
        assert "working_dir_files" in (tmp_path / "seen" / where).read_text()
