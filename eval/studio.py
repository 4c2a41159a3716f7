"""A model that makes pictures of sounds, with the eye that judges them.

B  images, N  sounds that are heard one after the other, S  samples, T D  times and width of a condition, L  labels
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from eval.study import StudyParser, at_least, check_out
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
from sonify.models.loading import choose_device, choose_dtype, load_network, load_part
from train.arguments import MAX_SEED
from train.kinds import SoundPipeline
from train.released import load_pipeline, read_settings

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
        """Return (B, L) float64 scores; the larger, the more of the label is in the image."""
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
        logits_BL = self._network(**inputs.to(self._network.device)).logits_per_image
        return logits_BL.double().softmax(dim=-1).cpu().numpy()


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
    """The (B, L) scores of the labels, told apart from each other and from `others`."""
    check_labels(labels, others)
    scores_BL = np.asarray(scorer(images, [*labels, *others]), np.float64)
    assert scores_BL.shape == (len(images), len(labels) + len(others)), scores_BL.shape
    return scores_BL[:, : len(labels)]


def check_labels(labels: Sequence[str], others: Sequence[str]) -> None:
    """Refuse labels that cannot be told apart, before any image is made."""
    names = [*labels, *others]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--labels: {twice!r} is there twice; give each sound a label of its own with --labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Painting:
    """How pictures are made: one for each seed, with the same seeds for every sound."""

    seeds: tuple[int, ...]
    guidance: float = 4.5
    steps: int = 20
    batch_size: int = 1


class Studio:
    """Paints sounds and scores the pictures."""

    def __init__(
        self, pipeline: SoundPipeline, scorer: Scorer, painting: Painting, others: Sequence[str] = OTHERS
    ) -> None:
        self.painting = painting
        self._pipeline = pipeline
        self._scorer = scorer
        self._others = tuple(others)

    def listen(self, parts_NS: np.ndarray) -> np.ndarray:
        """The condition of sounds that are heard one after the other, (N * T, D); of one sound (T, D)."""
        features_NTD = self._pipeline.encode_audio(parts_NS).numpy()
        return features_NTD.reshape(-1, features_NTD.shape[-1])

    def paint(self, features_TD: np.ndarray) -> list[Image.Image]:
        """One picture for each seed."""
        seeds = self.painting.seeds
        made = self._pipeline(
            audio_features=np.stack([features_TD] * len(seeds)),
            seeds=seeds,
            guidance_scale=self.painting.guidance,
            num_inference_steps=self.painting.steps,
            batch_size=self.painting.batch_size,
        )
        return list(made.images)

    def score(self, images: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        """The (B, L) float64 class scores of the labels."""
        return score_labels(self._scorer, images, labels, self._others)


def check_arguments(arguments: argparse.Namespace) -> float:
    """Check what a `PictureParser` read, and make the folder of the results; returns the seconds of the model's clips.

    Raises:
        InputError: an argument is out of its range, the folder cannot be made, or the model is none that hears.
    """
    at_least("--seeds", arguments.seeds, 2)  # one has no interval
    for name in ("guidance", "steps", "batch_size"):
        at_least("--" + name.replace("_", "-"), getattr(arguments, name), 1)
    if not 0 <= arguments.seed <= MAX_SEED - arguments.seeds:
        raise InputError(f"--seed: expected 0 to {MAX_SEED - arguments.seeds}, found {arguments.seed}")
    released = read_settings(arguments.model)
    if released["audio_encoder"][0] is None:
        raise InputError(f"{arguments.model}: has no AST and cannot hear a sound; take a model that was trained on AST")
    check_out(arguments.out)
    return float(released["clip_seconds"])


def open_studio(arguments: argparse.Namespace) -> tuple[Studio, dict[str, Any]]:
    """Load what the checked arguments of a `PictureParser` name; the second value says what it is, for the JSON.

    Raises:
        InputError: the model or the scorer cannot be used.
    """
    painting = Painting(
        seeds=tuple(range(arguments.seed, arguments.seed + arguments.seeds)),
        guidance=arguments.guidance,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
    )
    device = choose_device("auto")
    pipeline = load_pipeline(arguments.model, device, choose_dtype("auto", device))
    scorer, identity = load_scorer(arguments.scorer, arguments.scorer_revision)
    settings = {
        "model": str(arguments.model),
        "scorer": arguments.scorer,
        "scorer_identity": identity,
        "seeds": list(painting.seeds),
        "guidance": painting.guidance,
        "steps": painting.steps,
        "others": list(arguments.others),
    }
    return Studio(pipeline, scorer, painting, arguments.others), settings


class PictureParser(StudyParser):
    """The arguments of the studies that make pictures and judge them."""

    def __init__(self, module: str, description: str) -> None:
        super().__init__(module, description)
        self.add_argument("--model", type=Path, required=True, help="a released model: the folder of a pipeline")
        self.add_argument("--seeds", type=int, default=4, help="pictures of each sound (default: %(default)s)")
        self.add_argument("--guidance", type=float, default=4.5, help="guidance scale (default: %(default)s)")
        self.add_argument("--steps", type=int, default=20, help="of the sampler (default: %(default)s)")
        self.add_argument("--batch-size", type=int, default=1, help="pictures made at once (default: %(default)s)")
        self.add_argument("--labels", nargs="+", help="what each sound is called (default: the names of the files)")
        self.add_argument("--others", nargs="*", default=OTHERS, help="what else a picture could show")
        self.add_argument("--scorer", default=CLIP, help="a CLIP: hub id or folder (default: %(default)s)")
        self.add_argument("--scorer-revision", help="of a hub id; one that has safetensors")
