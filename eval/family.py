"""The family of three systems on the offline suite, from nothing to one table, by one command.

    python -m eval.family --out runs/family

`make family` is the same. Ours, AudioToken and In-the-wild, each as it is used, with the controls `references` and
`shuffled`: the demo's photographs are sonified twice (heard by AST, and by BEATs for AudioToken), the two models are
trained for a few steps, all make the pictures of the suite `smoke`, and `eval.table` sets the reports beside each other
in OUT/table. Nothing is fetched. Every network is tiny and has random weights, those that judge too: this shows that
all of it runs together, and nothing of what any of these systems can do. The same command goes on where it stopped;
what a step made by half under other words goes before it is done anew.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.family", extra="eval"))

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.baseline import MAX_SEEDS
from eval.report import csv_bytes
from eval.reproduce import CONTROLS, OFFLINE, do_command
from eval.suites.suite import read_suite
from sonify.demo.demo import write_sample
from sonify.errors import InputError
from sonify.io.commits import digest_of
from sonify.io.write import check_replaceable, naming_full_disk, naming_place, remove, write_whole
from sonify.stores import to_folder
from sonify.terminal import Parser, argument_of, run_command

NOTE = (
    "This table shows that three systems run together under one protocol, and nothing else: every network in it, those"
    " that draw, those that hear and those that judge, is tiny and has random weights; two were trained for a few"
    " steps, and In-the-wild was given the suite's own labels as captions, with no step of optimisation."
)
OURS, TOKEN, WILD = "ours", "AudioToken", "In-the-wild"
STEPS = {OURS: 20, TOKEN: 20}  # of training
LAYERS = (4, 8, 12)  # of BEATs, as AudioToken joins them
DONE = "done"
BEGUN = ".begun"
MADE = {"tiny", "sample", "runs", "models", "suite", "captions.csv", "pictures", "reports", "table", DONE}  # in --out
HIDDEN = {f".{name}.{end}" for name in MADE for end in ("partial", "replaced")}  # what a kill may leave there
# Nothing may be fetched, and networks so small gain nothing from a second thread but waiting.
THREADS = {"OMP_NUM_THREADS": "1"}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", **THREADS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of the work: what it does in words, what does it, what is there when it is done, and all that it makes."""

    name: str
    says: str
    words: tuple[str, ...]
    work: Callable[[], None]
    makes: Path
    output: Path


def main(argv: Sequence[str] | None = None, prog: str = "eval.family") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Three systems and two controls in one table, offline, of random weights.")
    parser.add_argument("--out", type=argument_of(to_folder), required=True, help="folder of all that is made")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each sound (default: %(default)s)")
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.seeds <= MAX_SEEDS:
        raise InputError(f"--seeds: expected 1 to {MAX_SEEDS:,}, found {arguments.seeds}")
    out = arguments.out.absolute()
    check_replaceable(out, "what this command makes", MADE | HIDDEN, {})
    with naming_place(out), naming_full_disk(out):
        (out / DONE).mkdir(parents=True, exist_ok=True)
    steps = list(steps_of(out, arguments.seeds))
    sys.stdout.write(f"{len(steps)} steps, offline; together they take some minutes on two cores\n")
    do_steps(out, steps)
    sys.stdout.write(f"{NOTE}\n")
    sys.stdout.write("".join(f"{out / 'table' / name}\n" for name in ("table.html", "table.json", "table.tex")))


def do_steps(out: Path, steps: Sequence[Step]) -> None:
    """Do what is not done yet.

    Raises:
        WorkError: a command ended with an error.
        InputError: a step was done by other words, or after others that were; or the folder cannot be written to.
        DiskFull: no room is left.
    """
    before = ""
    for number, step in enumerate(steps, start=1):
        before = digest_of([before, step.name, step.words])
        mark = out / DONE / step.name
        place = f"[{number}/{len(steps)}] {step.says}"
        done_by = mark.read_text(encoding="utf-8") if mark.is_file() else before
        if done_by != before:
            raise InputError(
                f"--out {out}: the step {step.name} was done by another command; choose another folder, or remove this"
                " one"
            )
        if mark.is_file() and step.makes.exists():
            sys.stdout.write(f"{place}: done\n")
            continue
        sys.stdout.write(f"{place}\n")
        sys.stdout.flush()
        start = time.monotonic()
        _begin(out, step, before)
        step.work()
        with naming_place(mark), naming_full_disk(mark):
            write_whole(mark, before.encode())
        sys.stdout.write(f"  {time.monotonic() - start:.0f} s\n")


def _begin(out: Path, step: Step, digest: str) -> None:
    """Note by which words a step is done, before it is; what it made by others goes first.

    Raises:
        InputError: something is there that no note says this command made.
    """
    begun, mark = out / DONE / f"{step.name}{BEGUN}", out / DONE / step.name
    known = next((path.read_text(encoding="utf-8") for path in (begun, mark) if path.is_file()), None)
    if known is None and os.path.lexists(step.output):
        raise InputError(f"{step.output}: no note says that this command made it; remove it, or choose another --out")
    with naming_place(begun), naming_full_disk(begun):
        if known not in (None, digest):
            remove(step.output)
        write_whole(begun, digest.encode())


def steps_of(out: Path, seeds: int) -> Iterator[Step]:
    """All of the work, in its order."""
    tiny, sample, suite = out / "tiny", out / "sample", out / "suite"
    runs = {OURS: out / "runs" / "heard-by-ast", TOKEN: out / "runs" / "heard-by-beats"}
    trained = {OURS: out / "models" / "ours", TOKEN: out / "models" / "audiotoken"}
    layers = ",".join(map(str, LAYERS))
    beats = [f"features.beats={tiny / 'beats'}", f"features.layers=[{layers}]", "features.frequency=all"]

    yield _step("tiny", "write tiny networks of random weights", tiny / "sd",
                "train.tiny", tiny)  # fmt: skip
    yield Step(
        name="sample",
        says="write the demo's photographs and recordings",
        words=(str(sample),),
        work=partial(_write_sample, sample),
        makes=sample / "sounds",
        output=sample,
    )
    for name, ear, more in ((OURS, "AST", []), (TOKEN, "BEATs", beats)):
        yield _step(f"run-{ear}", f"sonify the photographs, with features heard by {ear}", runs[name] / "features",
                    "sonify", "run", "--config", "demo", f"run_dir={runs[name]}", f"images.path={sample / 'photos'}",
                    f"audio.sources.0.path={sample / 'sounds'}", f"features.vae={tiny / 'vae'}",
                    f"features.ast={tiny / 'ast'}", *more, "engine.kind=local")  # fmt: skip
    common = ["data.workers=0", "batch.total=12", "batch.per_device=12", "samples.sounds=0", "precision=fp32"]
    yield _step("train-ours", f"train ours for {STEPS[OURS]} steps", trained[OURS] / "pipeline",
                "train.pixart", "--config", "smoke", f"run_dir={trained[OURS]}", f"data.runs.0={runs[OURS]}",
                f"vae={tiny / 'vae'}", f"ast={tiny / 'ast'}", f"max_steps={STEPS[OURS]}", *common)  # fmt: skip
    yield _step("train-audiotoken", f"train AudioToken for {STEPS[TOKEN]} steps", trained[TOKEN] / "pipeline",
                "train.audiotoken", "--config", "audiotoken", f"run_dir={trained[TOKEN]}",
                f"data.runs.0={runs[TOKEN]}", f"vae={tiny / 'vae'}", "vae_revision=null", f"sd={tiny / 'sd'}",
                "sd_revision=null", f"encoder.model={tiny / 'beats'}", f"max_steps={STEPS[TOKEN]}", "log_every=5",
                *common)  # fmt: skip
    yield _step("suite", f"prepare the offline suite {OFFLINE}", suite / "suite.json",
                "eval.prepare", "--config", OFFLINE, "--out", suite)  # fmt: skip
    captions = out / "captions.csv"
    yield Step(
        name="captions",
        says="write the suite's labels as captions, in a captioner's place",
        words=(str(suite), str(captions)),
        work=partial(_write_captions, suite, captions),
        makes=captions,
        output=captions,
    )
    alone = [f"env.{name}='{value}'" for name, value in THREADS.items()]  # a recipe's program inherits little
    recipes = {
        OURS: ["generate", f"model={trained[OURS] / 'pipeline'}", *alone],
        TOKEN: ["generate", f"model={trained[TOKEN] / 'pipeline'}", *alone],
        WILD: [
            "in_the_wild",
            f"stable_diffusion={tiny / 'sd'}",
            "revision=null",
            f"captions={captions}",
            "optimise=0",
            "steps=10",
            *alone,
        ],
        **{control: [control] for control in CONTROLS},
    }
    for name, (recipe, *overrides) in recipes.items():
        pictures, report = out / "pictures" / name, out / "reports" / name
        yield _step(f"pictures-{name}", f"make the pictures of {name}", pictures / "manifest.jsonl",
                    "eval.baseline", "--recipe", recipe, "--suite", suite, "--seeds", seeds, "--out", pictures,
                    *overrides)  # fmt: skip
        met = ["--trained-on", runs[name]] if name in runs else []
        yield _step(f"report-{name}", f"score the pictures of {name}", report / "report.json",
                    "eval.run", "--suite", suite, "--manifest", pictures, "--out", report, *met)  # fmt: skip
    reports = [f"{name}={out / 'reports' / name}" for name in recipes]
    table = out / "table"
    yield _step("table", "set all reports into one table", table / "table.json",
                "eval.table", "--reports", *reports, "--against", OURS, "--note", NOTE, "--out", table)  # fmt: skip


def _step(name: str, says: str, makes: Path, module: str, *words: object) -> Step:
    """One of our commands, which may ask no hub for anything; `makes` lies in the folder that it fills."""
    texts = tuple(map(str, words))
    work = partial(do_command, module, *texts, env=ENVIRONMENT)
    return Step(name=name, says=says, words=(module, *texts), work=work, makes=makes, output=makes.parent)


def _write_sample(folder: Path) -> None:
    with naming_place(folder), naming_full_disk(folder):
        write_sample(folder)


def _write_captions(suite: Path, path: Path) -> None:
    """What a captioner would say, told by the suite: a sound's caption, else its labels."""
    items = read_suite(suite).items
    rows = [(item.id, (item.captions or (" and ".join(item.labels) or "a sound",))[0]) for item in items]
    with naming_place(path), naming_full_disk(path):
        write_whole(path, csv_bytes([("id", "caption"), *rows]))
