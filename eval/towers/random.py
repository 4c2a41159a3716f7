"""Vectors without a network: seeded random projections of what is plainly there, to try the machinery offline.

They judge nothing: a score by them says that the arithmetic runs. On a machine they are the same bytes each time.

B  inputs, S  samples, K  plain features, D  width of a vector
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from eval.towers.config import Random
from eval.towers.inputs import at_rate
from eval.towers.tower import Sound, Tower, Way
from sonify.keys import hash64

VERSION = 1  # raise it when a vector changes
SAMPLE_RATE_HZ = 16_000
THUMBNAIL = 16  # pixels a side
FRAME = 512  # samples
BANDS = 64
BUCKETS = 256
LOGITS = 10
NAME = "random projection (no judge)"
INCEPTION = "inception"  # the one role whose features are positive and whose pictures have logits


def open_random(section: Random, role: str) -> Tower:
    """A stand-in for the tower `role` of `Judges`; equal sections of different roles share a space."""
    width, seed = section.width, section.seed
    identity = json.dumps(["random", width, seed, VERSION]).encode()
    logits = LOGITS if role == INCEPTION else 0

    def way(of: str, preprocessing: str, features: Callable[[Any], np.ndarray], rate: int | None = None) -> Way:
        @cache
        def projection() -> np.ndarray:
            key = [seed, hash64("random tower", of) >> 1]
            return np.random.default_rng(key).standard_normal((len(features(_EMPTY[of])), width + logits))

        def embed(inputs: Sequence[Any]) -> np.ndarray:
            rows = [_project(features(one), projection()) for one in inputs]
            vectors = np.stack(rows) if rows else np.zeros((0, width + logits))
            if logits:
                vectors[:, :width] = np.maximum(vectors[:, :width], 0)
            return vectors.astype(np.float32)

        shaped = f"{preprocessing}, positive, {logits} logits" if logits else preprocessing
        return Way(preprocessing=shaped, embed=embed, sample_rate_hz=rate)

    return Tower(
        name=f"{NAME}, width {width}, seed {seed}",
        model="random",
        sha256=hashlib.sha256(identity).hexdigest(),
        images=way("images", f"{THUMBNAIL} px bicubic", picture_features),
        sounds=way("sounds", f"whole, {SAMPLE_RATE_HZ} Hz soxr HQ, log spectrum", sound_features, SAMPLE_RATE_HZ),
        texts=way("texts", "letters", text_features),
        logits=logits,
    )


def _project(features_K: np.ndarray, projection_KD: np.ndarray) -> np.ndarray:
    """Project one input, by itself: in a product of several the last bits would depend on how many there are."""
    return features_K @ projection_KD / np.sqrt(len(projection_KD))


def picture_features(image: Image.Image) -> np.ndarray:
    """The pixels of a thumbnail, in [-1, 1] and never 0: no picture is the zero vector, which has no cosine."""
    small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    return np.asarray(small, np.float64).ravel() / 127.5 - 1


def sound_features(sound: Sound) -> np.ndarray:
    """Mean and deviation over time of the log power in 64 bands, over a range that is about [-1, 1]."""
    samples_S = at_rate(sound, SAMPLE_RATE_HZ).astype(np.float64)
    padded_S = np.pad(samples_S, (0, FRAME - 1 - (len(samples_S) - 1) % FRAME))
    power = np.abs(np.fft.rfft(padded_S.reshape(-1, FRAME) * np.hanning(FRAME))[:, 1:]) ** 2
    bands = np.log10(power.reshape(len(power), BANDS, -1).mean(axis=2) + 1e-8) / 4
    return np.concatenate([bands.mean(axis=0), bands.std(axis=0)])


def text_features(text: str) -> np.ndarray:
    """Counts of hashed runs of one to three letters, brought to unit length."""
    counts = np.zeros(BUCKETS)
    spaced = f" {' '.join(text.lower().split())} "
    for size in (1, 2, 3):
        for start in range(len(spaced) - size + 1):
            hashed = hash64("random tower", spaced[start : start + size])
            counts[hashed % BUCKETS] += 1 if hashed >> 63 else -1
    return counts / max(float(np.linalg.norm(counts)), 1.0)


_EMPTY: dict[str, Any] = {
    "images": Image.new("RGB", (1, 1)),
    "sounds": Sound(samples_S=np.zeros(1, np.float32), sample_rate_hz=SAMPLE_RATE_HZ),
    "texts": "",
}
