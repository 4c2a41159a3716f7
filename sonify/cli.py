"""The command line: `sonify COMMAND ...`. A command is a thin wrapper of a function that a notebook can call.

Commands import what they need: `--help` and a misspelt key answer at once.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.text import Text

from sonify import __version__, layout
from sonify.config import Config, explain_option, explain_word, load_config
from sonify.doctor.findings import Finding, Outcome, count_faults, tell
from sonify.errors import InputError, WorkError, did_you_mean, require
from sonify.installed import pin_packages, spell
from sonify.stores import Place, to_folder, to_place, to_run_dir
from sonify.terminal import Parser, argument_of, run_command, run_module

if TYPE_CHECKING:
    from sonify.report.cost import Prices

log = logging.getLogger(__name__)

STAGES = {
    "run": "do all stages; what is done is skipped, so the same command resumes",
    "pool": "cut and measure the recordings, and embed them",
    "concepts": "say what could be heard in each image",
    "pair": "draw recordings for the concepts",
    "render": "mix the recordings and write the shards",
    "features": "turn the shards into latents and audio features to train on",
}

RUN: Any = {"metavar": "RUN", "help": "the folder of a run, such as runs/demo"}
# Keys that have an option of their own.
SHORTCUTS = {"images": "images.path", "sounds": "audio.sources.0.path", "out": "run_dir"}
# Of a finding on a terminal.
COLOURS = {Outcome.OK: "green", Outcome.NOTE: "yellow", Outcome.FAULT: "bold red", Outcome.NOT_TRIED: "dim"}

# Commands of the packages above, which are loaded from beside this one when they are called and not before: the module,
# the extra that brings its libraries, what it does.
DOORS = {
    "leakage": ("eval.leakage", "publish", "name what a run shares with evaluation sets"),
    "train": ("train.pixart", "train", "train a model on a run with features"),
    "generate": ("train.generate", "train", "make pictures of sounds with a trained model"),
    "eval": ("eval.__main__", "eval", "studies of a trained model; alone it lists them"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    plain = [word for word in words if word != "--verbose"]
    said_more = ["--verbose"] * (len(plain) < len(words))  # wherever it stands
    if plain and plain[0] in DOORS:
        return _open(plain[0], [*plain[1:], *said_more])
    parser = build_parser()
    if not plain:
        parser.print_help()
        return 0
    _check_command(parser, plain[0])
    arguments, rest = parser.parse_known_args([*said_more, *plain])

    def work() -> int | None:
        arguments.overrides = _check_overrides(rest, hasattr(arguments, "config"))
        return arguments.command(arguments)

    return run_command("sonify", work, verbose=arguments.verbose)


def _open(door: str, words: Sequence[str]) -> int:
    """Call a command of `train` or `eval`, of those that were installed with this package."""
    module, extra, _ = DOORS[door]
    pin_packages()
    return run_module(module, words, extra=extra, name=f"sonify {door}")


def build_parser() -> Parser:
    """The commands and their options."""
    parser = Parser(prog="sonify", description="Give any image set a soundscape.")
    parser.add_argument("--version", action="version", version=f"sonify {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, text in STAGES.items():
        _add_stage_command(subparsers, name, text)
    init = _add(subparsers, "init", "write a configuration to edit", _init)
    init.add_argument("name", nargs="?", metavar="NAME", default="folder", help="which (default: %(default)s)")
    init.add_argument("--list", action="store_true", help="list those that come along")
    status = _add(subparsers, "status", "what is done, rejected and used", _status)
    status.add_argument("run_dir", type=argument_of(to_run_dir), **RUN)
    status.add_argument("--json", action="store_true")
    status.add_argument("--usage", action="store_true", help="compare the pool's use under other retrieval settings")
    rejects = _add(subparsers, "rejects", "name every row that left, with its reason", _rejects)
    rejects.add_argument("run_dir", type=argument_of(to_run_dir), **RUN)
    rejects.add_argument("--csv", action="store_true", help="as a table for other programs")
    verify = _add(subparsers, "verify", "check every committed file and count", _verify)
    verify.add_argument("run_dir", type=argument_of(to_run_dir), **RUN)
    verify.add_argument("--json", action="store_true")
    verify.add_argument("--repair", action="store_true", help="withdraw what is damaged; the next run does it again")
    gallery = _add(subparsers, "gallery", "write a page to look at and listen to", _gallery)
    gallery.add_argument("run_dir", type=argument_of(to_run_dir), **RUN)
    gallery.add_argument("--rows", type=int, default=2000, help="images shown at most (default: %(default)s)")
    gallery.add_argument("--out", type=argument_of(to_folder), help="the page's folder (default: RUN/gallery)")
    _add_publish(subparsers)
    _add_doctor(subparsers)
    for name, (_, _, text) in DOORS.items():
        subparsers.add_parser(name, help=text, add_help=False)
    demo = _add(subparsers, "demo", "the whole job on the embedded sample", _demo)
    demo.add_argument(
        "--out", type=argument_of(to_folder), default=Path("runs/demo"), help="run directory (default: %(default)s)"
    )
    return parser


def _add_stage_command(subparsers: Any, name: str, text: str) -> None:
    command = _add(subparsers, name, text, _run, explain=explain_option(Config))
    _add_config(command)
    command.add_argument("--dry-run", action="store_true", help="print the config, the plan and its cost, and stop")
    command.add_argument(
        "--probe", action="store_true", help="do one unit of each stage not measured yet, and say what all would cost"
    )
    command.add_argument(
        "--prices", metavar="P", help="gpu_hour=2.1,cpu_hour=0.04,gpu_watts=700,cpu_watts=8,currency=EUR, or a file"
    )
    command.set_defaults(name=name, redo=None, concepts_from=None, published=None, missing=None)
    if name == "run":
        command.add_argument("--redo", metavar="STAGE", help="replace a stage and what depends on it")
        command.add_argument(
            "--concepts-from", type=argument_of(to_run_dir), metavar="RUN", help="take the concepts of another run"
        )
    if name == "render":
        command.add_argument(
            "--from", type=argument_of(to_place), dest="published", metavar="DIR", help="a published dataset"
        )
        command.add_argument("--missing", choices=("stop", "skip", "repair"), help="what of its clips is not here")


def _add_config(command: Parser) -> None:
    command.add_argument(
        "--config", metavar="F", help="YAML file, or the name of one that comes along; key=value after it overrides it"
    )
    command.add_argument("--images", metavar="DIR", help="images.path; without --config: of the configuration folder")
    command.add_argument("--sounds", metavar="DIR", help="audio.sources.0.path, of one collection")
    command.add_argument("--out", metavar="RUN", help="run_dir: everything is written there, and the same resumes it")


def _add_doctor(subparsers: Any) -> None:
    command = _add(
        subparsers, "doctor", "try what a run needs before it is paid for", _doctor, explain=explain_option(Config)
    )
    _add_config(command)
    command.add_argument("--jobs", type=argument_of(to_folder), metavar="DIR", help="files for clusters, such as jobs/")
    command.add_argument("--fetch", action="store_true", help="download first what is not here of the models")
    command.add_argument("--json", action="store_true", help="one document, at the end")
    command.add_argument("--record", type=argument_of(to_folder), metavar="FILE", help="keep that document too")
    command.add_argument(
        "--compare",
        type=argument_of(to_place),
        metavar="FILE",
        help="of an earlier --record: models that differ are a fault",
    )
    command.set_defaults(name="doctor")


def _add_publish(subparsers: Any) -> None:
    command = _add(subparsers, "publish", "write the dataset as metadata, ready to upload", _publish)
    command.add_argument(
        "run_dir", type=argument_of(to_run_dir), nargs="?", help="a finished run; none: --push what --out holds"
    )
    command.add_argument("--out", type=argument_of(to_folder), required=True, help="folder of the publication")
    command.add_argument("--only-licences", metavar="A,B", help="conditions or licences that may go out")
    command.add_argument(
        "--exclude", type=argument_of(to_place), metavar="FILE", help="images, recordings, clips to leave out"
    )
    command.add_argument("--image-licence", metavar="TEXT", help="the licence of the images")
    command.add_argument("--licence", default="other", metavar="ID", help="of the metadata (default: %(default)s)")
    command.add_argument("--with-audio", action="store_true", help="also the rendered sounds, if all licences allow it")
    command.add_argument("--with-images", action="store_true", help="also the images, if their licence allows it")
    command.add_argument("--push", metavar="REPO", help="upload to the Hugging Face hub; again: goes on")
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument("--dry-run", action="store_true", help="with --push: list what would go")


def _add(
    subparsers: Any, name: str, text: str, function: Callable[[argparse.Namespace], int | None], **settings: Any
) -> Parser:
    command = subparsers.add_parser(name, help=text, description=text, **settings)
    command.set_defaults(command=function)
    return command


def _check_command(parser: Parser, word: str) -> None:
    """Say what may have been meant where the first word is no command."""
    known = parser.commands
    if word in ("--version", "--help", "-h", *known):
        return
    if word.startswith("-"):
        parser.error(f"no such option before a command: {word}; expected COMMAND, such as {spell('run')}")
    if (Path(word) / layout.RUN).is_file():
        parser.error(f"{word}: a run; expected a command before it, such as {spell('status', word)}")
    if word.endswith((".yaml", ".yml")):
        parser.error(f"{word}: a configuration; expected a command before it: {spell('run', '--config', word)}")
    hint = did_you_mean(word, [*known, "help", "--version"]) or f": {', '.join(known)}"
    parser.error(f"no such command: {word!r}{hint}")


def _check_overrides(rest: Sequence[str], takes_config: bool) -> list[str]:
    for word, following in zip_longest(rest, rest[1:], fillvalue=""):
        if word.startswith("-") or not takes_config:
            raise InputError(f"unknown argument {word!r}; see --help")
        if word.endswith((".yaml", ".yml")) and "=" not in word:
            raise InputError(f"unknown argument {word!r}: write --config {word}")
        if Path(word).is_dir():
            raise InputError(f"unknown argument {word!r}: a folder; write --images DIR --sounds DIR")
        if "=" not in word:
            raise InputError(explain_word(word, following, Config))
    return list(rest)


def _init(arguments: argparse.Namespace) -> None:
    from sonify.config.shipped import list_shipped, write_config

    if arguments.list:
        print("\n".join(list_shipped()))
        return
    print(write_config(arguments.name))


def _run(arguments: argparse.Namespace) -> None:
    config = load_config(_config_of(arguments), [*_published(arguments), *_shortcuts(arguments), *arguments.overrides])

    if arguments.sounds and len(config.audio.sources) > 1:
        raise InputError(
            f"--sounds: the configuration has {len(config.audio.sources)} collections; write audio.sources.0.path=DIR"
            " for the first, and so on"
        )

    from sonify.dataset.render_from import adopt_settings
    from sonify.report.cost import Prices, read_prices
    from sonify.running import run
    from sonify.stages.table import COMMAND_STAGES, RENDERING

    stages = COMMAND_STAGES.get(arguments.name)
    if config.published and arguments.name == "render":
        stages = RENDERING
    _check_looking(arguments)
    prices = Prices() if arguments.prices is None else read_prices(arguments.prices)
    if arguments.dry_run:
        print(yaml.safe_dump(adopt_settings(config).model_dump(mode="json"), sort_keys=False))
        _print_plan(adopt_settings(config), prices)
        return
    if arguments.probe:
        run(config, stages, probe=True)
        _print_plan(adopt_settings(config), prices)
        return
    run(config, stages, arguments.redo, arguments.concepts_from)
    if config.published:
        _print_comparison(config)
    if arguments.name in ("run", "render"):
        _print_result(config.run_dir, config.retrieval.encoder.kind)
        log.info("look at it and listen: %s", spell("gallery", config.run_dir))


def _check_looking(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together where a run is only looked at, or begun to be."""
    if arguments.dry_run and arguments.probe:
        raise InputError("--dry-run: does nothing, and --probe does one unit of each stage: leave one of the two out")
    if arguments.prices is not None and not (arguments.dry_run or arguments.probe):
        raise InputError("--prices: goes with --dry-run or --probe, which say what it costs")
    if arguments.redo is None and arguments.concepts_from is None:
        return
    if arguments.dry_run:
        raise InputError("--dry-run: says what is to do as things stand; leave --redo and --concepts-from out")
    if arguments.probe:
        raise InputError("--probe: goes on as things stand; leave --redo and --concepts-from out")


def _print_result(run_dir: Place, encoder: str) -> None:
    """Say what came of a run; of one so large that reading its tables takes minutes, where to ask."""
    from sonify.engine.plan import listed_units
    from sonify.report.result import MOST_UNITS, describe_refused, describe_result, read_result

    units = len(listed_units(run_dir, "concepts"))
    if units > MOST_UNITS:
        counts, names = spell("status", run_dir), spell("rejects", run_dir)
        log.info("done: %s units; `%s` counts rows and reasons, `%s` names what left", f"{units:,}", counts, names)
        return
    result = read_result(run_dir)
    for line in (*describe_result(result, run_dir, by_text=encoder == "text"), *describe_refused(result)):
        log.info("%s", line)


def _config_of(arguments: argparse.Namespace) -> str:
    """What `--config` says, or the configuration that fits folders of one's own."""
    if arguments.config is not None:
        return arguments.config
    if arguments.images and arguments.sounds:
        return "folder"
    given = [f"--{name}" for name in SHORTCUTS if getattr(arguments, name)]
    raise InputError(
        f"{arguments.name}: expected --config F, or --images DIR and --sounds DIR, found"
        f" {' and '.join(given) or 'neither'}; `{spell('init')}` writes a configuration to edit"
    )


def _shortcuts(arguments: argparse.Namespace) -> list[str]:
    """`--images`, `--sounds` and `--out` are keys of the configuration like others."""
    keys = {word.partition("=")[0] for word in arguments.overrides}
    chosen = {key: (name, getattr(arguments, name)) for name, key in SHORTCUTS.items()}
    for key, (name, value) in chosen.items():
        if value is not None and any(key == given or key.startswith(f"{given}.") for given in keys):
            raise InputError(f"--{name}: is {key}, which is given twice: leave one of the two out")
        if value == "":
            raise InputError(f"--{name}: expected a folder, found nothing: is a variable of the shell not set?")
    return [f"{key}={json.dumps(value)}" for key, (_, value) in chosen.items() if value is not None]


def _published(arguments: argparse.Namespace) -> list[str]:
    """`--from` and `--missing` are keys of the configuration like others; JSON's strings are YAML's."""
    chosen = {"published.path": arguments.published, "published.missing": arguments.missing}
    if arguments.missing and not arguments.published:
        raise InputError("--missing: goes with --from DIR, the published data set whose clips may be missing")
    return [f"{key}={json.dumps(str(value))}" for key, value in chosen.items() if value]


def _print_comparison(config: Config) -> None:
    from sonify.dataset.committed import compare_with_published
    from sonify.dataset.render_from import adopt_settings

    found = compare_with_published(adopt_settings(config))
    shards = found.shards_identical + found.shards_different + found.shards_absent
    scenes = found.scenes_identical + found.scenes_different + found.scenes_absent
    log.info("sounds: %s", ", ".join(f"{n:,} {copy}" for copy, n in found.sounds.items()))
    if found.scenes_absent:
        log.info("scenes: %s are left out; rejects/pair and rejects/render say why", f"{found.scenes_absent:,}")
    log.info(
        "as published: %s of %s shards to the byte, %s of %s scenes to the sample",
        *(f"{n:,}" for n in (found.shards_identical, shards, found.scenes_identical, scenes)),
    )


def _print_plan(config: Config, prices: "Prices") -> None:
    from sonify.engine.progress import spell_duration
    from sonify.report.cost import cost_stages, tell_costs
    from sonify.report.estimate import estimate
    from sonify.running import plan_run

    plans = plan_run(config)
    expected = estimate(config, plans)
    print(f"# input: {expected.recordings:,} recordings, some {expected.clips:,} clips, {expected.images:,} images")
    for key, count in expected.model_calls.items():
        print(f"# {key}: some {count:,} model calls")
    disk = f"pool {_gigabytes(expected.pool_bytes)}, shards {_gigabytes(expected.shard_bytes)}"
    print(f"# disk: {disk}, features {_gigabytes(expected.feature_bytes)}")
    for plan in plans:
        key, done = plan.stage.key, len(plan.done)
        units = max(expected.units.get(plan.stage.listing, 0), done + len(plan.tasks) + len(plan.waiting))
        seconds = expected.seconds[key]
        time_left = "" if units == done else ", time not known before its first unit"
        if seconds is not None and units > done:
            time_left = f", some {spell_duration(seconds)} at this run's rate"
        print(f"# {key}: {units:,} units, {done:,} done, {units - done:,} to do{time_left}")
    for line in tell_costs(cost_stages(config, plans, expected, prices), expected.images, prices):
        print(f"# {line}".rstrip())


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:,.1f} MB"


def _status(arguments: argparse.Namespace) -> None:
    from sonify.report.status import print_status, read_status

    status = read_status(arguments.run_dir, compare=arguments.usage)
    if arguments.json:
        _print_json(asdict(status))
    else:
        print_status(status, Console() if sys.stdout.isatty() else Console(width=160))


def _rejects(arguments: argparse.Namespace) -> None:
    from sonify.report.result import iter_rejects, print_rejects, write_rejects

    rejects = iter_rejects(arguments.run_dir)
    if arguments.csv:
        write_rejects(rejects, sys.stdout)
    else:
        print_rejects(rejects, sys.stdout)


def _verify(arguments: argparse.Namespace) -> None:
    from sonify.report.verify import verify

    result = verify(arguments.run_dir, arguments.repair)
    if arguments.json:
        _print_json(asdict(result))
    else:
        for damage in result.damage:
            print(f"{damage.path}: {damage.what}")
        print(f"{result.commits:,} commits, {result.files:,} files, {len(result.damage):,} damaged")
    if result.damage and result.repaired:
        raise WorkError(f"the damaged commits are withdrawn: `{spell('run', '...')}` does those units again")
    if result.damage:
        raise WorkError(
            f"damage found: `{spell('verify', arguments.run_dir, '--repair')}`, then `{spell('run', '...')}`"
        )


def _gallery(arguments: argparse.Namespace) -> None:
    from sonify.report.gallery import build_gallery

    if arguments.rows < 1:
        raise InputError(f"--rows: expected at least 1, found {arguments.rows}")
    print(build_gallery(arguments.run_dir, arguments.rows, arguments.out) / "index.html")


def _publish(arguments: argparse.Namespace) -> None:
    require("huggingface_hub", "matplotlib", extra="publish")
    from sonify.dataset.licences import UNKNOWN, describe_unknown
    from sonify.dataset.push import push, tell_pushed
    from sonify.dataset.write import PublishOptions, publish

    if arguments.run_dir is None and not arguments.push:
        raise InputError("publish: expected a run to publish, or --push REPO to upload what --out holds already")
    for option in ("dry_run", "private"):
        if getattr(arguments, option) and not arguments.push:
            raise InputError(f"--{option.replace('_', '-')}: goes with --push REPO")
    if said := describe_unknown(arguments.image_licence or UNKNOWN):
        log.warning("--image-licence: %s", said)
    if arguments.run_dir is not None:
        options = PublishOptions(
            only_licences=_words("--only-licences", arguments.only_licences),
            exclude=arguments.exclude,
            with_audio=arguments.with_audio,
            with_images=arguments.with_images,
            licence=arguments.licence,
            **({"image_licence": arguments.image_licence} if arguments.image_licence else {}),
        )
        made = publish(arguments.run_dir, arguments.out, options)
        print(f"{made.folder}: {made.files:,} files, {_gigabytes(made.size_bytes)}; start with {made.folder}/README.md")
        print(made.summary())
    if arguments.push:
        sent = push(arguments.out, arguments.push, arguments.dry_run, arguments.private)
        print(*tell_pushed(sent, arguments.push, arguments.dry_run), sep="\n")


def _words(option: str, text: str | None) -> tuple[str, ...]:
    """A list between commas; one that is given and empty is a mistake, such as a variable that is not set."""
    words = tuple(word.strip() for word in (text or "").split(",") if word.strip())
    if text is not None and not words:
        raise InputError(f"{option}: expected names between commas, found {text!r}")
    return words


def _doctor(arguments: argparse.Namespace) -> int:
    from sonify.doctor.examine import examine, make_document, summarise
    from sonify.io.write import find_target, write_whole

    given = any(getattr(arguments, name) is not None for name in ("config", *SHORTCUTS))
    config = _config_of(arguments) if given or arguments.jobs is None else None
    if arguments.record is not None:
        find_target(arguments.record)  # what cannot be kept is not found out after minutes
    started = time.monotonic()
    findings: list[Finding] = []
    overrides = [*_shortcuts(arguments), *arguments.overrides]
    for finding in examine(config, overrides, arguments.jobs, fetch=arguments.fetch, compare=arguments.compare):
        findings.append(finding)
        if not arguments.json:
            _print_finding(finding)
    seconds = time.monotonic() - started
    document = make_document(findings, seconds)
    if arguments.json:
        _print_json(document)
    else:
        print(summarise(findings, seconds))
    if arguments.record is not None:
        write_whole(arguments.record, f"{json.dumps(document, indent=2, sort_keys=True)}\n".encode())
        log.info("kept in %s", arguments.record)
    return 3 if count_faults(findings) else 0


def _print_finding(finding: Finding) -> None:
    """Its lines, at once: the next examination may take minutes."""
    lines = Text("\n".join(tell([finding])))
    if sys.stdout.isatty():
        lines.stylize(COLOURS[finding.outcome], 0, len(finding.outcome))
        Console(soft_wrap=True).print(lines)
    else:
        print(lines, flush=True)


def _demo(arguments: argparse.Namespace) -> None:
    from sonify.demo.demo import run_demo

    page = run_demo(arguments.out)
    _print_result(arguments.out, "text")
    print(f"the gallery is at {page}: open it in a browser")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))
