"""Our own reading of a released model: checked in every part, and no file of it is executed.

A release holds `pipeline.py`, the code of its pipeline, for those who have not this package. Whoever has it runs the
code of the package: a stranger's release is data here.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils import logging as diffusers_logging
from transformers import ASTFeatureExtractor, ASTModel

from sonify.config.models import AST_SAMPLE_RATE_HZ, AST_SECONDS
from sonify.errors import InputError
from sonify.features.vae import load_vae
from sonify.models.fetch import (
    VAE_FILES,
    FetchedModel,
    Files,
    check_weights,
    diffusers_class,
    fetch_model,
    named,
    read_json,
    read_shapes,
)
from sonify.models.loading import cannot_load, check_whole, load_network, load_part, place_network
from train.bundle import bundle
from train.hearing import LEVELS
from train.pipeline import AudioPixArtPipeline, make_scheduler

# The name under which diffusers looks for a pipeline's code.
PIPELINE_CODE = "pipeline.py"
# What is read of a release, and what of a network is as many as there are parts of it.
READ, COUNTED = {".json", ".safetensors"}, re.compile("layers|blocks")
# What a sampler has to agree on with the schedule that the model was trained on; its order or spacing may differ.
SCHEDULE = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "variance_type", "algorithm_type", "use_flow_sigmas"),
)

# What `model_index.json` says beside the parts.
SETTINGS = ("frequency", "clip_seconds", "null_condition", "level", "loudness_lufs")
# What releases were trained on that were made before it stood in them.
BEFORE = {"level": "window", "loudness_lufs": [-32.0, -28.0]}
# The settings of each part; those that are networks have weights beside them.
PARTS = {
    "transformer": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
    "audio_encoder": "config.json",
    "feature_extractor": "preprocessor_config.json",
}
NETWORKS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "audio_encoder": "model"}
# How a network's settings call the number of its layers, and its weights each of them, in either of AST's spellings.
LAYERS = {
    "transformer": ("num_layers", re.compile(r"transformer_blocks\.(\d+)\.")),
    "audio_encoder": ("num_hidden_layers", re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.")),
}
# No number of a part's settings is larger, unless a side of its weights is; the side of the latents is far smaller.
MAX_SETTING, MAX_LATENT_SIDE = 65_536, 512


def find_release(model: str) -> FetchedModel:
    """A released model: a folder, or a hub id with or without its revision, such as `you/name@v1`, fetched if need be.

    What is both is the folder. Of the hub a release's data is fetched and none of its code, and what it is called is
    pinned to the commit that was found.

    Raises:
        InputError: it is neither here nor to be had, or is something else than a release.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return FetchedModel(model=str(folder.absolute()), path=folder.absolute(), identity="")
    name, at, revision = model.partition("@")
    if at and (Path(name).expanduser().is_dir() or not revision):
        what = "names no revision" if not revision else f"{name} is a folder, which has no revisions"
        raise InputError(f"{model}: {what}; expected a folder, or a hub id such as you/name or you/name@COMMIT")
    # what it is comes first: another pipeline's weights would be gigabytes
    index = fetch_model(name, revision or None, INDEX_FILES)
    fetched = fetch_model(name, index.identity, RELEASE_FILES)
    return FetchedModel(model=named(name, fetched.identity), path=fetched.path, identity=fetched.identity)


def check_index(folder: Path) -> None:
    """Refuse what is no release, by its `model_index.json`."""
    read_settings(folder)


def check_whole_release(folder: Path) -> None:
    """Refuse a release of which a part is missing or cut short, or says what would keep a machine busy for nothing."""
    settings = read_settings(folder)
    _check_links(folder)
    optional = ("audio_encoder", "feature_extractor")
    for part, name in PARTS.items():
        if part in optional and not _is_there(settings, part):
            continue
        if not (folder / part / name).is_file():
            raise InputError(f"{folder / part}: expected {name} in it, found none; fetch the model again")
        if part in NETWORKS:
            check_weights(folder / part)
        _check_numbers(folder / part / name)
    _check_settings_of_networks(folder)


def _check_links(folder: Path) -> None:
    """Refuse files that lie elsewhere: those of a snapshot in the hub's cache lie beside it, among its `blobs`."""
    whole = folder.resolve()
    homes = [whole, *([whole.parent.parent / "blobs"] if whole.parent.name == "snapshots" else [])]
    for path in (folder, *(folder / part for part in PARTS)):
        for file in sorted(path.glob("*")):
            if file.suffix in READ and not any(file.resolve().is_relative_to(home) for home in homes):
                raise InputError(f"{file}: is a link out of the release; take one that holds its own files")


def _check_numbers(path: Path) -> None:
    """Refuse numbers in a part's settings that none has, before a library builds by them whatever they ask for."""
    shapes = read_shapes(path.parent)
    largest = max(MAX_SETTING, *(size for sizes in shapes.values() for size in sizes), 0)
    for key, value in read_json(path).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > largest:
                raise InputError(f"{path}: expected {key} of {largest} at most, found {number}; take another release")
            if isinstance(number, float) and shapes and not math.isfinite(number):
                raise InputError(f"{path}: expected {key} as a finite number, found {number}; take another release")
            if isinstance(number, int) and shapes and COUNTED.search(key) and number > len(shapes):
                raise InputError(
                    f"{path}: expected {key} of {len(shapes)} at most, the tensors in its weights, found {number}"
                )


def _check_settings_of_networks(folder: Path) -> None:
    """Refuse a transformer that is none, or of other sizes than its weights, and an audio encoder of more layers."""
    transformer = folder / "transformer"
    if (found := diffusers_class(transformer)) != PixArtTransformer2DModel.__name__:
        raise InputError(
            f"{transformer}: expected the class {PixArtTransformer2DModel.__name__}, found {found}; release the"
            " pipeline again"
        )
    side = read_json(transformer / "config.json").get("sample_size")
    if not (type(side) is int and 1 <= side <= MAX_LATENT_SIDE):
        raise InputError(
            f"{transformer / 'config.json'}: expected sample_size, the side of latents, of 1 to {MAX_LATENT_SIDE},"
            f" found {side}"
        )
    for part, (key, layer) in LAYERS.items():
        path = folder / part / "config.json"
        if not path.is_file():
            continue
        numbers = {int(match[1]) for name in read_shapes(path.parent) if (match := layer.match(name))}
        if (found := read_json(path).get(key)) != len(numbers):
            raise InputError(f"{path}: expected {key} {len(numbers)}, as many as in its weights, found {found}")


INDEX_FILES = Files(patterns=(AudioPixArtPipeline.config_name,), checks=(check_index,))
RELEASE_FILES = Files(
    patterns=(
        AudioPixArtPipeline.config_name,
        *(f"{part}/{name}" for part, name in PARTS.items()),
        *(f"{part}/{weights}*.safetensors" for part, weights in NETWORKS.items()),
        *(f"{part}/{weights}.safetensors.index.json" for part, weights in NETWORKS.items()),
    ),
    checks=(check_whole_release,),
    ignored=(),
)


def pipeline_source() -> bytes:
    """The code that a release holds as `PIPELINE_CODE`: that of `train.pipeline`, with all of ours that it needs."""
    return bundle(AudioPixArtPipeline.__module__, AudioPixArtPipeline.__name__)


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> AudioPixArtPipeline:
    """Load a released pipeline; `dtype` is the transformer's, the networks beside it are small and stay float32.

    Part by part, each by a class that is named here: diffusers' own loader would look into the folder for code.

    Raises:
        InputError: the folder holds another kind of model, or is damaged, or its parts do not belong together, or it
            does not fit on the GPU.
    """
    check_whole_release(folder)
    settings = read_settings(folder)
    diffusers_logging.disable_progress_bar()
    parts: dict[str, Any] = {
        "transformer": _load_transformer(_part(folder, "transformer"), device, dtype),
        "vae": load_vae(fetch_model(str(folder / "vae"), None, VAE_FILES), device, torch.float32),
        "scheduler": _load_scheduler(_part(folder, "scheduler")),
        "audio_encoder": None,
        "feature_extractor": None,
    }
    if _is_there(settings, "audio_encoder"):
        parts["audio_encoder"] = load_network(ASTModel, _part(folder, "audio_encoder"), device, torch.float32)
    if _is_there(settings, "feature_extractor"):
        parts["feature_extractor"] = load_part(ASTFeatureExtractor, _part(folder, "feature_extractor"))
    _check_parts(folder, parts)
    pipeline = AudioPixArtPipeline(**parts, **{key: settings[key] for key in SETTINGS})
    pipeline.set_progress_bar_config(disable=True)  # our commands have progress of their own
    return pipeline


def _is_there(settings: Mapping[str, Any], part: str) -> bool:
    return _is_component(settings.get(part)) and settings[part][0] is not None


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings and components of a released pipeline, without loading it.

    Raises:
        InputError: the folder holds another kind of model, or none, or a setting is none that a release has.
    """
    path = folder / AudioPixArtPipeline.config_name
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder}: not a released pipeline: no {path.name} in it; `python -m train.release` makes one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON; release the pipeline again") from error
    kind = found.get("_class_name") if isinstance(found, dict) else None
    if kind != AudioPixArtPipeline.__name__:
        raise InputError(f"{folder}: expected a pipeline of kind {AudioPixArtPipeline.__name__}, found {kind}")
    settings = BEFORE | found
    _check_settings(path, settings)
    return settings


def _part(folder: Path, name: str) -> FetchedModel:
    return FetchedModel(model=f"{folder}/{name}", path=folder / name, identity="")


def _load_transformer(fetched: FetchedModel, device: torch.device, dtype: torch.dtype) -> PixArtTransformer2DModel:
    try:
        transformer, report = cast(Any, PixArtTransformer2DModel).from_pretrained(
            fetched.path,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # to name them here, as the missing ones
            output_loading_info=True,
        )
    except Exception as error:  # as above
        raise cannot_load(fetched, error) from error
    check_whole(transformer, report, fetched)
    if unknown := sorted(report["unexpected_keys"]):
        raise InputError(f"{fetched.path}: {len(unknown)} tensors have no place in the model, such as {unknown[0]}")
    return place_network(transformer, device, fetched)


def _load_scheduler(fetched: FetchedModel) -> DPMSolverMultistepScheduler:
    expected: Any = DPMSolverMultistepScheduler
    try:
        # its class stands in its own file: another one's settings would be taken for its own
        kind = expected.load_config(fetched.path, local_files_only=True).get("_class_name")
        if kind == expected.__name__:
            return expected.from_pretrained(fetched.path, local_files_only=True)
    except Exception as error:  # as above
        raise cannot_load(fetched, error) from error
    raise InputError(
        f"{fetched.path}: expected the class {expected.__name__}, found {kind}; release the pipeline again"
    )


def _check_settings(path: Path, found: Mapping[str, Any]) -> None:
    """Check what `model_index.json` says."""
    seconds: Any = found.get("clip_seconds")
    checks = (
        ("clip_seconds", f"1 to {AST_SECONDS}", _is_number(seconds) and 1 <= seconds <= AST_SECONDS),
        ("audio_encoder", "the kind of a component", _is_component(found.get("audio_encoder"))),
        ("frequency", "mean or all", found.get("frequency") in ("mean", "all")),
        ("null_condition", "zeros or silence", found.get("null_condition") in ("zeros", "silence")),
        ("level", " or ".join(LEVELS), found["level"] in LEVELS),
        ("loudness_lufs", "[low, high] between -70 and 0", _is_range(found["loudness_lufs"])),
    )
    for key, expected, holds in checks:
        if not holds:
            raise InputError(
                f"{path}: expected a setting {key}, {expected}, found {found.get(key)!r}; release the pipeline again"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and -70 < value[0] <= value[1] <= 0
    )


def _is_component(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2


def _check_parts(folder: Path, parts: Mapping[str, Any]) -> None:
    """Check loaded parts against the sampler of training and each other."""
    checks = [*_of_scheduler(parts["scheduler"]), *_of_shapes(parts), *_of_ast(parts)]
    factor: Any = parts["vae"].config["scaling_factor"]
    if not (_is_number(factor) and 0 < factor < math.inf):
        raise InputError(f"{folder / 'vae'}: expected a scaling_factor above 0, found {factor!r}; take another release")
    for part, what, expected, found in checks:
        if found != expected:
            raise InputError(f"{folder / part}: expected {what} {expected}, found {found}; release the pipeline again")
    for part in ("transformer", "vae", "audio_encoder"):
        _check_finite(folder / part, parts[part])


# The part, what of it, what is expected, what is found.
Expectation = tuple[str, str, object, object]


def _of_scheduler(scheduler: Any) -> list[Expectation]:
    sampler = make_scheduler()
    return [("scheduler", key, sampler.config[key], scheduler.config[key]) for key in SCHEDULE]


def _of_shapes(parts: Mapping[str, Any]) -> list[Expectation]:
    transformer, vae = parts["transformer"].config, parts["vae"].config
    return [
        ("transformer", "in_channels", vae["latent_channels"], transformer["in_channels"]),
        ("transformer", "out_channels", 2 * vae["latent_channels"], transformer["out_channels"]),
    ]


def _of_ast(parts: Mapping[str, Any]) -> list[Expectation]:
    ast, extractor = parts["audio_encoder"], parts["feature_extractor"]
    if ast is None or extractor is None:
        kinds = [None if part is None else type(part).__name__ for part in (ast, extractor)]
        return [("feature_extractor", "with an audio encoder, and only with one,", [None, None], kinds)]
    return [
        ("feature_extractor", "sampling_rate", AST_SAMPLE_RATE_HZ, extractor.sampling_rate),
        ("feature_extractor", "num_mel_bins", ast.config.num_mel_bins, extractor.num_mel_bins),
        ("feature_extractor", "max_length", ast.config.max_length, extractor.max_length),
        ("audio_encoder", "hidden_size", parts["transformer"].config["caption_channels"], ast.config.hidden_size),
    ]


def _check_finite(folder: Path, network: Any) -> None:
    for name, tensor in network.state_dict().items() if network is not None else ():
        if not tensor.isfinite().all():
            raise InputError(
                f"{folder}: expected finite weights, found NaN or infinity in {name}; take another release"
            )
