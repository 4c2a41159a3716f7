"""The vectors that are searched, each once: clips with equal ones are a group, and a machine's workers share them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sonify import layout
from sonify.errors import WorkError
from sonify.installed import spell
from sonify.io.places import machine_folder
from sonify.io.shared import share_arrays
from sonify.io.tables import RowsFile
from sonify.retrieval.halves import (
    TILE_ROWS,
    Rows,
    halve,
    longest_residue,
    longest_row,
    rows_of,
    use_halves,
)
from sonify.stores import Place

# Of the files that are shared: raise it when what stands in them changes.
FORM = 2
# Unit by unit, the embeddings of all clips of a pool; each call reads them again.
Vectors = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """The distinct embeddings of N clips, and which one each clip has; groups are numbered by first appearance."""

    rows: Rows
    group_of_clip: np.ndarray  # (N,) int64


class _Groups:
    """Numbers the distinct ones among rows that come block by block."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}
        self._of_row: list[int] = []

    def add(self, block: np.ndarray) -> np.ndarray:
        """The (n,) positions in a block of those rows that were never there before."""
        first: list[int] = []
        for position, row in enumerate(block):
            number = len(self._seen)
            found = self._seen.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), number)
            if found == number:
                first.append(position)
            self._of_row.append(found)
        return np.array(first, dtype=np.int64)

    def of_row(self) -> np.ndarray:
        """(N,) the group of every row so far."""
        return np.array(self._of_row, dtype=np.int64)


def group_in_memory(embeddings: np.ndarray) -> Grouped:
    """Group the clips of (N, D) float32 embeddings."""
    groups = _Groups()
    first = groups.add(embeddings)
    distinct = embeddings if len(first) == len(embeddings) else embeddings[first]
    return Grouped(rows=rows_of(distinct), group_of_clip=groups.of_row())


def share_grouped(run_dir: Place, split: str, made_of: str, part: np.ndarray, vectors: Vectors) -> Grouped:
    """Group the clips of a split; the memory for their vectors is there once for all processes of this machine.

    Args:
        run_dir: the run.
        split: the split.
        made_of: a digest of the embeddings and the encoder that joins them.
        part: (N,) positions of the split's clips in the pool, ascending.
        vectors: of all clips.

    Raises:
        DiskFull: no room is left for the shared files.
        WorkError: an embedding is damaged.
    """
    folder = machine_folder(run_dir) / layout.SEARCHED
    digest = hashlib.sha256(f"{FORM} {made_of} ".encode() + part.astype("<i8").tobytes()).hexdigest()[:32]
    grouped = share_arrays(folder, f"{split}-vectors", digest, lambda made: _write_groups(made, part, vectors()))
    rows = grouped.arrays["rows"]
    halves, residue = None, 0.0
    if use_halves(len(rows)):
        halved = share_arrays(folder, f"{split}-halves", digest, lambda made: _write_halves(made, rows))
        halves, residue = halved.arrays["halves"], halved.numbers["residue"]
    return Grouped(
        rows=Rows(vectors=rows, longest=grouped.numbers["longest"], halves=halves, residue=residue),
        group_of_clip=grouped.arrays["groups"],
    )


def _write_groups(folder: Path, part: np.ndarray, blocks: Iterable[np.ndarray]) -> Mapping[str, float]:
    """Write the distinct rows of the clips at some positions, and the groups, as the blocks come."""
    groups, longest, start = _Groups(), 0.0, 0
    file: RowsFile | None = None
    with (folder / "rows.npy").open("w+b") as opened:
        for block in blocks:
            here = slice(*np.searchsorted(part, [start, start + len(block)]))
            rows = block[part[here] - start].astype("<f4", copy=False)
            distinct = rows[groups.add(rows)]
            file = file or RowsFile(cast(BinaryIO, opened), np.dtype("<f4"), block.shape[1])
            for row in distinct:
                file.write(row)
            longest = float(np.maximum(longest, longest_row(distinct)))
            start += len(block)
        if file is None or start <= part[-1]:
            raise WorkError(
                f"{layout.EMBEDDINGS}: damaged, there are fewer than clips; `{spell('verify', 'RUN', '--repair')}`"
                " withdraws them"
            )
        file.close()
    numbers = BytesIO()  # on a full disk numpy's own writing fails without saying why
    np.save(numbers, groups.of_row())
    (folder / "groups.npy").write_bytes(numbers.getbuffer())
    return {"longest": longest}


def _write_halves(folder: Path, rows: np.ndarray) -> Mapping[str, float]:
    residue = 0.0
    with (folder / "halves.npy").open("w+b") as opened:
        file = RowsFile(cast(BinaryIO, opened), np.dtype("<u2"), rows.shape[1])
        for start in range(0, len(rows), TILE_ROWS):
            tile = rows[start : start + TILE_ROWS]
            halves = halve(tile)
            residue = max(residue, longest_residue(tile, halves))
            for row in halves:
                file.write(row)
        file.close()
    return {"residue": residue}
