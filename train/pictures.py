"""What the averaged weights are used for while a run trains: grids of samples, and the release at its end."""

import logging
from pathlib import Path

import numpy as np
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

from sonify.errors import InputError
from train.config import TrainConfig
from train.ema import Ema
from train.grids import make_grid
from train.metrics import read_metrics
from train.networks import Networks, make_pipeline
from train.release import save_release
from train.resume import RELEASE
from train.shards import FeatureData, held_out_scenes, open_feature_data

log = logging.getLogger(__name__)

SAMPLES = "samples"


class Pictures:
    """Draws the same held-out sounds with the same seeds at every step that is asked for."""

    def __init__(self, config: TrainConfig, networks: Networks, data: FeatureData) -> None:
        self._config = config
        self._networks = networks
        self._data = data
        self._scenes = _held_out(config)

    def draw(self, step: int, transformer: PixArtTransformer2DModel, ema: Ema) -> Path | None:
        """Write RUN/samples/step-N.png; None where nothing is held out."""
        if not self._scenes:
            return None
        transformer.eval()
        # compiling for another batch and without gradients would take longer than drawing
        with ema.applied_to(transformer), torch.compiler.set_stance("force_eager"):
            pipeline = make_pipeline(transformer, self._config, self._networks, self._data).to(transformer.device)
            pipeline.set_progress_bar_config(disable=True)
            images = [
                pipeline(
                    audio_features_BTD=audio_TD[None],
                    seeds=[n],
                    guidance_scale=self._config.samples.guidance,
                    num_inference_steps=self._config.samples.steps,
                ).images[0]
                for n, (_, _, audio_TD, _) in enumerate(self._scenes)
            ]
        transformer.train()
        path = self._config.run_dir / SAMPLES / f"step-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_grid(images, [caption for *_, caption in self._scenes], path)
        return path

    def release(self, step: int, transformer: PixArtTransformer2DModel, ema: Ema) -> Path:
        """Write RUN/pipeline: what others load."""
        out = self._config.run_dir / RELEASE
        with ema.applied_to(transformer):
            pipeline = make_pipeline(transformer, self._config, self._networks, self._data)
            save_release(out, pipeline, self._config, self._data, read_metrics(self._config.run_dir), step=step)
        log.info("the model is in %s: python -m train.generate --model %s --audio a.wav --out out.png", out, out)
        return out


def _held_out(config: TrainConfig) -> list[tuple[str, str, np.ndarray, str]]:
    if not config.samples.sounds:
        return []
    try:
        validation = open_feature_data(config.data.model_copy(update={"split": "validation"}))
    except InputError as nothing:  # the training split has been opened by the same rules
        log.info("no sample grids: %s", nothing)
        return []
    return held_out_scenes(validation, config.samples.sounds)
