"""What tests start in several processes: each says what it was given, and waits where it is asked to."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

SAID = ("RANK", "OMP_NUM_THREADS")


def main(argv: Sequence[str], prog: str) -> int:
    """Write FOLDER/PID, with what `SAID` names; `--wait` for a minute after."""
    folder, *words = argv
    partial = Path(folder) / f".{os.getpid()}"
    partial.write_text(" ".join([prog, *(os.environ[name] for name in SAID)]))
    partial.rename(Path(folder) / str(os.getpid()))
    time.sleep(60 if "--wait" in words else 0)
    return 0
