"""What the commands of `train` and `eval` have in common: exit codes, log, and an end in good order."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from sonify.errors import InputError, TransientError, WorkError


def run_command(name: str, work: Callable[[], int | None]) -> int:
    """Do a command's work and return its exit code: 0 done, 2 wrong input, 3 something wrong with the work, 130.

    `work` may give a code of its own. Any other exception is an error of ours and propagates.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return work() or 0
    except InputError as error:
        return _fail(name, error, 2)
    except (TransientError, WorkError) as error:
        return _fail(name, error, 3)
    except KeyboardInterrupt as interrupt:
        return _fail(name, f"interrupted; {interrupt or 'the same command goes on from here'}", 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(name: str, error: object, code: int) -> int:
    sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
    return code


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see --help)\n")
        raise SystemExit(2)


class Interrupt:
    """A context in which SIGTERM and SIGINT only set `asked`: a step ends, and the state is saved."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] - what `signal` gave

    def _ask(self, _signal: int, _frame: object) -> None:
        self.asked = True
