"""What a configuration names of the world: places, names, image sets and collections of sounds.

`Section`, of which every part of a configuration is one, is frozen and refuses what it does not know.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from sonify.stores import Place, expand_user, to_place, to_run_dir

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


def to_model(value: str) -> str:
    """A hub id stays as it is; a folder is made absolute, since workers run elsewhere."""
    folder = expand_user(value)
    try:
        return str(folder.absolute()) if folder.is_dir() else value
    except OSError as error:
        raise ValueError(f"expected a hub id or a folder ({error.strerror})") from error


InputPath = Annotated[Place, PlainValidator(to_place), PlainSerializer(str)]
RunDir = Annotated[Place, PlainValidator(to_run_dir), PlainSerializer(str)]
Model = Annotated[str, Field(min_length=1), AfterValidator(to_model)]  # a hub id or a folder
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageSet(Section):
    """What every kind of image set has in common; `heif` takes .heic and its like too, with the extra `heif`."""

    path: InputPath
    sample: int | None = Field(default=None, ge=1)
    exclude: InputPath | None = None
    validation: Share = 0.01
    heif: bool = False


class FolderImages(ImageSet):
    """Images in a folder, recursively; captions beside them or in a table."""

    kind: Literal["folder"]
    shard_size: int = Field(default=1000, ge=1)


class WebDatasetImages(ImageSet):
    """Tar archives of images with `.txt` or `.json` captions; each archive is a unit."""

    kind: Literal["webdataset"]


class Sa1bImages(ImageSet):
    """SA-1B's archives of `sa_<id>.jpg` and `sa_<id>.json`; each archive is a unit."""

    kind: Literal["sa1b"]


class ParquetImages(ImageSet):
    """Parquet files with a Hugging Face image column (`bytes` or `path`); each file is a unit."""

    kind: Literal["parquet"]
    image_column: str = "image"
    caption_column: str | None = None


Images = Annotated[FolderImages | WebDatasetImages | Sa1bImages | ParquetImages, Field(discriminator="kind")]


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


class AudioSetSounds(Section):
    """AudioSet: a segment list, the class labels, and a folder of sounds (or tars of them) named by YouTube id.

    Segments without a file are counted as `missing`; so are rows of the other corpora that come with a table.
    """

    kind: Literal["audioset"]
    path: InputPath = Field(description="a folder of sounds, or of tars of them, named by YouTube id")
    segments: InputPath = Field(description="the list of segments, such as balanced_train_segments.csv")
    labels: InputPath = Field(description="class_labels_indices.csv")
    name: Name = "audioset"


class Fsd50kSounds(Section):
    """The FSD50K folder, as its archives unpack; `dev` is the part that is not for evaluation."""

    kind: Literal["fsd50k"]
    path: InputPath
    part: Literal["dev", "eval", "both"] = "dev"
    name: Name = "fsd50k"


class BbcSounds(Section):
    """BBC sound effects: WAV files in a folder, and `BBCSoundEffects.csv` there or elsewhere."""

    kind: Literal["bbc"]
    path: InputPath
    table: InputPath | None = Field(default=None, description="BBCSoundEffects.csv")
    name: Name = "bbc"


class WebDatasetSounds(Section):
    """Tar archives of sounds with a `.json` or `.txt` beside each (LAION-Audio).

    `licence` is that of recordings whose JSON names none.
    """

    kind: Literal["webdataset"]
    path: InputPath
    name: Name = "webdataset"
    licence: str = "unknown"


class ParquetSounds(Section):
    """Parquet files with a Hugging Face audio column (`bytes` or `path`) and a text column (WavCaps, AudioCaps).

    `licence` is that of rows without one in a column of that name.
    """

    kind: Literal["parquet"]
    path: InputPath
    audio_column: str = "audio"
    text_column: str = "text"
    name: Name = "parquet"
    licence: str = "unknown"


Sounds = Annotated[
    FolderSounds | Esc50Sounds | AudioSetSounds | Fsd50kSounds | BbcSounds | WebDatasetSounds | ParquetSounds,
    Field(discriminator="kind"),
]
