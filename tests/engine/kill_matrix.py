"""Kills a run at every step of its commits and resumes it; run as a script by the tests of the engine and of features.

    python -m tests.engine.kill_matrix ROOT STRIDE [FEATURES]

It kills at every STRIDE-th step. Each attempt is a fork of this process, which has imported everything but started no
thread, so that an attempt costs the work and not the imports. Prints the last step at which it killed, or the first
after which the resumed run differs.

ROOT holds `photos` and `sounds`. With FEATURES, which is JSON of the configuration's section, only that stage is done,
and ROOT also holds `rendered`, a run that has come to its shards.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - pyarrow imports it where it is installed, which each fork would do again

from sonify.config import Features
from sonify.running import run
from tests.builders import hash_run, small_config
from tests.processes import fork


def attempt(root: Path, name: str, features: dict[str, Any] | None, kill_at: int | None = None) -> int:
    """Do or resume the run `name` in a fork, killed at the n-th step; return how the fork ended."""
    if features is None:
        return fork(lambda: run(small_config(root, run=name)), kill_at)
    if not (root / name).exists():
        shutil.copytree(root / "rendered", root / name)
    return fork(lambda: run(small_config(root, run=name, features=features), ("features",)), kill_at)


def main(root: Path, stride: int, features: dict[str, Any] | None) -> None:
    """Kill at step 1, 1 + stride, ... until the run ends before it is killed."""
    if features is not None:
        load_once(features)
    assert attempt(root, "straight", features) == 0
    expected = hash_run(root / "straight")
    step = 1
    while attempt(root, "killed", features, step) != 0:
        if attempt(root, "killed", features) != 0 or hash_run(root / "killed") != expected:
            sys.exit(f"after a kill at step {step} the resumed run differs")
        shutil.rmtree(root / "killed")
        step += stride
    sys.stdout.write(f"{step - stride}\n")


def load_once(features: dict[str, Any]) -> None:
    """What the libraries do once in a process, each fork would do again."""
    from sonify.features.batches import FeatureNetworks  # noqa: PLC0415 - a plain run's forks need no torch

    FeatureNetworks(Features(**features))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else None)
