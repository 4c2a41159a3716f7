"""Whether the parts of a released pipeline are those of this model, and belong together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from sonify.config.config import AST_SAMPLE_RATE_HZ, AST_SECONDS
from sonify.errors import InputError

# What a sampler has to agree on with the schedule that the model was trained on; its order or spacing may differ.
SCHEDULE = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "variance_type", "algorithm_type", "use_flow_sigmas"),
)


def check_settings(path: Path, found: Mapping[str, Any]) -> None:
    """Check what `model_index.json` says.

    Raises:
        InputError: a setting is missing, or is none that a release has.
    """
    seconds: Any = found.get("clip_seconds")
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    checks = (
        ("clip_seconds", f"1 to {AST_SECONDS}", is_number and 1 <= seconds <= AST_SECONDS),
        ("audio_encoder", "the kind of a component", _is_component(found.get("audio_encoder"))),
        ("frequency", "mean or all", found.get("frequency") in ("mean", "all")),
        ("null_condition", "zeros or silence", found.get("null_condition") in ("zeros", "silence")),
    )
    for key, expected, holds in checks:
        if not holds:
            raise InputError(
                f"{path}: expected a setting {key}, {expected}, found {found.get(key)!r}; release the pipeline again"
            )


def _is_component(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2


def check_parts(folder: Path, pipeline: DiffusionPipeline, sampler: DPMSolverMultistepScheduler) -> None:
    """Check the parts of a loaded pipeline against `sampler` and each other.

    Raises:
        InputError: the scheduler is another one, parts do not belong together, or a weight is not finite.
    """
    parts: dict[str, Any] = pipeline.components
    checks = [*_of_scheduler(parts["scheduler"], sampler), *_of_shapes(parts), *_of_ast(parts)]
    for part, what, expected, found in checks:
        if found != expected:
            raise InputError(f"{folder / part}: expected {what} {expected}, found {found}; release the pipeline again")
    for part in ("transformer", "vae", "audio_encoder"):
        _check_finite(folder / part, parts[part])


# The part, what of it, what is expected, what is found.
Check = tuple[str, str, object, object]


def _of_scheduler(scheduler: Any, sampler: DPMSolverMultistepScheduler) -> list[Check]:
    kinds = type(sampler).__name__, type(scheduler).__name__
    if kinds[0] != kinds[1]:
        return [("scheduler", "the class", *kinds)]
    return [("scheduler", key, sampler.config[key], scheduler.config[key]) for key in SCHEDULE]


def _of_shapes(parts: Mapping[str, Any]) -> list[Check]:
    transformer, vae = parts["transformer"].config, parts["vae"].config
    return [
        ("transformer", "in_channels", vae["latent_channels"], transformer["in_channels"]),
        ("transformer", "out_channels", 2 * vae["latent_channels"], transformer["out_channels"]),
    ]


def _of_ast(parts: Mapping[str, Any]) -> list[Check]:
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
