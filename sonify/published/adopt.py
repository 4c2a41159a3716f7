"""Published scenes to pairs: heard with the clips of the pool that is here, and drawn again where a clip is lost."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from sonify import layout
from sonify.config import Config
from sonify.engine.job import Job
from sonify.io.tables import read_rows
from sonify.mixing import gain_to_target_db
from sonify.published.copies import Copy, State, read_copies
from sonify.published.scenes import PublishedImage, PublishedScene, images_at_once, pair_of
from sonify.retrieval.encoders import query_text
from sonify.retrieval.index import Ranking
from sonify.retrieval.pool import SplitPool, load_pool
from sonify.rows import Concept, Pair, Reason, Rejected, SourceClip
from sonify.sources.userfiles import exclusion_names, read_exclusions
from sonify.stages.pair import THREADS, PairedImage, PairSink, draw_source


def load(config: Config) -> Job:
    """The pairing stage of a published dataset. Accounting counts (image, scene)."""
    assert config.published is not None
    pool = load_pool(config, THREADS) if config.published.missing == "repair" else {}
    copies = {copy.clip: copy for copy in read_copies(config)}
    return Job(
        read=lambda unit: read_scenes(config, unit),
        process=AdoptStage(config, copies, pool),
        open_sink=lambda unit, transaction, _rejects: PairSink(transaction, unit),
        batch_rows=images_at_once(config.scenes),
        scenes=config.scenes,
    )


def read_scenes(config: Config, unit: str) -> Iterator[PublishedImage]:
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

    def __call__(self, rows: Sequence[PublishedImage]) -> list[PairedImage | Rejected]:
        planned = [self._refuse(row) or row for row in rows]
        left = [plan for plan in planned if isinstance(plan, PublishedImage)]
        rankings = {split: self._rank(split, left) for split in self._pool}
        return [plan if isinstance(plan, Rejected) else self._adopt(plan, rankings) for plan in planned]

    def _refuse(self, row: PublishedImage) -> Rejected | None:
        first = row.scenes[0]
        if self._excluded & exclusion_names(first.image, first.image_uri, first.image_sha256):
            return Rejected(key=row.key, reason=Reason.EXCLUDED)
        return None if first.present else Rejected(key=row.key, reason=Reason.MISSING, detail="the image is not here")

    def _rank(self, split: str, images: Sequence[PublishedImage]) -> dict[str, Ranking]:
        """Search a split once for the distinct texts of the batch's lost clips."""
        scenes = (scene for image in images for scene in image.scenes if scene.split == split)
        texts = {self._text(source) for scene in scenes for source in scene.sources if not self._is_here(source)}
        return self._pool[split].rank(sorted(texts))

    def _text(self, source: SourceClip) -> str:
        return query_text(_concept(source), self._config.retrieval.query)

    def _is_here(self, source: SourceClip) -> bool:
        return self._copies[source.clip].found

    def _adopt(self, image: PublishedImage, rankings: Mapping[str, Mapping[str, Ranking]]) -> PairedImage | Rejected:
        results = [self._adopt_scene(scene, rankings.get(scene.split, {})) for scene in image.scenes]
        rejected = next((result for result in results if isinstance(result, Rejected)), None)
        return rejected or PairedImage(tuple(result for result in results if isinstance(result, Pair)))

    def _adopt_scene(self, scene: PublishedScene, rankings: Mapping[str, Ranking]) -> Pair | Rejected:
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
        return replace(pair_of(scene), sources=tuple(source for _, source in sorted(kept.items())))

    def _keep(self, source: SourceClip) -> SourceClip:
        """The source with the pool's own clip: as it was published, or brought to the same loudness."""
        copy = self._copies[source.clip]
        if copy.state is State.EXACT:
            return replace(source, clip=copy.local)
        gain_db = gain_to_target_db(copy.local_lufs, source.target_lufs, self._config.mix.max_gain_db)
        return replace(source, clip=copy.local, gain_db=gain_db, copy="equivalent")

    def _recordings(self, split: str, sources: Iterable[SourceClip]) -> set[int]:
        """The recordings of clips that stay; only the split that is drawn from matters."""
        rows = self._row_of_clip.get(split, {})
        found = (rows[source.clip] for source in sources if source.clip in rows)
        return {int(self._pool[split].recordings[row]) for row in found}

    def _draw(
        self, scene: PublishedScene, source: SourceClip, rankings: Mapping[str, Ranking], used: set[int]
    ) -> SourceClip | None:
        """Another clip for a lost one, by the rule of pairing, as loud as the lost one was to be."""
        pool = self._pool.get(scene.split)
        if pool is None:
            return None
        purpose = (scene.image, scene.scene)
        drawn = draw_source(pool, rankings[self._text(source)], used, _concept(source), self._config, purpose)
        if drawn is None:
            return None
        loudness_lufs = float(pool.loudness_lufs[self._row_of_clip[scene.split][drawn.clip]])
        gain_db = gain_to_target_db(loudness_lufs, source.target_lufs, self._config.mix.max_gain_db)
        return replace(drawn, target_lufs=source.target_lufs, gain_db=gain_db, copy="repaired")


def _concept(source: SourceClip) -> Concept:
    return Concept(concept=source.concept, description=source.description)
