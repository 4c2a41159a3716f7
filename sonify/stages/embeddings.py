"""Clips to embeddings: row for row, `pool/embeddings/<encoder>/<unit>.npy` follows `pool/clips/<unit>.parquet`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sonify import layout
from sonify.config import Config
from sonify.engine.files import Transaction
from sonify.engine.job import Job
from sonify.engine.tables import read_rows
from sonify.retrieval.encoders import load_encoder
from sonify.rows import Clip
from sonify.stages.pool import RowsFile


@dataclass(frozen=True, slots=True)
class Embedding:
    """The (D,) float32 embedding of one clip."""

    vector: np.ndarray


def load(config: Config) -> Job:
    """The embedding stage: clips to vectors in the space of the config's encoder."""
    encoder = load_encoder(config.retrieval.encoder)
    name = config.retrieval.encoder.kind

    def embed(clips: Sequence[Clip]) -> list[Embedding]:
        return [Embedding(vector) for vector in encoder([clip.text for clip in clips])]

    def open_sink(unit: str, transaction: Transaction, _rejects: object) -> "EmbeddingSink":
        file = transaction.create(layout.embeddings(name, unit))
        return EmbeddingSink(RowsFile(file, np.dtype("<f4"), encoder.dimension))

    return Job(
        read=lambda unit: read_rows(config.run_dir / layout.clips(unit), Clip),
        process=embed,
        open_sink=open_sink,
        batch_rows=256,
    )


class EmbeddingSink:
    """Writes the embeddings of a unit."""

    def __init__(self, file: RowsFile) -> None:
        self._file = file

    def write(self, row: Embedding) -> None:
        """Add one clip's embedding."""
        self._file.write(row.vector)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
