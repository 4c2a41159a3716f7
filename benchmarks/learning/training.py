"""Training runs of the product's own trainer, over pairs that are written as `sonify features` writes them."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.learning.collection import read_squares
from benchmarks.learning.pairing import Paired
from sonify.config.loader import make_settings
from sonify.features.vae import Vae, encode
from sonify.keys import escape_key
from sonify.models.fetch import VAE_FILES, fetch_model
from tests.feature_runs import MadeSample, make_feature_run
from train.config import TrainConfig

SIDE_PX = 96  # 36 tokens: twice the steps of 128 px in the same time, and the eye still tells nine of ten
BATCH = 64
UNITS = 4
ENCODED_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a transformer whose heads are 32 wide; `compiled` says how a CPU computes it, bfloat16 in compiled blocks or
    float32 with linear layers as convolutions: what is faster depends on the width."""

    layers: int
    heads: int
    compiled: bool


SMALL = Size(layers=4, heads=4, compiled=False)  # 1.3M parameters: many models are worth more than a large one
LARGE = Size(layers=6, heads=8, compiled=True)  # 7.1M


def write_features(pairs: Sequence[Paired], photos: Path, vae: Vae, vae_folder: Path, run_dir: Path) -> Path:
    """Write a run with the latents and conditions of these pairs."""
    files = sorted({pair.photo.file for pair in pairs})
    latents = dict(zip(files, encode_photos(vae, [photos / file for file in files]), strict=True))
    samples = [
        MadeSample(
            key=f"{escape_key(pair.photo.file)}-{pair.number}",
            latent_CHW=latents[pair.photo.file],
            audio_TD={f"captions-{n}": scene.audio_TD for n, scene in enumerate(pair.scenes)},
            caption=f"a photo of a {pair.photo.label}",
            recordings=tuple(sorted({name for scene in pair.scenes for name in scene.recordings})),
        )
        for pair in pairs
    ]
    identity = fetch_model(str(vae_folder), None, VAE_FILES).identity
    features, models = {"vae": str(vae_folder), "size": SIDE_PX}, {str(vae_folder): identity}
    return make_feature_run(run_dir, samples, units=UNITS, features=features, models=models)


def encode_photos(vae: Vae, paths: Sequence[Path]) -> np.ndarray:
    """The latents (N, C, H, W) of the photographs' middle squares."""
    pixels_BHWC = read_squares(paths, SIDE_PX)
    parts = [pixels_BHWC[n : n + ENCODED_AT_ONCE] for n in range(0, len(paths), ENCODED_AT_ONCE)]
    return np.concatenate([encode(vae, part_BHWC).mean_BCHW.cpu().numpy() for part_BHWC in parts])


def training_config(
    features: Path, vae_folder: Path, run_dir: Path, steps: int, size: Size = LARGE, seed: int = 0
) -> TrainConfig:
    """A small model that learns fast: a high rate, an average over the last tenth of the run."""
    return make_settings(
        {
            "run_dir": str(run_dir),
            "seed": seed,
            "max_steps": steps,
            "data": {"runs": [str(features)], "workers": 0},
            "vae": str(vae_folder),
            "ast": None,
            "model": {
                "layers": size.layers,
                "heads": size.heads,
                "head_dim": 32,
                "sample_size": SIDE_PX // 8,
                "caption_channels": 521,
            },
            "optimizer": {
                "learning_rate": 1.0e-3,
                "reference_batch": BATCH,
                "warmup_steps": min(100, steps),
                "clip_norm": 1.0,
                "ema_decay": max(0.0, 1 - 10 / steps),
            },
            "batch": {"total": BATCH, "per_device": BATCH},
            "precision": "bf16" if size.compiled else "fp32",
            "compile": size.compiled,
            "log_every": 50,
            "checkpoints": {"every": 500, "keep": 1},
            "samples": {"every": steps + 1, "sounds": 0},
        },
        TrainConfig,
    )


def train(config: TrainConfig) -> None:
    """Run the trainer in a process of its own; what is done already is not done again."""
    path = config.run_dir.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    subprocess.run([sys.executable, "-m", "train.pixart", "--config", str(path)], check=True)
