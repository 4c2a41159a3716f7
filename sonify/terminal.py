"""What the commands of `sonify`, `train`, `eval` and `benchmarks` have in common at the terminal.

Exit codes: 0 done; 1 an error of ours, with its traceback; 2 the user's input is wrong; 3 something is wrong with the
work; 130 interrupted, resumable.
"""

import argparse
import errno
import logging
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any, NoReturn, TypeVar

from sonify.errors import InputError, TransientError, WorkError, did_you_mean, missing
from sonify.installed import PACKAGES

Argument = TypeVar("Argument")

ENDING = (signal.SIGINT, signal.SIGTERM)
_asked = threading.Event()  # of the command at work: a handler has no other way to tell


def run_command(name: str, work: Callable[[], int | None], *, verbose: bool = False) -> int:
    """Do a command's work and return its exit code, which `work` may give itself; an error is one line.

    Where `work` raises KeyboardInterrupt with a text, the text says how to go on.
    """
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for library in ("faiss", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="PIL")  # damaged EXIF of one image among millions is no news
    _asked.clear()
    before = {number: signal.signal(number, _interrupt) for number in ENDING}
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        return _fail(name, error, 2)
    except (TransientError, WorkError) as error:
        return _fail(name, error, 3)
    except KeyboardInterrupt as interrupt:
        return _fail(name, f"interrupted; {str(interrupt) or 'the same command goes on from here'}", 130)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_left():  # `| head`: what was asked for has been said
            _drop_output()
            return 0
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_output()
        return _fail(name, f"no room left for what is written ({error.strerror})", 3)
    finally:
        _asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _reader_left() -> bool:
    """Whether the standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _drop_output() -> None:
    """Let what waits to be written go nowhere: Python's end would try it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_module(module: str, argv: Sequence[str] | None = None, *, extra: str, name: str | None = None) -> int:
    """Run `main` of a module; where a library that it imports is not installed, that is one line and exit 2.

    A module that is run by name (`python -m`) does so before its own imports, which would end in a traceback.

    Args:
        module: as it is imported.
        argv: its arguments, those of the process where None.
        extra: which extra brings its libraries.
        name: what the command is called here, where that is not the module.
    """
    try:
        main = import_module(module).main
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in (*PACKAGES, module.partition(".")[0]) or not library or find_spec(library) is not None:
            raise
        return _fail(name or module, missing(library, extra), 2)
    except KeyboardInterrupt:  # torch takes seconds to import
        return _fail(name or module, "interrupted; nothing was begun", 130)
    return (main(argv) if name is None else main(argv, name)) or 0


def _fail(name: str, error: object, code: int) -> int:
    line = " ".join(str(error).split())  # names of files are in it, and keys: no control sequence gets through
    sys.stderr.write(f"{name}: {''.join(c if c.isprintable() else ascii(c)[1:-1] for c in line)}\n")
    return code


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    """End in good order; whoever is impatient and asks again is not heard."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    _asked.set()
    raise KeyboardInterrupt


def stop_if_asked() -> None:
    """End where a command was asked to and a library has swallowed it, as some do while they load or connect."""
    if _asked.is_set():
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
    """An argument parser whose errors are one line, and which takes no options cut short.

    `explain` is asked first about an option that does not exist, with what follows it.
    """

    def __init__(self, explain: Callable[[str, str], str] | None = None, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._explain = explain

    @property
    def commands(self) -> list[str]:
        """The names of the commands that were added to it."""
        subparsers = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return [name for action in subparsers for name in action.choices]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - its overloads
        """As argparse's, but an option that does not exist is an error, before what is required is missed."""
        words = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:
            self._refuse_unknown(words)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        missing_ones = message.removeprefix("the following arguments are required: ")
        if missing_ones != message:
            helps = {name: action.help for action in self._actions for name in (*action.option_strings, action.metavar)}
            names = missing_ones.split(", ")
            message = "; ".join(f"expected {name}" + (f": {helps[name]}" if helps.get(name) else "") for name in names)
        sys.stderr.write(f"{self.prog}: {message} (see --help)\n")
        raise SystemExit(2)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        for word, following in zip_longest(words, words[1:], fillvalue=""):
            option, _, value = word.partition("=")
            if word == "--":
                return
            if not option.startswith("--") or option in self._option_string_actions:
                continue
            said = self._explain(option[2:], value or following) if self._explain else ""
            self.error(said or f"no such option: {option}{did_you_mean(option, self._option_string_actions, 0.7)}")


def argument_of(convert: Callable[[str], Argument]) -> Callable[[str], Argument]:
    """A converter as a parser takes it: what it says of a wrong value becomes the parser's one line."""

    def converted(text: str) -> Argument:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, found {text!r}") from error

    return converted
