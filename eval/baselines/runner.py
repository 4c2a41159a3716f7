"""Running the program of a recipe, by the protocol of docs/evaluation.md.

It works in its output folder, where it goes on if it is started again; until all is checked there is no manifest. What
it left is judged in `eval.baselines.answers`.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import Progress

from eval.baselines.answers import Broken, count_answers, find_kept, keep_only, take_manifest, take_outputs
from eval.baselines.folder import (
    BASELINE,
    LOCK,
    LOG,
    OUTPUTS,
    Asked,
    Counts,
    MadeFor,
    begin,
    check_names,
    check_program,
    clear,
    hold,
    is_held,
    one_line,
)
from eval.baselines.recipe import CommandRecipe, fill_in, model_digest, standing_values
from eval.suites.suite import SOUNDS_WHOLE, list_bytes
from sonify.errors import InputError, WorkError
from sonify.io.listing import is_junk
from sonify.io.write import sha256_of, write_whole
from train.manifest import IMAGES, MANIFEST

log = logging.getLogger(__name__)

REFUSED = "outputs.refused.jsonl"
LOG_BYTES = 64 * 2**20  # a program that prints without end would fill the disk
LOG_END_BYTES = 2**20  # of its beginning, and of its end, that are kept
PASSED_ON = ("PATH", "HOME", "LANG")
GRACE_SEC = 5.0  # between SIGTERM and SIGKILL
POLL_SEC = 0.2
TELL_SEC = 60.0  # where there is no terminal
LAST_WORDS_BYTES = 4096


def run_recipe(recipe: CommandRecipe, asked: Asked, made_for: MadeFor, folder: Path) -> Counts:
    """Run a recipe's program for all that it has not made yet, check what it did, and write the manifest.

    Raises:
        InputError: the suite, a weight or the folder is not what it has to be, or the program cannot be started.
        WorkError: the program failed, took too long, or broke its protocol.
    """
    _check_sounds(asked)
    cwd = recipe.cwd or folder
    _check_weights(recipe, cwd)
    with hold(folder) as lock, _distrusting(recipe, folder, lock):
        kept = find_kept(folder, asked)
        if kept:
            check_program(folder, made_for)
        begin(folder, made_for)
        # the suite's own lists name the place where it was made, and it may have been moved
        write_whole(folder / asked.takes, list_bytes(asked.suite, asked.takes == SOUNDS_WHOLE))
        keep_only(folder, asked, kept)
        todo = len(asked.pairs) - len(kept)
        log.info("%s pictures, of which %s are there", f"{len(asked.pairs):,}", f"{len(kept):,}")
        try:
            if todo:
                with _untouched(asked, cwd, folder):
                    _run_program(_Program(recipe=recipe, asked=asked, cwd=cwd, folder=folder, todo=todo), lock)
            check_names(folder)
            if not is_held(folder, lock):
                raise WorkError(
                    f"{recipe.name}: its program moved or removed {folder} or {LOCK} in it; see what is there"
                    " now, and run the same command again"
                )
            if (folder / MANIFEST).exists():
                return take_manifest(recipe, asked, folder)
            return take_outputs(recipe, asked, folder, kept, model_digest(recipe, made_for.program))
        except BaseException:
            if is_held(folder, lock):
                with suppress(IsADirectoryError):
                    (folder / MANIFEST).unlink(missing_ok=True)  # a program's own
            raise


# --- before


def _check_sounds(asked: Asked) -> None:
    """What is heard must be what was prepared: a picture of another sound would be held against this one."""
    for path, sha256 in asked.sounds.values():
        try:
            found = sha256_of(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); prepare the suite again") from None
        if found != sha256:
            raise InputError(f"{path}: is not as it was prepared (another sha256); prepare the suite again")


def _check_weights(recipe: CommandRecipe, cwd: Path) -> None:
    for name, sha256 in recipe.weights.items():
        path = cwd / name
        try:
            found = sha256_of(path)
        except OSError as error:
            raise InputError(f"weights: {path}: cannot be read ({error.strerror}); expected the file") from None
        if found != sha256:
            raise InputError(f"weights: {path}: expected sha256 {sha256}, found {found}; fetch the file again")


@contextmanager
def _distrusting(recipe: CommandRecipe, folder: Path, lock: BinaryIO) -> Iterator[None]:
    """Put away what a program answered that broke its protocol."""
    try:
        yield
    except Broken as error:
        if is_held(folder, lock) and os.path.lexists(folder / OUTPUTS):
            clear(folder / REFUSED)
            (folder / OUTPUTS).replace(folder / REFUSED)
        raise WorkError(f"{recipe.name}: {error}; once it is mended, the same command begins anew") from None


@contextmanager
def _untouched(asked: Asked, cwd: Path, folder: Path) -> Iterator[None]:
    """Refuse a program that changes the suite or its working folder, by size and time: more is not claimed."""
    watched = {"the suite": asked.suite.folder}
    if cwd != folder:
        watched["its working folder"] = cwd
    before = {what: _snapshot(root) for what, root in watched.items()}
    try:
        yield
    except WorkError:  # it may have done both
        _check_same(watched, before)
        raise
    _check_same(watched, before)


def _check_same(watched: Mapping[str, Path], before: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
    for what, root in watched.items():
        after = _snapshot(root)
        changed = sorted(
            name for name in before[what].keys() | after.keys() if before[what].get(name) != after.get(name)
        )
        if changed:
            more = f" and {len(changed) - 1:,} more" if changed[1:] else ""
            raise Broken(f"its program changed {what} ({root / changed[0]}{more}); it may write into {{out}} alone")


def _snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder, but for what Python and systems keep there, and for baselines."""
    found: dict[str, tuple[int, int]] = {}
    for place, folders, files in os.walk(root):
        if BASELINE in files:  # of this one, and of those that are made at the same time
            folders.clear()
            continue
        folders[:] = [name for name in folders if not is_junk(name) and name != "__pycache__"]
        for path in (Path(place, name) for name in files if not is_junk(name)):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            found[str(path.relative_to(root))] = status.st_size, status.st_mtime_ns
    return found


# --- the program, and what it prints


class _Log:
    """What a program prints: it appends to the file itself; of too much the beginning and the end are kept."""

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self.start = self._size()  # what stands before it is of earlier runs

    def _size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def shorten(self) -> None:
        """Cut the middle out of a log that is too long; what is printed in that moment may stand before the end."""
        size = self._size()
        if size > LOG_BYTES:
            end = os.pread(self.file.fileno(), LOG_END_BYTES, size - LOG_END_BYTES)
            self.file.truncate(LOG_END_BYTES)
            self.file.write(f"\n[left out, so that this file stays below {LOG_BYTES:,} bytes]\n".encode() + end)
            self.start = min(self.start, LOG_END_BYTES)

    def last_words(self) -> str:
        """The last line of this run that says something."""
        size = self._size()
        start = max(min(self.start, size), size - LAST_WORDS_BYTES)  # a program may empty it
        lines = os.pread(self.file.fileno(), size - start, start).decode("utf-8", "replace").splitlines()
        return one_line(next((line for line in reversed(lines) if line.strip()), ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """A program that is to run; `todo` are the pictures that are not there yet."""

    recipe: CommandRecipe
    asked: Asked
    cwd: Path
    folder: Path
    todo: int

    def values(self) -> dict[str, str]:
        seeds = self.asked.seeds
        return {
            "sounds": str(self.folder / self.asked.takes),
            "out": str(self.folder),
            "seed": str(seeds[0]),
            "seeds": str(len(seeds)),
            **standing_values(self.recipe),
        }

    @property
    def limit_sec(self) -> float:
        return self.recipe.timeout_s_per_image * self.todo


def _run_program(program: _Program, lock: BinaryIO) -> None:
    values = program.values()
    recipe = program.recipe
    command = [fill_in(word, values) for word in recipe.command]
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env |= {name: fill_in(value, values) for name, value in recipe.env.items()}
    (program.folder / IMAGES).mkdir(exist_ok=True)
    with (program.folder / LOG).open("a+b", buffering=0) as file:
        said = _Log(file)
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own recipe, without a shell
                command,
                cwd=program.cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"{recipe.name}: command: {command[0]}: cannot be started ({why})") from None
        try:
            how = _wait(process, program, said)
        finally:
            _end_group(process)
            said.shorten()
        if how:
            raise WorkError(f"{recipe.name}: its program {how} {_state(program, said)}")


def _wait(process: subprocess.Popen[bytes], program: _Program, said: _Log) -> str:
    """Wait for the end, with a bar or a line now and then; return how it ended, if not well."""
    started = told = time.monotonic()
    console = Console(stderr=True)
    total = len(program.asked.pairs)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(program.recipe.name, total=total)
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_SEC)
                if code < 0:
                    return f"was ended by a signal ({signal.strsignal(-code)})"
                return f"ended with exit code {code}" if code else ""
            now = time.monotonic()
            if now - started > program.limit_sec:
                limit = f"timeout_s_per_image: {program.recipe.timeout_s_per_image:g}"
                return f"was ended after {program.limit_sec:,.0f} s ({limit})"
            said.shorten()
            bar.update(task, completed=_count_done(program))
            if not console.is_terminal and now - told > TELL_SEC:
                told = now
                log.info("%s: %s of %s", program.recipe.name, f"{_count_done(program):,}", f"{total:,}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the program and all that it started: gently first, where it is still at work."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SEC)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # all have ended
        os.killpg(process.pid, number)


def _state(program: _Program, said: _Log) -> str:
    """How far it came, what it said last, and what to do."""
    done = f"with {_count_done(program):,} of {len(program.asked.pairs):,} pictures answered"
    words = said.last_words()
    words = f"it said: {words}" if words else "it said nothing"
    return f"{done}; {words} ({program.folder / LOG}); the same command goes on"


def _count_done(program: _Program) -> int:
    return min(count_answers(program.folder), len(program.asked.pairs))
