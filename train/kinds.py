"""What each kind of released model consists of, what is checked of it, and how its parts are loaded.

Each part is loaded by a class that is named here: diffusers' own loader would look into a release for code.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import ASTFeatureExtractor, ASTModel, CLIPTextModel, CLIPTokenizer

from sonify.config.models import AST_SAMPLE_RATE_HZ, AST_SECONDS
from sonify.errors import InputError
from sonify.features.beats import load_beats
from sonify.features.vae import load_vae
from sonify.models.fetch import (
    AST_FILES,
    BEATS_FILES,
    VAE_FILES,
    FetchedModel,
    check_type,
    diffusers_class,
    fetch_model,
    read_json,
    read_shapes,
)
from sonify.models.loading import cannot_load, check_whole, load_network, load_part, place_network
from train.checks import TEXT_LAYERS, check_side, check_types, is_number, is_text, load_sampler
from train.embedder import Embedder
from train.hearing import LEVELS
from train.pipeline import AudioPixArtPipeline, make_scheduler
from train.token_pipeline import AudioTokenPipeline

MAX_LAYERS = 64
SoundPipeline = AudioPixArtPipeline | AudioTokenPipeline
# The part, what of it, what is expected, what is found.
Expectation = tuple[str, str, object, object]
# A setting of a release, what it is, and whether what is found is one.
Setting = tuple[str, str, bool]
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of released model.

    `parts` are the settings files of its parts, and `networks` the weights of those that have some; `layers` is how a
    network's settings call the number of its layers, and its weights each of them. `settings` stand in its index, and
    `before` is what releases were trained on that were made before it stood there. `code` is that of a part which no
    library has: its file's name, and the module and name of its class.
    """

    pipeline: type[DiffusionPipeline]
    parts: Mapping[str, str]
    networks: Mapping[str, str]
    layers: Mapping[str, tuple[str, re.Pattern[str]]]
    settings: tuple[str, ...]
    before: Mapping[str, Any]
    code: Mapping[str, tuple[str, str, str]]
    read_index: Callable[[Settings], list[Setting]]
    check_networks: Callable[[Path], None]
    load: Callable[[Path, Settings, torch.device, torch.dtype], dict[str, Any]]
    expect: Callable[[Mapping[str, Any], Settings], list[Expectation]]

    @property
    def name(self) -> str:
        """As its index has it."""
        return self.pipeline.__name__

    @property
    def guidance(self) -> float:
        """Its own default."""
        return inspect.signature(self.pipeline.__call__).parameters["guidance_scale"].default

    @property
    def steps(self) -> int:
        """Its own default."""
        return inspect.signature(self.pipeline.__call__).parameters["num_inference_steps"].default


def is_there(settings: Settings, part: str) -> bool:
    """Whether a release has an optional part."""
    return is_component(settings.get(part)) and settings[part][0] is not None


def is_component(entry: object) -> bool:
    """Whether an index's entry is that of a part, which may be none."""
    return isinstance(entry, list) and len(entry) == 2


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and -70 < value[0] <= value[1] <= 0
    )


def _of_hearing(found: Settings) -> list[Setting]:
    seconds: Any = found.get("clip_seconds")
    return [
        ("clip_seconds", f"1 to {AST_SECONDS}", is_number(seconds) and 1 <= seconds <= AST_SECONDS),
        ("audio_encoder", "the kind of a component", is_component(found.get("audio_encoder"))),
        ("frequency", "mean or all", found.get("frequency") in ("mean", "all")),
        ("level", " or ".join(LEVELS), found.get("level") in LEVELS),
        ("loudness_lufs", "[low, high] between -70 and 0", _is_range(found.get("loudness_lufs"))),
    ]


def _of_pixart(found: Settings) -> list[Setting]:
    return [
        *_of_hearing(found),
        ("null_condition", "zeros or silence", found.get("null_condition") in ("zeros", "silence")),
    ]


def _of_audiotoken(found: Settings) -> list[Setting]:
    layers, prompt, placeholder = (found.get(key) for key in ("layers", "prompt", "placeholder"))
    numbers = isinstance(layers, list) and all(type(n) is int and 1 <= n <= MAX_LAYERS for n in layers)
    once = isinstance(layers, list) and numbers and len({*layers}) == len(layers)
    named = is_text(placeholder, 100) and placeholder != ""
    return [
        *_of_hearing(found),
        ("layers", f"numbers of layers from 1 to {MAX_LAYERS}, each once", once),
        ("placeholder", "a word of at most 100 letters", named),
        ("prompt", "a text", is_text(prompt, 10_000)),
    ]


def _part(folder: Path, name: str) -> FetchedModel:
    return FetchedModel(model=f"{folder}/{name}", path=folder / name, identity="")


def _check_denoiser(part: Path, expected: type) -> None:
    """Refuse a network of another class, and one of latents larger than any."""
    if (found := diffusers_class(part)) != expected.__name__:
        raise InputError(f"{part}: expected the class {expected.__name__}, found {found}; release the pipeline again")
    check_side(part / "config.json")


def _check_pixart(folder: Path) -> None:
    _check_denoiser(folder / "transformer", PixArtTransformer2DModel)


def _check_audiotoken(folder: Path) -> None:
    """Refuse parts of another class, and of other widths than each other, before any is built."""
    _check_denoiser(folder / "unet", UNet2DConditionModel)
    if (found := diffusers_class(folder / "embedder")) != Embedder.__name__:
        raise InputError(f"{folder / 'embedder'}: expected the class {Embedder.__name__}, found {found}")
    check_type("clip_text_model", "Stable Diffusion's")(folder / "text_encoder")
    path = folder / "tokenizer" / "tokenizer_config.json"
    longest = read_json(path).get("model_max_length") if path.is_file() else None
    if longest is not None and not is_number(longest):  # which the library takes as it is
        raise InputError(f"{path}: expected model_max_length as a number, found {longest}; take another release")
    width = read_json(folder / "text_encoder" / "config.json").get("hidden_size")
    shapes = read_shapes(folder / "text_encoder")
    if (wide := [sizes[-1] for name, sizes in shapes.items() if "token_embedding" in name]) != [width]:
        raise InputError(f"{folder / 'text_encoder'}: expected hidden_size {wide}, as in its weights, found {width}")
    for part, key in (("unet", "cross_attention_dim"), ("embedder", "token_width")):
        path = folder / part / "config.json"
        if (found := read_json(path).get(key)) != width:
            raise InputError(
                f"{path}: expected {key} {width}, as wide as the text tower, found {found}: parts that do not belong"
                " together; release the pipeline again"
            )


def _load_diffusers(kind: Any, fetched: FetchedModel, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a network of diffusers', of which no tensor is missing or left over."""
    check_types(fetched.path / "config.json", kind)
    try:
        network, report = kind.from_pretrained(
            fetched.path,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # to name them here, as the missing ones
            output_loading_info=True,
        )
    except Exception as error:  # of a damaged folder the library raises whatever its code meets
        raise cannot_load(fetched, error) from error
    check_whole(network, report, fetched)
    if unknown := sorted(report["unexpected_keys"]):
        raise InputError(f"{fetched.path}: {len(unknown)} tensors have no place in the model, such as {unknown[0]}")
    return place_network(network, device, fetched)


def _load_scheduler(fetched: FetchedModel, *samplers: Any) -> Any:
    # its class stands in its own file: another one's settings would be taken for its own
    path = fetched.path / "scheduler_config.json"
    found = read_json(path).get("_class_name")
    for sampler in samplers:
        if found == sampler.__name__:
            check_types(path, sampler)
            return load_sampler(sampler, fetched)
    names = " or ".join(sampler.__name__ for sampler in samplers)
    raise InputError(f"{fetched.path}: expected the class {names}, found {found}; release the pipeline again")


def _load_vae(folder: Path, device: torch.device) -> Any:
    fetched = fetch_model(str(folder / "vae"), None, VAE_FILES)
    kind = AutoencoderKL if diffusers_class(fetched.path) == "AutoencoderKL" else AutoencoderTiny
    check_types(fetched.path / "config.json", kind)
    return load_vae(fetched, device, torch.float32)


def _load_ast(folder: Path, settings: Settings, device: torch.device) -> dict[str, Any]:
    """The encoder and its front end, where they are there."""
    parts: dict[str, Any] = {"audio_encoder": None, "feature_extractor": None}
    if is_there(settings, "audio_encoder"):
        parts["audio_encoder"] = load_network(ASTModel, _part(folder, "audio_encoder"), device, torch.float32)
    if is_there(settings, "feature_extractor"):
        parts["feature_extractor"] = load_part(ASTFeatureExtractor, _part(folder, "feature_extractor"))
    return parts


def _load_pixart(folder: Path, settings: Settings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "transformer": _load_diffusers(PixArtTransformer2DModel, _part(folder, "transformer"), device, dtype),
        "vae": _load_vae(folder, device),
        "scheduler": _load_scheduler(_part(folder, "scheduler"), DPMSolverMultistepScheduler),
        **_load_ast(folder, settings, device),
    }


def _load_audiotoken(folder: Path, settings: Settings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    if is_there(settings, "audio_encoder") and not is_there(settings, "feature_extractor"):
        fetched = fetch_model(str(folder / "audio_encoder"), None, BEATS_FILES)
        ear = {"audio_encoder": load_beats(fetched, device, torch.float32), "feature_extractor": None}
    else:
        if is_there(settings, "audio_encoder"):
            AST_FILES.checks[0](folder / "audio_encoder")
        ear = _load_ast(folder, settings, device)
    return {
        "unet": _load_diffusers(UNet2DConditionModel, _part(folder, "unet"), device, dtype),
        "vae": _load_vae(folder, device),
        "text_encoder": load_network(CLIPTextModel, _part(folder, "text_encoder"), device, torch.float32),
        "tokenizer": load_part(CLIPTokenizer, _part(folder, "tokenizer")),
        "scheduler": _load_scheduler(
            _part(folder, "scheduler"),
            *(PNDMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler),
        ),
        "embedder": _load_diffusers(Embedder, _part(folder, "embedder"), device, torch.float32),
        **ear,
    }


def _expect_of_ast(parts: Mapping[str, Any]) -> list[Expectation]:
    ast, extractor = parts["audio_encoder"], parts["feature_extractor"]
    return [
        ("feature_extractor", "sampling_rate", AST_SAMPLE_RATE_HZ, extractor.sampling_rate),
        ("feature_extractor", "num_mel_bins", ast.config.num_mel_bins, extractor.num_mel_bins),
        ("feature_extractor", "max_length", ast.config.max_length, extractor.max_length),
    ]


# What a sampler has to agree on with the schedule that a model is trained on; its order or spacing may differ.
PIXARTS_SCHEDULE = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "variance_type", "algorithm_type", "use_flow_sigmas"),
)


def _expect_of_pixart(parts: Mapping[str, Any], _settings: Settings) -> list[Expectation]:
    sampler, found = make_scheduler(), parts["scheduler"]
    transformer, vae = parts["transformer"].config, parts["vae"].config
    ast, extractor = parts["audio_encoder"], parts["feature_extractor"]
    expected: list[Expectation] = [
        *(("scheduler", key, sampler.config[key], found.config[key]) for key in PIXARTS_SCHEDULE),
        ("transformer", "in_channels", vae["latent_channels"], transformer["in_channels"]),
        ("transformer", "out_channels", 2 * vae["latent_channels"], transformer["out_channels"]),
    ]
    if ast is None or extractor is None:
        kinds = [None if part is None else type(part).__name__ for part in (ast, extractor)]
        return [*expected, ("feature_extractor", "with an audio encoder, and only with one,", [None, None], kinds)]
    width = transformer["caption_channels"]
    return [*expected, *_expect_of_ast(parts), ("audio_encoder", "hidden_size", width, ast.config.hidden_size)]


def _expect_of_audiotoken(parts: Mapping[str, Any], settings: Settings) -> list[Expectation]:
    ear, extractor, embedder = parts["audio_encoder"], parts["feature_extractor"], parts["embedder"].config
    schedule, unet, vae = parts["scheduler"].config, parts["unet"].config, parts["vae"].config
    start, end = schedule["beta_start"], schedule["beta_end"]
    are_betas = is_number(start) and is_number(end) and 0 < start <= end < 1
    expected: list[Expectation] = [
        ("scheduler", "num_train_timesteps", 1000, schedule["num_train_timesteps"]),
        ("scheduler", "prediction_type", "epsilon", schedule["prediction_type"]),
        ("scheduler", "trained_betas", None, schedule["trained_betas"]),
        ("scheduler", "beta_start and beta_end in order between 0 and 1:", True, are_betas),
        ("unet", "in_channels", vae["latent_channels"], unet["in_channels"]),
        ("unet", "out_channels", vae["latent_channels"], unet["out_channels"]),
    ]
    if ear is None:
        return [*expected, ("feature_extractor", "only with an audio encoder:", None, extractor)]
    is_ast = extractor is not None
    sizes: Any = ear.config if is_ast else ear.sizes
    number, width = (
        (sizes.num_hidden_layers, sizes.hidden_size) if is_ast else (sizes.encoder_layers, sizes.encoder_embed_dim)
    )
    layers = settings["layers"]
    lacking = [n for n in layers if n > number]
    return [
        *expected,
        *(_expect_of_ast(parts) if is_ast else ()),
        ("audio_encoder", f"layers {layers} of its {number}, lacking", [], lacking),
        (
            "embedder",
            "audio_width, of the layers of the encoder together,",
            max(1, len(layers)) * width,
            embedder["audio_width"],
        ),
    ]


WEIGHTS = "diffusion_pytorch_model"
OF_AST = ("num_hidden_layers", re.compile(r"(?:encoder\.layer|layers)\.(\d+)\."))  # in either of its spellings
PIXART = Kind(
    pipeline=AudioPixArtPipeline,
    parts={
        "transformer": "config.json",
        "vae": "config.json",
        "scheduler": "scheduler_config.json",
        "audio_encoder": "config.json",
        "feature_extractor": "preprocessor_config.json",
    },
    networks={"transformer": WEIGHTS, "vae": WEIGHTS, "audio_encoder": "model"},
    layers={"transformer": ("num_layers", re.compile(r"transformer_blocks\.(\d+)\.")), "audio_encoder": OF_AST},
    settings=("frequency", "clip_seconds", "null_condition", "level", "loudness_lufs"),
    before={"level": "window", "loudness_lufs": [-32.0, -28.0]},
    code={},
    read_index=_of_pixart,
    check_networks=_check_pixart,
    load=_load_pixart,
    expect=_expect_of_pixart,
)
AUDIOTOKEN = Kind(
    pipeline=AudioTokenPipeline,
    parts={
        "vae": "config.json",
        "text_encoder": "config.json",
        "tokenizer": "tokenizer.json",
        "unet": "config.json",
        "scheduler": "scheduler_config.json",
        "embedder": "config.json",
        "audio_encoder": "config.json",
        "feature_extractor": "preprocessor_config.json",
    },
    networks={"vae": WEIGHTS, "text_encoder": "model", "unet": WEIGHTS, "embedder": WEIGHTS, "audio_encoder": "model"},
    layers={"text_encoder": TEXT_LAYERS},
    settings=("layers", "frequency", "prompt", "placeholder", "clip_seconds", "level", "loudness_lufs"),
    before={},
    code={
        "embedder": ("embedder", "train.embedder", "Embedder"),
        "audio_encoder": ("beats", "sonify.features.beats", "Beats"),
    },
    read_index=_of_audiotoken,
    check_networks=_check_audiotoken,
    load=_load_audiotoken,
    expect=_expect_of_audiotoken,
)
KINDS = {kind.name: kind for kind in (PIXART, AUDIOTOKEN)}
