"""Prepare a suite: sounds, what is heard of them, reference pictures, the lists that models are given.

    python -m eval.prepare --config configs/eval/folder.yaml --out SUITE path=mine.csv

What is taken follows the published list and the suite's name, never what is on the disk: what is missing there is
counted, listed in SUITE/missing.csv, and replaced only where the configuration says so. The same command gives the same
bytes.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.prepare", extra="eval"))

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.suites.config import DemoSuite, SuiteConfig, load_suite_config
from eval.suites.entries import Entry, Selection, select
from eval.suites.greatest_hits import list_greatest_hits, list_other_hits
from eval.suites.landscapes import list_itw, list_landscapes, list_landscapes_itw, list_other_landscapes
from eval.suites.own import list_folder, select_demo
from eval.suites.suite import MISSING, SOUNDS, Suite
from eval.suites.vegas import list_vegas
from eval.suites.vggsound import list_vggsound
from eval.suites.write import write_suite
from sonify.errors import InputError
from sonify.io.machine import usable_cpus
from sonify.stores import to_folder
from sonify.terminal import Parser, argument_of, run_command

# Who lists the entries of each kind.
READERS: Mapping[str, Callable[[Any], list[Entry]]] = {
    "vggsound": list_vggsound,
    "landscapes": list_landscapes,
    "itw": list_itw,
    "landscapes_itw": list_landscapes_itw,
    "vegas": list_vegas,
    "greatest_hits": list_greatest_hits,
    "folder": list_folder,
}
# Who lists what the corpus has beside, of kinds that take all of a list: further pictures for the floor.
OTHER_READERS: Mapping[str, Callable[[Any], list[Entry]]] = {
    "landscapes": list_other_landscapes,
    "greatest_hits": list_other_hits,
}
EPILOG = """\
What follows are keys of the configuration, such as per_class=5 or replace_missing=true.

examples:
  {command} --config smoke --out suites/smoke
  {command} --config folder --out suites/mine path=mine.csv name=mine
"""


def main(argv: Sequence[str] | None = None, prog: str = "eval.prepare") -> int:
    """Run the command and return its exit code."""
    arguments = _parser(prog).parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    config = load_suite_config(arguments.config, arguments.overrides)
    workers = usable_cpus() if arguments.workers is None else arguments.workers
    suite = prepare(config, arguments.out, workers)
    print(tell(suite))  # noqa: T201 - the command's result


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Prepare a suite of sounds and reference pictures.",
        epilog=EPILOG.format(command=prog if " " in prog else f"python -m {prog}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE|NAME", help="a YAML file, or one that comes along")
    parser.add_argument("--out", required=True, type=argument_of(to_folder), metavar="SUITE", help="the suite's folder")
    parser.add_argument("--workers", type=int, help="processes (default: as many as cores)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the configuration")
    return parser


def prepare(config: SuiteConfig, out: Path, workers: int = 1) -> Suite:
    """List, select and write a suite.

    Raises:
        InputError: the list is damaged or names an id twice, nothing of it can be used, or `out` holds something else.
        DiskFull: no room is left.
    """
    if workers < 1:
        raise InputError(f"--workers: expected at least 1, found {workers}")
    return write_suite(config, selection_of(config), out, workers)


def selection_of(config: SuiteConfig) -> Selection:
    """What the list of a configuration names, and which of it is taken; no media are looked at."""
    if isinstance(config, DemoSuite):
        return select_demo(config)
    kind = getattr(config, "kind")  # noqa: B009 - every kind of suite has one
    selection = select(
        READERS[kind](config),
        config.name,
        per_class=getattr(config, "per_class", None),
        one_per_recording=getattr(config, "one_clip_per_recording", False),
    )
    if kind not in OTHER_READERS or config.others == 0:
        return selection
    return replace(selection, others=select(OTHER_READERS[kind](config), config.name).wanted)


def tell(suite: Suite) -> str:
    """What was found and what was not, a line for each."""
    lines = [f"{suite.folder / SOUNDS}: {len(suite.items):,} items of {suite.wanted:,} wanted"]
    lost = sum(suite.missing.values())
    if lost:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in suite.missing.items())
        lines.append(f"{lost:,} of {suite.wanted:,} missing: {reasons} (see {MISSING})")
    if suite.replaced:
        lines.append(f"{suite.replaced:,} of these replaced by the next of their class")
    if silent := sum(item.window is None for item in suite.items):
        lines.append(f"{silent:,} of {len(suite.items):,} windows silent: no model is asked for these")
    if twins := suite.twin_references:
        lines.append(
            f"{twins:,} of {len(suite.items):,} items have a reference picture that another recording has too:"
            " intervals take them for independent"
        )
    lines.append(f"{len(suite.others):,} other real pictures, for the floor of the distances")
    return "\n".join(lines)
