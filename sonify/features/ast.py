"""Audio features: the hidden states of an Audio Spectrogram Transformer, column by column in time.

B  sounds, S  samples, L  tokens, R  rows of frequency, T  columns of time, D  width of a feature vector
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import ASTFeatureExtractor, ASTModel

from sonify.config.models import AST_SAMPLE_RATE_HZ
from sonify.errors import InputError
from sonify.features.kaldi import FRAME, SAMPLE_RATE_HZ, KaldiLogMel
from sonify.models.fetch import FetchedModel
from sonify.models.loading import check_layers, load_network, load_part

LEADING_TOKENS = 2  # for the class and for distillation


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
    the mean over frequency; with `all` there are R * T vectors, all columns of the lowest frequency first. With
    `layers` a vector is what these layers give, one after the other, as they leave it; without, it is the last layer's
    behind the network's own last norm.

    Raises:
        InputError: a layer that the network does not have.
    """

    def __init__(
        self,
        network: ASTModel,
        extractor: ASTFeatureExtractor,
        frequency: Literal["mean", "all"],
        layers: Sequence[int] = (),
    ) -> None:
        config: Any = network.config  # the library lets a patch have two sides, and AST does not
        check_layers(layers, config.num_hidden_layers, "AST")
        self._network = network
        self._layers = tuple(layers)
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
        hidden_BLD = self._listen(log_mel)[:, LEADING_TOKENS:].float()
        hidden_BRTD = hidden_BLD.unflatten(1, (self._num_rows, -1))[:, :, :columns]
        return hidden_BRTD.mean(1) if self._frequency == "mean" else hidden_BRTD.flatten(1, 2)

    def _listen(self, log_mel_BFM: torch.Tensor) -> torch.Tensor:
        if not self._layers:
            return self._network(log_mel_BFM).last_hidden_state
        hidden = self._network(log_mel_BFM, output_hidden_states=True).hidden_states  # the first is of no layer
        return torch.cat([hidden[n] for n in self._layers], -1)


class AstLogMel(KaldiLogMel):
    """Does what an `ASTFeatureExtractor` does to sounds at its rate: (B, S) float32 to (B, max_length, M) float32.

    Without torchaudio the library computes in float64, and differs from itself by up to 0.0014 in bands that are 70 dB
    below their neighbours (measured).
    """

    def __init__(self, extractor: ASTFeatureExtractor) -> None:
        assert extractor.sampling_rate == SAMPLE_RATE_HZ, extractor.sampling_rate
        scale = 1 / (2 * extractor.std) if extractor.do_normalize else 1.0
        super().__init__(
            extractor.num_mel_bins,
            torch.hann_window(FRAME, periodic=False),
            scale,
            -extractor.mean * scale if extractor.do_normalize else 0.0,
            extractor.max_length,
        )
