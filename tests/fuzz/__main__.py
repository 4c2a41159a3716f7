"""Fuzz one target by coverage: python -m tests.fuzz {tars,answers,told,replies,sounds,images} --minutes 10

Needs atheris (Linux, Python 3.11 to 3.13). An input that breaks a promise ends the run and lies in tests/fuzz/found,
from where tests/fuzz/test_fuzz.py replays it from then on.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import atheris

MAX_BYTES = {"tars": 2**13, "answers": 2**15, "told": 2**15, "replies": 2**13, "sounds": 2**14, "images": 2**14}
# atheris keeps what it saw compared, 8 KiB for each answer: with it gone the parser's memory stays as it is.
EXECUTIONS_IN_PROCESS = {"tars": -1, "answers": 80_000, "told": 80_000, "replies": 80_000, "sounds": -1, "images": -1}
MAX_MEMORY_MIB = 1024

with atheris.instrument_imports(include=["sonify", "tarfile"]):  # pyright: ignore[reportAttributeAccessIssue]
    from tests.fuzz.seeds import FOUND, seeds, with_checksums
    from tests.fuzz.targets import TARGETS


def main() -> int:
    """Fuzz in processes of this one, one after the other, until the time is over or one finds something."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--corpus", type=Path, help="folder that keeps what reached new code; a temporary one if absent"
    )
    parser.add_argument("--one-process", action="store_true", help="end when its executions are done")
    options = parser.parse_args()
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="fuzz-"))
    if options.one_process:
        return _fuzz(options.target, round(options.minutes * 60), corpus)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(options.target)):
        (corpus / f"seed-{number:03d}").write_bytes(seed)
    FOUND.mkdir(exist_ok=True)
    end = time.monotonic() + options.minutes * 60
    while (left := end - time.monotonic()) > 1:
        own = [options.target, "--minutes", str(left / 60), "--corpus", str(corpus), "--one-process"]
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", *own], check=False)
        if done.returncode:
            return done.returncode
    return 0


def _fuzz(target: str, seconds: int, corpus: Path) -> int:
    """Run libFuzzer, which ends the process itself: 0 where nothing was found."""
    # An allocation beyond it is an error in the target rather than a full machine.
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_MIB * 2**20, MAX_MEMORY_MIB * 2**20))
    arguments = [
        sys.argv[0],
        f"-max_total_time={max(seconds, 1)}",
        f"-runs={EXECUTIONS_IN_PROCESS[target]}",
        f"-max_len={MAX_BYTES[target]}",
        f"-rss_limit_mb={MAX_MEMORY_MIB}",
        "-timeout=60",
        "-print_final_stats=1",
        f"-artifact_prefix={FOUND}/{target}-",
        str(corpus),
    ]
    custom = {"custom_mutator": _mutate_archive} if target == "tars" else {}
    atheris.Setup(arguments, _of(TARGETS[target]), **custom)
    atheris.Fuzz()
    return 0


def _of(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    return lambda data: target(bytes(data))


def _mutate_archive(data: bytes, max_size: int, seed: int) -> bytes:
    changed = atheris.Mutate(data, len(data) or max_size)
    return with_checksums(changed) if seed % 4 else changed


if __name__ == "__main__":
    sys.exit(main())
