"""What every section of the configuration is made of."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator
from upath import UPath

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"

STORES = ("s3", "gs", "hf", "memory")
WRITABLE_STORES = ("s3", "gs")
Place = Path | UPath  # a file or folder on this machine, or a remote one (`s3://`, `gs://`, `hf://`)


def to_place(value: Any) -> Place:
    """Local places are made absolute, so that a run goes on from any directory."""
    if not isinstance(value, str | Path | UPath) or not str(value):
        raise ValueError("expected a path or a URL")
    text = str(value).removeprefix("file://")
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme and scheme not in STORES:
        raise ValueError(f"expected a path or one of {', '.join(f'{name}://' for name in STORES)}")
    if scheme:
        _check_no_password(text)
        return UPath(text)
    return Path(text).expanduser().absolute()


def to_run_dir(value: Any) -> Place:
    """Where a run writes: a path as it is given, or a folder of a store that knows how to create only if absent."""
    if not isinstance(value, str | Path | UPath) or not str(value):
        raise ValueError("expected a path or a URL")
    text = str(value).removeprefix("file://")
    if "://" not in text:
        return Path(text).expanduser()
    if text.partition("://")[0] not in WRITABLE_STORES:
        raise ValueError(f"expected a path or one of {', '.join(f'{name}://' for name in WRITABLE_STORES)}")
    _check_no_password(text)
    # other processes write there at the same time: what was listed a moment ago may be wrong
    return UPath(text.rstrip("/"), use_listings_cache=False)


def _check_no_password(url: str) -> None:
    """What stands in a configuration is written into the run and shown in messages."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("expected a URL without user or password; credentials come from the environment")


def to_model(value: str) -> str:
    """A hub id stays as it is; a folder is made absolute, since workers run elsewhere."""
    folder = Path(value).expanduser()
    return str(folder.absolute()) if folder.is_dir() else value


InputPath = Annotated[Place, PlainValidator(to_place), PlainSerializer(str)]
RunDir = Annotated[Place, PlainValidator(to_run_dir), PlainSerializer(str)]
Model = Annotated[str, Field(min_length=1), AfterValidator(to_model)]  # a hub id or a folder
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
