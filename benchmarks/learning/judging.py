"""Pictures of held-out recordings, and what the eye sees in them.

R  recordings, S  seeds, T D  times and width of the condition, H W  height and width
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.learning.collection import CLASSES
from benchmarks.learning.eye import Eye
from sonify.features.vae import decode, scaling_factor
from sonify.models.loading import choose_device
from train.pictures import make_grid
from train.pipeline import AudioPixArtPipeline

GUIDANCE = 4.0
STEPS = 20
SHOWN = 6  # recordings of a class in a grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The classes of recordings, what the eye sees in each one's pictures, and the pictures of the first seed."""

    true_R: np.ndarray  # noqa: N815 - shape suffix
    seen_RS: np.ndarray  # noqa: N815 - shape suffix
    first_RHWC: np.ndarray  # noqa: N815 - shape suffix

    @property
    def right_R(self) -> np.ndarray:  # noqa: N802 - shape suffix
        """The share of each recording's pictures that show its class."""
        return (self.seen_RS == self.true_R[:, None]).mean(axis=1, dtype=np.float64)


def join(parts: Sequence[Judged]) -> Judged:
    """The recordings of several folds, each judged by the model that has not heard it."""
    return Judged(
        true_R=np.concatenate([part.true_R for part in parts]),
        seen_RS=np.concatenate([part.seen_RS for part in parts]),
        first_RHWC=np.concatenate([part.first_RHWC for part in parts]),
    )


def load_pipeline(folder: Path) -> AudioPixArtPipeline:
    """A released pipeline, on the GPU where there is one."""
    pipeline = AudioPixArtPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(choose_device("auto"))


def paint(pipeline: AudioPixArtPipeline, audio_RTD: np.ndarray, seed: int) -> np.ndarray:
    """A picture of each recording, (R, H, W, 3) uint8; noise is the same whatever the pipeline and the condition.

    A condition of zeros is the null condition, which guidance leaves as it is.
    """
    seeds = [1000 * n + seed for n in range(len(audio_RTD))]
    with torch.autocast(pipeline.device.type, torch.bfloat16):
        latents_BCHW = pipeline(
            audio_features=audio_RTD,
            seeds=seeds,
            guidance_scale=GUIDANCE if audio_RTD.any() else 1.0,
            num_inference_steps=STEPS,
            batch_size=len(seeds),
            output_type="latent",
        ).images
    return decode(pipeline.vae, latents_BCHW / scaling_factor(pipeline.vae))


def judge(pipeline: AudioPixArtPipeline, audio_RTD: np.ndarray, true_R: np.ndarray, num_seeds: int, eye: Eye) -> Judged:
    """Make `num_seeds` pictures of each recording, and look at them."""
    seen: list[list[int]] = []
    first: list[np.ndarray] = []
    for seed in range(num_seeds):
        pixels_RHWC = paint(pipeline, audio_RTD, seed)
        first = first or [pixels_RHWC]
        seen.append([int(eye(pixels_HWC).argmax()) for pixels_HWC in pixels_RHWC])
    return Judged(true_R=true_R, seen_RS=np.array(seen).T, first_RHWC=first[0])


def write_grid(judged: Judged, path: Path) -> None:
    """A row for each class: pictures of its first recordings, under what the eye sees in them."""
    rows = [n for one in range(len(CLASSES)) for n in np.flatnonzero(judged.true_R == one)[:SHOWN]]
    images = [Image.fromarray(judged.first_RHWC[n]) for n in rows]
    captions = [f"{CLASSES[judged.true_R[n]]}: seen as {CLASSES[judged.seen_RS[n, 0]]}" for n in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    make_grid(images, captions, path, columns=SHOWN)
