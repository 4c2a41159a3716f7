"""All distances of a report with their intervals, against torch-fidelity's FID alone without one.

    python -m benchmarks.evaluation

Prints a JSON line: FID, KID, precision, recall, density and coverage of 1,000 x 2048 features of real and as many of
made pictures, each with the jackknife of 20 groups ("ours"), and the FID of the same features by torch-fidelity
("theirs"), taken in turns in one process. Floor: a ratio of 1. `--pictures N` takes others.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.evaluation", extra="dev"))

from collections.abc import Sequence

import numpy as np
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from benchmarks.measure import cpu_name, interleaved, report
from eval.metrics.distributions import frechet_estimate, kid_estimate, prdc_estimate
from eval.statistics import GROUPS
from sonify.terminal import Parser, run_command

PICTURES, WIDTH = 1000, 2048
ROUNDS = 3


def features(seed: int, pictures: int, shift: float) -> np.ndarray:
    """Non-negative correlated float32 features, as an Inception network's."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99).standard_normal((8, WIDTH))
    common = rng.standard_normal((pictures, 8)) @ base / np.sqrt(8) * 0.5
    return np.maximum(common + rng.standard_normal((pictures, WIDTH)) * 0.3 + shift, 0).astype(np.float32)


def measure(pictures: int) -> None:
    """Measure both and print the line."""
    real, made = features(1, pictures, 0.0), features(2, pictures, 0.1)
    groups = np.arange(pictures) % GROUPS

    def all_with_intervals() -> None:
        for estimate in (frechet_estimate, kid_estimate, prdc_estimate):
            estimate(real, made, groups, groups)

    def their_fid() -> None:
        both = [fid_features_to_statistics(torch.from_numpy(side)) for side in (real, made)]
        fid_statistics_to_metric(*both, verbose=False)

    ours, theirs = interleaved(all_with_intervals, their_fid, ROUNDS)
    setting = {"pictures": pictures, "width": WIDTH, "groups": GROUPS, "cpu": cpu_name()}
    seconds = {"ours_sec": round(ours, 2), "theirs_sec": round(theirs, 2)}
    threads = torch.get_num_threads()
    report("evaluation_distances", 1 / ours, 1 / theirs, "reports/s", **seconds, **setting, threads=threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.evaluation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=PICTURES)
    arguments = parser.parse_args(argv)
    return run_command("benchmarks.evaluation", lambda: measure(arguments.pictures))
