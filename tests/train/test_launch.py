import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sonify.errors import InputError
from sonify.installed import ROOT
from tests.processes import children_of, is_gone, run_python
from tests.train.runs import training_config, training_input, write_config
from train import launch
from train.launch import (
    check_devices,
    check_engine,
    check_precision,
    check_same_start,
    child_command,
    first_of_each_machine,
    launch_processes,
)
from train.metrics import read_metrics
from train.pixart import main, train

LOSSES = ("loss", "mse", "vb", "gradient_norm")


@pytest.fixture(autouse=True)
def _find_these_tests(monkeypatch):
    """By processes too, where a library brings a package `tests` of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory, one_thread) -> Path:
    folder = tmp_path_factory.mktemp("launching")
    training_input(folder)
    return folder


@pytest.fixture(scope="module")
def straight(root) -> Path:
    """Two steps of one process."""
    config = training_config(root, "straight", max_steps=2)
    train(config)
    return config.run_dir


def losses(run_dir: Path) -> list[tuple[float, ...]]:
    return [tuple(line[name] for name in LOSSES) for line in read_metrics(run_dir)]


def said(folder: Path) -> list[list[str]]:
    return sorted(path.read_text().split() for path in folder.iterdir())


@pytest.mark.parametrize(("cpus", "threads"), [(16, "8"), (3, "1"), (1, "1")])
def test_processes_share_the_cpus(tmp_path, monkeypatch, cpus, threads):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(launch, "usable_cpus", lambda: cpus)
    _keeping_handlers(lambda: launch_processes(2, "tests.train.ranked", [str(tmp_path)], "x"))
    assert said(tmp_path) == [["x", "0", threads], ["x", "1", threads]]


def test_threads_that_the_user_chose_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    _keeping_handlers(lambda: launch_processes(2, "tests.train.ranked", [str(tmp_path)], "x"))
    assert said(tmp_path) == [["x", "0", "5"], ["x", "1", "5"]]


def _keeping_handlers(start: Any) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert start() == 0
    for number, handler in before.items():
        signal.signal(number, handler)


LAUNCH = "import sys; from train.launch import launch_processes; sys.exit(launch_processes(2, *eval(sys.argv[1])))"


def test_processes_end_with_the_one_that_started_them_even_where_it_is_killed(tmp_path):
    words = ("tests.train.ranked", [str(tmp_path), "--wait"], "x")
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, repr(words)])
    while len(pids := [path.name for path in tmp_path.iterdir() if path.name.isdecimal()]) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert all(is_gone(int(pid)) for pid in pids)


def test_a_process_whose_parent_was_killed_before_it_could_ask_for_that_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1 << 22)  # above any that the system gives: no parent's
    command = child_command(ROOT, "tests.train.ranked", "x", [str(tmp_path)])
    assert subprocess.run(command, env={**os.environ, "RANK": "0"}, check=False).returncode == 1
    assert not list(tmp_path.iterdir())


def test_loaders_end_with_a_launcher_that_was_killed(root):
    sections = {"batch": {"per_device": 2}, "data": {"workers": 1}, "max_steps": 5000, "checkpoints": {"every": 9000}}
    words = ("train.pixart", ["--config", str(write_config(root, "orphaned", **sections))], "x")
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, repr(words)], stderr=subprocess.DEVNULL)
    while len(read_metrics(root / "orphaned")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    ranks = children_of(process.pid)
    loaders = [pid for rank in ranks for pid in children_of(rank)]
    assert len(ranks) == 2 <= len(loaders)
    process.kill()
    process.wait()
    assert all(is_gone(pid) for pid in ranks)
    assert all(is_gone(pid) or is_gone(pid) for pid in loaders)  # one looks for its parent every five seconds


USERS_OWN = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "eager",
    "ACCELERATE_DYNAMO_MODE": "max-autotune",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true",
    "ACCELERATE_DOWNCAST_BF16": "true",
    "ACCELERATE_GRADIENT_CLIPPING": "0.001",
}


def test_a_users_own_configuration_of_accelerate_changes_no_loss(root, straight, monkeypatch):
    for name, value in USERS_OWN.items():
        monkeypatch.setenv(name, value)
    config = training_config(root, "configured", max_steps=2)
    train(config)
    assert losses(config.run_dir) == losses(straight)


@pytest.mark.parametrize("name", launch.ENGINES)
def test_another_engine_of_accelerate_is_refused(name):
    check_engine({name: "false", "ACCELERATE_USE_CPU": "true"})
    with pytest.raises(InputError, match=f"{name}: the configuration of `accelerate` asks for"):
        check_engine({name: "true"})


def test_another_engine_is_one_line(root, capfd, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["--config", str(write_config(root, "sharded"))]) == 2
    assert "ACCELERATE_USE_FSDP: the configuration" in capfd.readouterr().err.strip().splitlines()[-1]


def test_bf16_is_refused_on_a_gpu_that_would_emulate_it():
    check_precision("bf16", (8, 0))
    check_precision("bf16", (12, 0))
    check_precision("fp32", (7, 0))
    with pytest.raises(InputError, match=r"precision: bf16 needs .* 8\.0 or more .* has 7\.5; set precision=fp32"):
        check_precision("bf16", (7, 5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without GPUs")
def test_a_launcher_without_gpus_gives_its_processes(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert check_devices(None) == 4
    with pytest.raises(InputError, match=r"asks for 4 GPU\(s\), and torch finds none here"):
        check_devices(4)


def test_machines_must_see_the_same_checkpoints_and_data():
    check_same_start([(3, "a"), (3, "a")])
    with pytest.raises(InputError, match="of step 0 for one process and of step 1,000 for another"):
        check_same_start([(1000, "a"), (0, "a")])
    with pytest.raises(InputError, match="see different shards"):
        check_same_start([(3, "a"), (3, "b")])


def test_one_process_of_each_machine_goes_before_the_others_and_the_first_before_all():
    """Four threads stand for two machines of two processes."""
    barrier, order = threading.Barrier(4), []

    def enter(machine: int, local: int) -> None:
        is_main = machine == local == 0
        state: Any = SimpleNamespace(
            is_main_process=is_main, is_local_main_process=local == 0, wait_for_everyone=lambda: barrier.wait(10)
        )
        with suppress(threading.BrokenBarrierError), first_of_each_machine(state):
            time.sleep(0 if local else 0.05)  # whoever does not wait is seen to be too early
            order.append((machine, local))

    threads = [threading.Thread(target=enter, args=divmod(n, 2)) for n in range(4)]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert order[:2] == [(0, 0), (1, 0)]
    assert sorted(order[2:]) == [(0, 1), (1, 1)]


JOINED = """
import sys
from pathlib import Path
import torch
from torch import distributed
from tests.train.runs import training_config
from train.launch import WAIT, among_processes
config = training_config(Path(sys.argv[1]), "joined")
for error in (None, ValueError("ours")):
    try:
        with among_processes(config) as accelerator:
            backend = distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
            print(backend.options._timeout == WAIT, accelerator.num_processes)
            if error:
                raise error
    except ValueError as raised:
        print(raised)
    else:
        print("left" if not distributed.is_initialized() else "still there")
"""


def test_processes_wait_longer_than_a_download_takes_and_leave_each_other_at_the_end(root):
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment = {**os.environ, **alone, "MASTER_PORT": str(launch._free_port())}
    done = run_python(JOINED, root, env=environment)
    assert done.stdout.splitlines() == ["True 1", "left", "True 1", "ours"]
    assert "destroy" not in done.stderr


def on_machine(number: int, port: int, config: Path) -> subprocess.Popen:
    """A machine of two, each with an address of its own and one process."""
    options = ["--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1", f"--local-addr=127.0.0.{number + 1}"]
    address = ["--master-addr=127.0.0.1", f"--master-port={port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *address, "-m", "train.pixart"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*command, "--config", str(config)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_machines_have_the_losses_of_one_process_and_only_the_first_writes(root, straight):
    port = launch._free_port()
    config = write_config(root, "machines", batch={"per_device": 2}, max_steps=2)
    machines = [on_machine(number, port, config) for number in (1, 0)]
    for machine in machines:
        output, _ = machine.communicate(timeout=240)
        assert machine.returncode == 0, output
        assert "destroy_process_group" not in output
    assert len(read_metrics(root / "machines")) == 2
    np.testing.assert_allclose(losses(root / "machines"), losses(straight), rtol=1e-4)


@pytest.mark.slow
def test_machines_with_a_run_dir_each_are_refused(root, straight):
    port = launch._free_port()
    sections = {"batch": {"per_device": 2}, "max_steps": 3}
    first = write_config(root, "straight", **sections)
    other = write_config(root, "elsewhere", **sections)
    machines = [on_machine(1, port, other), on_machine(0, port, first)]
    outputs = [machine.communicate(timeout=240)[0] for machine in machines]
    assert all(machine.returncode == 1 for machine in machines)  # torchrun's own
    assert any("have run_dir on a disk that all machines see" in output for output in outputs), outputs
    assert len(read_metrics(root / "straight")) == 2
