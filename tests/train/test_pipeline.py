"""An image is its seed's and its sound's alone; samplers, callbacks, outputs, offloading are as diffusers has them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from PIL import Image
from transformers import ASTFeatureExtractor, ASTModel

from sonify.features.ast import AstFeatures
from sonify.features.vae import decode
from tests.builders import sine
from tests.processes import run_python
from tests.tiny_networks import tiny_pipeline
from train.pipeline import AudioPixArtPipeline, make_scheduler

STEPS = 3
# An image made beside others is made by other kernels: latents to 1e-5 of the largest (5e-7 seen), pixels to one unit.
LATENT_TOLERANCE, PIXEL_TOLERANCE = 1e-5, 1
PINNED = Path(__file__).parents[1] / "pins" / "pipeline.png"

IN_A_FRESH_PROCESS = """
import sys
import numpy as np
from train.pipeline import AudioPixArtPipeline
pipeline = AudioPixArtPipeline.from_pretrained(sys.argv[1])
audio_BS = np.load(sys.argv[2])
np.save(sys.argv[3], pipeline(audio_BS=audio_BS, seeds=[3, 4], num_inference_steps=3, output_type="np").images)
"""


def tone(hz: float) -> np.ndarray:
    return sine(hz, level=0.1).astype(np.float32)


SOUNDS_BS = np.stack([tone(300), tone(3000)])


@pytest.fixture(scope="module")
def pipeline() -> AudioPixArtPipeline:
    return tiny_pipeline()


@pytest.fixture
def plain() -> AudioPixArtPipeline:
    """Without an AST, of a condition of 24 numbers."""
    return tiny_pipeline(audio=False, caption_channels=24)


def features(seed: int, count: int = 1, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 10, width), np.float32)


def latents(pipeline: AudioPixArtPipeline, **given: Any) -> torch.Tensor:
    made = {"audio_features": features(0), "num_inference_steps": STEPS, "output_type": "latent"} | given
    return pipeline(**made).images


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_a_fresh_process_makes_the_same_images(pipeline: AudioPixArtPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "audio.npy", SOUNDS_BS)
    here = pipeline(audio_BS=SOUNDS_BS, seeds=[3, 4], num_inference_steps=STEPS, output_type="np").images

    paths = [tmp_path / name for name in ("model", "audio.npy", "there.npy")]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    run_python(IN_A_FRESH_PROCESS, *paths, env=environment)

    assert np.array_equal(np.load(tmp_path / "there.npy"), here)
    assert {file.suffix for file in (tmp_path / "model").rglob("*") if file.is_file()} == {".json", ".safetensors"}


def test_the_images_of_seeds_are_those_of_the_first_version(pipeline: AudioPixArtPipeline) -> None:
    made = pixels(pipeline(audio_BS=SOUNDS_BS, seeds=[3, 4]).images)

    pinned = np.asarray(Image.open(PINNED)).reshape(64, 2, 64, 3).swapaxes(0, 1)
    assert np.abs(made.astype(int) - pinned).max() <= PIXEL_TOLERANCE  # 0 where they were made


@pytest.mark.parametrize("frequency", ["mean", "all"])
@pytest.mark.parametrize("num_samples", [80_000, 12_345, 163_840])
def test_the_ast_hears_as_for_the_training_shards(frequency: Any, num_samples: int) -> None:
    pipeline = tiny_pipeline(frequency=frequency)
    ast, extractor = pipeline.audio_encoder, pipeline.feature_extractor
    assert isinstance(ast, ASTModel)
    assert isinstance(extractor, ASTFeatureExtractor)
    audio_BS = np.random.default_rng(0).normal(0, 0.1, (2, num_samples)).astype(np.float32)

    features_BTD = AstFeatures(ast, extractor, frequency)(audio_BS)

    assert torch.equal(pipeline.encode_audio(audio_BS), features_BTD.half().float())


def test_seed_sound_and_guidance_all_matter(pipeline: AudioPixArtPipeline) -> None:
    def image(sound: int = 0, seed: int = 0, guidance: float = 4.5) -> np.ndarray:
        sound_BS = SOUNDS_BS[sound : sound + 1]
        return pixels(
            pipeline(audio_BS=sound_BS, seeds=[seed], guidance_scale=guidance, num_inference_steps=STEPS).images
        )

    assert np.array_equal(image(), image())
    for other in (image(sound=1), image(seed=1), image(guidance=2.0)):
        assert not np.array_equal(image(), other)


def test_an_image_depends_on_nothing_beside_it(pipeline: AudioPixArtPipeline) -> None:
    audio_BS = np.stack([tone(hz) for hz in (200, 400, 800, 1600, 3200)])

    def made(sounds: slice, batch_size: int, output_type: str):
        given: Any = {"num_inference_steps": STEPS, "batch_size": batch_size, "output_type": output_type}
        return pipeline(audio_BS=audio_BS[sounds], seeds=range(5)[sounds], **given).images

    alone = pixels(made(slice(3, 4), 1, "pil"))[0]
    alone_latents = made(slice(3, 4), 1, "latent")[0]
    assert np.array_equal(pixels(made(slice(0, 5), 1, "pil"))[3], alone)
    for batch_size in (2, 5):
        among = made(slice(0, 5), batch_size, "latent")[3]
        assert (among - alone_latents).abs().max() < LATENT_TOLERANCE * alone_latents.abs().max()
        assert np.abs(pixels(made(slice(0, 5), batch_size, "pil"))[3].astype(int) - alone).max() <= PIXEL_TOLERANCE


def test_every_form_of_output_is_the_same_image(plain: AudioPixArtPipeline) -> None:
    given: Any = {"audio_features": features(0, 2), "seeds": [0, 1], "num_inference_steps": STEPS}
    made = {name: plain(**given, output_type=name).images for name in ("pil", "np", "pt", "latent")}

    assert (made["np"].dtype, made["np"].shape) == (np.float32, (2, 64, 64, 3))
    assert 0 <= made["np"].min() < made["np"].max() <= 1
    assert np.abs(made["np"] - pixels(made["pil"]) / 255).max() <= 0.5001 / 255
    assert torch.equal(made["pt"].permute(0, 2, 3, 1), torch.from_numpy(made["np"]))
    # as the sampler leaves them, as diffusers has it
    unscaled = made["latent"] / plain.vae.config["scaling_factor"]
    assert np.abs(decode(plain.vae, unscaled).astype(int) - pixels(made["pil"])).max() <= PIXEL_TOLERANCE
    (images,) = plain(**given, return_dict=False)
    assert np.array_equal(pixels(images), pixels(made["pil"]))


def test_without_seeds_they_are_drawn_and_told(plain: AudioPixArtPipeline) -> None:
    def made(**given: Any):
        return plain(audio_features=features(0), num_inference_steps=2, num_images_per_prompt=2, **given)

    first, second = made(), made()
    torch.manual_seed(5)
    third = made()
    torch.manual_seed(5)

    assert len({*first.seeds, *second.seeds}) == 4
    assert np.array_equal(pixels(made(seeds=first.seeds).images), pixels(first.images))
    torch.manual_seed(5)
    assert made().seeds == third.seeds


def test_several_images_of_each_condition_follow_each_other(plain: AudioPixArtPipeline) -> None:
    both = latents(plain, audio_features=features(0, 2), num_images_per_prompt=2, seeds=range(4))

    for n, (condition, seed) in enumerate([(0, 0), (0, 1), (1, 2), (1, 3)]):
        alone = latents(plain, audio_features=features(0, 2)[condition : condition + 1], seeds=[seed])
        assert torch.equal(both[n], alone[0])


def test_a_generator_draws_the_noise_as_diffusers_has_it(plain: AudioPixArtPipeline) -> None:
    conditions = features(0, 2)
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))

    one = latents(plain, audio_features=conditions, generator=torch.Generator().manual_seed(1))
    each = [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    assert torch.equal(one, latents(plain, audio_features=conditions, latents=noise))
    assert torch.equal(
        latents(plain, audio_features=conditions, generator=each),
        latents(plain, audio_features=conditions, seeds=[3, 4]),
    )


def test_numbers_are_taken_from_whatever_holds_them(plain: AudioPixArtPipeline) -> None:
    given: Any = {"audio_features": features(0, 2), "num_inference_steps": 2}
    expected = latents(plain, **given, seeds=[3, 4])

    for seeds in (np.array([3, 4]), torch.tensor([3, 4]), (3, 4), range(3, 5), [np.int64(3), torch.tensor(4)]):
        made = plain(**given, seeds=seeds, output_type="latent")
        assert torch.equal(made.images, expected)
        assert made.seeds == [3, 4]
        assert {type(seed) for seed in made.seeds} == {int}
    each = tuple(torch.Generator().manual_seed(seed) for seed in (3, 4))
    assert torch.equal(latents(plain, **given, generator=each), expected)
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    of_noise = latents(plain, **given, latents=noise)
    for other in (noise.numpy(), noise.numpy().astype(">f8"), noise.numpy()[:, :, ::-1].copy()[:, :, ::-1]):
        assert torch.equal(latents(plain, **given, latents=other), of_noise)
    counts: Any = {"num_inference_steps": np.int64(2), "batch_size": torch.tensor(1), "guidance_scale": np.float32(4.5)}
    assert torch.equal(latents(plain, **(given | counts), seeds=[3, 4]), expected)
    of_all: Any = {"guidance_interval": np.array([0.0, np.inf]), "audio_features": features(0, 2).tolist()}
    assert torch.equal(latents(plain, **(given | of_all), seeds=[3, 4]), expected)


SAMPLERS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (DPMSolverMultistepScheduler, {}, {}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, {}),
    (DDIMScheduler, {"clip_sample": False}, {}),
    (DDIMScheduler, {"clip_sample": False}, {"eta": 1.0}),
    (UniPCMultistepScheduler, {}, {}),
    (EulerDiscreteScheduler, {}, {}),
    (EulerAncestralDiscreteScheduler, {}, {}),
    (HeunDiscreteScheduler, {}, {}),
]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize(("kind", "settings", "given"), SAMPLERS)
def test_samplers_do_what_they_do_in_diffusers_own_pipeline(
    kind: Any, settings: dict, given: dict, guidance_scale: float, plain: AudioPixArtPipeline
) -> None:
    condition = torch.from_numpy(features(0, 2)).half().float()
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    plain.scheduler = kind.from_config({**make_scheduler().config, **settings})
    theirs = PixArtAlphaPipeline(None, None, plain.vae, plain.transformer, plain.scheduler)  # pyright: ignore[reportArgumentType] - of text
    theirs.set_progress_bar_config(disable=True)
    alike: Any = {"num_inference_steps": 5, "guidance_scale": guidance_scale, "output_type": "latent", **given}

    (expected,) = theirs(
        negative_prompt=None,  # pyright: ignore[reportArgumentType]
        prompt_embeds=condition,
        prompt_attention_mask=torch.ones(2, 10),
        negative_prompt_embeds=torch.zeros_like(condition),
        negative_prompt_attention_mask=torch.ones(2, 10),
        generator=torch.Generator().manual_seed(7),
        latents=noise,
        use_resolution_binning=False,
        return_dict=False,
        **alike,
    )
    made = plain(
        audio_features=condition, generator=torch.Generator().manual_seed(7), latents=noise, batch_size=2, **alike
    ).images

    assert (made - expected).abs().max() < 1e-5 * expected.abs().max()  # 0 where it was measured


@pytest.mark.parametrize("settings", [{"algorithm_type": "sde-dpmsolver++"}, {}])
def test_a_sampler_of_chance_takes_it_from_the_images_seed(settings: dict, plain: AudioPixArtPipeline) -> None:
    kind: Any = DPMSolverMultistepScheduler if settings else EulerAncestralDiscreteScheduler
    plain.scheduler = kind.from_config({**make_scheduler().config, **settings})

    torch.manual_seed(0)
    both = latents(plain, audio_features=np.repeat(features(0), 2, axis=0), seeds=[1, 2])
    torch.manual_seed(1)

    assert torch.equal(latents(plain, seeds=[2])[0], both[1])


def count_rows(pipeline: AudioPixArtPipeline) -> list[int]:
    rows: list[int] = []
    pipeline.transformer.register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    return rows


def test_guidance_of_1_makes_no_second_pass(plain: AudioPixArtPipeline) -> None:
    rows = count_rows(plain)

    for guidance in (1.0, 1.5):
        latents(plain, seeds=[0], guidance_scale=guidance, num_inference_steps=2)

    assert rows == [1, 1, 2, 2]


def sigmas_of(num_steps: int) -> np.ndarray:
    """The noise levels of the sampler's steps, by the definition: (1 - alpha bar) / alpha bar is sigma squared."""
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    scheduler = make_scheduler()
    scheduler.set_timesteps(num_steps)
    return np.sqrt((1 - kept) / kept)[scheduler.timesteps.numpy()]


def test_half_the_steps_guided_costs_a_quarter_less(plain: AudioPixArtPipeline) -> None:
    sigmas = sigmas_of(20)
    rows = count_rows(plain)

    whole = latents(plain, seeds=[0], num_inference_steps=20)
    everywhere = latents(plain, seeds=[0], num_inference_steps=20, guidance_interval=(0.0, 1000.0))
    assert rows == [2] * 40
    assert torch.equal(whole, everywhere)

    rows.clear()
    half = latents(plain, seeds=[0], num_inference_steps=20, guidance_interval=(sigmas[14] * 0.99, sigmas[5] * 1.01))
    assert rows == [1] * 5 + [2] * 10 + [1] * 5
    assert sum(rows) == 0.75 * 40
    assert not torch.equal(half, whole)
    rows.clear()
    latents(plain, seeds=[0], num_inference_steps=20, guidance_interval=(sigmas[14] * 1.01, sigmas[5] * 0.99))
    assert rows == [1] * 6 + [2] * 8 + [1] * 6


def test_guidance_leads_away_from_the_null_condition(plain: AudioPixArtPipeline) -> None:
    def one_step(audio_BTD: np.ndarray, guidance: float, **given: Any) -> torch.Tensor:
        # linear in what the model says
        return latents(
            plain, audio_features=audio_BTD, seeds=[0], guidance_scale=guidance, num_inference_steps=1, **given
        )

    for given, null_BTD in (({}, np.zeros_like(features(0))), ({"negative_audio_features": features(1)}, features(1))):
        conditioned, null = one_step(features(0), 1.0), one_step(null_BTD, 1.0)
        expected = null + 3.0 * (conditioned - null)
        scale = expected.abs().max()
        assert (one_step(features(0), 3.0, **given) - expected).abs().max() < 1e-5 * scale
        assert (conditioned - null).abs().max() > 1e-3 * scale
    shared = one_step(features(0), 3.0, negative_audio_features=features(1)[0])
    assert torch.equal(shared, one_step(features(0), 3.0, negative_audio_features=features(1)))


def test_a_negative_condition_for_each_is_its_own(plain: AudioPixArtPipeline) -> None:
    given: Any = {"num_images_per_prompt": 2, "seeds": range(4)}

    both = latents(plain, audio_features=features(0, 2), negative_audio_features=features(1, 2), **given)

    alone = latents(
        plain, audio_features=features(0, 2)[1:], negative_audio_features=features(1, 2)[1:], seeds=[2, 3],
        num_images_per_prompt=2,
    )  # fmt: skip
    assert torch.equal(both[2:], alone)


def test_a_callback_sees_each_step_and_may_change_it(plain: AudioPixArtPipeline) -> None:
    seen: list[tuple[int, int, list[str]]] = []

    def look(pipe: AudioPixArtPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        assert pipe is plain
        assert (pipe.num_timesteps, pipe.guidance_scale) == (STEPS, 4.5)
        seen.append((step, int(timestep), [*tensors]))
        return {}

    def forget(_pipe: Any, step: int, _timestep: Any, tensors: dict) -> dict:
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else {}

    untouched = latents(plain, seeds=[0])
    names = ["latents", "audio_features", "negative_audio_features"]
    watched = latents(plain, seeds=[0], callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)

    assert torch.equal(watched, untouched)
    scheduler = make_scheduler()
    scheduler.set_timesteps(STEPS)
    assert seen == [(n, int(timestep), names) for n, timestep in enumerate(scheduler.timesteps)]
    assert not latents(plain, seeds=[0], callback_on_step_end=forget).any()


def test_a_callback_may_change_the_condition_or_stop(plain: AudioPixArtPipeline) -> None:
    rows = count_rows(plain)

    def blank(_pipe: Any, _step: int, _timestep: Any, tensors: dict) -> dict:
        return {"audio_features": torch.zeros_like(tensors["audio_features"])}

    def stop(pipe: Any, _step: int, _timestep: Any, _tensors: dict) -> dict:
        pipe._interrupt = True
        return {}

    changed = latents(
        plain, seeds=[0], callback_on_step_end=blank, callback_on_step_end_tensor_inputs=["audio_features"]
    )
    assert not torch.equal(changed, latents(plain, seeds=[0]))
    rows.clear()
    latents(plain, seeds=[0], callback_on_step_end=stop)
    assert rows == [2]
    latents(plain, seeds=[0])
    assert len(rows) == 1 + STEPS


def test_the_progress_bar_counts_steps_and_can_be_turned_off(
    plain: AudioPixArtPipeline, capsys: pytest.CaptureFixture
) -> None:
    plain.scheduler = HeunDiscreteScheduler.from_config(make_scheduler().config)  # two passes a step
    latents(plain, audio_features=features(0, 2), seeds=[0, 1])
    assert "6/6" in capsys.readouterr().err

    plain.set_progress_bar_config(disable=True)
    latents(plain, seeds=[0])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("null_condition", ["zeros", "silence"])
def test_offloading_changes_nothing(null_condition: str) -> None:
    """The parts' weights lie on `meta` while they rest, and none of what is computed may go there."""
    given: Any = {"audio_BS": SOUNDS_BS, "seeds": [3, 4], "num_inference_steps": 2}
    expected = pixels(tiny_pipeline(null_condition=null_condition)(**given).images)
    pipeline = tiny_pipeline(null_condition=null_condition)
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    for network in networks:
        cpu_offload(network, torch.device("cpu"), offload_buffers=bool(network._parameters))

    made = pixels(pipeline(**given).images)

    assert {part.device.type for part in (pipeline.audio_encoder, pipeline.transformer, pipeline.vae) if part} == {
        "meta"
    }
    assert np.array_equal(made, expected)
    pipeline = tiny_pipeline(null_condition=null_condition)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(pixels(pipeline(**given).images), expected)


def test_features_need_no_ast_and_are_rounded_as_in_training(plain: AudioPixArtPipeline) -> None:
    assert torch.equal(
        latents(plain, seeds=[0]), latents(plain, seeds=[0], audio_features=features(0).astype(np.float16))
    )
    with pytest.raises(ValueError, match="has no AST"):
        plain(audio_BS=SOUNDS_BS[:1], seeds=[0])


def test_features_of_a_sound_are_the_sound(pipeline: AudioPixArtPipeline) -> None:
    given: Any = {"seeds": [5], "num_inference_steps": 2, "output_type": "np"}
    audio_BTD = pipeline.encode_audio(SOUNDS_BS[:1])

    assert audio_BTD.shape == (1, 49, 32)
    heard = pipeline(audio_BS=SOUNDS_BS[:1], **given).images
    assert np.array_equal(heard, pipeline(audio_features=audio_BTD, **given).images)


def test_a_sampler_of_another_kind_is_refused(plain: AudioPixArtPipeline) -> None:
    plain.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"expected a sampler of noise levels.* found FlowMatchEulerDiscreteScheduler"):
        plain(audio_features=np.zeros((1, 4, 24), np.float32))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 32_000, 2), r"expected \(B, S\).* found \(1, 32000, 2\)"),
        ((32_000,), r"expected \(B, S\)"),
        ((1, 480_000), "a sound of 30 s: this AST hears 10.24 s at most"),
        ((1, 163_841), "10.24 s at most"),
        ((1, 500), "too short for AST"),
    ],
)
def test_a_sound_that_the_ast_cannot_take_is_refused(
    shape: tuple[int, ...], message: str, pipeline: AudioPixArtPipeline
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.encode_audio(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("audio_BS", "message"),
    [
        (np.zeros((0, 80_000), np.float32), r"expected \(B, S\).* found \(0, 80000\)"),
        ((SOUNDS_BS * 32767).astype(np.int16), "audio_BS as floats within 1, found torch.int16"),
        (SOUNDS_BS * np.float32(np.nan), "audio_BS as an array of finite, real numbers"),
        (SOUNDS_BS * 1j, "audio_BS as an array of finite, real numbers"),
        (SOUNDS_BS.astype(object), "audio_BS as an array of numbers"),
        ("a.wav", "audio_BS as an array of numbers"),
    ],
)
def test_what_is_no_sound_is_refused(audio_BS: Any, message: str, pipeline: AudioPixArtPipeline) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.encode_audio(audio_BS)
    with pytest.raises(ValueError, match=message):
        pipeline(audio_BS=audio_BS, num_inference_steps=1)


@pytest.mark.parametrize(
    ("recording", "given", "message"),
    [
        *(
            (SOUNDS_BS[0], {"sampling_rate": rate}, "recording 0: expected a sampling_rate of 1000 to 192000 Hz")
            for rate in ("16000", [16_000], 16_000j, True, float("nan"), np.array([16_000]))
        ),
        *(({key: SOUNDS_BS[0]}, {}, "expected a dict with `array` and `sampling_rate`") for key in ("array", "path")),
        (torch.from_numpy(SOUNDS_BS[0]).to_sparse(), {"sampling_rate": 16_000}, "samples as a dense tensor"),
        *(
            (SOUNDS_BS[0], {"sampling_rate": 16_000, "target_lufs": lufs}, "target_lufs, a number of -70 to 0")
            for lufs in (float("inf"), -float("inf"), float("nan"), "-30", 1, -71)
        ),
        *((SOUNDS_BS[0], {"sampling_rate": 16_000, "level": level}, "expected a level") for level in ("", ["window"])),
    ],
)
def test_what_is_no_recording_is_refused(
    recording: Any, given: dict, message: str, pipeline: AudioPixArtPipeline
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(recording, num_inference_steps=1, **given)


def test_a_rate_is_taken_from_whatever_holds_it(pipeline: AudioPixArtPipeline) -> None:
    expected, _ = pipeline.cut(SOUNDS_BS[0], 16_000)

    for rate in (np.int64(16_000), np.float32(16_000), torch.tensor(16_000)):
        assert np.array_equal(pipeline.cut({"array": SOUNDS_BS[0], "sampling_rate": rate})[0], expected)


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


# What is no condition, once each number of one is multiplied by it: not finite, not in float16 or not real.
BAD = (features(0) + 1, [float("nan"), float("inf"), 1e6, 1j])


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator() for _ in range(count)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"audio_features": None, "seeds": [0]}, "only one of them"),
        ({"audio_BS": SOUNDS_BS, "seeds": [0]}, "only one of them"),
        ({"sampling_rate": 16_000}, "are for `audio`"),
        ({"level": "window"}, "are for `audio`"),
        ({"target_lufs": -30.0}, "are for `audio`"),
        ({"seeds": [0, 1]}, "a seed for each image, found 2 for 1"),
        ({"num_images_per_prompt": 2, "seeds": [0]}, "a seed for each image, found 1 for 2"),
        ({"audio_features": features(0, count=0), "seeds": []}, r"\(B, T, 24\)"),
        ({"seeds": [-1]}, "seeds from 0"),
        *(
            ({"seeds": seeds}, "seeds from 0")
            for seeds in (5, "7", [1.5], [True], [None], ["1"], np.array([1.0]), np.array([[1]]), torch.tensor([-1]))
        ),
        *(({"audio_features": BAD[0] * factor}, "audio_features") for factor in BAD[1]),
        *(({"negative_audio_features": BAD[0] * factor}, "negative_audio_features") for factor in BAD[1]),
        ({"audio_features": features(0)[:, :0]}, r"\(B, T, 24\)"),
        *(
            ({"audio_features": given}, "audio_features as an array")
            for given in ("x", features(0).astype(object), torch.zeros(1, 10, 24).to_sparse(), features(0) > 0.5)
        ),
        *(
            ({"latents": torch.zeros(1, 4, 8, 8) + given}, "latents as an array of finite, real numbers")
            for given in (float("nan"), float("inf"), 1j)
        ),
        ({"latents": [1]}, "latents of shape"),
        ({"latents": torch.zeros(1, 4, 8, 8, device="meta")}, "latents as an array"),
        *(
            ({key: given}, key)
            for key in ("num_images_per_prompt", "num_inference_steps", "batch_size")
            for given in (1.5, True, None, "2", float("nan"), np.array([2]), torch.tensor(True))
        ),
        ({"num_inference_steps": 1001}, "at least 1 and at most 1000, found 1001"),
        *(
            ({"guidance_scale": given}, "guidance_scale")
            for given in (float("nan"), float("inf"), None, "4", 4j, 10**400, True)
        ),
        ({"guidance_scale": 1e38, "num_inference_steps": 2}, "latents that are not finite"),
        *(({"eta": given}, "expected eta, a number of 0 to 1") for given in ("x", None, -0.1, 1.1, float("nan"))),
        *(
            ({"guidance_interval": given}, "guidance_interval as")
            for given in ((1,), (), (1, 2, 3), "ab", 5, (None, 1), (float("nan"), 1), (0, float("nan")), (False, True))
        ),
        *(({"generator": given}, "expected a torch.Generator") for given in (5, [5], [None], "x")),
        ({"seeds": [2**63]}, "seeds from 0"),
        ({"audio_features": features(0, width=20), "seeds": [0]}, r"\(B, T, 24\)"),
        ({"guidance_scale": 0.5}, "at least 1"),
        ({"num_images_per_prompt": 0}, "at least 1"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"output_type": "numpy"}, "one of pil, np, pt, latent"),
        ({"guidance_interval": (5.0, 0.3)}, "guidance_interval as"),
        ({"guidance_interval": (-1.0, 0.3)}, "guidance_interval as"),
        ({"seeds": [0], "generator": torch.Generator()}, "and not both"),
        ({"seeds": [0], "latents": torch.zeros(1, 4, 8, 8)}, "and not both"),
        ({"generator": generators(2)}, "one for each image, found 2 for 1"),
        ({"latents": torch.zeros(1, 4, 8, 9)}, r"latents of shape \(1, 4, 8, 8\)"),
        ({"negative_audio_features": features(0, count=2)}, "negative_audio_features of shape"),
        ({"negative_audio_features": features(0, count=0)}, "negative_audio_features of shape"),
        ({"negative_audio_features": features(0)[:, :9]}, "negative_audio_features of shape"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            "callback_on_step_end_tensor_inputs",
        ),
    ],
)
def test_contradicting_or_senseless_arguments_are_refused(
    arguments: dict, message: str, plain: AudioPixArtPipeline
) -> None:
    with pytest.raises(ValueError, match=message):
        plain(**({"audio_features": features(0), "num_inference_steps": 1} | arguments))
