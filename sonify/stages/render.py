"""Pairs to WebDataset shards: a pure function of (pairs, images, pool)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby

import numpy as np

from sonify import layout
from sonify.config import Config
from sonify.engine.job import Job
from sonify.io.commits import canonical_json
from sonify.io.tables import TableWriter, read_rows
from sonify.io.tars import TarWriter
from sonify.io.write import Transaction
from sonify.keys import member_name
from sonify.media.audio import encode_flac
from sonify.media.events import cut_active, lay_out
from sonify.media.mixing import MixedSound, mix_clips, pcm_sha256
from sonify.media.pixels import UnreadableImage, to_jpeg
from sonify.pool import ClipSamples
from sonify.rows import Pair, Reason, Rejected, Render, SourceClip, SourceImage
from sonify.sources.images import join_images, listed_images

# What a sample's JSON says of a source: its evidence is in `pairs/`. Readers infer types from the first samples and
# bend the rest, so these fields stay.
HEARD = (
    "concept", "description", "clip", "cosine", "score", "threshold", "num_candidates", "target_lufs", "gain_db",
    "copy",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSource:
    """An image as it was found, with its scenes."""

    key: str
    image: SourceImage
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A finished sample: member names and bytes, sorted, and what rendering did."""

    split: str
    members: tuple[tuple[str, bytes], ...]
    renders: tuple[Render, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """What is written of a scene: `min_side` is the image's shorter side in pixels, None leaves images as they are.

    `peak_dbfs` of None lowers no mix.
    """

    min_side: int | None
    peak_dbfs: float | None
    sample_rate_hz: int


def render_job(config: Config) -> Job:
    """Pairs to shards. Accounting counts (image, scene)."""
    return Job(
        read=lambda unit: read_paired_sources(config, unit),
        process=RenderStage(rendering_of(config), ClipSamples(config.run_dir)),
        open_sink=lambda unit, transaction, _rejects: ShardSink(transaction, unit),
        batch_rows=8,
        scenes=config.scenes,
    )


def rendering_of(config: Config) -> Rendering:
    """What a run writes of its scenes."""
    return Rendering(
        min_side=None if config.render.image == "original" else config.render.image,
        peak_dbfs=config.mix.peak_dbfs,
        sample_rate_hz=config.audio.sample_rate,
    )


def read_paired_sources(config: Config, unit: str) -> Iterator[PairedSource | Rejected]:
    """Bring a unit's pairs and its images together; both are in the order of keys."""
    rows = read_rows(config.run_dir / layout.pairs(unit), Pair)
    wanted = {key: tuple(pairs) for key, pairs in groupby(rows, key=lambda pair: pair.image)}
    refs = listed_images(config.run_dir, unit)
    for found in join_images(config.images, refs, config.seed, wanted):
        if isinstance(found, Rejected):
            yield found
        else:
            image, pairs = found
            yield PairedSource(key=pairs[0].image, image=image, pairs=pairs)


class RenderStage:
    """Mixes the scenes of images and packs them into samples."""

    def __init__(self, rendering: Rendering, clips: ClipSamples) -> None:
        self._rendering = rendering
        self._clips = clips

    def __call__(self, rows: Sequence[PairedSource]) -> list[Sample | Rejected]:
        return [self._render(row) for row in rows]

    def _render(self, row: PairedSource) -> Sample | Rejected:
        if sha256(row.image.data).hexdigest() != row.pairs[0].image_sha256:
            return Rejected(key=row.key, reason=Reason.CHANGED, detail="another sha256 than when it was paired")
        try:
            jpeg = to_jpeg(row.image.data, self._rendering.min_side)
        except UnreadableImage as error:
            return Rejected(key=row.key, reason=error.reason, detail=error.detail)
        scenes = [self._mix(pair) for pair in row.pairs]
        renders = tuple(render for render, _ in scenes)
        sounds = [(member_name(row.key, f"{render.scene}.flac"), flac) for render, flac in scenes]
        record = (member_name(row.key, "json"), sample_json(row.pairs, renders))
        members = tuple(sorted([*sounds, (member_name(row.key, "jpg"), jpeg), record]))
        return Sample(split=row.pairs[0].split, members=members, renders=renders)

    def _mix(self, pair: Pair) -> tuple[Render, bytes]:
        mix = mix_sources(pair.sources, self._clips, self._rendering)
        render = Render(
            image=pair.image,
            scene=pair.scene,
            mix_gain_db=mix.mix_gain_db,
            peak_dbfs=mix.peak_dbfs,
            mix_sha256=pcm_sha256(mix.samples),
        )
        return render, encode_flac(mix.samples, self._rendering.sample_rate_hz)


def mix_sources(sources: Sequence[SourceClip], clips: ClipSamples, rendering: Rendering) -> MixedSound:
    """The sound of a scene, of what was drawn for it."""
    heard = [_hear(source, clips[source.clip], rendering.sample_rate_hz) for source in sources]
    return mix_clips(heard, [source.gain_db for source in sources], rendering.peak_dbfs)


def _hear(source: SourceClip, samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """A scene's samples of one source before its gain: its whole clip, or a part of it at each onset."""
    if not source.onsets_sec:
        return samples
    part = cut_active(samples, source.active_start_sec, source.active_sec, rate_hz)
    return lay_out(part, source.onsets_sec, len(samples), rate_hz)


def sample_json(pairs: tuple[Pair, ...], renders: tuple[Render, ...]) -> bytes:
    """The sample's record: the same fields in every sample, nothing null, no list empty, floats with a point.

    `width` and `height` are the original image's, as its `image_sha256` is.

    Hugging Face infers the types of a dataset from its first samples and bends the others to them.
    """
    first = pairs[0]
    scenes = [
        {
            "scene": pair.scene,
            "caption": pair.caption,
            "mix_gain_db": float(render.mix_gain_db),
            "peak_dbfs": float(render.peak_dbfs),
            "mix_sha256": render.mix_sha256,
            "sources": [{name: getattr(source, name) for name in HEARD} for source in pair.sources],
        }
        for pair, render in zip(pairs, renders, strict=True)
    ]
    record = {
        "key": first.image,
        "image_uri": first.image_uri,
        "image_sha256": first.image_sha256,
        "width": first.width,
        "height": first.height,
        "split": first.split,
        "scenes": scenes,
    }
    return canonical_json(record).encode()


class ShardSink:
    """Writes the samples of a unit: an archive for each split that has any, and the table of renders."""

    def __init__(self, transaction: Transaction, unit: str) -> None:
        self._transaction = transaction
        self._unit = unit
        self._table = TableWriter(transaction.create(layout.renders(unit)), Render)
        self._archives: dict[str, TarWriter] = {}

    def write(self, row: Sample) -> None:
        """Add one sample."""
        if row.split not in self._archives:
            file = self._transaction.create(layout.shard(row.split, self._unit))
            self._archives[row.split] = TarWriter(file)
        for name, data in row.members:
            self._archives[row.split].add(name, data)
        for render in row.renders:
            self._table.write(render)

    def close(self) -> None:
        """Finish table and archives."""
        self._table.close()
        for archive in self._archives.values():
            archive.close()
