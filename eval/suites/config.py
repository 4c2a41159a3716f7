"""The configuration of a suite; `kind` says which reader lists it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator

from eval.towers.config import Towers
from sonify.config.inputs import NAME, InputPath, Name, Section
from sonify.installed import shipped_configs
from sonify.stores import Place, to_place

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
    "recall",
    "recall_all",
    "ais_peav",
    "ais_clap",
]
METRICS: tuple[Metric, ...] = Metric.__args__


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

    dir: InputPath
    pattern: str


class Confirmed(Section):
    """VGGSounder's table: only clips whose own label is of this modality, and with these flags (null: either)."""

    vggsounder: InputPath
    modality: Literal["A", "V", "AV"] = "AV"
    static_image: bool | None = False
    voice_over: bool | None = None
    background_music: bool | None = None


def to_classes(value: Any) -> Place:
    """A list of classes that comes along is named bare; a file of that name wins."""
    if isinstance(value, str) and re.fullmatch(NAME, value) and not Path(value).exists():
        shipped = shipped_configs() / "eval" / "classes" / f"{value}.txt"
        return shipped if shipped.is_file() else to_place(value)
    return to_place(value)


class VggSound(SuiteConfig):
    """VGGSound's test list: `per_class` clips of each class (or of those in the file `classes`), one of a video."""

    kind: Literal["vggsound"]
    test_csv: InputPath
    media: Media
    classes: Annotated[Place, PlainValidator(to_classes), PlainSerializer(str)] | None = None
    per_class: int | None = Field(default=None, ge=1)
    one_clip_per_recording: bool = True
    frame: Literal["middle", "top1"] = "middle"
    top1: InputPath | None = None  # Sound2Scene's json of best frames, for `frame: top1`
    confirmed: Confirmed | None = None


class Landscapes(SuiteConfig):
    """The landscapes of SonicDiffusion (`form: lists`) or of MM-Diffusion and MACS (`form: table`)."""

    kind: Literal["landscapes"]
    path: InputPath
    form: Literal["lists", "table"] = "lists"
    split: Literal["train", "val"] = "val"
    table: InputPath | None = None  # for `form: table`: event_labels<TAB>filename
    labels: InputPath | None = None  # for `form: lists`: labels.csv


class Itw(SuiteConfig):
    """Into the Wild: every clip of `audio/`, with the middle picture of `jpg/` or all eight."""

    kind: Literal["itw"]
    path: InputPath
    references: Literal["middle", "all"] = "middle"


class LandscapesItw(SuiteConfig):
    """The paper's column: both, `group` tells them apart."""

    kind: Literal["landscapes_itw"]
    landscapes: InputPath
    itw: InputPath
    labels: InputPath | None = None


class Vegas(SuiteConfig):
    """VEGAS: `per_class` of each of its ten classes, or all."""

    kind: Literal["vegas"]
    path: InputPath
    per_class: int | None = Field(default=None, ge=1)


class GreatestHits(SuiteConfig):
    """The Greatest Hits: one event of each video, the nearest to its middle, or all that lie two seconds apart."""

    kind: Literal["greatest_hits"]
    path: InputPath
    split: Literal["train", "test", "all"] = "all"
    events: Literal["middle", "all"] = "middle"


class FolderSuite(SuiteConfig):
    """One's own: a CSV with `sound` and any of `id`, `image`, `label`, `caption`, `recording`, `group`, `youtube`,
    `freesound`; paths are relative to it, `;` parts several labels or images. Or a folder of sounds without one."""

    kind: Literal["folder"]
    path: InputPath


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


class _Kind(Section):
    """The discriminator alone, so that a wrong one is named with those that are known."""

    kind: Annotated[str, Field(min_length=1)]


def load_suite_config(path: Path, overrides: tuple[str, ...] = ()) -> SuiteConfig:
    """Read a suite's YAML file, or one that comes along by its name, with `key=value` overrides.

    Raises:
        InputError: the file, a key, a type or a path is wrong.
    """
    raise NotImplementedError
