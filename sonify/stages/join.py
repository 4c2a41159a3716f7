"""A unit's images: as they are listed, and together with what earlier stages found in them."""

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from sonify import layout
from sonify.config import Config
from sonify.io.tables import read_rows
from sonify.rows import ImageRef, Reason, Rejected, SourceImage
from sonify.sources.images import read_images

Found = TypeVar("Found")


def read_unit_images(
    config: Config, unit: str, keys: Collection[str] | None = None
) -> Iterator[SourceImage | Rejected]:
    """Read the images of a unit's frozen listing, in the order of keys; with `keys` those only, and no captions."""
    refs = list(read_rows(config.run_dir / layout.listing("concepts", unit), ImageRef))
    return read_images(config.images, refs, config.seed, keys)


def join_images(
    config: Config, unit: str, wanted: Mapping[str, Found]
) -> Iterator[tuple[SourceImage, Found] | Rejected]:
    """Read a unit's images again, in the order of keys, and pair those that are wanted with what is known of them.

    Each wanted image comes once: itself, or why it cannot be had any more.
    """
    left = dict(wanted)
    lost: dict[str, Rejected] = {}
    for image in read_unit_images(config, unit, wanted.keys()):
        if image.key not in left:
            continue  # an archive's rejects come again
        if isinstance(image, Rejected):
            lost[image.key] = image  # unless it is the second member of the image's name
        else:
            yield image, left.pop(image.key)
    for key in sorted(left):
        yield lost.get(key) or Rejected(key=key, reason=Reason.CHANGED, detail="the image is gone")
