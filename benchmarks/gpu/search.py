"""Exact search on a GPU against the same on the CPUs: the same rows, and how many concepts a second."""

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.gpu.report import Figure
from benchmarks.gpu.room import Room, repeat
from sonify.config import Search
from sonify.io.machine import usable_cpus
from sonify.retrieval.halves import has_half_units, rows_of
from sonify.retrieval.search import Best, RowSearch

DIMENSION, TOP = 512, 100
SAME = 1e-6  # cosines that are nearer than this may stand in either order


def search(room: Room) -> Iterator[Figure]:
    """`sonify.retrieval.search` as `pair` calls it, on seeded vectors."""
    pool, concepts = (unit_vectors(count, seed) for seed, count in enumerate((room.sizes.pool, room.sizes.concepts)))
    rows, threads = rows_of(pool), usable_cpus()
    on_cpu = RowSearch(rows, threads, Search(device="cpu"))
    on_device = RowSearch(rows, threads, Search(device="cuda" if room.device.type == "cuda" else "cpu"))
    found, expected = on_device(concepts, TOP), on_cpu(concepts, TOP)
    different, furthest = differences(found, expected)
    yield Figure(name="concepts with another list than on CPUs", value=different, note=f"of {len(concepts)}")
    yield Figure(name="cosines furthest apart where they differ", value=furthest, note=f"below {SAME} counts as equal")
    size = f"{len(pool):,} x {DIMENSION}"
    for name, searching in (("on the device", on_device), ("on CPUs", on_cpu)):
        rate = len(concepts) / repeat(lambda searching=searching: searching(concepts, TOP), room)
        note = f"{size}, batches of {len(concepts)}"
        if searching is on_cpu:
            note += f", {threads} threads, {'with' if has_half_units() else 'without'} bfloat16 units"
        yield Figure(name=f"rate {name}", value=round(rate, 1), unit="concepts/s", note=note)


def unit_vectors(count: int, seed: int) -> np.ndarray:
    """Seeded (count, 512) float32 rows of unit length."""
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def differences(found: Sequence[Best], expected: Sequence[Best]) -> tuple[int, float]:
    """How many lists differ by more than equal cosines explain, and how far cosines are apart where rows differ."""
    gaps = [
        float(np.abs(one.scores - other.scores)[one.numbers != other.numbers].max(initial=0.0))
        for one, other in zip(found, expected, strict=True)
    ]
    return sum(gap >= SAME for gap in gaps), max(gaps)
