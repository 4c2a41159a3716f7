"""Who says what could be heard in an image: captions, or a vision-language model behind one of three backends."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from sonify.config.sections import InputPath, Model, Name, Section

Device = Literal["auto", "cpu", "cuda"]
Gpus = Annotated[float, Field(gt=0, le=64)]
# Serving engines for which the command is known; see `sonify.vlm.server`.
Engines = Literal["vllm", "sglang", "lmdeploy", "transformers"]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$")]


def check_url(url: str) -> str:
    """Refuse what is no address of a server, or holds a password."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and ".." not in parts.hostname
    except ValueError:
        whole = False
    if not whole or re.search(r"[@?#\s]", url):
        raise ValueError("expected an address such as http://127.0.0.1:8000/v1, without password, query or fragment")
    return url


class CaptionsExtractor(Section):
    """Finds AudioSet-ontology sounds in captions; `file` is a captions table instead of the images' own."""

    kind: Literal["captions"]
    name: Name = "captions"
    file: InputPath | None = None


class Vlm(Section):
    """What every backend of a vision-language model has in common.

    `image_size` is the shorter side in pixels that images are brought down to before the model sees them.
    """

    kind: Literal["vlm"]
    name: Name
    model: Model
    max_new_tokens: int = Field(default=512, ge=1, le=8192)
    image_size: int = Field(default=672, ge=16, le=4096)


class TransformersVlm(Vlm):
    """A model in the worker itself, which asks for `gpus` where it runs on a GPU, and always for `cpus`."""

    backend: Literal["transformers"]
    revision: str | None = None
    device: Device = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    gpus: float = Field(default=1.0, gt=0, le=1)  # more than one GPU takes a serving engine
    cpus: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1, le=1024)


class RemoteVlm(Vlm):
    """What the backends behind an OpenAI-compatible server have in common; times are for one request."""

    concurrency: int = Field(default=32, ge=1, le=1024)
    timeout_sec: float = Field(default=120.0, gt=0, le=3600)
    max_wait_sec: float = Field(
        default=600.0, gt=0, le=7 * 86400
    )  # how long one question is tried again before the unit is left


class EndpointVlm(RemoteVlm):
    """A server that runs already, such as `http://127.0.0.1:8000/v1`; its key is named by environment variable."""

    backend: Literal["endpoint"]
    url: Annotated[str, AfterValidator(check_url)]
    api_key_env: EnvironmentName | None = None


class ServerVlm(RemoteVlm):
    """A serving engine that each worker starts; `command` is a known engine's name or an argument list.

    In the list `{model}`, `{port}` and `{revision}` are filled in.
    """

    backend: Literal["server"]
    revision: str | None = None
    command: Engines | tuple[str, ...] = Field(min_length=1)
    environment: dict[EnvironmentName, str] = Field(default_factory=dict)
    gpus: float = Field(default=1.0, ge=0, le=64)
    cpus: int = Field(default=1, ge=1)
    start_timeout_sec: float = Field(default=1800.0, gt=0)


VlmExtractor = Annotated[TransformersVlm | EndpointVlm | ServerVlm, Field(discriminator="backend")]
Extractor = Annotated[CaptionsExtractor | VlmExtractor, Field(discriminator="kind")]
