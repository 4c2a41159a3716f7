"""The configuration of a suite; `kind` says which reader lists it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import Field, PlainSerializer, PlainValidator

from eval.towers.config import Towers
from sonify.config.inputs import NAME, Name, Section
from sonify.config.loader import apply_override, load_settings
from sonify.config.problems import short
from sonify.config.shipped import find_config
from sonify.config.text import read_text
from sonify.errors import InputError, did_you_mean
from sonify.installed import shipped_configs
from sonify.stores import expand_user

Metric = Literal[
    "fid",
    "kid",
    "clip_fid",
    "cmmd",
    "fd_dinov2",
    "prdc",
    "inception_score",
    "ais_cosine",
    "iis_cosine",
    "ais_z",
    "iis_z",
    "ais_rank",
    "iis_rank",
    "aic",
    "clip_score",
    "r_at_k",
    "recall_all",
    "ais_peav",
    "ais_clap",
]
METRICS: tuple[Metric, ...] = Metric.__args__
Kind = TypeVar("Kind", bound=Section)


def to_local(value: Any) -> Path:
    """A file or folder of this machine, made absolute: a benchmark's media are read many times over."""
    if not isinstance(value, str | Path) or not str(value) or "://" in str(value):
        raise ValueError("expected a path on this machine")
    return expand_user(str(value)).absolute()


def to_classes(value: Any) -> Path:
    """A list of classes that comes along is named bare; a file of that name wins."""
    place = to_local(value)
    shipped = shipped_configs() / "eval" / "classes" / f"{value}.txt"
    return shipped if re.fullmatch(NAME, str(value)) and not place.exists() and shipped.is_file() else place


LocalPath = Annotated[Path, PlainValidator(to_local), PlainSerializer(str)]
ClassesPath = Annotated[Path, PlainValidator(to_classes), PlainSerializer(str)]


class ImageRules(Section):
    """Reference pictures: the centre square, brought to `side` pixels by Pillow's bicubic."""

    side: int = Field(default=512, ge=16, le=4096)


class Heard(Section):
    """What a model of short clips is given: the window that holds the frame, the first, or the whole sound."""

    seconds: float = Field(default=5.0, gt=0, le=60)
    windows: Literal["frame", "first", "all"] = "frame"


class Pool(Section):
    """Among which other items a rank is sought: all of other recordings, or only those of other labels."""

    kind: Literal["other_recordings", "other_labels"] = "other_recordings"


class SuiteConfig(Section):
    """What all kinds have in common. `others` is how many further real pictures are prepared for the floor of the
    distances; null: as many as there are items, where the list has so many."""

    name: Name
    seconds: float | None = Field(default=None, gt=0, le=600)  # of the whole sound; null: all of it
    image: ImageRules = ImageRules()
    heard: Heard = Heard()
    others: int | None = Field(default=None, ge=0)
    replace_missing: bool = False
    metrics: tuple[Metric, ...] = METRICS
    pool: Pool = Pool()
    towers: Towers = Towers()


class Media(Section):
    """Where clips lie: `pattern` is below `dir`, with the fields that the reader fills in."""

    dir: LocalPath
    pattern: str


class Confirmed(Section):
    """VGGSounder's table: only clips whose own label is of this modality, and with these flags (null: either)."""

    vggsounder: LocalPath
    modality: Literal["A", "V", "AV"] = "AV"
    static_image: bool | None = False
    voice_over: bool | None = None
    background_music: bool | None = None


class VggSound(SuiteConfig):
    """VGGSound's test list: `per_class` clips of each class (or of those in the file `classes`), one of a video."""

    kind: Literal["vggsound"]
    test_csv: LocalPath
    media: Media
    classes: ClassesPath | None = None
    per_class: int | None = Field(default=None, ge=1)
    one_clip_per_recording: bool = True
    frame: Literal["middle", "top1"] = "middle"
    top1: LocalPath | None = None  # Sound2Scene's json of best frames, for `frame: top1`
    confirmed: Confirmed | None = None


class Landscapes(SuiteConfig):
    """The landscapes of SonicDiffusion (`form: lists`) or of MM-Diffusion and MACS (`form: table`)."""

    kind: Literal["landscapes"]
    path: LocalPath
    form: Literal["lists", "table"] = "lists"
    split: Literal["train", "val"] = "val"
    table: LocalPath | None = None  # for `form: table`: event_labels<TAB>filename
    labels: LocalPath | None = None  # for `form: lists`: labels.csv


class Itw(SuiteConfig):
    """Into the Wild: every clip of `audio/`, with the middle picture of `jpg/` or all eight."""

    kind: Literal["itw"]
    path: LocalPath
    references: Literal["middle", "all"] = "middle"


class LandscapesItw(SuiteConfig):
    """The paper's column: both, `group` tells them apart."""

    kind: Literal["landscapes_itw"]
    landscapes: LocalPath
    itw: LocalPath
    labels: LocalPath | None = None


class Vegas(SuiteConfig):
    """VEGAS: `per_class` of each of its ten classes, or all."""

    kind: Literal["vegas"]
    path: LocalPath
    per_class: int | None = Field(default=None, ge=1)


class GreatestHits(SuiteConfig):
    """The Greatest Hits: one event of each video, the nearest to its middle, or all that lie two seconds apart."""

    kind: Literal["greatest_hits"]
    path: LocalPath
    split: Literal["train", "test", "all"] = "all"
    events: Literal["middle", "all"] = "middle"


class FolderSuite(SuiteConfig):
    """One's own: a CSV with `sound` and any of `id`, `image`, `label`, `caption`, `recording`, `group`, `youtube`,
    `freesound`; paths are relative to it, `;` parts several labels or images. Or a folder of sounds without one."""

    kind: Literal["folder"]
    path: LocalPath


class DemoSuite(SuiteConfig):
    """The sounds and photographs of `sonify demo`: nothing is downloaded."""

    kind: Literal["demo"]
    sounds: int = Field(default=24, ge=2)


KINDS: dict[str, type[SuiteConfig]] = {
    "vggsound": VggSound,
    "landscapes": Landscapes,
    "itw": Itw,
    "landscapes_itw": LandscapesItw,
    "vegas": Vegas,
    "greatest_hits": GreatestHits,
    "folder": FolderSuite,
    "demo": DemoSuite,
}


def without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, as recorded, that a score depends on: not where a machine keeps the corpus, and not the judges'."""
    kept = {name: value for name, value in settings.items() if name not in ("towers", "metrics")}
    return _of_no_machine(kept, KINDS.get(str(settings.get("kind")), SuiteConfig))


def _of_no_machine(settings: Mapping[str, Any], section: type[Section]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        types = set(_types_of(section.model_fields[name].annotation)) if name in section.model_fields else set()
        inner = next((each for each in types if isinstance(each, type) and issubclass(each, Section)), None)
        if not types & {Path, Media}:
            kept[name] = _of_no_machine(value, inner) if inner and isinstance(value, dict) else value
    return kept


def _types_of(annotation: Any) -> Iterator[Any]:
    """What an annotation such as `Annotated[Path, ...] | None` is put together of."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _types_of(each)
    else:
        yield annotation


def load_suite_config(path: str | Path, overrides: Sequence[str] = ()) -> SuiteConfig:
    """Read a suite's YAML file, or one that comes along by its name, with `key=value` overrides.

    Raises:
        InputError: the file, a key, a type or a path is wrong.
    """
    return load_kind(find_config(path, "eval"), overrides, KINDS)


def load_kind(file: Path, overrides: Sequence[str], kinds: Mapping[str, type[Kind]], usual: str | None = None) -> Kind:
    """Read a YAML file whose `kind` says which sections it has; it is read first, and all else checked against them.

    `usual` is the kind of a file that names none; None: each must.

    Raises:
        InputError: as `load_settings`.
    """
    values = read_text(file).values
    for override in overrides:
        if override.startswith("kind="):
            apply_override(values, override)
    known = ", ".join(kinds)
    kind = values.get("kind", usual)
    if "kind" not in values and usual is None:
        hint = "; it is a file of towers, and no suite" if set(values) == {"towers"} else ""
        raise InputError(f"config {file}: kind: missing, must be set to one of {known}{hint}")
    if not isinstance(kind, str) or kind not in kinds:
        hint = did_you_mean(str(kind), kinds)
        raise InputError(f"config {file}: kind: expected one of {known}, found {short(kind)}{hint}")
    return load_settings(file, overrides, kinds[kind])
