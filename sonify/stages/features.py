"""Shards to training shards: latents of the images, audio features of the scenes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from sonify import layout
from sonify.config import Features
from sonify.config.models import AST_SAMPLE_RATE_HZ
from sonify.engine.job import Job
from sonify.errors import InputError, require
from sonify.features.samples import FeatureSample, FeatureSink, make_sample, sources_of
from sonify.io.commits import open_committed, read_commit
from sonify.io.tars import index_members, read_member
from sonify.io.write import FileRecord
from sonify.keys import split_member
from sonify.media.audio import decode_flac
from sonify.media.pixels import decode_square
from sonify.models.fetch import EAR_FILES, VAE_FILES, fetch_model, named
from sonify.pool import ClipTexts
from sonify.stores import Place

if TYPE_CHECKING:
    from sonify.features.batches import FeatureNetworks


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """A sample as it lies in a shard: the image's bytes, the record, and a FLAC for each of its scenes."""

    key: str
    image: bytes
    sounds: tuple[bytes, ...]
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The (H, W, 3) uint8 square of an image, and the (S,) int16 sounds of its scenes."""

    pixels: np.ndarray
    sounds: tuple[np.ndarray, ...]


Decoding = Sequence[tuple[StoredSample, Future[Decoded]]]


def fetch_features(settings: Features) -> dict[str, str]:
    """Get both networks here; their names and what exactly they are."""
    require("torch", "transformers", "diffusers")
    ear, heard_by, ear_revision = settings.ear
    fetched: dict[str, str] = {}
    lacking: list[str] = []
    for key, model, revision, files in (
        ("vae", settings.vae, settings.vae_revision, VAE_FILES),
        (ear, heard_by, ear_revision, EAR_FILES[ear]),
    ):
        try:
            fetched[named(model, revision)] = fetch_model(model, revision, files).identity
        except InputError as error:
            lacking.append(f"features.{key}: {error}")
    if lacking:
        raise InputError("; ".join(lacking))
    return fetched


def features_job(run_dir: Place, settings: Features, scenes: tuple[str, ...], render_digest: str) -> Job:
    """The stage of training features. Accounting counts (image, scene)."""
    from sonify.features.batches import FeatureNetworks  # noqa: PLC0415 - torch takes seconds to import

    stage = FeatureStage(FeatureNetworks(settings), ClipTexts(run_dir), settings)
    return Job(
        read=ShardReader(run_dir, render_digest),
        begin=stage.begin,
        process=stage,
        open_sink=lambda unit, transaction, _rejects: FeatureSink(transaction, unit),
        batch_rows=settings.batch_size,
        scenes=scenes,
        close=stage.close,
    )


class ShardReader:
    """Reads the samples of a unit's shards, once their bytes have proved to be the committed ones."""

    def __init__(self, run_dir: Place, render_digest: str) -> None:
        self._run_dir = run_dir
        self._digest = render_digest

    def __call__(self, unit: str) -> Iterator[StoredSample]:
        """Yield the samples, split by split in the order of keys.

        Raises:
            WorkError: a shard is not what was committed.
        """
        commit = read_commit(self._run_dir / layout.commit("render", self._digest, unit)).commit
        for file in commit.files:
            if file.path.startswith(f"{layout.SHARDS}/"):
                yield from self._read(file)

    def _read(self, file: FileRecord) -> Iterator[StoredSample]:
        with open_committed(self._run_dir, file) as shard:
            members, rejected = index_members(shard, file.path)
            assert not rejected, rejected
            for key, group in groupby(members, key=lambda member: split_member(member.name)[0]):
                parts = {split_member(member.name)[1]: read_member(shard, member) for member in group}
                record = json.loads(parts["json"])
                sounds = tuple(parts[f"{scene['scene']}.flac"] for scene in record["scenes"])
                yield StoredSample(key=key, image=parts["jpg"], sounds=sounds, record=record)


class FeatureStage:
    """Decodes a window ahead in threads, and encodes windows to training samples."""

    def __init__(self, networks: "FeatureNetworks", texts: ClipTexts, settings: Features) -> None:
        self._networks = networks
        self._texts = texts
        self._size = settings.size
        self._threads = ThreadPoolExecutor(settings.cpus)

    def begin(self, rows: Sequence[StoredSample]) -> Decoding:
        """Start to decode a window."""
        return [(row, self._threads.submit(self._decode, row)) for row in rows]

    def __call__(self, begun: Decoding) -> list[FeatureSample]:
        rows = [row for row, _ in begun]
        decoded = [future.result() for _, future in begun]
        latents = self._networks.look(np.stack([one.pixels for one in decoded]))
        heard = self._networks.listen(np.stack([sound for one in decoded for sound in one.sounds]))
        texts = self._texts([source["clip"] for row in rows for source in sources_of(row.record)])
        features = heard.reshape(len(rows), -1, *heard.shape[1:])  # of each image, those of its scenes
        return [
            make_sample(row.record, {name: arrays[n] for name, arrays in latents.items()}, features[n], texts)
            for n, row in enumerate(rows)
        ]

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _decode(self, row: StoredSample) -> Decoded:
        sounds = [decode_flac(data) for data in row.sounds]
        assert all(rate == AST_SAMPLE_RATE_HZ and samples.ndim == 1 for samples, rate in sounds), row.key
        return Decoded(pixels=decode_square(row.image, self._size), sounds=tuple(samples for samples, _ in sounds))
