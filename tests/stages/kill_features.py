"""Kills the features stage at every step of its commits and resumes it; run as a script by `test_features.py`.

    python -m tests.stages.kill_features ROOT VAE AST STRIDE

It kills at every STRIDE-th step. ROOT holds `photos`, `sounds` and `rendered`, a run that has come to its shards. See
`tests.engine.kill_matrix`.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - pyarrow imports it where it is installed, which each fork would do again

from sonify.config import Features
from sonify.features.batches import FeatureNetworks
from sonify.run import run
from tests.engine.hashing import hash_run
from tests.engine.kill_matrix import kill_before_step
from tests.fakes import small_config


def attempt(root: Path, name: str, networks: dict[str, Any], kill_at: int | None) -> int:
    """Do the stage in a fork, killed at the n-th step; return how the fork ended."""
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            kill_before_step(kill_at)
        run(small_config(root, run=name, features={**networks, "size": 64}), ("features",))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main(root: Path, networks: dict[str, Any], stride: int) -> None:
    """Kill at step 1, 1 + stride, ... until the stage ends before it is killed."""
    FeatureNetworks(Features(**networks, size=64))  # what the libraries do once in a process, each fork would do again
    shutil.copytree(root / "rendered", root / "straight")
    assert attempt(root, "straight", networks, None) == 0
    expected = hash_run(root / "straight")
    step = 1
    while True:
        shutil.copytree(root / "rendered", root / "killed")
        if attempt(root, "killed", networks, step) == 0:
            break
        if attempt(root, "killed", networks, None) != 0 or hash_run(root / "killed") != expected:
            sys.exit(f"after a kill at step {step} the resumed run differs")
        shutil.rmtree(root / "killed")
        step += stride
    sys.stdout.write(f"{step - stride}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), {"vae": sys.argv[2], "ast": sys.argv[3]}, int(sys.argv[4]))
