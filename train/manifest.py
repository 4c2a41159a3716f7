"""What a folder of made images holds: `manifest.jsonl`, one line an image. Evaluation reads nothing else.

The manifest is written when all its images are there. Each image carries the digest of its own line, so that a folder
that was begun goes on, an image made under other settings is made again, and one of an earlier request is removed.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo
from pydantic import ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

from sonify.errors import InputError
from sonify.io.commits import canonical_json, digest_of
from sonify.io.places import is_below
from sonify.io.write import write_whole

MANIFEST = "manifest.jsonl"
IMAGES = "images"
# The key of a PNG's text under which the digest of its line stands.
LINE_DIGEST = "manifest_line_sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How images were made; `gains_db` are of `sound` and then of those in `mixed_with`.

    `level` says what was brought to the target; a line from before there was a choice has none, and means `window`.
    With `separate` sounds follow each other instead of being mixed; with a `separator` (its commit, or the digest of
    its files) it is what that found in each sound that does.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    guidance: float
    steps: int
    precision: str
    target_lufs: float
    gains_db: tuple[float, ...]
    separate: bool
    clip_seconds: float
    level: str = "window"
    separator: str = ""
    kind: Literal["generate"] = "generate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What another model hears of a sound: at which rate, how long, and what it does with a shorter one."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    sample_rate_hz: int
    seconds: float
    repeat: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideSettings:
    """How a model that is not this project's made images, as its recipe says; null is not known or not there."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["outside"]
    command: tuple[str, ...]
    repository: str | None
    commit: str | None
    heard: Heard | None
    image_px: int | None
    guidance: float | None
    steps: int | None
    trained_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """An image that was not made from its sound: of the item `donor`, by the model `of` (`references`: a real one)."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["control"]
    control: Literal["shuffled", "references"]
    of: str
    donor: str


Settings = GenerationSettings | OutsideSettings | ControlSettings


def _kind_of(settings: object) -> str:
    """By which kind settings are read; a line from before there were several names none."""
    return str(settings.get("kind", "generate") if isinstance(settings, dict) else getattr(settings, "kind", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedImage:
    """One line. `image` is relative to the manifest; sounds are absolute; `model_sha256` is of the model's files.

    `model` is its absolute folder, or a hub id with the commit that was found (`you/name@COMMIT`).

    `sound_sha256` is of the bytes of `sound` and then of those in `mixed_with`.
    The image shows what is heard in `clip_seconds` from `start_sec` on.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    image: str
    sound: str
    mixed_with: tuple[str, ...]
    sound_sha256: tuple[str, ...]
    start_sec: float
    seed: int
    model: str
    model_sha256: str
    settings: Annotated[
        Annotated[GenerationSettings, Tag("generate")]
        | Annotated[OutsideSettings, Tag("outside")]
        | Annotated[ControlSettings, Tag("control")],
        Discriminator(_kind_of),
    ]


_LINE = TypeAdapter(GeneratedImage)


def read_manifest(folder: Path, *, with_images: bool = True) -> list[GeneratedImage]:
    """Read the lines of a folder that `train.generate` or `eval.baseline` filled.

    Raises:
        InputError: there is none, a line is not one of a manifest, or, `with_images`, an image is missing.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); `train.generate` and `eval.baseline` write one beside the images"
        ) from error
    rows = [_read_line(path, number, line) for number, line in enumerate(io.StringIO(text), start=1)]
    for row in rows:
        if not is_below(row.image) or (with_images and not (folder / row.image).is_file()):
            raise InputError(f"{path}: names {row.image}, which is missing; run the same `train.generate` again")
    return rows


def _read_line(path: Path, number: int, line: str) -> GeneratedImage:
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        # below `settings` the union puts the kind, which is no key
        parts = [str(part) for n, part in enumerate(first["loc"]) if not (n == 1 and first["loc"][0] == "settings")]
        key = ".".join(parts) or "line"
        raise InputError(f"{path}, line {number}: {key}: {first['msg']}; expected a line of `train.generate`") from None


def _line_of(row: GeneratedImage) -> dict[str, Any]:
    """What stands in the manifest: of `train.generate`, for `window` and without a separator as it was when there was
    no other, so that folders of before go on."""
    line = asdict(row)
    if isinstance(row.settings, GenerationSettings):
        del line["settings"]["kind"]
        if row.settings.level == "window":
            del line["settings"]["level"]
        if not row.settings.separator:
            del line["settings"]["separator"]
    return line


def write_manifest(folder: Path, rows: Sequence[GeneratedImage]) -> Path:
    """Make the manifest visible, whole."""
    path = folder / MANIFEST
    write_whole(path, "".join(f"{canonical_json(_line_of(row))}\n" for row in rows).encode())
    return path


def write_image(folder: Path, row: GeneratedImage, image: Image.Image) -> None:
    """Write the image of a line, whole, with the line's digest in it."""
    text = PngInfo()
    text.add_text(LINE_DIGEST, digest_of(_line_of(row)))
    write_whole(folder / row.image, encode_png(image, text))


def is_made(folder: Path, row: GeneratedImage) -> bool:
    """Whether the image of exactly this line is there."""
    return _line_digest(folder / row.image) == digest_of(_line_of(row))


def remove_others(folder: Path, rows: Sequence[GeneratedImage]) -> int:
    """Remove the images of other lines than these, and tell how many; what was not made here stays."""
    images = {folder / row.image for row in rows}
    others = [path for path in (folder / IMAGES).glob("*.png") if path not in images and _line_digest(path)]
    for path in others:
        path.unlink()
    return len(others)


def _line_digest(path: Path) -> str | None:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.text.get(LINE_DIGEST) if isinstance(image, PngImageFile) else None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):  # what Pillow raises of a damaged file
        return None


def encode_png(image: Image.Image, text: PngInfo | None = None) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
