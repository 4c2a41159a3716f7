import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from eval.towers.config import Dinov2
from eval.towers.dinov2 import open_dinov2
from eval.towers.pixels import clip_square, stretched
from eval.towers.tower import Way
from sonify.io.write import sha256_of
from tests.builders import refused
from tests.eval.towers.built import golden_picture
from tests.tiny_networks import tiny_clip

PICTURES = [golden_picture(name) for name in ("small", "noise", "blocks768")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINOv2 as it is published, at tiny size: trained on 518 pixels, and looking at 224."""
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14, mlp_ratio=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Dinov2Model(config)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("dinov2")
    network.save_pretrained(path)
    return path


def looking(folder: Path) -> Way:
    images = open_dinov2(Dinov2(kind="dinov2", model=str(folder))).images
    assert images is not None
    return images


def test_a_vector_is_the_class_token_behind_the_last_norm(folder: Path) -> None:
    network: Any = Dinov2Model.from_pretrained(folder).eval()
    prepared = torch.stack([stretched(224).prepare(picture) for picture in PICTURES])
    with torch.inference_mode():
        hidden = network(prepared, output_hidden_states=True)
        wanted = network.layernorm(hidden.hidden_states[-1])[:, 0]
        before = hidden.hidden_states[-1][:, 0]
        cropped = network(clip_square(224).prepare(PICTURES[0])[None]).pooler_output
    way = looking(folder)
    found = way.embed(PICTURES)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - before.numpy()).max() > 1e-2
    assert np.abs(found[:1] - cropped.numpy()).max() > 1e-3
    assert way.preprocessing.startswith(f"{stretched(224).id}, settings ")


def test_another_epsilon_is_another_network(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 0.1}))
    assert looking(other).preprocessing != looking(folder).preprocessing


def test_a_picture_is_seen_alike_alone_and_beside_others(folder: Path) -> None:
    way = looking(folder)
    alone = np.concatenate([way.embed([picture]) for picture in PICTURES])
    np.testing.assert_allclose(way.embed(PICTURES), alone, atol=1e-5)


def test_a_tower_is_named_by_its_weights(folder: Path) -> None:
    tower = open_dinov2(Dinov2(kind="dinov2", model=str(folder)))
    assert tower.sha256 == sha256_of(folder / "model.safetensors")
    assert tower.logits == 0


def test_another_model_is_refused(tmp_path: Path) -> None:
    with refused("expected a model of type 'dinov2', such as facebook/dinov2-large, found 'clip'"):
        open_dinov2(Dinov2(kind="dinov2", model=str(tiny_clip(tmp_path / "clip"))))


def test_weights_that_lack_a_tensor_are_refused(folder: Path, tmp_path: Path) -> None:
    small = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2))
    small.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with refused("of the tensors of Dinov2Model are not in the weights"):
        looking(tmp_path).embed(PICTURES)
