"""What puts a clip and a concept into one space."""

from typing import Annotated, Literal

from pydantic import Field

from sonify.config.extractors import Device, Gpus
from sonify.config.sections import InputPath, Model, Section, Share

# CLAP's window; of what is longer, its libraries take a part at random.
CLAP_SECONDS = 10.0


class TextEncoder(Section):
    """Compares the concept with a clip's own text, without a model."""

    kind: Literal["text"]


class ClapModel(Section):
    """What both CLAP libraries have in common; `cpus` are the threads of a worker without a GPU.

    `batch_size` texts go through the model at once, and on a GPU as many clips.
    """

    device: Device = "auto"
    gpus: Gpus = 1.0
    cpus: int = Field(default=1, ge=1)
    batch_size: int = Field(default=16, ge=1, le=1024)


class ClapEncoder(ClapModel):
    """CLAP in transformers: a hub id or a folder."""

    kind: Literal["clap"]
    model: Model = "laion/clap-htsat-unfused"
    revision: str | None = None


class LaionClapEncoder(ClapModel):
    """CLAP in its original library: a `.pt` checkpoint. Needs the extra `laion`."""

    kind: Literal["laion_clap"]
    checkpoint: InputPath
    audio_model: Literal["HTSAT-tiny", "HTSAT-base"] = "HTSAT-tiny"
    fusion: bool = False  # whether the checkpoint is one that was trained with feature fusion
    # Only the tokenizer and the shape of the text tower: a hub id or a folder.
    roberta: Model = "roberta-base"
    roberta_revision: str | None = None


class HybridEncoder(Section):
    """Both: `weight` times CLAP's cosine and the rest the text encoder's."""

    kind: Literal["hybrid"]
    audio: Annotated[ClapEncoder | LaionClapEncoder, Field(discriminator="kind")] = ClapEncoder(kind="clap")
    weight: Share = 0.7


Encoder = Annotated[TextEncoder | ClapEncoder | LaionClapEncoder | HybridEncoder, Field(discriminator="kind")]
