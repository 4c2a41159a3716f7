"""Running the program of a recipe, by the protocol of docs/evaluation.md, and taking in what it made.

It works in its output folder, where it goes on if it is started again; until all is checked there is no manifest. What
it does wrong as a whole ends the run; a single picture that it could not make is a line of `failed.csv`.
"""

import fcntl
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ConfigDict, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from eval.baselines.folder import (
    BASELINE,
    FAILED,
    MAX_BYTES,
    Asked,
    Counts,
    Failed,
    Look,
    MadeFor,
    Pair,
    check_identical,
    count,
    look_at,
    mark_odd_sizes,
    one_line,
    spell_pair,
    write_failed,
)
from eval.baselines.recipe import CommandRecipe, fill_in, model_digest, on_disk, outside_settings, standing_values
from eval.pictures import read_made
from eval.suites.suite import SOUNDS_WHOLE, list_bytes
from sonify.errors import InputError, WorkError
from sonify.io.listing import is_junk
from sonify.io.places import is_below, open_inside
from sonify.io.write import naming_place, remove, sha256_of, write_whole
from train.manifest import IMAGES, MANIFEST, read_manifest, write_manifest

log = logging.getLogger(__name__)

OUTPUTS = "outputs.jsonl"
REFUSED = "outputs.refused.jsonl"
LOG = "log.txt"
LOCK = ".lock"
PASSED_ON = ("PATH", "HOME", "LANG")
GRACE_SEC = 5.0  # between SIGTERM and SIGKILL
POLL_SEC = 0.2
TELL_SEC = 60.0  # where there is no terminal
LAST_WORDS_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A line of `outputs.jsonl`: a picture, or why there is none; a program may add keys of its own."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)

    id: str
    seed: int
    image: str | None = None
    error: str | None = None

    @property
    def pair(self) -> Pair:
        return self.id, self.seed


_ANSWER = TypeAdapter(_Answer)


class _Broken(WorkError):
    """The program broke its protocol, so that nothing that it says is trusted."""


def run_recipe(recipe: CommandRecipe, asked: Asked, made_for: MadeFor, folder: Path) -> Counts:
    """Run a recipe's program for all that it has not made yet, check what it did, and write the manifest.

    Raises:
        InputError: the suite, a weight or the folder is not what it has to be, or the program cannot be started.
        WorkError: the program failed, took too long, or broke its protocol.
    """
    _check_sounds(asked)
    cwd = folder if recipe.cwd is None else on_disk(recipe.cwd, "cwd")
    _check_weights(recipe, cwd)
    with _hold(folder) as lock:
        write_whole(folder / BASELINE, made_for.to_bytes())
        # the suite's own lists name the place where it was made, and it may have been moved
        write_whole(folder / asked.takes, list_bytes(asked.suite, asked.takes == SOUNDS_WHOLE))
        for name in (MANIFEST, FAILED):  # they do not tell what the folder will hold
            (folder / name).unlink(missing_ok=True)
        try:
            return _run(recipe, asked, cwd, folder, lock)
        except BaseException as error:
            (folder / MANIFEST).unlink(missing_ok=True)  # a program's own
            if not isinstance(error, _Broken):
                raise
            if os.path.lexists(folder / OUTPUTS):
                remove(folder / REFUSED)
                (folder / OUTPUTS).replace(folder / REFUSED)
            raise WorkError(f"{recipe.name}: {error}; once it is mended, the same command begins anew") from None


def _run(recipe: CommandRecipe, asked: Asked, cwd: Path, folder: Path, lock: BinaryIO) -> Counts:
    kept = _tidy(folder, asked)
    todo = len(asked.pairs) - len(kept)
    log.info("%s pictures, of which %s are there", f"{len(asked.pairs):,}", f"{len(kept):,}")
    if todo:
        with _untouched(asked, cwd, folder):
            _run_program(
                _Program(recipe=recipe, asked=asked, cwd=cwd, folder=folder, todo=todo, said_before=_log_size(folder)),
                lock,
            )
    if (folder / MANIFEST).exists():
        return _take_manifest(recipe, asked, folder)
    return _take_outputs(recipe, asked, folder, kept)


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
def _hold(folder: Path) -> Iterator[BinaryIO]:
    """One command at a time works in a folder. The program inherits the lock: one that outlives us keeps it."""
    with naming_place(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"--out {folder}: another command is at work in it, or the program of one that was killed: wait for its"
                " end, or end it"
            ) from None
        yield lock


def _tidy(folder: Path, asked: Asked) -> dict[Pair, _Answer]:
    """Keep of an earlier run the lines whose pictures are whole; the other pictures that it may have begun go.

    A line that was cut short by a kill would swallow the one behind it, and a program that finds a picture takes it for
    made.
    """
    if (folder / IMAGES).is_symlink():
        (folder / IMAGES).unlink()
    path = folder / OUTPUTS
    wanted = set(asked.pairs)
    found: dict[Pair, _Answer] = {}
    for line in _lines(folder):
        with suppress(ValidationError):
            answer = _ANSWER.validate_json(line)
            if answer.pair in wanted and answer.image is not None:
                found.setdefault(answer.pair, answer)
    looks = mark_odd_sizes([_look_again(folder, answer.image or "") for answer in found.values()])
    kept = {pair: answer for (pair, answer), look in zip(found.items(), looks, strict=True) if not look.wrong}
    images = {answer.image for answer in kept.values()}
    for id, seed in asked.pairs:
        name = f"{IMAGES}/{id}-{seed}.png"
        if name not in images:
            (folder / name).unlink(missing_ok=True)
    if path.exists():
        lines = [json.dumps({"id": each.id, "seed": each.seed, "image": each.image}) for each in kept.values()]
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    return kept


def _lines(folder: Path) -> list[bytes]:
    """The lines that a program wrote; none where it wrote no file."""
    return [line for line in _outputs(folder).split(b"\n") if line.strip()]


def _outputs(folder: Path) -> bytes:
    try:
        with open_inside(folder, OUTPUTS) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise _Broken(f"{OUTPUTS} is larger than {MAX_BYTES:,} bytes")
            return file.read()
    except FileNotFoundError:
        return b""
    except (InputError, OSError) as error:
        raise _Broken(f"{OUTPUTS} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _look_again(folder: Path, image: str) -> Look:
    try:
        return _look_inside(folder, image) if is_below(image) else Look(wrong="outside")
    except InputError as error:
        return Look(wrong=str(error))


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
            raise _Broken(f"its program changed {what} ({root / changed[0]}{more}); it may write into {{out}} alone")


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


# --- the program


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """A program that is to run; `todo` are the pictures that are not there yet."""

    recipe: CommandRecipe
    asked: Asked
    cwd: Path
    folder: Path
    todo: int
    said_before: int  # bytes in the log

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
    with (program.folder / LOG).open("ab") as log_file:
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own recipe, without a shell
                command,
                cwd=program.cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"{recipe.name}: command: {command[0]}: cannot be started ({why})") from None
    try:
        code = _wait(process, program)
    finally:
        _end_group(process)
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by a signal ({signal.strsignal(-code)})"
        raise WorkError(f"{recipe.name}: its program {how} {_state(program)}")


def _wait(process: subprocess.Popen[bytes], program: _Program) -> int:
    """Wait for the end, with a bar or a line now and then."""
    started = told = time.monotonic()
    console = Console(stderr=True)
    total = len(program.asked.pairs)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(program.recipe.name, total=total)
        while True:
            try:
                return process.wait(POLL_SEC)
            except subprocess.TimeoutExpired:
                pass
            now = time.monotonic()
            if now - started > program.limit_sec:
                raise WorkError(
                    f"{program.recipe.name}: its program was ended after {program.limit_sec:,.0f} s"
                    f" (timeout_s_per_image: {program.recipe.timeout_s_per_image:g}) {_state(program)}"
                )
            bar.update(task, completed=_count_answers(program))
            if not console.is_terminal and now - told > TELL_SEC:
                told = now
                log.info("%s: %s of %s", program.recipe.name, f"{_count_answers(program):,}", f"{total:,}")


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


def _state(program: _Program) -> str:
    """How far it came, what it said last, and what to do."""
    done = f"with {_count_answers(program):,} of {len(program.asked.pairs):,} pictures answered"
    said = _last_words(program)
    said = f"it said: {said}" if said else "it said nothing"
    return f"{done}; {said} ({program.folder / LOG}); the same command goes on"


def _log_size(folder: Path) -> int:
    path = folder / LOG
    return path.stat().st_size if path.is_file() else 0


def _last_words(program: _Program) -> str:
    with (program.folder / LOG).open("rb") as file:
        file.seek(max(program.said_before, os.fstat(file.fileno()).st_size - LAST_WORDS_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return one_line(next((line for line in reversed(lines) if line.strip()), ""))


def _count_answers(program: _Program) -> int:
    """Lines that were answered; of a program that keeps no such file, pictures."""
    try:
        lines = _outputs(program.folder).count(b"\n")
    except WorkError:  # said when it has ended
        lines = 0
    found = lines or sum(1 for _ in (program.folder / IMAGES).glob("*.png"))
    return min(found, len(program.asked.pairs))


# --- after


def _take_manifest(recipe: CommandRecipe, asked: Asked, folder: Path) -> Counts:
    """Take the manifest of a program that writes one itself (`train.generate`) as it is."""
    try:
        made = read_made(asked.suite, folder)
    except InputError as error:
        raise _Broken(f"its program wrote a manifest that cannot be taken: {error}") from None
    there = frozenset((picture.item.id, picture.seed) for picture in made.pictures)
    if unknown := there - set(asked.pairs):
        raise _Broken(f"its manifest names {spell_pair(min(unknown))}, which was not asked for")
    if not there:
        raise WorkError(f"{recipe.name}: none of its pictures can be used; {_first(made.unusable)}")
    why = _unusable_pairs(asked, folder, made.unusable)
    left = [pair for pair in asked.pairs if pair not in there]
    failed = tuple(Failed(id=pair[0], seed=pair[1], error=why.get(pair, "no picture")) for pair in left)
    write_failed(folder, failed)
    return count(there, failed)


def _unusable_pairs(asked: Asked, folder: Path, unusable: Mapping[str, str]) -> dict[Pair, str]:
    """Why a picture that the manifest names cannot be used, by what it is of."""
    of = {sha256: id for id, (_, sha256) in asked.sounds.items()}
    return {
        (of[row.sound_sha256[0]], row.seed): unusable[row.image]
        for row in read_manifest(folder, with_images=False)
        if row.image in unusable and row.sound_sha256[0] in of
    }


def _first(unusable: Mapping[str, str]) -> str:
    return next((f"{image}: {why}" for image, why in unusable.items()), "")


def _take_outputs(recipe: CommandRecipe, asked: Asked, folder: Path, before: Mapping[Pair, _Answer]) -> Counts:
    """Check the answers, and write what failed and the manifest."""
    answers = _read_answers(asked, folder, before)
    if left := [pair for pair in asked.pairs if pair not in answers]:
        raise WorkError(
            f"{recipe.name}: its program ended well and has not answered {len(left):,} of {len(asked.pairs):,}, such as"
            f" {spell_pair(left[0])}; {OUTPUTS} has a line for each, with image or error"
        )
    named = {pair: answers[pair].image for pair in asked.pairs}
    seen = {pair: _see(folder, image) for pair, image in named.items() if image is not None}
    looks = dict(zip(seen, mark_odd_sizes(list(seen.values())), strict=True))
    usable = {pair: look for pair, look in looks.items() if not look.wrong}
    failed = tuple(
        Failed(id=pair[0], seed=pair[1], error=_why(answers[pair], looks.get(pair)))
        for pair in asked.pairs
        if pair not in usable
    )
    write_failed(folder, failed)
    if not usable:
        raise WorkError(
            f"{recipe.name}: none of {len(asked.pairs):,} pictures can be used; the first: {failed[0].error}"
        )
    if not recipe.deterministic:
        check_identical(usable, recipe.name)
    model = recipe.name, model_digest(recipe)
    settings = outside_settings(recipe)
    write_manifest(folder, [asked.line(pair, named[pair] or "", model, settings) for pair in usable])
    return count(usable, failed)


def _read_answers(asked: Asked, folder: Path, before: Mapping[Pair, _Answer]) -> dict[Pair, _Answer]:
    """The answer to each pair; one that stands from before the run may be given again."""
    answers: dict[Pair, _Answer] = {}
    wanted = set(asked.pairs)
    for number, line in enumerate(_lines(folder), start=1):
        where = f"{OUTPUTS}, line {number}"
        try:
            answer = _ANSWER.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise _Broken(
                f"{where}: expected a JSON object with id, seed and image or error, found {_short(line)}"
                f" ({f'{key}: ' if key else ''}{one_line(first['msg'])})"
            ) from None
        if (answer.image is None) == (answer.error is None):
            raise _Broken(f"{where}: expected either image or error, found {_short(line)}")
        if answer.pair not in wanted:
            raise _Broken(f"{where}: {spell_pair(answer.pair)} was not asked for")
        if answer.pair in answers and before.get(answer.pair) != answer:
            raise _Broken(f"{where}: {spell_pair(answer.pair)} is answered twice")
        answers[answer.pair] = answer
    return answers


def _see(folder: Path, image: str) -> Look:
    """Look at a picture that the program names; it must lie in the folder itself."""
    if not is_below(image):
        raise _Broken(f"{OUTPUTS} names {one_line(image)!r}, which is not inside {{out}}")
    try:
        return _look_inside(folder, image)
    except InputError as error:
        raise _Broken(f"{OUTPUTS} names {error}") from None


def _look_inside(folder: Path, image: str) -> Look:
    """Look at a file of the folder.

    Raises:
        InputError: it is a link, or lies behind one.
    """
    try:
        with open_inside(folder, image) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return look_at(file.read()) if size_bytes <= MAX_BYTES else Look(wrong=f"{size_bytes:,} bytes")
    except FileNotFoundError:
        return Look(wrong="no such file")
    except OSError as error:
        return Look(wrong=f"cannot be read ({error.strerror})")


def _why(answer: _Answer, look: Look | None) -> str:
    if look is None:
        return one_line(answer.error or "") or "the program gave no reason"
    return f"{answer.image}: {look.wrong}"


def _short(line: bytes) -> str:
    return repr(one_line(line.decode("utf-8", "replace"), 80))
