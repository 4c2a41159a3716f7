"""Images to sounding concepts: found in an image's own caption, or asked of a vision-language model."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from sonify import layout
from sonify.captions.ontology import find_sounds
from sonify.config import CaptionsExtractor, Config, VlmExtractor
from sonify.config.models import ENGLISH
from sonify.engine.job import Job, TableSink
from sonify.media.pixels import UnreadableImage, inspect_image, seen_side, shrunk_size
from sonify.rows import ImageConcepts, Reason, Rejected, SourceImage
from sonify.sources.captions import Captions, captions_for
from sonify.sources.images import listed_images, read_images
from sonify.stages.asking import Ask, Asked, Asker, Begun, Inquiry
from sonify.vlm.answers import Parsed, parse_concepts
from sonify.vlm.json_answers import parse_json
from sonify.vlm.questions import concepts_prompt, concepts_schema
from sonify.vlm.repair import Unusable

# Longer than any caption (SAM-LLaVA's reach 2,000 characters): a longer one is some other file.
MAX_CAPTION_CHARS = 10_000


def captions_job(config: Config, extractor: CaptionsExtractor) -> Job:
    """The concepts stage of one extractor. Accounting counts images."""
    own_captions = captions_for(config.run_dir, extractor.file, config.images.path.name) if extractor.file else None
    return Job(
        read=lambda unit: read_images(config.images, listed_images(config.run_dir, unit), config.seed),
        process=CaptionsStage(config.concepts.max_concepts, own_captions),
        open_sink=lambda unit, transaction, _rejects: TableSink(
            transaction.create(layout.concepts(extractor.name, unit)), ImageConcepts
        ),
        batch_rows=8,
    )


class CaptionsStage:
    """Finds the sounds that captions name. `own_captions` stand in for the images' captions where given."""

    def __init__(self, max_concepts: int, own_captions: Captions | None) -> None:
        self._max_concepts = max_concepts
        self._own_captions = own_captions

    def __call__(self, rows: Sequence[SourceImage]) -> list[ImageConcepts | Rejected]:
        return [self._extract(row) for row in rows]

    def _extract(self, row: SourceImage) -> ImageConcepts | Rejected:
        try:
            info = inspect_image(row.data)
        except UnreadableImage as error:
            return Rejected(key=row.key, reason=error.reason, detail=error.detail)
        raw = row.caption if self._own_captions is None else self._own_captions(row.uri)
        caption = decode_caption(row.key, raw)
        if isinstance(caption, Rejected):
            return caption
        concepts = find_sounds(caption)[: self._max_concepts]
        if not concepts:
            return Rejected(key=row.key, reason=Reason.NO_CONCEPTS, detail=caption)
        return ImageConcepts(
            image=row.key,
            image_uri=row.uri,
            image_sha256=sha256(row.data).hexdigest(),
            width=info.width,
            height=info.height,
            caption=caption,
            answer=caption,
            concepts=concepts,
        )


def decode_caption(key: str, raw: bytes | None) -> str | Rejected:
    """A caption as one line of text, or why it is none."""
    if raw is None or not raw.strip():
        return Rejected(key=key, reason=Reason.NO_CAPTION)
    if len(raw) > 4 * MAX_CAPTION_CHARS:
        return Rejected(key=key, reason=Reason.BAD_CAPTION, detail=f"{len(raw)} bytes")
    try:
        caption = " ".join(raw.decode("utf-8").split())
    except UnicodeDecodeError as error:
        return Rejected(key=key, reason=Reason.BAD_CAPTION, detail=f"not UTF-8 at byte {error.start}")
    if len(caption) > MAX_CAPTION_CHARS:
        return Rejected(key=key, reason=Reason.BAD_CAPTION, detail=f"{len(caption)} characters")
    return caption


def asked_for_concepts(extractor: VlmExtractor, max_concepts: int) -> Inquiry:
    """What the extractor was asked."""
    words = concepts_prompt(max_concepts, extractor.answers, extractor.language)
    schema = schema_of(extractor, max_concepts)
    return Inquiry(name=extractor.name, vlm=extractor, words=words + (json.dumps(schema) if schema else ""))


def schema_of(extractor: VlmExtractor, max_concepts: int) -> dict[str, Any] | None:
    """The form to which a server is to hold the extractor's model, where that is asked for."""
    return concepts_schema(max_concepts) if extractor.answers == "schema" else None


def vlm_job(config: Config, extractor: VlmExtractor) -> Job:
    """The concepts stage of a model. Accounting counts images."""
    max_concepts = config.concepts.max_concepts
    asker = Asker(asked_for_concepts(extractor, max_concepts), config.run_dir)
    stage = VlmConceptsStage(asker, extractor, max_concepts)
    return Job(
        read=lambda unit: read_images(config.images, listed_images(config.run_dir, unit), config.seed),
        begin=stage.begin,
        process=stage,
        open_sink=lambda unit, transaction, _rejects: asker.open(
            unit, transaction, TableSink(transaction.create(layout.concepts(extractor.name, unit)), ImageConcepts)
        ),
        batch_rows=asker.window,
        close=asker.close,
    )


class VlmConceptsStage:
    """Asks what could be heard and reads the answers."""

    def __init__(self, asker: Asker, extractor: VlmExtractor, max_concepts: int) -> None:
        self._asker = asker
        self._extractor = extractor
        self._max_concepts = max_concepts
        self._prompt = concepts_prompt(max_concepts, extractor.answers, extractor.language)
        self._schema = schema_of(extractor, max_concepts)

    def begin(self, rows: Sequence[SourceImage]) -> Begun:
        """Start to ask about a window of images."""
        return self._asker.begin(
            [Ask(row=row, key=row.key, data=row.data, prompt=self._prompt, schema=self._schema) for row in rows]
        )

    def __call__(self, begun: Begun) -> list[ImageConcepts | Rejected]:
        return [
            asked if isinstance(asked, Rejected) else self._parse(asked.row, asked)
            for asked in self._asker.collect(begun)
        ]

    def _parse(self, row: SourceImage, asked: Asked) -> ImageConcepts | Rejected:
        size = asked.info.width, asked.info.height
        parsed = read_concepts(self._extractor, self._max_concepts, asked.said.answer, asked.said.finished, size)
        if isinstance(parsed, Unusable):
            return Rejected(key=row.key, reason=parsed.reason, detail=parsed.detail)
        return ImageConcepts(
            image=row.key,
            image_uri=row.uri,
            image_sha256=asked.said.image_sha256,
            width=asked.info.width,
            height=asked.info.height,
            caption=parsed.caption,
            answer=asked.said.answer,
            concepts=parsed.concepts,
        )


def read_concepts(
    extractor: VlmExtractor, max_concepts: int, answer: str, finished: bool, size: tuple[int, int]
) -> Parsed | Unusable:
    """What an answer about an image of that width and height means, in the form that was asked for."""
    english = extractor.language in ENGLISH
    if extractor.answers == "text":
        # boxes of which nobody said otherwise are in the pixels that were seen
        seen_size = shrunk_size(size, seen_side(size, extractor.image_size))
        return parse_concepts(answer, max_concepts, seen_size, finished, english=english)
    return parse_json(answer, max_concepts, finished, english=english)
