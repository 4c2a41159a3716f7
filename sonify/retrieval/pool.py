"""The pool as pairing sees it: for each split the clips, their embeddings in memory, and an exact search."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sonify import layout
from sonify.config import Retrieval
from sonify.io.places import load_array
from sonify.io.tables import read_tables
from sonify.retrieval.candidates import Candidates, ClipIndex, Ranking, choose_candidates, list_length
from sonify.retrieval.encoders import JointEncoder, QueryEncoder, bank_mean, load_encoder
from sonify.stores import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolClips:
    """N clips: what the draw needs to know of them."""

    clips: Sequence[str]
    recordings: np.ndarray  # (N,) int64 codes
    loudness_lufs: np.ndarray  # (N,) float64
    embeddings: np.ndarray  # (N, D) float32


class SplitPool:
    """Ranks texts against the clips of one split and says which clips may stand for a text."""

    def __init__(self, clips: PoolClips, encoder: QueryEncoder, retrieval: Retrieval, threads: int) -> None:
        self.clips = clips.clips
        self.recordings = clips.recordings
        self.loudness_lufs = clips.loudness_lufs
        self._encoder = encoder
        self._retrieval = retrieval
        self._index = ClipIndex(clips.embeddings, threads)
        self._length = list_length(retrieval.top_k, len(clips.clips))
        # querybank takes a clip's mean similarity to the bank off its similarity: one vector off the query does it
        centred = retrieval.hubness == "querybank"
        self._bank = bank_mean(encoder) if centred else np.zeros(encoder.dimension, dtype=np.float32)
        self._hubness = clips.embeddings @ self._bank if centred else np.zeros(len(clips.clips), dtype=np.float32)

    def rank(self, texts: Sequence[str]) -> dict[str, Ranking]:
        """Encode and search distinct texts, in one batch."""
        if not texts:
            return {}
        queries = np.ascontiguousarray(self._encoder(texts) - self._bank, dtype=np.float32)
        return dict(zip(texts, self._index.rank(queries, self._length), strict=True))

    def candidates(self, ranking: Ranking, u: float) -> Candidates:
        """The clips that may be drawn; `u` in [0, 1) seats equal clips where the ranking ends among them."""
        clips, similarities = self._index.top_clips(ranking, self._length, u)
        return choose_candidates(clips, similarities, self.recordings[clips], self._retrieval)

    def cosine(self, candidates: Candidates, position: int) -> float:
        """The cosine of a candidate, whatever hubness took off it."""
        return float(candidates.similarities[position] + self._hubness[candidates.clips[position]])


def load_pool(run_dir: Place, retrieval: Retrieval, threads: int) -> dict[str, SplitPool]:
    """Load the whole pool, split by split; a split without clips is absent."""
    encoder = load_encoder(retrieval.encoder)
    parts = read_pool(run_dir, encoder)
    return {split: SplitPool(part, encoder, retrieval, threads) for split, part in parts.items()}


def read_pool(run_dir: Place, encoder: JointEncoder) -> dict[str, PoolClips]:
    """Read clips and embeddings of every pool unit, split by split."""
    tables = dict(read_tables(run_dir / layout.CLIPS, ("clip", "recording", "loudness_lufs", "split")))
    table = pa.concat_tables(tables.values())
    embeddings = np.concatenate([_read_embeddings(run_dir, encoder, unit) for unit in tables])
    recordings = table["recording"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    clips = np.array(table["clip"].to_pylist(), dtype=object)
    loudness_lufs = table["loudness_lufs"].to_numpy()
    split_of_clip = np.array(table["split"].to_pylist(), dtype=object)
    parts = {split: np.flatnonzero(split_of_clip == split) for split in layout.SPLITS}
    return {
        split: PoolClips(
            clips=clips[part].tolist(),
            recordings=recordings[part],
            loudness_lufs=loudness_lufs[part],
            embeddings=embeddings[part],
        )
        for split, part in parts.items()
        if len(part)
    }


def _read_embeddings(run_dir: Place, encoder: JointEncoder, unit: str) -> np.ndarray:
    return encoder.join([load_array(run_dir / layout.embeddings(part.id, unit)) for part in encoder.parts])
