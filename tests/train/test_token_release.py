"""AudioToken's release is read as data too, and is whole without this package."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from safetensors.torch import load_file, save_file

from tests.builders import RATE_HZ, refused, sine, write_sound
from tests.processes import run_python
from tests.tiny_networks import edit_json, edit_weights, tiny_token_pipeline, write_tiny_audiotoken
from tests.train.test_released import (
    AS_DIFFUSERS_DOES,
    bare_python,
    break_weights,
    cut,
    set_in,
    set_index,
    set_scheduler,
    without,
    write,
)
from train.embedder import Embedder
from train.generate import main
from train.kinds import AUDIOTOKEN, PIXART
from train.manifest import GenerationSettings, read_manifest
from train.released import INDEX, PIPELINE_CODE, find_release, load_pipeline, pipeline_source
from train.token_pipeline import AudioTokenPipeline

CPU = torch.device("cpu")
UNET, EMBEDDER = "unet/diffusion_pytorch_model.safetensors", "embedder/diffusion_pytorch_model.safetensors"
TEXT, EAR = "text_encoder/model.safetensors", "audio_encoder/model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_audiotoken(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture(scope="module")
def with_ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_audiotoken(tmp_path_factory.mktemp("ast") / "model", "ast", frequency="mean")


def test_a_release_holds_data_and_the_code_that_runs_here(whole: Path, with_ast: Path) -> None:
    files = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}

    assert {name for name in files if name.endswith(".py")} == {
        PIPELINE_CODE, "embedder/embedder.py", "audio_encoder/beats.py"
    }  # fmt: skip
    assert {Path(name).suffix for name in files} == {".py", ".json", ".safetensors"}
    assert (whole / PIPELINE_CODE).read_bytes() == pipeline_source(AUDIOTOKEN)
    index = json.loads((whole / INDEX).read_text())
    assert (index["embedder"], index["audio_encoder"]) == (["embedder", "Embedder"], ["beats", "Beats"])
    assert json.loads((with_ast / INDEX).read_text())["audio_encoder"] == ["transformers", "ASTModel"]
    assert not [*(with_ast / "audio_encoder").glob("*.py")]


@pytest.mark.parametrize("ear", ["beats", "ast"])
def test_what_is_loaded_is_what_was_saved(ear: str, whole: Path, with_ast: Path) -> None:
    folder = whole if ear == "beats" else with_ast
    loaded = load_pipeline(folder, CPU, torch.float32)

    assert type(loaded) is AudioTokenPipeline
    saved = tiny_token_pipeline(ear, frequency=loaded.config["frequency"])
    assert {key: loaded.config[key] for key in AUDIOTOKEN.settings} == {
        key: saved.config[key] for key in AUDIOTOKEN.settings
    }
    given = {"audio_BS": sine(300, level=0.1).astype(np.float32)[None], "seeds": [1], "num_inference_steps": 2}
    assert np.array_equal(np.asarray(loaded(**given).images[0]), np.asarray(saved(**given).images[0]))
    assert find_release(str(folder)).path == folder


@pytest.mark.parametrize("ear", ["beats", "ast"])
def test_diffusers_alone_makes_the_same_image(ear: str, whole: Path, with_ast: Path, tmp_path: Path) -> None:
    folder = whole if ear == "beats" else with_ast
    sound = write_sound(tmp_path / "dog.wav", sine(300, level=0.1), RATE_HZ)
    here = np.asarray(load_pipeline(folder, CPU, torch.float32)(sound, seeds=[3], num_inference_steps=3).images[0])
    settings = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    settings["OMP_NUM_THREADS"] = str(torch.get_num_threads())

    python = bare_python(tmp_path / "venv")
    run_python(AS_DIFFUSERS_DOES, folder, sound, tmp_path / "out.npy", python=python, env=settings, cwd=tmp_path)

    assert np.array_equal(np.load(tmp_path / "out.npy"), here)


@pytest.mark.parametrize(
    "place",
    [PIPELINE_CODE, "embedder/embedder.py", "audio_encoder/beats.py", "unet/diffusers.py", "tokenizer/transformers.py"],
)
def test_no_code_of_a_release_is_run_by_us(place: str, whole: Path, tmp_path: Path) -> None:
    model, written = tmp_path / "model", tmp_path / "written"
    shutil.copytree(whole, model)
    (model / place).write_text(f"open({str(written)!r}, 'w')\n")

    load_pipeline(model, CPU, torch.float32)

    assert not written.exists()


def test_other_samplers_over_the_same_schedule_are_loaded(whole: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(whole, model)
    sampler: Any = DDIMScheduler.from_config(
        load_pipeline(whole, CPU, torch.float32).scheduler.config, clip_sample=False
    )
    sampler.save_pretrained(model / "scheduler")

    assert type(load_pipeline(model, CPU, torch.float32).scheduler) is DDIMScheduler


def other_unet(folder: Path) -> None:
    network = UNet2DConditionModel.from_pretrained(folder / "unet")
    config = dict(network.config) | {"cross_attention_dim": 48}
    made: Any = UNet2DConditionModel.from_config(config)
    made.save_pretrained(folder / "unet")


def other_embedder(audio_width: int, token_width: int) -> Callable[[Path], object]:
    return lambda folder: Embedder(audio_width, token_width).save_pretrained(folder / "embedder")


def other_scheduler(folder: Path) -> None:
    HeunDiscreteScheduler().save_pretrained(folder / "scheduler")


def number_word(number: int) -> Callable[[Path], object]:
    def change(content: dict[str, Any]) -> None:
        content["model"]["vocab"]["a"] = number

    return lambda folder: edit_json(folder / "tokenizer" / "tokenizer.json", change)


def sampler(kind: Any, **settings: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        kind.from_config(tiny_token_pipeline(None).scheduler.config).save_pretrained(folder / "scheduler")
        set_index(scheduler=["diffusers", kind.__name__])(folder)
        set_scheduler(**settings)(folder)

    return change


def index_never_ends(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / INDEX).symlink_to("/dev/zero")


def index_is_a_pipe(folder: Path) -> None:
    (folder / INDEX).unlink()
    os.mkfifo(folder / INDEX)


def whole_numbers(folder: Path) -> None:
    edit_weights(folder / EAR, lambda tensors: tensors.update({name: t.char() for name, t in tensors.items()}))


def drop(path: str, name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / path)
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / path, {"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_index(layers=[4, 8, 13]), "audio_encoder: expected layers [4, 8, 13] of its 12, lacking [], found [13]"),
        (
            set_index(layers=[4, 8]),
            "embedder: expected audio_width, of the layers of the encoder together, 64, found 96",
        ),
        (set_index(layers=[4, 4, 8]), "expected a setting layers, numbers of layers from 1 to 64, each once"),
        (set_index(layers=[4, 8, True]), "expected a setting layers"),
        (set_index(layers="4"), "expected a setting layers"),
        (set_index(layers=[10**9]), "expected a setting layers"),
        (set_index(prompt="a photo"), "expected the placeholder <*> once in the prompt, found it no time"),
        (set_index(prompt="<*>" + "x" * 90), "expected a prompt under 77 tokens"),
        (set_index(prompt=3), "expected a setting prompt, a text, found 3"),
        (set_index(placeholder=""), "expected a setting placeholder, a word of at most 100 letters"),
        (set_index(placeholder="x"), "the placeholder 'x' is a word that the tokenizer knows"),
        (set_index(frequency="some"), "expected a setting frequency, mean or all"),
        (set_index(clip_seconds=11), "expected a setting clip_seconds, 1 to 10.24, found 11"),
        (set_index(level=None), "expected a setting level, window or recording"),
        (set_index(loudness_lufs=[0]), "expected a setting loudness_lufs"),
        (set_index(audio_encoder="beats"), "expected a setting audio_encoder, the kind of a component"),
        (lambda folder: edit_json(folder / INDEX, lambda index: index.pop("layers")), "expected a setting layers"),
        (set_index(feature_extractor=["transformers", "ASTFeatureExtractor"]), "feature_extractor: expected"),
        (set_index(_class_name="StableDiffusionPipeline"), "found StableDiffusionPipeline"),
        (set_index(_class_name=["pipeline", "AudioTokenPipeline"]), "expected a pipeline of kind"),
        (other_unet, "unet/config.json: expected cross_attention_dim 32, as wide as the text tower, found 48"),
        (other_embedder(96, 48), "embedder/config.json: expected token_width 32, as wide as the text tower, found 48"),
        (other_embedder(64, 32), "embedder: expected audio_width, of the layers of the encoder together, 96, found 64"),
        (set_in("unet/config.json", cross_attention_dim=48), "expected cross_attention_dim 32"),
        (set_in("unet/config.json", sample_size=4096), "expected sample_size, the side of latents, of 1 to 512"),
        (set_in("unet/config.json", in_channels=5), "of the tensors of UNet2DConditionModel are not in the weights"),
        (set_in("unet/config.json", layers_per_block=60_000), "expected layers_per_block of"),
        (set_in("unet/config.json", _class_name="UNet2DModel"), "expected the class UNet2DConditionModel"),
        (set_in("embedder/config.json", _class_name="Linear"), "embedder: expected the class Embedder, found Linear"),
        (
            set_in("embedder/config.json", audio_width=97),
            "embedder: 3 of the tensors of Embedder are not in the weights",
        ),
        (set_in("embedder/config.json", audio_width=10**8), "expected audio_width of 65536 at most"),
        (set_in("text_encoder/config.json", num_hidden_layers=3), "expected num_hidden_layers 2, as many as in its"),
        (
            set_in("text_encoder/config.json", hidden_size=64),
            "text_encoder: expected hidden_size [32], as in its weights",
        ),
        (set_in("text_encoder/config.json", model_type="bert"), "expected a model of type 'clip_text_model'"),
        (set_in("text_encoder/config.json", vocab_size=600), "text_encoder: 1 of the tensors of CLIPTextModel"),
        (set_in("text_encoder/config.json", vocab_size=500), "tokenizer.json: expected numbers of words below 500"),
        (number_word(10**9), "tokenizer.json: expected numbers of words below 514"),
        (number_word(-1), "tokenizer.json: expected numbers of words below 514"),
        (set_index(placeholder="\ud800"), "expected a setting placeholder, a word of at most 100 letters"),
        (set_index(prompt="a <*> \ud800"), "expected a setting prompt, a text"),
        (
            set_in("unet/config.json", norm_eps=[]),
            "unet/config.json: expected norm_eps as UNet2DConditionModel takes it",
        ),
        (set_in("unet/config.json", mid_block_scale_factor={}), "expected mid_block_scale_factor as UNet2DCondition"),
        (set_in("vae/config.json", norm_num_groups=0.5), "vae/config.json: expected norm_num_groups as AutoencoderKL"),
        (set_in("embedder/config.json", upstream_dropout=0), "expected upstream_dropout as Embedder takes it"),
        (set_scheduler(timestep_spacing="x"), "expected timestep_spacing as PNDMScheduler takes it"),
        (set_scheduler(steps_offset=60_000), "expected steps_offset 0 or 1, found 60000"),
        (set_scheduler(steps_offset=-5), "expected steps_offset 0 or 1, found -5"),
        (sampler(DDIMScheduler, thresholding="x"), "expected thresholding as DDIMScheduler takes it"),
        (sampler(DDIMScheduler, clip_sample_range="x"), "expected clip_sample_range as DDIMScheduler takes it"),
        (sampler(EulerDiscreteScheduler, interpolation_type="q"), "cannot load"),
        (index_never_ends, "model_index.json: is a link out of the release"),
        (index_is_a_pipe, "model_index.json: expected a file, found none"),
        (write("model_index.json", " " * 2**20 + "{}"), "model_index.json: expected 1048576 bytes at most"),
        (whole_numbers, "audio_encoder: expected weights as floating-point numbers, found torch.int8"),
        (
            set_in("audio_encoder/config.json", encoder_layers=13),
            "audio_encoder: the tensors are not those of the BEATs",
        ),
        (set_in("audio_encoder/config.json", model_type="hubert"), "expected a model of type 'beats'"),
        (
            set_in("tokenizer/tokenizer_config.json", model_max_length=[1]),
            "expected model_max_length as a number, found",
        ),
        (set_scheduler(prediction_type="v_prediction"), "expected prediction_type epsilon, found v_prediction"),
        (set_scheduler(beta_end=2.0), "expected beta_start and beta_end in order between 0 and 1: True, found False"),
        (set_scheduler(num_train_timesteps=10), "expected num_train_timesteps 1000, found 10"),
        (other_scheduler, "expected the class PNDMScheduler or DDIMScheduler"),
        *(
            (break_weights(path), f"{path.split('/')[0]}: expected finite weights")
            for path in (UNET, EMBEDDER, TEXT, EAR)
        ),
        *((cut(path), path.split("/")[0]) for path in (UNET, EMBEDDER, TEXT, EAR)),
        (drop(EMBEDDER, "fga.reduce_potentials.0.weight"), "embedder: 1 of the tensors of Embedder"),
        *(
            (without(f"{part}/{name}"), f"{part}: expected {name} in it, found none")
            for part, name in AUDIOTOKEN.parts.items()
            if part != "feature_extractor"
        ),
        *(
            (write(f"{part}/{name}", text), part)
            for part, name in AUDIOTOKEN.parts.items()
            if part != "feature_extractor"
            for text in ('"x"', "[]", "{")
        ),
    ],
)
def test_another_or_damaged_model_is_one_clear_line(
    damage: Callable[[Path], object], message: str, whole: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(whole, model)
    damage(model)

    with refused(re.escape(message)) as error:
        load_pipeline(model, CPU, torch.float32)

    assert str(model) in str(error.value)
    assert "\n" not in str(error.value)


def grow(path: str) -> Callable[[Path], object]:
    return lambda folder: edit_weights(
        folder / path, lambda tensors: tensors.update({name: tensor * 1e30 for name, tensor in tensors.items()})
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (UNET, "latents that are not finite"),
        (EMBEDDER, "latents that are not finite"),
        (EAR, "expected what the encoder hears as an array of finite, real numbers"),
        ("vae/diffusion_pytorch_model.safetensors", "pixels that are not finite"),
    ],
)
def test_a_release_that_makes_no_image_is_one_line_and_no_file(
    path: str, why: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = Path(shutil.copytree(whole, tmp_path / "model"))
    grow(path)(model)
    sound = write_sound(tmp_path / "dog.wav", sine(300, level=0.1), RATE_HZ)
    out = tmp_path / "out" / "dog.png"

    assert main(["--model", str(model), "--audio", str(sound), "--steps", "2", "--out", str(out)]) == 3

    (said,) = [line for line in capsys.readouterr().err.splitlines() if "windows of sound" not in line]
    assert f"{model}: makes no image" in said
    assert why in said
    assert not any(out.parent.iterdir())


def test_the_command_takes_guidance_and_steps_from_the_model(whole: Path, tmp_path: Path) -> None:
    assert [(kind.guidance, kind.steps) for kind in (PIXART, AUDIOTOKEN)] == [(4.5, 20), (7.5, 50)]
    sound = write_sound(tmp_path / "dog.wav", sine(300, level=0.1), RATE_HZ)

    def made(folder: str, *options: str) -> tuple[object, object]:
        out = tmp_path / folder
        assert main(["--model", str(whole), "--audio", str(sound), "--seeds", "1", "--out", str(out), *options]) == 0
        (row,) = read_manifest(out)
        assert isinstance(row.settings, GenerationSettings)
        return row.settings.guidance, row.settings.steps

    assert made("own") == (7.5, 50)
    assert made("asked", "--steps", "2", "--guidance", "3") == (3.0, 2)
