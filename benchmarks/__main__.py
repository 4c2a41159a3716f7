"""`make bench`: every benchmark, each in a process of its own, one JSON line a measurement."""

import subprocess
import sys

BENCHMARKS = (
    "pairing",
    "pool",
    "clap",
    "features",
    "vlm_path",
    "mixing",
    "image_decode",
    "engine",
    "resume",
    "whole_run",
    "loader",
    "shards",
    "train_step",
    "evaluation",
)

if __name__ == "__main__":
    for name in BENCHMARKS:
        if code := subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            sys.exit(code)
