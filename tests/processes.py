"""Processes that tests start, watch and kill."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest


def peak_kib() -> int:
    """The most memory that this process has held since its own start, in KiB: `ru_maxrss` begins with its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1])


def run_python(
    code: str, *arguments: object, python: str | Path = sys.executable, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run some code in a process of its own, which must end well."""
    command = [str(python), "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done


def run_on_small_disk(folder: Path, size: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run some code where a folder is a file system of that size (`12m`); skip where none may be mounted."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no user namespaces on this machine: a small disk cannot be made")
    folder.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size={size} tmpfs "{folder}" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_first(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Have every Python process that is started from now on run some code before anything else.

    A process whose code fails ends: Python itself would go on without it, and the test would test nothing.
    """
    (folder / "site").mkdir()
    tried = f"try:\n{indent(code, '    ')}\nexcept BaseException:\n    import os, traceback\n"
    (folder / "site" / "sitecustomize.py").write_text(f"{tried}    traceback.print_exc()\n    os._exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"), prepend=os.pathsep)


@contextmanager
def meanwhile(act: Callable[[], bool]) -> Iterator[None]:
    """Call `act` in the background again and again, until it says that it is done or the block ends."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.is_set() and not act():
            stop.wait(0.02)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ray_workers() -> list[int]:
    """Pids of the workers of the Ray that this process started: children of its raylet."""

    def is_ours(entry: Path) -> bool:
        is_worker = (entry / "cmdline").read_bytes().startswith(b"ray::Worker")
        return is_worker and _parent_of(_parent_of(entry.name)) == str(os.getpid())

    return _processes(is_ours)


def children_of(pid: int) -> list[int]:
    """Pids of the processes that a process started."""
    return _processes(lambda entry: _parent_of(entry.name) == str(pid))


def is_gone(pid: int) -> bool:
    """Whether a process that was ended is no more, within five seconds; one that nobody waits for has ended."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def _parent_of(pid: str) -> str:
    return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]


def _processes(fits: Callable[[Path], bool]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and fits(entry):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return found


STEPS = ("fsync", "rename", "replace", "unlink")


def fork(work: Callable[[], object], kill_at: int | None = None) -> int:
    """Do some work in a fork of this process, killed at its n-th step; return how the fork ended.

    A step is a call that makes something last: fsync, rename, unlink.
    """
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            _kill_before_step(kill_at)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _kill_before_step(number: int) -> None:
    seen = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
