"""OmniFlow: its pipeline with the task a2i, the settings those of its own training script."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from PIL import Image
from protocol import answer_each, read_job

job, arguments = read_job("weights")
pipelines: Any = import_module("omniflow").OmniFlowPipeline
pipeline = pipelines.load_pretrained(str(arguments.checkout / arguments.weights), device="cuda")
pipeline.cfg_mode = "new"


def make(sound: str) -> Image.Image:
    made = pipeline(prompt="", input_aud=sound, add_token_embed=1, height=512, width=512, task="a2i",
                    num_inference_steps=28, guidance_scale=7.0)  # fmt: skip
    return made.images[0]


answer_each(job, make)
