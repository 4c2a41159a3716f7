"""A saved pipeline is the one that was saved; an image is its seed's and its sound's alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import sine
from tests.processes import run_python
from tests.tiny_networks import tiny_pipeline
from train.pipeline import AudioPixArtPipeline, make_scheduler

STEPS = 3
# An image made beside others is made by other kernels: latents to 1e-5 of the largest (5e-7 seen), pixels to one unit.
LATENT_TOLERANCE, PIXEL_TOLERANCE = 1e-5, 1

IN_A_FRESH_PROCESS = """
import sys
import numpy as np
from train.pipeline import AudioPixArtPipeline
pipeline = AudioPixArtPipeline.from_pretrained(sys.argv[1])
audio_BS = np.load(sys.argv[2])
np.save(sys.argv[3], pipeline(audio_BS, seeds=[3, 4], num_inference_steps=3, output_type="np").images)
"""


def tone(hz: float) -> np.ndarray:
    return sine(hz, level=0.1).astype(np.float32)


SOUNDS_BS = np.stack([tone(300), tone(3000)])


@pytest.fixture(scope="module")
def pipeline() -> AudioPixArtPipeline:
    return tiny_pipeline()


def features(seed: int, count: int = 1, width: int = 521) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 10, width), np.float32)


def test_a_fresh_process_makes_the_same_images(pipeline: AudioPixArtPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "audio.npy", SOUNDS_BS)
    here = pipeline(SOUNDS_BS, seeds=[3, 4], num_inference_steps=STEPS, output_type="np").images

    paths = [tmp_path / name for name in ("model", "audio.npy", "there.npy")]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    run_python(IN_A_FRESH_PROCESS, *paths, env=environment)

    assert np.array_equal(np.load(tmp_path / "there.npy"), here)
    assert {file.suffix for file in (tmp_path / "model").rglob("*") if file.is_file()} == {".json", ".safetensors"}


def test_seed_sound_and_guidance_all_matter(pipeline: AudioPixArtPipeline) -> None:
    def image(sound: int = 0, seed: int = 0, guidance: float = 4.5) -> np.ndarray:
        made = pipeline(
            SOUNDS_BS[sound : sound + 1],
            seeds=[seed],
            guidance_scale=guidance,
            num_inference_steps=STEPS,
            output_type="np",
        )
        return made.images[0]

    assert np.array_equal(image(), image())
    for other in (image(sound=1), image(seed=1), image(guidance=2.0)):
        assert not np.array_equal(image(), other)


def test_an_image_depends_on_nothing_beside_it(pipeline: AudioPixArtPipeline) -> None:
    audio_BS = np.stack([tone(hz) for hz in (200, 400, 800, 1600, 3200)])

    def made(sounds: slice, batch_size: int, output_type: str):
        given = {"num_inference_steps": STEPS, "batch_size": batch_size, "output_type": output_type}
        return pipeline(audio_BS[sounds], seeds=range(5)[sounds], **given).images

    alone = made(slice(3, 4), 1, "np")[0]
    latents = made(slice(3, 4), 1, "latent")[0]
    assert np.array_equal(made(slice(0, 5), 1, "np")[3], alone)
    for batch_size in (2, 5):
        among = made(slice(0, 5), batch_size, "latent")[3]
        assert (among - latents).abs().max() < LATENT_TOLERANCE * latents.abs().max()
        assert np.abs(made(slice(0, 5), batch_size, "np")[3].astype(int) - alone).max() <= PIXEL_TOLERANCE


def test_guidance_of_1_makes_no_second_pass() -> None:
    pipeline = tiny_pipeline(audio=False, caption_channels=521)
    rows: list[int] = []
    pipeline.transformer.register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))

    for guidance in (1.0, 1.5):
        pipeline(audio_features_BTD=features(0), seeds=[0], guidance_scale=guidance, num_inference_steps=2)

    assert rows == [1, 1, 2, 2]


def test_guidance_leads_away_from_the_null_condition() -> None:
    pipeline = tiny_pipeline(audio=False, caption_channels=521)

    def latents(audio_BTD: np.ndarray, guidance: float) -> torch.Tensor:
        # one step is linear in what the model says
        return pipeline(
            audio_features_BTD=audio_BTD,
            seeds=[0],
            guidance_scale=guidance,
            num_inference_steps=1,
            output_type="latent",
        ).images

    conditioned, null = latents(features(0), 1.0), latents(np.zeros_like(features(0)), 1.0)

    expected = null + 3.0 * (conditioned - null)
    scale = expected.abs().max()
    assert (latents(features(0), 3.0) - expected).abs().max() < 1e-5 * scale
    assert (conditioned - null).abs().max() > 1e-3 * scale


def test_features_need_no_ast_and_are_rounded_as_in_training() -> None:
    pipeline = tiny_pipeline(audio=False, caption_channels=521)

    def image(audio_BTD: np.ndarray) -> np.ndarray:
        return pipeline(audio_features_BTD=audio_BTD, seeds=[0], num_inference_steps=2, output_type="np").images

    assert np.array_equal(image(features(0)), image(features(0).astype(np.float16)))
    with pytest.raises(ValueError, match="has no AST"):
        pipeline(SOUNDS_BS[:1], seeds=[0])


def test_features_of_a_sound_are_the_sound(pipeline: AudioPixArtPipeline) -> None:
    given = {"seeds": [5], "num_inference_steps": 2, "output_type": "np"}
    audio_BTD = pipeline.encode_audio(SOUNDS_BS[:1])

    assert audio_BTD.shape == (1, 49, 32)
    heard = pipeline(SOUNDS_BS[:1], **given).images
    assert np.array_equal(heard, pipeline(audio_features_BTD=audio_BTD, **given).images)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 32_000, 2), r"expected \(B, S\).* found \(1, 32000, 2\)"),
        ((32_000,), r"expected \(B, S\)"),
        ((1, 480_000), "a sound of 30 s: this AST hears 10.24 s at most"),
        ((1, 163_841), "10.24 s at most"),
    ],
)
def test_a_sound_that_the_ast_cannot_take_is_refused(
    shape: tuple[int, ...], message: str, pipeline: AudioPixArtPipeline
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(np.zeros(shape, np.float32), seeds=[0], num_inference_steps=1)


def test_the_longest_sound_is_heard(pipeline: AudioPixArtPipeline) -> None:
    assert pipeline.encode_audio(np.zeros((1, 163_840), np.float32)).shape == (1, 101, 32)


def test_the_null_condition_can_be_silence() -> None:
    pipeline = tiny_pipeline(null_condition="silence")
    silence_TD = pipeline.encode_audio(np.zeros((1, 80_000), np.float32))[0]

    assert silence_TD.any()
    assert torch.equal(pipeline.encode_null(49), silence_TD)
    assert torch.equal(pipeline.encode_null(98), torch.cat([silence_TD, silence_TD]))
    with pytest.raises(ValueError, match="no multiple"):
        pipeline.encode_null(50)
    assert not tiny_pipeline().encode_null(49).any()


def test_the_sampler_is_pixart_alphas() -> None:
    config = make_scheduler().config

    expected = {"algorithm_type": "dpmsolver++", "solver_order": 2, "prediction_type": "epsilon"}
    expected |= {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [0]}, "either"),
        ({"audio_features_BTD": features(0), "audio_BS": SOUNDS_BS, "seeds": [0]}, "either"),
        ({"audio_features_BTD": features(0), "seeds": [0, 1]}, "a seed for each image"),
        ({"audio_features_BTD": features(0, count=0), "seeds": []}, "a seed for each image"),
        ({"audio_features_BTD": features(0), "seeds": [-1]}, "seeds from 0"),
        ({"audio_features_BTD": features(0, width=520), "seeds": [0]}, r"\(B, T, 521\)"),
        ({"audio_features_BTD": features(0), "seeds": [0], "guidance_scale": 0.5}, "at least 1"),
    ],
)
def test_contradicting_arguments_are_refused(arguments: dict, message: str) -> None:
    pipeline = tiny_pipeline(audio=False, caption_channels=521)

    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)
