"""Make images from sounds with a released pipeline.

    python -m train.generate --model DIR --audio a.wav b.wav --gains-db 0 -6 --guidance 4.5 --steps 20 --seed 0 \
        --out out.png
    python -m train.generate --model DIR --list sounds.csv --seeds 4 --out FOLDER

Several sounds of `--audio` are mixed, or heard one after the other with `--separate`; with `--separate sources
--separator DIR` each recording is taken apart first, and its sources follow each other. A sound longer than the model's
clips gives one image a window, out-000.png, out-001.png and so on; a silent window gives none. A list (a text file with
a path a line, or a CSV with a column `sound`; paths are relative to it) or a number of seeds gives a folder with images
and `manifest.jsonl`; the same command goes on where it was interrupted, and another one removes the images that are not
its own. The images' paths are printed. A model is a folder or a hub id, whose commit then stands in the manifest.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("train.generate", extra="train"))

import argparse
import csv
import hashlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from sonify.errors import InputError, WorkError
from sonify.io.write import sha256_of, write_whole
from sonify.models.fetch import FetchedModel
from sonify.models.loading import choose_device, choose_dtype
from sonify.terminal import Parser, run_command
from train.arguments import MAX_SEED, in_parts
from train.hearing import LEVELS, Level
from train.kinds import KINDS, SoundPipeline
from train.manifest import (
    IMAGES,
    MANIFEST,
    GeneratedImage,
    GenerationSettings,
    encode_png,
    is_made,
    remove_others,
    write_image,
    write_manifest,
)
from train.released import find_release, load_pipeline, read_settings
from train.separator import Separator, check_separator, find_separator, load_separator, take_apart
from train.windows import Window, make_windows, read_sound

log = logging.getLogger(__name__)

# Images that go through the model at once. On a CPU, where more at once is hardly faster, an image is then the same to
# the bit however many are made.
BATCH_SIZE = {"cpu": 1, "cuda": 16}
# Their lines are held in memory.
MAX_IMAGES = 1_000_000
MAX_SEEDS = 1_000_000
MAX_GUIDANCE = 100
EPILOG = """\
With --out dog.png a sound of one window gives dog.png; a longer one gives an image a window, dog-000.png, dog-001.png
and so on. With --list or --seeds, --out is a folder: images/ and manifest.jsonl, which names sound and seed of each;
images of an earlier request in it are removed. The path of every image is printed.

examples:
  {command} --model DIR --audio dog.wav --out dog.png
  {command} --model DIR --audio sea.wav dog.wav --gains-db 0 -6 --out both.png
  {command} --model DIR --list sounds.csv --seeds 4 --out FOLDER
  {command} --model you/name --audio dog.wav --out dog.png
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSounds:
    """Sounds that are heard together, each with its gain; a scene has as many images as windows and seeds."""

    sounds: tuple[Path, ...]
    gains_db: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for; `in_folder` tells a folder with a manifest from a single file.

    Where `target_lufs` and `level` are None, they are what the model was trained on; `guidance` and `steps`, its own.
    With `separate`, sounds are heard one after the other, and with a `separator` the sources of each are.
    """

    model: str
    scenes: tuple[SceneSounds, ...]
    seeds: range
    out: Path
    in_folder: bool
    guidance: float | None = None
    steps: int | None = None
    target_lufs: float | None = None
    level: Level | None = None
    separate: bool = False
    separator: str | None = None


def main(argv: Sequence[str] | None = None, prog: str = "train.generate") -> int:
    """Run the command and return its exit code."""
    arguments = build_parser(prog).parse_args(argv)
    return run_command(prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    request = read_request(arguments)
    device = choose_device(arguments.device)
    batch_size = arguments.batch_size if arguments.batch_size is not None else BATCH_SIZE[device.type]
    for path in generate(request, device, batch_size):
        print(path)  # noqa: T201 - the command's result


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(
        prog=prog,
        description="Make images from sounds.",
        epilog=EPILOG.format(command=prog if " " in prog else f"python -m {prog}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR|ID",
        help="a released pipeline: its folder, or a hub id (you/name@COMMIT)",
    )
    sounds = parser.add_mutually_exclusive_group(required=True)
    sounds.add_argument("--audio", type=Path, nargs="+", help="recordings that are heard together")
    sounds.add_argument("--list", type=Path, help="text file with a path a line, or CSV with a column `sound`")
    parser.add_argument("--out", type=Path, required=True, help="a .png file; a folder with --list or --seeds")
    parser.add_argument(
        "--gains-db", type=float, nargs="+", help="dB relative to --lufs, one for each of --audio (default: 0 each)"
    )
    parser.add_argument(
        "--separate",
        nargs="?",
        const="sounds",
        choices=("sounds", "sources"),
        help="heard one after the other instead of mixed: the sounds of --audio (also without a value), or the sources"
        " that --separator finds in each recording",
    )
    parser.add_argument("--separator", metavar="DIR", help="a ConvTasNet: its folder, or a hub id")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="how many images, of seeds that follow each other, for each window")
    defaults = [f"{kind.guidance:g} and {kind.steps} of an {kind.name}" for kind in KINDS.values()]
    parser.add_argument("--guidance", type=float, help="scale of it, 1 is none (default: the model's own)")
    parser.add_argument(
        "--steps", type=int, help=f"of the sampler for each image (default: the model's own; {', '.join(defaults)})"
    )
    parser.add_argument(
        "--level",
        choices=LEVELS,
        help="what is brought to --lufs: each window alone, or each recording as a whole, by one gain, so that quiet"
        " stretches of it stay quiet (default: what the model was trained on)",
    )
    parser.add_argument(
        "--lufs", type=float, help="loudness of each sound before its gain (default: what the model was trained on)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto is a GPU where there is one"
    )
    parser.add_argument("--batch-size", type=int, help="images at once (default: 16 on a GPU, 1 on a CPU)")
    return parser


def read_request(arguments: argparse.Namespace) -> Request:
    """Check what can be checked without a file of sound or a model."""
    _check_ranges(arguments)
    check_separator(arguments)
    if arguments.list is not None:
        if arguments.gains_db is not None or arguments.separate == "sounds":
            raise InputError(
                "--gains-db and --separate are for the sounds of --audio; those of a --list stand alone (what is heard"
                " in each can be taken apart: --separate sources)"
            )
        scenes = tuple(SceneSounds(sounds=(sound,), gains_db=(0.0,)) for sound in read_list(arguments.list))
    else:
        gains_db = arguments.gains_db if arguments.gains_db is not None else [0.0] * len(arguments.audio)
        if len(gains_db) != len(arguments.audio):
            raise InputError(f"--gains-db: expected {len(arguments.audio)}, one for each sound, found {len(gains_db)}")
        scenes = (SceneSounds(sounds=tuple(path.absolute() for path in arguments.audio), gains_db=tuple(gains_db)),)
    return Request(
        model=arguments.model,
        scenes=scenes,
        seeds=range(arguments.seed, arguments.seed + (1 if arguments.seeds is None else arguments.seeds)),
        out=arguments.out,
        in_folder=arguments.list is not None or arguments.seeds is not None,
        guidance=arguments.guidance,
        steps=arguments.steps,
        target_lufs=arguments.lufs,
        level=arguments.level,
        separate=arguments.separate is not None,
        separator=arguments.separator,
    )


def _check_ranges(arguments: argparse.Namespace) -> None:
    seeds, guidance = 1 if arguments.seeds is None else arguments.seeds, arguments.guidance
    checks = (
        ("--seeds", f"1 to {MAX_SEEDS:,}", arguments.seeds, 1 <= seeds <= MAX_SEEDS),
        ("--seed", f"0 to {MAX_SEED - seeds + 1}", arguments.seed, 0 <= arguments.seed <= MAX_SEED - seeds + 1),
        ("--guidance", f"1 to {MAX_GUIDANCE}", guidance, guidance is None or 1 <= guidance <= MAX_GUIDANCE),
        ("--steps", "1 to 1000", arguments.steps, arguments.steps is None or 1 <= arguments.steps <= 1000),
        ("--lufs", "between -70 and 0", arguments.lufs, arguments.lufs is None or -70 < arguments.lufs <= 0),
        ("--batch-size", "at least 1", arguments.batch_size, arguments.batch_size is None or arguments.batch_size >= 1),
        ("--gains-db", "-60 to 60", arguments.gains_db, all(-60 <= gain <= 60 for gain in arguments.gains_db or ())),
    )
    for option, expected, found, holds in checks:
        if not holds:
            raise InputError(f"{option}: expected {expected}, found {found}")


def read_list(path: Path) -> list[Path]:
    """The sounds of a list: a path a line, or the column `sound` of a CSV; relative paths are relative to the list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"--list {path}: cannot be read as text ({error})") from error
    names = list(io.StringIO(text))  # a name may hold what `splitlines` takes for the end of a line
    if path.suffix.lower() == ".csv":
        names = _read_column(path, names)
    sounds = [path.absolute().parent / name.strip() for name in names if name.strip()]
    if not sounds:
        raise InputError(f"--list {path}: names no sound")
    return sounds


def _read_column(path: Path, lines: list[str]) -> list[str]:
    table = csv.DictReader(lines)
    try:
        if "sound" not in (table.fieldnames or ()):
            raise InputError(f"--list {path}: expected a column `sound`, found {', '.join(table.fieldnames or ())}")
        return [row["sound"] or "" for row in table]
    except csv.Error as error:
        raise InputError(f"--list {path}: cannot be read as CSV ({error}, line {table.line_num})") from error


def generate(request: Request, device: torch.device, batch_size: int) -> list[Path]:
    """Make the images that are asked for and are not there yet; return where all of them are.

    Every sound is read before the model is loaded, and before anything is written.

    Raises:
        InputError: a sound, the model or the place for the images cannot be used.
        WorkError: the model makes no image of a sound, or no room is left.
    """
    released = find_release(request.model)
    settings = read_settings(released.path)
    if settings["audio_encoder"][0] is None:
        raise InputError(
            f"{released.model}: a model without an AST or a BEATs, whose condition is not made from sounds here"
        )
    request = _as_trained(request, settings)
    folder = _check_out(request)
    dtype = choose_dtype("auto", device)
    separator = find_separator(request.separator) if request.separator is not None else None
    planned = _plan(request, released, settings["clip_seconds"], str(dtype).removeprefix("torch."), separator)
    rows = [row for scene_rows in planned for row in scene_rows]
    missing = {row.image for row in rows if not (request.in_folder and is_made(folder, row))}
    if request.in_folder:
        log.info("%s images, of which %s are there", f"{len(rows):,}", f"{len(rows) - len(missing):,}")
    elif len(rows) > 1:
        log.info("%s windows of sound, each with an image: %s to %s", len(rows), rows[0].image, rows[-1].image)
    if missing:
        apart = load_separator(separator, device) if separator is not None else None
        if request.in_folder:
            (folder / MANIFEST).unlink(missing_ok=True)  # it does not tell what the folder will hold
        pipeline = load_pipeline(released.path, device, dtype)
        for batch in _batches(_conditions(pipeline, request, planned, missing, apart), batch_size):
            _make(pipeline, request, folder, batch)
    if request.in_folder:
        write_manifest(folder, rows)
        if removed := remove_others(folder, rows):
            log.info("%s images of an earlier request removed", f"{removed:,}")
    return [folder / row.image for row in rows]


def _as_trained(request: Request, settings: Mapping[str, Any]) -> Request:
    """A request that leaves nothing to the model, of which these are the settings."""
    middle_lufs = sum(settings["loudness_lufs"]) / 2
    target_lufs = middle_lufs if request.target_lufs is None else request.target_lufs
    kind = KINDS[settings["_class_name"]]
    return replace(
        request,
        target_lufs=target_lufs,
        level=request.level or settings["level"],
        guidance=kind.guidance if request.guidance is None else request.guidance,
        steps=kind.steps if request.steps is None else request.steps,
    )


def _check_out(request: Request) -> Path:
    """The folder that the images go to, made if there is none."""
    out = request.out
    folder = out if request.in_folder else out.parent
    # as long as any name that is written: of a file, with the number of a window
    probe = "" if request.in_folder else f".{out.stem}-000.png.partial"
    try:
        if request.in_folder and (out.suffix.lower() == ".png" or out.is_file()):
            raise InputError(f"--out {out}: --list and --seeds give several images: expected a folder, found a file")
        if not request.in_folder and (out.suffix.lower() != ".png" or out.is_dir()):
            raise InputError(f"--out {out}: expected the name of a .png file; --seeds 1 gives a folder with a manifest")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(dir=folder, suffix=probe).close()
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to ({error.strerror}); choose another place") from error
    return folder


def _plan(
    request: Request, released: FetchedModel, clip_seconds: float, precision: str, separator: FetchedModel | None
) -> list[list[GeneratedImage]]:
    """The lines of all images, scene by scene."""
    starts = _find_starts(request, clip_seconds)
    if (wanted := sum(map(len, starts)) * len(request.seeds)) > MAX_IMAGES:
        raise InputError(f"expected at most {MAX_IMAGES:,} images, found {wanted:,}; take fewer seeds or sounds")
    model_sha256 = _hash_model(released.path) if request.in_folder else ""
    planned: list[list[GeneratedImage]] = []
    assert request.target_lufs is not None
    assert request.level is not None
    assert request.guidance is not None
    assert request.steps is not None
    for number, (scene, starts_sec) in enumerate(zip(request.scenes, starts, strict=True)):
        settings = GenerationSettings(
            guidance=request.guidance,
            steps=request.steps,
            precision=precision,
            target_lufs=request.target_lufs,
            gains_db=scene.gains_db,
            separate=request.separate,
            separator=separator.identity if separator is not None else "",
            clip_seconds=clip_seconds,
            level=request.level,
        )
        sound_sha256 = tuple(sha256_of(sound) for sound in scene.sounds)
        rows = [
            GeneratedImage(
                image=_name(request, number, place, seed, alone=len(starts_sec) == 1),
                sound=str(scene.sounds[0]),
                mixed_with=tuple(str(sound) for sound in scene.sounds[1:]),
                sound_sha256=sound_sha256,
                start_sec=start_sec,
                seed=seed,
                model=released.model,
                model_sha256=model_sha256,
                settings=settings,
            )
            for place, start_sec in enumerate(starts_sec)
            for seed in request.seeds
        ]
        planned.append(rows)
    return planned


def _find_starts(request: Request, clip_seconds: float) -> list[list[float]]:
    """Where each scene's windows start; all sounds are read, and of those that cannot be used one is named."""
    starts: list[list[float]] = []
    unusable: list[InputError] = []
    for scene in request.scenes:
        try:
            starts.append([window.start_sec for window in _windows(request, scene, clip_seconds)])
        except InputError as error:
            unusable.append(error)
    if unusable:
        more = f" (and {len(unusable) - 1} more of {len(request.scenes)} cannot be used)" if unusable[1:] else ""
        raise InputError(f"{unusable[0]}{more}")
    return starts


def _windows(request: Request, scene: SceneSounds, clip_seconds: float) -> list[Window]:
    sounds = [read_sound(sound, clip_seconds) for sound in scene.sounds]
    assert request.target_lufs is not None
    assert request.level is not None
    return make_windows(sounds, scene.gains_db, request.target_lufs, request.separate, request.level)


def _name(request: Request, scene: int, window: int, seed: int, *, alone: bool) -> str:
    if request.in_folder:
        return f"{IMAGES}/{scene:06d}-{window:03d}-{seed}.png"
    return request.out.name if alone else f"{request.out.stem}-{window:03d}.png"


def _hash_model(folder: Path) -> str:
    """The sha256 of all that a pipeline is loaded from, so that one released anew is not taken for the one before."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
    listing = "".join(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _conditions(
    pipeline: SoundPipeline,
    request: Request,
    planned: Sequence[Sequence[GeneratedImage]],
    missing: Collection[str],
    separator: Separator | None,
) -> Iterator[tuple[GeneratedImage, torch.Tensor]]:
    """The missing images' lines, each with its condition (T, D); a window is encoded once for all its seeds."""
    console = Console(stderr=True)
    scenes = list(zip(request.scenes, planned, strict=True))
    for scene, rows in track(
        scenes, "images", console=console, disable=not (request.in_folder and console.is_terminal)
    ):
        if not any(row.image in missing for row in rows):
            continue
        windows = _windows(request, scene, pipeline.config["clip_seconds"])
        for window, of_window in zip(windows, in_parts(rows, len(request.seeds)), strict=True):
            parts_NS = _apart(window, scene.sounds, separator) if separator is not None else window.parts_NS
            with _naming(request):
                audio_TD = pipeline.encode_audio(parts_NS).flatten(0, 1)
            yield from ((row, audio_TD) for row in of_window if row.image in missing)


def _apart(window: Window, sounds: Sequence[Path], separator: Separator) -> np.ndarray:
    """The (N, S) sources of all that is heard in a window, at the level that they have in it."""
    name = f"{' + '.join(map(str, sounds))}, at {window.start_sec:g} s"
    return np.concatenate([take_apart(separator, part_S, name) for part_S in window.parts_NS])


def _batches(
    items: Iterable[tuple[GeneratedImage, torch.Tensor]], size: int
) -> Iterator[list[tuple[GeneratedImage, torch.Tensor]]]:
    """What follows each other and has conditions of one length, at most `size` at once."""
    for _, group in groupby(items, key=lambda item: len(item[1])):
        while batch := list(islice(group, size)):
            yield batch


@contextmanager
def _naming(request: Request) -> Iterator[None]:
    """Name the release whose weights or settings make no image: what was asked for was checked before."""
    try:
        yield
    except ValueError as error:
        why = " ".join(str(error).split())[:300]
        raise WorkError(f"{request.model}: makes no image of these sounds ({why})") from error


def _make(
    pipeline: SoundPipeline,
    request: Request,
    folder: Path,
    batch: Sequence[tuple[GeneratedImage, torch.Tensor]],
) -> None:
    assert request.guidance is not None
    assert request.steps is not None
    with _naming(request):
        images = pipeline(
            audio_features=torch.stack([audio_TD for _, audio_TD in batch]),
            seeds=[row.seed for row, _ in batch],
            guidance_scale=request.guidance,
            num_inference_steps=request.steps,
            batch_size=len(batch),
        ).images
    for (row, _), image in zip(batch, images, strict=True):
        if request.in_folder:
            write_image(folder, row, image)
        else:
            write_whole(folder / row.image, encode_png(image))
