"""Pairing against FAISS and against the paper's loop, on a pool of 0.5M x 512 seeded vectors and two threads.

    python -m benchmarks.pairing

Prints JSON lines: distinct concepts against `faiss.IndexFlatIP` called on the same batch (floor 1.0), and real,
repeating concepts against one search a concept (floor 20), where "theirs" only searches and "ours" also chooses and
draws; both with bfloat16 products where the CPU has units for them, the first also without; and the memory of four
workers of a node that share the pool's vectors, against that of four that each hold them ("ours" and "theirs" are
workers a GiB of proportional set size). `--pool N` takes a smaller pool.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np

from benchmarks.measure import cpu_name, interleaved, report
from sonify import layout
from sonify.config import Config, make_config
from sonify.io.commits import Commit, Count, write_commit
from sonify.io.tables import write_rows
from sonify.retrieval.candidates import PoolClips, SplitPool, read_pool
from sonify.retrieval.encoders import JointEncoder, Part
from sonify.retrieval.kinds import Query
from sonify.retrieval.vectors import group_in_memory
from sonify.rows import Clip, Concept, ImageConcepts
from sonify.stages.pair import Heard, ImageScenes, PairStage

POOL, DIMENSION, THREADS = 500_000, 512, 2
BATCH = 2048
REPEATING_CONCEPTS, VOCABULARY = 512, 40
WORKERS, UNIT_CLIPS = 4, 10_000
HELD_BATCH = 64


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


def encoder_of(queries: np.ndarray) -> JointEncoder:
    """An encoder with one space of seeded vectors."""
    return JointEncoder([Part(id="seeded", model="seeded", share=1.0, encoder=SeededEncoder(queries))])


def measure_speed(size: int) -> None:
    """Measure distinct and repeating concepts."""
    pool, queries = unit_vectors(size, seed=0), unit_vectors(BATCH, seed=1)
    config = default_config()
    grouped = group_in_memory(pool)
    clips = PoolClips(
        clips=[f"clip-{n}" for n in range(size)],
        recordings=np.arange(size) // 2,
        loudness_lufs=np.full(size, -25.0),
        embeddings=grouped,
    )
    encoder = encoder_of(queries)
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(pool)
    extra = {"pool": size, "threads": THREADS, "cpu": cpu_name()}
    distinct = images_of(range(BATCH))

    def search_batch() -> None:
        faiss.omp_set_num_threads(THREADS)
        index.search(queries, 100)

    whole = replace(clips, embeddings=replace(grouped, rows=replace(grouped.rows, halves=None)))
    stages = {
        halves: PairStage(config, {"train": SplitPool(held, encoder, config.retrieval, THREADS)})
        for halves, held in ((True, clips), (False, whole))
    }
    for halves, stage in stages.items():
        if halves and grouped.rows.halves is None:
            continue
        ours, theirs = interleaved(lambda stage=stage: stage(distinct), search_batch)
        report("pairing_distinct", BATCH / ours, BATCH / theirs, "concepts/s", batch=BATCH, bfloat16=halves, **extra)

    repeating = [int(n) for n in np.random.default_rng(2).integers(0, VOCABULARY, REPEATING_CONCEPTS)]
    images = images_of(repeating)

    def search_each() -> None:
        for concept in repeating:
            index.search(queries[concept : concept + 1], 100)

    ours, theirs = interleaved(lambda: stages[True](images), search_each)
    counts = {"concepts": REPEATING_CONCEPTS, "distinct": VOCABULARY}
    report("pairing_repeating", REPEATING_CONCEPTS / ours, REPEATING_CONCEPTS / theirs, "concepts/s", **counts, **extra)


def write_pool(run_dir: Path, size: int) -> None:
    """A pool's clips and seeded embeddings as a run has them, with their commits."""
    (run_dir / layout.CLIPS).mkdir(parents=True)
    (run_dir / layout.EMBEDDINGS / "seeded").mkdir(parents=True)
    for number, start in enumerate(range(0, size, UNIT_CLIPS)):
        unit, names = f"{number:06d}", range(start, min(start + UNIT_CLIPS, size))
        with (run_dir / layout.clips(unit)).open("wb") as file:
            write_rows(file, Clip, [clip_of(n) for n in names])
        np.save(run_dir / layout.embeddings("seeded", unit), unit_vectors(len(names), seed=number))
        rows = Count(rows_in=len(names), rows_out=len(names), rejected={})
        commit = Commit(stage="embeddings", unit=unit, digest="d", inputs={}, rows=rows, clips=None, files=())
        write_commit(run_dir, commit)


def clip_of(number: int) -> Clip:
    """A clip of a recording of its own."""
    return Clip(
        clip=f"sounds/{number}.flac#0",
        recording=f"sounds/{number}.flac",
        corpus="sounds",
        file=f"{number}.flac",
        start_sec=0.0,
        duration_sec=5.0,
        loudness_lufs=-25.0,
        peak_dbfs=-3.0,
        text="",
        licence="",
        attribution="",
        split="train",
        sha256="",
    )


def hold_pool(run_dir: Path, shared: bool) -> None:
    """What a worker of `pair` does with its pool: read it, search it all; then wait to be measured."""
    queries = unit_vectors(HELD_BATCH, seed=1)
    encoder, retrieval = encoder_of(queries), default_config().retrieval
    clips = read_pool(run_dir, encoder, shared=shared)["train"]
    pool = SplitPool(clips, encoder, retrieval, 1)
    del clips
    pool.rank([Query(name="", text=f"This is a sound of {n}", described=False) for n in range(HELD_BATCH)])
    print("ready", flush=True)
    sys.stdin.read()


def workers_gib(run_dir: Path, shared: bool) -> float:
    """The proportional set sizes of four workers together, which count what they share once."""
    command = [sys.executable, "-m", "benchmarks.pairing", "--hold", str(run_dir), json.dumps(shared)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)
    ]
    try:
        sizes: list[int] = []
        for worker in workers:
            assert worker.stdout
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError(f"a worker ended with {worker.wait()}")
        for worker in workers:
            lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
            sizes += [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    finally:
        for worker in workers:
            worker.communicate()
    return sum(sizes) / 2**20


def measure_memory(size: int) -> None:
    """Measure four workers that share the pool's vectors, and four that do not."""
    with tempfile.TemporaryDirectory(prefix="sonify-pairing-") as folder:
        write_pool(Path(folder), size)
        ours, theirs = (workers_gib(Path(folder), shared) for shared in (True, False))
    gib = {"ours_gib": round(ours, 2), "theirs_gib": round(theirs, 2)}
    report("pairing_memory", WORKERS / ours, WORKERS / theirs, "workers/GiB", pool=size, workers=WORKERS, **gib)


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool", type=int, default=POOL)
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hold:
        hold_pool(Path(given.hold[0]), json.loads(given.hold[1]))
        return
    measure_speed(given.pool)
    measure_memory(given.pool)


if __name__ == "__main__":
    main()
