"""The paper's Table 1: what it takes, as far as this machine can go, and the table with what was measured.

    python -m eval.reproduce --out runs/reproduce [--model DIR|ID] [--trained-on RUN|CSV ...]

`make reproduce` is the same without a model. It says what is missing (corpora, weights, a GPU), prepares each suite
that can be, makes the pictures of the controls and of the model, and scores them, each by the command that it prints.
The offline suite `smoke` stands beside the paper's columns: its towers are random and judge nothing, it shows that all
of it runs. A cell that this run did not measure says so, whatever older reports lie there.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.reproduce", extra="eval"))

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.report import Report, csv_bytes, latex_escaped, latex_table, printable, read_report, say_met
from eval.suites.config import load_suite_config
from eval.suites.suite import SUITE, read_suite
from eval.towers.opened import load_towers, open_judges
from sonify.errors import InputError, WorkError
from sonify.io.write import write_whole
from sonify.models.loading import choose_device
from sonify.terminal import Parser, run_command

OFFLINE = "smoke"
# Suites of the paper's columns, in its order.
COLUMNS = {
    "greatest_hits": "Greatest Hits",
    "landscapes_itw": "Landscapes + Into the Wild",
    "vegas_1k": "VEGAS",
    "vggsound_50x20": "VGGSound",
}
METRICS = {"FID": "fid_torch_fidelity", "IIS": "iis_cosine", "AIS": "ais_cosine"}
# The best cell of each column in the paper's Table 1, whichever model it is of; its other cells are not known here.
PUBLISHED = "best published"
BEST = {
    "FID": (87.3, 79.9, 94.0, 85.8),
    "IIS": (0.68, 0.75, 0.62, 0.60),
    "AIS": (0.053, 0.064, 0.051, 0.043),
}
CONTROLS = ("references", "shuffled")
NOT_MEASURED = "not measured"
TITLES = {**COLUMNS, OFFLINE: f"{OFFLINE} (random projections, which judge nothing)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number of the table; `mark` says how many of its items the model may have met (`in`, `audio`, `out`).

    `out` is the same on the items that it cannot have met, where these are a part of all.
    """

    model: str
    suite: str
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    out: float | None = None
    out_low: float | None = None
    out_high: float | None = None
    mark: str = ""
    source: str = NOT_MEASURED  # `published` | `measured` | `not measured`
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was given."""

    out: Path
    model: str | None
    trained_on: tuple[str, ...]
    towers: str
    seeds: int
    on_cpu: bool


def main(argv: Sequence[str] | None = None, prog: str = "eval.reproduce") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="The paper's Table 1, as far as this machine can go.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the suites, the pictures and the reports")
    parser.add_argument("--model", metavar="DIR|ID", help="a released pipeline; without one, its row is not measured")
    parser.add_argument("--trained-on", nargs="+", default=(), metavar="RUN|CSV", help="as of eval.run")
    parser.add_argument("--towers", default="towers", help="the networks that judge (default: those that come along)")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each sound (default: %(default)s)")
    parser.add_argument("--on-cpu", action="store_true", help="make the model's pictures where there is no GPU too")
    found = parser.parse_args(argv)
    return run_command(prog, lambda: reproduce(read_asked(found)))


def read_asked(found: argparse.Namespace) -> Asked:
    """Check what can be checked of the arguments.

    Raises:
        InputError: a number is out of its range, or there are no such towers.
    """
    if found.seeds < 1:
        raise InputError(f"--seeds: expected 1 or more, found {found.seeds}")
    load_towers(found.towers)
    return Asked(
        out=found.out.absolute(),
        model=found.model,
        trained_on=tuple(found.trained_on),
        towers=found.towers,
        seeds=found.seeds,
        on_cpu=found.on_cpu,
    )


def reproduce(asked: Asked) -> None:
    """Do what can be done, and write `table.json`, `table.csv` and `table.tex`.

    Raises:
        WorkError: a command that should have worked did not.
        InputError: a suite in the folder was prepared by other settings, or the folder cannot be written to.
        DiskFull: no room is left.
    """
    lacks = find_lacks(asked)
    tell(lacks)
    for name in (*COLUMNS, OFFLINE):
        if not lacks.of_column(name):
            check_prepared(asked.out, name)
    cells: list[Cell] = []
    for column, name in enumerate((*COLUMNS, OFFLINE)):
        why = lacks.of_column(name)
        measured = () if why else _measure(asked, name, with_model=not lacks.of_model(name))
        if name in COLUMNS:
            cells += [
                Cell(model=PUBLISHED, suite=name, metric=metric, value=best[column], source="published")
                for metric, best in BEST.items()
            ]
        for model in (*CONTROLS, "model"):
            cells += cells_of(asked, name, model, None if model in measured else "; ".join(why or lacks.of_model(name)))
    write_table(asked.out, cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacks:
    """What this machine has not: corpora by column, weights for all but the offline one, a model, a GPU for it."""

    corpora: Mapping[str, str]
    towers: tuple[str, ...]
    model: str
    gpu: str

    def of_column(self, name: str) -> tuple[str, ...]:
        """Without which nothing of a column can be measured."""
        corpus = (self.corpora[name],) if name in self.corpora else ()
        return corpus if name == OFFLINE else (*corpus, *self.towers)

    def of_model(self, name: str) -> tuple[str, ...]:
        """Without which the model's cells of a column cannot."""
        return tuple(filter(None, (self.model, "" if name == OFFLINE else self.gpu)))


def find_lacks(asked: Asked) -> Lacks:
    """Look for all that the table takes."""
    corpora: dict[str, str] = {}
    for name in (OFFLINE, *COLUMNS):
        try:
            load_suite_config(name)
        except InputError as error:
            corpora[name] = str(error)
    on_cpu = asked.model is not None and not asked.on_cpu and choose_device("auto").type == "cpu"
    return Lacks(
        corpora=corpora,
        towers=tuple(_lacked_towers(asked.towers)),
        model="" if asked.model else "a model: --model, a folder or a hub id",
        gpu="a GPU for the model's pictures (--on-cpu does without)" if on_cpu else "",
    )


def tell(lacks: Lacks) -> None:
    """Say what is missing, and for which columns."""
    lines = [f"{COLUMNS.get(name, name)}: {why}" for name, why in lacks.corpora.items()]
    lines += [f"every column but {OFFLINE}: {why}" for why in (*lacks.towers, lacks.gpu) if why]
    lines += [f"the model's row: {lacks.model}"] if lacks.model else []
    sys.stdout.write("".join(f"needs, for {line}\n" for line in lines) or "all that the table takes is here\n")


def _lacked_towers(towers: str) -> Iterator[str]:
    sections = load_towers(towers)
    for role in ("inception", "clip_b32", "wav2clip"):
        try:
            if getattr(sections, role) is None:
                yield f"towers.{role}: {towers} names none"
            open_judges(sections, [role])
        except InputError as error:
            yield str(error)


def check_prepared(out: Path, name: str) -> None:
    """Refuse a suite that lies there by other settings than its configuration has today.

    Raises:
        InputError: as said, or the suite was changed.
    """
    folder = out / "suites" / name
    if not (folder / SUITE).is_file():
        return
    was, now = dict(read_suite(folder).settings), load_suite_config(name).model_dump(mode="json")
    if keys := sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key)):
        made = ", ".join(str(out / kind / name) for kind in ("pictures", "reports") if (out / kind / name).exists())
        raise InputError(
            f"{folder}: was prepared by another configuration than {name} is today ({', '.join(keys)}); remove it"
            + (f", and what was made from it: {made}" if made else "")
        )


def _measure(asked: Asked, name: str, *, with_model: bool) -> tuple[str, ...]:
    """Prepare a suite, make the pictures and score them, each by its command; of which models, is returned."""
    suite, seeds = asked.out / "suites" / name, ["--seeds", str(asked.seeds)]
    if not (suite / SUITE).is_file():
        do_command("eval.prepare", "--config", name, "--out", str(suite))
    models = {control: ["--recipe", control] for control in CONTROLS}
    if with_model and asked.model is not None:
        models["model"] = ["--recipe", "generate", f"model={asked.model}"]
    for model, recipe in models.items():
        pictures, report = (str(asked.out / folder / name / model) for folder in ("pictures", "reports"))
        options, overrides = recipe[:2], recipe[2:]
        do_command("eval.baseline", *options, "--suite", str(suite), *seeds, "--out", pictures, *overrides)
        judged = [] if name == OFFLINE else ["--towers", asked.towers]
        met = ["--trained-on", *asked.trained_on] if model == "model" and asked.trained_on else []
        vectors = ["--vectors", str(asked.out / "vectors")]
        given = ["--suite", str(suite), "--manifest", pictures, "--out", report]
        do_command("eval.run", *given, *vectors, *judged, *met)
    return tuple(models)


def do_command(module: str, *words: str, env: Mapping[str, str] | None = None) -> None:
    """Print a command of ours and run it; its own output but the trouble is left out.

    Raises:
        WorkError: it ended with an error, which it has said itself.
    """
    sys.stdout.write(f"$ python -m {module} {shlex.join(words)}\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **(env or {})})  # noqa: S603 - our own modules
    if done.returncode:
        raise WorkError(f"python -m {module} ended with {done.returncode}; what it said stands above")


def cells_of(asked: Asked, name: str, model: str, why: str | None) -> list[Cell]:
    """A model's cells of a column: by its report, or, where it was not measured now, `why`."""
    shown = asked.model or "ours" if model == "model" else model
    if why is not None:
        return [Cell(model=shown, suite=name, metric=metric, why=why) for metric in METRICS]
    report = read_report(asked.out / "reports" / name / model)
    return [_cell_of(report, shown, name, metric) for metric in METRICS]


def _cell_of(report: Report, model: str, suite: str, metric: str) -> Cell:
    scores = {score.on: score for score in report.scores if score.metric == METRICS[metric]}
    score, part = scores.get("all"), scores.get("out")
    if score is None or score.estimate is None:
        return Cell(model=model, suite=suite, metric=metric, why=score.reason if score else "not asked for")
    estimate, out = score.estimate, part.estimate if part else None
    return Cell(
        model=model,
        suite=suite,
        metric=metric,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        out=out.value if out else None,
        out_low=out.low if out else None,
        out_high=out.high if out else None,
        mark=say_met(report.met),
        source="measured",
    )


def write_table(out: Path, cells: Sequence[Cell]) -> None:
    """Write the table in three forms, and print it.

    Raises:
        InputError: the folder cannot be written to.
        DiskFull: no room is left.
    """
    rows = [asdict(cell) for cell in cells]
    write_whole(out / "table.json", (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(out / "table.csv", csv_bytes([list(rows[0]), *(list(row.values()) for row in rows)]))
    write_whole(out / "table.tex", _latex(cells).encode())
    _print(cells)
    sys.stdout.write("".join(f"{out / name}\n" for name in ("table.json", "table.csv", "table.tex")))


def _grid(cells: Sequence[Cell]) -> tuple[list[str], list[str], dict[tuple[str, str, str], Cell]]:
    models = list(dict.fromkeys(cell.model for cell in cells))
    suites = list(dict.fromkeys(cell.suite for cell in cells))
    return models, suites, {(cell.model, cell.suite, cell.metric): cell for cell in cells}


def _say(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.value is None:
        return NOT_MEASURED
    out = "" if cell.out is None else f"on out alone {_spread(cell.out, cell.out_low, cell.out_high)}"
    beside = "; ".join(filter(None, (cell.mark, out)))
    return _spread(cell.value, cell.low, cell.high) + (f" ({beside})" if beside else "")


def _spread(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _print(cells: Sequence[Cell]) -> None:
    models, suites, at = _grid(cells)
    table = Table(title="Table 1 of Seeing Sound (FID lower, IIS and AIS higher is better)", title_justify="left")
    for title in ("suite", "metric", *models):
        table.add_column(Text(printable(title)))
    for suite in suites:
        for metric in METRICS:
            table.add_row(TITLES[suite], metric, *(_say(at.get((model, suite, metric))) for model in models))
    Console(file=sys.stdout, width=max(Console().width, 120)).print(table)


def _latex(cells: Sequence[Cell]) -> str:
    models, suites, at = _grid(cells)
    heads = (
        ["", *(rf"\multicolumn{{3}}{{c}}{{{TITLES[suite]}}}" for suite in suites)],
        ["model", *(metric for _ in suites for metric in METRICS)],
    )
    rows = [
        [*map(latex_escaped, [model, *(_say(at.get((model, suite, name))) for suite in suites for name in METRICS)])]
        for model in models
    ]
    return "\n".join(latex_table(f"l{'ccc' * len(suites)}", heads, [rows])) + "\n"
