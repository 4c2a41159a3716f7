from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from eval.studio import check_labels, load_scorer, score_labels
from sonify.errors import InputError
from tests.tiny_networks import edit_json, tiny_clip, tiny_hubert


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def noise_images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(count)]


def test_scores_are_the_librarys_probabilities_in_any_number_of_batches(clip):
    images, labels = noise_images(35), ["dog", "sea waves", "a plain wall"]
    scorer, identity = load_scorer(str(clip))
    scores_NL = scorer(images, labels)
    assert scores_NL.shape == (35, 3)
    assert scores_NL.dtype == np.float64
    assert scores_NL.sum(axis=1) == pytest.approx(np.ones(35))
    assert identity.startswith("sha256:")
    network = CLIPModel.from_pretrained(clip)
    processor: Any = CLIPProcessor.from_pretrained(clip)
    texts = [f"a photo of {label}" for label in labels]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    with torch.inference_mode():
        expected_NL = network(**inputs).logits_per_image.softmax(dim=1)
    assert scores_NL == pytest.approx(expected_NL.numpy(), abs=1e-5)
    assert np.ptp(scores_NL, axis=0).min() > 1e-4  # images differ, or the comparison says nothing


def test_a_score_is_kept_apart_from_what_else_could_be_seen(clip):
    scorer, _ = load_scorer(str(clip))
    images = noise_images(3)
    whole = scorer(images, ["dog", "cat", "wall", "food"])
    assert np.array_equal(score_labels(scorer, images, ["dog", "cat"], ["wall", "food"]), whole[:, :2])


def test_labels_that_cannot_be_told_apart_are_refused():
    with pytest.raises(InputError, match="'dog' is there twice"):
        check_labels(["dog", "cat"], ["dog"])


def test_what_is_no_clip_is_refused(tmp_path, clip):
    with pytest.raises(InputError, match="no such folder"):
        load_scorer(str(tmp_path / "nowhere" / "at" / "all"))
    with pytest.raises(InputError, match="tokenizer"):
        load_scorer(str(tiny_hubert(tmp_path / "hubert")))


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    folder = tiny_clip(tmp_path / "clip")
    edit_json(folder / "config.json", lambda config: config["vision_config"].update(num_hidden_layers=3))
    with pytest.raises(InputError, match="of the tensors of CLIPModel are not in the weights"):
        load_scorer(str(folder))
