"""What every section of the configuration is made of."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator
from upath import UPath

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"

Place = Path | UPath  # a file or folder on this machine, or a remote one (`s3://`, `gs://`, `hf://`)


def to_place(value: Any) -> Place:
    """Local places are made absolute, so that a run goes on from any directory."""
    if not isinstance(value, str | Path | UPath) or not str(value):
        raise ValueError("expected a path or a URL")
    text = str(value)
    if "://" in text:
        return UPath(text)
    return Path(text).expanduser().absolute()


InputPath = Annotated[Place, PlainValidator(to_place), PlainSerializer(str)]
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
