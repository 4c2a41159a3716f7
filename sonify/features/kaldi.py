"""Kaldi's log-mel spectrogram in torch, of whole batches and on the device of the network that hears it.

B  sounds, S  samples, F  frames, W  samples of a frame, M  mel bands
"""

import math
from collections.abc import Sequence

import torch

SAMPLE_RATE_HZ = 16_000
FRAME, HOP, FFT = 400, 160, 512  # 25 ms every 10 ms
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
FLOOR = torch.finfo(torch.float32).eps
# A band covers few of the 256 bins: products of groups take a third of the time of one over all (measured).
BAND_GROUPS = 8
Groups = Sequence[tuple[slice, slice]]  # of bins and of bands


class KaldiLogMel(torch.nn.Module):
    """Sounds at 16 kHz, (B, S) float32, to (B, F, M) float32: the logarithm times `scale`, plus `shift`.

    `window` holds the weights of a frame's samples, the first of them zero. With `frames` there are always so many:
    what is missing is `shift`, what is more is left out. The steps and their order are torchaudio's, with which those
    who listen were trained: any other rounding before the Fourier transform shows in bands that are 70 dB below their
    neighbours.

    Source: Kaldi's fbank, as `torchaudio.compliance.kaldi.fbank` has it.
    """

    def __init__(
        self, num_bands: int, window: torch.Tensor, scale: float, shift: float, frames: int | None = None
    ) -> None:
        super().__init__()
        assert window[0] == 0, window[0]
        self.filters = torch.nn.Buffer(_mel_filters(num_bands))
        # the window's first weight is zero, so the first sample of a frame is never needed
        self.window = torch.nn.Buffer(window[1:])
        self._groups = _groups(self.filters)
        self._frames = frames
        self._scale, self._shift = scale, shift
        self._offset = torch.nn.Buffer(torch.tensor(shift))

    def num_frames(self, num_samples: int) -> int:
        """How many frames hold sound; those behind them are padding."""
        whole = max(0, (num_samples - FRAME) // HOP + 1)
        return whole if self._frames is None else min(whole, self._frames)

    def forward(self, waveforms_BS: torch.Tensor) -> torch.Tensor:
        frames, num_bands = self.num_frames(waveforms_BS.shape[1]), self.filters.shape[1]
        whole = frames if self._frames is None else self._frames
        log_mel_BFM = waveforms_BS.new_full((len(waveforms_BS), whole, num_bands), self._shift)
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


def _mel_filters(num_bands: int) -> torch.Tensor:
    """The (bins, bands) float32 weights, without the bin of half the sample rate, which has none."""
    lowest, highest = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (LOWEST_HZ, SAMPLE_RATE_HZ / 2))
    step = (highest - lowest) / (num_bands + 1)
    band = torch.arange(num_bands)
    left, centre, right = (lowest + (band + n) * step for n in (0.0, 1.0, 2.0))
    hertz = SAMPLE_RATE_HZ / FFT * torch.arange(FFT // 2).unsqueeze(1)
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
