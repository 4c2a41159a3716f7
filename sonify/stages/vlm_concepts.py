"""Images to sounding concepts by a vision-language model: asked, recorded, parsed."""

from collections.abc import Iterator, Sequence

from sonify import layout
from sonify.config import Config, VlmExtractor
from sonify.engine.job import Job
from sonify.engine.sinks import TableSink
from sonify.engine.tables import read_rows
from sonify.media.pixels import shrunk_size
from sonify.rows import ImageConcepts, ImageRef, Rejected, SourceImage
from sonify.sources.images import read_images
from sonify.stages.asking import Ask, Asked, Asker, Begun
from sonify.vlm.parsing import Unusable, parse_concepts
from sonify.vlm.prompts import concepts_prompt


def load(config: Config, extractor: VlmExtractor) -> Job:
    """The concepts stage of a model. Accounting counts images."""
    asker = Asker(extractor, config.run_dir, extractor.name)
    stage = VlmConceptsStage(asker, config.concepts.max_concepts, extractor.image_size)

    def read(unit: str) -> Iterator[SourceImage | Rejected]:
        refs = list(read_rows(config.run_dir / layout.listing("concepts", unit), ImageRef))
        return read_images(config.images, refs, config.seed)

    return Job(
        read=read,
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

    def begin(self, rows: Sequence[SourceImage]) -> tuple[Sequence[SourceImage], Begun]:
        """Start to ask about a window of images."""
        return rows, self._asker.begin([Ask(key=row.key, data=row.data, prompt=self._prompt) for row in rows])

    def __call__(self, begun: tuple[Sequence[SourceImage], Begun]) -> list[ImageConcepts | Rejected]:
        rows, asked = begun
        results = zip(rows, self._asker.collect(asked), strict=True)
        return [result if isinstance(result, Rejected) else self._parse(row, result) for row, result in results]

    def _parse(self, row: SourceImage, asked: Asked) -> ImageConcepts | Rejected:
        seen_size = shrunk_size((asked.info.width, asked.info.height), self._image_size)  # boxes are in its pixels
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
