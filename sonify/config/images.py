"""The kinds of image sets."""

from typing import Annotated, Literal

from pydantic import Field

from sonify.config.sections import InputPath, Section, Share


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


class Sa1bImages(ImageSet):
    """SA-1B's archives of `sa_<id>.jpg` and `sa_<id>.json`; each archive is a unit."""

    kind: Literal["sa1b"]


class ParquetImages(ImageSet):
    """Parquet files with a Hugging Face image column (`bytes` or `path`); each file is a unit."""

    kind: Literal["parquet"]
    image_column: str = "image"
    caption_column: str | None = None


Images = Annotated[FolderImages | WebDatasetImages | Sa1bImages | ParquetImages, Field(discriminator="kind")]
