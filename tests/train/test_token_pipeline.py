"""A sound's word makes an image as Stable Diffusion makes one of any prompt; the rest is as for PixArt's pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from sonify.features.ast import AstFeatures
from sonify.features.beats import BeatsFeatures
from tests.builders import RATE_HZ, refused, sine, write_sound
from tests.tiny_networks import tiny_token_pipeline
from train.embedder import Embedder
from train.token_pipeline import AudioTokenPipeline

STEPS = 3
SOUNDS_BS = np.stack([sine(hz, level=0.1).astype(np.float32) for hz in (300, 3000)])


@pytest.fixture(scope="module")
def pipeline() -> AudioTokenPipeline:
    return tiny_token_pipeline()


@pytest.fixture
def plain() -> AudioTokenPipeline:
    """Without an ear, of features of 24 numbers."""
    return tiny_token_pipeline(None)


def features(*seeds: int) -> torch.Tensor:
    return torch.stack([torch.randn(7, 24, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).half()


def latents(pipeline: AudioTokenPipeline, **given: Any) -> torch.Tensor:
    given = {"num_inference_steps": STEPS, "output_type": "latent", "audio_features": features(0)} | given
    return pipeline(**given).images


@pytest.mark.parametrize("ear", ["beats", "ast"])
@pytest.mark.parametrize("frequency", ["mean", "all"])
def test_the_ear_hears_as_for_the_training_shards(ear: str, frequency: Any) -> None:
    pipeline = tiny_token_pipeline(ear, frequency=frequency)
    layers = pipeline.config["layers"]
    network, extractor = pipeline.audio_encoder, pipeline.feature_extractor
    heard = (
        BeatsFeatures(network, frequency, layers)
        if extractor is None
        else AstFeatures(network, extractor, frequency, layers)
    )

    found = pipeline.encode_audio(SOUNDS_BS)

    times = {("beats", "mean"): 31, ("beats", "all"): 248, ("ast", "mean"): 49, ("ast", "all"): 12 * 49}[ear, frequency]
    assert found.shape == (2, times, len(layers) * 32)
    assert torch.equal(found, heard(SOUNDS_BS).half().float())


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        (None, {}),
        (DDIMScheduler, {"clip_sample": False}),
        (DPMSolverMultistepScheduler, {}),
        (EulerDiscreteScheduler, {}),
    ],
)
def test_samplers_do_what_they_do_in_stable_diffusions_own_pipeline(
    scheduler: Any, settings: dict, plain: AudioTokenPipeline
) -> None:
    if scheduler is not None:
        plain.scheduler = scheduler.from_config(plain.scheduler.config, **settings)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    parts: Any = {name: plain.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    parts |= {"safety_checker": None, "feature_extractor": None}
    theirs = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    with torch.no_grad():
        word = plain.token_prompt(plain.embedder(features(0).float()))
        empty = plain.token_prompt.encode_text("")

    ours = latents(plain, latents=noise, num_inference_steps=6)
    made: Any = theirs(
        prompt_embeds=word, negative_prompt_embeds=empty, latents=noise, num_inference_steps=6, output_type="latent"
    )

    assert plain.config["prompt"] == "a photo of <*>, 4k, high resolution"
    torch.testing.assert_close(ours, made.images, rtol=0, atol=1e-5 * float(made.images.abs().max()))


def test_fifty_steps_at_seven_and_a_half_are_the_default(plain: AudioTokenPipeline) -> None:
    told = latents(plain, seeds=[1], num_inference_steps=50, guidance_scale=7.5)

    assert torch.equal(plain(audio_features=features(0), seeds=[1], output_type="latent").images, told)


def test_sound_seed_guidance_and_prompt_all_matter(plain: AudioTokenPipeline) -> None:
    made = latents(plain, seeds=[0])

    assert torch.equal(latents(plain, seeds=[0]), made)
    others: list[dict[str, Any]] = [
        {"audio_features": features(1)}, {"seeds": [1]}, {"guidance_scale": 3.0}, {"prompt": "a painting of <*>"},
        {"guidance_scale": 1}, {"negative_audio_features": features(3)[0]},
    ]  # fmt: skip
    for other in others:
        assert not torch.allclose(latents(plain, **{"seeds": [0], **other}), made), other


def test_an_image_depends_on_nothing_beside_it(plain: AudioTokenPipeline) -> None:
    alone = [latents(plain, audio_features=features(n), seeds=[n]) for n in range(3)]

    together = latents(plain, audio_features=features(0, 1, 2), seeds=[0, 1, 2])
    assert torch.equal(together, torch.cat(alone))
    at_once = latents(plain, audio_features=features(0, 1, 2), seeds=[0, 1, 2], batch_size=3)
    torch.testing.assert_close(at_once, together, rtol=0, atol=1e-5 * float(together.abs().max()))


def test_guidance_of_1_makes_no_second_pass(plain: AudioTokenPipeline) -> None:
    seen: list[int] = []
    plain.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))

    latents(plain, seeds=[0], guidance_scale=1)
    alone = set(seen)
    seen.clear()
    latents(plain, seeds=[0])

    assert (alone, set(seen)) == ({1}, {2})


def test_images_follow_recordings_and_their_windows(pipeline: AudioTokenPipeline, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "dog.wav", sine(300, 7, level=0.1), RATE_HZ)

    made = pipeline([path, path], seeds=range(8), num_images_per_prompt=2, num_inference_steps=1)

    assert made.windows == [(n, start) for n in (0, 1) for start in (0.0, 0.0, 5.0, 5.0)]
    assert [image.size for image in made.images] == [(64, 64)] * 8


def test_features_of_a_sound_are_the_sound(pipeline: AudioTokenPipeline) -> None:
    heard = pipeline.encode_audio(SOUNDS_BS)

    assert torch.equal(
        latents(pipeline, audio_features=heard, seeds=[0, 1]),
        latents(pipeline, audio_features=None, audio_BS=SOUNDS_BS, seeds=[0, 1]),
    )


def test_a_callback_sees_each_step_and_may_change_the_prompt(plain: AudioTokenPipeline) -> None:
    seen: list[int] = []

    def look(_: Any, step: int, __: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(step)
        return {"prompt_embeds": tensors["negative_prompt_embeds"]}

    names = ("prompt_embeds", "negative_prompt_embeds")
    made = latents(
        plain, seeds=[0], callback_on_step_end=look, callback_on_step_end_tensor_inputs=names, num_inference_steps=4
    )

    assert seen == [0, 1, 2, 3, 4]  # PNDM begins with one more
    assert not torch.equal(made, latents(plain, seeds=[0], num_inference_steps=4))


@pytest.mark.parametrize("ear", ["beats", "ast"])
def test_offloading_changes_nothing(ear: str) -> None:
    """The parts' weights lie on `meta` while they rest, and none of what is computed may go there."""
    given: Any = {"audio_BS": SOUNDS_BS, "seeds": [3, 4], "num_inference_steps": 2, "output_type": "latent"}
    expected = tiny_token_pipeline(ear)(**given).images
    pipeline = tiny_token_pipeline(ear)
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    for network in networks:
        cpu_offload(network, torch.device("cpu"), offload_buffers=bool(network._parameters))

    assert torch.equal(pipeline(**given).images, expected)
    assert {next(network.parameters()).device.type for network in networks} == {"meta"}
    pipeline = tiny_token_pipeline(ear)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipeline(**given).images, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "a photo"}, "expected the placeholder <\\*> once in the prompt"),
        ({"prompt": "<*>" + "x" * 100}, "expected a prompt under 77 tokens"),
        ({"audio_features": torch.zeros(1, 5, 25)}, r"expected features of shape \(B, T, 24\), found \(1, 5, 25\)"),
        ({"audio_features": torch.zeros(5, 24)}, "expected features of shape"),
        ({"negative_audio_features": torch.zeros(3, 25)}, "expected features of shape"),
        ({"negative_audio_features": torch.zeros(3, 5, 24)}, "of one sound, or of as many as there are, found 3 for 1"),
        ({"audio_features": None, "audio_BS": SOUNDS_BS}, "this pipeline has no encoder"),
        ({"audio_BS": SOUNDS_BS}, "only one of them"),
        ({"guidance_scale": 0}, "guidance_scale, a number of at least 1"),
        ({"num_inference_steps": 1001}, "at most 1000"),
        ({"seeds": [0, 1]}, "expected a seed for each image, found 2 for 1"),
        ({"callback_on_step_end_tensor_inputs": ["audio_features"]}, "expected of .*prompt_embeds"),
        ({"output_type": "jpg"}, "expected an output_type"),
    ],
)
def test_contradicting_or_senseless_arguments_are_refused(
    given: dict[str, Any], message: str, plain: AudioTokenPipeline
) -> None:
    with refused(message, ValueError):
        latents(plain, **given)


def other_unet(pipeline: AudioTokenPipeline) -> dict[str, Any]:
    config = dict(pipeline.unet.config) | {"cross_attention_dim": 48}
    return {"unet": type(pipeline.unet).from_config(config)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_unet, "expected a UNet of a cross_attention_dim as wide as the text tower, 32, found 48"),
        (
            lambda _: {"embedder": Embedder(96, 48)},
            "an embedder of a token_width as wide as the text tower, 32, found 48",
        ),
        (
            lambda _: {"embedder": Embedder(64, 32)},
            "an embedder of an audio_width as wide as the layers of the encoder together, 96, found 64",
        ),
        (lambda _: {"layers": [4, 8, 13]}, "expected layers of the encoder up to 12, found 13"),
        (lambda _: {"placeholder": "x"}, "the placeholder 'x' is a word that the tokenizer knows"),
        (lambda _: {"prompt": "a photo"}, "expected the placeholder"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: Any, message: str, pipeline: AudioTokenPipeline) -> None:
    with refused(message, ValueError):
        AudioTokenPipeline(**({**pipeline.components, "layers": [4, 8, 12]} | change(pipeline)))
