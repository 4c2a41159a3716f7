"""Pairing against FAISS and against the paper's loop, on a pool of 0.5M x 512 seeded vectors and two threads.

    python -m benchmarks.pairing

Prints two JSON lines: distinct concepts against `faiss.IndexFlatIP` called on the same batch (floor 1.0), and real,
repeating concepts against one search a concept (floor 20). "theirs" only searches; "ours" also chooses and draws.
"""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from benchmarks.measure import interleaved, report
from sonify.config import Config, make_config
from sonify.retrieval.candidates import PoolClips, SplitPool
from sonify.retrieval.encoders import JointEncoder, Part
from sonify.rows import Concept, ImageConcepts
from sonify.stages.pair import Heard, ImageScenes, PairStage

POOL, DIMENSION, THREADS = 500_000, 512, 2
BATCH = 2048
REPEATING_CONCEPTS, VOCABULARY = 512, 40


class SeededEncoder:
    """Puts the text `This is a sound of N` at the N-th of some seeded unit vectors."""

    dimension = DIMENSION

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors[[int(text.rpartition(" ")[2]) for text in texts]]


def unit_vectors(count: int, seed: int) -> np.ndarray:
    """Seeded (count, 512) float32 rows of unit length."""
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def images_of(concepts: Sequence[int]) -> list[ImageScenes]:
    """One image for each concept."""
    return [
        ImageScenes(
            key=f"image-{n}",
            by_extractor={
                "captions": Heard(
                    concepts=ImageConcepts(
                        image=f"image-{n}",
                        image_uri=f"{n}.jpg",
                        image_sha256="",
                        width=1,
                        height=1,
                        caption="",
                        answer="",
                        concepts=(Concept(concept=str(concept), description=""),),
                    ),
                    check=None,
                )
            },
        )
        for n, concept in enumerate(concepts)
    ]


def default_config() -> Config:
    """The default retrieval settings; the paths are not used."""
    here = str(Path(__file__).parent)
    return make_config(
        {
            "run_dir": "runs/benchmark",
            "images": {"kind": "folder", "path": here, "validation": 0},
            "audio": {"sources": [{"kind": "folder", "path": here}], "validation": 0},
        }
    )


def main() -> None:
    """Measure both."""
    pool, queries = unit_vectors(POOL, seed=0), unit_vectors(BATCH, seed=1)
    config = default_config()
    clips = PoolClips(
        clips=[f"clip-{n}" for n in range(POOL)],
        recordings=np.arange(POOL) // 2,
        loudness_lufs=np.full(POOL, -25.0),
        embeddings=pool,
    )
    encoder = JointEncoder([Part(id="seeded", model="seeded", share=1.0, encoder=SeededEncoder(queries))])
    stage = PairStage(config, {"train": SplitPool(clips, encoder, config.retrieval, THREADS)})
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(pool)
    faiss.omp_set_num_threads(THREADS)

    distinct = images_of(range(BATCH))
    ours, theirs = interleaved(lambda: stage(distinct), lambda: index.search(queries, 100))
    report("pairing_distinct", BATCH / ours, BATCH / theirs, "concepts/s", pool=POOL, batch=BATCH, threads=THREADS)

    repeating = [int(n) for n in np.random.default_rng(2).integers(0, VOCABULARY, REPEATING_CONCEPTS)]
    images = images_of(repeating)

    def search_each() -> None:
        for concept in repeating:
            index.search(queries[concept : concept + 1], 100)

    ours, theirs = interleaved(lambda: stage(images), search_each)
    report(
        "pairing_repeating",
        REPEATING_CONCEPTS / ours,
        REPEATING_CONCEPTS / theirs,
        "concepts/s",
        pool=POOL,
        concepts=REPEATING_CONCEPTS,
        distinct=VOCABULARY,
    )


if __name__ == "__main__":
    main()
