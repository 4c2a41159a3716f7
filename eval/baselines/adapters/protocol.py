"""What the adapters beside this file share: what they are asked, and their answers, one line a picture as it is made.

They are scripts for the interpreter of another project, of Python 3.8 and later, and import nothing of this package.
A picture that is there is skipped, and a sound that cannot be painted is a line of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

GIVE_UP = 3  # so many sounds in turn that fail alone, and no picture before: it is not the sounds
POLL_SEC = 0.5


class Row(NamedTuple):
    """A sound of the list."""

    id: str
    sound: str


class Job:
    """What is asked, and the answers to it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out
        self.seeds = range(arguments.seed, arguments.seed + arguments.seeds)
        with arguments.list.open(encoding="utf-8", newline="") as file:
            self.rows = [Row(row["id"], row["sound"]) for row in csv.DictReader(file)]
        self.failed: set[tuple[str, int]] = set()
        (self.out / "images").mkdir(exist_ok=True)

    def image(self, row: Row, seed: int) -> str:
        """The name of a picture."""
        return f"images/{row.id}-{seed}.png"

    def left(self, seeds: Iterable[int]) -> list[Row]:
        """The sounds that are not answered with all of these seeds."""
        return [row for row in self.rows if any(self.is_left(row, seed) for seed in seeds)]

    def is_left(self, row: Row, seed: int) -> bool:
        """Whether a picture is to be made yet."""
        return (row.id, seed) not in self.failed and not (self.out / self.image(row, seed)).exists()

    def answer(self, row: Row, seed: int, image: Image.Image) -> None:
        """Keep a picture, whole or not at all, and say so."""
        part = self.out / "part.png"
        image.convert("RGB").save(part)
        part.replace(self.out / self.image(row, seed))
        self._write({"id": row.id, "seed": seed, "image": self.image(row, seed)})

    def fail(self, row: Row, seed: int, error: object) -> None:
        """Say that there will be no picture, and why."""
        why = str(error) if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.failed.add((row.id, seed))
        self._write({"id": row.id, "seed": seed, "error": " ".join(why.split())[:200] or "no reason was given"})

    def _write(self, line: dict[str, object]) -> None:
        with (self.out / "outputs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_job(*options: str) -> tuple[Job, argparse.Namespace]:
    """Read what every adapter is given, with options of its own, which must be there.

    What lies beside this file no longer hides the project's own modules: those of its checkout come first.
    """
    parser = argparse.ArgumentParser()
    for name, kind in (("list", Path), ("out", Path), ("seed", int), ("seeds", int), ("checkout", Path)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in options:
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    sys.path[0] = str(arguments.checkout)
    return Job(arguments), arguments


def seed_all(seed: int) -> None:
    """Seed what a project may draw from: PyTorch, NumPy and Python itself."""
    random.seed(seed)
    import_module("numpy").random.seed(seed % 2**32)
    import_module("torch").manual_seed(seed)


def answer_each(job: Job, make: Callable[[str], Image.Image]) -> None:
    """Make picture after picture within this process; each depends on its sound and its seed alone."""
    for row in job.rows:
        for seed in job.seeds:
            if job.is_left(row, seed):
                try:
                    seed_all(seed)
                    job.answer(row, seed, make(row.sound))
                except Exception as error:  # noqa: BLE001 - of somebody else's program: any is a line
                    job.fail(row, seed, error)


def spell(**options: object) -> list[str]:
    """Options as a program takes them; True is one without a value."""
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


class Batch(NamedTuple):
    """A program that makes the pictures of all sounds of a folder: how it is run, and where it leaves a picture.

    `find` is given the name of a sound's file without its ending.
    """

    command: Sequence[str]
    find: Callable[[str], Path]
    cwd: Path
    env: Sequence[tuple[str, str]] = ()


class Plan(NamedTuple):
    """How a project is run: `wavs` is where its program looks for sounds below a new folder, and at which rate.

    `prepare` writes what else it needs into that folder and says how it is run for some sounds (their files' names)
    and seeds. `split` makes the pictures of those seeds out of the one that the program leaves.
    """

    wavs: str
    rate_hz: int
    prepare: Callable[[Path, Sequence[str], Sequence[int]], Batch]
    split: Callable[[Image.Image, Sequence[int]], Iterable[tuple[int, Image.Image]]] = lambda image, seeds: [
        (seeds[0], image)
    ]


def answer_in_batches(job: Job, plan: Plan, passes: Iterable[Sequence[int]]) -> None:
    """Have a program make the pictures of many sounds at a time, once for each tuple of seeds.

    Where it fails before the end it is run again for the sounds that are left, and where it made none, for one alone:
    a sound that fails alone is answered with what the program said last.
    """
    made = sum(1 for _ in (job.out / "images").glob("*.png"))  # with those of an earlier run
    alone = 0
    for seeds in passes:
        size = None
        while rows := job.left(seeds)[:size]:
            done, said = _run_batch(job, plan, rows, seeds)
            made += done
            if not said or len(rows) == 1:
                for row in rows:
                    _fail(job, row, seeds, said or "the program ended well and left no picture")
            alone = alone + 1 if said and len(rows) == 1 and not made else 0
            if alone == GIVE_UP or (alone and not job.left(seeds)):
                raise SystemExit(f"no picture of any sound; the program of the project said: {said}")
            size = 1 if said and not done and len(rows) > 1 else None if done else size
    shutil.rmtree(job.out / "work", ignore_errors=True)


def _run_batch(job: Job, plan: Plan, rows: Sequence[Row], seeds: Sequence[int]) -> tuple[int, str]:
    """Run a program for some sounds; return how many it painted, and what it said last if it failed."""
    work = job.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    folder = work / plan.wavs
    folder.mkdir(parents=True)
    named: dict[str, Row] = {}
    for number, row in enumerate(rows):
        name = f"s{number:010d}"  # 11 characters, as a video's id has: AudioToken looks those up
        path = folder / f"{name}.wav"
        try:
            write_wav(row.sound, path, plan.rate_hz)
            named[name] = row
        except Exception as error:  # noqa: BLE001 - libraries differ in what they raise
            path.unlink(missing_ok=True)
            _fail(job, row, seeds, error)
    total, said = len(named), ""
    if named:
        batch = plan.prepare(work, list(named), seeds)
        for said in _talk(batch):  # noqa: B007 - the last of it counts
            for name, row in list(named.items()):
                if _take(job, plan, batch.find(name), row, seeds):
                    del named[name]
    return total - len(named), said


def _talk(batch: Batch) -> Iterator[str]:
    """Run a program; now and then, and at last with what it said if it failed, it is time to look for pictures."""
    process = subprocess.Popen(  # noqa: S603 - the project's own program, without a shell
        list(batch.command),
        cwd=batch.cwd,
        env={**os.environ, **dict(batch.env)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    last = [""]

    def listen() -> None:
        for line in process.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            last[0] = line.strip() or last[0]

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    while process.poll() is None:
        yield ""
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SEC)
    listener.join(POLL_SEC)  # a child of its own may hold the pipe open
    yield f"exit code {process.returncode}: {last[0]}" if process.returncode else ""


def _take(job: Job, plan: Plan, path: Path, row: Row, seeds: Sequence[int]) -> bool:
    """Take a picture in that is whole; one that is being written is not yet."""
    try:
        with Image.open(path) as image:
            pictures = list(plan.split(image.convert("RGB"), seeds))
    except (OSError, SyntaxError):
        return False
    for seed, picture in pictures:
        if job.is_left(row, seed):
            job.answer(row, seed, picture)
    return True


def _fail(job: Job, row: Row, seeds: Sequence[int], error: object) -> None:
    for seed in seeds:
        if job.is_left(row, seed):
            job.fail(row, seed, error)


def write_wav(sound: str, path: Path, rate_hz: int) -> None:
    """Write a sound as 16-bit WAV at a rate: most of these programs never look at the rate of a file."""
    soundfile: Any = import_module("soundfile")
    samples, found_hz = soundfile.read(sound, dtype="float32", always_2d=True)
    samples = samples.mean(axis=1)
    if found_hz != rate_hz:
        common = gcd(found_hz, rate_hz)
        resample_poly: Any = import_module("scipy.signal").resample_poly
        samples = resample_poly(samples, rate_hz // common, found_hz // common)
    soundfile.write(str(path), samples.clip(-1, 1), rate_hz, subtype="PCM_16")
