"""What the parts of `benchmarks.on_gpu` share: how large all is, in full and tiny."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from sonify.errors import InputError
from train.config import Transformer
from train.device import wait_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large everything is; mappings are arguments of the libraries' own configurations.

    `per_device` are the images of a micro-batch that are tried, the first that fits counts; `answer` is in tokens.
    """

    model: Transformer = field(default_factory=Transformer)
    per_device: tuple[int, ...] = (40, 32, 20, 16, 8)
    condition_vectors: int = 50
    steps: int = 8
    pool: int = 500_000
    concepts: int = 2048
    pixels: int = 512
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    ast: Mapping[str, Any] = field(default_factory=dict)
    clap: Mapping[str, Any] = field(default_factory=dict)
    llava: Mapping[str, Any] = field(default_factory=dict)
    answer: int = 100
    seconds: float = 3.0  # that a rate is measured for


FULL = Sizes(
    llava={  # llava-hf/llava-1.5-7b-hf
        "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "image_token_index": 32000,
        "image_seq_length": 576,
    }
)
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY = Sizes(
    model=Transformer(layers=2, heads=4, head_dim=32, sample_size=16),
    per_device=(4, 2),
    steps=2,
    pool=20_000,
    concepts=64,
    pixels=64,
    vae_channels=(32, 32, 32, 32),
    ast=SMALL,
    clap={
        "text_config": SMALL | {"vocab_size": 64, "projection_dim": 32},
        "audio_config": {
            "patch_embeds_hidden_size": 8,
            "hidden_size": 32,
            "depths": [1, 1, 1],
            "num_attention_heads": [1, 2, 4],
            "num_hidden_layers": 3,
            "patch_size": 8,
            "patch_stride": [8, 8],
            "projection_dim": 32,
        },
        "projection_dim": 32,
    },
    llava={
        "text_config": SMALL | {"model_type": "llama", "vocab_size": 64, "num_key_value_heads": 2},
        "vision_config": SMALL | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
        "image_token_index": 60,
        "image_seq_length": 4,
    },
    answer=4,
    seconds=0.2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where a part works: on a device, with a folder for what it writes."""

    device: torch.device
    sizes: Sizes
    folder: Path


def open_room(device: Literal["cpu", "cuda"], tiny: bool, folder: Path) -> Room:
    """The room of this process.

    Raises:
        InputError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: torch finds no GPU here; `--device cpu --tiny` tries the code without one")
    return Room(device=torch.device(device), sizes=TINY if tiny else FULL, folder=folder)


def repeat(work: Callable[[], object], room: Room) -> float:
    """The median seconds of some work, from its second time on."""
    taken: list[float] = []
    end = float("inf")
    while len(taken) < 3 or time.perf_counter() < end:
        wait_for(room.device)
        started = time.perf_counter()
        work()
        wait_for(room.device)
        taken.append(time.perf_counter() - started)
        if len(taken) == 1:  # loads libraries and plans
            end = time.perf_counter() + room.sizes.seconds
    return statistics.median(taken[1:])
