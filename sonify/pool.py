"""The pool of a run as it is read: its clips, their samples and their vectors, wherever they lie.

Row for row, a unit's table of clips, its samples and its vectors are of the same clips.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sonify import layout
from sonify.errors import WorkError
from sonify.io.commits import commit_files, read_commits
from sonify.io.places import folders_in, is_file, load_array, on_this_machine, stems
from sonify.io.tables import read_rows, read_tables, schema_of
from sonify.rows import Clip
from sonify.stores import Place

# Of a pool's files, as many stay mapped: a process may not open all of a large pool's at once.
OPEN_FILES = 64


def iter_clips(run_dir: Place) -> Iterator[Clip]:
    """Every clip, in the order of units."""
    for unit in stems(run_dir / layout.CLIPS):
        yield from read_rows(run_dir / layout.clips(unit), Clip)


def clip_columns(run_dir: Place, columns: Sequence[str]) -> pa.Table:
    """Some columns of every clip, in the order of units; no rows where there is no pool."""
    none = schema_of(Clip).empty_table().select(list(columns))
    tables = (table.select(list(columns)) for _, table in read_tables(run_dir / layout.CLIPS, columns))
    return pa.concat_tables([none, *tables]).combine_chunks()


def iter_vectors(run_dir: Place, spaces: Sequence[str]) -> Iterator[list[np.ndarray]]:
    """Unit by unit, the (N, D) float32 embeddings of its clips in each of some spaces."""
    for unit in stems(run_dir / layout.CLIPS):
        yield [load_array(run_dir / layout.embeddings(space, unit)) for space in spaces]


def vectors_made_of(run_dir: Place, spaces: Sequence[str]) -> str:
    """A digest of the embeddings in some spaces, by the commits that vouch for them; empty where none does.

    Whoever makes an embedding anew commits it anew. Where it lies on a disk, its size and time are in it as well.
    """
    folder = run_dir / layout.COMMITS / "embeddings"
    commits = [place for digest in folders_in(folder) for place in commit_files(run_dir, "embeddings", digest)]
    if not commits:
        return ""
    names = [layout.embeddings(space, unit) for unit in stems(run_dir / layout.CLIPS) for space in spaces]
    digest = hashlib.sha256("\n".join(names).encode())
    for place, data in read_commits(commits):
        digest.update(f"\n{place.name} ".encode() + data)
    for name in names:
        if isinstance(path := run_dir / name, Path):
            there = path.stat()
            digest.update(f"\n{there.st_size} {there.st_mtime_ns}".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A recording of which the pool holds copies under other names (`pool/duplicates.parquet`).

    `group` is the first of them by name. What is `left_out` is of validation, and training holds a copy of it.
    """

    recording: str
    group: str
    left_out: bool


def read_duplicates(run_dir: Place) -> dict[str, Duplicate]:
    """The recordings that are copies of others, by name.

    Raises:
        WorkError: they were not looked for, or the table is damaged.
    """
    return {row.recording: row for row in read_rows(run_dir / layout.DUPLICATES, Duplicate)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateCounts:
    """How many recordings have copies, in how many groups, how many the largest has, and how many are left out."""

    recordings: int
    groups: int
    largest: int
    left_out: int


def count_duplicates(run_dir: Place) -> DuplicateCounts | None:
    """What joining the copies in a pool came to; None where none were looked for, or nothing is paired yet."""
    if not is_file(run_dir / layout.DUPLICATES):
        return None
    copies = read_duplicates(run_dir).values()
    groups = Counter(copy.group for copy in copies)
    return DuplicateCounts(
        recordings=len(copies),
        groups=len(groups),
        largest=max(groups.values(), default=0),
        left_out=sum(copy.left_out for copy in copies),
    )


class ClipSamples:
    """Reads one clip's samples at a time, through memory-mapped files."""

    def __init__(self, run_dir: Place) -> None:
        self._run_dir = run_dir
        tables = list(read_tables(run_dir / layout.CLIPS, ["clip"]))
        self._units = [unit for unit, _ in tables]
        self._place = {
            clip: (number, row)
            for number, (_, table) in enumerate(tables)
            for row, clip in enumerate(table["clip"].to_pylist())
        }
        self._open = lru_cache(OPEN_FILES)(self._map)

    def _map(self, unit: str) -> np.ndarray:
        return load_array(on_this_machine(self._run_dir / layout.audio(unit)))

    def __getitem__(self, clip: str) -> np.ndarray:
        """The (S,) int16 samples of a clip."""
        if clip not in self._place:
            raise WorkError(f"{self._run_dir}: the pool holds no clip {clip!r} although a pair uses it")
        number, row = self._place[clip]
        return self._open(self._units[number])[row]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipText:
    """What the pool says of a clip."""

    label: str
    recording: str


class ClipTexts:
    """Looks up what the pool says of clips; a large pool is held as three columns, not as objects."""

    def __init__(self, run_dir: Place) -> None:
        self._run_dir = run_dir
        self._table = clip_columns(run_dir, ["clip", "text", "recording"])

    def __call__(self, clips: Collection[str]) -> Mapping[str, ClipText]:
        """Find clips."""
        wanted = sorted(set(clips))
        rows = pc.index_in(pa.array(wanted, pa.string()), self._table["clip"])  # pyright: ignore[reportAttributeAccessIssue]
        for clip, row in zip(wanted, rows.to_pylist(), strict=True):
            if row is None:
                raise WorkError(f"{self._run_dir}: the pool holds no clip {clip!r} although a shard uses it")
        found = self._table.take(rows).to_pylist()
        return {row["clip"]: ClipText(label=row["text"], recording=row["recording"]) for row in found}
