"""Recordings that are copies of each other, found by how they sound: one upload lies in several corpora.

Each clip's hashes (`pool/duplicates/<unit>.npy`, row for row with `pool/clips`) are made unit by unit. Before anything
is paired they are compared once, and recordings that have copies go into one small table, `pool/duplicates.parquet`.
A group counts as one recording in a scene. Where it lies in both splits, its validation recordings are not drawn.
"""

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sonify import layout
from sonify.engine.job import Job, RejectTable
from sonify.io.places import for_each, load_array, stems
from sonify.io.tables import RowsFile, read_columns, write_rows
from sonify.io.write import Transaction, write_atomically
from sonify.media.likeness import DELAYS_STEPS, SOUND_BITS, near_sounds, sound_hashes
from sonify.pool import Duplicate, clip_columns
from sonify.stores import Place

log = logging.getLogger(__name__)

HASH_BYTES = len(DELAYS_STEPS) * SOUND_BITS // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSound:
    """A clip and its samples."""

    key: str
    samples: np.ndarray


def duplicates_job(run_dir: Place, sample_rate_hz: int) -> Job:
    """Clips to hashes."""

    def read(unit: str) -> Iterator[ClipSound]:
        clips = read_columns(run_dir / layout.clips(unit), ["clip"])["clip"].to_pylist()
        for clip, samples in zip(clips, load_array(run_dir / layout.audio(unit)), strict=True):
            yield ClipSound(key=clip, samples=samples)

    return Job(
        read=read,
        process=lambda rows: [sound_hashes(row.samples, sample_rate_hz) for row in rows],
        open_sink=HashSink,
        batch_rows=64,
    )


class HashSink:
    """Writes the hashes of a unit."""

    def __init__(self, unit: str, transaction: Transaction, _rejects: RejectTable) -> None:
        self._file = RowsFile(transaction.create(layout.sound_hashes(unit)), np.dtype("u1"), HASH_BYTES)

    def write(self, row: np.ndarray) -> None:
        """Add one clip's hashes."""
        self._file.write(row.reshape(-1))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def join_duplicates(run_dir: Place) -> None:
    """Compare the hashes of the whole pool and write down which recordings are copies of each other."""
    table = clip_columns(run_dir, ["recording", "split"])
    units = for_each(
        run_dir, lambda unit: load_array(run_dir / layout.sound_hashes(unit)), stems(run_dir / layout.CLIPS)
    )
    hashes = np.concatenate(list(units)).reshape(-1, len(DELAYS_STEPS), SOUND_BITS // 8)
    coded = table["recording"].combine_chunks().dictionary_encode()
    recordings = coded.indices.to_numpy()
    names: list[str] = coded.dictionary.to_pylist()
    split_of = dict(zip(recordings.tolist(), table["split"].to_pylist(), strict=True))
    pairs = recordings[near_sounds(hashes)]
    rows = [
        Duplicate(
            recording=names[number],
            group=names[group[0]],
            left_out=split_of[number] == "validation" and any(split_of[other] == "train" for other in group),
        )
        for group in groups_of(pairs[pairs[:, 0] != pairs[:, 1]], names)
        for number in group
    ]
    buffer = io.BytesIO()
    write_rows(buffer, Duplicate, sorted(rows, key=lambda row: row.recording))
    write_atomically(run_dir, layout.DUPLICATES, buffer.getvalue())
    left_out = sum(row.left_out for row in rows)
    log.info(
        "duplicates: %s recordings are copies in %s groups; %s of validation are not drawn, as training has them",
        f"{len(rows):,}", f"{len({row.group for row in rows}):,}", f"{left_out:,}",
    )  # fmt: skip


def groups_of(pairs: np.ndarray, names: Sequence[str]) -> list[list[int]]:
    """The groups that (P, 2) links make, each in the order of names."""
    leader: dict[int, int] = {}

    def find(number: int) -> int:
        while (above := leader.setdefault(number, number)) != number:
            leader[number] = number = leader[above]
        return number

    for left, right in pairs.tolist():
        first, second = find(left), find(right)
        if first != second:
            leader[max(first, second)] = min(first, second)
    groups: dict[int, list[int]] = {}
    for number in sorted(leader, key=lambda number: names[number]):
        groups.setdefault(find(number), []).append(number)
    return list(groups.values())
