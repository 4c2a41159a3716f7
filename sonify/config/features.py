"""What a training run reads: latents of the images, audio features of the scenes."""

from typing import Annotated, Literal

from pydantic import Field

from sonify.config.extractors import Device, Gpus
from sonify.config.sections import Model, Section

# What the published ASTs were trained on: 1024 frames, one every 10 ms.
AST_SAMPLE_RATE_HZ = 16_000
AST_SECONDS = 10.24


class Features(Section):
    """Which networks look and listen; `cpus` are the threads of a worker without a GPU.

    `size` is the side of the square image in pixels; `frequency` says what becomes of AST's rows of one time: their
    mean, or all of them.
    """

    vae: Model = "stabilityai/sd-vae-ft-ema"  # an AutoencoderKL or an AutoencoderTiny
    vae_revision: str | None = None
    ast: Model = "MIT/ast-finetuned-audioset-10-10-0.4593"
    ast_revision: str | None = None
    size: Annotated[int, Field(ge=64, le=2048, multiple_of=16)] = 512
    frequency: Literal["mean", "all"] = "mean"
    flip: bool = False  # also the latents of the mirrored image
    std: bool = False  # also the posterior's standard deviation
    device: Device = "auto"
    # A released model listens in float32; bfloat16 is faster. `auto` is bfloat16 on a GPU.
    dtype: Literal["auto", "bfloat16", "float32"] = "float32"
    gpus: Gpus = 1.0
    cpus: int = Field(default=1, ge=1)
    batch_size: int = Field(default=16, ge=1, le=1024)
