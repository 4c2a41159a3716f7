"""Images to sounding concepts by a vision-language model: asked, recorded, parsed."""

from collections.abc import Sequence

from sonify import layout
from sonify.config import Config, VlmExtractor
from sonify.engine.job import Job, TableSink
from sonify.media.pixels import seen_side, shrunk_size
from sonify.rows import ImageConcepts, Rejected, SourceImage
from sonify.sources.images import listed_images, read_images
from sonify.stages.asking import Ask, Asked, Asker, Begun, Recorded
from sonify.vlm.answers import parse_concepts
from sonify.vlm.ask import concepts_prompt
from sonify.vlm.repair import Unusable


def recorded(config: Config, extractor: VlmExtractor) -> Recorded:
    """What the extractor was asked."""
    return Recorded(name=extractor.name, vlm=extractor, words=concepts_prompt(config.concepts.max_concepts))


def load(config: Config, extractor: VlmExtractor) -> Job:
    """The concepts stage of a model. Accounting counts images."""
    asker = Asker(recorded(config, extractor), config.run_dir)
    stage = VlmConceptsStage(asker, config.concepts.max_concepts, extractor.image_size)
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

    def __init__(self, asker: Asker, max_concepts: int, image_size: int) -> None:
        self._asker = asker
        self._image_size = image_size
        self._max_concepts = max_concepts
        self._prompt = concepts_prompt(max_concepts)

    def begin(self, rows: Sequence[SourceImage]) -> Begun:
        """Start to ask about a window of images."""
        return self._asker.begin([Ask(row=row, key=row.key, data=row.data, prompt=self._prompt) for row in rows])

    def __call__(self, begun: Begun) -> list[ImageConcepts | Rejected]:
        return [
            asked if isinstance(asked, Rejected) else self._parse(asked.row, asked)
            for asked in self._asker.collect(begun)
        ]

    def _parse(self, row: SourceImage, asked: Asked) -> ImageConcepts | Rejected:
        size = asked.info.width, asked.info.height
        seen_size = shrunk_size(size, seen_side(size, self._image_size))  # boxes are in its pixels
        parsed = parse_concepts(asked.said.answer, self._max_concepts, seen_size)
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
