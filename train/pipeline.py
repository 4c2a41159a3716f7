"""The released model: a sound, or features of one, becomes an image.

This one file is all that a release needs beside numpy, torch, diffusers, transformers and Pillow: it lies in each as
`pipeline.py`, byte for byte, and diffusers loads it from there:

    pipeline = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    image = pipeline("dog.wav").images[0]

B  images, S  samples, N  channels of a recording, W  windows of it, F M  frames and mel bands
T D  times and width of the condition, C H W  channels, height and width of an image or of latents
"""

import functools
import importlib
import importlib.util
import inspect
import math
import os
import sys
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import ASTFeatureExtractor, ASTModel

MAX_SEED = 2**63 - 1
Level = Literal["window", "recording"]
LEVELS = ("window", "recording")
OUTPUTS = ("pil", "np", "pt", "latent")
NEGATIVE = "negative_audio_features"
# One recording, or several: files, arrays, or what `datasets` has for one.
Recording = str | os.PathLike | np.ndarray | torch.Tensor | dict
Generators = torch.Generator | list[torch.Generator]

AST_SAMPLE_RATE_HZ = 16_000
LEADING_TOKENS = 2  # of an AST, for the class and for distillation
FRAME, HOP, FFT = 400, 160, 512  # 25 ms every 10 ms at 16 kHz
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
BAND_GROUPS = 8  # in which the mel bands are summed, as for the training shards: other groups round otherwise

# How the clips of training are cut and levelled.
FULL_SCALE = 32768
MIN_TAIL_SEC = 1.0
MAX_DOWNMIX_LOSS_DB = 6.0
MAX_GAIN_DB = 30.0
PEAK_DBFS = -1.0
BLOCK_SEC, BLOCKS_A_BLOCK = 0.4, 4  # BS.1770 measures blocks of 0.4 s, one every 0.1 s
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
OFFSET_LU = -0.691
RATES_HZ = (1_000, 192_000)
MAX_CHANNELS = 64
# A windowed sinc of 64 zero crossings on each side: torchaudio's `kaiser_best`, fitted there to resampy's.
ZERO_CROSSINGS, ROLLOFF, KAISER_BETA = 64, 0.9475937167399596, 14.769656459379492
PHASES_AT_ONCE = 64  # places between two samples whose weights are made together: 44,101 Hz has 16,000 of them


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
    """`images` are PIL images, (B, H, W, C) float32 or (B, C, H, W) float32 in [0, 1], or latents, as was asked for.

    `seeds` would make each again, where no generator or latents were given. `windows` names, for images of recordings,
    the recording of each and the second at which its window begins.
    """

    images: Any
    seeds: list[int] | None = None
    windows: list[tuple[int, float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampling:
    """What a sampler is told, for all images alike; `interval` is of noise levels."""

    guidance_scale: float
    interval: tuple[float, float] | None
    steps: int
    eta: float
    callback: Callable[..., dict[str, Any]] | None
    callback_inputs: Sequence[str]


class AudioPixArtPipeline(DiffusionPipeline):
    """An audio-conditioned PixArt-alpha with its VAE, its sampler and, where the condition is AST's, the AST.

    Saved with it is what it was trained on: `frequency` says what became of AST's rows of one time, `clip_seconds` how
    long a clip is, `null_condition` what guidance leads away from, `level` what was brought to one loudness (each
    clip alone: `window`), and `loudness_lufs` between which two that loudness was drawn.
    """

    model_cpu_offload_seq = "audio_encoder->transformer->vae"
    _optional_components = ["audio_encoder", "feature_extractor"]  # noqa: RUF012 - the library's name and type
    _callback_tensor_inputs = ["latents", "audio_features", "negative_audio_features"]  # noqa: RUF012 - as above

    transformer: PixArtTransformer2DModel
    vae: AutoencoderKL | AutoencoderTiny
    scheduler: Any  # that of `make_scheduler`, or another of diffusers' over the same schedule
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
        level: str = "window",
        loudness_lufs: list | tuple = (-32.0, -28.0),
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
        self.register_to_config(level=level, loudness_lufs=list(loudness_lufs))

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - what the library's pipelines take
        self,
        audio: Recording | Sequence[Recording] | None = None,
        *,
        sampling_rate: int | None = None,
        level: Level | None = None,
        target_lufs: float | None = None,
        audio_features: np.ndarray | torch.Tensor | None = None,
        negative_audio_features: np.ndarray | torch.Tensor | None = None,
        audio_BS: np.ndarray | torch.Tensor | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 20,
        guidance_scale: float = 4.5,
        guidance_interval: Sequence[float] | None = None,
        eta: float = 0.0,
        seeds: Sequence[int] | np.ndarray | torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: np.ndarray | torch.Tensor | None = None,
        batch_size: int = 1,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Make images of sounds: of each recording one for each window of `clip_seconds`.

        Args:
            audio: a file, or samples as an array, or a list of such; at any rate, of any number of channels. Or else
            audio_features: the condition itself (B, T, D), with which no AST is needed. Or else
            audio_BS: clips at 16 kHz as the model is to hear them, neither cut nor levelled.
            sampling_rate: of samples, in Hz; a file says its own.
            level: what is brought to the loudness of training, each `window` alone or the `recording` as a whole, with
                one gain, so that its quiet stretches stay quiet. What the model was trained on, if None.
            target_lufs: that loudness; the middle of what the model was trained on, if None.
            negative_audio_features: (T, D), or one for each condition, what guidance leads away from; the null
                condition that the model was trained with, if None.
            num_images_per_prompt: images of each window or condition; they follow each other.
            num_inference_steps: of the sampler; at most as many as its schedule has.
            guidance_scale: how far to lead away from the null condition; 1 is no guidance, at half the cost.
            guidance_interval: the noise levels, sigma from low to high, at which there is guidance; all, if None.
                Sigma is that of EDM: 0.02 before the last of 1,000 steps, 157 at the first.
            eta: of DDIM, from 0 to 1.
            seeds: one for each image, from 0 on; an image of a seed is the same beside whatever it is made. Drawn from
                torch's own generator, if there are neither these nor `generator` nor `latents`.
            generator: of the noise, one, or one for each image.
            latents: the noise itself (B, C, H, W), of variance 1.
            batch_size: images that go through the model at once. With 1 an image is the same to the bit whatever is
                made beside it, with more it may differ by rounding. A callback is called for each batch by itself.
            output_type: PIL images; `np` or `pt`, in [0, 1]; or `latent`, as the sampler leaves them.
            return_dict: an `AudioPixArtOutput`; or else a tuple with the images.
            callback_on_step_end: called as (pipeline, step, timestep, tensors); the tensors that it returns are used.
            callback_on_step_end_tensor_inputs: which it is given, of `_callback_tensor_inputs`.

        Raises:
            ValueError: the arguments are none or contradict each other, a sound cannot be read or is silent, there is
                no AST, or what was made is not finite.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        sampling = _Sampling(
            guidance_scale=_as_number("guidance_scale", guidance_scale, 1),
            interval=_as_interval(guidance_interval),
            steps=_as_count("num_inference_steps", num_inference_steps, self._most_steps()),
            eta=_as_number("eta", eta, 0, 1),
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        num_images_per_prompt = _as_count("num_images_per_prompt", num_images_per_prompt)
        batch_size = _as_count("batch_size", batch_size)
        seeds, generators = _as_seeds(seeds), _as_generators(generator)
        self._check_call(sampling, output_type)
        if sum(given is not None for given in (audio, audio_features, audio_BS)) != 1:
            raise ValueError("expected audio, or audio_features, or audio_BS, and only one of them")
        windows = None
        if audio is not None:
            audio_BS, windows = self.cut(audio, sampling_rate, level, target_lufs)
        elif not (sampling_rate is level is target_lufs is None):
            raise ValueError("sampling_rate, level and target_lufs are for `audio`: the model hears the rest as it is")
        if audio_BS is not None:
            parts_BS = _parts(_as_sounds(audio_BS), batch_size)
            audio_BTD = torch.cat([self.encode_audio(part_BS) for part_BS in parts_BS])
        else:
            audio_BTD = _as_trained("audio_features", audio_features)
        audio_BTD = self._check_condition(audio_BTD).repeat_interleave(num_images_per_prompt, dim=0)
        null_BTD = self._null(audio_BTD, negative_audio_features) if sampling.guidance_scale > 1 else None
        if seeds is None and generator is None and latents is None:
            seeds = torch.randint(MAX_SEED, (len(audio_BTD),)).tolist()
        noise_BCHW, generators = self._noise(len(audio_BTD), seeds, generators, latents)

        made: list[torch.Tensor] = []
        self._guidance_scale, self._interrupt = sampling.guidance_scale, False
        starts = range(0, len(audio_BTD), batch_size)
        bar: Any = self.progress_bar  # annotated as what decorates a method
        with bar(total=len(starts) * sampling.steps) as progress:
            for part in (slice(start, start + batch_size) for start in starts):
                null_part_BTD = None if null_BTD is None else null_BTD[part]
                of_part = generators[part] if isinstance(generators, list) else generators
                made.append(self._sample(sampling, noise_BCHW[part], audio_BTD[part], null_part_BTD, of_part, progress))
        # the VAE comes last: with offloading, the transformer would leave the device for each batch
        parts = made if output_type == "latent" else [self._decode(latents_BCHW, output_type) for latents_BCHW in made]
        self.maybe_free_model_hooks()
        images = _joined(parts)
        if not return_dict:
            return (images,)
        if windows is not None:
            windows = [window for window in windows for _ in range(num_images_per_prompt)]
        return AudioPixArtOutput(images=images, seeds=None if seeds is None else [*seeds], windows=windows)

    def cut(
        self,
        audio: Recording | Sequence[Recording],
        sampling_rate: int | None = None,
        level: Level | None = None,
        target_lufs: float | None = None,
    ) -> tuple[np.ndarray, list[tuple[int, float]]]:
        """Clips (W, S) float32 at 16 kHz as the model hears them; of each, its recording and the second it begins at.

        As in `__call__`. A tail under one second, and a window in which nothing is heard, makes no clip.

        Raises:
            ValueError: a sound cannot be read or is silent, or its rate is not known.
        """
        recordings: Any = audio if isinstance(audio, list | tuple) else [audio]
        if not recordings:
            raise ValueError("expected a recording, found an empty list")
        if sampling_rate is not None and all(isinstance(one, str | os.PathLike | dict) for one in recordings):
            raise ValueError("sampling_rate is of samples: a file says its own")
        level = self.config["level"] if level is None else level
        if not isinstance(level, str) or level not in LEVELS:
            raise ValueError(f"expected a level, {' or '.join(LEVELS)}, found {level!r}")
        middle_lufs: float = sum(self.config["loudness_lufs"]) / 2
        target_lufs = middle_lufs if target_lufs is None else _as_number("target_lufs", target_lufs, -70, 0)
        clips: list[np.ndarray] = []
        begun: list[tuple[int, float]] = []
        for number, recording in enumerate(recordings):
            name = str(recording) if isinstance(recording, str | os.PathLike) else f"recording {number}"
            try:
                signal_S = read_recording(recording, sampling_rate)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            windows = cut_windows(signal_S, round(self.config["clip_seconds"] * AST_SAMPLE_RATE_HZ))
            gains_db = gains_to_target_db(windows, level, target_lufs)
            heard = [(place, gain_db) for place, gain_db in enumerate(gains_db) if gain_db is not None]
            if not heard:
                raise ValueError(f"{name}: silent: no part of it has a measurable loudness")
            clips += apply_gains([windows[place] for place, _ in heard], [gain_db for _, gain_db in heard], level)
            begun += [(number, place * len(windows[0]) / AST_SAMPLE_RATE_HZ) for place, _ in heard]
        return np.stack(clips), begun

    @torch.no_grad()
    def encode_audio(self, audio_BS: np.ndarray | torch.Tensor) -> torch.Tensor:
        """The condition (B, T, D) that sounds are, as the training shards hold it.

        Raises:
            ValueError: the pipeline has no AST, or the sounds are none, not mono or longer than it hears.
        """
        if self.audio_encoder is None or self.feature_extractor is None:
            raise ValueError("this pipeline has no AST: its condition is passed as audio_features")
        given_BS = _as_sounds(audio_BS)
        longest = self.feature_extractor.max_length * HOP
        if given_BS.shape[1] > longest:
            found_sec, longest_sec = given_BS.shape[1] / AST_SAMPLE_RATE_HZ, longest / AST_SAMPLE_RATE_HZ
            raise ValueError(f"a sound of {found_sec:g} s: this AST hears {longest_sec:g} s at most; cut it into clips")
        sounds_BS = given_BS.to(torch.float32).to(self._execution_device)
        heard_BTD = hear(self.audio_encoder, self.feature_extractor, sounds_BS, self.config["frequency"])
        return _as_trained("what the AST hears", heard_BTD)

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

    @property
    def guidance_scale(self) -> float:
        """Of the call that is under way."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Of the call that is under way."""
        return self._num_timesteps

    def _most_steps(self) -> float:
        return self.scheduler.config.get("num_train_timesteps", math.inf)

    def _check_call(self, sampling: _Sampling, output_type: str) -> None:
        if output_type not in OUTPUTS:
            raise ValueError(f"expected an output_type, one of {', '.join(OUTPUTS)}, found {output_type!r}")
        if foreign := {*sampling.callback_inputs} - {*self._callback_tensor_inputs}:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: expected of {self._callback_tensor_inputs}, found {[*foreign]}"
            )

    def _check_condition(self, audio_BTD: torch.Tensor) -> torch.Tensor:
        width = self.transformer.config["caption_channels"]
        if audio_BTD.ndim != 3 or audio_BTD.shape[-1] != width or not audio_BTD.numel():
            raise ValueError(f"expected a condition of shape (B, T, {width}), found {tuple(audio_BTD.shape)}")
        return audio_BTD

    def _null(self, audio_BTD: torch.Tensor, given: np.ndarray | torch.Tensor | None) -> torch.Tensor:
        """What guidance leads away from, beside each image's condition."""
        null_BTD = self.encode_null(audio_BTD.shape[1]) if given is None else _as_trained(NEGATIVE, given)
        null_BTD = null_BTD[None] if null_BTD.ndim == 2 else null_BTD
        times = len(audio_BTD) // max(1, len(null_BTD))
        if null_BTD.shape[1:] != audio_BTD.shape[1:] or times * len(null_BTD) != len(audio_BTD):
            raise ValueError(
                f"expected negative_audio_features of shape {tuple(audio_BTD.shape[1:])}, or as many of them as there"
                f" are conditions, found {tuple(null_BTD.shape)}"
            )
        return null_BTD.repeat_interleave(times, dim=0)

    def _noise(
        self,
        num_images: int,
        seeds: list[int] | None,
        generator: Generators | None,
        latents: np.ndarray | torch.Tensor | None,
    ) -> tuple[torch.Tensor, Generators | None]:
        """Noise of variance 1 for each image, and what noise of the sampler's own comes from."""
        config = self.transformer.config
        shape = (num_images, config["in_channels"], config["sample_size"], config["sample_size"])
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
            device = self._execution_device
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32), generator
        given_BCHW = _as_tensor("latents", latents)
        if given_BCHW.shape != shape:
            raise ValueError(f"expected latents of shape {shape}, found {tuple(given_BCHW.shape)}")
        return given_BCHW.to(self._execution_device, torch.float32), generator

    def _sample(
        self,
        sampling: _Sampling,
        noise_BCHW: torch.Tensor,
        audio_BTD: torch.Tensor,
        null_BTD: torch.Tensor | None,
        generator: Generators | None,
        progress: Any,
    ) -> torch.Tensor:
        """Latents as the model sees them, float32; where nothing is guided there is no second pass."""
        device, dtype, scheduler = self._execution_device, self.transformer.dtype, self.scheduler
        if not hasattr(scheduler, "init_noise_sigma") or not hasattr(scheduler, "scale_model_input"):
            raise ValueError(f"expected a sampler of noise levels, such as Euler's, found {type(scheduler).__name__}")
        scheduler.set_timesteps(sampling.steps, device=device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        self._num_timesteps = len(scheduler.timesteps)
        told = inspect.signature(scheduler.step).parameters
        extra = {name: value for name, value in (("eta", sampling.eta), ("generator", generator)) if name in told}
        state: dict[str, Any] = {
            "latents": noise_BCHW * scheduler.init_noise_sigma,
            "audio_features": audio_BTD.to(device, dtype),
            "negative_audio_features": None if null_BTD is None else null_BTD.to(device, dtype),
        }
        for step, timestep in enumerate(scheduler.timesteps):
            if self._interrupt:
                continue
            latents_BCHW, condition_BTD = state["latents"], state["audio_features"]
            is_guided = null_BTD is not None and _is_within(scheduler, timestep, sampling.interval)
            if is_guided:
                latents_BCHW = torch.cat([latents_BCHW, latents_BCHW])
                condition_BTD = torch.cat([state["negative_audio_features"], condition_BTD])
            given_BCHW = scheduler.scale_model_input(latents_BCHW, timestep)
            output_BCHW = self.transformer(
                given_BCHW.to(dtype), encoder_hidden_states=condition_BTD, timestep=timestep.expand(len(given_BCHW))
            ).sample.float()
            # the other half of a model that has one is the variance, which these samplers do not use
            epsilon = output_BCHW[:, : self.transformer.config["in_channels"]]
            if is_guided:
                null, conditioned = epsilon.chunk(2)
                epsilon = null + sampling.guidance_scale * (conditioned - null)
            state["latents"] = scheduler.step(epsilon, timestep, state["latents"], **extra, return_dict=False)[0]
            if sampling.callback is not None:
                returned = sampling.callback(
                    self, step, timestep, {key: state[key] for key in sampling.callback_inputs}
                )
                state |= {key: returned[key] for key in state.keys() & returned.keys()}
            if step == len(scheduler.timesteps) - 1 or (step + 1) % scheduler.order == 0:
                progress.update()
        if not state["latents"].isfinite().all():
            raise ValueError(
                "the sampler ended with latents that are not finite: try a lower guidance_scale or float32"
            )
        return state["latents"]

    def _decode(self, latents_BCHW: torch.Tensor, output_type: str) -> Any:
        # `vae.device` is not where it computes, once it is offloaded
        latents: Any = (latents_BCHW / self.vae.config["scaling_factor"]).to(self._execution_device, self.vae.dtype)
        decoded: Any = self.vae.decode(latents)
        images_BCHW = decoded.sample.float()
        if output_type == "pil":
            pixels_BCHW = ((images_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            return [Image.fromarray(pixels_HWC) for pixels_HWC in pixels_BCHW.permute(0, 2, 3, 1).cpu().numpy()]
        shares_BCHW = (images_BCHW / 2 + 0.5).clamp(0, 1)
        return shares_BCHW if output_type == "pt" else shares_BCHW.permute(0, 2, 3, 1).cpu().numpy()


def _as_trained(name: str, given: Any) -> torch.Tensor:
    """Round to the float16 of the training shards."""
    rounded = _as_tensor(name, given).to("cpu", torch.float16).float()
    if not rounded.isfinite().all():
        raise ValueError(f"expected {name} within the {torch.finfo(torch.float16).max:g} of float16, found larger ones")
    return rounded


def _as_tensor(name: str, given: Any) -> torch.Tensor:
    """Finite real numbers as a tensor: an array of either library, or lists."""
    if isinstance(given, np.ndarray):  # torch takes neither another byte order nor a view from the end
        given = np.ascontiguousarray(given, given.dtype.newbyteorder("="))
    try:
        tensor = torch.as_tensor(given)
        is_real = not tensor.is_complex() and tensor.dtype != torch.bool
        if is_real and tensor.layout == torch.strided and tensor.isfinite().all():
            return tensor
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"expected {name} as an array of numbers, found {_told(given)} ({error})") from error
    raise ValueError(f"expected {name} as an array of finite, real numbers, found {_told(given)}")


def _as_sounds(audio_BS: Any) -> torch.Tensor:
    sounds_BS = _as_tensor("audio_BS", audio_BS)
    if sounds_BS.ndim != 2 or not len(sounds_BS):
        raise ValueError(f"expected (B, S), mono sounds of one length, found {tuple(sounds_BS.shape)}")
    if not sounds_BS.is_floating_point():
        raise ValueError(f"expected audio_BS as floats within 1, found {sounds_BS.dtype}: divide by its full scale")
    return sounds_BS


def _as_number(name: str, given: Any, low: float, high: float = math.inf) -> float:
    """A finite number, as an array of no dimension is one too."""
    value = _one_of(given)
    if isinstance(value, int | float) and low <= value <= min(high, sys.float_info.max):
        return float(value)
    limits = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
    raise ValueError(f"expected {name}, a number of {limits}, found {_told(given)}")


def _as_count(name: str, given: Any, most: float = math.inf) -> int:
    value = _one_of(given)
    if isinstance(value, int) and 1 <= value <= most:
        return value
    limits = "at least 1" if most == math.inf else f"at least 1 and at most {most}"
    raise ValueError(f"expected {name}, a whole number of {limits}, found {_told(given)}")


def _as_interval(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    ends = [_one_of(end) for end in _listed(given) or ()]
    if len(ends) == 2 and all(isinstance(end, int | float) for end in ends) and 0 <= ends[0] <= ends[1]:
        return ends[0], ends[1]
    raise ValueError(f"expected guidance_interval as (low, high) of sigma, found {_told(given)}")


def _as_seeds(given: Any) -> list[int] | None:
    if given is None:
        return None
    listed = _listed(given)
    seeds = [_one_of(seed) for seed in listed or ()]
    if listed is None or not all(isinstance(seed, int) and 0 <= seed <= MAX_SEED for seed in seeds):
        raise ValueError(f"expected seeds from 0 to {MAX_SEED}, one for each image, found {_told(given)}")
    return seeds


def _as_generators(given: Any) -> Generators | None:
    if given is None or isinstance(given, torch.Generator):
        return given
    listed = _listed(given)
    if listed is None or not all(isinstance(one, torch.Generator) for one in listed):
        raise ValueError(f"expected a torch.Generator, or one for each image, found {_told(given)}")
    return listed


def _listed(given: Any) -> list | None:
    """A row of things, whatever holds it; None where it is none, as a text or a single number."""
    if isinstance(given, list | tuple | range):
        return [*given]
    is_row = isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 1
    return given.tolist() if is_row else None


def _one_of(given: Any) -> Any:
    """A number of numpy's or torch's as Python's; what is none, or a truth value, as None."""
    if isinstance(given, np.generic | np.ndarray | torch.Tensor) and given.ndim == 0:
        given = None if isinstance(given, torch.Tensor) and given.is_meta else given.item()
    return None if isinstance(given, bool) else given


def _told(given: Any) -> str:
    if isinstance(given, np.ndarray | torch.Tensor) and given.ndim:
        return f"{type(given).__name__} of shape {tuple(given.shape)} and {given.dtype}"
    return " ".join(repr(given).split())[:100]


def _is_within(scheduler: Any, timestep: torch.Tensor, interval: tuple[float, float] | None) -> bool:
    """Whether the noise level of a timestep, which may lie between two of training's, is in an interval of sigma."""
    if interval is None:
        return True
    kept = scheduler.alphas_cumprod.double().cpu().numpy()
    log_sigmas = np.log((1 - kept) / kept) / 2
    sigma = math.exp(np.interp(float(timestep), np.arange(len(kept)), log_sigmas))
    return interval[0] <= sigma <= interval[1]


def _parts(rows: Any, size: int) -> list:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _joined(parts: list) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [image for part in parts for image in part]


def read_recording(recording: Recording, sampling_rate_hz: int | None) -> np.ndarray:
    """A recording as (S,) float64 at 16 kHz: mono, without DC.

    Raises:
        ValueError: it cannot be read, its rate is not known, or it holds no samples.
    """
    if isinstance(recording, dict):
        if not {"array", "sampling_rate"} <= {*recording}:
            raise ValueError(f"expected a dict with `array` and `sampling_rate`, found {_told([*recording])}")
        recording, sampling_rate_hz = recording["array"], recording["sampling_rate"]
    elif isinstance(recording, str | os.PathLike):
        recording, sampling_rate_hz = read_file(Path(recording))
    if isinstance(recording, torch.Tensor):
        if recording.layout != torch.strided or recording.is_meta:
            raise ValueError(f"expected samples as a dense tensor, found {recording.layout} on {recording.device}")
        recording = recording.detach().cpu()
        recording = (recording.float() if recording.is_floating_point() else recording).numpy()
    if sampling_rate_hz is None:
        raise ValueError(
            "samples without their rate: pass sampling_rate=44100, or whatever it is; clips that are ready for the"
            " model, at 16 kHz, go in as audio_BS"
        )
    rate_hz = _one_of(sampling_rate_hz)
    if not isinstance(rate_hz, int | float) or not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise ValueError(
            f"expected a sampling_rate of {RATES_HZ[0]} to {RATES_HZ[1]} Hz, found {_told(sampling_rate_hz)}"
        )
    return resample(to_mono(np.asarray(recording)), round(rate_hz))


def read_file(path: Path) -> tuple[np.ndarray, int]:
    """A file's samples (S, N) and its rate in Hz: whatever soundfile reads, without it WAV of whole numbers.

    Raises:
        ValueError: neither can read it.
    """
    if not path.is_file():
        raise ValueError("is a folder, no sound" if path.is_dir() else "no such file")
    # not by an import statement: diffusers would tell who loads this file that it needs the library
    is_there = importlib.util.find_spec("soundfile") is not None
    try:
        if is_there:
            return importlib.import_module("soundfile").read(path, dtype="float32", always_2d=True)
        with wave.open(str(path)) as file:
            width, num_channels, rate_hz = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
        if width > 4:
            raise wave.Error(f"samples of {width} bytes")
    except (OSError, EOFError, RuntimeError, wave.Error) as error:  # soundfile's own is a RuntimeError
        todo = "" if is_there else "install soundfile, or "
        raise ValueError(
            f"cannot be read as a sound ({error}): {todo}pass the samples and their sampling_rate"
        ) from error
    whole = data[: len(data) // (width * num_channels) * width * num_channels].reshape(-1, width)
    if width == 1:
        whole = whole ^ 0x80  # bytes alone are stored without a sign
    # from the top of 32 bits downwards, whatever their number
    samples = np.zeros((len(whole), 4), np.uint8)
    samples[:, 4 - width :] = whole
    return samples.view("<i4").reshape(-1, num_channels) / 2.0**31, rate_hz


def to_mono(samples: np.ndarray) -> np.ndarray:
    """Samples (S,), (S, N) or (N, S), whole numbers or within 1, as (S,) float64 without DC.

    The mean of the channels; where it loses more than 6 dB, of one channel alone or of two that cancel each other, the
    loudest of them.

    Raises:
        ValueError: no samples, or not finite, or another shape.
    """
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or not samples.size or min(samples.shape) > MAX_CHANNELS:
        raise ValueError(
            "expected samples of one recording, with its channels before or behind them, found an array of shape"
            f" {samples.shape}; several recordings are a list"
        )
    signal_NS = samples if samples.shape[0] <= samples.shape[1] else samples.T
    full_scale = 1.0
    if np.issubdtype(signal_NS.dtype, np.signedinteger):
        full_scale = 2.0 ** (8 * signal_NS.dtype.itemsize - 1)
    elif not np.issubdtype(signal_NS.dtype, np.floating):
        raise ValueError(f"expected samples as floats or signed integers, found {signal_NS.dtype}")
    signal_NS = signal_NS.astype(np.float64) / full_scale
    if not np.isfinite(signal_NS).all():
        raise ValueError("holds samples that are not finite")
    mono_S = signal_NS.mean(axis=0)
    loudest_S = max(signal_NS, key=np.var)
    if mono_S.var() < loudest_S.var() * 10 ** (-MAX_DOWNMIX_LOSS_DB / 10):
        mono_S = loudest_S
    return mono_S - mono_S.mean()


def resample(signal_S: np.ndarray, rate_hz: int) -> np.ndarray:
    """A signal at 16 kHz, float64: a windowed sinc, one set of weights for each place between two samples."""
    common = math.gcd(rate_hz, AST_SAMPLE_RATE_HZ)
    num_phases, stride = AST_SAMPLE_RATE_HZ // common, rate_hz // common
    if num_phases == stride:
        return signal_S
    cutoff = min(1.0, AST_SAMPLE_RATE_HZ / rate_hz) * ROLLOFF  # of half the signal's rate
    reach = ZERO_CROSSINGS / cutoff
    half = math.ceil(reach)
    taps = np.arange(-half, half + 1)
    num_samples = -(-len(signal_S) * num_phases // stride)
    num_rounds = -(-num_samples // num_phases)
    padded_S = np.pad(signal_S, (half, half + num_rounds * stride + 1))
    out_S = np.empty((num_rounds, num_phases))
    for start in range(0, num_phases, PHASES_AT_ONCE):
        firsts, rests = np.divmod(np.arange(start, min(start + PHASES_AT_ONCE, num_phases)) * stride, num_phases)
        offsets = taps - rests[:, None] / num_phases
        window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (offsets / reach) ** 2, 0, None))) / np.i0(KAISER_BETA)
        weights = np.where(np.abs(offsets) < reach, cutoff * np.sinc(cutoff * offsets) * window, 0.0)
        for row, first in enumerate(firsts):
            around = np.lib.stride_tricks.sliding_window_view(padded_S[first:], len(taps))[::stride][:num_rounds]
            out_S[:, start + row] = around @ weights[row]
    return out_S.reshape(-1)[:num_samples]


def cut_windows(signal_S: np.ndarray, num_samples: int) -> list[np.ndarray]:
    """Windows (S,) of whole numbers of 16 bits, as float64 within 1, the last padded with zeros.

    A last one under a second is left out, and one that passes full scale is scaled to fit: as training cut its clips.
    """
    pieces = [signal_S[start : start + num_samples] for start in range(0, len(signal_S), num_samples)]
    if len(pieces) > 1 and len(pieces[-1]) < MIN_TAIL_SEC * AST_SAMPLE_RATE_HZ:
        pieces.pop()
    windows: list[np.ndarray] = []
    for piece_S in pieces:
        scaled_S = piece_S * FULL_SCALE
        if scaled_S.max() > FULL_SCALE - 1 or scaled_S.min() < -FULL_SCALE:
            scaled_S = scaled_S * ((FULL_SCALE - 1) / np.abs(scaled_S).max())
        windows.append(np.pad(np.rint(scaled_S) / FULL_SCALE, (0, num_samples - len(piece_S))))
    return windows


def gains_to_target_db(windows: Sequence[np.ndarray], level: str, target_lufs: float) -> list[float | None]:
    """The gain that brings each window of one recording to a loudness, rounded to 4 decimals; None where it is silent.

    With the level `recording` it is one gain, of the recording that the windows are.
    """
    loudness = [measure_loudness(window_S) for window_S in windows]
    whole = measure_loudness(np.concatenate(windows)) if level == "recording" else None
    return [
        round(min(target_lufs - (lufs if whole is None else whole), MAX_GAIN_DB), 4) if math.isfinite(lufs) else None
        for lufs in loudness
    ]


def apply_gains(windows: Sequence[np.ndarray], gains_db: Sequence[float], level: str) -> list[np.ndarray]:
    """The windows with their gains as float32 of 16 bits, none above the ceiling of training's mixes.

    What passes it is lowered as a whole: the window, or with the level `recording` all of them.
    """
    amplified = [
        (window_S * FULL_SCALE).astype(np.float32) * np.float32(10 ** (gain_db / 20))
        for window_S, gain_db in zip(windows, gains_db, strict=True)
    ]
    lowered_db = [_above_ceiling_db(float(np.abs(window_S).max())) for window_S in amplified]
    if level == "recording":
        lowered_db = [min(lowered_db)] * len(amplified)
    factors = [np.float32(10 ** (gain_db / 20)) for gain_db in lowered_db]
    steps = [np.rint(window_S * factor) for window_S, factor in zip(amplified, factors, strict=True)]
    return [window_S.clip(-FULL_SCALE, FULL_SCALE - 1) / np.float32(FULL_SCALE) for window_S in steps]


def _above_ceiling_db(peak: float) -> float:
    """What brings a peak, in steps of 16 bits, below the ceiling, rounded down; 0.0 where it is."""
    ceiling = math.floor(FULL_SCALE * 10 ** (PEAK_DBFS / 20))
    return 0.0 if np.rint(peak) <= ceiling else math.floor(20 * math.log10(ceiling / peak) * 10_000) / 10_000


def measure_loudness(samples_S: np.ndarray) -> float:
    """Integrated loudness at 16 kHz in LUFS, -inf where no block of 0.4 s passes the gate.

    Source: ITU-R BS.1770-5, Annex 1; the filters are of the standard's analogue prototype, as pyloudnorm's `DeMan`.
    """
    block, hop = round(BLOCK_SEC * AST_SAMPLE_RATE_HZ), round(BLOCK_SEC * AST_SAMPLE_RATE_HZ / BLOCKS_A_BLOCK)
    if len(samples_S) < block:
        return -math.inf
    num_blocks = round((len(samples_S) - block) / hop) + 1
    weighting = k_weighting()
    size = 1 << (len(samples_S) + len(weighting) - 1).bit_length()
    spectrum = np.fft.rfft(samples_S, size) * np.fft.rfft(weighting, size)
    squares_S = np.square(np.fft.irfft(spectrum, size)[: len(samples_S)])
    power = np.array([squares_S[n * hop : n * hop + block].sum() / block for n in range(num_blocks)])
    gate = 10 ** ((ABSOLUTE_GATE_LUFS - OFFSET_LU) / 10)
    power = power[power >= gate]
    if power.size:
        power = power[power > power.mean() * 10 ** (RELATIVE_GATE_LU / 10)]
    return OFFSET_LU + 10 * math.log10(power.mean()) if power.size else -math.inf


@functools.cache
def k_weighting() -> np.ndarray:
    """The filter's answer to one sample at 16 kHz, as long as it is above the noise of float64."""
    num_samples = 8192
    z = np.exp(-2j * np.pi * np.arange(num_samples // 2 + 1) / num_samples)
    k, q = math.tan(math.pi * 1681.9744509555319 / AST_SAMPLE_RATE_HZ), 0.7071752369554193
    high = 10 ** (3.99984385397 / 20)
    middle = high**0.499666774155
    shelf = (high + middle * k / q + k * k) + 2 * (k * k - high) * z + (high - middle * k / q + k * k) * z * z
    shelf /= (1 + k / q + k * k) + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z * z
    k, q = math.tan(math.pi * 38.13547087613982 / AST_SAMPLE_RATE_HZ), 0.5003270373253953
    scale = 1 + k / q + k * k
    passed = (1 - 2 * z + z * z) / (1 + 2 * (k * k - 1) / scale * z + (1 - k / q + k * k) / scale * z * z)
    return np.fft.irfft(shelf * passed, num_samples)


def hear(ast: ASTModel, extractor: ASTFeatureExtractor, audio_BS: torch.Tensor, frequency: str) -> torch.Tensor:
    """What an AST makes of sounds, (B, T, D) float32 on their device, to the bit as the training shards have it.

    Kept are the columns whose patches lie within the sound: 49 for five seconds. A column is the mean over frequency;
    with `all` there are as many vectors as tokens, all columns of the lowest frequency first.
    """
    config: Any = ast.config
    num_frames = min((audio_BS.shape[1] - FRAME) // HOP + 1, extractor.max_length)
    num_columns = (num_frames - config.patch_size) // config.time_stride + 1
    if num_columns < 1:
        raise ValueError(f"a sound of {audio_BS.shape[1]} samples is too short for AST")
    log_mel_BFM = torch.stack([log_mel(extractor, sound_S, num_frames) for sound_S in audio_BS])
    hidden_BLD = ast(log_mel_BFM.to(ast.dtype)).last_hidden_state[:, LEADING_TOKENS:].float()
    num_rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    hidden_BRTD = hidden_BLD.unflatten(1, (num_rows, -1))[:, :, :num_columns]
    return hidden_BRTD.flatten(1, 2) if frequency == "all" else hidden_BRTD.mean(1)


def log_mel(extractor: ASTFeatureExtractor, sound_S: torch.Tensor, num_frames: int) -> torch.Tensor:
    """A sound's log-mel spectrogram (max_length, M), padded and normalised as the extractor does it.

    The steps and their order are torchaudio's, with which AST was trained: without torchaudio the extractor itself
    computes in float64, and its bands that are 70 dB below their neighbours then differ by up to 0.0014.

    Source: Kaldi's fbank, as `torchaudio.compliance.kaldi.fbank` has it.
    """
    frames_FS = sound_S.unfold(0, FRAME, HOP)[:num_frames]
    centred_FS = frames_FS - frames_FS.mean(-1, keepdim=True)
    # the window's first weight is zero, so the first sample of a frame is never needed
    window = torch.hann_window(FRAME, periodic=False)[1:].to(sound_S.device)
    windowed_FS = (centred_FS[:, 1:] - centred_FS[:, :-1] * PREEMPHASIS) * window
    spectrum = torch.fft.rfft(torch.nn.functional.pad(windowed_FS, (1, FFT - FRAME)))
    power = spectrum.real.square() + spectrum.imag.square()
    filters = mel_filters(extractor.num_mel_bins, extractor.sampling_rate)
    mels_FM = power.new_empty(len(power), filters.shape[1])
    for bands in torch.arange(filters.shape[1]).tensor_split(BAND_GROUPS):
        if len(bands):
            columns = slice(int(bands[0]), int(bands[-1]) + 1)
            bins = filters[:, columns].any(1).nonzero()
            rows = slice(int(bins[0]), int(bins[-1]) + 1) if len(bins) else slice(0, 1)
            mels_FM[:, columns] = power[:, rows] @ filters[rows, columns].to(power.device)
    log_FM = mels_FM.clamp(min=torch.finfo(torch.float32).eps).log()
    scale = 1 / (2 * extractor.std) if extractor.do_normalize else 1.0
    shift = -extractor.mean * scale if extractor.do_normalize else 0.0
    padded_FM = power.new_full((extractor.max_length, filters.shape[1]), shift)
    padded_FM[:num_frames] = torch.add(padded_FM.new_tensor(shift), log_FM, alpha=scale)
    return padded_FM


def mel_filters(num_bands: int, sample_rate_hz: int) -> torch.Tensor:
    """The (bins, bands) float32 weights, without the bin of half the sample rate, which has none."""
    lowest, highest = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (LOWEST_HZ, sample_rate_hz / 2))
    step = (highest - lowest) / (num_bands + 1)
    band = torch.arange(num_bands)
    left, centre, right = (lowest + (band + n) * step for n in (0.0, 1.0, 2.0))
    hertz = sample_rate_hz / FFT * torch.arange(FFT // 2).unsqueeze(1)
    mel = 1127.0 * (1.0 + hertz / 700.0).log()
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
