"""Image sets: what there is (`list_images`, by the driver) and what it holds (`read_images`, by a worker).

A unit's frozen listing is a list of `ImageRef`: the files of a folder's block, one archive, or one Parquet file. Keys
are the escaped path relative to the image set, so they are unique without looking at other units. A new kind is a
module with two functions, and a line in each of the two functions here.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import chain

from sonify.config import FolderImages, Images, ParquetImages
from sonify.errors import InputError
from sonify.rows import ImageRef, Rejected, SourceImage
from sonify.sources.images.archives import archive_keys, list_archives, read_archive
from sonify.sources.images.folder import IMAGE_SUFFIXES, list_folder, read_folder
from sonify.sources.images.tables import list_tables, read_table, table_keys

__all__ = ["count_images", "list_images", "read_images"]


def list_images(images: Images, seed: int, below: int | None = None) -> Iterator[tuple[ImageRef, ...]]:
    """Yield the listing of each unit of the image set as it is now, in a fixed order.

    Args:
        images: the image set.
        seed: of the sample.
        below: the sample's bound where one was drawn before; else it is drawn from what is there.

    Raises:
        InputError: there is no image, or the captions table is not one.
    """
    if isinstance(images, FolderImages):
        units, expected = list_folder(images, seed, below), ", ".join(IMAGE_SUFFIXES)
    elif isinstance(images, ParquetImages):
        units, expected = list_tables(images, seed, below), ".parquet"
    else:
        units, expected = list_archives(images, seed, below), ".tar"
    first = next(units, None)
    if first is None:
        raise InputError(f"images.path: {images.path} holds no {expected} file: nothing to do")
    yield from chain([first], units)


def count_images(images: Images, unit: Sequence[ImageRef]) -> int:
    """How many images a unit holds before it is sampled, from file names and headers only."""
    if isinstance(images, FolderImages):
        return len(unit)
    keys_of = table_keys if isinstance(images, ParquetImages) else archive_keys
    return sum(1 for ref in unit for _ in keys_of(images, ref.uri))  # pyright: ignore[reportArgumentType]


def read_images(
    images: Images, refs: Sequence[ImageRef], seed: int, keys: Collection[str] | None = None
) -> Iterator[SourceImage | Rejected]:
    """Yield the images of one unit in the order of their keys, or why one cannot be had.

    With `keys` only those images are read, and no captions.
    """
    if isinstance(images, FolderImages):
        yield from read_folder(images, refs, keys)
        return
    for ref in refs:
        if isinstance(images, ParquetImages):
            yield from read_table(images, ref, seed, keys)
        else:
            yield from read_archive(images, ref, seed, keys)
