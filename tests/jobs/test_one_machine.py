"""`jobs/one-machine.sh` as it runs: a Ray of its own on loopback, the job's exit code, and nothing left of either."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOOPBACK = {
    "0100007F",
    "00000000000000000000000001000000",  # ::1
    "0000000000000000FFFF00000100007F",  # 127.0.0.1 on a socket of IPv6
}
LISTENS = "0A"
SECONDS = 60  # within which all is up, on a busy machine
pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="what listens is read from /proc")


def processes_of(mark: str) -> list[int]:
    """Those that were started with the mark in their environment, and what they started."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:  # another's, or gone
            continue
    return found


def addresses_of(processes: list[int]) -> list[str]:
    """Where they listen, in the kernel's spelling."""
    sockets = set()
    for process in processes:
        for file in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(OSError):  # closed meanwhile
                sockets.add(os.readlink(file))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == LISTENS and f"socket:[{row[9]}]" in sockets]


def folder_of(processes: list[int]) -> Path:
    """The script's own, as its job is told."""
    told = [Path(f"/proc/{process}/environ").read_bytes().split(b"\0") for process in processes]
    (name,) = {entry.decode() for entries in told for entry in entries if entry.startswith(b"ONE_MACHINE_FOLDER=")}
    return Path(name.split("=")[1])


def wait_for(file: Path, job: subprocess.Popen, log: Path) -> str:
    until = time.monotonic() + SECONDS
    while not (file.is_file() and file.read_text()):
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    return file.read_text()


def end_all(mark: str) -> None:
    for process in processes_of(mark):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"ONE_MACHINE_TEST={os.getpid()}-{time.time_ns()}"
    yield mark
    end_all(mark)  # what the script left


def start(log: Path, command: list[str], **env: str) -> subprocess.Popen:
    """In a session of its own, as a terminal starts it."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | env
    with log.open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True)


def start_job(folder: Path, mark: str, code: str, *args: str) -> subprocess.Popen:
    """The script with some Python as its job; what they say is in the file `log`."""
    name, value = mark.split("=")
    # A shell does not hear what was ignored when it began, as SIGINT is where the tests run in the background.
    command = [
        "env",
        "--default-signal=INT",
        "bash",
        "jobs/one-machine.sh",
        sys.executable,
        "-c",
        code,
        str(folder),
        *args,
    ]
    return start(folder / "log", command, **{name: value})


WAITS = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "up").write_text(sys.argv[2])
while not (folder / "go").exists(): time.sleep(0.1)
sys.exit(3)
"""


def test_a_job_ends_with_its_own_exit_code_and_its_ray_listens_on_loopback_only(tmp_path: Path, mark: str) -> None:
    job = start_job(tmp_path, mark, WAITS, 'it\'s "$HOME"; *')
    assert wait_for(tmp_path / "up", job, tmp_path / "log") == 'it\'s "$HOME"; *'
    processes = processes_of(mark)
    folder, addresses = folder_of(processes), addresses_of(processes)
    (tmp_path / "go").touch()
    assert job.wait(SECONDS) == 3, (tmp_path / "log").read_text()
    assert len(addresses) >= 9  # as many as the ports that the script chooses
    assert set(addresses) <= LOOPBACK
    assert (processes_of(mark), folder.exists()) == ([], False)


SLEEPS = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit((folder / "ended").touch()))
(folder / "up").write_text("up")
time.sleep(600)
"""
NEIGHBOUR = """
import os, pathlib, ray, sys, time
folder = pathlib.Path(sys.argv[1])
ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, _node_ip_address="127.0.0.1",
    _temp_dir=str(folder))
works = ray.remote(lambda: os.getpid())
(folder / "up").write_text(str(ray.get(works.remote())))
while not (folder / "go").exists(): time.sleep(0.1)
ray.get(works.remote(), timeout=30)
"""


@pytest.fixture
def neighbour() -> Iterator[Path]:
    """The folder of a Ray of somebody else's: with the file `go` in it, that one ends, well where it still works."""
    with tempfile.TemporaryDirectory(prefix="ry", dir="/tmp", ignore_cleanup_errors=True) as name:  # short, for sockets
        yield Path(name)
        end_all(f"NEIGHBOUR={name}")


def test_an_interrupted_job_ends_with_its_ray_and_no_other_ray_does(tmp_path: Path, mark: str, neighbour: Path) -> None:
    job = start_job(tmp_path, mark, SLEEPS)
    command = [sys.executable, "-c", NEIGHBOUR, str(neighbour)]
    own = {"NEIGHBOUR": str(neighbour), "RAY_AUTH_TOKEN": "n" * 64, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    other = start(neighbour / "log", command, **own)
    wait_for(tmp_path / "up", job, tmp_path / "log")
    folder = folder_of(processes_of(mark))
    wait_for(neighbour / "up", other, neighbour / "log")
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(SECONDS) == 130, (tmp_path / "log").read_text()
    (neighbour / "go").touch()
    assert other.wait(SECONDS) == 0, (neighbour / "log").read_text()
    assert "waits for the job to end, and for its Ray" in (tmp_path / "log").read_text()
    assert (tmp_path / "ended").exists()  # it was asked to, rather than killed
    assert (processes_of(mark), folder.exists()) == ([], False)
