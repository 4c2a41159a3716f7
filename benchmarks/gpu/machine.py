"""What the figures of `benchmarks.on_gpu` are of."""

import platform
from collections.abc import Iterator

import torch

from benchmarks.gpu.report import Figure
from benchmarks.gpu.room import Room
from benchmarks.measure import cpu_name
from sonify.io.machine import memory_bytes, nvidia_driver, usable_cpus
from train.device import device_bytes
from train.memory import GB


def machine(room: Room) -> Iterator[Figure]:
    """Its GPU, libraries and CPUs."""
    on_gpu = room.device.type == "cuda"
    yield Figure(name="GPU", value=torch.cuda.get_device_name() if on_gpu else "none")
    if on_gpu:
        yield Figure(name="memory of the GPU", value=round((device_bytes(room.device) or 0) / GB, 1), unit="GB")
    yield Figure(name="driver", value=nvidia_driver() or "none")
    yield Figure(name="CUDA of torch", value=torch.version.cuda or "none")
    yield Figure(name="torch", value=torch.__version__)
    yield Figure(name="CPU", value=cpu_name())
    yield Figure(name="CPUs", value=usable_cpus())
    yield Figure(name="memory", value=round(memory_bytes() / GB, 1), unit="GB")
    yield Figure(name="Python", value=platform.python_version())
