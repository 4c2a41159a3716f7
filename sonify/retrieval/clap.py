"""CLAP: sounds and texts in one space, by transformers or (`sonify.retrieval.laion`) its original library.

What an embedding is must not depend on what is embedded beside it: on a CPU a clip goes through the model alone, which
costs 6 % (measured), texts and everything on a GPU go in batches that always have the same shape.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, cast

import numpy as np
import torch
from transformers import ClapFeatureExtractor, RobertaTokenizer
from transformers import ClapModel as ClapNetwork

from sonify.config import ClapEncoder, ClapModel, LaionClapEncoder
from sonify.config.models import CLAP_SECONDS
from sonify.errors import InputError, WorkError
from sonify.media.mixing import FULL_SCALE
from sonify.models.fetch import FetchedModel
from sonify.models.loading import choose_device, computing, load_network, load_part
from sonify.retrieval.logmel import ClapLogMel

SAMPLE_RATE_HZ = 48_000
WINDOW = round(CLAP_SECONDS * SAMPLE_RATE_HZ)
MAX_TOKENS = 77  # of the texts that CLAP was trained with
# Texts are padded to the next multiple: most take one step, and a longer text does not lengthen the others.
TOKENS_STEP = 16
TEXTS_STEP = 16
# Texts that a worker remembers: 200 MB at 512 dimensions.
MAX_REMEMBERED = 100_000


class Towers(Protocol):
    """A CLAP model of either library: (B, D) rows of unit length for sounds and for texts."""

    dimension: int
    tokenizer: RobertaTokenizer

    def embed_audio(self, waveforms_bt: torch.Tensor) -> torch.Tensor:
        """Embed (B, 480000) float32 samples at 48 kHz."""
        ...

    def embed_text(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embed (B, L) `input_ids` under their `attention_mask`."""
        ...


class Clap:
    """Embeds clips by their sound and queries by their text, as (N, `dimension`) float32 rows of unit length.

    `arithmetic` is what the last bits depend on: the device, its threads and the shape of a batch.

    Raises:
        WorkError: the model gives numbers that are none.
    """

    sample_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, towers: Towers, settings: ClapModel, device: torch.device) -> None:
        self.dimension = towers.dimension
        self._towers = towers
        self._device = device
        # a row's last bits depend on its place in batches of 5 or 6, on none in those of a multiple of 4 (measured)
        self._texts = -(-settings.batch_size // TEXTS_STEP) * TEXTS_STEP
        self._sounds = 1 if device.type == "cpu" else settings.batch_size
        self._threads = settings.cpus
        self.arithmetic = f"{device.type}, {self._threads} threads, batches of {self._sounds}"
        self._remembered: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; each is embedded once in a worker's life."""
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.clear()
        unknown = sorted(set(texts) - self._remembered.keys())
        for batch in self._batches_of_texts(unknown):
            self._remembered |= zip(batch, self._embed_texts(batch), strict=False)
        return np.stack([self._remembered[text] for text in texts])

    def embed_segments(self, segments: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Embed sounds, each (n,) int16 at 48 kHz of at most ten seconds, one after the other as they come."""
        left = iter(segments)
        while batch := list(islice(left, self._sounds)):
            waveforms = np.zeros((self._sounds, WINDOW), np.float32)
            for row, segment in zip(waveforms, batch, strict=False):
                fill_window(row, segment)
            with computing(self._threads):
                embeddings = self._towers.embed_audio(torch.from_numpy(waveforms).to(self._device))
            yield from _rows(embeddings)[: len(batch)]

    def _batches_of_texts(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Batches of texts that are padded to the same length."""
        by_length: dict[int, list[str]] = {}
        for text in texts:
            by_length.setdefault(self._padded_length(text), []).append(text)
        for same in by_length.values():
            yield from (same[n : n + self._texts] for n in range(0, len(same), self._texts))

    def _padded_length(self, text: str) -> int:
        tokens = len(self._towers.tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"])  # pyright: ignore[reportArgumentType]
        return -(-tokens // TOKENS_STEP) * TOKENS_STEP

    def _embed_texts(self, batch: Sequence[str]) -> np.ndarray:
        """Embed texts of one padded length; the first fills the places that are free."""
        filled = [*batch, *[batch[0]] * (self._texts - len(batch))]
        tokens = self._towers.tokenizer(filled, truncation=True, max_length=MAX_TOKENS)
        length = self._padded_length(batch[0])
        padded = self._towers.tokenizer.pad(tokens, padding="max_length", max_length=length, return_tensors="pt")
        with computing(self._threads):
            return _rows(self._towers.embed_text(padded.to(self._device)))


def fill_window(window: np.ndarray, segment: np.ndarray) -> None:
    """Write (n,) int16 samples into a zeroed (480000,) float32 window, as often as they fit whole.

    Source: laion_clap's `repeatpad`, with which CLAP was trained.
    """
    times = window.size // segment.size
    assert times > 0, segment.size
    window[: times * segment.size] = np.tile(segment, times) / np.float32(FULL_SCALE)


class TransformersTowers:
    """CLAP as a transformers model folder: `ClapModel` with its tokenizer and front end."""

    def __init__(self, network: ClapNetwork, extractor: ClapFeatureExtractor, tokenizer: RobertaTokenizer) -> None:
        self.dimension = int(network.config.projection_dim)
        self.tokenizer = tokenizer
        self._network = network.eval()
        self._log_mel = ClapLogMel(extractor).to(network.device)

    def embed_audio(self, waveforms_bt: torch.Tensor) -> torch.Tensor:
        """As `Towers`. The extractor itself marks a random clip as longer than the window; none is."""
        is_longer = torch.zeros(len(waveforms_bt), 1, dtype=torch.bool, device=waveforms_bt.device)
        return _pooled(self._network.get_audio_features(self._log_mel(waveforms_bt), is_longer=is_longer))

    def embed_text(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `Towers`."""
        return _pooled(self._network.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"]))


def load_clap(settings: ClapEncoder | LaionClapEncoder, fetched: FetchedModel) -> Clap:
    """Load a CLAP of either library onto its device; `fetched` is the model or, of laion_clap's, its RoBERTa.

    Raises:
        InputError: the device or a library is not there, or the model is not a CLAP.
    """
    device = choose_device(settings.device)
    if isinstance(settings, ClapEncoder):
        return Clap(_load_transformers_towers(fetched, device), settings, device)
    from sonify.retrieval.laion import load_laion_towers  # noqa: PLC0415 - its library is rarely there

    return Clap(load_laion_towers(settings, fetched.path, device), settings, device)


def _load_transformers_towers(fetched: FetchedModel, device: torch.device) -> TransformersTowers:
    network = cast(ClapNetwork, load_network(ClapNetwork, fetched, device, torch.float32))
    extractor = load_part(ClapFeatureExtractor, fetched)
    found = (extractor.sampling_rate, extractor.nb_max_samples, extractor.padding)
    expected = (SAMPLE_RATE_HZ, WINDOW, "repeatpad")
    if found != expected:
        raise InputError(f"retrieval.encoder.model: {fetched.path}: expected a front end of {expected}, found {found}")
    return TransformersTowers(network, extractor, load_part(RobertaTokenizer, fetched))


def _pooled(output: object) -> torch.Tensor:
    """The embeddings of a tower's output, which transformers has brought to unit length."""
    return cast(torch.Tensor, output.pooler_output)  # pyright: ignore[reportAttributeAccessIssue]


def _rows(embeddings: torch.Tensor) -> np.ndarray:
    rows = embeddings.float().cpu().numpy()
    if not np.isfinite(rows).all():
        raise WorkError("retrieval.encoder: the model gives NaN or infinity: its weights are damaged")
    return rows
