"""The released model: a sound, or features of one, becomes an image.

A release holds this code, joined with what it needs of its neighbours, as `pipeline.py`; beside numpy, torch,
diffusers, transformers and Pillow nothing else is needed to run it, and diffusers loads it from there:

    pipeline = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    image = pipeline("dog.wav").images[0]

B  images, S  samples, W  windows of a recording
T D  times and width of the condition, C H W  channels, height and width of an image or of latents
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from transformers import ASTFeatureExtractor, ASTModel

from sonify.config.models import AST_SAMPLE_RATE_HZ
from sonify.features.ast import AstFeatures
from sonify.features.kaldi import HOP
from train.arguments import as_count, as_generators, as_seeds, as_trained
from train.hearing import Level, Recording, cut_recordings, hear_given, listen
from train.sampling import SoundImages, draw_noise, make_images, read_sampling

NEGATIVE = "negative_audio_features"


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
            return_dict: `SoundImages`; or else a tuple with the images.
            callback_on_step_end: called as (pipeline, step, timestep, tensors); the tensors that it returns are used.
            callback_on_step_end_tensor_inputs: which it is given, of `_callback_tensor_inputs`.

        Raises:
            ValueError: the arguments are none or contradict each other, a sound cannot be read or is silent, there is
                no AST, or what was made is not finite.
        """
        sampling = read_sampling(
            self,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            num_inference_steps=num_inference_steps,
            eta=eta,
            batch_size=batch_size,
            output_type=output_type,
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        num_images_per_prompt = as_count("num_images_per_prompt", num_images_per_prompt)
        given_seeds, generators = as_seeds(seeds), as_generators(generator)
        heard_BTD, windows = hear_given(
            self,
            sampling.batch_size,
            audio=audio,
            sampling_rate=sampling_rate,
            level=level,
            target_lufs=target_lufs,
            audio_features=audio_features,
            audio_BS=audio_BS,
        )
        audio_BTD = self._check_condition(heard_BTD).repeat_interleave(num_images_per_prompt, dim=0)
        null_BTD = self._null(audio_BTD, negative_audio_features) if sampling.guidance_scale > 1 else None
        config = self.transformer.config
        shape = (len(audio_BTD), config["in_channels"], config["sample_size"], config["sample_size"])
        noise = draw_noise(shape, self._execution_device, given_seeds, generators, latents)
        images = make_images(self, sampling, noise, audio_BTD, null_BTD)
        if not return_dict:
            return (images,)
        if windows is not None:
            windows = [window for window in windows for _ in range(num_images_per_prompt)]
        return SoundImages(images=images, seeds=noise.seeds, windows=windows)

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
        return cut_recordings(self.config, audio, sampling_rate, level, target_lufs)

    @torch.no_grad()
    def encode_audio(self, audio_BS: np.ndarray | torch.Tensor) -> torch.Tensor:
        """The condition (B, T, D) that sounds are, as the training shards hold it.

        Raises:
            ValueError: the pipeline has no AST, or the sounds are none, not mono or longer than it hears.
        """
        if self.audio_encoder is None or self.feature_extractor is None:
            raise ValueError("this pipeline has no AST: its condition is passed as audio_features")
        ear = AstFeatures(self.audio_encoder, self.feature_extractor, self.config["frequency"])
        return listen(ear, audio_BS, self._execution_device, self.feature_extractor.max_length * HOP)

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

    @property
    def denoiser_dtype(self) -> torch.dtype:
        """In what the transformer computes."""
        return self.transformer.dtype

    def predict_noise(
        self, noisy_BCHW: torch.Tensor, timestep: torch.Tensor, condition_BTD: torch.Tensor
    ) -> torch.Tensor:
        """What the transformer takes for the noise (B, C, H, W)."""
        output_BCHW = self.transformer(
            noisy_BCHW, encoder_hidden_states=condition_BTD, timestep=timestep.expand(len(noisy_BCHW))
        ).sample
        # the other half of a model that has one is the variance, which these samplers do not use
        return output_BCHW[:, : self.transformer.config["in_channels"]]

    def _check_condition(self, audio_BTD: torch.Tensor) -> torch.Tensor:
        width = self.transformer.config["caption_channels"]
        if audio_BTD.ndim != 3 or audio_BTD.shape[-1] != width or not audio_BTD.numel():
            raise ValueError(f"expected a condition of shape (B, T, {width}), found {tuple(audio_BTD.shape)}")
        return audio_BTD

    def _null(self, audio_BTD: torch.Tensor, given: np.ndarray | torch.Tensor | None) -> torch.Tensor:
        """What guidance leads away from, beside each image's condition."""
        null_BTD = self.encode_null(audio_BTD.shape[1]) if given is None else as_trained(NEGATIVE, given)
        null_BTD = null_BTD[None] if null_BTD.ndim == 2 else null_BTD
        times = len(audio_BTD) // max(1, len(null_BTD))
        if null_BTD.shape[1:] != audio_BTD.shape[1:] or times * len(null_BTD) != len(audio_BTD):
            raise ValueError(
                f"expected negative_audio_features of shape {tuple(audio_BTD.shape[1:])}, or as many of them as there"
                f" are conditions, found {tuple(null_BTD.shape)}"
            )
        return null_BTD.repeat_interleave(times, dim=0)
