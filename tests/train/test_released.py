"""A release is read as data: a damaged one is one clear line, and its code is run by nobody but who asks for it."""

import ast
import inspect
import json
import os
import re
import shutil
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file

import train.hearing
import train.pipeline
import train.sampling
from sonify.config import Mix
from tests.builders import RATE_HZ, refused, sine, write_sound
from tests.processes import run_python
from tests.servers import MODEL, running_hub
from tests.tiny_networks import edit_json, edit_weights, tiny_transformer, write_tiny_pixart
from train.kinds import PIXART
from train.released import PIPELINE_CODE, load_pipeline, pipeline_source

CPU = torch.device("cpu")
# What a release's code may ask of whoever has not this package.
NEEDED = {"numpy", "torch", "diffusers", "transformers", "PIL"}

AS_DIFFUSERS_DOES = """
import sys
sys.modules["sonify"] = sys.modules["train"] = None  # whoever imports them now fails
import numpy as np
from diffusers import DiffusionPipeline
folder, sound, out = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
assert type(pipeline).__module__.startswith("diffusers_modules"), type(pipeline)
made = pipeline(sound, seeds=[3], num_inference_steps=3)
np.save(out, np.asarray(made.images[0]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_pixart(tmp_path_factory.mktemp("whole") / "model")
    (folder / PIPELINE_CODE).write_bytes(pipeline_source())
    return folder


def test_what_is_loaded_has_the_settings_that_were_saved(tmp_path: Path) -> None:
    write_tiny_pixart(
        tmp_path, null_condition="silence", clip_seconds=2.5, level="recording", loudness_lufs=(-24.0, -20.0)
    )

    config = load_pipeline(tmp_path, CPU, torch.float32).config

    assert (config["frequency"], config["clip_seconds"], config["null_condition"]) == ("mean", 2.5, "silence")
    assert (config["level"], config["loudness_lufs"]) == ("recording", [-24.0, -20.0])


def test_a_release_of_before_was_trained_on_windows_at_the_default_loudness(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "model" / PIPELINE_CODE).unlink()
    edit_json(
        tmp_path / "model" / "model_index.json", lambda index: [index.pop(key) for key in ("level", "loudness_lufs")]
    )

    config = load_pipeline(tmp_path / "model", CPU, torch.float32).config

    assert (config["level"], config["loudness_lufs"]) == ("window", [*Mix().lufs])


def test_the_code_of_a_release_needs_nothing_of_ours() -> None:
    tree = ast.parse(pipeline_source())

    roots = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 and node.module for node in froms)
    roots |= {(node.module or "").split(".")[0] for node in froms}
    assert roots - sys.stdlib_module_names == NEEDED
    # with one more, diffusers would not know which one is meant
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    bases = [base.id for node in classes for base in node.bases if isinstance(base, ast.Name)]
    assert bases.count("DiffusionPipeline") == 1


def test_a_release_holds_the_code_that_runs_here(whole: Path) -> None:
    code = (whole / PIPELINE_CODE).read_text()

    assert (whole / PIPELINE_CODE).read_bytes() == pipeline_source()
    for part in (train.pipeline.AudioPixArtPipeline, train.hearing.resample, train.sampling.make_images):
        assert inspect.getsource(part) in code
    assert json.loads((whole / "model_index.json").read_text())["_class_name"] == "AudioPixArtPipeline"


def bare_python(folder: Path) -> Path:
    """An interpreter with the libraries that are installed here, and without this package."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # what such a file adds is searched for modules, and not for other such files, as that of an editable package
    (site / "libraries.pth").write_text(f"{Path(diffusers.__file__).parents[1]}\n")
    return folder / "bin" / "python"


def test_diffusers_alone_makes_the_same_image(whole: Path, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "dog.wav", sine(300, level=0.1), RATE_HZ)
    pipeline = load_pipeline(whole, CPU, torch.float32)
    here = np.asarray(pipeline(sound, seeds=[3], num_inference_steps=3).images[0])
    settings = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    settings["OMP_NUM_THREADS"] = str(torch.get_num_threads())

    python = bare_python(tmp_path / "venv")
    paths = (whole, sound, tmp_path / "out.npy")
    run_python(AS_DIFFUSERS_DOES, *paths, python=python, env=settings, cwd=tmp_path)

    assert np.array_equal(np.load(tmp_path / "out.npy"), here)


@pytest.mark.parametrize(
    "place", [PIPELINE_CODE, "scheduler/diffusers.py", "vae/diffusers.py", "audio_encoder/transformers.py"]
)
def test_no_code_of_a_release_is_run_by_us(place: str, whole: Path, tmp_path: Path) -> None:
    model, written = tmp_path / "model", tmp_path / "written"
    shutil.copytree(whole, model)
    (model / place).write_text(f"open({str(written)!r}, 'w')\n")

    pipeline = load_pipeline(model, CPU, torch.float32)

    assert type(pipeline) is train.pipeline.AudioPixArtPipeline
    assert not written.exists()


def test_a_release_that_names_its_own_code_is_refused(whole: Path, tmp_path: Path) -> None:
    model, written = tmp_path / "model", tmp_path / "written"
    shutil.copytree(whole, model)
    (model / PIPELINE_CODE).write_text(f"open({str(written)!r}, 'w')\n")
    set_index(_class_name=["pipeline", "AudioPixArtPipeline"])(model)

    with refused("expected a pipeline of kind AudioPixArtPipeline or AudioTokenPipeline, found"):
        load_pipeline(model, CPU, torch.float32)

    assert not written.exists()


def without(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).unlink()


def cut(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:-1000])


def set_in(path: str, **settings: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / path, lambda content: content.update(settings))


def set_scheduler(**settings: object) -> Callable[[Path], object]:
    return set_in("scheduler/scheduler_config.json", **settings)


def set_index(**settings: object) -> Callable[[Path], object]:
    return set_in("model_index.json", **settings)


def set_front_end(**settings: object) -> Callable[[Path], object]:
    return set_in("feature_extractor/preprocessor_config.json", **settings)


def break_weights(path: str) -> Callable[[Path], object]:
    def set_nan(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values())).view(-1)[3] = float("nan")

    return lambda folder: edit_weights(folder / path, set_nan)


def other_scheduler(folder: Path) -> None:
    DDIMScheduler().save_pretrained(folder / "scheduler")
    set_index(scheduler=["diffusers", "DDIMScheduler"])(folder)


def other_width(folder: Path) -> None:
    tiny_transformer(caption_channels=48).save_pretrained(folder / "transformer")


def write(path: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_text(text)


def index_leads_out(folder: Path) -> None:
    whole = folder / AST
    names = load_file(whole)
    whole.rename(folder.parent / "elsewhere.safetensors")
    weight_map = dict.fromkeys(names, "../../elsewhere.safetensors")
    (folder / f"{AST}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def weights_lie_elsewhere(folder: Path) -> None:
    (folder / VAE).rename(folder.parent / "elsewhere.safetensors")
    (folder / VAE).symlink_to(folder.parent / "elsewhere.safetensors")


def settings_lie_elsewhere(folder: Path) -> None:
    (folder / "vae").rename(folder.parent / "vae")
    (folder / "vae").symlink_to(folder.parent / "vae")


def set_vae(**settings: object) -> Callable[[Path], object]:
    return set_in("vae/config.json", **settings)


TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE, AST = "vae/diffusion_pytorch_model.safetensors", "audio_encoder/model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_scheduler, "expected the class DPMSolverMultistepScheduler, found DDIMScheduler"),
        (set_scheduler(prediction_type="v_prediction"), "expected prediction_type epsilon, found v_prediction"),
        (set_scheduler(num_train_timesteps=500), "expected num_train_timesteps 1000, found 500"),
        (set_scheduler(beta_schedule="scaled_linear"), "expected beta_schedule linear"),
        (set_scheduler(beta_end=0.03), "expected beta_end 0.02, found 0.03"),
        (set_index(frequency="some"), "expected a setting frequency, mean or all, found 'some'"),
        (set_index(null_condition="noise"), "expected a setting null_condition"),
        (set_index(clip_seconds=True), "expected a setting clip_seconds, 1 to 10.24, found True"),
        (set_index(clip_seconds=0.5), "expected a setting clip_seconds"),
        (set_index(clip_seconds=10.25), "expected a setting clip_seconds"),
        (set_index(clip_seconds=float("nan")), "expected a setting clip_seconds"),
        (set_index(level="clip"), "expected a setting level, window or recording, found 'clip'"),
        (set_index(loudness_lufs=[-28.0, -32.0]), "expected a setting loudness_lufs, [low, high] between -70 and 0"),
        (set_index(loudness_lufs=[-32.0, float("nan")]), "expected a setting loudness_lufs"),
        (set_index(loudness_lufs="loud"), "expected a setting loudness_lufs"),
        (set_index(loudness_lufs=[True, 0]), "expected a setting loudness_lufs"),
        (set_index(feature_extractor=[None, None]), "with an audio encoder, and only with one"),
        (set_front_end(sampling_rate=8000), "expected sampling_rate 16000, found 8000"),
        (set_front_end(num_mel_bins=64), "expected num_mel_bins 128, found 64"),
        (other_width, "expected hidden_size 48, found 32"),
        (break_weights(TRANSFORMER), "transformer: expected finite weights"),
        (break_weights(VAE), "vae: expected finite weights"),
        (break_weights(AST), "audio_encoder: expected finite weights"),
        (without("model_index.json"), "not a released pipeline"),
        (
            set_index(_class_name="PixArtAlphaPipeline"),
            "kind AudioPixArtPipeline or AudioTokenPipeline, found PixArtAlphaPipeline",
        ),
        (lambda folder: (folder / "model_index.json").write_text("{"), "not JSON"),
        (
            lambda folder: edit_json(folder / "model_index.json", lambda index: index.pop("clip_seconds")),
            "expected a setting clip_seconds",
        ),
        (cut(TRANSFORMER), "transformer"),
        (
            set_in("transformer/config.json", num_layers=3),
            "config.json: expected num_layers 2, as many as in its weights, found 3",
        ),
        (
            set_in("transformer/config.json", num_layers=100_000),
            "config.json: expected num_layers of 65536 at most, found 100000",
        ),
        (
            set_in("transformer/config.json", num_layers=59),
            "config.json: expected num_layers of 57 at most, the tensors in its weights, found 59",
        ),
        (set_in("transformer/config.json", sample_size=513), "expected sample_size, the side of latents, of 1 to 512"),
        (set_in("transformer/config.json", sample_size="8"), "expected sample_size, the side of latents"),
        (set_in("transformer/config.json", norm_eps=float("nan")), "expected norm_eps as a finite number, found nan"),
        (set_in("transformer/config.json", _class_name="UNet2DModel"), "PixArtTransformer2DModel, found UNet2DModel"),
        (set_in("audio_encoder/config.json", num_hidden_layers=3), "expected num_hidden_layers 2, as many as in its"),
        (set_vae(layers_per_block=60_000), "vae/config.json: expected layers_per_block of 176 at most"),
        (set_vae(block_out_channels=[8, 8, 8, 10**6]), "vae/config.json: expected block_out_channels of 65536 at most"),
        (set_vae(scaling_factor=0), "vae: expected a scaling_factor above 0, found 0"),
        (set_vae(scaling_factor="x"), "vae/config.json: expected scaling_factor as AutoencoderKL takes it"),
        (set_vae(scaling_factor=True), "vae/config.json: expected scaling_factor as AutoencoderKL takes it"),
        (set_vae(scaling_factor=-0.1), "vae: expected a scaling_factor above 0, found -0.1"),
        (set_vae(scaling_factor=float("nan")), "expected scaling_factor as a finite number, found nan"),
        (set_vae(scaling_factor=float("inf")), "expected scaling_factor as a finite number, found inf"),
        (set_scheduler(solver_order=10**9), "scheduler_config.json: expected solver_order of 65536 at most"),
        (set_front_end(num_mel_bins=10**9), "preprocessor_config.json: expected num_mel_bins of 65536 at most"),
        (
            set_in("audio_encoder/config.json", attn_implementation="people/evil"),
            "its attention is code of the repository people/evil, which is never run here",
        ),
        *(
            (write(f"{part}/{name}", text), f"{part}/{name}: {said}")
            for part, name in PIXART.parts.items()
            for text, said in (
                ('"x"', "expected a JSON object, found str"),
                ("[]", "expected a JSON object"),
                ("{", "not"),
            )
        ),
        (index_leads_out, "index.json: expected the names of files beside it, found '../../elsewhere.safetensors'"),
        (weights_lie_elsewhere, f"{VAE}: is a link out of the release"),
        (settings_lie_elsewhere, "vae/config.json: is a link out of the release"),
        (cut(VAE), "vae"),
        (cut(AST), "audio_encoder"),
        (without("scheduler/scheduler_config.json"), "scheduler"),
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


def test_a_release_whose_settings_name_a_model_asks_no_hub(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(whole, tmp_path / "model"))
    (model / "transformer" / "config.json").write_text(json.dumps(MODEL))

    with running_hub(monkeypatch, tmp_path / "cache", whole / "transformer") as hub:
        with refused("expected a JSON object, found str"):
            load_pipeline(model, CPU, torch.float32)
        assert hub.asked == []


def test_links_of_the_hubs_cache_into_its_blobs_are_followed(whole: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--me--set" / "blobs"
    snapshot = Path(shutil.copytree(whole, blobs.parent / "snapshots" / "0"))
    blobs.mkdir()
    for number, file in enumerate(path for path in sorted(snapshot.rglob("*")) if path.is_file()):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))

    load_pipeline(snapshot, CPU, torch.float32)

    (tmp_path / "elsewhere").write_bytes((snapshot / VAE).read_bytes())
    (snapshot / VAE).unlink()
    (snapshot / VAE).symlink_to(tmp_path / "elsewhere")
    with refused("is a link out of the release"):
        load_pipeline(snapshot, CPU, torch.float32)
