"""Ray, really started and joined: it is told of a GPU that this machine has not, as by a node whose driver is gone."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from sonify.config import make_config
from sonify.doctor import cluster as doctor
from sonify.doctor.cluster import examine_ray
from sonify.doctor.engines import EngineProgram
from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.gpus import Ask

LOOPBACK = "127.0.0.1"
EYE = Ask(key="concepts.extractors.0", name="eye", cpus=1, gpus=0.5)
WIDE = Ask(key="concepts.extractors.1", name="llava", cpus=1, gpus=4, needs_gpu=True, in_torch=False)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray that somebody else started on this machine, with two CPUs and what it takes for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="ry", dir="/tmp")  # sockets lie below it, and their paths must be short
        patch.setenv("RAY_TMPDIR", folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
        cluster = Cluster()
        cluster.add_node(
            num_cpus=2, num_gpus=1, object_store_memory=80 << 20, node_ip_address=LOOPBACK, include_dashboard=False
        )
        try:
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def config(tmp_path: Path, **engine):
    raw = {
        "run_dir": str(tmp_path / "run"),
        "images": {"kind": "folder", "path": "photos"},
        "audio": {"sources": [{"kind": "folder", "path": "sounds"}]},
        "engine": {"kind": "ray", **engine},
    }
    return make_config(raw, check_paths=False)


def lines(findings: list[Finding]) -> list[tuple[str, Outcome]]:
    return [(finding.about, finding.outcome) for finding in findings]


def test_a_gpu_that_ray_gives_and_torch_does_not_find_is_a_fault_and_the_cluster_is_left_alone(cluster, tmp_path):
    script = tmp_path / "vllm"
    script.write_text("#!/bin/sh\necho 0.11.2\n")
    script.chmod(0o755)
    programs = [
        EngineProgram(name="a", program=str(script), words=("--version",), is_known=True),
        EngineProgram(name="b", program="nowhere-to-be-found", words=("--version",), is_known=True),
    ]
    findings = list(examine_ray(config(tmp_path, address=cluster.address), [EYE, WIDE], programs))
    node = f"ray, node {LOOPBACK}"
    assert lines(findings) == [
        ("ray", Outcome.OK),
        ("ray", Outcome.FAULT),
        (node, Outcome.FAULT),
        (f"{node}, engine of a", Outcome.OK),
        (f"{node}, engine of b", Outcome.FAULT),
    ]
    assert findings[0].found.startswith(f"joined {cluster.address} in ")
    assert findings[0].found.endswith(": 2 CPUs and 1 GPUs on 1 node")
    assert "llava: a worker asks for 1 CPUs and 4 GPUs" in findings[1].found
    assert findings[2].found.startswith("device: auto, and this worker was given GPU 0 (CUDA_VISIBLE_DEVICES), but")
    assert f"CUDA {torch.version.cuda}" in findings[2].found
    assert not cluster.head_node.dead_processes()
    assert list(tmp_path.iterdir()) == [script]


def test_workers_without_a_place_are_not_tried_and_a_growing_cluster_may_yet_have_room(cluster, tmp_path, monkeypatch):
    soon = "from sonify.doctor import cluster; cluster.LOOK_SECONDS = 13; answer("
    monkeypatch.setattr(doctor, "PROCESS", doctor.PROCESS.replace("answer(", soon))
    busy = subprocess.Popen(
        [sys.executable, "-c", BUSY, cluster.address], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert busy.stdout is not None
        assert busy.stdout.readline() == "here\n"
        engine = {"address": cluster.address, "autoscale": True, "workers": 4}
        findings = list(examine_ray(config(tmp_path, **engine), [EYE, WIDE], []))
    finally:
        busy.terminate()
        busy.wait()
    assert lines(findings) == [("ray", Outcome.OK), (f"ray, node {LOOPBACK}", Outcome.NOT_TRIED)]
    assert "no worker has a place" in findings[1].found


BUSY = """
import sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
actor = ray.remote(num_gpus=1)(type("Others", (), {})).remote()
ray.get(actor.__ray_ready__.remote())
print("here", flush=True)
time.sleep(600)
"""


def test_workers_that_find_another_package_are_a_fault(cluster, tmp_path, monkeypatch):
    other = "from sonify.doctor import cluster; cluster.look_here = lambda *_: __import__('sonify.nothing'); answer("
    monkeypatch.setattr(doctor, "PROCESS", doctor.PROCESS.replace("answer(", other))
    findings = list(examine_ray(config(tmp_path, address=cluster.address), [], []))
    assert lines(findings) == [("ray", Outcome.OK), (f"ray, node {LOOPBACK}", Outcome.FAULT)]
    assert "No module named 'sonify.nothing'" in findings[1].found


def test_a_ray_is_started_and_ended_and_has_room_for_what_is_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = rays()
    many = Ask(key="features", name="features", cpus=4096, gpus=0)
    findings = list(examine_ray(config(tmp_path), [many], []))
    assert lines(findings) == [
        ("ray", findings[0].outcome),
        ("ray", Outcome.FAULT),
        (f"ray, node {LOOPBACK}", Outcome.OK),
    ]
    assert findings[0].outcome is (Outcome.OK if findings[0].facts["start_seconds"] <= 15 else Outcome.NOTE)
    assert findings[0].found.startswith("starts on this machine in ")
    assert "lower features.cpus" in findings[1].todo
    assert rays() == before


def rays() -> set[str]:
    """The Ray heads of this machine that were started by a process of this worktree."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"gcs_server" in (folder / "cmdline").read_bytes() and os.readlink(folder / "cwd") == os.getcwd():
                found.add(folder.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"address": "http://127.0.0.1:8265"}, "is the address of a job server"),
        ({"address": "127.0.0.1:head"}, "expected HOST:PORT"),
        ({"address": f"{LOOPBACK}:1"}, "nothing answers at 127.0.0.1:1"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line(tmp_path, engine, words):
    started = time.monotonic()
    (finding,) = examine_ray(config(tmp_path, **engine), [EYE], [])
    assert (finding.about, finding.outcome) == ("ray", Outcome.FAULT)
    assert words in finding.found
    assert time.monotonic() - started < 60


def test_what_does_not_answer_is_given_up_and_ended(tmp_path, monkeypatch):
    silent = f"import os, sys, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    monkeypatch.setattr(doctor, "PROCESS", silent)
    monkeypatch.setattr(doctor, "START_SECONDS", 1.0)
    (finding,) = examine_ray(config(tmp_path), [], [])
    assert (finding.outcome, finding.found) == (Outcome.FAULT, "no answer in 1 s")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_one_that_hears_no_signal_is_killed_and_what_it_said_first_counts(tmp_path, monkeypatch):
    facts = {"start_seconds": 16.5, "address": "", "resources": "2 CPUs", "nodes": 1}
    said = json.dumps({"started": facts})
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('noise');"
    deaf += f" print('{{'); print({doctor.ROW + said!r}, flush=True); time.sleep(600)"
    monkeypatch.setattr(doctor, "PROCESS", deaf)
    monkeypatch.setattr(doctor, "START_SECONDS", 1.0)
    monkeypatch.setattr(doctor, "END_SECONDS", 1.0)
    slow, silent = examine_ray(config(tmp_path), [], [])
    assert (slow.outcome, slow.found) == (Outcome.NOTE, "starts on this machine in 16.5 s: 2 CPUs")
    assert "have scripts wait longer" in slow.todo
    assert (silent.outcome, silent.found) == (Outcome.FAULT, "workers: no answer in 1 s")


def test_a_process_that_ends_badly_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "PROCESS", "import sys; sys.exit('gcs went away')")
    (finding,) = examine_ray(config(tmp_path), [], [])
    assert finding.outcome is Outcome.FAULT
    assert finding.found == "the process that tried Ray ended with 1: gcs went away"


def test_no_ray_is_tried_where_none_is_used(tmp_path):
    (finding,) = examine_ray(config(tmp_path, kind="local"), [EYE], [])
    assert finding.outcome is Outcome.OK
