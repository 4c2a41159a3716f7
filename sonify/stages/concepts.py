"""Images to sounding concepts, by one extractor; `captions` finds ontology sounds in an image's own caption."""

from collections.abc import Sequence
from hashlib import sha256

from sonify import layout
from sonify.captions.ontology import find_sounds
from sonify.config import CaptionsExtractor, Config
from sonify.engine.job import Job, TableSink
from sonify.media.pixels import UnreadableImage, inspect_image
from sonify.rows import ImageConcepts, Reason, Rejected, SourceImage
from sonify.sources.captions import Captions, captions_for
from sonify.sources.images import listed_images, read_images

# Longer than any caption (SAM-LLaVA's reach 2,000 characters): a longer one is some other file.
MAX_CAPTION_CHARS = 10_000


def captions_job(config: Config, extractor: CaptionsExtractor) -> Job:
    """The concepts stage of one extractor. Accounting counts images."""
    own_captions = captions_for(config.run_dir, extractor.file) if extractor.file else None
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
