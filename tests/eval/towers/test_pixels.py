from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from eval.towers import pixels
from eval.towers.pixels import Preparation
from sonify.io.write import sha256_of
from tests.eval.towers.built import golden, golden_picture

PICTURES = ("small", "noise", "blocks768")
EVERY = 23  # of the rows and columns of a golden picture one is kept
GREY_LEVELS = 1e-3  # of 255
CLIP = pixels.clip_square(224)
CMMD = pixels.cmmd_square(336)
DINOV2 = pixels.stretched(224)
STEP = 1 / 255 / 0.26  # of one grey level after CLIP's normalisation


def grey(prepared: torch.Tensor) -> np.ndarray:
    """What went into (x - 128) / 128."""
    return (prepared * 128 + 128).numpy()


def unit(prepared: torch.Tensor) -> np.ndarray:
    """What was normalised as CLIP's."""
    mean, std = torch.tensor(pixels.CLIP_MEAN), torch.tensor(pixels.CLIP_STD)
    return (prepared.permute(1, 2, 0) * std + mean).numpy()


def tf1(image: Image.Image) -> np.ndarray:
    return grey(pixels.TF1_299.prepare(image))


def clean(image: Image.Image) -> np.ndarray:
    return grey(pixels.CLEAN_299.prepare(image)).transpose(1, 2, 0)


def clip(image: Image.Image) -> np.ndarray:
    return CLIP.prepare(image).numpy()


def cmmd(image: Image.Image) -> np.ndarray:
    return unit(CMMD.prepare(image))


def dinov2(image: Image.Image) -> np.ndarray:
    return DINOV2.prepare(image).numpy()


WAYS: dict[str, tuple[Callable[[Image.Image], np.ndarray], float]] = {
    "torch_fidelity_tf1_299_chw": (tf1, GREY_LEVELS),
    "clean_fid_299_hwc": (clean, GREY_LEVELS),
    "clip_openai_224_chw": (clip, 0),
    "clip_timm_croppct1_224_chw": (clip, 0),
    "cmmd_center_crop_336_hwc": (cmmd, 1e-6),
    "dinov2_dgm_224_chw": (dinov2, 1e-5),
}


def expected(picture: str, way: str) -> tuple[np.ndarray, slice | tuple[slice, ...]]:
    rows = (slice(None, None, EVERY), slice(None, None, EVERY))
    return golden("image_preprocessing")[0][f"{picture}__{way}"], (slice(None), *rows) if way.endswith("chw") else rows


def distance(found: np.ndarray, picture: str, way: str) -> float:
    wanted, kept = expected(picture, way)
    assert found[kept].shape == wanted.shape
    return float(np.abs(found[kept] - wanted).max())


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("way", WAYS)
def test_a_picture_is_prepared_as_the_peers_prepare_it(picture: str, way: str) -> None:
    prepare, tolerance = WAYS[way]
    assert distance(prepare(golden_picture(picture)), picture, way) <= tolerance


@pytest.mark.parametrize("way", WAYS)
def test_a_photograph_is_prepared_as_the_peers_prepare_it(test_data: Path, way: str) -> None:
    file = test_data / "photos" / "ibm-max__dog.jpg"
    assert sha256_of(file) == golden("image_preprocessing")[1]["photo_sha256"]
    prepare, tolerance = WAYS[way]
    with Image.open(file) as photo:
        assert distance(prepare(photo.convert("RGB")), "photo", way) <= tolerance


def resized(image: Image.Image, **options: bool) -> torch.Tensor:
    pixels_1CHW = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None]
    return functional.interpolate(pixels_1CHW, (299, 299), mode="bilinear", **options)[0]  # pyright: ignore[reportArgumentType] - its overloads


def antialiased(image: Image.Image) -> np.ndarray:
    return resized(image, antialias=True).numpy()


def half_pixel(image: Image.Image) -> np.ndarray:
    return resized(image, align_corners=False).numpy()


def aligned_corners(image: Image.Image) -> np.ndarray:
    return resized(image, align_corners=True).numpy()


def by_127_5(image: Image.Image) -> np.ndarray:
    """pytorch-fid's [-1, 1], read as torch-fidelity's."""
    return (tf1(image) / 127.5 - 1) * 128 + 128


def rounded(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((299, 299), Image.Resampling.BICUBIC), np.float32)


def overshooting(image: Image.Image) -> np.ndarray:
    bands = [Image.fromarray(np.asarray(band, np.float32)) for band in image.split()]
    return np.stack([np.asarray(band.resize((299, 299), Image.Resampling.BICUBIC)) for band in bands], axis=-1)


def through(*steps: Callable, mean: tuple = pixels.CLIP_MEAN, std: tuple = pixels.CLIP_STD) -> Callable:
    composed = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    return lambda image: composed(image).numpy()


def cropped_as_timm_would(image: Image.Image) -> np.ndarray:
    return through(transforms.Resize(248, InterpolationMode.BICUBIC), transforms.CenterCrop(224))(image)


def resized_before_the_square(image: Image.Image) -> np.ndarray:
    return unit(pixels.clip_square(336).prepare(image))


def imagenet(*steps: Callable) -> Callable:
    return through(*steps, mean=pixels.IMAGENET_MEAN, std=pixels.IMAGENET_STD)


SQUARE = (224, 224)
BICUBIC, BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR
WRONG: list[tuple[str, str, Callable[[Image.Image], np.ndarray], float]] = [
    ("torch_fidelity_tf1_299_chw", "noise", antialiased, 1),
    ("torch_fidelity_tf1_299_chw", "blocks768", antialiased, 1),
    ("torch_fidelity_tf1_299_chw", "small", half_pixel, 1),
    ("torch_fidelity_tf1_299_chw", "small", aligned_corners, 1),
    ("torch_fidelity_tf1_299_chw", "small", by_127_5, 0.25),
    ("clean_fid_299_hwc", "small", rounded, 0.25),
    ("clean_fid_299_hwc", "noise", overshooting, 1),
    ("clip_openai_224_chw", "small", cropped_as_timm_would, STEP),
    ("clip_openai_224_chw", "blocks768", cropped_as_timm_would, STEP),
    ("clip_openai_224_chw", "blocks768", through(transforms.Resize(224, BILINEAR), transforms.CenterCrop(224)), STEP),
    ("clip_openai_224_chw", "small", through(transforms.Resize(SQUARE, BICUBIC)), STEP),
    ("clip_openai_224_chw", "small", imagenet(transforms.Resize(224, BICUBIC), transforms.CenterCrop(224)), 0.01),
    ("cmmd_center_crop_336_hwc", "small", resized_before_the_square, 1 / 255),
    ("dinov2_dgm_224_chw", "small", imagenet(transforms.Resize(224, BICUBIC), transforms.CenterCrop(224)), STEP),
    ("dinov2_dgm_224_chw", "small", imagenet(transforms.Resize(SQUARE, BILINEAR)), STEP),
    ("dinov2_dgm_224_chw", "small", through(transforms.Resize(SQUARE, BICUBIC)), 0.01),
]


@pytest.mark.parametrize(("way", "picture", "wrong", "by"), WRONG)
def test_the_usual_mistake_is_another_picture(way: str, picture: str, wrong: Callable, by: float) -> None:
    assert distance(wrong(golden_picture(picture)), picture, way) > by


def test_a_copy_is_sought_in_the_whole_picture() -> None:
    image = golden_picture("small")  # 200 x 150
    prepared = pixels.shorter_side(288).prepare(image)
    assert prepared.shape == (3, 288, 384)
    wanted = np.asarray(image.resize((384, 288), Image.Resampling.BILINEAR), np.float64) / 255
    np.testing.assert_allclose(
        prepared.permute(1, 2, 0), (wanted - pixels.IMAGENET_MEAN) / pixels.IMAGENET_STD, atol=1e-5
    )


def test_no_two_preparations_are_named_alike() -> None:
    made: list[Preparation] = [pixels.TF1_299, pixels.CLEAN_299, CLIP, CMMD, DINOV2, pixels.shorter_side(288)]
    made += [pixels.clip_square(336), pixels.cmmd_square(224), pixels.stretched(288)]
    assert len({preparation.id for preparation in made}) == len(made)
