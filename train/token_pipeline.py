"""AudioToken's released model: a sound becomes a word of a prompt, of which Stable Diffusion makes an image.

A release holds this code, joined with what it needs of its neighbours, as `pipeline.py`, and that of the parts that are
no library's beside them; diffusers loads it without this package:

    pipeline = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    image = pipeline("dog.wav").images[0]

B  images, S  samples, W  windows of a recording, T F  times and width of what an encoder hears
L D  places of a prompt and width of the text tower, C H W  channels, height and width of an image or of latents
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import ASTFeatureExtractor, CLIPTextModel, CLIPTokenizer

from sonify.features.ast import AstFeatures
from sonify.features.beats import BeatsFeatures
from sonify.features.kaldi import HOP
from train.arguments import as_count, as_generators, as_seeds, as_trained, in_parts
from train.embedder import PLACEHOLDER, TokenPrompt
from train.hearing import Level, Recording, cut_recordings, hear_given, listen
from train.sampling import SoundImages, draw_noise, make_images, read_sampling

SAMPLING_PROMPT = "a photo of <*>, 4k, high resolution"
LAYERS = (4, 8, 12)  # of the encoder, whose outputs are joined


class AudioTokenPipeline(DiffusionPipeline):
    """Stable Diffusion with an embedder that makes a word of a sound, and the encoder that hears it.

    The encoder is a BEATs, or an AST with its front end; without one the pipeline takes features. Saved with it is what
    it was trained on: `layers` of the encoder, `frequency` says what became of its rows of one time, `clip_seconds` how
    long a clip is, `level` what was brought to one loudness (each clip alone: `window`), and `loudness_lufs` between
    which two that loudness was drawn; and the `prompt` in which the word stands in the place of the `placeholder`.

    Raises:
        ValueError: the parts do not belong together, or the prompt or the placeholder cannot be used.
    """

    model_cpu_offload_seq = "audio_encoder->embedder->text_encoder->unet->vae"
    _optional_components = ["audio_encoder", "feature_extractor"]  # noqa: RUF012 - the library's name and type
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012 - as above

    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: Any  # PNDM as Stable Diffusion 1.4 has it, or another of diffusers' over the same schedule
    embedder: Any  # a release's own class is another one than that of this package
    audio_encoder: Any
    feature_extractor: ASTFeatureExtractor | None

    def __init__(  # noqa: PLR0913, PLR0917 - the library reads components and settings from this signature
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Any,
        embedder: ModelMixin,
        audio_encoder: Any = None,
        feature_extractor: ASTFeatureExtractor | None = None,
        layers: list | tuple = LAYERS,
        frequency: str = "all",
        prompt: str = SAMPLING_PROMPT,
        placeholder: str = PLACEHOLDER,
        clip_seconds: float = 5.0,
        level: str = "window",
        loudness_lufs: list | tuple = (-32.0, -28.0),
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            embedder=embedder,
            audio_encoder=audio_encoder,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(layers=list(layers), frequency=frequency, prompt=prompt, placeholder=placeholder)
        self.register_to_config(clip_seconds=clip_seconds, level=level, loudness_lufs=list(loudness_lufs))
        for what, expected, found in self.expected_widths():
            if found != expected:
                raise ValueError(f"expected {what} {expected}, found {found}: parts that do not belong together")
        self.token_prompt = TokenPrompt(text_encoder, tokenizer, placeholder, prompt)

    def expected_widths(self) -> list[tuple[str, int, int]]:
        """What of two parts has to be the same, the number that the other part has, and the one found."""
        text, unet, embedder = self.text_encoder.config, self.unet.config, self.embedder.config
        widths = [
            ("an embedder of a token_width as wide as the text tower,", text.hidden_size, embedder["token_width"]),
            (
                "a UNet of a cross_attention_dim as wide as the text tower,",
                text.hidden_size,
                unet["cross_attention_dim"],
            ),
            (
                "a UNet with as many in_channels as latents have,",
                self.vae.config["latent_channels"],
                unet["in_channels"],
            ),
        ]
        if self.audio_encoder is not None:
            num_layers, width = self._ear_sizes()
            heard = len(self.config["layers"]) or 1
            deepest = max((*self.config["layers"], 1))
            what = "an embedder of an audio_width as wide as the layers of the encoder together,"
            widths.append((what, heard * width, embedder["audio_width"]))
            widths.append(("layers of the encoder up to", num_layers, max(deepest, num_layers)))
        return widths

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
        prompt: str | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
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
            audio_features: what the encoder makes of sounds (B, T, F), with which none is needed. Or else
            audio_BS: clips at 16 kHz as the model is to hear them, neither cut nor levelled.
            sampling_rate: of samples, in Hz; a file says its own.
            level: what is brought to the loudness of training, each `window` alone or the `recording` as a whole, with
                one gain, so that its quiet stretches stay quiet. What the model was trained on, if None.
            target_lufs: that loudness; the middle of what the model was trained on, if None.
            prompt: what the sound's word stands in, with the placeholder once; that of the model, if None.
            negative_audio_features: (T, F), or one for each condition: features whose word, in the same prompt, is what
                guidance leads away from; the empty prompt, if None.
            num_images_per_prompt: images of each window or condition; they follow each other.
            num_inference_steps: of the sampler; at most as many as its schedule has.
            guidance_scale: how far to lead away from the empty prompt; 1 is no guidance, at half the cost.
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
                no encoder, or what was made is not finite.
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
        heard_BTF, windows = hear_given(
            self,
            sampling.batch_size,
            audio=audio,
            sampling_rate=sampling_rate,
            level=level,
            target_lufs=target_lufs,
            audio_features=audio_features,
            audio_BS=audio_BS,
        )
        heard_BTF = self._check_features(heard_BTF)
        parts = [self.encode_prompt(part_BTF, prompt) for part_BTF in in_parts(heard_BTF, sampling.batch_size)]
        prompt_BLD = torch.cat(parts).repeat_interleave(num_images_per_prompt, dim=0)
        null_BLD = None
        if sampling.guidance_scale > 1:
            null_BLD = self._null(len(prompt_BLD), negative_audio_features, prompt)
        config = self.unet.config
        shape = (len(prompt_BLD), config["in_channels"], config["sample_size"], config["sample_size"])
        noise = draw_noise(shape, self._execution_device, given_seeds, generators, latents)
        images = make_images(self, sampling, noise, prompt_BLD, null_BLD)
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
        """What the encoder makes of sounds (B, T, F), as the training shards hold it.

        Raises:
            ValueError: the pipeline has no encoder, or the sounds are none, not mono or longer than it hears.
        """
        frequency, layers = self.config["frequency"], self.config["layers"]
        if self.audio_encoder is None:
            raise ValueError("this pipeline has no encoder: what it heard is passed as audio_features")
        if self.feature_extractor is None:
            return listen(BeatsFeatures(self.audio_encoder, frequency, layers), audio_BS, self._execution_device)
        ear = AstFeatures(self.audio_encoder, self.feature_extractor, frequency, layers)
        return listen(ear, audio_BS, self._execution_device, self.feature_extractor.max_length * HOP)

    @torch.no_grad()
    def encode_prompt(self, audio_BTF: torch.Tensor, prompt: str | None = None) -> torch.Tensor:
        """The text tower's states (B, L, D) of a prompt with the word that each sound's features are."""
        token_BD = self.embedder(audio_BTF.to(self._execution_device, self.embedder.dtype))
        return self.token_prompt(token_BD, prompt).float().cpu()

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
        """In what the UNet computes."""
        return self.unet.dtype

    def predict_noise(self, noisy_BCHW: torch.Tensor, timestep: torch.Tensor, prompt_BLD: torch.Tensor) -> torch.Tensor:
        """What the UNet takes for the noise (B, C, H, W)."""
        return self.unet(noisy_BCHW, timestep, encoder_hidden_states=prompt_BLD).sample

    def _ear_sizes(self) -> tuple[int, int]:
        """How many layers the encoder has, and how wide they are."""
        if self.feature_extractor is None:
            return self.audio_encoder.sizes.encoder_layers, self.audio_encoder.sizes.encoder_embed_dim
        return self.audio_encoder.config.num_hidden_layers, self.audio_encoder.config.hidden_size

    def _check_features(self, audio_BTF: torch.Tensor) -> torch.Tensor:
        width = self.embedder.config["audio_width"]
        if audio_BTF.ndim != 3 or audio_BTF.shape[-1] != width or not audio_BTF.numel():
            raise ValueError(f"expected features of shape (B, T, {width}), found {tuple(audio_BTF.shape)}")
        return audio_BTF

    def _null(self, num_images: int, given: np.ndarray | torch.Tensor | None, prompt: str | None) -> torch.Tensor:
        """What guidance leads away from, beside each image's prompt."""
        if given is None:
            null_BLD = self.token_prompt.encode_text("", self._execution_device).float().cpu()
        else:
            null_BTF = as_trained("negative_audio_features", given)
            null_BLD = self.encode_prompt(
                self._check_features(null_BTF[None] if null_BTF.ndim == 2 else null_BTF), prompt
            )
        times = num_images // len(null_BLD)
        if times * len(null_BLD) != num_images:
            raise ValueError(
                f"expected negative_audio_features of one sound, or of as many as there are, found {len(null_BLD)} for"
                f" {num_images} images"
            )
        return null_BLD.repeat_interleave(times, dim=0)
