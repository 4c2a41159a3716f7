"""What is to be drawn for: every extractor's concepts of an image, merged, and what the check leaves of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sonify import layout
from sonify.config import Config
from sonify.io.tables import read_rows
from sonify.rows import CheckedImage, Concept, ImageConcepts


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
    """Merge the extractors' tables of a unit, all sorted by key, into one row an image."""
    tables = {extractor.name: _read_heard(config, extractor.name, unit) for extractor in config.concepts.extractors}
    heads = {name: head for name, rows in tables.items() if (head := next(rows, None))}
    while heads:
        key = min(head.concepts.image for head in heads.values())
        heard = {name: head for name, head in heads.items() if head.concepts.image == key}
        yield ImageScenes(key=key, by_extractor=heard)
        for name in heard:
            following = next(tables[name], None)
            if following is None:
                del heads[name]
            else:
                heads[name] = following


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
        Scene(name=name, heard=found, concepts=confirmed(config, found) if found else ())
        for name, found in zip(config.scenes, heard, strict=True)
    )


def confirmed(config: Config, heard: Heard) -> tuple[Concept, ...]:
    """The concepts that the check leaves: all where there is none, none where the image is of another medium."""
    if heard.check is None:
        return heard.concepts.concepts
    if is_other_medium(config, heard.check):
        return ()
    kept = {verdict.concept for verdict in heard.check.concepts if verdict.confirmed}
    return tuple(concept for concept in heard.concepts.concepts if concept.concept in kept)


def is_other_medium(config: Config, check: CheckedImage) -> bool:
    """Whether the model said what the image is, and it is not one of `concepts.media`."""
    return check.medium not in ("", *config.concepts.media)
