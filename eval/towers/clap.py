"""CLAP for the bridge over labels: sounds and texts in one space, as `sonify.retrieval` embeds them.

S  samples
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from eval.towers.config import Clap as ClapSection
from eval.towers.inputs import at_rate
from eval.towers.tower import Sound, Tower, Way
from eval.towers.weights import hash_models, hash_settings
from sonify.config import ClapEncoder
from sonify.media.mixing import FULL_SCALE
from sonify.models.fetch import named
from sonify.retrieval.clap import SAMPLE_RATE_HZ, WINDOW, Clap, load_clap
from sonify.retrieval.encoders import fetch_clap

MIN_TAIL = SAMPLE_RATE_HZ  # a shorter rest is repeated until it is a drone


def open_clap(section: ClapSection) -> Tower:
    """CLAP of transformers; a sound of more than ten seconds is the mean of its windows' embeddings.

    Raises:
        InputError: the model cannot be had, or is no CLAP.
    """
    settings = ClapEncoder(kind="clap", model=section.model, revision=section.revision, cpus=torch.get_num_threads())
    fetched = fetch_clap(settings)

    @cache
    def load() -> Clap:
        return load_clap(settings, fetched)

    def embed_sounds(sounds: Sequence[Sound]) -> np.ndarray:
        clap = load()
        windows = [cut_windows(sound) for sound in sounds]
        rows = clap.embed_segments(window for of_sound in windows for window in of_sound)
        return np.stack([np.mean([next(rows) for _ in of_sound], axis=0) for of_sound in windows])

    def embed_texts(texts: Sequence[str]) -> np.ndarray:
        return load()(texts)

    settled = hash_settings(fetched)
    heard = f"{SAMPLE_RATE_HZ} Hz soxr HQ, 16 bit, mean of windows of {WINDOW} samples, repeatpad, {settled}"
    return Tower(
        name="CLAP",
        model=named(section.model, section.revision),
        sha256=hash_models(fetched),
        sounds=Way(preprocessing=heard, embed=embed_sounds, sample_rate_hz=SAMPLE_RATE_HZ),
        texts=Way(preprocessing=f"raw text, {settled}", embed=embed_texts),
    )


def cut_windows(sound: Sound) -> list[np.ndarray]:
    """The windows of ten seconds of a whole sound, (n,) int16 each; the last is what is left, if it is a second."""
    samples_S = at_rate(sound, SAMPLE_RATE_HZ)
    pcm_S = np.clip(np.round(samples_S * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    starts = range(0, len(pcm_S), WINDOW)
    return [pcm_S[n : n + WINDOW] for n in starts if n == 0 or len(pcm_S) - n >= MIN_TAIL]
