"""What the commands of the command line do: each is a thin wrapper of a function that a notebook can call.

They import what they need: `--help` and a misspelt key answer at once.
"""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from typing import Any

import yaml
from rich.console import Console

from sonify.config import Config, load_config
from sonify.errors import InputError, WorkError, require

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """`sonify run`, and the commands for single stages."""
    from sonify.dataset.render_from import adopt_settings
    from sonify.run import run
    from sonify.stages.table import COMMAND_STAGES, RENDERING

    config = load_config(arguments.config, [*_published(arguments), *arguments.overrides])
    stages = COMMAND_STAGES.get(arguments.name)
    if config.published and arguments.name == "render":
        stages = RENDERING
    if arguments.dry_run:
        _print_plan(adopt_settings(config))
        return 0
    run(config, stages, arguments.redo, arguments.concepts_from)
    if config.published:
        _print_comparison(config)
    if arguments.name == "run":
        log.info("done; look at it: sonify gallery %s", config.run_dir)
    return 0


def _published(arguments: argparse.Namespace) -> list[str]:
    """`--from` and `--missing` are keys of the configuration like others; JSON's strings are YAML's."""
    chosen = {"published.path": arguments.published, "published.missing": arguments.missing}
    if arguments.missing and not arguments.published:
        raise InputError("--missing: goes with --from DIR, the published data set whose clips may be missing")
    return [f"{key}={json.dumps(str(value))}" for key, value in chosen.items() if value]


def _print_comparison(config: Config) -> None:
    from sonify.dataset.compare import compare_with_published
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
        units = max(expected.units.get(plan.stage.listing, 0), done + len(plan.tasks) + len(plan.waiting))
        seconds = expected.seconds[key]
        time_left = "" if units == done else ", time not known before its first unit"
        if seconds is not None and units > done:
            time_left = f", some {spoken(seconds)} at this run's rate"
        print(f"# {key}: {units:,} units, {done:,} done, {units - done:,} to do{time_left}")


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:,.1f} MB"


def status(arguments: argparse.Namespace) -> int:
    """`sonify status`."""
    from sonify.report.status import print_status, read_status

    status = read_status(arguments.run_dir, compare=arguments.usage)
    if arguments.json:
        _print_json(asdict(status))
    else:
        print_status(status, Console() if sys.stdout.isatty() else Console(width=160))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """`sonify verify`."""
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


def gallery(arguments: argparse.Namespace) -> int:
    """`sonify gallery`."""
    from sonify.report.gallery import build_gallery

    if arguments.rows < 1:
        raise InputError(f"--rows: expected at least 1, found {arguments.rows}")
    print(build_gallery(arguments.run_dir, arguments.rows, arguments.out) / "index.html")
    return 0


def publish(arguments: argparse.Namespace) -> int:
    """`sonify publish`."""
    require("huggingface_hub", "matplotlib", extra="publish")
    from sonify.dataset.push import push
    from sonify.dataset.write import PublishOptions, publish, summary

    if arguments.run_dir is None and not arguments.push:
        raise InputError("publish: expected a run to publish, or --push REPO to upload what --out holds already")
    for option in ("dry_run", "private"):
        if getattr(arguments, option) and not arguments.push:
            raise InputError(f"--{option.replace('_', '-')}: goes with --push REPO")
    if arguments.run_dir is not None:
        options = PublishOptions(
            only_licences=_words("--only-licences", arguments.only_licences),
            exclude=arguments.exclude,
            with_audio=arguments.with_audio,
            licence=arguments.licence,
            **({"image_licence": arguments.image_licence} if arguments.image_licence else {}),
        )
        made = publish(arguments.run_dir, arguments.out, options)
        print(f"{made.folder}: {made.files:,} files, {_gigabytes(made.size_bytes)}; start with {made.folder}/README.md")
        print(summary(made))
    if arguments.push:
        sent = push(arguments.out, arguments.push, arguments.dry_run, arguments.private)
        for file in sent if arguments.dry_run else ():
            print(f"{file.sha256}  {file.size_bytes:>12,}  {file.path}")
        size = _gigabytes(sum(file.size_bytes for file in sent))
        print(f"{len(sent):,} files, {size}, {'would go' if arguments.dry_run else 'are'} in {arguments.push}")
    return 0


def _words(option: str, text: str | None) -> tuple[str, ...]:
    """A list between commas; one that is given and empty is a mistake, such as a variable that is not set."""
    words = tuple(word.strip() for word in (text or "").split(",") if word.strip())
    if text is not None and not words:
        raise InputError(f"{option}: expected names between commas, found {text!r}")
    return words


def leakage(arguments: argparse.Namespace) -> int:
    """`sonify leakage`."""
    require("imagehash", extra="publish")
    from sonify.report.leakage import DISTANCE, HASH_BITS, find_leakage, summary, write_leakage

    if arguments.images is None and arguments.sounds is None:
        raise InputError("leakage: expected evaluation sets to compare with: --images DIR, --sounds DIR, or both")
    distance = DISTANCE if arguments.distance is None else arguments.distance
    if not 0 <= distance <= HASH_BITS:
        raise InputError(f"--distance: expected 0 to {HASH_BITS} bits, found {distance}")
    found = find_leakage(arguments.run_dir, arguments.images, arguments.sounds, distance)
    write_leakage(found, arguments.out)
    print(summary(found))
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """`sonify demo`."""
    from sonify.demo.demo import run_demo

    page = run_demo(arguments.out)
    print(f"the gallery is at {page}: open it in a browser")
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))
