"""Perception Encoder Audio-Visual: sounds and pictures in one space, by transformers.

A picture is a video of one frame: several equal ones are another embedding. What it gives is not normalised.

S  samples
Source: facebook/pe-av-small and its like (Apache-2.0).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from transformers import (
    PeAudioFeatureExtractor,
    PeAudioVideoModel,
    PeVideoVideoProcessor,
)

from eval.towers.config import PeAv
from eval.towers.inputs import at_rate
from eval.towers.tower import Sound, Tower, Way
from eval.towers.weights import hash_models, hash_settings
from sonify.errors import InputError
from sonify.models.fetch import (
    TOKENIZER,
    FetchedModel,
    Files,
    check_processor,
    check_type,
    check_weights,
    fetch_model,
    named,
)
from sonify.models.loading import choose_device, computing, load_network, load_part

SAMPLE_RATE_HZ = 48_000
HOP = 1920
PEAV_FILES = Files(
    patterns=(*TOKENIZER, "*.safetensors"),
    checks=(check_type("pe_audio_video", "facebook/pe-av-small"), check_weights, check_processor),
)
# Which buffers the video's encoders do not share, in transformers' patterns: one of them, and all that are.
POSITIONS = r".*\.rope\.pos_embed"
ROPE = r".*\.rope\."


class PeAudioVideo(PeAudioVideoModel):
    """The model, with what its parts share named so that it loads.

    transformers 5.23 lists a buffer of timm's among the shared weights, and fails at every folder.
    """

    _tied_weights_keys = {  # noqa: RUF012 - as transformers declares it
        shared.replace(POSITIONS, ROPE): of.replace(POSITIONS, ROPE)
        for shared, of in PeAudioVideoModel._tied_weights_keys.items()
    }


class _Loaded(NamedTuple):
    model: Any  # transformers' parts are attributes that it does not declare
    hears: PeAudioFeatureExtractor
    looks: PeVideoVideoProcessor
    device: torch.device


def open_peav(section: PeAv) -> Tower:
    """PE-AV's embeddings of sounds and of pictures.

    Raises:
        InputError: the model cannot be had, or is none of this kind.
    """
    fetched = fetch_model(section.model, section.revision, PEAV_FILES)

    @cache
    def load() -> _Loaded:
        return _load(fetched)

    def embed_sounds(sounds: Sequence[Sound]) -> np.ndarray:
        waves = [at_rate(sound, SAMPLE_RATE_HZ) for sound in sounds]
        return _stacked([embed_sound(load(), samples_S) for samples_S in waves])

    def embed_images(images: Sequence[Image.Image]) -> np.ndarray:
        return _stacked([embed_image(load(), image) for image in images])

    settled = hash_settings(fetched)
    heard = f"whole, {SAMPLE_RATE_HZ} Hz soxr HQ, reflected to a multiple of {HOP}, {settled}"
    return Tower(
        name="PE-AV",
        model=named(section.model, section.revision),
        sha256=hash_models(fetched),
        images=Way(preprocessing=f"one frame, {settled}", embed=embed_images),
        sounds=Way(preprocessing=heard, embed=embed_sounds, sample_rate_hz=SAMPLE_RATE_HZ),
    )


def embed_sound(loaded: _Loaded, samples_S: np.ndarray) -> np.ndarray:
    """The embedding of a sound at 48 kHz; alone, as zeros that fill a batch are heard."""
    heard = loaded.hears(samples_S, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
    with computing(torch.get_num_threads()):
        return loaded.model.get_audio_embeds(heard["input_values"].to(loaded.device))[0].float().cpu().numpy()


def embed_image(loaded: _Loaded, image: Image.Image) -> np.ndarray:
    """The embedding of a picture.

    transformers' own `get_video_embeds` ends in an AttributeError (5.23): what it is meant to call is called here.
    """
    frame = np.array(image.convert("RGB"))[None]
    seen = loaded.looks(videos=[frame], do_sample_frames=False, return_tensors="pt")
    video = loaded.model.video_model
    with computing(torch.get_num_threads()):
        output = video.video_encoder(pixel_values_videos=seen["pixel_values_videos"].to(loaded.device))
        return video.video_head(output.pooler_output)[0].float().cpu().numpy()


def _load(fetched: FetchedModel) -> _Loaded:
    device = choose_device("auto")
    hears = load_part(PeAudioFeatureExtractor, fetched)
    if (found := (hears.sampling_rate, hears.hop_length)) != (SAMPLE_RATE_HZ, HOP):
        raise InputError(f"{fetched.path}: expected sounds at {SAMPLE_RATE_HZ} Hz and a hop of {HOP}, found {found}")
    looks = load_part(PeVideoVideoProcessor, fetched)
    model = cast(Any, load_network(PeAudioVideo, fetched, device, torch.float32))
    return _Loaded(model=model, hears=hears, looks=looks, device=device)


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)
