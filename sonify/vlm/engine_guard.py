"""Runs an engine for as long as a pipe's other end is held, then ends it and all that it has started.

    python engine_guard.py GRACE_SEC LOG_FILE COMMAND...

A worker holds the pipe that is this process's standard input: however the worker dies, even by SIGKILL, the kernel
closes it. How the engine ended is written to standard output, one line. Standard library only; run as a file, so that
it starts in a blink and needs no import path.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

LIFELINE = 0
LOOK_SEC = 0.2
# Source: prctl(2); Linux only, and elsewhere the process group alone is ended.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    grace_sec, log_file, *command = sys.argv[1:]
    # Ray kills the direct children of a worker that exits: once more removed, the guard outlives them to do its work
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    with Path(log_file).open("ab") as log:
        try:
            engine = subprocess.Popen(  # noqa: S603 - the user's own command, without a shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_guard,  # noqa: PLW1509 - this process has one thread
            )
        except OSError as error:
            return report(f"{command[0]}: {error.strerror}")
    try:
        while engine.poll() is None and not _is_let_go(LOOK_SEC):
            pass
        if engine.returncode is not None:
            report(f"exit status {engine.returncode}")
    finally:
        end(engine, float(grace_sec))


def report(line: str) -> None:
    """Tell the worker, if it is still there."""
    with suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


def end(engine: "subprocess.Popen[bytes]", grace_sec: float) -> None:
    """Ask the engine's process group to end, and then end it and what has left it."""
    deadline = time.monotonic() + grace_sec
    _signal_group(engine, signal.SIGTERM)
    while time.monotonic() < deadline and (engine.poll() is None or _children()):
        _reap(engine)
        time.sleep(0.05)
    _signal_group(engine, signal.SIGKILL)
    while left := _children():  # orphans come to us, so killing children reaches all descendants
        for child in left:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _reap(engine)
        time.sleep(0.02)


def _is_let_go(within_sec: float) -> bool:
    readable, _, _ = select.select([LIFELINE], [], [], within_sec)
    return bool(readable) and os.read(LIFELINE, 1) == b""


def _signal_group(engine: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM where only zombies are left
        os.killpg(engine.pid, number)


def _children() -> list[int]:
    """Processes whose parent this is, from /proc; none where there is no /proc."""
    me, found = os.getpid(), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # the name in parentheses may hold anything; the state and the parent follow its end
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) == me and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _reap(engine: "subprocess.Popen[bytes]") -> None:
    engine.poll()
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _die_with_guard() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
