"""Concepts to pairs: for each concept of each scene one recording is drawn, and how loud it is to be.

Every rule of the choice and the draw is in `sonify.retrieval.candidates`; this module brings concepts and pool
together and draws the loudness.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sonify import layout
from sonify.captions.words import find_discard_words
from sonify.config import Audio, Concepts, Config, HybridEncoder, Images, Retrieval, TextEncoder
from sonify.engine.job import Job
from sonify.errors import InputError
from sonify.io.places import stems
from sonify.io.tables import TableWriter, read_rows, read_tables
from sonify.keys import key_order, plain_key, split_of, uniform
from sonify.media.mixing import gain_to_target_db, prominence_db
from sonify.pool import clip_columns, read_duplicates
from sonify.retrieval.candidates import (
    RULES_VERSION,
    Missed,
    Ranking,
    SplitPool,
    drawable,
    list_length,
    load_pool,
)
from sonify.retrieval.encoders import load_encoder, query_of, query_text
from sonify.retrieval.kinds import KINDS_VERSION, Query, are_one_sound
from sonify.retrieval.limits import query_limit, read_calibrations
from sonify.retrieval.search import check_gpu, check_gpu_list
from sonify.rows import (
    ActedRules,
    ActedSplit,
    CheckedImage,
    Concept,
    ImageConcepts,
    Pair,
    Reason,
    Refused,
    Rejected,
    SourceClip,
)
from sonify.sources.userfiles import exclusion_names, read_exclusions
from sonify.stages.duplicates import join_duplicates
from sonify.stages.listen import tags_of_run
from sonify.stages.scene import SceneRules
from sonify.stores import Place

# One of the stage's settings: the search finds the same on any number, the limits' likeness to a bank does not.
THREADS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What one extractor heard in an image, and the check of it where there is one."""

    concepts: ImageConcepts
    check: CheckedImage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScenes:
    """What each extractor heard in one image; an extractor that heard nothing is absent."""

    key: str
    by_extractor: Mapping[str, Heard]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scene to be drawn: `heard` is None where its extractor heard nothing; `concepts` are those to draw for."""

    name: str
    heard: Heard | None
    concepts: tuple[Concept, ...]


def read_scenes(config: Config, unit: str) -> Iterator[ImageScenes]:
    """Merge the extractors' tables of a unit, all sorted by key, into one row an image.

    Of one extractor a run of before may have recorded an image of a long name under another key; the first one's stays.
    """
    tables = {extractor.name: _read_heard(config, extractor.name, unit) for extractor in config.concepts.extractors}
    heads = {name: head for name, rows in tables.items() if (head := next(rows, None))}
    while heads:
        first = min(key_order(head.concepts.image) for head in heads.values())
        heard = {name: head for name, head in heads.items() if key_order(head.concepts.image) == first}
        key = next(iter(heard.values())).concepts.image
        yield ImageScenes(key=key, by_extractor={name: _under(key, head) for name, head in heard.items()})
        for name in heard:
            following = next(tables[name], None)
            if following is None:
                del heads[name]
            else:
                heads[name] = following


def _under(key: str, heard: Heard) -> Heard:
    return heard if heard.concepts.image == key else replace(heard, concepts=replace(heard.concepts, image=key))


def _read_heard(config: Config, extractor: str, unit: str) -> Iterator[Heard]:
    """An extractor's rows with their checks; what could not be checked left there."""
    rows = read_rows(config.run_dir / layout.concepts(extractor, unit), ImageConcepts)
    if not config.concepts.check:
        yield from (Heard(concepts=row, check=None) for row in rows)
        return
    checks = read_rows(config.run_dir / layout.checks(extractor, unit), CheckedImage)
    for check in checks:  # both are in the order of keys, and each check is of one of the rows
        yield Heard(concepts=next(row for row in rows if row.image == check.image), check=check)


def scenes_of(config: Config, image: ImageScenes) -> tuple[Scene, ...]:
    """The scenes of an image under their names."""
    draws = config.retrieval.draws
    heard = [image.by_extractor.get(e.name) for e in config.concepts.extractors for _ in range(draws)]
    return tuple(
        Scene(name=name, heard=found, concepts=asked_for(found, config.concepts) if found else ())
        for name, found in zip(config.scenes, heard, strict=True)
    )


def asked_for(heard: Heard, settings: Concepts) -> tuple[Concept, ...]:
    """The concepts to draw for: what the check leaves of what sounds and is present as is wanted."""
    kept = confirmed(heard, settings.media)
    return tuple(concept for concept in kept if _not_heard(concept, settings.presence) is None)


def _not_heard(concept: Concept, presence: Collection[str]) -> Reason | None:
    """Why a concept is not to be heard by the model's own words; what it did not say speaks against nothing."""
    if concept.presence not in ("", *presence):
        return Reason.NOT_VISIBLE
    return None if concept.sounding else Reason.NOT_SOUNDING


def confirmed(heard: Heard, media: Collection[str]) -> tuple[Concept, ...]:
    """The concepts that the check leaves: all where there is none, none where the image is of another medium."""
    if heard.check is None:
        return heard.concepts.concepts
    if is_other_medium(heard.check, media):
        return ()
    denied = {verdict.concept for verdict in heard.check.concepts if not verdict.confirmed}
    return tuple(concept for concept in heard.concepts.concepts if concept.concept not in denied)


def is_other_medium(check: CheckedImage, media: Collection[str]) -> bool:
    """Whether the model said what the image is, and it is not one of `media`."""
    return check.medium not in ("", *media)


def pair_job(config: Config) -> Job:
    """Concepts to pairs. Accounting counts (image, scene)."""
    return Job(
        read=lambda unit: read_scenes(config, unit),
        process=PairStage(config, pool_of(config)),
        open_sink=lambda unit, transaction, _rejects: ScenesSink(transaction.create(layout.pairs(unit)), Pair),
        batch_rows=512,
        scenes=config.scenes,
    )


def joined(audio: Audio) -> bool:
    """Whether recordings that are copies of each other count as one."""
    return audio.duplicates == "join"


def pool_of(config: Config) -> dict[str, SplitPool]:
    """The run's pool as it is drawn from, split by split."""
    return load_pool(config.run_dir, config.retrieval, THREADS, tags_of_run(config), joined(config.audio))


def compares_names(retrieval: Retrieval) -> bool:
    """Whether kinds of sounds act: they match texts, say which names are one sound, or what confirms a concept."""
    encoder = retrieval.encoder
    matches = isinstance(encoder, TextEncoder | HybridEncoder) and encoder.matching == "kinds"
    return matches or retrieval.merge_names or retrieval.confirm is not None


def acted_rules(config: Config) -> ActedRules:
    """What the rules of the draw come to over the run's pool, split by split."""
    retrieval = config.retrieval
    table = clip_columns(config.run_dir, ["recording", "split"])
    recordings, parts = drawable(config.run_dir, table, tags_of_run(config), joined=joined(config.audio))
    splits = tuple(
        ActedSplit(
            split=split,
            clips=len(part),
            recordings=len(np.unique(recordings[part])),
            top_k=list_length(retrieval, len(part)),
            clips_per_recording=retrieval.clips_per_recording or 0,
        )
        for split, part in parts.items()
    )
    return ActedRules(version=RULES_VERSION, kinds=KINDS_VERSION if compares_names(retrieval) else 0, splits=splits)


def check_limit(retrieval: Retrieval) -> None:
    """Before anything is asked or heard for it, see that a calibration can be read and has a limit for the risk.

    Whether it is of a CLAP shows only when that is loaded.

    Raises:
        InputError: it is none, is of another encoder, or knows no such risk.
    """
    limit = retrieval.limit
    if limit is None or limit.calibration is None:
        return
    if isinstance(retrieval.encoder, TextEncoder):
        query_limit(limit, load_encoder(retrieval.encoder).identity)
        return
    found = read_calibrations(limit.calibration).values()
    if not any(row.risk <= limit.risk for calibration in found for row in calibration.risks):
        raise InputError(
            f"retrieval.limit: {limit.calibration} holds no calibration for a risk of at most {limit.risk:g}: make one"
            " with `python -m eval.pairing --calibrate`, or raise retrieval.limit.risk"
        )


def check_search(config: Config) -> None:
    """Before any work, see that a GPU can search where that is asked for; on other machines each worker looks for it.

    Raises:
        InputError: it cannot.
    """
    searches = config.published is None or config.published.missing == "repair"
    is_here = config.engine.kind == "local" or config.engine.address is None
    if config.retrieval.search.device == "cpu" or not searches:
        return
    check_gpu_list(config.retrieval.top_k)
    if is_here:
        check_gpu()


def check_pool(config: Config) -> None:
    """Before anything is drawn, find the copies in the pool, and make sure that there is something to draw from."""
    if joined(config.audio):
        join_duplicates(config.run_dir)
    check_splits(config.run_dir, config.images, config.seed, joined(config.audio))


def check_splits(run_dir: Place, images: Images, seed: int, without_copies: bool = False) -> None:
    """Make sure, as soon as the pool is there, that images have recordings of their own split to draw from."""
    if not stems(run_dir / layout.CLIPS):
        return  # concepts can be found before there is a pool
    copies = read_duplicates(run_dir).values() if without_copies else ()
    left_out = pa.array([copy.recording for copy in copies if copy.left_out], pa.string())
    clips = clip_columns(run_dir, ["split", "recording"])
    drawn = clips.filter(pc.invert(pc.is_in(clips["recording"], left_out)))  # pyright: ignore[reportAttributeAccessIssue]
    present = set(drawn["split"].unique().to_pylist())
    if not present:
        raise InputError("audio.sources: no recording gave a clip, so there is nothing to draw from")
    share = images.validation
    wanted = {"train"} if share == 0 else {"validation"} if share == 1 else set(layout.SPLITS)
    for split in sorted(wanted - present):
        if split in _listed_splits(run_dir, images, seed):
            raise InputError(
                f"images.validation, audio.validation: there are {split} images but no {split} recordings to draw from"
                f" ({_why_none(len(left_out))}): raise audio.validation, or set both to 0"
            )


def _why_none(left_out: int) -> str:
    if left_out:
        return f"of {left_out} recordings training has a copy, audio.duplicates"
    return "the split is drawn by hash, and this pool is small"


def _listed_splits(run_dir: Place, images: Images, seed: int) -> set[str]:
    """The splits that the listed images fall into; archives, whose images are not listed, may hold both."""
    if images.kind != "folder":
        return set(layout.SPLITS)
    listings = read_tables(run_dir / layout.UNITS / "concepts", ["uri"])
    uris = (uri for _, table in listings for uri in table["uri"].to_pylist())
    return {split_of(seed, "image", plain_key(uri), images.validation) for uri in uris}


class PairStage:
    """Draws recordings for concepts, from the pool of the image's own split."""

    def __init__(self, config: Config, pool: Mapping[str, SplitPool]) -> None:
        self._config = config
        self._pool = pool
        self._excluded = read_exclusions(config.images.exclude)
        self._draw_scene = SceneDraw(config, pool)

    def __call__(self, rows: Sequence[ImageScenes]) -> list[tuple[Pair, ...] | Rejected]:
        planned = [self._refuse(row) or scenes_of(self._config, row) for row in rows]
        seed, share = self._config.seed, self._config.images.validation
        splits = [split_of(seed, "image", key_order(row.key), share) for row in rows]
        rankings = {
            split: self._rank(split, (p for p, s in zip(planned, splits, strict=True) if s == split))
            for split in self._pool
        }
        return [
            plan if isinstance(plan, Rejected) else self._pair_image(row.key, split, plan, rankings[split])
            for row, plan, split in zip(rows, planned, splits, strict=True)
        ]

    def _refuse(self, row: ImageScenes) -> Rejected | None:
        """Images that are excluded, or whose caption, in the words of who is asked, holds a discard word."""
        settings = self._config.concepts
        for name, heard in ((name, heard.concepts) for name, heard in row.by_extractor.items()):
            if self._excluded & exclusion_names(heard.image, heard.image_uri, heard.image_sha256):
                return Rejected(key=row.key, reason=Reason.EXCLUDED)
            if settings.discard_caption not in (None, name):
                continue
            if words := find_discard_words(heard.caption, settings.discard_words, settings.discard_match):
                return Rejected(key=row.key, reason=Reason.DISCARDED, detail=words[0])
        return None

    def _rank(self, split: str, plans: Iterable[tuple[Scene, ...] | Rejected]) -> dict[Query, Ranking]:
        """Search a split once for the batch's distinct queries."""
        queries = {
            query_of(concept, self._config.retrieval.query)
            for plan in plans
            if not isinstance(plan, Rejected)
            for scene in plan
            for concept in scene.concepts
        }
        return self._pool[split].rank(queries)

    def _pair_image(
        self, key: str, split: str, scenes: tuple[Scene, ...], rankings: Mapping[Query, Ranking]
    ) -> tuple[Pair, ...] | Rejected:
        results = [self._pair_scene(key, split, scene, rankings) for scene in scenes]
        if self._config.render.scenes == "any":
            results = self._fill(split, scenes, results, rankings)
        return all_or_rejected(results)

    def _fill(
        self,
        split: str,
        scenes: tuple[Scene, ...],
        results: list[Pair | Rejected],
        rankings: Mapping[Query, Ranking],
    ) -> list[Pair | Rejected]:
        """Replace scenes that found nothing by further draws of those that did, in turn."""
        paired = [scene for scene, result in zip(scenes, results, strict=True) if isinstance(result, Pair)]
        if not paired:
            return results
        others = cycle(paired)
        return [
            result
            if isinstance(result, Pair)
            else self._pair_scene(result.key, split, replace(next(others), name=scene.name), rankings)
            for scene, result in zip(scenes, results, strict=True)
        ]

    def _pair_scene(self, key: str, split: str, scene: Scene, rankings: Mapping[Query, Ranking]) -> Pair | Rejected:
        if scene.heard is None:
            return Rejected(key=key, reason=Reason.MISSING_SCENE, scene=scene.name)
        if not scene.concepts:
            return self._refuse_scene(key, scene.name, scene.heard)
        sources, refused = self._draw_scene(key, split, scene.name, scene.concepts, rankings)
        if not sources:
            named = ", ".join(concept.concept for concept in scene.concepts)
            return Rejected(key=key, reason=_why_nothing(refused), scene=scene.name, detail=named)
        left_out = _not_asked_for(scene, self._config.concepts.presence)
        return make_pair(split, scene.name, scene.heard, sources, (*left_out, *refused))

    def _refuse_scene(self, key: str, scene: str, heard: Heard) -> Rejected:
        """Say what the check, or the model itself, had against a scene."""
        if heard.check is not None and is_other_medium(heard.check, self._config.concepts.media):
            return Rejected(key=key, reason=Reason.NOT_A_PHOTO, scene=scene, detail=heard.check.medium)
        concepts = heard.concepts.concepts
        reasons = {_not_heard(concept, self._config.concepts.presence) for concept in concepts}
        if None in reasons:
            reason = Reason.UNCONFIRMED
        else:
            reason = Reason.NOT_VISIBLE if Reason.NOT_VISIBLE in reasons else Reason.NOT_SOUNDING
        return Rejected(key=key, reason=reason, scene=scene, detail=", ".join(c.concept for c in concepts))


class SceneDraw:
    """Draws the sources of a scene by every rule of a run: one clip for each concept, and how they stand together."""

    def __init__(self, config: Config, pool: Mapping[str, SplitPool]) -> None:
        self._config = config
        self._pool = pool
        self._settle = SceneRules(config, pool)

    def __call__(
        self, key: str, split: str, scene: str, concepts: Sequence[Concept], rankings: Mapping[Query, Ranking]
    ) -> tuple[tuple[SourceClip, ...], tuple[Refused, ...]]:
        """One clip for each concept that has one, and why the others have none.

        Args:
            key: the image.
            split: the image's, from whose pool is drawn.
            scene: what the draw is for; another name is another draw.
            concepts: that are to be heard.
            rankings: of the concepts' queries, in that split.
        """
        used: set[int] = set()
        sources: list[SourceClip] = []
        heard: list[Concept] = []
        refused: list[Refused] = []
        queries: list[Query] = []
        pool = self._pool[split]
        for concept in concepts:
            query = query_of(concept, self._config.retrieval.query)
            if self._config.retrieval.merge_names and any(are_one_sound(query, other) for other in queries):
                refused.append(refuse(concept, Reason.SAME_SOURCE))
                continue
            drawn = draw_source(pool, rankings[query], used, concept, self._config, (key, scene))
            if isinstance(drawn, Missed):
                refused.append(refuse(concept, drawn.reason, pool.clips[drawn.clip], drawn.cosine, drawn.heard))
            else:
                sources.append(drawn)
                heard.append(concept)
                queries.append(query)
        return self._settle(heard, sources, (self._config.seed, key, scene)), tuple(refused)


def _not_asked_for(scene: Scene, presence: Collection[str]) -> Iterator[Refused]:
    """The concepts that the model's own words, or the check, took out of a scene."""
    assert scene.heard is not None
    for concept in scene.heard.concepts.concepts:
        if concept not in scene.concepts:
            yield refuse(concept, _not_heard(concept, presence) or Reason.UNCONFIRMED)


def _why_nothing(refused: Sequence[Refused]) -> Reason:
    """Why a scene has no source: what listened had the last word, where it had one."""
    reasons = {one.reason for one in refused}
    return Reason.NOT_CONFIRMED if Reason.NOT_CONFIRMED in reasons else Reason.NO_MATCH


def refuse(concept: Concept, reason: Reason, clip: str = "", cosine: float = 0.0, heard: str = "") -> Refused:
    """A concept that is not heard, as a pair records it."""
    return Refused(
        concept=concept.concept,
        description=query_text(concept, "description"),
        presence=concept.presence,
        reason=reason,
        clip=clip,
        cosine=round(cosine, 6),
        heard=heard,
    )


def draw_source(
    pool: SplitPool, ranking: Ranking, used: set[int], concept: Concept, config: Config, purpose: tuple[str, str]
) -> SourceClip | Missed:
    """Draw one concept's clip and its loudness, or say why there is none.

    Args:
        pool: the split.
        ranking: of the concept's text.
        used: recordings that the scene has already, which only `repeat_recordings` lets be heard again; the drawn one
            is added.
        concept: what is to be heard.
        config: `mix` and `seed`.
        purpose: image and scene, for the seed.
    """
    key = (config.seed, *purpose, concept.concept)
    drawn = pool.draw(concept, ranking, used, key)
    if isinstance(drawn, Missed):
        return drawn
    low, high = config.mix.lufs
    drawn_lufs = low + (high - low) * uniform("loudness", *key)
    target_lufs = round(drawn_lufs + prominence_db(concept, config.mix.prominence), 4)
    return SourceClip(
        concept=concept.concept,
        description=query_text(concept, "description"),
        clip=pool.clips[drawn.clip],
        cosine=round(drawn.cosine, 6),
        score=round(drawn.score, 6),
        threshold=round(drawn.threshold, 6),
        num_candidates=drawn.num_candidates,
        limit=round(drawn.limit, 6),
        target_lufs=target_lufs,
        gain_db=gain_to_target_db(float(pool.loudness_lufs[drawn.clip]), target_lufs, config.mix.max_gain_db),
        **asdict(drawn.evidence),
    )


def make_pair(
    split: str, scene: str, heard: Heard, sources: tuple[SourceClip, ...], refused: tuple[Refused, ...] = ()
) -> Pair:
    """A row of `pairs/`."""
    return Pair(
        image=heard.concepts.image,
        image_uri=heard.concepts.image_uri,
        image_sha256=heard.concepts.image_sha256,
        width=heard.concepts.width,
        height=heard.concepts.height,
        split=split,
        scene=scene,
        caption=heard.concepts.caption,
        medium=heard.check.medium if heard.check else "",
        check_answer=heard.check.answer if heard.check else "",
        sources=sources,
        refused=refused,
    )


def all_or_rejected(results: Sequence[Pair | Rejected]) -> tuple[Pair, ...] | Rejected:
    """The scenes of an image, which leaves with all of them where one is rejected."""
    rejected = next((result for result in results if isinstance(result, Rejected)), None)
    return rejected or tuple(result for result in results if isinstance(result, Pair))


class ScenesSink:
    """Writes all the scenes of one image after the other, a row each."""

    def __init__(self, file: BinaryIO, row_type: type) -> None:
        self._table = TableWriter(file, row_type)

    def write(self, row: Sequence[Pair]) -> None:
        """Add all scenes of one image."""
        for scene in row:
            self._table.write(scene)

    def close(self) -> None:
        """Finish the table."""
        self._table.close()
