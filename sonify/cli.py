"""The command line: `sonify COMMAND ...`. Each command is a thin wrapper of a function that a notebook can call.

Exit codes: 0 done; 1 an error of ours; 2 the user's input is wrong; 3 something is wrong with the work; 130
interrupted, resumable.
"""

import argparse
import json
import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import yaml
from rich.console import Console

from sonify import __version__
from sonify.config import Config, load_config
from sonify.errors import InputError, TransientError, WorkError

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
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name, text in STAGE_COMMANDS.items():
        command = _add(commands, name, text, _run)
        command.add_argument("--config", type=Path, required=True, help="YAML file; key=value after it overrides it")
        command.add_argument("--dry-run", action="store_true", help="print the config and the plan, and stop")
        command.set_defaults(name=name, redo=None)
        if name == "run":
            command.add_argument("--redo", metavar="STAGE", help="replace a stage and what depends on it")
    status = _add(commands, "status", "what is done, rejected and used", _status)
    status.add_argument("run_dir", type=Path)
    status.add_argument("--json", action="store_true")
    status.add_argument("--usage", action="store_true", help="compare the pool's use under other retrieval settings")
    verify = _add(commands, "verify", "check every committed file and count", _verify)
    verify.add_argument("run_dir", type=Path)
    verify.add_argument("--json", action="store_true")
    verify.add_argument("--repair", action="store_true", help="withdraw what is damaged; the next run does it again")
    gallery = _add(commands, "gallery", "write a page to look at and listen to", _gallery)
    gallery.add_argument("run_dir", type=Path)
    gallery.add_argument("--rows", type=int, default=2000, help="images shown at most (default: %(default)s)")
    demo = _add(commands, "demo", "the whole job on the embedded sample", _demo)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run directory (default: %(default)s)")
    return parser


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _add(commands: Any, name: str, text: str, function: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(command=function)
    return command


def _check_overrides(rest: Sequence[str], takes_config: bool) -> list[str]:
    for word in rest:
        if word.startswith("-") or "=" not in word or not takes_config:
            raise InputError(f"unknown argument {word!r}; see --help")
    return list(rest)


# Commands import what they need: `--help` and a misspelt key answer at once.


def _run(arguments: argparse.Namespace) -> int:
    from sonify.run import run
    from sonify.stages.table import COMMAND_STAGES

    config = load_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        _print_plan(config)
        return 0
    run(config, COMMAND_STAGES.get(arguments.name), arguments.redo)
    if arguments.name == "run":
        logging.getLogger(__name__).info("done; look at it: sonify gallery %s", config.run_dir)
    return 0


def _print_plan(config: Config) -> None:
    from sonify.engine.progress import spoken
    from sonify.report.estimate import estimate
    from sonify.run import plan_run

    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip()
    print(resolved)
    plans = plan_run(config)
    expected = estimate(config, plans)
    print(f"\n# input: {expected.recordings:,} recordings, some {expected.clips:,} clips, {expected.images:,} images")
    for key, count in expected.model_calls.items():
        print(f"# {key}: some {count:,} model calls")
    disk = f"pool {_gigabytes(expected.pool_bytes)}, shards {_gigabytes(expected.shard_bytes)}"
    print(f"# disk: {disk}, features {_gigabytes(expected.feature_bytes)}")
    for plan in plans:
        key, done = plan.stage.key, len(plan.done)
        units = max(expected.units[plan.stage.listing], done + len(plan.tasks) + len(plan.waiting))
        seconds = expected.seconds[key]
        time_left = "" if units == done else ", time not known before its first unit"
        if seconds is not None and units > done:
            time_left = f", some {spoken(seconds)} at this run's rate"
        print(f"# {key}: {units:,} units, {done:,} done, {units - done:,} to do{time_left}")


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:,.1f} MB"


def _status(arguments: argparse.Namespace) -> int:
    from sonify.report.status import print_status, read_status

    status = read_status(arguments.run_dir, compare=arguments.usage)
    if arguments.json:
        _print_json(asdict(status))
    else:
        print_status(status, Console() if sys.stdout.isatty() else Console(width=160))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from sonify.report.verify import verify

    result = verify(arguments.run_dir, arguments.repair)
    if arguments.json:
        _print_json(asdict(result))
    else:
        for damage in result.damage:
            print(f"{damage.path}: {damage.what}")
        print(f"{result.commits:,} commits, {result.files:,} files, {len(result.damage):,} damaged")
    if not result.damage:
        return 0
    if result.repaired:
        raise WorkError("the damaged commits are withdrawn: `sonify run` does those units again")
    raise WorkError(f"damage found: `sonify verify {arguments.run_dir} --repair`, then `sonify run`")


def _gallery(arguments: argparse.Namespace) -> int:
    from sonify.report.gallery import build_gallery

    if arguments.rows < 1:
        raise InputError(f"--rows: expected at least 1, found {arguments.rows}")
    print(build_gallery(arguments.run_dir, arguments.rows) / "index.html")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from sonify.demo.demo import run_demo

    page = run_demo(arguments.out)
    print(f"the gallery is at {page}: open it in a browser")
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))


def _fail(error: Exception, code: int) -> int:
    print(f"sonify: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    """End in good order; whoever is impatient and asks again is not heard."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
