"""What one GPU does with every model of this project, in at most eight minutes; nothing is downloaded.

    python -m benchmarks.on_gpu [--out on_gpu.json] [--minutes 8]
    python -m benchmarks.on_gpu --table on_gpu.json

Random weights at the published sizes: training steps of XL/2 at 512 pixels, the search, training features, a
checkpoint, CLAP, LLaVA-1.5. Each part runs in a process of its own, has its own time and shares that of all: a part
that fails or is late is told with the reason, and the next one begins. Each figure is in the file as soon as it is
known. `--tiny --device cpu` runs the same code at tiny sizes, in two minutes on two cores: those figures say nothing.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("benchmarks.on_gpu", extra="dev"))

import argparse
import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.report import Figure, PartReport, Report, read_figure, read_report, rows_of, table_of, write_report
from sonify.errors import InputError
from sonify.installed import ROOT
from sonify.io.machine import die_with_parent
from sonify.io.write import find_target
from sonify.terminal import Parser, run_command

LEAST_SECONDS = 15.0  # a part is not begun with less than that: its libraries take as long to load
WRITING_SECONDS = 3.0  # kept back at the end
TAIL_CHARACTERS = 600  # of what a part said last
POLL_SECONDS = 0.05
FOLDER, LOCK = "sonify-on-gpu-", "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A function of a module below `benchmarks.gpu`, what it measures, and its seconds at the most."""

    name: str
    module: str
    title: str
    seconds: float


# By worth: where the time is over, the last are missing.
PARTS = (
    Part(name="machine", module="machine", title="The machine", seconds=40),
    Part(name="step", module="training", title="A training step of XL/2 at 512 pixels, bfloat16", seconds=140),
    Part(name="memory", module="training", title="The same step in other ways", seconds=150),
    Part(name="search", module="search", title="Search in a pool", seconds=70),
    Part(name="features", module="networks", title="Training features", seconds=70),
    Part(name="checkpoint", module="training", title="Saving", seconds=80),
    Part(name="clap", module="networks", title="CLAP (htsat-unfused)", seconds=45),
    Part(name="llava", module="networks", title="LLaVA-1.5-7B in transformers, bfloat16", seconds=100),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="benchmarks.on_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("on_gpu.json"), help="the file that gets the figures")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the code")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", help=f"some of {','.join(part.name for part in PARTS)}")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the figures of a file as a table")
    parser.add_argument("--part", help="run one part in this process, and print its figures as JSON lines")
    parser.add_argument("--folder", type=Path, help="where a part writes (with --part)")
    arguments = parser.parse_args(argv)

    def work() -> int | None:
        if arguments.table:
            print(*table_of(read_report(arguments.table)), sep="\n")
            return None
        if arguments.part:
            return _do(arguments.part, arguments.device, arguments.tiny, arguments.folder)
        if not arguments.minutes > 0:  # nor is a number that is none
            raise InputError(f"--minutes: expected a number above 0, found {arguments.minutes:g}")
        find_target(arguments.out)
        names = arguments.parts.split(",") if arguments.parts else [part.name for part in PARTS]
        return measure(arguments, [_part_of(name) for name in names])

    return run_command("benchmarks.on_gpu", work)


def _part_of(name: str) -> Part:
    part = next((part for part in PARTS if part.name == name), None)
    if part is None:
        raise InputError(f"--parts: {name}: expected some of {', '.join(part.name for part in PARTS)}")
    return part


def measure(arguments: argparse.Namespace, parts: Sequence[Part]) -> int:
    """Run parts one after the other, and return 3 where one of them is missing."""
    deadline = time.monotonic() + 60 * arguments.minutes - WRITING_SECONDS
    report = Report(tiny=arguments.tiny, device=arguments.device, parts=())

    def note(measured: PartReport) -> None:
        """Put what is known of a part in the place of what was."""
        nonlocal report
        others = tuple(each for each in report.parts if each.part != measured.part)
        report = replace(report, parts=(*others, measured))
        write_report(arguments.out, report)

    for part in parts:
        left = deadline - time.monotonic()
        measured = PartReport(part=part.name, title=part.title, outcome="not measured", why="no time was left")
        if left >= LEAST_SECONDS:
            measured = run_part(part, min(part.seconds, left), _command(part, arguments), note)
        note(measured)
        print(*rows_of(measured), sep="\n", file=sys.stderr, flush=True)
    print(arguments.out)
    return 0 if all(each.outcome == "done" for each in report.parts) else 3


def _command(part: Part, arguments: argparse.Namespace) -> list[str]:
    words = ["--part", part.name, "--device", arguments.device, *(["--tiny"] if arguments.tiny else [])]
    return [sys.executable, "-m", "benchmarks.on_gpu", *words]


def run_part(part: Part, seconds: float, command: Sequence[str], note: Callable[[PartReport], None]) -> PartReport:
    """Run a part in a process group of its own, which is killed when its time is over."""
    started = time.monotonic()
    measured = PartReport(part=part.name, title=part.title, outcome="not measured", why="being measured")
    with _open_folder() as folder, open(f"{folder}/said", "w+") as said:
        child = subprocess.Popen(
            [*command, "--folder", folder],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )
        try:
            for figure in _figures_of(child, started + seconds):
                measured = replace(measured, figures=(*measured.figures, figure))
                note(measured)
            ended = _has_ended(child, started + seconds)
        finally:
            os.killpg(child.pid, signal.SIGKILL)  # with whom it started: compilers, say
            code = child.wait()
        said.seek(0)
        last = " ".join(said.read()[-TAIL_CHARACTERS:].split())
    measured = replace(measured, seconds=round(time.monotonic() - started, 1))
    if not ended:
        return replace(measured, why=f"not ready within {seconds:.0f} s")
    if code:
        return replace(measured, outcome="failed", why=f"exit code {code}: {last}")
    return replace(measured, outcome="done", why="")


@contextmanager
def _open_folder() -> Iterator[str]:
    """A folder for what a part writes; those of runs that were killed go first, a checkpoint is 10 GB.

    Whoever works in one holds its lock, which ends with the process, in whatever container it is.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*/{LOCK}"):
        with suppress(OSError):  # another user's, or it is gone
            if not left.parent.is_symlink() and left.parent.stat().st_uid == os.getuid():
                _remove_unless_held(left)
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder, open(f"{folder}/{LOCK}", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder


def _remove_unless_held(lock: Path) -> None:
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.parent, ignore_errors=True)


def _figures_of(child: subprocess.Popen[str], deadline: float) -> Iterator[Figure]:
    """What a process prints, until it ends or the time is over."""
    lines: queue.Queue[str] = queue.Queue()

    def pass_on() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=pass_on, daemon=True).start()
    with suppress(queue.Empty):
        while line := lines.get(timeout=max(0.0, deadline - time.monotonic())):
            if figure := read_figure(line):
                yield figure


def _has_ended(child: subprocess.Popen[str], deadline: float) -> bool:
    """Whether a process ends by itself in time; it is not reaped, so that its number stays its own."""
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _do(name: str, device: str, tiny: bool, folder: Path) -> None:
    """Measure one part, in this process."""
    die_with_parent(os.getppid())  # a measurement whose conductor was killed would keep the GPU for itself
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    measured = getattr(import_module(f"benchmarks.gpu.{_part_of(name).module}"), name)
    for figure in measured(import_module("benchmarks.gpu.room").open_room(device, tiny, folder)):
        print(json.dumps(asdict(figure)), flush=True)
