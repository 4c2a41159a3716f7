"""ACT, the captioner of the published system: a transformer over patches of a log-mel, and one that writes words.

Its tensors are named as its public code builds them (XinhaoMei/ACT at ccc417b). No file of its weights was to be had
here, so that whether a published one has just these names was never tried.

B  sounds (1), T  patches and the class token, E  768, D  512, W  words so far, F M  frames and mel bands
Source: Mei et al., Audio Captioning Transformer, DCASE 2021.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers.audio_utils import mel_filter_bank

from eval.baselines.wild.captions import DIGITS, MAX_WORDS
from eval.towers.inputs import at_rate
from eval.towers.tower import Sound
from eval.towers.weights import read_tensors
from sonify.errors import InputError
from sonify.models.loading import computing

SAMPLE_RATE_HZ = 32_000
SECONDS = 10
N_FFT, HOP, BANDS = 1024, 640, 64
DYNAMIC_RANGE_DB = 80
PATCH_FRAMES = 4
PATCHES = SECONDS * SAMPLE_RATE_HZ // HOP // PATCH_FRAMES
CLASSES = 527  # AudioSet's, which the decoder is told of each patch
END = "<eos>"
FIRST = 0  # the vocabulary's first word starts a caption
MAX_VOCABULARY = 1_000_000
COUNTER = "encoder.bn0.num_batches_tracked"
POSITIONS = "pos_encoder.pe"


def log_mel(samples_S: np.ndarray) -> Tensor:
    """(F, M) decibels of sound at 32 kHz, at most 80 below the loudest; the last frame is dropped."""
    window = torch.hann_window(N_FFT)
    samples = torch.from_numpy(np.ascontiguousarray(samples_S, np.float32))
    spectrum = torch.stft(samples, N_FFT, HOP, window=window, center=True, pad_mode="constant", return_complex=True)
    mel_FM = spectrum.abs().square().T @ _filters()
    decibels_FM = 10 * mel_FM.clamp(min=1e-10).log10()
    return decibels_FM.maximum(decibels_FM.max() - DYNAMIC_RANGE_DB)[:-1]


@cache
def _filters() -> Tensor:
    bank = mel_filter_bank(
        N_FFT // 2 + 1, BANDS, 0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
    )
    return torch.tensor(bank, dtype=torch.float32)


class _Normed(nn.Module):
    """A layer behind its norm."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x_BTE: Tensor) -> Tensor:
        return self.fn(self.norm(x_BTE))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Sequential(nn.Linear(width, width))

    def forward(self, x_BTE: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x_BTE).chunk(3, -1)
        )
        return self.proj(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x_BTE: Tensor) -> Tensor:
        return self.mlp["fc2"](gelu(self.mlp["fc1"](x_BTE)))


class _Encoder(nn.Module):
    """DeiT over patches of 4 frames by all 64 bands; gives each patch, and the whole, scores of AudioSet's classes."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(BANDS)
        self.patch_embed = nn.ModuleDict({"proj": nn.Linear(PATCH_FRAMES * BANDS, width)})
        self.pos_embedding = nn.Parameter(torch.zeros(1, PATCHES + 1, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        layers = [
            nn.ModuleList([_Normed(width, _Attention(width, heads)), _Normed(width, _FeedForward(width, 4 * width))])
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))

    def forward(self, mel_BFM: Tensor) -> Tensor:
        normed_BFM = self.bn0(mel_BFM[..., None].transpose(1, 2)).transpose(1, 2)[..., 0]
        x_BTE = self.patch_embed["proj"](normed_BFM.unflatten(1, (-1, PATCH_FRAMES)).flatten(2))
        x_BTE = torch.cat([self.cls_token.expand(len(x_BTE), -1, -1), x_BTE], 1)
        x_BTE = x_BTE + self.pos_embedding[:, : x_BTE.shape[1]]
        layers: Any = self.blocks["layers"]
        for attention, feed_forward in layers:
            x_BTE = x_BTE + attention(x_BTE)
            x_BTE = x_BTE + feed_forward(x_BTE)
        return self.mlp_head(x_BTE)


class Act(nn.Module):
    """Encoder and decoder; a caption begins with the vocabulary's first word."""

    def __init__(self, words: int, width: int = 512, depth: int = 4, heads: int = 8) -> None:
        super().__init__()
        self.width = width
        self.encoder = _Encoder()
        self.encoder_linear = nn.Linear(CLASSES, width)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, dropout=0.2, activation="gelu")
        self.transformer_decoder = nn.TransformerDecoder(layer, depth)
        self.word_emb = nn.Embedding(words, width)
        self.dec_fc = nn.Linear(width, words)

    def encode(self, mel_BFM: Tensor) -> Tensor:
        """(T, B, D), which the decoder looks at."""
        return self.encoder_linear(self.encoder(mel_BFM)).relu().transpose(0, 1)

    def decode(self, encoded_TBD: Tensor, words_BW: Tensor) -> Tensor:
        """Scores (W, B, V) of the word behind each."""
        x_WBD = self.word_emb(words_BW.T) * math.sqrt(self.width) + _positions(
            words_BW.shape[1], self.width, words_BW.device
        )
        causal = nn.Transformer.generate_square_subsequent_mask(len(x_WBD), device=x_WBD.device)
        return self.dec_fc(self.transformer_decoder(x_WBD, encoded_TBD, tgt_mask=causal))


def _positions(count: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines (W, 1, D)."""
    places = torch.arange(count, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000) / width))
    return torch.stack([(places * rates).sin(), (places * rates).cos()], -1).flatten(1)[:, None].to(device)


def act_shapes(words: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of its tensors, for a vocabulary of so many words."""
    with torch.device("meta"):
        network = Act(words)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} | {POSITIONS: (2000, 1, 512)}


class ActCaptioner:
    """Greedy, as the published program is: at most 30 words, each as sure as the largest probability was."""

    def __init__(self, weights: Path, vocabulary: Path, device: torch.device) -> None:
        self._words = read_vocabulary(vocabulary)
        if not weights.is_file():
            raise InputError(f"act: {weights}: expected ACT's weights as safetensors, found no file")
        tensors = read_tensors(weights, act_shapes(len(self._words)), "ACT", (POSITIONS, COUNTER))
        tensors.pop(POSITIONS, None)  # sines, which are computed
        network = Act(len(self._words))
        network.load_state_dict({COUNTER: torch.tensor(0)} | tensors)
        self._network, self._device = network.to(device).eval(), device

    def __call__(self, sound: Sound) -> list[tuple[str, float]]:
        """The first ten seconds are heard; a shorter sound ends in silence."""
        samples_S = at_rate(sound, SAMPLE_RATE_HZ)[: SECONDS * SAMPLE_RATE_HZ]
        whole_S = np.pad(samples_S, (0, SECONDS * SAMPLE_RATE_HZ - len(samples_S)))
        said: list[tuple[str, float]] = []
        with computing(torch.get_num_threads()):
            encoded_TBD = self._network.encode(log_mel(whole_S)[None].to(self._device))
            ids = [FIRST]
            for _ in range(MAX_WORDS):
                scores = self._network.decode(encoded_TBD, torch.tensor([ids], device=self._device))[-1, 0]
                best = scores.softmax(-1).max(-1)
                ids.append(int(best.indices))
                if (word := self._words[ids[-1]]) == END:
                    break
                said.append((word, round(float(best.values), DIGITS)))
        return said


def read_vocabulary(path: Path) -> list[str]:
    """Read a word a line, in the order of the network's outputs.

    Raises:
        InputError: it cannot be read, or has no end of a caption.
    """
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"act_words: {path}: cannot be read as text ({why}); expected a word a line") from None
    if END not in words or len(words) > MAX_VOCABULARY:
        raise InputError(
            f"act_words: {path}: expected ACT's vocabulary, a word a line, with {END} among them, found"
            f" {len(words):,} lines"
        )
    return words
