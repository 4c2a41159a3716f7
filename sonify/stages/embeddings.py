"""Clips to embeddings: row for row, `pool/embeddings/<part>/<unit>.npy` follows `pool/clips/<unit>.parquet`.

An encoder has one part or, where it is a hybrid, two. Beside the embeddings of a part that hears lies what each was
made from, so that a pool that is made again is embedded only where it changed.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from sonify import layout
from sonify.config import Audio, Retrieval
from sonify.engine.job import Job
from sonify.errors import WorkError
from sonify.io.places import load_array, on_this_machine
from sonify.io.tables import RowsFile, TableWriter, read_rows
from sonify.io.write import Transaction
from sonify.media.mixing import FULL_SCALE
from sonify.retrieval.encoders import Part, SegmentReader, load_encoder
from sonify.rows import Clip
from sonify.stores import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingKey:
    """What an embedding was made from (`pool/embeddings/<part>/<unit>.parquet`), and its own hash.

    `model` is the model and all that its numbers depend on. The hash finds an `.npy` of another time: a killed run can
    leave it beside this table.
    """

    clip: str
    sha256: str
    model: str
    embedding_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipToEmbed:
    """A clip, its embedding by sound where it is known from before, and its samples where they are what is heard."""

    clip: Clip
    known: np.ndarray | None
    samples: np.ndarray | None

    @property
    def key(self) -> str:
        """The clip."""
        return self.clip.clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """A clip's (D,) float32 embeddings, one for each part of the encoder."""

    clip: Clip
    vectors: tuple[np.ndarray, ...]


def embeddings_job(run_dir: Place, audio: Audio, retrieval: Retrieval) -> Job:
    """The embedding stage: clips to vectors in the spaces of `retrieval.encoder`."""
    stage = EmbeddingStage(run_dir, audio, retrieval)
    return Job(
        read=stage.read,
        process=stage,
        open_sink=lambda unit, transaction, _rejects: EmbeddingSink(transaction, unit, stage.parts),
        batch_rows=256,
    )


class EmbeddingStage:
    """Embeds clips by their text, their sound or both."""

    def __init__(self, run_dir: Place, audio: Audio, retrieval: Retrieval) -> None:
        self.parts = load_encoder(retrieval.encoder, retrieval.hears).parts
        self._run_dir = run_dir
        self._audio = audio
        self._hears_clips = retrieval.hears == "clip"
        self._heard = next((part for part in self.parts if part.hears), None)
        hears = self._heard.hears if self._heard else None
        self._segments = SegmentReader(audio, hears.sample_rate_hz) if hears else None

    def read(self, unit: str) -> Iterator[ClipToEmbed]:
        """The clips of a unit, with what is known of them."""
        known = read_known(self._run_dir, self._heard, unit) if self._heard else {}
        heard = self._heard is not None and self._hears_clips
        stored = load_array(on_this_machine(self._run_dir / layout.audio(unit))) if heard else None
        for row, clip in enumerate(read_rows(self._run_dir / layout.clips(unit), Clip)):
            samples = None if stored is None else stored[row]
            yield ClipToEmbed(clip=clip, known=known.get((clip.clip, clip.sha256)), samples=samples)

    def __call__(self, rows: Sequence[ClipToEmbed]) -> list[Embedding]:
        columns = [self._embed(part, rows) for part in self.parts]
        vectors = zip(*columns, strict=True)
        return [Embedding(clip=row.clip, vectors=found) for row, found in zip(rows, vectors, strict=True)]

    def _embed(self, part: Part, rows: Sequence[ClipToEmbed]) -> Sequence[np.ndarray]:
        if part.hears is None or self._segments is None:
            return list(part.encoder([row.clip.text for row in rows]))
        unknown = [row for row in rows if row.known is None]
        recorded = self._segments([row.clip for row in unknown if row.samples is None])
        fresh = part.hears.embed_segments(
            next(recorded) if row.samples is None else self._heard_of(row.clip, row.samples, part.hears.sample_rate_hz)
            for row in unknown
        )
        return [next(fresh) if row.known is None else row.known for row in rows]

    def _heard_of(self, clip: Clip, samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """A clip of the pool at another rate, as (n,) int16 samples without the padding."""
        sound = samples[: round(clip.duration_sec * self._audio.sample_rate)].astype(np.float32)
        resampled = soxr.resample(sound, self._audio.sample_rate, sample_rate_hz, quality="HQ")
        return np.rint(np.clip(resampled, -FULL_SCALE, FULL_SCALE - 1)).astype(np.int16)


def read_known(run_dir: Place, part: Part, unit: str) -> Mapping[tuple[str, str], np.ndarray]:
    """The embeddings that an earlier run of the unit left, by clip and its sha256, where they are still right."""
    try:
        rows = load_array(run_dir / layout.embeddings(part.id, unit))
        stored = list(read_rows(run_dir / layout.embedding_keys(part.id, unit), EmbeddingKey))
    except (FileNotFoundError, ValueError, WorkError):
        return {}  # not there, or damaged: it is replaced now
    return {
        (key.clip, key.sha256): row
        for key, row in zip(stored, rows, strict=False)
        if key.model == part.model and key.embedding_sha256 == _sha256(row)
    }


class EmbeddingSink:
    """Writes the embeddings of a unit, and what those by sound were made from."""

    def __init__(self, transaction: Transaction, unit: str, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._files = [
            RowsFile(transaction.create(layout.embeddings(part.id, unit)), np.dtype("<f4"), part.encoder.dimension)
            for part in parts
        ]
        self._keys = {
            part.id: TableWriter(transaction.create(layout.embedding_keys(part.id, unit)), EmbeddingKey)
            for part in parts
            if part.hears
        }

    def write(self, row: Embedding) -> None:
        """Add one clip's embeddings."""
        for part, file, vector in zip(self._parts, self._files, row.vectors, strict=True):
            file.write(vector)
            if part.id in self._keys:
                key = EmbeddingKey(
                    clip=row.clip.clip,
                    sha256=row.clip.sha256,
                    model=part.model,
                    embedding_sha256=_sha256(vector),
                )
                self._keys[part.id].write(key)

    def close(self) -> None:
        """Finish the files."""
        for file in (*self._files, *self._keys.values()):
            file.close()


def _sha256(vector: np.ndarray) -> str:
    return hashlib.sha256(vector.astype("<f4", copy=False).tobytes()).hexdigest()
