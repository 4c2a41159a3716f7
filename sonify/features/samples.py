"""Training samples: which members one has, how one is made, and how a unit's archives and indexes are written.

<key>.latent.npy           (C, H, W) float16: the posterior's mean, unscaled
<key>.latent_std.npy       its standard deviation, where `features.std`
<key>.latent_flip.npy      the mean of the mirrored image, where `features.flip` (and `latent_flip_std.npy`)
<key>.<scene>.audio.npy    (T, D) float16
<key>.json                 captions, concepts, labels, clips and recordings of its scenes
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from sonify import layout
from sonify.io.commits import canonical_json
from sonify.io.tables import TableWriter
from sonify.io.tars import TarWriter
from sonify.io.write import Transaction
from sonify.keys import member_name
from sonify.pool import ClipText
from sonify.rows import FeatureEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSample:
    """A finished training sample: member names and bytes, sorted; `recordings` are sorted too."""

    key: str
    split: str
    members: tuple[tuple[str, bytes], ...]
    recordings: tuple[str, ...]


def sources_of(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The sources of all scenes of a sample."""
    return (source for scene in record["scenes"] for source in scene["sources"])


def make_sample(
    record: Mapping[str, Any], latents: Mapping[str, np.ndarray], heard: np.ndarray, texts: Mapping[str, ClipText]
) -> FeatureSample:
    """Put a training sample together.

    Args:
        record: the JSON of the image's sample in its shard.
        latents: arrays by name.
        heard: (scenes, T, D) audio features, in the record's order.
        texts: what the pool says of the clips.
    """
    key = record["key"]
    arrays = {member_name(key, f"{name}.npy"): array for name, array in latents.items()}
    arrays |= {
        member_name(key, f"{scene['scene']}.audio.npy"): array
        for scene, array in zip(record["scenes"], heard, strict=True)
    }
    members = [(name, encode_npy(array)) for name, array in arrays.items()]
    members.append((member_name(key, "json"), canonical_json(_training_record(record, texts)).encode()))
    return FeatureSample(
        key=key,
        split=record["split"],
        members=tuple(sorted(members)),
        recordings=tuple(sorted({texts[source["clip"]].recording for source in sources_of(record)})),
    )


def _training_record(record: Mapping[str, Any], texts: Mapping[str, ClipText]) -> dict[str, Any]:
    """What training and evaluation need to know of a sample: the same fields in every sample."""

    def source_of(source: Mapping[str, Any]) -> dict[str, str]:
        heard = texts[source["clip"]]
        said = {name: source[name] for name in ("concept", "description", "clip")}
        return said | {"label": heard.label, "recording": heard.recording}

    scenes = [
        {
            "scene": scene["scene"],
            "caption": scene["caption"],
            "sources": [source_of(source) for source in scene["sources"]],
        }
        for scene in record["scenes"]
    ]
    return {name: record[name] for name in ("key", "split", "image_uri")} | {"scenes": scenes}


def encode_npy(array: np.ndarray) -> bytes:
    """An array as a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class FeatureSink:
    """Writes the training samples of a unit: for each split that has any, an archive and its index."""

    def __init__(self, transaction: Transaction, unit: str) -> None:
        self._transaction = transaction
        self._unit = unit
        self._splits: dict[str, _Split] = {}

    def write(self, row: FeatureSample) -> None:
        """Add one sample."""
        if row.split not in self._splits:
            self._splits[row.split] = _Split(
                self._transaction.create(layout.features(row.split, self._unit)),
                self._transaction.create(layout.feature_index(row.split, self._unit)),
            )
        self._splits[row.split].add(row)

    def close(self) -> None:
        """Finish archives and indexes."""
        for split in self._splits.values():
            split.close()


class _Split:
    def __init__(self, archive: BinaryIO, index: BinaryIO) -> None:
        self._file = archive
        self._archive = TarWriter(archive)
        self._index = TableWriter(index, FeatureEntry)

    def add(self, row: FeatureSample) -> None:
        start = self._archive.tell()
        for name, data in row.members:
            self._archive.add(name, data)
        size_bytes = self._archive.tell() - start
        self._file.seek(start)
        sha256 = hashlib.sha256(self._file.read(size_bytes)).hexdigest()
        entry = FeatureEntry(key=row.key, offset=start, size_bytes=size_bytes, sha256=sha256, recordings=row.recordings)
        self._index.write(entry)

    def close(self) -> None:
        self._archive.close()
        self._index.close()
