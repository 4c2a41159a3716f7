"""A published dataset in a run: its scenes in the place of concepts, and of pairs that are drawn.

Each row is checked, and whether its image is here. Scenes are heard with the clips of the pool that is here; where one
is lost, another is drawn.
"""

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

from sonify import layout
from sonify.config import Config, FolderImages, Images
from sonify.dataset.format import PublishedPair
from sonify.dataset.read import read_image_uris, read_pairs
from sonify.dataset.render_from import PublishedFolder, published_folder
from sonify.engine.job import Job
from sonify.errors import InputError
from sonify.io.places import check_mounted, child, is_file, read_ahead
from sonify.io.tables import read_rows
from sonify.keys import escape_key
from sonify.media.mixing import gain_to_target_db
from sonify.pool import ClipSamples
from sonify.retrieval.candidates import Missed, Ranking, SplitPool
from sonify.retrieval.encoders import query_of
from sonify.retrieval.kinds import Query
from sonify.rows import Concept, ImageRef, Pair, Reason, Rejected, SourceClip
from sonify.sources.images import images_in
from sonify.sources.userfiles import exclusion_names, read_exclusions
from sonify.stages.copies import Copy, CopyState, check_copies, read_copies
from sonify.stages.duplicates import join_duplicates
from sonify.stages.pair import ScenesSink, all_or_rejected, draw_source, joined, pool_of
from sonify.stages.scene import heard_again

# Of a lost source, what holds for the one in its place as well.
KEPT = ("target_lufs", "onsets_sec", "active_start_sec", "active_sec", "role", "snr_db")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScene(Pair):
    """A published pair, whether its image is here, and what its mix is to be (`RUN/concepts/published/`)."""

    present: bool
    mix_sha256: str


@dataclass(frozen=True, slots=True)
class PublishedImage:
    """All scenes of one image."""

    scenes: tuple[PublishedScene, ...]

    @property
    def key(self) -> str:
        """The image."""
        return self.scenes[0].image


def published_job(config: Config) -> Job:
    """The stage that reads published scenes. Accounting counts (image, scene); none is rejected."""
    folder = published_folder(config)
    return Job(
        read=lambda unit: _read_published(config, folder, unit),
        process=lambda images: [image.scenes for image in images],
        open_sink=lambda unit, transaction, _rejects: ScenesSink(
            transaction.create(layout.concepts(layout.PUBLISHED, unit)), PublishedScene
        ),
        batch_rows=images_at_once(config.scenes),
        scenes=config.scenes,
    )


def _read_published(config: Config, folder: PublishedFolder, unit: str) -> Iterator[PublishedImage]:
    """The images of a published unit, in the order of keys."""
    rows = read_pairs(folder, unit, config.scenes)
    for pairs, present in _with_presence(config, unit, rows):
        yield PublishedImage(tuple(_scene(pair, present) for pair in pairs))


def _scene(pair: PublishedPair, present: bool) -> PublishedScene:
    return PublishedScene(**_as_paired(pair), mix_sha256=pair.mix_sha256, present=present)


def _as_paired(scene: PublishedPair | PublishedScene) -> dict[str, Any]:
    """The values of the pair that a row was."""
    return {field.name: getattr(scene, field.name) for field in fields(Pair)}


def images_at_once(scenes: Sequence[str]) -> int:
    """How many images are in work at a time: a folder decides on its scenes, and not on what they take."""
    return max(1, min(512, 4096 // len(scenes)))


def _with_presence(
    config: Config, unit: str, rows: Iterator[tuple[PublishedPair, ...]]
) -> Iterator[tuple[tuple[PublishedPair, ...], bool]]:
    """The images of a unit and whether each is here, from names and headers only."""
    images = config.images
    if isinstance(images, FolderImages):
        yield from read_ahead(lambda pairs: (pairs, _is_here(images, pairs[0].image_uri)), rows)
        return
    refs = read_rows(config.run_dir / layout.listing("concepts", unit), ImageRef)
    keys = _keys_of(images, refs)
    yield from ((pairs, escape_key(pairs[0].image_uri) in keys) for pairs in rows)


def _is_here(images: FolderImages, uri: str) -> bool:
    here = is_file(child(images.path, uri))
    if not here:  # or is everything gone, which says nothing about this image?
        check_mounted(images.path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    return here


def _keys_of(images: Images, refs: Iterable[ImageRef]) -> Collection[str]:
    keys: set[str] = set()
    for ref in refs:
        try:
            keys.update(image.key for image in images_in(images, ref))
        except FileNotFoundError as error:
            check_mounted(images.path, error)  # or is everything gone, and not this archive?
    return keys


def refs_of(config: Config, folder: PublishedFolder, unit: str) -> list[ImageRef]:
    """The listing of a unit of a verified folder: its images, or the archives that they are in."""
    suffix = {"folder": "", "parquet": ".parquet"}.get(config.images.kind, ".tar")
    uris = read_image_uris(folder, unit)
    names = dict.fromkeys(_container_of(uri, suffix) if suffix else uri for uri in uris)
    if "" in names:
        raise InputError(f"{folder.place}: unit {unit}: an image that is in no {suffix} file, as images.kind says")
    return [ImageRef(uri=name, caption=b"", below=0) for name in names]


def _container_of(uri: str, suffix: str) -> str:
    """The archive or table that an image is in: up to the first part that ends like one; empty where none does."""
    parts = uri.split("/")
    ends = (n + 1 for n, part in enumerate(parts[:-1]) if part.lower().endswith(suffix))
    return "/".join(parts[: next(ends, 0)])


def adopt_job(config: Config) -> Job:
    """The pairing stage of a published dataset. Accounting counts (image, scene)."""
    assert config.published is not None
    pool = pool_of(config) if config.published.missing == "repair" else {}
    copies = {copy.clip: copy for copy in read_copies(config)}
    return Job(
        read=lambda unit: _read_scenes(config, unit),
        process=AdoptStage(config, copies, pool),
        open_sink=lambda unit, transaction, _rejects: ScenesSink(transaction.create(layout.pairs(unit)), Pair),
        batch_rows=images_at_once(config.scenes),
        scenes=config.scenes,
    )


def check_adoption(config: Config) -> None:
    """Before anything is rendered, say what is missing; find the copies in a pool that is drawn from."""
    check_copies(config)
    assert config.published is not None
    if config.published.missing == "repair" and joined(config.audio):
        join_duplicates(config.run_dir)


def _read_scenes(config: Config, unit: str) -> Iterator[PublishedImage]:
    """The images of a unit, in the order of keys."""
    rows = read_rows(config.run_dir / layout.concepts(layout.PUBLISHED, unit), PublishedScene)
    for _, scenes in groupby(rows, key=attrgetter("image")):
        yield PublishedImage(tuple(scenes))


class AdoptStage:
    """Puts the pool's clips in the place of the published ones.

    `pool` is empty where lost clips are not replaced: their images are rejected.
    """

    def __init__(self, config: Config, copies: Mapping[str, Copy], pool: Mapping[str, SplitPool]) -> None:
        self._config = config
        self._copies = copies
        self._pool = pool
        self._row_of_clip = {split: {clip: row for row, clip in enumerate(part.clips)} for split, part in pool.items()}
        self._excluded = read_exclusions(config.images.exclude)
        self._samples = ClipSamples(config.run_dir)

    def __call__(self, rows: Sequence[PublishedImage]) -> list[tuple[Pair, ...] | Rejected]:
        planned = [self._refuse(row) or row for row in rows]
        left = [plan for plan in planned if isinstance(plan, PublishedImage)]
        rankings = {split: self._rank(split, left) for split in self._pool}
        return [plan if isinstance(plan, Rejected) else self._adopt(plan, rankings) for plan in planned]

    def _refuse(self, row: PublishedImage) -> Rejected | None:
        first = row.scenes[0]
        if self._excluded & exclusion_names(first.image, first.image_uri, first.image_sha256):
            return Rejected(key=row.key, reason=Reason.EXCLUDED)
        return None if first.present else Rejected(key=row.key, reason=Reason.MISSING, detail="the image is not here")

    def _rank(self, split: str, images: Sequence[PublishedImage]) -> dict[Query, Ranking]:
        """Search a split once for the distinct queries of the batch's lost clips."""
        scenes = (scene for image in images for scene in image.scenes if scene.split == split)
        queries = {self._query(source) for scene in scenes for source in scene.sources if not self._is_here(source)}
        return self._pool[split].rank(queries)

    def _query(self, source: SourceClip) -> Query:
        return query_of(_concept(source), self._config.retrieval.query)

    def _is_here(self, source: SourceClip) -> bool:
        return self._copies[source.clip].found

    def _adopt(
        self, image: PublishedImage, rankings: Mapping[str, Mapping[Query, Ranking]]
    ) -> tuple[Pair, ...] | Rejected:
        results = [self._adopt_scene(scene, rankings.get(scene.split, {})) for scene in image.scenes]
        return all_or_rejected(results)

    def _adopt_scene(self, scene: PublishedScene, rankings: Mapping[Query, Ranking]) -> Pair | Rejected:
        kept = {n: self._keep(source) for n, source in enumerate(scene.sources) if self._is_here(source)}
        used = self._recordings(scene.split, kept.values())
        for n, source in enumerate(scene.sources):
            if n in kept:
                continue
            if not self._pool:
                detail = f"{source.clip}: {self._copies[source.clip].state}"
                return Rejected(key=scene.image, reason=Reason.MISSING, scene=scene.scene, detail=detail)
            drawn = self._draw(scene, source, rankings, used)
            if drawn is None:
                return Rejected(key=scene.image, reason=Reason.NO_MATCH, scene=scene.scene, detail=source.concept)
            kept[n] = drawn
        return replace(Pair(**_as_paired(scene)), sources=tuple(source for _, source in sorted(kept.items())))

    def _keep(self, source: SourceClip) -> SourceClip:
        """The source with the pool's own clip: as it was published, or brought to the same loudness."""
        copy = self._copies[source.clip]
        if copy.state is CopyState.EXACT:
            return replace(source, clip=copy.local)
        return self._hear(replace(source, clip=copy.local, copy="equivalent"), copy.local_lufs)

    def _hear(self, source: SourceClip, loudness_lufs: float) -> SourceClip:
        """The source with a clip that is not the published one, as loud and at the same times as that was to be."""
        if source.onsets_sec:
            samples, rate = self._samples[source.clip], self._config.audio.sample_rate
            source, loudness_lufs = heard_again(source, samples, loudness_lufs, rate)
        gain_db = gain_to_target_db(loudness_lufs, source.target_lufs, self._config.mix.max_gain_db)
        return replace(source, gain_db=gain_db)

    def _recordings(self, split: str, sources: Iterable[SourceClip]) -> set[int]:
        """The recordings of clips that stay; only the split that is drawn from matters."""
        rows = self._row_of_clip.get(split, {})
        found = (rows[source.clip] for source in sources if source.clip in rows)
        return {int(self._pool[split].recordings[row]) for row in found}

    def _draw(
        self, scene: PublishedScene, source: SourceClip, rankings: Mapping[Query, Ranking], used: set[int]
    ) -> SourceClip | None:
        """Another clip for a lost one, by the rule of pairing, as loud as the lost one was to be."""
        pool = self._pool.get(scene.split)
        if pool is None:
            return None
        purpose = (scene.image, scene.scene)
        drawn = draw_source(pool, rankings[self._query(source)], used, _concept(source), self._config, purpose)
        if isinstance(drawn, Missed):
            return None
        loudness_lufs = float(pool.loudness_lufs[self._row_of_clip[scene.split][drawn.clip]])
        lost = {name: getattr(source, name) for name in KEPT}
        return self._hear(replace(drawn, **lost, copy="repaired"), loudness_lufs)


def _concept(source: SourceClip) -> Concept:
    return Concept(concept=source.concept, description=source.description)
