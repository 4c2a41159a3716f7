"""Wav2CLIP: sounds in the space of CLIP's ViT-B/32.

What it gives is not normalised. Its spectrogram is normalised over the whole tensor that goes in, so that clips go one
by one: programs that feed a batch get other numbers for each of them.

S  samples, F T  frequencies and times of a spectrogram, D  512
Source: Wu et al., Wav2CLIP, ICASSP 2022; descriptinc/lyrebird-wav2clip (MIT).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torchvision.models import resnet18

from eval.towers.config import Wav2Clip
from eval.towers.inputs import at_rate
from eval.towers.tower import Sound, Tower, Way
from eval.towers.weights import Shapes, hash_file, read_tensors
from sonify.errors import InputError
from sonify.models.loading import choose_device, computing

NAME = "Wav2CLIP"
SAMPLE_RATE_HZ = 16_000
WINDOW = 512
HOP = 353
WIDTH = 512
MIN_SAMPLES = WINDOW // 2 + 1  # what can be reflected at both ends
HANN = "audio_encoder.spectrogram.window"  # is in the published file; torch knows it


class Wav2ClipNetwork(torch.nn.Module):
    """ResNet-18 over a log spectrogram of one channel, and an MLP; tensors are named as in the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = resnet18(weights=None)
        self.audio_encoder.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.audio_encoder.fc = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue] - a linear layer else
        layers = (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(WIDTH, WIDTH))
        self.audio_transform = torch.nn.ModuleDict({"sequential": torch.nn.Sequential(*layers)})

    def encode(self, samples_S: torch.Tensor) -> torch.Tensor:
        """The (D,) features of a clip before the MLP."""
        return self.audio_encoder(log_spectrogram(samples_S)[None, None])[0]

    def forward(self, samples_S: torch.Tensor) -> torch.Tensor:
        """The (D,) embedding of one clip at 16 kHz."""
        return self.audio_transform["sequential"](self.encode(samples_S))


def log_spectrogram(samples_S: torch.Tensor) -> torch.Tensor:
    """The normalised (F, T) log power spectrogram; its mean and deviation are over all of it."""
    window = torch.hann_window(WINDOW, device=samples_S.device)
    spectrum_FT = torch.stft(
        samples_S, WINDOW, HOP, window=window, center=True, pad_mode="reflect", onesided=True, return_complex=True
    )
    log_FT = (spectrum_FT.real.square() + spectrum_FT.imag.square() + 1e-7).log()
    return (log_FT - log_FT.mean()) / (log_FT.std(correction=1) + 1e-9)


@cache
def wav2clip_shapes() -> Shapes:
    """The names and shapes of all that the published file holds of the encoder."""
    with torch.device("meta"):
        network = Wav2ClipNetwork()
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} | {HANN: (WINDOW,)}


def unused() -> list[str]:
    """What a file may lack: the window, and the counts of training steps."""
    return [name for name in wav2clip_shapes() if name == HANN or name.endswith("num_batches_tracked")]


def open_wav2clip(section: Wav2Clip) -> Tower:
    """Open Wav2CLIP's weights, as `eval.convert_weights` makes them of the published file.

    Raises:
        InputError: the file is not there, is another than was asked for, or holds other tensors.
    """
    weights, sha256 = hash_file(section.weights, section.sha256)
    _read(weights)  # what is wrong with them is said before other towers have worked for hours

    @cache
    def load() -> tuple[Wav2ClipNetwork, torch.device]:
        device = choose_device("auto")
        return load_wav2clip(weights).to(device), device

    def embed(sounds: Sequence[Sound]) -> np.ndarray:
        clips = [at_rate(sound, SAMPLE_RATE_HZ) for sound in sounds]
        for sound, samples_S in zip(sounds, clips, strict=True):
            check_length(sound.name, len(samples_S))
        network, device = load()
        with computing(torch.get_num_threads()):
            rows = [network(torch.from_numpy(samples_S).to(device)).float().cpu().numpy() for samples_S in clips]
        return np.stack(rows) if rows else np.zeros((0, WIDTH), np.float32)

    preprocessing = f"whole, {SAMPLE_RATE_HZ} Hz soxr HQ, power {WINDOW}/{HOP}, log, normalised by clip"
    return Tower(
        name=NAME,
        model=str(weights),
        sha256=sha256,
        sounds=Way(preprocessing=preprocessing, embed=embed, sample_rate_hz=SAMPLE_RATE_HZ),
    )


def check_length(name: str, samples: int) -> None:
    """Refuse a sound of which no spectrogram can be made."""
    if samples < MIN_SAMPLES:
        raise InputError(
            f"{name}: expected {MIN_SAMPLES} samples at {SAMPLE_RATE_HZ} Hz for Wav2CLIP, found {samples}; leave the"
            " sound out of the suite"
        )


def load_wav2clip(weights: Path) -> Wav2ClipNetwork:
    """The network of a file, for inference."""
    network = Wav2ClipNetwork()
    tensors = network.state_dict() | _read(weights)
    tensors.pop(HANN, None)
    network.load_state_dict(tensors)
    return network.eval()


def _read(weights: Path) -> dict[str, torch.Tensor]:
    return read_tensors(weights, wav2clip_shapes(), NAME, unused())
