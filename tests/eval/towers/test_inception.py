from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eval.towers.config import Inception
from eval.towers.inception import counters, inception_shapes, open_inception
from eval.towers.pixels import CLEAN_299
from eval.towers.tower import Tower
from sonify.io.write import sha256_of
from tests.builders import refused
from tests.eval.towers.built import golden, golden_picture, seeded_weights

PARTS = {"2048": slice(0, 2048), "logits_unbiased": slice(2048, None)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The network at its true size, with weights by the recipe of the golden file."""
    shapes = inception_shapes()
    counted = counters(shapes)
    tensors = seeded_weights({name: shape for name, shape in shapes.items() if name not in counted}, 7000)
    tensors = {name: 1.4 * tensor if tensor.ndim == 4 else tensor for name, tensor in tensors.items()}
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(tensors | {name: torch.tensor(0) for name in counted}, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def tower(weights: Path) -> Tower:
    return open_inception(Inception(kind="inception", weights=weights))


def embed(tower: Tower, *pictures: Image.Image) -> np.ndarray:
    assert tower.images is not None
    return tower.images.embed(pictures)


def test_the_network_has_the_tensors_of_the_published_file() -> None:
    shapes, (_, facts) = inception_shapes(), golden("inception_fid")
    assert len(shapes) == facts["number_of_keys"]
    assert {name: list(shapes[name]) for name in facts["first_keys"]} == facts["first_keys"]
    assert list(shapes["fc.weight"]) == facts["fc"]


def test_the_weights_are_those_of_the_golden_file(weights: Path) -> None:
    tensors = load_file(weights)
    for name, first in golden("inception_fid")[1]["weights_check"].items():
        np.testing.assert_allclose(tensors[name].flatten()[:3], first, rtol=1e-6)


@pytest.mark.parametrize("picture", ["small", "noise"])
def test_features_and_logits_are_torch_fidelitys(tower: Tower, picture: str) -> None:
    found = embed(tower, golden_picture(picture))
    assert found.shape == (1, 2048 + tower.logits)
    assert found.dtype == np.float32
    for part, columns in PARTS.items():
        np.testing.assert_allclose(found[0, columns], golden("inception_fid")[0][f"{picture}__{part}"], atol=1e-3)


def test_another_resize_gives_other_features(tower: Tower, weights: Path) -> None:
    clean = open_inception(Inception(kind="inception", weights=weights), CLEAN_299)
    assert clean.images is not None
    assert tower.images is not None
    assert clean.images.preprocessing != tower.images.preprocessing
    off = embed(clean, golden_picture("small"))[0, :2048] - golden("inception_fid")[0]["small__2048"]
    assert np.abs(off).max() > 1e-2


def test_a_bias_gives_other_logits(tower: Tower, weights: Path) -> None:
    biased = embed(tower, golden_picture("small"))[0, 2048:] + load_file(weights)["fc.bias"].numpy()
    assert np.abs(biased - golden("inception_fid")[0]["small__logits_unbiased"]).max() > 1e-2


def test_a_picture_is_seen_alike_alone_and_beside_others(tower: Tower) -> None:
    pictures = [golden_picture(name) for name in ("small", "noise", "blocks768")]
    alone = np.concatenate([embed(tower, picture) for picture in pictures])
    np.testing.assert_allclose(embed(tower, *pictures), alone, atol=1e-5, rtol=1e-5)


def test_steps_that_nobody_counted_change_nothing(tower: Tower, weights: Path, tmp_path: Path) -> None:
    counted, uncounted = counters(inception_shapes()), tmp_path / "uncounted.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if name not in counted}, uncounted)
    old = open_inception(Inception(kind="inception", weights=uncounted))
    np.testing.assert_array_equal(embed(old, golden_picture("noise")), embed(tower, golden_picture("noise")))


def test_a_tower_is_named_by_the_hash_of_its_weights(tower: Tower, weights: Path) -> None:
    asked = Inception(kind="inception", weights=weights, sha256=sha256_of(weights))
    assert open_inception(asked).sha256 == tower.sha256 == asked.sha256


def test_weights_of_half_precision_are_widened(tower: Tower, weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights)
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(halves, tmp_path / "halves.safetensors")
    wide = open_inception(Inception(kind="inception", weights=tmp_path / "halves.safetensors"))
    found, full = embed(wide, golden_picture("noise")), embed(tower, golden_picture("noise"))
    assert np.abs(found - full).max() < 0.02 * np.abs(full).max()


def test_other_weights_than_those_asked_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    path.write_bytes(b"weights")
    with refused(f"expected weights of sha256 {'a' * 64}, found {sha256_of(path)}"):
        open_inception(Inception(kind="inception", weights=path, sha256="a" * 64))
    with refused(f"{tmp_path / 'none'}: expected a file of weights on this machine, found none"):
        open_inception(Inception(kind="inception", weights=tmp_path / "none"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": None}, r"found 565: 1 are missing, 0 unknown, 0 of another shape \(fc\.weight is not there\)"),
        (
            {"fc.weight": torch.zeros(1000, 2048)},
            r"1 of another shape \(fc\.weight is \[1000, 2048\] instead of \[1008",
        ),
        ({"AuxLogits.fc.weight": torch.zeros(2)}, r"found 567: .* 1 unknown, .*\(AuxLogits\.fc\.weight is unknown\)"),
        ({"fc.bias": torch.zeros(1008, dtype=torch.int8)}, r"fc\.bias is of type I8; expected F16, BF16, F32"),
    ],
)
def test_weights_of_another_network_are_refused(
    weights: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {name: tensor for name, tensor in (load_file(weights) | change).items() if tensor is not None}
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    with refused(message):
        open_inception(Inception(kind="inception", weights=path))


def test_damaged_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    path.write_bytes(b"not even weights")
    with refused(r"inception\.safetensors: not a safetensors file, or damaged"):
        open_inception(Inception(kind="inception", weights=path))
    path.write_bytes(weights.read_bytes()[:-4])
    with refused(r"inception\.safetensors: not a safetensors file, or damaged"):
        open_inception(Inception(kind="inception", weights=path))
