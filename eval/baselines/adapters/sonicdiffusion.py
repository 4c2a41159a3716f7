"""SonicDiffusion: the controller of its app.py, which is made where app.py is imported; its page is never opened."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from PIL import Image
from protocol import answer_each, read_job

MODELS = {"landscape": "Landscape Model", "greatest_hits": "Greatest Hits Model"}
job, arguments = read_job("weights")
controller: Any = import_module("app").controller
controller.update_audio_model(MODELS[arguments.weights])


def make(sound: str) -> Image.Image:
    return controller.generate(file=None, audio=sound, prompt="", cfg_scale=7.5, num_inference_steps=50)


answer_each(job, make)
