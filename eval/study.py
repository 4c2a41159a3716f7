"""What the studies of sound control have in common: arguments, sounds that are read, files that are written."""

import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sonify.errors import InputError
from sonify.io.write import write_whole
from sonify.media.clips import CutClip
from sonify.terminal import Parser, run_command
from train.windows import is_heard, read_sound

DPI = 110


class StudyParser(Parser):
    """The arguments of every study."""

    def __init__(self, module: str, description: str) -> None:
        super().__init__(prog=module, description=description)
        self.add_argument("--out", type=Path, required=True, help="folder for the picture and the JSON")
        self.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")


def run_study(name: str, work: Callable[[], None]) -> int:
    """Do a study's work and return its exit code; what is interrupted has written nothing."""

    def whole() -> None:
        try:
            work()
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("nothing was written; the same command begins again") from interrupt

    return run_command(name, whole)


def at_least(name: str, value: float, least: float) -> None:
    """Refuse a number that is too small, or none."""
    if not (math.isfinite(value) and value >= least):
        raise InputError(f"{name}: expected at least {least}, found {value}")


def read_heard(path: Path, clip_seconds: float) -> CutClip:
    """The first window of a recording in which something is heard.

    Raises:
        InputError: there is none, or the recording cannot be read.
    """
    return next(clip for clip in read_sound(path, clip_seconds) if is_heard(clip))


def label_sounds(paths: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    """What each sound is called: as the user says, or its file."""
    if labels is None:
        return [spoken(path) for path in paths]
    if len(labels) != len(paths):
        raise InputError(f"--labels: expected {len(paths)}, one for each sound, found {len(labels)}")
    return list(labels)


def spoken(path: Path) -> str:
    """The name of a file or folder as words."""
    name = path.name if path.is_dir() else path.stem
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def check_out(out: Path) -> None:
    """Make the folder of the results, before the work and not after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out}: not a folder that can be written to ({error.strerror})") from error


def write_study(out: Path, name: str, result: Mapping[str, Any], figure: Figure) -> None:
    """Write OUT/<name>.png and then OUT/<name>.json, each whole; the same study gives the same bytes.

    Raises:
        DiskFull: no room is left.
        InputError: the folder cannot be written to.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    text = json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False, default=_plain)
    write_whole(out / f"{name}.png", picture.getvalue())
    write_whole(out / f"{name}.json", f"{text}\n".encode())
    sys.stdout.write(f"{out / f'{name}.png'}\n{out / f'{name}.json'}\n")


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} in a study's result")
