"""What the averaged weights are used for while a run trains: grids of samples, and the release at its end."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from sonify.errors import InputError
from sonify.installed import spell
from sonify.io.write import naming_place, write_whole
from train.averages import Held
from train.checkpoints import RELEASE, Learner
from train.config import Training
from train.manifest import encode_png
from train.metrics import read_metrics
from train.page import SAMPLES
from train.release import save_release
from train.shards import FeatureData, first_scenes, open_feature_data

log = logging.getLogger(__name__)

GAP = 8
FONT_SIZE = 13
CAPTION_LINES = 2
# A grid is for the eye: small images are shown larger, pixel by pixel.
MIN_SIDE = 128
INK, PAPER = "black", "white"


class Pictures:
    """Draws the same sounds with the same seeds at every step that is asked for."""

    def __init__(
        self,
        config: Training,
        data: FeatureData,
        pipeline_of: Callable[[nn.Module], Any],
        release_of: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        """`pipeline_of` makes the pipeline of a network with the weights that it has at the time; `release_of` the one
        that is released, where that is another."""
        self._config = config
        self._data = data
        self._release_of = release_of or pipeline_of
        self._pipeline_of = pipeline_of
        self._scenes = _shown_scenes(config)

    def draw(self, step: int, learner: Learner) -> Path | None:
        """Write RUN/samples/step-N.png; None where there is no sound to draw."""
        if not self._scenes:
            return None
        network = learner.network
        device = next(network.parameters()).device
        network.eval()
        # compiling for another batch and without gradients would take longer than drawing
        with learner.ema.applied_to(network), torch.compiler.set_stance("force_eager"):
            pipeline = self._pipeline_of(network).to(device)
            pipeline.set_progress_bar_config(disable=True)
            images = [
                pipeline(
                    audio_features=audio_TD[None],
                    seeds=[n],
                    guidance_scale=self._config.samples.guidance,
                    num_inference_steps=self._config.samples.steps,
                ).images[0]
                for n, (_, _, audio_TD, _) in enumerate(self._scenes)
            ]
        network.train()
        path = self._config.run_dir / SAMPLES / f"step-{step:08d}.png"
        with naming_place(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        make_grid(images, [caption for *_, caption in self._scenes], path)
        return path

    def release(self, step: int, learner: Learner) -> Path:
        """Write RUN/pipeline: what others load."""
        out = self._config.run_dir / RELEASE
        with learner.ema.applied_to(learner.network):
            pipeline = self._release_of(learner.network)
            metrics, held = read_metrics(self._config.run_dir), Held(rule=learner.ema.rule)
            save_release(out, pipeline, self._config, self._data, metrics, step=step, held=held)
        log.info(
            "the model is in %s: %s", out, spell("generate", "--model", out, "--audio", "a.wav", "--out", "out.png")
        )
        return out


def _shown_scenes(config: Training) -> list[tuple[str, str, np.ndarray, str]]:
    if not config.samples.sounds:
        return []
    try:
        shown = open_feature_data(config.data.model_copy(update={"split": config.samples.split}))
    except InputError as nothing:  # the split that is learned from has been opened by the same rules
        log.info("no sample grids: %s", nothing)
        return []
    return first_scenes(shown, config.samples.sounds)


def make_grid(images: Sequence[Image.Image], captions: Sequence[str], path: Path, columns: int | None = None) -> None:
    """Write images of one size, each above its caption, as one PNG, about as wide as high without `columns`."""
    if not images or len(images) != len(captions):
        raise ValueError(f"expected a caption for each image, found {len(captions)} for {len(images)}")
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = (side * max(1, math.ceil(MIN_SIDE / images[0].width)) for side in images[0].size)
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 4
    row_height = height + CAPTION_LINES * line + GAP
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + GAP) + GAP, rows * row_height + GAP), PAPER)
    draw = ImageDraw.Draw(grid)
    for n, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + n % columns * (width + GAP), GAP + n // columns * row_height
        grid.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, text in enumerate(wrap_caption(caption, font, width)):
            draw.text((left, top + height + number * line), text, fill=INK, font=font)
    write_whole(path, encode_png(grid))


def wrap_caption(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a caption between words into lines that fit; what is too long ends in dots."""
    lines = [""]
    for word in caption.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    shown = [*lines[:CAPTION_LINES]]
    if len(lines) > CAPTION_LINES:
        shown[-1] += "…"
    return [_shorten(text, font, width) for text in shown]


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if len(text) > width:  # a letter has a pixel at least, and the loop below would take minutes for a long word
        text = text[:width] + "…"
    while len(text) > 1 and font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text
