"""Kills a run at every step of its commits and resumes it; run as a script by `test_guarantees.py`.

    python -m tests.engine.kill_matrix ROOT

A step is a call that makes something last: fsync, rename, unlink. Each attempt is a fork of this process, which has
imported everything but started no thread, so that an attempt costs the work and not the imports. Prints the number
of steps, or the first step after which the resumed run differs.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import pandas  # noqa: F401 - pyarrow imports it where it is installed, which each fork would do again

from sonify.run import run
from tests.engine.hashing import hash_run
from tests.fakes import small_config

STEPS = ("fsync", "replace", "unlink")


def attempt(root: Path, name: str, kill_at: int | None) -> int:
    """Run in a fork, killed at the n-th step; return how the fork ended."""
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            kill_before_step(kill_at)
        run(small_config(root, run=name))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def kill_before_step(number: int) -> None:
    """Make this process kill itself instead of its n-th step."""
    seen = 0

    def counted(function):
        def step(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def main(root: Path) -> None:
    """Kill at step 1, 2, ... until the run ends before it is killed."""
    assert attempt(root, "straight", None) == 0
    expected = hash_run(root / "straight")
    step = 0
    while True:
        step += 1
        if attempt(root, "killed", step) == 0:
            break
        if attempt(root, "killed", None) != 0 or hash_run(root / "killed") != expected:
            sys.exit(f"after a kill at step {step} the resumed run differs")
        shutil.rmtree(root / "killed")
    sys.stdout.write(f"{step - 1}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
