"""One process a GPU: what the plain command becomes on a machine with several of them."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from sonify.errors import InputError
from sonify.installed import ROOT
from sonify.io.machine import usable_cpus
from train.config import Training

POLL_SECONDS = 0.1


def is_launched() -> bool:
    """Whether torchrun, `accelerate launch` or `launch_processes` started this process."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def check_devices(devices: int | None) -> int:
    """How many processes the plain command stands for: one for each visible GPU, or one on the CPU."""
    found = torch.cuda.device_count()
    if is_launched():
        found = int(os.environ.get("WORLD_SIZE", "1")) if found else 0
        if devices not in (None, found):
            raise InputError(f"devices: the configuration asks for {devices} GPU(s), and the launcher gives {found}")
        return found
    if devices is not None and found < devices:
        raise InputError(
            f"devices: the configuration asks for {devices} GPU(s), and torch finds {found} here; devices=null uses"
            " what there is, a CPU if there is no GPU (the total batch stays the same)"
        )
    return devices or max(found, 1)


# Runs `main` of a module that lies beside this one, whatever the working folder holds.
CHILD = """
import sys
root, module, name, *words = sys.argv[1:]
if root not in sys.path:
    sys.path.insert(0, root)
from sonify.installed import pin_packages
pin_packages()
from sonify.terminal import run_module
sys.exit(run_module(module, words, extra="train", name=name))
"""


def child_command(root: Path, module: str, name: str, argv: Sequence[str]) -> list[str]:
    """What a process of several runs; without the working folder on its path (`-P`), where `sonify.py` may lie."""
    return [sys.executable, "-P", "-c", CHILD, str(root), module, name, *argv]


def launch_processes(processes: int, module: str, argv: Sequence[str], name: str) -> int:
    """Run a module in that many processes of one machine, and return the exit code of the first that fails, or 0.

    SIGTERM and SIGINT are passed on. Where one process fails, the others, who wait for it, are killed; of what they
    say, only the first process's log and the words of the one that failed first are shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [None, *(open(f"{folder}/{rank}", "w+") for rank in range(1, processes))]  # noqa: SIM115
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
        children = [
            subprocess.Popen(  # noqa: S603 - this command again
                child_command(ROOT, module, name, argv),
                env={**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=files[rank],
            )
            for rank in range(processes)
        ]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: [child.send_signal(signal.SIGTERM) for child in children])
        return _wait(children, files)


def _wait(children: Sequence[subprocess.Popen], files: Sequence[IO[str] | None]) -> int:
    while True:
        codes = [child.poll() for child in children]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            break
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL_SECONDS)
    code = children[failed].returncode
    if code == 130:  # all were asked to end, and do so by themselves
        for child in children:
            child.wait()
    for child in children:
        child.kill()
        child.wait()
    if (file := files[failed]) is not None and code != 130:
        file.seek(0)
        sys.stderr.write(file.read())
    if code < 0:
        sys.stderr.write(f"process {failed} of {len(children)} was ended by signal {-code}\n")
    return code if code > 0 else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_accelerator(config: Training) -> Accelerator:
    """Join the other processes, if there are any, on this process's GPU or the CPU."""
    if not torch.cuda.is_available() and torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())  # torch sees a process's affinity and no container's quota
    AcceleratorState._reset_state()  # of a run before this one in the same process, in a notebook say
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with=list(config.trackers),
        project_config=ProjectConfiguration(
            project_dir=str(config.run_dir), logging_dir=str(config.run_dir / "tensorboard")
        ),
        # nothing in the model's buffers changes, and gradients need not lie in memory twice
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    there = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing := sorted(set(config.trackers) - there):
        raise InputError(f"trackers: {missing[0]} is not installed here; install it, or take it out of the list")
    return accelerator
