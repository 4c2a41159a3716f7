"""The configuration: frozen, typed, refusing what it does not know.

`load_config` reads YAML and bare `a.b=value` overrides, checks everything that can be checked without work, and
raises `InputError` with one line that names the key, what was expected and what was found. Relative paths are
relative to the directory the command runs in.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sonify.errors import InputError

KINDS = frozenset({"folder", "webdataset", "esc50"})
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
# Absolute, so that a run goes on from any directory.
InputPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageSet(Section):
    """What every kind of image set has in common."""

    path: InputPath
    sample: int | None = Field(default=None, ge=1)
    exclude: InputPath | None = None
    validation: Share = 0.01


class FolderImages(ImageSet):
    """Images in a folder, recursively; captions beside them or in a table."""

    kind: Literal["folder"]
    shard_size: int = Field(default=1000, ge=1)


class WebDatasetImages(ImageSet):
    """Tar archives of images with `.txt` or `.json` captions; each archive is a unit."""

    kind: Literal["webdataset"]


Images = Annotated[FolderImages | WebDatasetImages, Field(discriminator="kind")]


class FolderSounds(Section):
    """Sounds in a folder, recursively; `metadata.csv` has file and any of text, licence, attribution, recording."""

    kind: Literal["folder"]
    path: InputPath
    name: Name = "folder"


class Esc50Sounds(Section):
    """The ESC-50 folder, with `meta/esc50.csv` and `audio/`."""

    kind: Literal["esc50"]
    path: InputPath
    name: Name = "esc50"


Sounds = Annotated[FolderSounds | Esc50Sounds, Field(discriminator="kind")]


class Audio(Section):
    """The pool of recordings."""

    sources: tuple[Sounds, ...] = Field(min_length=1)
    clip_seconds: float = Field(default=5.0, ge=1.0, le=60.0)
    sample_rate: int = Field(default=16000, ge=8000, le=48000)
    exclude: InputPath | None = None
    validation: Share = 0.02

    @model_validator(mode="after")
    def _names_differ(self) -> "Audio":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources are named {max(names, key=names.count)!r}: give each its own `name`")
        return self


class CaptionsExtractor(Section):
    """Finds AudioSet-ontology sounds in captions; `file` is a captions table instead of the images' own."""

    kind: Literal["captions"]
    name: Name = "captions"
    file: InputPath | None = None


Extractor = CaptionsExtractor


class Concepts(Section):
    """Who says what could be heard in an image."""

    extractors: tuple[Extractor, ...] = Field(default=(CaptionsExtractor(kind="captions"),), min_length=1)
    discard_words: tuple[str, ...] = ("logo", "icon", "emblem", "symbol", "trademark", "sign")
    discard_match: Literal["word", "substring"] = "word"
    max_concepts: int = Field(default=5, ge=1, le=100)
    check: Literal[False] = False

    @model_validator(mode="after")
    def _names_differ(self) -> "Concepts":
        names = [extractor.name for extractor in self.extractors]
        if len(set(names)) < len(names):
            raise ValueError(f"two extractors are named {max(names, key=names.count)!r}: give each its own `name`")
        return self


class TextEncoder(Section):
    """Compares the concept with a clip's own text, without a model."""

    kind: Literal["text"]


class Retrieval(Section):
    """How a recording is found for a concept; the rules are in `sonify.retrieval.candidates`."""

    encoder: TextEncoder = TextEncoder(kind="text")
    query: Literal["description", "concept"] = "description"
    top_k: int = Field(default=100, ge=1)
    signed_sqrt: bool = True
    margin: Share = 0.8
    min_cosine: float = Field(default=0.0, ge=-1, le=1)
    hubness: Literal["none", "querybank"] = "none"
    draw: Literal["proportional", "uniform", "softmax"] = "proportional"
    temperature: float = Field(default=0.1, gt=0)
    draws: int = Field(default=1, ge=1, le=100)


class Mix(Section):
    """Loudness of each source (LUFS, drawn uniformly between the two) and the ceiling of the mix (dBFS)."""

    lufs: tuple[float, float] = (-32.0, -28.0)
    peak_dbfs: float = Field(default=-1.0, ge=-60, le=0)
    max_gain_db: float = Field(default=30.0, ge=0)
    prominence: None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Mix":
        low, high = self.lufs
        if not -70.0 < low <= high <= 0.0:
            raise ValueError(f"lufs must be [low, high] between -70 and 0, found [{low}, {high}]")
        return self


class RenderSettings(Section):
    """What is written: images as they are or with a shorter side of that many pixels; sound as FLAC."""

    image: Literal["original"] | Annotated[int, Field(ge=16)] = "original"
    audio: Literal["flac"] = "flac"
    scenes: Literal["all", "any"] = "all"


class Engine(Section):
    """Where the work runs. `workers: null` is one for each CPU."""

    kind: Literal["local", "ray"] = "ray"
    address: str | None = None
    unauthenticated: bool = False
    workers: int | None = Field(default=None, ge=1)
    max_fault_ratio: Share = 0.05


class Config(Section):
    """A whole run."""

    run_dir: Path
    seed: int = 0
    images: Images
    audio: Audio
    concepts: Concepts = Concepts()
    retrieval: Retrieval = Retrieval()
    mix: Mix = Mix()
    render: RenderSettings = RenderSettings()
    engine: Engine = Engine()

    @model_validator(mode="after")
    def _validation_needs_recordings(self) -> "Config":
        if self.images.validation > 0 and self.audio.validation == 0:
            raise ValueError(
                "images.validation is above 0 but audio.validation is 0: validation images have no recordings to draw"
                " from; set both above 0, or both to 0"
            )
        return self

    @property
    def scenes(self) -> tuple[str, ...]:
        """The names of the scenes that every image of the run gets."""
        draws = range(self.retrieval.draws)
        names = [extractor.name for extractor in self.concepts.extractors]
        if self.render.scenes == "any":
            return tuple(f"scene-{n}" for n in range(len(names) * len(draws)))
        return tuple(name if len(draws) == 1 else f"{name}-{draw}" for name in names for draw in draws)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=value` overrides and check the result.

    Raises:
        InputError: the file, a key, a type or a path is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config {path}: cannot be read ({error.strerror}); --config takes a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"config {path}: not YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(raw, dict):
        raise InputError(f"config {path}: expected a mapping of sections, found {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    return make_config(raw, where=f"config {path}")


def make_config(raw: Mapping[str, Any], where: str = "config", check_paths: bool = True) -> Config:
    """Check a plain mapping, as a notebook would write it; `check_paths` asks that the input is there.

    Raises:
        InputError: a key, a type or a path is wrong.
    """
    try:
        # through JSON, whose types are YAML's: lists stand for tuples there, and nothing else is bent
        config = Config.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise InputError(f"{where}: {'; '.join(_describe(e) for e in error.errors()[:3])}") from error
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not a mapping of sections: {error}") from error
    if check_paths:
        _check_paths(config, where)
    return config


def _check_paths(config: Config, where: str) -> None:
    for key, path, is_list in _paths(config):
        try:
            present = path.is_file() if is_list else path.exists()
        except (OSError, ValueError) as error:
            raise InputError(f"{where}: {key}: not a path: {_short(path)}") from error
        if not present:
            raise InputError(f"{where}: {key}: no such {'file' if is_list else 'file or folder'}: {_short(path)}")
        run_dir = config.run_dir.absolute()
        if not is_list and path in (run_dir, *run_dir.parents):
            raise InputError(f"{where}: run_dir: {run_dir} lies inside {key}: the run would read its own output")


def _paths(config: Config) -> list[tuple[str, Path, bool]]:
    """The input paths that are set: key, path, and whether it is a list's file."""
    paths = [
        ("images.path", config.images.path, False),
        ("images.exclude", config.images.exclude, True),
        ("audio.exclude", config.audio.exclude, True),
        *((f"audio.sources.{n}.path", source.path, False) for n, source in enumerate(config.audio.sources)),
        *((f"concepts.extractors.{n}.file", e.file, True) for n, e in enumerate(config.concepts.extractors)),
    ]
    return [(key, path, is_list) for key, path, is_list in paths if path is not None]


def _short(value: object) -> str:
    """A value as a message shows it: untrusted, so not longer than a line."""
    text = repr(value) if not isinstance(value, Path) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"override {override!r}: expected key=value, such as mix.lufs=[-34,-30]")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"override {_short(override)}: the value is not YAML") from error
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    child = node[_index(node, part, override)] if isinstance(node, list) else node.setdefault(part, {})
    if child is None and isinstance(node, dict):
        child = node[part] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"override {override!r}: {part!r} is {child!r}, not a section")
    return child


def _index(node: list[Any], part: str, override: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(node):
        raise InputError(f"override {override!r}: expected a position from 0 to {len(node) - 1}, found {part!r}")
    return int(part)


def _describe(error: Any) -> str:
    # pydantic puts the branch of a union into the path (`images.folder.x`, `image.literal['original']`)
    *parents, last = [str(part) for part in error["loc"]] or ["config"]
    branches = [part for part in parents if part not in KINDS and not re.search(r"[\[-]", part)]
    is_branch = error["type"] != "extra_forbidden" and re.search(r"[\[-]", last)
    key = ".".join(branches if is_branch else [*branches, last]) or "config"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key; check the spelling"
    if error["type"] == "missing":
        return f"{key}: missing, must be set"
    found = "" if error["type"] == "value_error" else f", found {_short(error['input'])}"
    return f"{key}: {message[0].lower()}{message[1:]}{found}"
