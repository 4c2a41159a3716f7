"""What the tests of the towers build: pictures of the golden files, and weights that are the same on every machine."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "golden"


@cache
def golden(name: str) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
    """The arrays and the facts of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays), json.loads((GOLDEN / f"{name}.json").read_text())


def golden_picture(name: str) -> Image.Image:
    """A picture of `image_preprocessing`, by the recipe that stands there."""
    match name:
        case "small":
            pixels = golden("image_preprocessing")[0]["small_uint8"]
        case "noise":
            pixels = (np.random.RandomState(3).rand(77, 101, 3) * 255).astype(np.uint8)
        case "blocks768":
            squares = (np.random.RandomState(4).rand(64, 64, 3) * 255).astype(np.uint8)
            pixels = np.kron(squares, np.ones((12, 12, 1), np.uint8))
        case _:
            raise KeyError(name)
    return Image.fromarray(pixels)


def seeded_weights(shapes: Mapping[str, tuple[int, ...]], base_seed: int) -> dict[str, Tensor]:
    """Weights by their sorted names: uniform, of unit variance through a layer, norms near one."""
    return {name: _seeded(name, shapes[name], base_seed + n) for n, name in enumerate(sorted(shapes))}


def _seeded(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    if name.endswith("running_var"):
        return 1 + 0.5 * uniform
    if name.endswith("running_mean"):
        return 0.1 * uniform
    if len(shape) < 2:
        return (1 if name.endswith("weight") else 0) + 0.1 * uniform
    return uniform * (3 / np.prod(shape[1:])) ** 0.5
