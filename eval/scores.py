"""Which of some words an image shows: zero-shot classes by CLIP, behind a protocol that any classifier can meet.

N  images, L  labels
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from sonify.errors import InputError
from sonify.models.fetch import (
    TOKENIZER,
    Files,
    check_config,
    check_processor,
    check_tokenizer,
    check_weights,
    fetch_model,
)
from sonify.models.loading import choose_device, load_network, load_part

CLIP = "openai/clip-vit-base-patch32"
CLIP_FILES = Files(
    patterns=(*TOKENIZER, "*.safetensors"), checks=(check_config, check_weights, check_tokenizer, check_processor)
)
PROMPT = "a photo of {}"
BATCH = 32
# Things without a sound of their own. Probabilities over the sounds' labels alone would add up to one for a picture of
# nothing as well: noise would score half for each of two sounds.
OTHERS = ("a plain wall", "an abstract pattern", "a page of text", "furniture", "food", "clothes", "a flower")


class Scorer(Protocol):
    """An independent eye."""

    def __call__(self, images: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        """Return (N, L) float64 scores; the larger, the more of the label is in the image."""
        ...


class ClipScorer:
    """Probabilities of the labels, which add up to one for each image."""

    def __init__(self, network: CLIPModel, processor: CLIPProcessor) -> None:
        self._network = network.eval()
        self._processor: Any = processor

    def __call__(self, images: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        """As `Scorer`."""
        texts = [PROMPT.format(label) for label in labels]
        left = iter(images)
        rows = [self._score(batch, texts) for batch in iter(lambda: list(islice(left, BATCH)), [])]
        return np.concatenate(rows)

    @torch.inference_mode()
    def _score(self, images: list[Image.Image], texts: list[str]) -> np.ndarray:
        inputs = self._processor(text=texts, images=images, return_tensors="pt", padding=True, truncation=True)
        logits_NL = self._network(**inputs.to(self._network.device)).logits_per_image
        return logits_NL.double().softmax(dim=-1).cpu().numpy()


def load_scorer(model: str = CLIP, revision: str | None = None) -> tuple[ClipScorer, str]:
    """Load a CLIP of transformers onto the GPU where there is one; returns its commit or digest as well.

    Raises:
        InputError: it cannot be had, or is not a CLIP.
    """
    fetched = fetch_model(model, revision, CLIP_FILES)
    network = cast(CLIPModel, load_network(CLIPModel, fetched, choose_device("auto"), torch.float32))
    return ClipScorer(network, load_part(CLIPProcessor, fetched)), fetched.identity


def score_labels(
    scorer: Scorer, images: Sequence[Image.Image], labels: Sequence[str], others: Sequence[str]
) -> np.ndarray:
    """The (N, L) scores of the labels, told apart from each other and from `others`.

    Raises:
        InputError: two of them are the same.
    """
    check_labels(labels, others)
    scores_NL = np.asarray(scorer(images, [*labels, *others]), np.float64)
    assert scores_NL.shape == (len(images), len(labels) + len(others)), scores_NL.shape
    return scores_NL[:, : len(labels)]


def check_labels(labels: Sequence[str], others: Sequence[str]) -> None:
    """Refuse labels that cannot be told apart, before any image is made.

    Raises:
        InputError: two are the same.
    """
    names = [*labels, *others]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--labels: {twice!r} is there twice; give each sound a label of its own with --labels")
