"""What is asked of `train.generate`: its options, checked, and the list of sounds."""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

from sonify.errors import InputError
from train.commands import Parser
from train.pipeline import MAX_SEED
from train.sounds import TARGET_LUFS

MAX_SEEDS = 1_000_000
MAX_GUIDANCE = 100
EPILOG = """\
With --out dog.png a sound of one window gives dog.png; a longer one gives an image a window, dog-000.png, dog-001.png
and so on. With --list or --seeds, --out is a folder: images/ and manifest.jsonl, which names sound and seed of each;
images of an earlier request in it are removed. The path of every image is printed.

examples:
  python -m train.generate --model DIR --audio dog.wav --out dog.png
  python -m train.generate --model DIR --audio sea.wav dog.wav --gains-db 0 -6 --out both.png
  python -m train.generate --model DIR --list sounds.csv --seeds 4 --out FOLDER
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Sounds that are heard together, each with its gain; a scene has as many images as windows and seeds."""

    sounds: tuple[Path, ...]
    gains_db: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for; `in_folder` tells a folder with a manifest from a single file."""

    model: Path
    scenes: tuple[Scene, ...]
    seeds: range
    out: Path
    in_folder: bool
    guidance: float = 4.5
    steps: int = 20
    target_lufs: float = TARGET_LUFS
    separate: bool = False


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(
        prog="train.generate",
        description="Make images from sounds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a released pipeline")
    sounds = parser.add_mutually_exclusive_group(required=True)
    sounds.add_argument("--audio", type=Path, nargs="+", help="recordings that are heard together")
    sounds.add_argument("--list", type=Path, help="text file with a path a line, or CSV with a column `sound`")
    parser.add_argument("--out", type=Path, required=True, help="a .png file; a folder with --list or --seeds")
    parser.add_argument(
        "--gains-db", type=float, nargs="+", help="dB relative to --lufs, one for each of --audio (default: 0 each)"
    )
    parser.add_argument("--separate", action="store_true", help="heard one after the other instead of mixed")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="how many images, of seeds that follow each other, for each window")
    parser.add_argument("--guidance", type=float, default=4.5, help="scale of it, 1 is none (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler for each image (default: %(default)s)")
    parser.add_argument(
        "--lufs", type=float, default=TARGET_LUFS, help="loudness of each sound before its gain (default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto is a GPU where there is one"
    )
    parser.add_argument("--batch-size", type=int, help="images at once (default: 16 on a GPU, 1 on a CPU)")
    return parser


def read_request(arguments: argparse.Namespace) -> Request:
    """Check what can be checked without a file of sound or a model.

    Raises:
        InputError: an option is out of its range, or contradicts another.
    """
    _check_ranges(arguments)
    if arguments.list is not None:
        if arguments.gains_db is not None or arguments.separate:
            raise InputError("--gains-db and --separate are for the sounds of --audio; those of a --list stand alone")
        scenes = tuple(Scene(sounds=(sound,), gains_db=(0.0,)) for sound in read_list(arguments.list))
    else:
        gains_db = arguments.gains_db if arguments.gains_db is not None else [0.0] * len(arguments.audio)
        if len(gains_db) != len(arguments.audio):
            raise InputError(f"--gains-db: expected {len(arguments.audio)}, one for each sound, found {len(gains_db)}")
        scenes = (Scene(sounds=tuple(path.absolute() for path in arguments.audio), gains_db=tuple(gains_db)),)
    return Request(
        model=arguments.model.absolute(),
        scenes=scenes,
        seeds=range(arguments.seed, arguments.seed + (1 if arguments.seeds is None else arguments.seeds)),
        out=arguments.out,
        in_folder=arguments.list is not None or arguments.seeds is not None,
        guidance=arguments.guidance,
        steps=arguments.steps,
        target_lufs=arguments.lufs,
        separate=arguments.separate,
    )


def _check_ranges(arguments: argparse.Namespace) -> None:
    seeds = 1 if arguments.seeds is None else arguments.seeds
    checks = (
        ("--seeds", f"1 to {MAX_SEEDS:,}", arguments.seeds, 1 <= seeds <= MAX_SEEDS),
        ("--seed", f"0 to {MAX_SEED - seeds + 1}", arguments.seed, 0 <= arguments.seed <= MAX_SEED - seeds + 1),
        ("--guidance", f"1 to {MAX_GUIDANCE}", arguments.guidance, 1 <= arguments.guidance <= MAX_GUIDANCE),
        ("--steps", "1 to 1000", arguments.steps, 1 <= arguments.steps <= 1000),
        ("--lufs", "between -70 and 0", arguments.lufs, -70 < arguments.lufs <= 0),
        ("--batch-size", "at least 1", arguments.batch_size, arguments.batch_size is None or arguments.batch_size >= 1),
        ("--gains-db", "-60 to 60", arguments.gains_db, all(-60 <= gain <= 60 for gain in arguments.gains_db or ())),
    )
    for option, expected, found, holds in checks:
        if not holds:
            raise InputError(f"{option}: expected {expected}, found {found}")


def read_list(path: Path) -> list[Path]:
    """The sounds of a list: a path a line, or the column `sound` of a CSV; relative paths are relative to the list.

    Raises:
        InputError: it cannot be read, has no such column, or names no sound.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"--list {path}: cannot be read as text ({error})") from error
    names = text.splitlines()
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
