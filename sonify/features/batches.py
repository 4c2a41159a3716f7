"""Images and sounds through both networks, in batches of one shape, to the arrays that are stored."""

from collections.abc import Iterator

import numpy as np
import torch

from sonify.config import Features
from sonify.errors import WorkError
from sonify.features.ast import AstFeatures, load_ast
from sonify.features.beats import BeatsFeatures, load_beats
from sonify.features.vae import encode, load_vae
from sonify.media.mixing import FULL_SCALE
from sonify.models.fetch import EAR_FILES, VAE_FILES, fetch_model
from sonify.models.loading import choose_device, choose_dtype, computing


def load_ear(settings: Features, device: torch.device) -> AstFeatures | BeatsFeatures:
    """What listens, as the settings say.

    Raises:
        InputError: it cannot be had or used, or lacks a layer that is asked for.
    """
    kind, model, revision = settings.ear
    dtype = choose_dtype(settings.dtype, device)
    fetched = fetch_model(model, revision, EAR_FILES[kind])
    if kind == "beats":
        return BeatsFeatures(load_beats(fetched, device, dtype), settings.frequency, settings.layers)
    return AstFeatures(*load_ast(fetched, device, dtype), settings.frequency, settings.layers)


class FeatureNetworks:
    """A VAE and an ear on the configured device, as (N, ...) float16 of whatever N images or sounds.

    What an image or a sound becomes must not depend on what is computed beside it: on a CPU each goes through its
    network alone, on a GPU batches always have the same shape.

    Raises:
        InputError: the device is not there, or a model cannot be had or used.
    """

    def __init__(self, settings: Features) -> None:
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        self._settings = settings
        self._batch = 1 if device.type == "cpu" else settings.batch_size
        self._vae = load_vae(fetch_model(settings.vae, settings.vae_revision, VAE_FILES), device, dtype)
        self._audio_features = load_ear(settings, device)

    def look(self, pixels_NHWC: np.ndarray) -> dict[str, np.ndarray]:
        """The latents of (N, H, W, 3) uint8 images, by their names in a sample."""
        parts = [self._encode(torch.from_numpy(batch)) for batch in self._batches(pixels_NHWC)]
        latents = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: self._half("vae", rows[: len(pixels_NHWC)]) for name, rows in latents.items()}

    def listen(self, waveforms_NS: np.ndarray) -> np.ndarray:
        """The (N, T, D) audio features of (N, S) int16 sounds at 16 kHz."""
        parts: list[np.ndarray] = []
        for batch in self._batches(waveforms_NS):
            with computing(self._settings.cpus):
                parts.append(self._audio_features(batch / np.float32(FULL_SCALE)).cpu().numpy())
        return self._half(self._settings.ear.kind, np.concatenate(parts)[: len(waveforms_NS)])

    def _encode(self, pixels_BHWC: torch.Tensor) -> dict[str, np.ndarray]:
        sides = {"": pixels_BHWC} | ({"_flip": pixels_BHWC.flip(2)} if self._settings.flip else {})
        latents: dict[str, torch.Tensor] = {}
        with computing(self._settings.cpus):
            for side, pixels in sides.items():
                posterior = encode(self._vae, pixels)
                latents[f"latent{side}"] = posterior.mean_BCHW
                if self._settings.std:
                    latents[f"latent{side}_std"] = posterior.std_BCHW
            return {name: tensor.cpu().numpy() for name, tensor in latents.items()}

    def _batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """All rows in batches of one size; the last is filled up with zeros."""
        for start in range(0, len(rows), self._batch):
            batch = rows[start : start + self._batch]
            missing = self._batch - len(batch)
            yield np.concatenate([batch, np.zeros((missing, *rows.shape[1:]), rows.dtype)]) if missing else batch

    def _half(self, which: str, rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # found below
            half = rows.astype(np.float16)
        if not np.isfinite(half).all():
            model = getattr(self._settings, which)
            raise WorkError(
                f"features.{which}: {model} gives NaN, infinity or more than float16 holds: its weights are damaged,"
                " or need `features.dtype: float32`"
            )
        return half
