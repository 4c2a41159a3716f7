"""Audio features: the hidden states of an Audio Spectrogram Transformer, column by column in time.

Its log-mel spectrogram comes first, of whole batches and on the model's device.

B  sounds, S  samples, F  frames, W  samples of a frame, M  mel bands
L  tokens, R  rows of frequency, T  columns of time, D  width of a token
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import ASTFeatureExtractor, ASTModel

from sonify.config.models import AST_SAMPLE_RATE_HZ
from sonify.errors import InputError
from sonify.models.fetch import FetchedModel
from sonify.models.loading import load_network, load_part

LEADING_TOKENS = 2  # for the class and for distillation
FRAME, HOP, FFT = 400, 160, 512  # 25 ms every 10 ms at 16 kHz
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
FLOOR = torch.finfo(torch.float32).eps
# A band covers few of the 256 bins: products of groups take a third of the time of one over all (measured).
BAND_GROUPS = 8
Groups = Sequence[tuple[slice, slice]]  # of bins and of bands


def load_ast(fetched: FetchedModel, device: torch.device, dtype: torch.dtype) -> tuple[ASTModel, ASTFeatureExtractor]:
    """Load an AST, fetched as `AST_FILES`, with its front end."""
    network = cast(ASTModel, load_network(ASTModel, fetched, device, dtype))
    extractor = cast(ASTFeatureExtractor, load_part(ASTFeatureExtractor, fetched))
    found = (extractor.sampling_rate, extractor.num_mel_bins, extractor.max_length)
    expected = (AST_SAMPLE_RATE_HZ, network.config.num_mel_bins, network.config.max_length)
    if found != expected:
        raise InputError(
            f"{fetched.path}: expected a front end of (sampling rate, mel bands, frames) {expected}, found {found}"
        )
    return network, extractor


class AstFeatures:
    """Sounds at 16 kHz, all of one length, to (B, T, D) float32 features on the network's device.

    Kept are the columns whose patches lie within the sound: 49 for five seconds. With `frequency: mean` a column is
    the mean over frequency; with `all` there are R * T vectors, all columns of the lowest frequency first.
    """

    def __init__(self, network: ASTModel, extractor: ASTFeatureExtractor, frequency: Literal["mean", "all"]) -> None:
        config: Any = network.config  # the library lets a patch have two sides, and AST does not
        self._network = network
        self._log_mel = AstLogMel(extractor)
        self._frequency = frequency
        self._patch, self._stride = config.patch_size, config.time_stride
        self._num_rows = (config.num_mel_bins - self._patch) // config.frequency_stride + 1

    def num_columns(self, num_samples: int) -> int:
        """How many columns of time a sound of that length has."""
        return max(0, (self._log_mel.num_frames(num_samples) - self._patch) // self._stride + 1)

    @torch.no_grad()
    def __call__(self, waveforms_BS: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Listen to (B, S) float32 samples between -1 and 1; a tensor is heard where it lies."""
        columns = self.num_columns(waveforms_BS.shape[1])
        if columns < 1:
            raise ValueError(f"a sound of {waveforms_BS.shape[1]} samples is too short for AST")
        # an offloaded network is nowhere
        is_placed, dtype = isinstance(waveforms_BS, torch.Tensor), self._network.dtype
        device = waveforms_BS.device if is_placed else self._network.device
        waveforms_BS = torch.as_tensor(waveforms_BS, dtype=torch.float32).to(device)
        log_mel = self._log_mel.to(device)(waveforms_BS).to(dtype)
        hidden_BLD = self._network(log_mel).last_hidden_state[:, LEADING_TOKENS:].float()
        hidden_BRTD = hidden_BLD.unflatten(1, (self._num_rows, -1))[:, :, :columns]
        return hidden_BRTD.mean(1) if self._frequency == "mean" else hidden_BRTD.flatten(1, 2)


class AstLogMel(torch.nn.Module):
    """Does what an `ASTFeatureExtractor` does to sounds at its rate: (B, S) float32 to (B, max_length, M) float32.

    The steps and their order are torchaudio's, with which AST was trained: any other rounding before the Fourier
    transform shows in bands that are 70 dB below their neighbours. Without torchaudio the library computes in float64,
    and differs from itself by up to 0.0014 there (measured).

    Source: Kaldi's fbank, as `torchaudio.compliance.kaldi.fbank` has it.
    """

    def __init__(self, extractor: ASTFeatureExtractor) -> None:
        super().__init__()
        assert extractor.sampling_rate * 25 == FRAME * 1000, extractor.sampling_rate
        self.filters = torch.nn.Buffer(_mel_filters(extractor.num_mel_bins, extractor.sampling_rate))
        # the window's first weight is zero, so the first sample of a frame is never needed
        self.window = torch.nn.Buffer(torch.hann_window(FRAME, periodic=False)[1:])
        self._groups = _groups(self.filters)
        self._max_length = extractor.max_length
        normalize = extractor.do_normalize
        self._scale = 1 / (2 * extractor.std) if normalize else 1.0
        self._shift = -extractor.mean * self._scale if normalize else 0.0
        self._offset = torch.nn.Buffer(torch.tensor(self._shift))

    def num_frames(self, num_samples: int) -> int:
        """How many frames hold sound; those behind them are padding."""
        return max(0, min((num_samples - FRAME) // HOP + 1, self._max_length))

    def forward(self, waveforms_BS: torch.Tensor) -> torch.Tensor:
        frames, num_bands = self.num_frames(waveforms_BS.shape[1]), self.filters.shape[1]
        log_mel_BFM = waveforms_BS.new_full((len(waveforms_BS), self._max_length, num_bands), self._shift)
        # one sound at a time stays in a CPU's cache: 0.84 ms instead of 1.22 (measured)
        at_once = 1 if waveforms_BS.device.type == "cpu" else len(waveforms_BS)
        scratch = _Scratch(at_once, frames, self.filters, self._groups)
        for sounds_BS, target_BFM in zip(waveforms_BS.split(at_once), log_mel_BFM.split(at_once), strict=True):
            frames_BFW = sounds_BS.unfold(1, FRAME, HOP)[:, :frames]
            log_BFM = self._compute(frames_BFW, scratch)
            torch.add(self._offset, log_BFM, alpha=self._scale, out=target_BFM[:, :frames])
        return log_mel_BFM

    def _compute(self, frames_BFW: torch.Tensor, scratch: "_Scratch") -> torch.Tensor:
        centred_BFW = frames_BFW - frames_BFW.mean(-1, keepdim=True)
        torch.mul(centred_BFW[..., :-1], PREEMPHASIS, out=scratch.windowed_BFW)
        torch.sub(centred_BFW[..., 1:], scratch.windowed_BFW, out=scratch.windowed_BFW)
        scratch.windowed_BFW.mul_(self.window)
        torch.fft.rfft(scratch.padded_BFW, out=scratch.spectrum)
        scratch.squares.square_()
        torch.add(*scratch.parts, out=scratch.power)
        for power, filters, mels in scratch.products:
            torch.mm(power, filters, out=mels)
        return scratch.mels.clamp_(min=FLOOR).log_().view(*frames_BFW.shape[:2], -1)


class _Scratch:
    """Memory for some sounds of one length, and the views of it that every round uses.

    The rows of spectrum, power and mels are the frames of all sounds.
    """

    def __init__(self, sounds: int, frames: int, filters: torch.Tensor, groups: Groups) -> None:
        self.padded_BFW = filters.new_zeros(sounds, frames, FFT)
        self.windowed_BFW = self.padded_BFW[..., 1:FRAME]
        bins = FFT // 2 + 1
        self.spectrum = filters.new_empty(sounds, frames, bins, dtype=torch.complex64)
        self.squares = torch.view_as_real(self.spectrum)
        self.parts = self.squares.flatten(0, 1).unbind(-1)
        self.power = filters.new_empty(sounds * frames, bins)
        self.mels = filters.new_empty(sounds * frames, filters.shape[1])
        self.products = [(self.power[:, bins], filters[bins, bands], self.mels[:, bands]) for bins, bands in groups]


def _mel_filters(num_bands: int, sample_rate_hz: int) -> torch.Tensor:
    """The (bins, bands) float32 weights, without the bin of half the sample rate, which has none."""
    lowest, highest = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (LOWEST_HZ, sample_rate_hz / 2))
    step = (highest - lowest) / (num_bands + 1)
    band = torch.arange(num_bands)
    left, centre, right = (lowest + (band + n) * step for n in (0.0, 1.0, 2.0))
    hertz = sample_rate_hz / FFT * torch.arange(FFT // 2).unsqueeze(1)
    mel = 1127.0 * (1.0 + hertz / 700.0).log()
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)


def _groups(filters: torch.Tensor) -> Groups:
    """Groups of neighbouring bands, each with the bins that have weight in it."""
    groups: list[tuple[slice, slice]] = []
    for bands in torch.arange(filters.shape[1]).tensor_split(BAND_GROUPS):
        if not len(bands):
            continue  # fewer bands than groups
        start, stop = int(bands[0]), int(bands[-1]) + 1
        bins = filters[:, start:stop].any(1).nonzero()
        first, last = (int(bins[0]), int(bins[-1]) + 1) if len(bins) else (0, 1)
        groups.append((slice(first, last), slice(start, stop)))
    return groups
