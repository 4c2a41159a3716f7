"""Show that a model learns to see what it hears, and what pairs that `sonify` makes from captions are worth.

    python -m benchmarks.learning --data DIR --out runs/learning [--steps N] [--folds 5] [--seeds N]

Runs the product's trainer on pairs (a) by true class, (b) made by `sonify` from captions, (c) shuffled; makes pictures
of held-out recordings, with the audio and with it zeroed; an independent eye judges them. DIR holds `learning/` and
`weights/`. The same command goes on where it was stopped. `runs/learning` gets report.md, result.json and grids of
pictures; so few photographs are learned by heart, and they are for research only: publish no grid.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.learning.__main__", extra="dev"))

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning.bench import ear_accuracy, eye_accuracy, make_pairs, open_bench, train_and_judge
from benchmarks.learning.judging import join, write_grid
from benchmarks.learning.report import estimates, json_line, markdown
from benchmarks.learning.training import SIDE_PX
from benchmarks.learning.verdicts import verdicts
from sonify.terminal import Parser, run_command

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.learning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--steps", type=int, default=2000, help="of each model")
    parser.add_argument("--folds", type=int, nargs="+", default=[5], help="each is held out once")
    parser.add_argument("--seeds", type=int, default=8, help="pictures of each held-out recording")
    arguments = parser.parse_args(argv)

    def work() -> None:
        page, line = measure(arguments.data, arguments.out, arguments.steps, arguments.folds, arguments.seeds)
        print(page)
        print(json.dumps(line))

    return run_command("benchmarks.learning", work)


def measure(data: Path, out: Path, steps: int, folds: Sequence[int], num_seeds: int) -> tuple[str, dict]:
    """Do everything; the page and the line are written to `out` as well."""
    bench = open_bench(data, out)
    eye, ear = eye_accuracy(bench), ear_accuracy(bench, folds)
    log.info("the ceiling: eye %.1f %% on photographs at %d pixels, ear %.1f %%", 100 * eye, SIDE_PX, 100 * ear)
    tables, parts = {}, []
    for fold in folds:
        pairs, counted = make_pairs(bench, fold)
        tables |= counted
        parts.append(train_and_judge(bench, fold, pairs, steps, num_seeds))
    judged = {name: {kind: join([part[name][kind] for part in parts]) for kind in parts[0][name]} for name in parts[0]}
    found = estimates(judged)
    held = verdicts(eye, ear, found)
    for name, kinds in judged.items():
        for kind, one in kinds.items():
            write_grid(one, out / f"grid-{name}-{kind}.png")
    facts = {"steps": steps, "folds": list(folds), "seeds": num_seeds, "eye": round(eye, 4), "ear": round(ear, 4)}
    page = markdown(found, judged, tables, held)
    line = json_line(found, judged, held, **facts, pairs=tables)
    (out / "report.md").write_text(page)
    (out / "result.json").write_text(json.dumps(line, indent=1) + "\n")
    return page, line
