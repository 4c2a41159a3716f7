"""Direct optimisation: a picture is drawn, judged against caption and sound, and the words' weights follow.

P  places of CLIP's text, D  width of the text tower, E  width of CLIP's space
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torchvision.transforms.functional import InterpolationMode, resize
from torchvision.transforms.functional import normalize as normalize_channels
from transformers import CLIPModel, CLIPTokenizer

from eval.baselines.wild.attention import Conditioning
from eval.towers.inputs import at_rate
from eval.towers.pixels import CLIP_MEAN, CLIP_STD
from eval.towers.tower import Sound
from eval.towers.wav2clip import SAMPLE_RATE_HZ as WAV2CLIP_RATE_HZ
from eval.towers.wav2clip import WIDTH as WAV2CLIP_WIDTH
from eval.towers.wav2clip import check_length, load_wav2clip
from sonify.errors import InputError
from sonify.models.fetch import TOKENIZER, FetchedModel, Files, check_tokenizer, check_type, check_weights, fetch_model
from sonify.models.loading import load_network, load_part

LEARNING_RATE = 0.01
CLOSENESS = 0.01  # of the weighted conditioning to the caption's own
AUDIO = 0.9
CLIP_FILES = Files(
    patterns=(*TOKENIZER, "*.safetensors"),
    checks=(check_type("clip", "openai/clip-vit-base-patch32"), check_weights, check_tokenizer),
)


class Similarity(Protocol):
    """How well a picture (1, 3, H, W) in 0 to 1 fits a sound, at most 1, differentiable in the picture.

    The published system's is AudioCLIP's: a hundredth of its logit scale (at most 100) times the cosine.
    """

    def __call__(self, sound: Sound, image_13HW: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The three terms of the loss of a picture, each with its factor."""

    closeness: float
    caption: float
    audio: float

    @property
    def total(self) -> float:
        """What is minimised."""
        return self.closeness + self.caption + self.audio

    def as_json(self) -> dict[str, float]:
        """For the record."""
        return {name: round(value, 6) for name, value in [*asdict(self).items(), ("total", self.total)]}


def closeness_loss(z_1PD: Tensor, y_1PD: Tensor) -> Tensor:
    """How far the weights have led away from the caption."""
    return CLOSENESS * (z_1PD - y_1PD).square().sum()


def spherical_loss(image_1E: Tensor, text_1E: Tensor) -> Tensor:
    """Twice the square of half the angle between picture and caption in CLIP's space."""
    apart = normalize(image_1E, dim=-1) - normalize(text_1E, dim=-1)
    return 2 * (apart.norm(dim=-1) / 2).arcsin().square().mean()


def audio_loss(similarity: Tensor) -> Tensor:
    """What lacks of the best fit of picture and sound."""
    return AUDIO * (1 - similarity)


def scaled_cosine(audio_1E: Tensor, image_1E: Tensor, logit_scale: Tensor) -> Tensor:
    """AudioCLIP's logit as it stands in the loss: a hundredth of it."""
    return 0.01 * logit_scale.exp().clamp(1, 100) * cosine_similarity(audio_1E, image_1E).mean()


class ClipJudge:
    """CLIP, through whose picture's tower a gradient goes."""

    def __init__(self, fetched: FetchedModel, device: torch.device) -> None:
        self._device = device
        self._clip: Any = load_network(CLIPModel, fetched, device, torch.float32).requires_grad_(False)
        self._tokenizer: Any = load_part(CLIPTokenizer, fetched)
        self.width: int = self._clip.config.projection_dim

    def see(self, image_13HW: Tensor) -> Tensor:
        """The (1, E) embedding of a picture, as the published program prepares it: bent to a square, antialiased."""
        side = self._clip.config.vision_config.image_size
        small = resize(image_13HW, [side, side], InterpolationMode.BILINEAR, antialias=True)
        pixels = normalize_channels(small, list(CLIP_MEAN), list(CLIP_STD))
        return self._clip.visual_projection(self._clip.vision_model(pixel_values=pixels).pooler_output)

    def read(self, text: str) -> Tensor:
        """The (1, E) embedding of a caption; what is too long is cut."""
        places = self._clip.config.text_config.max_position_embeddings
        tokens = self._tokenizer(text, truncation=True, max_length=places, return_tensors="pt")
        with torch.no_grad():
            seen = self._clip.text_model(input_ids=tokens["input_ids"].to(self._device))
            return self._clip.text_projection(seen.pooler_output)


def open_clip_judge(model: str, revision: str | None, device: torch.device) -> ClipJudge:
    """Load CLIP.

    Raises:
        InputError: it cannot be had or used.
    """
    return ClipJudge(fetch_model(model, revision, CLIP_FILES), device)


def open_wav2clip_similarity(weights: Path, judge: ClipJudge, device: torch.device) -> Similarity:
    """Wav2CLIP in AudioCLIP's place: its sounds lie in the space of CLIP ViT-B/32. It has no logit scale; 100 is taken.

    Raises:
        InputError: the file is none of Wav2CLIP's, or the judge's space is another.
    """
    if judge.width != WAV2CLIP_WIDTH:
        raise InputError(
            f"clip: expected vectors of {WAV2CLIP_WIDTH}, the space that Wav2CLIP's sounds lie in, found {judge.width};"
            " take CLIP ViT-B/32, or wav2clip=null"
        )
    if not weights.is_file():
        raise InputError(
            f"{weights}: expected Wav2CLIP's weights, found no file; `eval.convert_weights wav2clip` makes it"
        )
    network = load_wav2clip(weights).to(device).requires_grad_(False)
    scale = torch.tensor(100.0, device=device).log()

    def similarity(sound: Sound, image_13HW: Tensor) -> Tensor:
        samples_S = at_rate(sound, WAV2CLIP_RATE_HZ)
        check_length(sound.name, len(samples_S))
        with torch.no_grad():
            audio_1E = network(torch.from_numpy(samples_S).to(device))[None]
        return scaled_cosine(audio_1E, judge.see(image_13HW), scale)

    return similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a picture of a sound is judged against; `similarity` None leaves the sound out."""

    sound: Sound
    caption_1E: Tensor
    judge: ClipJudge
    similarity: Similarity | None

    def losses(self, z_1PD: Tensor, y_1PD: Tensor, image_13HW: Tensor) -> tuple[Tensor, Losses]:
        """The sum that is minimised, and its terms."""
        closeness = closeness_loss(z_1PD, y_1PD)
        caption = spherical_loss(self.judge.see(image_13HW), self.caption_1E)
        audio = torch.zeros((), device=image_13HW.device)
        if self.similarity is not None:
            audio = audio_loss(self.similarity(self.sound, image_13HW))
        terms = Losses(closeness=closeness.item(), caption=caption.item(), audio=audio.item())
        return closeness + caption + audio, terms


def optimise(
    conditioning: Conditioning, draw: Callable[[Tensor], Tensor], judged: Judged, pictures: int
) -> tuple[Tensor, list[Losses]]:
    """Draw so many pictures, with a step of Adam between one and the next; the last (1, 3, H, W) and all losses.

    `draw` takes a conditioning to a picture in 0 to 1, from the same noise each time. Of the last no gradient is taken.
    """
    weights_PD = conditioning.start().requires_grad_()
    optimizer = torch.optim.Adam([weights_PD], lr=LEARNING_RATE)
    seen: list[Losses] = []
    for _ in range(pictures - 1):
        y_1PD = conditioning.weigh(weights_PD)
        total, terms = judged.losses(conditioning.z_1PD, y_1PD, draw(y_1PD))
        seen.append(terms)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.no_grad():
        y_1PD = conditioning.weigh(weights_PD)
        image_13HW = draw(y_1PD)
        seen.append(judged.losses(conditioning.z_1PD, y_1PD, image_13HW)[1])
    return image_13HW, seen
