"""What is done to a picture before a tower looks at it: each way a function of its own, named as reports name it.

A resize is part of a metric: FID changes by more than models differ when the filter, the grid or the rounding does.

H W  of the picture that goes into the network
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision import transforms
from torchvision.transforms import InterpolationMode

# openai/CLIP, clip.py; ImageNet's as in torchvision
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_SIDE = 299


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """A way to make (3, H, W) float32 of an RGB picture; `id` says all that is done."""

    id: str
    prepare: Callable[[Image.Image], Tensor]


def tf1_bilinear_299(image: Image.Image) -> Tensor:
    """As the graph of FID resizes by itself: bilinear between the nearest four, on a grid that begins at the corner.

    Source: torch-fidelity, whose resize gives TensorFlow 1's numbers.
    """
    pixels_1CHW = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None]
    side = (INCEPTION_SIDE, INCEPTION_SIDE)
    return (interpolate_bilinear_2d_like_tensorflow1x(pixels_1CHW, size=side, align_corners=False)[0] - 128) / 128


def clean_299(image: Image.Image) -> Tensor:
    """As clean-fid: Pillow's bicubic on each channel as floats, antialiased and never rounded.

    Source: Parmar et al., On Aliased Resizing and Surprising Subtleties in GAN Evaluation.
    """
    channels = (Image.fromarray(np.asarray(band, np.float32)) for band in image.split())
    side = (INCEPTION_SIDE, INCEPTION_SIDE)
    resized = np.stack([np.asarray(channel.resize(side, Image.Resampling.BICUBIC)) for channel in channels])
    return (torch.from_numpy(resized).clamp(0, 255) - 128) / 128


TF1_299 = Preparation(id="tf1-bilinear-299 corner-grid no-antialias (x-128)/128", prepare=tf1_bilinear_299)
CLEAN_299 = Preparation(id="pil-bicubic-299 float per-channel clip (x-128)/128", prepare=clean_299)


def clip_square(side: int) -> Preparation:
    """OpenAI's own: the shorter side to `side` by Pillow's bicubic, then the centre (timm's crop_pct of 1)."""
    steps = (transforms.Resize(side, InterpolationMode.BICUBIC), transforms.CenterCrop(side))
    return Preparation(id=f"pil-bicubic-{side} centre-crop clip-norm", prepare=_normalised(steps, CLIP_MEAN, CLIP_STD))


def cmmd_square(side: int) -> Preparation:
    """CMMD's: the centre square first, then Pillow's bicubic to `side`."""

    def prepare(image: Image.Image) -> Tensor:
        shorter = min(image.size)
        left, top = ((length - shorter) // 2 for length in image.size)
        return steps(image.crop((left, top, left + shorter, top + shorter)))

    resize = transforms.Resize((side, side), InterpolationMode.BICUBIC)
    steps = _normalised((resize,), CLIP_MEAN, CLIP_STD)
    return Preparation(id=f"centre-square pil-bicubic-{side} clip-norm", prepare=prepare)


def stretched(side: int) -> Preparation:
    """dgm-eval's for DINOv2: both sides to `side` by Pillow's bicubic, whatever they were."""
    resize = transforms.Resize((side, side), InterpolationMode.BICUBIC)
    prepare = _normalised((resize,), IMAGENET_MEAN, IMAGENET_STD)
    return Preparation(id=f"pil-bicubic-{side}x{side} stretched imagenet-norm", prepare=prepare)


def shorter_side(side: int) -> Preparation:
    """SSCD's `small`: the shorter side to `side` by Pillow's bilinear, nothing cropped."""
    prepare = _normalised((transforms.Resize(side, InterpolationMode.BILINEAR),), IMAGENET_MEAN, IMAGENET_STD)
    return Preparation(id=f"pil-bilinear-{side} shorter-side imagenet-norm", prepare=prepare)


def _normalised(
    steps: tuple[Callable[[Image.Image], Image.Image], ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Image.Image], Tensor]:
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
