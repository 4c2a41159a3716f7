"""The command line: `sonify COMMAND ...`. What the commands do is in `sonify.commands`.

Exit codes: 0 done; 1 an error of ours; 2 the user's input is wrong; 3 something is wrong with the work; 130
interrupted, resumable.
"""

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sonify import __version__, commands
from sonify.errors import InputError, TransientError, WorkError
from sonify.stores import Place, to_place, to_run_dir

STAGE_COMMANDS = {
    "run": "do all stages; what is done is skipped, so the same command resumes",
    "pool": "cut and measure the recordings, and embed them",
    "concepts": "say what could be heard in each image",
    "pair": "draw recordings for the concepts",
    "render": "mix the recordings and write the shards",
    "features": "turn the shards into latents and audio features to train on",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO, format="%(message)s", stream=sys.stderr
    )
    logging.getLogger("faiss").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="PIL")  # damaged EXIF of one image among millions is no news
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        arguments.overrides = _check_overrides(rest, hasattr(arguments, "config"))
        return arguments.command(arguments)
    except InputError as error:
        return _fail(error, 2)
    except (TransientError, WorkError) as error:
        return _fail(error, 3)
    except KeyboardInterrupt:
        print("sonify: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = _Parser(prog="sonify", description="Give any image set a soundscape.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sonify {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name, text in STAGE_COMMANDS.items():
        _add_stage_command(subparsers, name, text)
    status = _add(subparsers, "status", "what is done, rejected and used", commands.status)
    status.add_argument("run_dir", type=_run_dir)
    status.add_argument("--json", action="store_true")
    status.add_argument("--usage", action="store_true", help="compare the pool's use under other retrieval settings")
    verify = _add(subparsers, "verify", "check every committed file and count", commands.verify)
    verify.add_argument("run_dir", type=_run_dir)
    verify.add_argument("--json", action="store_true")
    verify.add_argument("--repair", action="store_true", help="withdraw what is damaged; the next run does it again")
    gallery = _add(subparsers, "gallery", "write a page to look at and listen to", commands.gallery)
    gallery.add_argument("run_dir", type=_run_dir)
    gallery.add_argument("--rows", type=int, default=2000, help="images shown at most (default: %(default)s)")
    gallery.add_argument("--out", type=Path, help="the page's folder (default: RUN/gallery)")
    _add_publish(subparsers)
    leakage = _add(subparsers, "leakage", "name what a run shares with evaluation sets", commands.leakage)
    leakage.add_argument("run_dir", type=_run_dir)
    leakage.add_argument("--images", type=_place, help="evaluation images: a folder of them or of tars")
    leakage.add_argument("--sounds", type=_place, help="evaluation sounds: a folder")
    leakage.add_argument("--distance", type=int, help="bits of 64 in which near-duplicate images may differ")
    leakage.add_argument("--out", type=Path, required=True, help="folder for the report and the exclusion lists")
    demo = _add(subparsers, "demo", "the whole job on the embedded sample", commands.demo)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run directory (default: %(default)s)")
    return parser


def _add_stage_command(subparsers: Any, name: str, text: str) -> None:
    command = _add(subparsers, name, text, commands.run)
    command.add_argument("--config", type=Path, required=True, help="YAML file; key=value after it overrides it")
    command.add_argument("--dry-run", action="store_true", help="print the config and the plan, and stop")
    command.set_defaults(name=name, redo=None, concepts_from=None, published=None, missing=None)
    if name == "run":
        command.add_argument("--redo", metavar="STAGE", help="replace a stage and what depends on it")
        command.add_argument("--concepts-from", type=_run_dir, metavar="RUN", help="take the concepts of another run")
    if name == "render":
        command.add_argument("--from", type=_place, dest="published", metavar="DIR", help="a published dataset")
        command.add_argument("--missing", choices=("stop", "skip", "repair"), help="what of its clips is not here")


def _add_publish(subparsers: Any) -> None:
    command = _add(subparsers, "publish", "write the dataset as metadata, ready to upload", commands.publish)
    command.add_argument("run_dir", type=_run_dir, nargs="?", help="a finished run; none: --push what --out holds")
    command.add_argument("--out", type=Path, required=True, help="folder of the publication")
    command.add_argument("--only-licences", metavar="A,B", help="conditions or licences that may go out")
    command.add_argument("--exclude", type=_place, metavar="FILE", help="images, recordings, clips to leave out")
    command.add_argument("--image-licence", metavar="TEXT", help="the licence of the images")
    command.add_argument("--licence", default="other", metavar="ID", help="of the metadata (default: %(default)s)")
    command.add_argument("--with-audio", action="store_true", help="also the rendered sounds, if all licences allow it")
    command.add_argument("--push", metavar="REPO", help="upload to the Hugging Face hub; again: goes on")
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument("--dry-run", action="store_true", help="with --push: list what would go")


def _run_dir(text: str) -> Place:
    return _converted(to_run_dir, text)


def _place(text: str) -> Place:
    return _converted(to_place, text)


def _converted(convert: Callable[[str], Place], text: str) -> Place:
    try:
        return convert(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, found {text!r}") from error


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _add(subparsers: Any, name: str, text: str, function: Any) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(command=function)
    return command


def _check_overrides(rest: Sequence[str], takes_config: bool) -> list[str]:
    for word in rest:
        if word.startswith("-") or "=" not in word or not takes_config:
            raise InputError(f"unknown argument {word!r}; see --help")
    return list(rest)


def _fail(error: Exception, code: int) -> int:
    print(f"sonify: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    """End in good order; whoever is impatient and asks again is not heard."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
