"""The released model: a sound, or features of one, becomes an image.

B  images, S  samples at 16 kHz, T D  times and width of the condition, C H W  channels, height and width
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from transformers import ASTFeatureExtractor, ASTModel

from sonify.config.models import AST_SAMPLE_RATE_HZ, AST_SECONDS
from sonify.errors import InputError
from sonify.features.ast import HOP, AstFeatures
from sonify.features.vae import decode, load_vae, scaling_factor
from sonify.models.fetch import VAE_FILES, FetchedModel, fetch_model
from sonify.models.loading import cannot_load, check_whole, load_network, place_network

MAX_SEED = 2**63 - 1
# What a sampler has to agree on with the schedule that the model was trained on; its order or spacing may differ.
SCHEDULE = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "variance_type", "algorithm_type", "use_flow_sigmas"),
)


def make_scheduler() -> DPMSolverMultistepScheduler:
    """The sampler of PixArt-alpha, DPM-Solver++ of order 2, over the schedule that the model is trained on."""
    # `variance_type` stays unset: the library would take the first three channels of the output for the noise
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


@dataclass
class AudioPixArtOutput(BaseOutput):
    """`images` are PIL images, (B, H, W, C) uint8 pixels, or (B, C, H, W) latents, as was asked for."""

    images: Any


class AudioPixArtPipeline(DiffusionPipeline):
    """An audio-conditioned PixArt-alpha with its VAE, its sampler and, where the condition is AST's, the AST.

    `frequency` says what became of AST's rows of one time, `clip_seconds` how long a sound the model was trained on,
    `null_condition` what guidance leads away from; all three are saved with the pipeline.
    """

    model_cpu_offload_seq = "audio_encoder->transformer->vae"
    _optional_components = ["audio_encoder", "feature_extractor"]  # noqa: RUF012 - the library's name and type

    transformer: PixArtTransformer2DModel
    vae: AutoencoderKL | AutoencoderTiny
    scheduler: DPMSolverMultistepScheduler
    audio_encoder: ASTModel | None
    feature_extractor: ASTFeatureExtractor | None

    def __init__(  # noqa: PLR0913, PLR0917 - the library reads components and settings from this signature
        self,
        transformer: PixArtTransformer2DModel,
        vae: AutoencoderKL | AutoencoderTiny,
        scheduler: DPMSolverMultistepScheduler,
        audio_encoder: ASTModel | None = None,
        feature_extractor: ASTFeatureExtractor | None = None,
        frequency: str = "mean",
        clip_seconds: float = 5.0,
        null_condition: str = "zeros",
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            audio_encoder=audio_encoder,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(frequency=frequency, clip_seconds=clip_seconds, null_condition=null_condition)

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - what the library's pipelines take
        self,
        audio_BS: np.ndarray | torch.Tensor | None = None,
        audio_features_BTD: np.ndarray | torch.Tensor | None = None,
        *,
        seeds: Sequence[int],
        guidance_scale: float = 4.5,
        num_inference_steps: int = 20,
        batch_size: int = 1,
        output_type: Literal["pil", "np", "latent"] = "pil",
    ) -> AudioPixArtOutput:
        """Make one image for each sound, from noise that is its seed's alone.

        Args:
            audio_BS: float32 at 16 kHz, full scale at 1.0; or else
            audio_features_BTD: the condition itself, with which no AST is needed.
            seeds: one for each image, from 0 on.
            guidance_scale: how far to lead away from the null condition; 1 is no guidance, at half the cost.
            num_inference_steps: of the sampler.
            batch_size: images that go through the model at once. With 1 an image is the same to the bit whatever is
                made beside it, with more it may differ by rounding.
            output_type: PIL images, (B, H, W, C) uint8, or the latents, unscaled.

        Raises:
            ValueError: the arguments contradict each other, or there is a sound and no AST.
        """
        if (audio_BS is None) == (audio_features_BTD is None):
            raise ValueError("expected either audio_BS or audio_features_BTD")
        if guidance_scale < 1 or num_inference_steps < 1 or batch_size < 1:
            raise ValueError("guidance_scale, num_inference_steps and batch_size are at least 1")
        if audio_BS is not None:
            audio_BTD = torch.cat([self.encode_audio(part_BS) for part_BS in _parts(audio_BS, batch_size)])
        else:
            audio_BTD = _as_trained(torch.as_tensor(audio_features_BTD))
        self._check(audio_BTD, seeds)
        null_TD = self.encode_null(audio_BTD.shape[1]) if guidance_scale > 1 else None
        images: list[torch.Tensor | np.ndarray] = []
        for part_BTD, part_seeds in zip(_parts(audio_BTD, batch_size), _parts(seeds, batch_size), strict=True):
            latents_BCHW = self._sample(part_BTD, null_TD, part_seeds, guidance_scale, num_inference_steps)
            latents_BCHW = latents_BCHW / scaling_factor(self.vae)
            images.append(latents_BCHW if output_type == "latent" else decode(self.vae, latents_BCHW))
        self.maybe_free_model_hooks()
        return AudioPixArtOutput(images=_joined(images, output_type))

    @torch.no_grad()
    def encode_audio(self, audio_BS: np.ndarray | torch.Tensor) -> torch.Tensor:
        """The condition (B, T, D) that sounds are, as the training shards hold it.

        Raises:
            ValueError: the pipeline has no AST, or the sounds are not mono or longer than it hears.
        """
        if self.audio_encoder is None or self.feature_extractor is None:
            raise ValueError("this pipeline has no AST: its condition is passed as audio_features_BTD")
        if audio_BS.ndim != 2:
            raise ValueError(f"expected (B, S), mono sounds of one length, found {tuple(audio_BS.shape)}")
        longest = self.feature_extractor.max_length * HOP
        if audio_BS.shape[1] > longest:
            found_sec, longest_sec = audio_BS.shape[1] / AST_SAMPLE_RATE_HZ, longest / AST_SAMPLE_RATE_HZ
            raise ValueError(f"a sound of {found_sec:g} s: this AST hears {longest_sec:g} s at most; cut it into clips")
        listen = AstFeatures(self.audio_encoder, self.feature_extractor, self.config["frequency"])
        return _as_trained(listen(audio_BS))

    def encode_null(self, num_times: int) -> torch.Tensor:
        """The null condition (T, D) beside a condition of `num_times` vectors; silence is repeated to that length.

        Raises:
            ValueError: a condition of silence for a length that is no multiple of a clip's, or without an AST.
        """
        if self.config["null_condition"] == "zeros":
            return torch.zeros(num_times, self.transformer.config["caption_channels"])
        num_samples = round(self.config["clip_seconds"] * AST_SAMPLE_RATE_HZ)
        silence_TD = self.encode_audio(np.zeros((1, num_samples), np.float32))[0]
        if num_times % len(silence_TD):
            raise ValueError(f"a condition of {num_times} vectors is no multiple of the {len(silence_TD)} of a clip")
        return silence_TD.repeat(num_times // len(silence_TD), 1)

    def _check(self, audio_BTD: torch.Tensor, seeds: Sequence[int]) -> None:
        width = self.transformer.config["caption_channels"]
        if audio_BTD.ndim != 3 or audio_BTD.shape[-1] != width:
            raise ValueError(f"expected a condition of shape (B, T, {width}), found {tuple(audio_BTD.shape)}")
        if len(seeds) != len(audio_BTD) or not len(seeds):
            raise ValueError(f"expected a seed for each image, found {len(seeds)} for {len(audio_BTD)}")
        if not all(0 <= seed <= MAX_SEED for seed in seeds):
            raise ValueError(f"expected seeds from 0 to {MAX_SEED}, found {list(seeds)}")

    def _sample(
        self,
        audio_BTD: torch.Tensor,
        null_TD: torch.Tensor | None,
        seeds: Sequence[int],
        guidance_scale: float,
        num_inference_steps: int,
    ) -> torch.Tensor:
        """Latents as the model sees them, float32; without a null condition there is no second pass."""
        device, dtype = self._execution_device, self.transformer.dtype
        if null_TD is not None:
            audio_BTD = torch.cat([null_TD.expand_as(audio_BTD).to(audio_BTD), audio_BTD])
        condition = audio_BTD.to(device, dtype)
        latents_BCHW = torch.stack([self._noise(seed) for seed in seeds]).to(device)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for timestep in self.scheduler.timesteps:
            given = latents_BCHW if null_TD is None else torch.cat([latents_BCHW, latents_BCHW])
            output = self.transformer(
                given.to(dtype), encoder_hidden_states=condition, timestep=timestep.expand(len(given))
            ).sample.float()
            epsilon = output.chunk(2, dim=1)[0]  # the other half is the variance, which this sampler does not use
            if null_TD is not None:
                null, conditioned = epsilon.chunk(2)
                epsilon = null + guidance_scale * (conditioned - null)
            latents_BCHW = self.scheduler.step(epsilon, timestep, latents_BCHW, return_dict=False)[0]
        return latents_BCHW

    def _noise(self, seed: int) -> torch.Tensor:
        config = self.transformer.config
        shape = (config["in_channels"], config["sample_size"], config["sample_size"])
        # on the CPU, whose numbers are the same everywhere; one generator an image, so that no other has a part in it
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def _as_trained(audio_BTD: torch.Tensor) -> torch.Tensor:
    """Round to the float16 of the training shards."""
    return audio_BTD.to("cpu", torch.float16).float()


def _parts(rows, size: int) -> list:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _joined(images: list, output_type: str):
    if output_type == "latent":
        return torch.cat(images)
    pixels_BHWC = np.concatenate(images)
    return pixels_BHWC if output_type == "np" else [Image.fromarray(pixels_HWC) for pixels_HWC in pixels_BHWC]


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> AudioPixArtPipeline:
    """Load a released pipeline; `dtype` is the transformer's, the networks beside it are small and stay float32.

    Raises:
        InputError: the folder holds another kind of model, or is damaged, or its parts do not belong together, or it
            does not fit on the GPU.
    """
    read_settings(folder)
    parts: dict[str, Any] = {
        "transformer": _load_transformer(_part(folder, "transformer"), device, dtype),
        "vae": load_vae(fetch_model(str(folder / "vae"), None, VAE_FILES), device, torch.float32),
    }
    if (folder / "audio_encoder").is_dir():
        parts["audio_encoder"] = load_network(ASTModel, _part(folder, "audio_encoder"), device, torch.float32)
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = AudioPixArtPipeline.from_pretrained(folder, local_files_only=True, **parts)
    except Exception as error:  # of a damaged folder the library raises whatever its code meets
        raise cannot_load(FetchedModel(model=str(folder), path=folder, identity=""), error) from error
    _check_parts(folder, pipeline, make_scheduler())
    return pipeline


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
    except ValueError as error:
        raise InputError(f"{path}: not JSON; release the pipeline again") from error
    kind = found.get("_class_name") if isinstance(found, dict) else None
    if kind != AudioPixArtPipeline.__name__:
        raise InputError(f"{folder}: expected a pipeline of kind {AudioPixArtPipeline.__name__}, found {kind}")
    _check_settings(path, found)
    return found


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


def _check_settings(path: Path, found: Mapping[str, Any]) -> None:
    """Check what `model_index.json` says."""
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


def _check_parts(folder: Path, pipeline: DiffusionPipeline, sampler: DPMSolverMultistepScheduler) -> None:
    """Check the parts of a loaded pipeline against `sampler` and each other."""
    parts: dict[str, Any] = pipeline.components
    checks = [*_of_scheduler(parts["scheduler"], sampler), *_of_shapes(parts), *_of_ast(parts)]
    for part, what, expected, found in checks:
        if found != expected:
            raise InputError(f"{folder / part}: expected {what} {expected}, found {found}; release the pipeline again")
    for part in ("transformer", "vae", "audio_encoder"):
        _check_finite(folder / part, parts[part])


# The part, what of it, what is expected, what is found.
Expectation = tuple[str, str, object, object]


def _of_scheduler(scheduler: Any, sampler: DPMSolverMultistepScheduler) -> list[Expectation]:
    kinds = type(sampler).__name__, type(scheduler).__name__
    if kinds[0] != kinds[1]:
        return [("scheduler", "the class", *kinds)]
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
