"""Which networks judge: each a section of `towers:` in a suite's configuration or in a file of its own.

null leaves a tower out; the metrics that need it then have no value, and say so.
"""

from typing import Annotated, Literal

from pydantic import Field

from sonify.config.inputs import InputPath, Model, Section

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Random(Section):
    """Vectors by a seeded random projection: a stand-in that needs no weights, for trying the machinery."""

    kind: Literal["random"]
    width: int = Field(default=64, ge=2, le=4096)
    seed: int = Field(default=0, ge=0)


class Inception(Section):
    """FID's own Inception (2015-12-05): safetensors that `eval.convert_weights` made of the published file."""

    kind: Literal["inception"]
    weights: InputPath
    sha256: Sha256 | None = None  # of the file, asked for and checked


class Clip(Section):
    """OpenAI's CLIP: the picture's tower by timm, the text's by transformers."""

    kind: Literal["clip"]
    model: Model
    revision: str | None = None
    text: Model | None = None
    text_revision: str | None = None


class Dinov2(Section):
    """DINOv2 by transformers."""

    kind: Literal["dinov2"]
    model: Model = "facebook/dinov2-large"
    revision: str | None = None


class Sscd(Section):
    """SSCD, the detector of copies: its published TorchScript file."""

    kind: Literal["sscd"]
    weights: InputPath
    sha256: Sha256 | None = None


class Wav2Clip(Section):
    """Wav2CLIP: safetensors that `eval.convert_weights` made of the published file."""

    kind: Literal["wav2clip"]
    weights: InputPath
    sha256: Sha256 | None = None


class Clap(Section):
    """CLAP by transformers, for the bridge over labels."""

    kind: Literal["clap"]
    model: Model = "laion/clap-htsat-unfused"
    revision: str | None = None


class PeAv(Section):
    """Perception Encoder Audio-Visual by transformers."""

    kind: Literal["peav"]
    model: Model = "facebook/pe-av-small"
    revision: str | None = None


class Towers(Section):
    """The networks by what they are for, all off by default; the shipped `configs/eval/towers.yaml` has them all."""

    inception: Annotated[Inception | Random, Field(discriminator="kind")] | None = None
    clip_b32: Annotated[Clip | Random, Field(discriminator="kind")] | None = None
    clip_l14: Annotated[Clip | Random, Field(discriminator="kind")] | None = None
    clip_l14_336: Annotated[Clip | Random, Field(discriminator="kind")] | None = None
    dinov2: Annotated[Dinov2 | Random, Field(discriminator="kind")] | None = None
    sscd: Annotated[Sscd | Random, Field(discriminator="kind")] | None = None
    wav2clip: Annotated[Wav2Clip | Random, Field(discriminator="kind")] | None = None
    clap: Annotated[Clap | Random, Field(discriminator="kind")] | None = None
    peav: Annotated[PeAv | Random, Field(discriminator="kind")] | None = None
