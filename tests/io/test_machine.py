"""What a machine lets us use, by files as kernels write them and by sockets that are really made."""

import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sonify.io.machine import (
    APPENDED_BYTES,
    MAX_SOCKET_PATH_BYTES,
    fits_sockets,
    given_gpus,
    memory_bytes,
    nvidia_driver,
    processor,
    short_folder,
    usable_cpus,
    why_no_cuda,
    why_no_sockets,
)

HERE = len(os.sched_getaffinity(0))
# /proc/self/cgroup: of a session under systemd, of a container with a namespace of its own, and of version 1.
V2_HOST = "0::/user.slice/user-1000.slice/session-3.scope\n"
V2_OWN = "0::/\n"
V1 = "12:cpuset:/docker/ab12\n4:cpu,cpuacct:/docker/ab12\n1:name=systemd:/docker/ab12\n0::/system.slice\n"
V1_NAMED = "3:cpuacct,cpu:/\n"


def machine(root, groups, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        pytest.param(V2_OWN, {"cpu.max": "400000 100000\n"}, 4, id="four CPUs of a container"),
        pytest.param(V2_OWN, {"cpu.max": "150000 100000\n"}, 2, id="one and a half"),
        pytest.param(V2_OWN, {"cpu.max": "10000 100000\n"}, 1, id="a tenth"),
        pytest.param(V2_OWN, {"cpu.max": "max 100000\n"}, None, id="no limit"),
        pytest.param(V2_OWN, {}, None, id="the root group has no such file"),
        pytest.param(
            V2_HOST,
            {
                "user.slice/cpu.max": "max 100000\n",
                "user.slice/user-1000.slice/cpu.max": "300000 100000\n",
                "user.slice/user-1000.slice/session-3.scope/cpu.max": "max 100000\n",
            },
            3,
            id="a group above",
        ),
        pytest.param(V2_HOST, {"elsewhere/cpu.max": "100000 100000\n"}, None, id="another's group"),
        pytest.param(
            V1,
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            4,
            id="version 1, its own group mounted as the root",
        ),
        pytest.param(
            V1,
            {"cpu/docker/ab12/cpu.cfs_quota_us": "50000\n", "cpu/docker/ab12/cpu.cfs_period_us": "25000\n"},
            2,
            id="version 1, mounted under the controller's name",
        ),
        pytest.param(
            V1_NAMED,
            {"cpuacct,cpu/cpu.cfs_quota_us": "-1\n", "cpuacct,cpu/cpu.cfs_period_us": "100000\n"},
            None,
            id="version 1, no limit",
        ),
        pytest.param(
            "12:cpuset:/theirs\n4:cpu:/ours\n",
            {"cpu/theirs/cpu.cfs_quota_us": "100000\n", "cpu/theirs/cpu.cfs_period_us": "100000\n"},
            None,
            id="version 1, a group of another controller",
        ),
        pytest.param("nonsense\n::\n0::\n", {"cpu.max": "many\n"}, None, id="nonsense"),
        pytest.param(V2_OWN, {"cpu.max": "100000 0\n"}, None, id="no period"),
        pytest.param(V2_OWN, {"cpu.max": "0 100000\n"}, None, id="no quota"),
        pytest.param("0::/../../other\n", {"cpu.max": "200000 100000\n"}, 2, id="a group outside of the namespace"),
    ],
)
def test_cpus_are_those_of_the_quota(tmp_path, monkeypatch, groups, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(192)))
    assert usable_cpus(machine(tmp_path, groups, files)) == (cpus or 192)


def test_a_quota_above_what_we_may_run_on_does_not_count(tmp_path):
    assert usable_cpus(machine(tmp_path, V2_OWN, {"cpu.max": "51200000 100000\n"})) == HERE
    assert usable_cpus(tmp_path / "no such system") == HERE


@pytest.mark.skipif(HERE < 2, reason="this machine gives us one CPU anyway")
def test_cpus_are_those_of_the_affinity():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
    code += "from sonify.io.machine import usable_cpus; print(usable_cpus(), os.cpu_count())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "1"
    assert int(said[1]) >= HERE


def deep(root, length):
    """A folder whose path has so many bytes."""
    while len(os.fsencode(root)) < length:
        missing = length - len(os.fsencode(root)) - 1
        root = root / ("x" * min(50, missing if missing <= 50 else 50 if missing != 51 else 49))
    root.mkdir(parents=True)
    assert len(os.fsencode(root)) == length
    return root


@pytest.fixture
def short():
    folder = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_a_folder_is_refused_exactly_where_a_socket_no_longer_fits(short):
    below = "/" + "s" * 19
    for length, fits in ((MAX_SOCKET_PATH_BYTES - 20, True), (MAX_SOCKET_PATH_BYTES - 19, False)):
        folder = deep(short / str(length), length)
        assert fits_sockets(str(folder), 20) == fits
        assert ("is too long for sockets" in why_no_sockets(str(folder), 20)) != fits
        with socket.socket(socket.AF_UNIX) as made:
            if fits:
                made.bind(f"{folder}{below}")
            else:
                with pytest.raises(OSError, match="too long"):
                    made.bind(f"{folder}{below}")


def test_bytes_count_and_not_characters(short):
    folder = short / ("犬" * 20)
    folder.mkdir()
    assert len(str(folder)) < 40
    assert "is too long for sockets (" in why_no_sockets(str(folder), 40)


def test_what_is_no_folder_or_takes_no_files_is_refused(tmp_path, short):
    file = short / "file"
    file.write_bytes(b"")
    for wrong in (str(file), str(short / "none"), "", "relative"):
        assert why_no_sockets(wrong, 0) == "is no folder"
    assert why_no_sockets("/proc", 0).startswith("cannot be used (")
    assert why_no_sockets(str(short), 0) == ""
    assert list(short.iterdir()) == [file]


def test_a_folder_of_our_own_is_private():
    folder = short_folder(60)
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert why_no_sockets(str(folder), 60) == ""
    folder.rmdir()
    assert short_folder(MAX_SOCKET_PATH_BYTES) is None


LISTEN = """
import sys, tempfile
from multiprocessing.connection import Listener
from sonify.io.machine import shorten_sockets
shorten_sockets()
Listener(family="AF_UNIX").close()
print(tempfile.gettempdir())
"""


@pytest.mark.parametrize("length", [20, MAX_SOCKET_PATH_BYTES - APPENDED_BYTES, 90, 200])
def test_processes_can_talk_whatever_the_length_of_the_folder(short, length):
    folder = deep(short / "t", length) if length > 30 else short
    before = set(Path("/tmp").glob("pymp-*"))
    done = subprocess.run(
        [sys.executable, "-c", LISTEN],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder)  # which everything else is still written to
    assert set(Path("/tmp").glob("pymp-*")) <= before


# --- GPUs: as drivers write them; there is none here

PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc 12\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\nGCC version:  13.3.0\n"


@pytest.mark.parametrize(
    ("text", "driver"), [(PROPRIETARY, "550.54.15"), (OPEN, "580.82.07"), ("GCC version:  gcc 12.1\n", ""), (None, "")]
)
def test_the_driver_in_the_kernel_is_read(tmp_path, text, driver):
    if text is not None:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert nvidia_driver(tmp_path) == driver


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("0", ("0",)),
        ("3, GPU-8f1b", ("3", "GPU-8f1b")),
        ("0,-1,1", ("0",)),
        ("NoDevFiles", ()),
        ("none", ()),
        ("-1", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_the_gpus_that_somebody_chose_are_those_before_one_that_is_none(monkeypatch, value, given):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert given_gpus() == given


@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        (None, "580.82.07", "built for CPUs"),
        ("13.0", "", "built for CUDA 13.0, and there is no NVIDIA driver here"),
        ("13.0", "579.99", "takes driver 580 or newer, and the driver here is 579.99"),
        ("13.0", "580.65.06", "580.65.06 is new enough"),
        ("12.8", "525.60.13", "525.60.13 is new enough"),
        ("12.8", "520.61.05", "takes driver 525 or newer"),
        ("11.8", "449.1", "takes driver 450 or newer"),
        ("14.0", "600.1", "600.1 is new enough"),
    ],
)
def test_why_torch_finds_no_gpu_is_told_by_its_cuda_and_the_driver(cuda, driver, words):
    assert words in why_no_cuda(cuda, driver)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 9B14\nprocessor\t: 1\nmodel name\t: Other\n", "AMD EPYC 9B14"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", platform.processor()),  # of ARM
        (None, platform.processor()),
    ],
)
def test_the_cpu_is_named_as_the_system_does(tmp_path, text, name):
    (tmp_path / "proc").mkdir()
    if text is not None:
        (tmp_path / "proc" / "cpuinfo").write_text(text)
    assert processor(tmp_path) == name


def test_the_memory_is_the_machines():
    of_kernel = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert memory_bytes() == int(of_kernel.split()[1]) << 10
