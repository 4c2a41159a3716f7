"""A model that makes pictures of sounds, with the eye that judges them.

B  images, N  sounds that are heard one after the other, S  samples, T D  times and width of a condition, L  labels
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from eval.scores import OTHERS, Scorer, load_scorer, score_labels
from eval.study import at_least, check_out
from sonify.errors import InputError
from sonify.models.loading import choose_device, choose_dtype
from train.pipeline import MAX_SEED, AudioPixArtPipeline, load_pipeline, read_settings


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
        self, pipeline: AudioPixArtPipeline, scorer: Scorer, painting: Painting, others: Sequence[str] = OTHERS
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
            audio_features_BTD=np.stack([features_TD] * len(seeds)),
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
