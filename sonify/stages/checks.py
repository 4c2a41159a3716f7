"""Concepts to checked concepts: one more question about each image, over all its concepts and two foils.

It answers the paper's own failure cases: sounds invented by association, drawings and statues taken for the thing.
Models like to say yes; how often they confirm the foils says how much their other answers are worth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from sonify import layout
from sonify.config import Concepts, Config, Extractor, VlmExtractor
from sonify.engine.job import Job, TableSink
from sonify.io.tables import read_rows, read_tables
from sonify.rows import CheckedImage, ImageConcepts, Rejected, SourceImage
from sonify.sources.images import join_images, listed_images
from sonify.stages.asking import Ask, Asked, Asker, Begun, Inquiry
from sonify.stores import Place
from sonify.vlm.check import parse_check
from sonify.vlm.questions import CHECK_VERSION, check_question, foils_for, ordered_names
from sonify.vlm.repair import Unusable


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardImage:
    """An image with what an extractor heard in it."""

    key: str
    image: SourceImage
    heard: ImageConcepts


@dataclass(frozen=True, slots=True, kw_only=True)
class FoilShare:
    """How many things that are not there were asked for, and how many were confirmed all the same."""

    asked: int
    confirmed: int


def checker_of(concepts: Concepts, extractor: Extractor) -> VlmExtractor:
    """Who checks an extractor's concepts: the configured checker, or the extractor's own model."""
    checker = concepts.checker or extractor
    assert checker.kind == "vlm", checker  # the configuration refuses anything else
    return checker


def asked_in_check(extractor: str, checker: VlmExtractor, seed: int) -> Inquiry:
    """What the checker was asked of an extractor's concepts; the names in the question are each image's own."""
    return Inquiry(name=f"{extractor}.check", vlm=checker, words=f"check {CHECK_VERSION}, {seed}")


def check_job(config: Config, extractor: Extractor) -> Job:
    """The check of one extractor's concepts. Accounting counts images."""
    checker = checker_of(config.concepts, extractor)
    asker = Asker(asked_in_check(extractor.name, checker, config.seed), config.run_dir)
    stage = CheckStage(asker, config.seed)
    return Job(
        read=lambda unit: read_heard_images(config, extractor, unit),
        begin=stage.begin,
        process=stage,
        open_sink=lambda unit, transaction, _rejects: asker.open(
            unit, transaction, TableSink(transaction.create(layout.checks(extractor.name, unit)), CheckedImage)
        ),
        batch_rows=asker.window,
        close=asker.close,
    )


def read_heard_images(config: Config, extractor: Extractor, unit: str) -> Iterator[HeardImage | Rejected]:
    """Bring a unit's images and an extractor's concepts together."""
    rows = read_rows(config.run_dir / layout.concepts(extractor.name, unit), ImageConcepts)
    refs = listed_images(config.run_dir, unit)
    for found in join_images(config.images, refs, config.seed, {row.image: row for row in rows}):
        if isinstance(found, Rejected):
            yield found
        else:
            image, heard = found
            yield HeardImage(key=heard.image, image=image, heard=heard)


class CheckStage:
    """Asks whether what was named is visible, real and sounding."""

    def __init__(self, asker: Asker, seed: int) -> None:
        self._asker = asker
        self._seed = seed

    def begin(self, rows: Sequence[HeardImage]) -> Begun:
        """Start to ask about a window of images."""
        return self._asker.begin(
            [
                Ask(row=row, key=row.key, data=row.image.data, prompt=check_question(self._names(row.heard)))
                for row in rows
            ]
        )

    def __call__(self, begun: Begun) -> list[CheckedImage | Rejected]:
        return [
            asked if isinstance(asked, Rejected) else self._read(asked.row.heard, asked)
            for asked in self._asker.collect(begun)
        ]

    def _names(self, heard: ImageConcepts) -> tuple[str, ...]:
        """What is asked for, in an order that gives the foils away to nobody; of what is denied nothing is to check."""
        names = [concept.concept for concept in heard.concepts if concept.is_claimed]
        foils = foils_for(heard.concepts, heard.image, self._seed)
        return ordered_names(names, foils, heard.image, self._seed)

    def _read(self, heard: ImageConcepts, asked: Asked) -> CheckedImage | Rejected:
        check = parse_check(asked.said.answer, self._names(heard), asked.said.finished)
        if isinstance(check, Unusable):
            return Rejected(key=heard.image, reason=check.reason, detail=check.detail)
        named = {concept.concept for concept in heard.concepts}
        return CheckedImage(
            image=heard.image,
            medium=check.medium,
            concepts=tuple(verdict for verdict in check.verdicts if verdict.concept in named),
            foils=tuple(verdict for verdict in check.verdicts if verdict.concept not in named),
            answer=asked.said.answer,
        )


def count_foils(run_dir: Place, extractor: str) -> FoilShare:
    """Count over all the checked units of an extractor."""
    asked = confirmed = 0
    for _, table in read_tables(run_dir / layout.CHECKS / extractor, ["foils"]):
        foils = table["foils"].combine_chunks().flatten()
        asked += len(foils)
        both = pc.and_(foils.field("visible"), foils.field("real"))  # pyright: ignore[reportAttributeAccessIssue]
        confirmed += pc.sum(pc.and_(both, foils.field("sounding"))).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
    return FoilShare(asked=asked, confirmed=confirmed)
