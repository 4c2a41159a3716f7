"""What the tests of the towers build: pictures of the golden files, and weights that are the same on every machine."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

QUICK = "vit_base_patch32_clip_quickgelu_224"
# Of a block of transformers' CLIP, in timm's words.
BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "self_attn.out_proj": "attn.proj",
}
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


def timm_names(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The picture's tower of transformers' CLIP under timm's names, where query, key and value are one tensor."""
    front, back = "vision_model.embeddings.", "vision_model.post_layernorm"
    head = published["visual_projection.weight"]
    made = {
        "cls_token": published[front + "class_embedding"][None, None],
        "patch_embed.proj.weight": published[front + "patch_embedding.weight"],
        "pos_embed": published[front + "position_embedding.weight"][None],
        "head.weight": head,
        "head.bias": torch.zeros(len(head)),
    }
    for part in ("weight", "bias"):
        made[f"norm_pre.{part}"] = published[f"vision_model.pre_layrnorm.{part}"]
        made[f"norm.{part}"] = published[f"{back}.{part}"]
        for n in range(sum(name.endswith("layer_norm1.bias") for name in published if name.startswith("vision_"))):
            layer = f"vision_model.encoder.layers.{n}"
            attention = [published[f"{layer}.self_attn.{one}_proj.{part}"] for one in "qkv"]
            made[f"blocks.{n}.attn.qkv.{part}"] = torch.cat(attention)
            for name, timms in BLOCK.items():
                made[f"blocks.{n}.{timms}.{part}"] = published[f"{layer}.{name}.{part}"]
    return made


def timm_folder(folder: Path, tensors: Mapping[str, Tensor], **settings: Any) -> Path:
    """The folder of a model of timm's, as its tools write it."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"architecture": QUICK, "num_classes": len(tensors["head.bias"])} | settings
    (folder / "config.json").write_text(json.dumps(described))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
