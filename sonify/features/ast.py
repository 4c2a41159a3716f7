"""Audio features: the hidden states of an Audio Spectrogram Transformer, column by column in time.

B  sounds, S  samples, L  tokens, R  rows of frequency, T  columns of time, D  width of a token
"""

from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import ASTFeatureExtractor, ASTModel

from sonify.config.config import AST_SAMPLE_RATE_HZ
from sonify.errors import InputError
from sonify.features.logmel import LogMel
from sonify.models import AST_FILES, fetch_model
from sonify.networks import load_network, load_part

LEADING_TOKENS = 2  # for the class and for distillation


def load_ast(
    model: str, revision: str | None, device: torch.device, dtype: torch.dtype
) -> tuple[ASTModel, ASTFeatureExtractor]:
    """Load an AST with its front end.

    Raises:
        InputError: it cannot be had, is another kind of model, or does not hear 16 kHz.
    """
    fetched = fetch_model(model, revision, AST_FILES)
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
        self._log_mel = LogMel(extractor)
        self._frequency = frequency
        self._patch, self._stride = config.patch_size, config.time_stride
        self._num_rows = (config.num_mel_bins - self._patch) // config.frequency_stride + 1

    def num_columns(self, num_samples: int) -> int:
        """How many columns of time a sound of that length has."""
        return max(0, (self._log_mel.num_frames(num_samples) - self._patch) // self._stride + 1)

    @torch.no_grad()
    def __call__(self, waveforms_BS: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Listen to (B, S) float32 samples between -1 and 1.

        Raises:
            ValueError: the sounds are too short for a single column.
        """
        columns = self.num_columns(waveforms_BS.shape[1])
        if columns < 1:
            raise ValueError(f"a sound of {waveforms_BS.shape[1]} samples is too short for AST")
        device, dtype = self._network.device, self._network.dtype
        waveforms_BS = torch.as_tensor(waveforms_BS, dtype=torch.float32).to(device)
        log_mel = self._log_mel.to(device)(waveforms_BS).to(dtype)
        hidden_BLD = self._network(log_mel).last_hidden_state[:, LEADING_TOKENS:].float()
        hidden_BRTD = hidden_BLD.unflatten(1, (self._num_rows, -1))[:, :, :columns]
        return hidden_BRTD.mean(1) if self._frequency == "mean" else hidden_BRTD.flatten(1, 2)
