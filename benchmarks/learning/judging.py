"""Pictures of held-out recordings and of mixtures of two, what the eye sees in them, and which photograph is nearest.

R  recordings, S  seeds, K  classes, P  pairs of recordings, L  level differences, N  photographs, F  features
T D  times and width of the condition, C H W  channels, height and width
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.learning.collection import CLASSES
from benchmarks.learning.senses import Eye
from sonify.features.vae import Vae, decode, scaling_factor
from sonify.models.loading import choose_device
from train.pictures import make_grid
from train.pipeline import AudioPixArtPipeline

GUIDANCE = 4.0
STEPS = 20
FEW_STEPS = 12  # where many models are judged: 46 % of the pictures were right by 12 and 48 % by 20, of one model
SHOWN = 6  # recordings of a class in a grid
MIXED_SEEDS = (0, 1)
LEVELS_DB = (-12.0, -6.0, 0.0, 6.0, 12.0)  # of the first of two recordings above the second


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Photographs as the autoencoder gives them back: latents, and features of length 1."""

    latents_NCHW: np.ndarray  # noqa: N815 - shape suffix
    features_NF: np.ndarray  # noqa: N815 - shape suffix
    names: tuple[str, ...]  # of the classes
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a model is judged by: held-out recordings, and mixtures of two (none where they are not asked for)."""

    true_R: np.ndarray  # noqa: N815 - shape suffix
    uploads_R: np.ndarray  # noqa: N815 - shape suffix
    audio_RTD: np.ndarray  # noqa: N815 - shape suffix
    classes_P2: np.ndarray  # noqa: N815 - shape suffix
    mixtures_PLTD: np.ndarray  # noqa: N815 - shape suffix


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one model, as arrays: what is reported is computed from it alone.

    `seen` and `unguided` are the logarithms of the classes' mean probabilities, with guidance and without; the
    distances are to the nearest training photograph, whose number in the gallery is `nearest`.
    """

    true_R: np.ndarray  # noqa: N815 - shape suffix
    uploads_R: np.ndarray  # noqa: N815 - shape suffix
    seen_RSK: np.ndarray  # noqa: N815 - shape suffix
    unguided_RSK: np.ndarray  # noqa: N815 - shape suffix
    feature_distance_RS: np.ndarray  # noqa: N815 - shape suffix
    latent_distance_RS: np.ndarray  # noqa: N815 - shape suffix
    nearest_RS: np.ndarray  # noqa: N815 - shape suffix
    first_RHWC: np.ndarray  # noqa: N815 - shape suffix
    classes_P2: np.ndarray  # noqa: N815 - shape suffix
    mixed_PLSK: np.ndarray  # noqa: N815 - shape suffix

    def judged(self, part: str = "seen") -> Judged:
        """What the eye decides for: the best class of each picture."""
        log_RSK = self.seen_RSK if part == "seen" else self.unguided_RSK
        return Judged(true_R=self.true_R, seen_RS=log_RSK.argmax(axis=-1), first_RHWC=self.first_RHWC)

    def save(self, path: Path) -> None:
        """Write it, seen whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **{field.name: getattr(self, field.name) for field in fields(self)})
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Evidence":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def load_pipeline(folder: Path) -> AudioPixArtPipeline:
    """A released pipeline, on the GPU where there is one."""
    pipeline = AudioPixArtPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(choose_device("auto"))


def paint_latents(
    pipeline: AudioPixArtPipeline, audio_RTD: np.ndarray, seed: int, guidance: float = GUIDANCE, steps: int = STEPS
) -> torch.Tensor:
    """The latents (R, C, H, W) of a picture of each condition; noise is the same whatever pipeline and condition."""
    seeds = [1000 * n + seed for n in range(len(audio_RTD))]
    with torch.autocast(pipeline.device.type, torch.bfloat16):
        latents_BCHW = pipeline(
            audio_features=audio_RTD,
            seeds=seeds,
            guidance_scale=guidance,
            num_inference_steps=steps,
            batch_size=len(seeds),
            output_type="latent",
        ).images
    return latents_BCHW / scaling_factor(pipeline.vae)


def paint(pipeline: AudioPixArtPipeline, audio_RTD: np.ndarray, seed: int) -> np.ndarray:
    """A picture of each recording, (R, H, W, 3) uint8.

    A condition of zeros is the null condition, which guidance leaves as it is.
    """
    guidance = GUIDANCE if audio_RTD.any() else 1.0
    return decode(pipeline.vae, paint_latents(pipeline, audio_RTD, seed, guidance))


def judge(pipeline: AudioPixArtPipeline, audio_RTD: np.ndarray, true_R: np.ndarray, num_seeds: int, eye: Eye) -> Judged:
    """Make `num_seeds` pictures of each recording, and look at them."""
    seen: list[list[int]] = []
    first: list[np.ndarray] = []
    for seed in range(num_seeds):
        pixels_RHWC = paint(pipeline, audio_RTD, seed)
        first = first or [pixels_RHWC]
        seen.append([int(eye(pixels_HWC).argmax()) for pixels_HWC in pixels_RHWC])
    return Judged(true_R=true_R, seen_RS=np.array(seen).T, first_RHWC=first[0])


def make_gallery(vae: Vae, eye: Eye, latents_NCHW: np.ndarray, photos: Sequence[tuple[str, str]]) -> Gallery:
    """What pictures are compared with; `photos` are files and classes."""
    looks = [eye.look(pixels) for part in torch.from_numpy(latents_NCHW).split(1) for pixels in decode(vae, part)]
    return Gallery(
        latents_NCHW=latents_NCHW,
        features_NF=np.stack([look.features_F for look in looks]),
        names=tuple(name for _, name in photos),
        files=tuple(file for file, _ in photos),
    )


def distances(gallery: Gallery, latents_BCHW: np.ndarray, features_BF: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each picture: how far its features are from the nearest photograph's (1 - cosine), how far its latents are
    (root of the mean square), and which photograph is nearest by features."""
    by_features_BN = 1 - features_BF @ gallery.features_NF.T
    flat_B, flat_N = (one.reshape(len(one), -1).astype(np.float64) for one in (latents_BCHW, gallery.latents_NCHW))
    squares_BN = (flat_B**2).sum(1)[:, None] + (flat_N**2).sum(1)[None] - 2 * flat_B @ flat_N.T
    by_latents_B = np.sqrt(np.maximum(squares_BN, 0).min(axis=1) / flat_B.shape[1])
    return by_features_BN.min(axis=1), by_latents_B, by_features_BN.argmin(axis=1)


def gather(pipeline: AudioPixArtPipeline, held: Held, num_seeds: int, eye: Eye, gallery: Gallery) -> Evidence:
    """Make all pictures of a model, and look at them."""
    guided = [_look(pipeline, held.audio_RTD, seed, GUIDANCE, eye) for seed in range(num_seeds)]
    unguided = [_look(pipeline, held.audio_RTD, seed, 1.0, eye)[0] for seed in range(num_seeds)]
    near = [distances(gallery, latents, features) for _, features, latents, _ in guided]
    mixed = [
        np.stack([_look(pipeline, held.mixtures_PLTD[:, level], seed, GUIDANCE, eye)[0] for seed in MIXED_SEEDS])
        for level in range(len(LEVELS_DB) if len(held.classes_P2) else 0)
    ]
    return Evidence(
        true_R=held.true_R,
        uploads_R=held.uploads_R,
        seen_RSK=np.stack([classes for classes, *_ in guided], axis=1),
        unguided_RSK=np.stack(unguided, axis=1),
        feature_distance_RS=np.stack([one[0] for one in near], axis=1),
        latent_distance_RS=np.stack([one[1] for one in near], axis=1),
        nearest_RS=np.stack([one[2] for one in near], axis=1),
        first_RHWC=guided[0][3],
        classes_P2=held.classes_P2,
        mixed_PLSK=np.stack(mixed).transpose(2, 0, 1, 3) if mixed else np.zeros((0, 0, 0, len(CLASSES))),
    )


def _look(
    pipeline: AudioPixArtPipeline, audio_RTD: np.ndarray, seed: int, guidance: float, eye: Eye
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    latents_RCHW = paint_latents(pipeline, audio_RTD, seed, guidance, FEW_STEPS)
    pixels_RHWC = decode(pipeline.vae, latents_RCHW)
    looks = [eye.look(pixels_HWC) for pixels_HWC in pixels_RHWC]
    classes_RK, features_RF = (
        np.stack([getattr(look, name) for look in looks]) for name in ("classes_K", "features_F")
    )
    return classes_RK, features_RF, latents_RCHW.float().cpu().numpy(), pixels_RHWC


def write_grid(judged: Judged, path: Path) -> None:
    """A row for each class: pictures of its first recordings, under what the eye sees in them."""
    rows = [n for one in range(len(CLASSES)) for n in np.flatnonzero(judged.true_R == one)[:SHOWN]]
    images = [Image.fromarray(judged.first_RHWC[n]) for n in rows]
    captions = [f"{CLASSES[judged.true_R[n]]}: seen as {CLASSES[judged.seen_RS[n, 0]]}" for n in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    make_grid(images, captions, path, columns=SHOWN)
