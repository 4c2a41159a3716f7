"""ImageBind's embedding of a sound in the place of a picture's, as Stable unCLIP's decoder takes one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from PIL import Image
from protocol import answer_each, read_job

job, arguments = read_job("model")
torch: Any = import_module("torch")
data: Any = import_module("imagebind.data")
networks: Any = import_module("imagebind.models.imagebind_model")
diffusers: Any = import_module("diffusers")
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.float32
imagebind = networks.imagebind_huge(pretrained=True).eval().to(device)
unclip = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(arguments.model, torch_dtype=dtype).to(device)


def make(sound: str) -> Image.Image:
    with torch.no_grad():
        heard = {networks.ModalityType.AUDIO: data.load_and_transform_audio_data([sound], device)}
        embedding = imagebind(heard)[networks.ModalityType.AUDIO].to(dtype)
    return unclip(prompt="", image_embeds=embedding, num_inference_steps=20, guidance_scale=10.0).images[0]


answer_each(job, make)
