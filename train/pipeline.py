"""The released model: a sound, or features of one, becomes an image.

B  images, S  samples at 16 kHz, T D  times and width of the condition, C H W  channels, height and width
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from transformers import ASTFeatureExtractor, ASTModel

MAX_SEED = 2**63 - 1
AST_SAMPLE_RATE_HZ = 16_000
LEADING_TOKENS = 2  # of an AST, for the class and for distillation
FRAME, HOP, FFT = 400, 160, 512  # 25 ms every 10 ms at 16 kHz
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
BAND_GROUPS = 8  # in which the mel bands are summed, as for the training shards: other groups round otherwise


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
            latents_BCHW = latents_BCHW / self.vae.config["scaling_factor"]
            images.append(latents_BCHW if output_type == "latent" else self._decode(latents_BCHW))
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
        hidden_BTD = hear(self.audio_encoder, self.feature_extractor, audio_BS, self.config["frequency"])
        return _as_trained(hidden_BTD)

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

    def _decode(self, latents_BCHW: torch.Tensor) -> np.ndarray:
        """Unscaled latents as (B, H, W, 3) uint8."""
        latents: Any = latents_BCHW.to(self._execution_device, self.vae.dtype)  # annotated as an older torch's type
        pixels_BCHW = ((cast(Any, self.vae.decode(latents)).sample.float() + 1) * 127.5).round().clamp(0, 255)
        return pixels_BCHW.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

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


def hear(
    ast: ASTModel, extractor: ASTFeatureExtractor, audio_BS: np.ndarray | torch.Tensor, frequency: str
) -> torch.Tensor:
    """What an AST makes of sounds, (B, T, D) float32 on its device, to the bit as `sonify.features.ast` has it.

    Kept are the columns whose patches lie within the sound: 49 for five seconds. A column is the mean over frequency;
    with `all` there are as many vectors as tokens, all columns of the lowest frequency first.
    """
    config: Any = ast.config
    num_frames = min((audio_BS.shape[1] - FRAME) // HOP + 1, extractor.max_length)
    num_columns = (num_frames - config.patch_size) // config.time_stride + 1
    if num_columns < 1:
        raise ValueError(f"a sound of {audio_BS.shape[1]} samples is too short for AST")
    sounds_BS = torch.as_tensor(audio_BS, dtype=torch.float32).to(ast.device)
    log_mel_BFM = torch.stack([log_mel(extractor, sound_S, num_frames) for sound_S in sounds_BS])
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
    frames_FW = sound_S.unfold(0, FRAME, HOP)[:num_frames]
    centred_FW = frames_FW - frames_FW.mean(-1, keepdim=True)
    # the window's first weight is zero, so the first sample of a frame is never needed
    window = torch.hann_window(FRAME, periodic=False)[1:].to(sound_S.device)
    windowed_FW = (centred_FW[:, 1:] - centred_FW[:, :-1] * PREEMPHASIS) * window
    spectrum = torch.fft.rfft(torch.nn.functional.pad(windowed_FW, (1, FFT - FRAME)))
    power = spectrum.real.square() + spectrum.imag.square()
    filters = mel_filters(extractor.num_mel_bins, extractor.sampling_rate).to(sound_S.device)
    mels_FM = power.new_empty(len(power), filters.shape[1])
    for bands in torch.arange(filters.shape[1], device=filters.device).tensor_split(BAND_GROUPS):
        if len(bands):
            columns = slice(int(bands[0]), int(bands[-1]) + 1)
            bins = filters[:, columns].any(1).nonzero()
            rows = slice(int(bins[0]), int(bins[-1]) + 1) if len(bins) else slice(0, 1)
            mels_FM[:, columns] = power[:, rows] @ filters[rows, columns]
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
