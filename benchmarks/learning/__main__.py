"""Show that a model learns to see what it hears, and what pairs that `sonify` makes are worth beside true ones.

    python -m benchmarks.learning --data DIR --out runs/learning [--steps N] [--models N] [--hours H]

Trains small models by the product's trainer, one after the other, each on other pairs (`ARMS` in bench.py) of the same
photographs, and judges pictures of held-out recordings by an independent eye. DIR holds `learning/`, `sounds/` and
`weights/`. After each model OUT gets report.md and result.json, with `not measured` for what is still to do; the same
command goes on where it was stopped, and a model that is known is neither trained nor judged again. So few photographs
are learned by heart, and they are for research only: publish neither grids nor recall.png, which shows pictures beside
the nearest training photographs; `benchmarks.learning.recall` makes one of photographs of one's own.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.learning.__main__", extra="dev"))

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.bench import (
    Bench,
    Fold,
    Model,
    ear_accuracy,
    evidence_file,
    examine,
    eye_accuracy,
    open_bench,
)
from benchmarks.learning.collection import CLASSES, Photo
from benchmarks.learning.judging import Evidence, write_grid
from benchmarks.learning.recall import write_picture
from benchmarks.learning.report import FOLDS, SEEDS_OF, write_report
from benchmarks.learning.training import SIDE_PX
from sonify.io.write import write_whole
from sonify.terminal import Parser, run_command

log = logging.getLogger(__name__)
STEPS = 700
FIRST = ("a", "b", "c", "d", "f")
SECOND = ("g-wide", "e-one", "e-fresh", "f-pool")
FOLDED = ("a", "b", "c", "d")
SHOWN = Model(fold=SEEDS_OF, arm="b", seed=0)
COUNTED = ("shipped", "paper")


def order_of_work() -> list[Model]:
    """All models by their worth, so that whatever is done when the time is up makes a table."""
    first = [Model(fold=SEEDS_OF, arm=arm, seed=0) for arm in FIRST]
    again = [Model(fold=SEEDS_OF, arm=arm, seed=seed) for seed in (1, 2) for arm in FIRST]
    second = [Model(fold=SEEDS_OF, arm=arm, seed=0) for arm in SECOND]
    folds = [Model(fold=fold, arm=arm, seed=0) for fold in FOLDS if fold != SEEDS_OF for arm in FOLDED]
    rest = [Model(fold=SEEDS_OF, arm=arm, seed=seed) for seed in (1, 2) for arm in SECOND]
    # thought of when the first results were there: no threshold stands for it
    late = [Model(fold=SEEDS_OF, arm="d-all", seed=seed) for seed in (0, 1, 2)]
    return [*first, *again, *second, *folds, *rest, *late]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.learning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of each model")
    parser.add_argument("--models", type=int, help="the first so many of them; all, if not given")
    parser.add_argument("--hours", type=float, help="begin no model after these")
    arguments = parser.parse_args(argv)

    def work() -> None:
        models = order_of_work()[: arguments.models]
        page, line = measure(arguments.data, arguments.out, arguments.steps, models, arguments.hours)
        print(page)
        print(json.dumps(line))

    return run_command("benchmarks.learning", work)


def measure(
    data: Path, out: Path, steps: int, models: Sequence[Model], hours: float | None = None
) -> tuple[str, dict[str, Any]]:
    """Do what is still to do; the page and the line are written to `out` after each model."""
    started = time.monotonic()
    bench = open_bench(data, out)
    instruments = _remember(bench.out / "instruments.json", lambda: _instruments(bench))
    folds: dict[int, Fold] = {}
    for model in models:
        if evidence_file(bench.out, model, steps).is_file():
            continue
        if hours is not None and time.monotonic() - started > hours * 3600:
            log.info("the time is up: the same command goes on")
            break
        if model.fold not in folds:
            folds[model.fold] = _open_fold(bench, model.fold)
        spent = examine(bench, folds[model.fold], model, steps)
        log.info("%s: trained and judged in %.0f s", model.key, spent)
        write_report(bench.out, known_of(bench, steps), facts_of(bench.out, steps) | instruments)
    for model, evidence in known_of(bench, steps).items():
        write_grid(evidence.judged(), bench.out / "grids" / f"{model.key.replace('/', '-')}.png")
        if model == SHOWN:
            _show_recall(bench, evidence)
    return write_report(bench.out, known_of(bench, steps), facts_of(bench.out, steps) | instruments)


def _show_recall(bench: Bench, evidence: Evidence) -> None:
    """Pictures beside the nearest training photographs, for one's own eyes: the photographs are not to be published."""
    yardstick = json.loads((bench.out / f"fold-{SHOWN.fold}" / "yardstick.json").read_text())
    trained = zip(yardstick["trained"], yardstick["trained_classes"], strict=True)
    photos = [Photo(file=file, name=name, label=name) for file, name in trained]
    sounds = [(CLASSES[number], upload) for number, upload in zip(evidence.true_R, evidence.uploads_R, strict=True)]
    nearest = [photos[number] for number in evidence.nearest_RS[:, 0]]
    write_picture(sounds, evidence.first_RHWC, nearest, bench.data / "photos", bench.out / "recall.png")


def _open_fold(bench: Bench, number: int) -> Fold:
    """A fold, described in files beside it."""
    fold = Fold(bench, number)
    for rules in COUNTED:
        _remember(fold.folder / f"counted-{rules}.json", lambda rules=rules: fold.counted(rules))
    _remember(fold.folder / "yardstick.json", fold.yardstick)
    return fold


def facts_of(out: Path, steps: int) -> dict[str, Any]:
    """What is known beside the models: how `sonify` paired, and how far photographs are from each other."""
    counted = {
        f"fold {number} held out, rules: {rules}": json.loads(file.read_text())
        for number in FOLDS
        for rules in COUNTED
        if (file := out / f"fold-{number}" / f"counted-{rules}.json").is_file()
    }
    yardsticks = {
        str(number): json.loads(file.read_text())
        for number in FOLDS
        if (file := out / f"fold-{number}" / "yardstick.json").is_file()
    }
    return {"steps": steps, "counted": counted, "yardsticks": yardsticks}


def known_of(bench: Bench, steps: int) -> dict[Model, Evidence]:
    """What is known of each model so far."""
    files = {model: evidence_file(bench.out, model, steps) for model in order_of_work()}
    return {model: Evidence.load(file) for model, file in files.items() if file.is_file()}


def _instruments(bench: Bench) -> dict[str, float]:
    found = {"eye": round(eye_accuracy(bench), 4), "ear": round(ear_accuracy(bench, FOLDS), 4)}
    log.info("the ceiling at %d pixels: %s", SIDE_PX, found)
    return found


def _remember(file: Path, work: Callable[[], Any]) -> Any:
    """What was found before, or else the work, written down."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(work(), indent=1).encode())
    return json.loads(file.read_text())
