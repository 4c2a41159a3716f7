"""Training samples off the disk: each checked against its index, and decoded by an allow-list.

C H W  channels, height and width of the latents; T D  times and width of a feature vector.
"""

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sonify.errors import WorkError
from sonify.io.tables import read_columns
from sonify.io.tars import BLOCK, index_members
from sonify.io.write import FileRecord
from sonify.rows import FeatureEntry

RECORD = "json"
LATENT = re.compile(r"latent(_flip)?(_std)?\.npy")
# What numpy writes for a float16 array of two to four dimensions; its own reader evaluates the header as Python.
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '<f2', 'fortran_order': False, 'shape': \((\d{1,9}(?:, \d{1,9}){1,3})\), } *\n",
    re.DOTALL,
)
AUDIO = re.compile(r"([A-Za-z0-9_-]+)\.audio\.npy")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """What lies in an archive under one key. `members` have the key's part of their names taken off."""

    key: str
    archive: Path
    members: Mapping[str, bytes]

    @property
    def scenes(self) -> tuple[str, ...]:
        """The scenes whose audio features are there, sorted."""
        return tuple(sorted(match[1] for name in self.members if (match := AUDIO.fullmatch(name))))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of an array.

        Raises:
            WorkError: the member is missing, or no float16 array.
        """
        return self._open(name).shape

    def decode(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array as float32: `latent.npy` and its like (C, H, W), `<scene>.audio.npy` (T, D).

        Raises:
            WorkError: it is missing, no float16 array of that shape, or not finite.
        """
        half = self._open(name)
        if half.shape != shape:
            raise self.damage(f"{name} has the shape {half.shape}, expected {shape}")
        array = torch.from_numpy(half.copy()).float().numpy()  # twenty times as fast as numpy's own conversion
        if not np.isfinite(array).all():
            raise self.damage(
                f"{name} holds values that are not finite; make the features again with features.dtype=float32, or name"
                " the image in images.exclude"
            )
        return array

    def record(self) -> dict[str, Any]:
        """What the sample's JSON says: captions, and the sources of its scenes.

        Raises:
            WorkError: it is missing, or no JSON of this sample.
        """
        try:
            record = json.loads(self.members[RECORD])
        except (KeyError, ValueError, RecursionError) as error:
            raise self.damage(f"{RECORD} is missing or not JSON") from error
        if not isinstance(record, dict) or record.get("key") != self.key:
            raise self.damage(f"{RECORD} is not this sample's record")
        return record

    def damage(self, what: str) -> WorkError:
        """An error that names archive and sample."""
        return WorkError(f"{self.archive}: sample {self.key}: {what}")

    def _open(self, name: str) -> np.ndarray:
        """An array as it lies in the member: nothing is allocated or evaluated because a header says so."""
        if name not in self.members:
            raise self.damage(f"{name} is missing")
        data = self.members[name]
        header = NPY_HEADER.match(data)
        shape = tuple(int(side) for side in header[1].split(b",")) if header else ()
        if not header or len(data) - header.end() != 2 * math.prod(shape):
            raise self.damage(f"{name} is not a float16 array file as numpy writes it, or was cut short")
        return np.frombuffer(data, np.float16, offset=header.end()).reshape(shape)


def remedy(run_dir: Path) -> str:
    """What to do where a run's features are damaged."""
    return f"`sonify verify {run_dir} --repair` withdraws it, and `sonify features` makes it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A committed archive of training samples, and its index."""

    run_dir: Path
    archive: FileRecord
    index: FileRecord
    num_samples: int

    def read_index(self) -> pa.Table:
        """Where its samples lie.

        Raises:
            WorkError: the index is missing or damaged.
        """
        return read_columns(self.run_dir / self.index.path, [field.name for field in fields(FeatureEntry)])

    def read(self, index: pa.Table, row: int) -> TrainingSample:
        """One sample: its bytes at once, and nothing but the members that training samples have.

        Raises:
            WorkError: the bytes are not those that were committed, or hold something foreign.
        """
        values = index.slice(row, 1).to_pylist()[0]
        entry = FeatureEntry(**(values | {"recordings": tuple(values["recordings"])}))
        return _read_sample(self.run_dir / self.archive.path, entry, remedy(self.run_dir))


def _read_sample(archive: Path, entry: FeatureEntry, what_to_do: str) -> TrainingSample:
    sample = TrainingSample(key=entry.key, archive=archive, members={})
    try:
        with archive.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), entry.size_bytes, entry.offset)
    except OSError as error:
        raise sample.damage(f"cannot be read ({error.strerror}); {what_to_do}") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise sample.damage(f"its bytes are not those that were committed; {what_to_do}")
    members, rejected = index_members(io.BytesIO(data + bytes(2 * BLOCK)), "sample")
    if rejected:
        raise sample.damage(f"is not a whole part of an archive ({rejected[0].reason}: {rejected[0].detail})")
    named: dict[str, bytes] = {}
    for member in members:
        name = member.name.removeprefix(f"{entry.key}.")
        if name == member.name or not (name == RECORD or LATENT.fullmatch(name) or AUDIO.fullmatch(name)):
            raise sample.damage(f"{member.name} is no member of a training sample; it was not opened")
        named[name] = data[member.offset : member.offset + member.size_bytes]
    return TrainingSample(key=entry.key, archive=archive, members=named)
