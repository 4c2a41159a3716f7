"""Text towers: what is fetched, what is read of a text, and what a scene is said to sound like."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    T5EncoderModel,
    T5Tokenizer,
)

from sonify.errors import InputError, WorkError
from tests.servers import COMMIT, MODEL, running_hub
from tests.tiny_networks import edit_json, edit_weights, tiny_t5
from train.shards import TrainingSample
from train.texts import ClipText, T5Text, embed_texts, fetch_tower, read_said
from train.tiny import write_tiny_sd

CPU = torch.device("cpu")


def record(scenes: str) -> TrainingSample:
    members = {"json": b'{"key": "k", "scenes": ' + scenes.encode() + b"}", "a.audio.npy": b""}
    return TrainingSample(key="k", archive=Path("x.tar"), members=members)


def source(**said: Any) -> str:
    return json.dumps({"recording": "r", "clip": "c", **said})


def test_what_is_said_is_distinct_sorted_and_on_one_line() -> None:
    parts = ",".join(
        [
            source(concept="rain", description="rain  falls\n"),
            source(concept="dog"),
            source(concept="dog", recording="s"),
        ]
    )
    sample = record(f'[{{"scene": "a", "sources": [{parts}]}}]')
    assert read_said(sample, "concept")["a"].texts == ("dog", "rain")
    said = read_said(sample, "description")["a"]
    assert (said.texts, said.recordings) == (("rain falls",), frozenset({"r", "s"}))


@pytest.mark.parametrize("scenes", ["3", "[3]", '[{"scene": "a"}]', '[{"scene": "a", "sources": [{"concept": "x"}]}]'])
def test_a_record_of_another_form_is_damage(scenes: str) -> None:
    with pytest.raises(WorkError, match=r"x\.tar: sample k: its record has no scenes with sources"):
        read_said(record(scenes), "concept")


@pytest.mark.parametrize("scenes", ["[]", '[{"scene": "a", "sources": []}]'])
def test_a_scene_without_concepts_is_one_line(scenes: str) -> None:
    with pytest.raises(InputError, match=r"x\.tar: sample k: scene a names no concept"):
        read_said(record(scenes), "concept")


def test_a_text_is_the_mean_over_its_own_tokens_whatever_stands_beside_it(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")
    tower = fetch_tower(T5Text(kind="t5", model=str(folder)))
    assert tower.width == 32
    both = embed_texts(tower, ["a dog barking", "hi"], None, "", CPU, tmp_path / "both")
    alone = embed_texts(tower, ["hi"], None, "", CPU, tmp_path / "alone")
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-6)
    network, tokenizer = T5EncoderModel.from_pretrained(folder), T5Tokenizer.from_pretrained(folder)
    expected = network(**tokenizer("hi", return_tensors="pt")).last_hidden_state[0].mean(0)
    torch.testing.assert_close(alone[0], expected.detach(), rtol=0, atol=1e-5)


def test_tokens_pass_the_target_before_their_mean(tmp_path: Path) -> None:
    tower = fetch_tower(T5Text(kind="t5", model=str(tiny_t5(tmp_path / "t5"))))
    plain = embed_texts(tower, ["a dog"], None, "plain", CPU, tmp_path)
    squared = embed_texts(tower, ["a dog"], torch.square, "squared", CPU, tmp_path)
    assert float((squared - plain.square()).min()) > 0, "the mean of squares, not the square of the mean"


def test_only_so_many_tokens_are_read(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")
    short = fetch_tower(T5Text(kind="t5", model=str(folder), max_tokens=4))
    one, other = embed_texts(short, ["abxxx", "abyyy"], None, "", CPU, tmp_path / "short")
    assert torch.equal(one, other), "a mark, a, b, and the end"
    longer = fetch_tower(T5Text(kind="t5", model=str(folder)))
    one, other = embed_texts(longer, ["abxxx", "abyyy"], None, "", CPU, tmp_path / "long")
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("whole", [True, False])
def test_clip_is_read_from_a_pipeline_and_from_a_whole_clip(tmp_path: Path, whole: bool) -> None:
    folder = write_tiny_sd(tmp_path / "sd")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    expected = text(**tokenizer("a dog", return_tensors="pt")).last_hidden_state[0].mean(0).detach()
    if whole:
        folder = tmp_path / "clip"
        sizes: dict[str, Any] = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=16)
        clip = CLIPModel(CLIPConfig(text_config=text.config, vision_config=vision, projection_dim=16))
        clip.text_model.load_state_dict(text.state_dict())
        clip.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    tower = fetch_tower(ClipText(kind="clip", model=str(folder)))
    assert tower.width == 32
    (found,) = embed_texts(tower, ["a dog"], None, "", CPU, tmp_path)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_weights_that_are_not_finite_are_one_line(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")
    edit_weights(
        folder / "model.safetensors", lambda tensors: tensors["encoder.final_layer_norm.weight"].fill_(torch.inf)
    )
    tower = fetch_tower(T5Text(kind="t5", model=str(folder)))
    with pytest.raises(InputError, match="gives vectors that are not finite"):
        embed_texts(tower, ["a dog"], None, "", CPU, tmp_path)
    assert not (tmp_path / "texts.safetensors").exists()


def test_a_folder_is_refused_that_lacks_a_part(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="has no file of a tokenizer"):
        fetch_tower(T5Text(kind="t5", model=str(folder)))
    folder = tiny_t5(tmp_path / "other")
    edit_json(folder / "config.json", lambda config: config.update(d_model="wide"))
    with pytest.raises(InputError, match="expected a whole number `d_model`, found 'wide'"):
        _ = fetch_tower(T5Text(kind="t5", model=str(folder))).width
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="expected weights in"):
        fetch_tower(T5Text(kind="t5", model=str(folder)))


@pytest.mark.parametrize("whole", [True, False])
def test_of_a_hub_id_only_the_texts_half_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    folder = tmp_path / "hub"
    if whole:
        tiny_t5(folder)
        expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        (folder / "pytorch_model.bin").write_bytes(b"gigabytes")
    else:
        write_tiny_sd(folder)
        expected = {f"text_encoder/{name}" for name in ("config.json", "model.safetensors")}
        expected |= {f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
    with running_hub(monkeypatch, tmp_path / "cache", folder) as hub:
        config = T5Text(kind="t5", model=MODEL) if whole else ClipText(kind="clip", model=MODEL)
        tower = fetch_tower(config)
        fetched = {path.rpartition("resolve/")[2].partition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == expected
    assert tower.identity["encoder"] == COMMIT
    assert embed_texts(tower, ["a dog"], None, "", CPU, tmp_path).shape == (1, 32)
