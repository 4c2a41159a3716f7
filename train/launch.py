"""One process a GPU: what the plain command becomes on a machine with several of them."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch import distributed

from sonify.errors import InputError, WorkError
from sonify.installed import ROOT
from sonify.io.machine import usable_cpus
from train.config import Training

POLL_SECONDS = 0.1
# How long a process waits for the others, NCCL's own ten minutes or gloo's thirty otherwise: while one of them fetches
# 3 GB, hashes or writes a checkpoint of 10 GB, makes a grid of samples or the release. Whoever started the processes
# notices sooner where one has ended.
WAIT = timedelta(hours=3)
# How long a process that has lost another keeps quiet: it is ended meanwhile, and the words of that one are seen alone.
LOST_SECONDS = 5.0
# The first GPUs that multiply in bfloat16: A100, RTX 30. Before, torch does it by emulation, slower than float32.
BF16_CAPABILITY = (8, 0)
# By what other engines than plain data parallelism are asked for, in a user's own configuration of `accelerate`.
ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "other dimensions of parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}


def is_launched() -> bool:
    """Whether torchrun, `accelerate launch` or `launch_processes` started this process."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def check_devices(devices: int | None) -> int:
    """How many processes the plain command stands for: one for each visible GPU, or one on the CPU; or how many a
    launcher has started, on all machines."""
    found = torch.cuda.device_count()
    if is_launched():
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if devices is not None and not found:
            raise InputError(
                f"devices: the configuration asks for {devices} GPU(s), and torch finds none here; devices=null trains"
                f" on CPUs, in the {processes} process(es) that were launched"
            )
        if devices not in (None, processes):
            raise InputError(
                f"devices: the configuration asks for {devices} GPU(s), and the launcher gives {processes}"
            )
        return processes
    if devices is not None and found < devices:
        raise InputError(
            f"devices: the configuration asks for {devices} GPU(s), and torch finds {found} here; devices=null uses"
            " what there is, a CPU if there is no GPU (the total batch stays the same)"
        )
    return devices or max(found, 1)


# Runs `main` of a module that lies beside this one, whatever the working folder holds, for as long as its parent lives.
CHILD = """
import sys
parent, root, module, name, *words = sys.argv[1:]
if root not in sys.path:
    sys.path.insert(0, root)
from sonify.installed import pin_packages
pin_packages()
from sonify.io.machine import die_with_parent
die_with_parent(int(parent))
from sonify.terminal import run_module
sys.exit(run_module(module, words, extra="train", name=name))
"""


def child_command(root: Path, module: str, name: str, argv: Sequence[str]) -> list[str]:
    """What a process of several runs; without the working folder on its path (`-P`), where `sonify.py` may lie."""
    return [sys.executable, "-P", "-c", CHILD, str(os.getpid()), str(root), module, name, *argv]


def _rank_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What a process of this machine knows of the others. It takes its share of the CPUs, where the user gave none."""
    threads = {"OMP_NUM_THREADS": str(max(usable_cpus() // processes, 1))}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
    return threads | dict(os.environ) | address | ranks


def launch_processes(processes: int, module: str, argv: Sequence[str], name: str) -> int:
    """Run a module in that many processes of one machine, and return the exit code of the first that fails, or 0.

    SIGTERM and SIGINT are passed on. Where one process fails, the others, who wait for it, are killed; of what they
    say, only the first process's log and the words of the one that failed first are shown. They end with this process,
    even where it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [None, *(open(f"{folder}/{rank}", "w+") for rank in range(1, processes))]  # noqa: SIM115
        port = _free_port()
        children = [
            subprocess.Popen(  # noqa: S603 - this command again
                child_command(ROOT, module, name, argv),
                env=_rank_environment(rank, processes, port),
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


@contextmanager
def among_processes(config: Training) -> Iterator[Accelerator]:
    """`start_accelerator`, and leave the others in good order at the end.

    Where this one fails the others may wait for it in the middle of something: it waits for nobody, and whoever started
    them all ends them.

    Raises:
        WorkError: another process has ended, whose own words say why.
    """
    accelerator = start_accelerator(config)
    try:
        yield accelerator
    except BaseException as error:
        if distributed.is_initialized() and distributed.get_backend() == distributed.Backend.NCCL:
            with suppress(Exception):  # whatever it says is less than what is on its way
                distributed.distributed_c10d._abort_process_group()  # else the exit waits for the others, and warns
        if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            time.sleep(LOST_SECONDS)
            raise WorkError("another process of this training has ended; what it said tells why") from error
        raise
    if distributed.is_initialized():
        distributed.destroy_process_group()


def start_accelerator(config: Training) -> Accelerator:
    """Join the other processes, if there are any, on this process's GPU or the CPU.

    Nothing that a loss depends on is left to the environment, where `accelerate launch` puts a user's configuration.

    Raises:
        InputError: the GPU, a tracker or the launcher's configuration is none that this can be trained with.
    """
    check_engine(os.environ)
    if torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        if torch.version.hip is None:  # AMD's capabilities are other numbers
            check_precision(config.precision, torch.cuda.get_device_capability(number))
    elif torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())  # torch sees a process's affinity and no container's quota
    AcceleratorState._reset_state(reset_partial_state=True)  # of a run before this one in the same process, say
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the loop divides the loss itself
        dynamo_backend="no",  # as `compile` says, and block by block
        log_with=list(config.trackers),
        project_config=ProjectConfiguration(
            project_dir=str(config.run_dir), logging_dir=str(config.run_dir / "tensorboard")
        ),
        kwargs_handlers=[
            # nothing in the model's buffers changes, and gradients need not lie in memory twice
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=WAIT),
        ],
    )
    there = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing := sorted(set(config.trackers) - there):
        raise InputError(f"trackers: {missing[0]} is not installed here; install it, or take it out of the list")
    return accelerator


def check_engine(environment: Mapping[str, str]) -> None:
    """Refuse a launcher's configuration that would have the model trained in another way than data-parallel."""
    for name, engine in ENGINES.items():
        if environment.get(name, "false").lower() not in ("false", "0", "no", ""):
            raise InputError(
                f"{name}: the configuration of `accelerate` asks for {engine}, and each GPU has the whole model here;"
                " use the plain command or torchrun, or `accelerate launch` with another --config_file"
            )


def check_precision(precision: str, capability: tuple[int, int]) -> None:
    """Refuse bfloat16 on a GPU of NVIDIA's that would emulate it."""
    if precision == "bf16" and capability < BF16_CAPABILITY:
        raise InputError(
            f"precision: bf16 needs a GPU of compute capability {'.'.join(map(str, BF16_CAPABILITY))} or more (A100,"
            f" RTX 30), and this one has {'.'.join(map(str, capability))}; set precision=fp32"
        )


@contextmanager
def first_of_each_machine(accelerator: Accelerator) -> Iterator[None]:
    """Let the first process of all go first, then the first of each other machine, then the others.

    What the first fetches into a folder that all machines see, the others find; where each machine has a cache of its
    own, one process of it fetches.
    """
    turn = 0 if accelerator.is_main_process else 1 if accelerator.is_local_main_process else 2
    for _ in range(turn):
        accelerator.wait_for_everyone()
    yield
    for _ in range(2 - turn):
        accelerator.wait_for_everyone()


def check_same_start(seen: Sequence[tuple[int, str]]) -> None:
    """Refuse to begin where a machine has other checkpoints or other data; each process saw a step and a digest."""
    steps, digests = zip(*seen, strict=True)
    if len(set(steps)) > 1:
        raise InputError(
            f"run_dir: the newest checkpoint is of step {min(steps):,} for one process and of step {max(steps):,} for"
            " another; have run_dir on a disk that all machines see"
        )
    if len(set(digests)) > 1:
        raise InputError("data.runs: the processes see different shards; have the same runs on all machines")
