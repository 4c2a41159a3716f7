"""What a machine is and lets us use: CPUs, memory, GPUs, and a folder that a socket's path fits into."""

import ctypes
import math
import os
import platform
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path, PurePosixPath

# The path of a socket in the file system: 108 bytes on Linux with the zero at its end (sys/un.h), 104 on macOS.
MAX_SOCKET_PATH_BYTES = 107 if os.uname().sysname == "Linux" else 103
# What is written to see whether there is room for a beginning: logs, mostly.
PROBE_BYTES = 1 << 20
# Where a folder of our own may lie, each short enough.
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a private folder is made in one
# What Python's and torch's processes, and serving engines, append to a folder: `/pymp-12345678/listener-12345678`.
APPENDED_BYTES = 40
# The oldest driver that programs of each CUDA run on, on Linux.
# Source: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1.
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
# What stands for no GPU at all in CUDA_VISIBLE_DEVICES; whatever follows it does not count.
NO_GPU = re.compile("-.*|no.*|void", re.IGNORECASE)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def usable_cpus(root: Path = Path("/")) -> int:
    """How many CPUs this process may use: by its affinity (which Slurm and `taskset` set) and its cgroup's quota.

    A share of a CPU counts as one. Containers see all CPUs of their machine, most of which are not theirs.

    Args:
        root: the folder that `proc` and `sys` are in.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([there, *(math.ceil(quota) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """The CPUs that each control group around this process allows, of either version.

    Source: kernel.org, admin-guide/cgroup-v2 (`cpu.max`) and scheduler/sched-bwc (`cpu.cfs_quota_us`).
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, of_line = line.partition(":")
        controllers, _, group = of_line.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup"
        hierarchies = [mounted / controllers, mounted / "cpu"] if controllers else [mounted]
        # a container may see its own group as the root of what is mounted
        above = [group, *(str(parent) for parent in PurePosixPath(group).parents)]
        for folder in dict.fromkeys(hierarchy / name.lstrip("/") for hierarchy in hierarchies for name in above):
            yield from _quota_of(folder)


def _quota_of(group: Path) -> Iterator[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        match words:  # `max 100000` and `-1 100000` are no limit
            case [quota, period] if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
                yield int(quota) / int(period)


def processor(root: Path = Path("/")) -> str:
    """The CPU as the system names it; empty where it does not."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except (OSError, ValueError):
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def memory_bytes() -> int:
    """The memory of this machine, whatever of it this process may use."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def given_gpus() -> tuple[str, ...]:
    """The GPUs that whoever started this process (Ray, Slurm, a user) chose for it; none where nobody did."""
    given: list[str] = []
    for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","):
        if not word.strip() or NO_GPU.fullmatch(word.strip()):
            break
        given.append(word.strip())
    return tuple(given)


def nvidia_driver(root: Path = Path("/")) -> str:
    """The version of NVIDIA's driver in the kernel; empty where there is none."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except (OSError, ValueError):
        return ""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return found[1] if found else ""


def why_no_cuda(cuda: str | None, driver: str) -> str:
    """Why a torch that is built for a version of CUDA, or for none, finds no GPU beside a driver."""
    if cuda is None:
        return "this torch is built for CPUs"
    built = f"this torch is built for CUDA {cuda}"
    oldest = OLDEST_DRIVERS.get(int(cuda.partition(".")[0]))
    if not driver:
        return f"{built}, and there is no NVIDIA driver here"
    if oldest is not None and int(driver.partition(".")[0]) < oldest:
        return f"{built}, which takes driver {oldest} or newer, and the driver here is {driver}"
    return f"{built}, and driver {driver} is new enough for it: the device files or the container's runtime are missing"


def fits_sockets(folder: str, below_bytes: int = APPENDED_BYTES) -> bool:
    """Whether a socket's path may have so many bytes more than a folder's."""
    return len(os.fsencode(folder)) + below_bytes <= MAX_SOCKET_PATH_BYTES


def why_no_sockets(folder: str, below_bytes: int) -> str:
    """What keeps sockets and files from being made in a folder, with so many bytes behind its name; empty: nothing."""
    if not os.path.isabs(folder) or not os.path.isdir(folder):
        return "is no folder"
    if not fits_sockets(folder, below_bytes):
        room = MAX_SOCKET_PATH_BYTES - below_bytes
        return f"is too long for sockets ({len(os.fsencode(folder))} bytes, {room} at most)"
    try:
        with tempfile.TemporaryDirectory(prefix="", dir=folder) as inside:
            Path(inside, "file").write_bytes(bytes(PROBE_BYTES))
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(f"{inside}/s")
    except OSError as error:
        return f"cannot be used ({error.strerror or error})"
    return ""


def short_folder(below_bytes: int) -> Path | None:
    """A new private folder that sockets fit into; whoever asks for it removes it. None where there is no room."""
    for parent in SHORT_FOLDERS:
        if not why_no_sockets(parent, below_bytes + len("/sonify-12345678")):
            return Path(tempfile.mkdtemp(prefix="sonify-", dir=parent))
    return None


def shorten_sockets() -> None:
    """Have this process's `multiprocessing` make its sockets in a short folder where TMPDIR has a long name.

    It removes that folder when the process ends. What else is temporary stays in TMPDIR, which somebody may have chosen
    for its room.
    """
    if fits_sockets(tempfile.gettempdir()):
        return
    short = next((name for name in SHORT_FOLDERS if not why_no_sockets(name, APPENDED_BYTES)), None)
    if short is None:
        return  # who makes a socket says so
    before, tempfile.tempdir = tempfile.tempdir, short
    try:
        util.get_temp_dir()  # made once, and passed on to the processes that are started
    finally:
        tempfile.tempdir = before


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends: who is left would keep a GPU.

    Linux only; elsewhere it outlives a parent that is killed.

    Args:
        parent: its process id, by which it is seen that it ended before this was asked for.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
