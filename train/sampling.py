"""From conditions to images: noise, the sampler's steps with guidance, and decoding, for every released pipeline.

B  images, C H W  channels, height and width of an image or of latents, L D  places and width of a condition
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from train.arguments import MAX_SEED, Generators, as_count, as_interval, as_number, as_tensor

OUTPUTS = ("pil", "np", "pt", "latent")
Callback = Callable[..., dict[str, Any]]


@dataclass
class SoundImages(BaseOutput):
    """`images` are PIL images, (B, H, W, C) float32 or (B, C, H, W) float32 in [0, 1], or latents, as was asked for.

    `seeds` would make each again, where no generator or latents were given. `windows` names, for images of recordings,
    the recording of each and the second at which its window begins.
    """

    images: Any
    seeds: list[int] | None = None
    windows: list[tuple[int, float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a sampler is told, for all images alike; `interval` is of noise levels."""

    guidance_scale: float
    interval: tuple[float, float] | None
    steps: int
    eta: float
    batch_size: int
    output_type: str
    callback: Callback | None
    callback_inputs: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What images begin as, of variance 1, and what noise of the sampler's own comes from."""

    latents_BCHW: torch.Tensor
    generators: Generators | None
    seeds: list[int] | None


def read_sampling(  # noqa: PLR0913 - what the library's pipelines take
    pipeline: Any,
    *,
    guidance_scale: Any,
    guidance_interval: Any,
    num_inference_steps: Any,
    eta: Any,
    batch_size: Any,
    output_type: str,
    callback: Callback | None,
    callback_inputs: Sequence[str],
) -> Sampling:
    """Check what a pipeline was called with.

    Raises:
        ValueError: an argument is none that can be.
    """
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        callback_inputs = callback.tensor_inputs
    most_steps = pipeline.scheduler.config.get("num_train_timesteps", math.inf)
    sampling = Sampling(
        guidance_scale=as_number("guidance_scale", guidance_scale, 1),
        interval=as_interval(guidance_interval),
        steps=as_count("num_inference_steps", num_inference_steps, most_steps),
        eta=as_number("eta", eta, 0, 1),
        batch_size=as_count("batch_size", batch_size),
        output_type=output_type,
        callback=callback,
        callback_inputs=callback_inputs,
    )
    if output_type not in OUTPUTS:
        raise ValueError(f"expected an output_type, one of {', '.join(OUTPUTS)}, found {output_type!r}")
    known: list[str] = pipeline._callback_tensor_inputs
    if foreign := {*callback_inputs} - {*known}:
        raise ValueError(f"callback_on_step_end_tensor_inputs: expected of {known}, found {[*foreign]}")
    return sampling


def draw_noise(
    shape: tuple[int, ...],
    device: torch.device,
    seeds: list[int] | None,
    generator: Generators | None,
    latents: np.ndarray | torch.Tensor | None,
) -> Noise:
    """Noise for each image: of seeds, which are drawn where nothing is given, of generators, or as it is given.

    Raises:
        ValueError: they contradict each other, or are of another number or shape.
    """
    num_images = shape[0]
    if seeds is None and generator is None and latents is None:
        seeds = torch.randint(MAX_SEED, (num_images,)).tolist()
    if seeds is not None:
        if generator is not None or latents is not None:
            raise ValueError("expected seeds, or generator and latents, and not both")
        if len(seeds) != num_images:
            raise ValueError(f"expected a seed for each image, found {len(seeds)} for {num_images}")
        # on the CPU, whose numbers are the same everywhere; one for an image, so that no other has a part in it
        generator = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    if isinstance(generator, list) and len(generator) != num_images:
        raise ValueError(f"expected a generator, or one for each image, found {len(generator)} for {num_images}")
    if latents is None:
        drawn_BCHW = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return Noise(latents_BCHW=drawn_BCHW, generators=generator, seeds=seeds)
    given_BCHW = as_tensor("latents", latents)
    if given_BCHW.shape != shape:
        raise ValueError(f"expected latents of shape {shape}, found {tuple(given_BCHW.shape)}")
    return Noise(latents_BCHW=given_BCHW.to(device, torch.float32), generators=generator, seeds=None)


def make_images(
    pipeline: Any, sampling: Sampling, noise: Noise, conditions_BLD: torch.Tensor, null_BLD: torch.Tensor | None
) -> Any:
    """Images in the form that is asked for, of a condition each; without a null condition there is no guidance.

    The pipeline's `predict_noise` is asked at each step; the names of the conditions, for a callback, follow
    `latents` in its `_callback_tensor_inputs`.
    """
    made: list[torch.Tensor] = []
    pipeline._guidance_scale, pipeline._interrupt = sampling.guidance_scale, False
    starts = range(0, len(conditions_BLD), sampling.batch_size)
    with pipeline.progress_bar(total=len(starts) * sampling.steps) as progress:
        for part in (slice(start, start + sampling.batch_size) for start in starts):
            of_part = noise.generators[part] if isinstance(noise.generators, list) else noise.generators
            state = {
                "latents": noise.latents_BCHW[part],
                "condition": conditions_BLD[part],
                "null": None if null_BLD is None else null_BLD[part],
            }
            made.append(_sample(pipeline, sampling, state, of_part, progress))
    # the VAE comes last: with offloading, the denoiser would leave the device for each batch
    output_type = sampling.output_type
    parts = made if output_type == "latent" else [_decode(pipeline, latents, output_type) for latents in made]
    pipeline.maybe_free_model_hooks()
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [image for part in parts for image in part]


def _sample(
    pipeline: Any,
    sampling: Sampling,
    given: dict[str, torch.Tensor | None],
    generator: Generators | None,
    progress: Any,
) -> torch.Tensor:
    """Latents as the model sees them, float32; where nothing is guided there is no second pass."""
    device, scheduler = pipeline._execution_device, pipeline.scheduler
    _start(scheduler, sampling.steps, device)
    pipeline._num_timesteps = len(scheduler.timesteps)
    uncounted = len(scheduler.timesteps) - sampling.steps * scheduler.order  # what some samplers do first, beside these
    told = inspect.signature(scheduler.step).parameters
    extra = {name: value for name, value in (("eta", sampling.eta), ("generator", generator)) if name in told}
    _, condition_key, null_key = pipeline._callback_tensor_inputs
    dtype = pipeline.denoiser_dtype
    state: dict[str, Any] = {"latents": given["latents"] * scheduler.init_noise_sigma}
    for key, value in ((condition_key, given["condition"]), (null_key, given["null"])):
        state[key] = None if value is None else value.to(device, dtype)
    for step, timestep in enumerate(scheduler.timesteps):
        if pipeline._interrupt:
            continue
        latents_BCHW, condition_BLD = state["latents"], state[condition_key]
        is_guided = given["null"] is not None and _is_within(scheduler, timestep, sampling.interval)
        if is_guided:
            latents_BCHW = torch.cat([latents_BCHW, latents_BCHW])
            condition_BLD = torch.cat([state[null_key], condition_BLD])
        scaled_BCHW = scheduler.scale_model_input(latents_BCHW, timestep).to(dtype)
        epsilon = pipeline.predict_noise(scaled_BCHW, timestep, condition_BLD).float()
        if is_guided:
            null, conditioned = epsilon.chunk(2)
            epsilon = null + sampling.guidance_scale * (conditioned - null)
        state["latents"] = scheduler.step(epsilon, timestep, state["latents"], **extra, return_dict=False)[0]
        if sampling.callback is not None:
            returned = sampling.callback(
                pipeline, step, timestep, {key: state[key] for key in sampling.callback_inputs}
            )
            state |= {key: returned[key] for key in state.keys() & returned.keys()}
        done = step + 1 - max(0, uncounted)
        if step == len(scheduler.timesteps) - 1 or (done > 0 and done % scheduler.order == 0):
            progress.update()
    if not state["latents"].isfinite().all():
        raise ValueError("the sampler ended with latents that are not finite: try a lower guidance_scale or float32")
    return state["latents"]


def _start(scheduler: Any, steps: int, device: torch.device) -> None:
    if not hasattr(scheduler, "init_noise_sigma") or not hasattr(scheduler, "scale_model_input"):
        raise ValueError(f"expected a sampler of noise levels, such as Euler's, found {type(scheduler).__name__}")
    scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def _is_within(scheduler: Any, timestep: torch.Tensor, interval: tuple[float, float] | None) -> bool:
    """Whether the noise level of a timestep, which may lie between two of training's, is in an interval of sigma."""
    if interval is None:
        return True
    kept = scheduler.alphas_cumprod.double().cpu().numpy()
    log_sigmas = np.log((1 - kept) / kept) / 2
    sigma = math.exp(np.interp(float(timestep), np.arange(len(kept)), log_sigmas))
    return interval[0] <= sigma <= interval[1]


def _decode(pipeline: Any, latents_BCHW: torch.Tensor, output_type: str) -> Any:
    vae = pipeline.vae
    # `vae.device` is not where it computes, once it is offloaded
    latents: Any = (latents_BCHW / vae.config["scaling_factor"]).to(pipeline._execution_device, vae.dtype)
    images_BCHW = vae.decode(latents).sample.float()
    if not images_BCHW.isfinite().all():
        raise ValueError("the VAE ended with pixels that are not finite: try a lower guidance_scale or float32")
    if output_type == "pil":
        pixels_BCHW = ((images_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(pixels_HWC) for pixels_HWC in pixels_BCHW.permute(0, 2, 3, 1).cpu().numpy()]
    shares_BCHW = (images_BCHW / 2 + 0.5).clamp(0, 1)
    return shares_BCHW if output_type == "pt" else shares_BCHW.permute(0, 2, 3, 1).cpu().numpy()
