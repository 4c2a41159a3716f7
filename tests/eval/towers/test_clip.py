import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from eval.towers.clip import open_clip
from eval.towers.config import Clip, Towers
from eval.towers.opened import open_judges
from eval.towers.pixels import clip_square
from eval.towers.tower import Tower, Way
from sonify.io.write import sha256_of
from tests.builders import refused
from tests.eval.towers.built import QUICK, golden, golden_picture, seeded_weights, timm_folder, timm_names
from tests.servers import away_from_hub, put_into_cache
from tests.tiny_networks import tiny_clip

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CROPPED = {"img_size": 336, "patch_size": 112, "embed_dim": 32, "depth": 2, "num_heads": 2}
PLAIN = QUICK.replace("_clip_quickgelu_", "_clip_")
TEXTS = ("a dog", "church bell", "waves")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "transformers")


@pytest.fixture(scope="module")
def eye(words: Path) -> Path:
    """The picture's tower of `words`, where timm's tools would have saved it."""
    tensors = timm_names(load_file(words / "model.safetensors"))
    # timm's blocks are four times as wide inside, and one built for 64 is filled up with what changes nothing
    for n in range(TINY["depth"]):
        for name, axis in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
            inner = tensors[f"blocks.{n}.mlp.{name}"]
            tensors[f"blocks.{n}.mlp.{name}"] = torch.cat([inner, torch.zeros_like(inner)], axis)
    return timm_folder(words.parent / "timm", tensors, model_args=TINY)


def opened(model: Path | str, text: Path | None = None, **fields: Any) -> Tower:
    return open_clip(Clip(kind="clip", model=str(model), text=str(text) if text else None, **fields))


def looking(tower: Tower) -> Way:
    assert tower.images is not None
    return tower.images


def reading(tower: Tower) -> Way:
    assert tower.texts is not None
    return tower.texts


# --- at true size


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/32 at its true size, with weights by the recipe of the golden file."""
    facts = golden("clip_vit_b32")[1]["config"]
    config = CLIPVisionConfig(
        hidden_size=facts["hidden"], intermediate_size=facts["intermediate"], num_hidden_layers=facts["layers"],
        num_attention_heads=facts["heads"], image_size=facts["image"], patch_size=facts["patch"],
        projection_dim=facts["projection"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in CLIPVisionModelWithProjection(config).state_dict().items()}
    tensors = seeded_weights({name: shape for name, shape in shapes.items() if "position_ids" not in name}, 8000)
    tensors = {name: 2 * t if name.endswith("mlp.fc1.weight") else t for name, t in tensors.items()}
    assert len(tensors) == golden("clip_vit_b32")[1]["number_of_keys"]
    return timm_folder(tmp_path_factory.mktemp("published"), timm_names(tensors))


def off_the_golden(found_D: np.ndarray) -> float:
    return float(np.abs(found_D - golden("clip_vit_b32")[0]["embedding"]).max())


def test_embeddings_are_those_of_openais_code(published: Path) -> None:
    tower = opened(published)
    found = looking(tower).embed([golden_picture("small")])
    assert found.shape == (1, 512)
    assert found.dtype == np.float32
    assert off_the_golden(found[0]) < 1e-4
    assert looking(tower).preprocessing.startswith(f"{clip_square(224).id}, network ")


@pytest.mark.parametrize(("architecture", "resized_to"), [(PLAIN, 224), (QUICK, 248)])
def test_plain_gelu_and_the_crop_of_timm_give_others(published: Path, architecture: str, resized_to: int) -> None:
    network = timm.create_model(architecture, pretrained=False, num_classes=512).eval()
    network.load_state_dict(load_file(published / "model.safetensors"))
    prepared = clip_square(resized_to).prepare(golden_picture("small"))
    cropped = prepared[:, (resized_to - 224) // 2 :, (resized_to - 224) // 2 :][:, :224, :224]
    with torch.inference_mode():
        assert off_the_golden(network(cropped[None])[0].numpy()) > 1e-2


def test_a_clip_is_opened_for_what_it_is_and_for_nothing_else(published: Path) -> None:
    section = Clip(kind="clip", model=str(published))
    judges = open_judges(Towers(clip_b32=section))
    assert judges.clip_b32 is not None
    for role, wanted in (("clip_l14", "patch 14, side 224"), ("clip_l14_336", "patch 14, side 336")):
        with refused(f"towers.{role}: .*expected the CLIP of {wanted}, .*768, found patch 32, side 224, .*512; "):
            open_judges(Towers.model_validate({role: section}))


# --- tiny


def test_a_tiny_clip_stands_in_for_no_other(eye: Path) -> None:
    with refused("towers.clip_b32: .*found patch 8, side 32, width 32, depth 2, space 16"):
        open_judges(Towers(clip_b32=Clip(kind="clip", model=str(eye))))


def test_pictures_and_texts_are_those_of_transformers(eye: Path, words: Path) -> None:
    tower = opened(eye, words)
    tokenizer = CLIPTokenizer.from_pretrained(words)
    network: Any = CLIPModel.from_pretrained(words).eval()
    prepared = torch.stack([clip_square(32).prepare(golden_picture(name)) for name in ("small", "noise")])
    tokens = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        pictures = network.get_image_features(pixel_values=prepared).pooler_output
        texts = network.get_text_features(**tokens).pooler_output
    found = looking(tower).embed([golden_picture("small"), golden_picture("noise")])
    np.testing.assert_allclose(found, pictures, atol=1e-5)
    np.testing.assert_allclose(reading(tower).embed(TEXTS), texts, atol=1e-5)
    assert found.shape[1] == reading(tower).embed(TEXTS).shape[1]


def test_an_input_is_embedded_alike_alone_and_beside_others(eye: Path, words: Path) -> None:
    tower = opened(eye, words)
    pictures = [golden_picture(name) for name in ("small", "noise", "blocks768")] * 13  # more than a batch
    together = looking(tower).embed(pictures)
    for n in (0, 1, 2, 38):
        np.testing.assert_allclose(together[n], looking(tower).embed([pictures[n]])[0], atol=1e-5)
    np.testing.assert_allclose(reading(tower).embed(TEXTS)[1], reading(tower).embed(TEXTS[1:2])[0], atol=1e-6)


def test_texts_are_read_in_small_letters_and_to_their_end(eye: Path, words: Path) -> None:
    read = reading(opened(eye, words)).embed
    np.testing.assert_array_equal(read(["A Dog"]), read(["a dog"]))
    assert np.abs(read(["a dog"]) - read(["a dogs"])).max() > 1e-3
    assert read(["dog " * 100]).shape == (1, 16)


def test_without_a_text_tower_no_texts_are_read(eye: Path) -> None:
    assert opened(eye).texts is None


def test_the_hash_is_that_of_the_file_or_of_all_files(eye: Path, words: Path, tmp_path: Path) -> None:
    pictures, texts = sha256_of(eye / "model.safetensors"), sha256_of(words / "model.safetensors")
    assert opened(eye).sha256 == pictures
    assert opened(eye, words).sha256 == hashlib.sha256(f"{pictures}\n{texts}\n".encode()).hexdigest()
    other = Path(shutil.copytree(eye, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    save_file(tensors | {"head.bias": tensors["head.bias"] + 1}, other / "model.safetensors")
    assert opened(other).sha256 != pictures


def test_what_changes_a_vector_beside_the_weights_changes_its_name(eye: Path, words: Path, tmp_path: Path) -> None:
    tower = opened(eye, words)
    heads = Path(shutil.copytree(eye, tmp_path / "heads"))
    settings = json.loads((heads / "config.json").read_text())
    (heads / "config.json").write_text(json.dumps(settings | {"model_args": TINY | {"num_heads": 4}}))
    other = opened(heads, words)
    assert other.sha256 == tower.sha256
    assert np.abs(
        looking(other).embed([golden_picture("small")]) - looking(tower).embed([golden_picture("small")])
    ).max()
    assert looking(other).preprocessing != looking(tower).preprocessing
    assert reading(other).preprocessing == reading(tower).preprocessing
    for name in ("config.json", "tokenizer.json"):
        folder = Path(shutil.copytree(words, tmp_path / name))
        (folder / name).write_text(f"{(folder / name).read_text()} ")
        assert reading(opened(eye, folder)).preprocessing != reading(tower).preprocessing, name


def test_the_tower_of_336_pixels_crops_as_cmmd_does(tmp_path: Path) -> None:
    network = timm.create_model(QUICK, pretrained=False, num_classes=8, **CROPPED)  # pyright: ignore[reportArgumentType] - any option
    tower = opened(timm_folder(tmp_path / "large", network.state_dict(), model_args=CROPPED))
    assert looking(tower).preprocessing.startswith("centre-square")
    assert looking(tower).embed([golden_picture("small")]).shape == (1, 8)


def test_a_name_of_timm_is_fetched_from_where_timm_keeps_it(
    eye: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away_from_hub(monkeypatch, tmp_path)
    kept = timm_folder(tmp_path / "kept", load_file(eye / "model.safetensors"), architecture=PLAIN, model_args=TINY)
    put_into_cache(tmp_path, kept, f"timm/{PLAIN}.openai")
    named = opened(f"timm/{QUICK}.openai")
    assert named.model == f"timm/{QUICK}.openai"
    picture = [golden_picture("small")]
    np.testing.assert_array_equal(looking(named).embed(picture), looking(opened(eye)).embed(picture))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (f"timm/{PLAIN}.openai", f"builds that with plain GELU, .*; take {QUICK}"),
        ("openai/clip-vit-base-patch32", f"expected a CLIP of timm's, such as timm/{QUICK}.openai"),
        (f"timm/{QUICK}.laion400m_e32", f"expected weights of OpenAI's, which are .*{QUICK}.openai"),
        (f"timm/{QUICK}", "expected weights of OpenAI's"),
        (f"timm/{QUICK.replace('base', 'bases')}.openai", f"did you mean {QUICK}"),
    ],
)
def test_a_name_that_is_not_openais_clip_is_refused_before_anything_is_fetched(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away_from_hub(monkeypatch, tmp_path)
    with refused(message):
        opened(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": PLAIN}, f"plain GELU, .*; take {QUICK} .`architecture` in the config.json of a folder"),
        ({"architecture": None}, "expected a CLIP of timm's"),
        ({"architecture": f"hf-hub:some/{QUICK}"}, "expected a CLIP of timm's"),
        ({"num_classes": "many"}, "expected the width of the space as `num_classes`"),
        ({"num_classes": True}, "expected the width of the space as `num_classes`"),
        ({"num_classes": 512}, r"2 of another shape \(head.bias is \[16\] instead of \[512\]\)"),
        ({"model_args": TINY | {"depth": 3}}, "12 are missing"),
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "expected `model_args` of depth, embed_dim"),
        ({"model_args": TINY | {"qk_norm": 1}}, "expected `model_args` of depth, embed_dim"),
        ({"model_args": TINY | {"depth": -1}}, "expected `model_args` of depth, embed_dim"),
        ({"model_args": TINY | {"depth": 10**9}}, "expected `model_args` of depth, embed_dim"),
        ({"model_args": TINY | {"num_heads": 5}}, "the library cannot load .*divisible by num_heads"),
        ({"model_args": [1]}, "expected `model_args` of depth, embed_dim"),
    ],
)
def test_a_folder_that_is_not_of_this_clip_is_refused(
    eye: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = Path(shutil.copytree(eye, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | change))
    with refused(message):
        opened(other)


def test_texts_of_another_clip_are_refused(eye: Path, words: Path, tmp_path: Path) -> None:
    wide = load_file(eye / "model.safetensors")
    wide |= {"head.weight": torch.zeros(24, 32), "head.bias": torch.zeros(24)}
    with refused("vectors of 16, and pictures of .* vectors of 24: they share no space"):
        opened(timm_folder(tmp_path / "wide", wide, model_args=TINY), words)
    with refused("no config.json"):
        (tmp_path / "empty").mkdir()
        opened(eye, tmp_path / "empty")


def test_pickled_weights_are_refused(eye: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(eye, tmp_path / "other"))
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with refused("is a pickle and never read"):
        opened(other)


def test_pictures_need_not_be_of_one_size(eye: Path) -> None:
    pictures = [Image.new("RGB", size) for size in ((32, 32), (300, 40), (40, 300))]
    assert looking(opened(eye)).embed(pictures).shape == (3, 16)
