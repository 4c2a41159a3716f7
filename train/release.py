"""A trained model as others load it: a folder of diffusers' with the averaged weights, a card and what it was made of.

python -m train.release --run TRAINRUN [--step N] --out DIR [--licence ID --push you/name]

model_index.json transformer/ vae/ scheduler/ audio_encoder/ feature_extractor/   the pipeline, safetensors only
                 (of AudioToken unet/ text_encoder/ tokenizer/ embedder/ in the transformer's place)
README.md        the model card
pipeline.py      the pipeline's code, for who has not this package
recordings.txt   the recordings that it was trained on, one a line
config.yaml      the configuration, resolved, without places of this machine
checksums.sha256 of all other files, as `sha256sum` writes them: what is uploaded is what was made
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.release", extra="train"))

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonify.dataset.format import seal
from sonify.dataset.licences import UNKNOWN, describe_unknown
from sonify.dataset.push import Upload, check_repository, push, tell_pushed
from sonify.errors import InputError
from sonify.installed import spell
from sonify.io.write import FileRecord, make_beside, naming_full_disk, naming_place, replacing, sha256_of
from sonify.terminal import Parser, run_command
from train.averages import Held
from train.card import (
    CARD,
    NOT_CHOSEN,
    NOTHING_SAID,
    Terms,
    check_model_licence,
    describe_data,
    is_folder,
    make_card,
    objections,
    shown,
)
from train.checkpoints import PIPELINE_INDEX, RECORDINGS, Averaged, load_averaged, naming_system_errors
from train.config import CONFIG, AudioTokenConfig, TrainConfig, Training, read_config, write_config
from train.frozen import remake_pipeline
from train.metrics import read_metrics
from train.pipeline import AudioPixArtPipeline
from train.released import PIPELINE_CODE, read_settings, write_code
from train.shards import FeatureData, open_feature_data
from train.token_pipeline import AudioTokenPipeline

log = logging.getLogger(__name__)

MODEL = Upload(
    repo_type="model",
    what="release",
    whole=PIPELINE_INDEX,
    made_by="python -m train.release --run R --licence ID --out DIR",
    # what a release of any version has, and pickles of other tools beside it; a picture or a LICENSE stays
    ours=(
        *(f"{part}/*" for part in ("transformer", "vae", "scheduler", "audio_encoder", "feature_extractor")),
        *(f"{part}/*" for part in ("unet", "text_encoder", "tokenizer", "embedder")),
        *(PIPELINE_INDEX, PIPELINE_CODE, RECORDINGS, CONFIG, "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
    ),
    example="you/images-from-sounds",
    message="Release with sonify",
)


def main(argv: Sequence[str] | None = None, prog: str = "train.release") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Make a pipeline of a checkpoint, and upload it.")
    parser.add_argument("--run", type=Path, help="folder of a training run; none: --push what --out holds")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    parser.add_argument("--out", type=Path, required=True, help="the pipeline's folder; a release there is replaced")
    add_licences(parser)
    parser.add_argument("--push", metavar="REPO", help="upload to the Hugging Face hub; again: goes on")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--dry-run", action="store_true", help="with --push: list what would go")
    arguments = parser.parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    terms = _read_terms(arguments)
    if arguments.run is not None:
        release_checkpoint(arguments.run, arguments.step, arguments.out, terms)
        print(arguments.out)  # noqa: T201 - the command's result
    if arguments.push:
        sent = push_release(arguments.out, arguments.push, dry_run=arguments.dry_run, private=arguments.private)
        print(*tell_pushed(sent, arguments.push, arguments.dry_run), sep="\n")  # noqa: T201 - the same


def _read_terms(arguments: argparse.Namespace) -> Terms:
    """Check the options against each other, and what can be checked of each before anything is made."""
    if arguments.run is None and not arguments.push:
        raise InputError("--run: expected a training run to release, or --push REPO to upload what --out holds already")
    for option in ("dry_run", "private"):
        if getattr(arguments, option) and not arguments.push:
            raise InputError(f"--{option.replace('_', '-')}: goes with --push REPO")
    for option in ("step", "licence", "image_licence"):
        if arguments.run is None and getattr(arguments, option) is not None:
            raise InputError(f"--{option.replace('_', '-')}: goes with --run: it is for the release that is made of it")
    if arguments.push:
        check_repository(arguments.push, MODEL)
        if arguments.run is not None and arguments.licence is None:
            raise InputError(
                "--push: expected --licence ID, the licence of the weights that whoever publishes them has to choose:"
                " a name as the hub has them, such as cc-by-nc-4.0 or openrail++, or the address of its text"
            )
    return read_licences(arguments, arguments.push)


def add_licences(parser: argparse.ArgumentParser) -> None:
    """The options that say what whoever makes a release has chosen."""
    parser.add_argument("--licence", metavar="ID", help="of the weights: the hub's name of it, or its address")
    parser.add_argument("--image-licence", metavar="TEXT", help="of the images that it was trained on")


def read_licences(arguments: argparse.Namespace, repo: str | None) -> Terms:
    """What those options say; what is odd is logged."""
    if arguments.licence is not None and (odd := check_model_licence(arguments.licence)):
        log.warning("--licence: %s", odd)
    if arguments.image_licence is not None and (odd := describe_unknown(arguments.image_licence or UNKNOWN)):
        log.warning("--image-licence: %s", odd)
    return Terms(licence=arguments.licence, image_licence=arguments.image_licence, repo=repo)


def push_release(out: Path, repo: str, *, dry_run: bool = False, private: bool = False) -> tuple[FileRecord, ...]:
    """Upload a release, whose licence must have been chosen, as `sonify.dataset.push` does; say what goes.

    Raises:
        InputError: it is no release, or damaged, or nobody chose its licence, or the hub refuses.
        TransientError: the hub is not to be reached, or broke off.
    """
    read_settings(out)
    card = out / CARD
    if card.is_file() and f"license_name: {NOT_CHOSEN}\n" in card.read_text(encoding="utf-8", errors="replace"):
        raise InputError(
            f"{card}: the licence of the weights is not chosen: make the release again with --run R --licence ID,"
            " such as cc-by-nc-4.0"
        )
    return push(out, repo, dry_run, private, MODEL)


def release_checkpoint(run_dir: Path, step: int | None, out: Path, terms: Terms = NOTHING_SAID) -> None:
    """Make the pipeline of one of a run's checkpoints, the newest where `step` is None.

    Raises:
        InputError: there is no such run or checkpoint, its data or its networks are gone, or `out` is something else.
        DiskFull: no room is left.
    """
    config = read_config(run_dir, spell("train", "--config", "F"))
    find_place(out)
    averaged = load_averaged(run_dir, step)
    release_averaged(run_dir, config, averaged, Held(rule=averaged.rule), out, terms)


def release_averaged(run_dir: Path, config: Training, averaged: Averaged, held: Held, out: Path, terms: Terms) -> None:
    """Make the pipeline of averaged weights of a run, and say which they are."""
    data = open_feature_data(config.data)
    metrics = [line for line in read_metrics(run_dir) if line["step"] <= averaged.step]
    pipeline = remake_pipeline(config, averaged, data)
    save_release(out, pipeline, config, data, metrics, step=averaged.step, held=held, terms=terms)


def save_release(  # noqa: PLR0913 - what a release is made of
    out: Path,
    pipeline: AudioPixArtPipeline | AudioTokenPipeline,
    config: Training,
    data: FeatureData,
    metrics: Sequence[Mapping[str, float]],
    *,
    step: int,
    held: Held,
    terms: Terms = NOTHING_SAID,
) -> None:
    """Write a release of the weights of `step`, seen whole or not at all; one that is there is replaced.

    `metrics` are the lines of the run's `metrics.jsonl`.

    Raises:
        InputError: `out` is something else than a release, or cannot be written to.
        DiskFull: no room is left.
    """
    out = find_place(out)
    trained_on = describe_data(config, data, step)
    for objection in objections(config, trained_on, terms):
        log.warning("--licence %s: %s", terms.licence, objection)
    with replacing(out) as folder, naming_system_errors():
        pipeline.save_pretrained(folder, safe_serialization=True)
        _forget_places(folder)
        write_code(folder)
        write_config(_without_places(config), folder)
        (folder / RECORDINGS).write_text("".join(f"{name}\n" for name in trained_on.recordings), encoding="utf-8")
        card = make_card(
            config,
            trained_on,
            metrics[-1] if metrics else {},
            held=held,
            terms=terms,
            code={path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.py"))},
            files_bytes=sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
        )
        (folder / CARD).write_text(card, encoding="utf-8")
        seal(folder)


def _forget_places(folder: Path) -> None:
    """Take out of the parts' own files where each was loaded from, which diffusers writes down."""
    for path in folder.glob("*/config.json"):
        settings = json.loads(path.read_bytes())
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without_places(config: Training) -> Training:
    """The configuration with names instead of this machine's folders, which are nobody else's business."""

    def named(value: Any) -> Any:
        return shown(value) if isinstance(value, str) and is_folder(value) else value

    runs = tuple(Path(Path(str(run)).name) for run in config.data.runs)
    update: dict[str, Any] = {
        "run_dir": Path(config.run_dir.name),
        "data": config.data.model_copy(update={"runs": runs}),
        "vae": named(config.vae),
    }
    if isinstance(config, AudioTokenConfig):
        encoder = config.encoder.model_copy(update={"model": named(config.encoder.model)})
        return config.model_copy(update=update | {"sd": named(config.sd), "encoder": encoder})
    assert isinstance(config, TrainConfig)
    init = config.model.init
    beside: dict[str, Any] = {"projector": init.projector and Path(init.projector.name)}
    if init.kind == "checkpoint":
        beside["model"] = named(init.model)
    model = config.model.model_copy(update={"init": init.model_copy(update=beside)})
    return config.model_copy(update=update | {"ast": named(config.ast), "model": model})


def find_place(out: Path) -> Path:
    """The folder that `out` means, which may be a link or a dot, where a release can be written."""
    place = Path(os.path.realpath(out))
    with naming_full_disk(place), naming_place(place):
        if not place.name or (_is_there(place) and not _is_replaceable(place)):
            raise InputError(f"--out {out}: holds something else than a release; choose a new folder")
        make_beside(place).rmdir()
    return place


def _is_there(place: Path) -> bool:
    return place.is_symlink() or place.exists()  # a link here is one that leads to itself


def _is_replaceable(place: Path) -> bool:
    """A folder that is empty or one of our releases: another pipeline has no list of recordings, and what else has one
    (checkpoints, projectors, kept scenes) is no pipeline."""
    return place.is_dir() and (
        not any(place.iterdir()) or all((place / name).is_file() for name in (RECORDINGS, PIPELINE_INDEX))
    )
