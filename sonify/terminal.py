"""What the commands of `sonify`, `train`, `eval` and `benchmarks` have in common at the terminal.

Exit codes: 0 done; 1 an error of ours, with its traceback; 2 the user's input is wrong; 3 something is wrong with the
work; 130 interrupted, resumable.
"""

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from sonify.errors import InputError, TransientError, WorkError

Argument = TypeVar("Argument")

ENDING = (signal.SIGINT, signal.SIGTERM)


def run_command(name: str, work: Callable[[], int | None], *, verbose: bool = False) -> int:
    """Do a command's work and return its exit code, which `work` may give itself; an error is one line.

    Where `work` raises KeyboardInterrupt with a text, the text says how to go on.
    """
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for library in ("faiss", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="PIL")  # damaged EXIF of one image among millions is no news
    before = {number: signal.signal(number, _interrupt) for number in ENDING}
    try:
        return work() or 0
    except InputError as error:
        return _fail(name, error, 2)
    except (TransientError, WorkError) as error:
        return _fail(name, error, 3)
    except KeyboardInterrupt as interrupt:
        return _fail(name, f"interrupted; {str(interrupt) or 'the same command goes on from here'}", 130)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(name: str, error: object, code: int) -> int:
    sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
    return code


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    """End in good order; whoever is impatient and asks again is not heard."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class Interrupt:
    """A context in which SIGTERM and SIGINT only set `asked`: a step ends, and the state is saved."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in ENDING:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType] - what `signal` gave

    def _ask(self, _signal: int, _frame: object) -> None:
        self.asked = True


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes no options cut short."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see --help)\n")
        raise SystemExit(2)


def argument_of(convert: Callable[[str], Argument]) -> Callable[[str], Argument]:
    """A converter as a parser takes it: what it says of a wrong value becomes the parser's one line."""

    def converted(text: str) -> Argument:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, found {text!r}") from error

    return converted
