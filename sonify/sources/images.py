"""Image sets: what there is (`list_images`, by the driver) and what it holds (`read_images`, by a worker).

A unit's frozen listing is a list of `ImageRef`: the files of a folder's block, one archive, or one Parquet file. A new
kind is a line in `KINDS`, with a function that names the images in a listed file and one that reads them, and a model
in `sonify.config`.
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate, chain, compress, takewhile
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sonify import layout
from sonify.config import FolderImages, Images, ParquetImages, Sa1bImages, WebDatasetImages
from sonify.errors import InputError, NothingListed, require
from sonify.io.listing import Listing, is_junk, list_files, say_passed_over
from sonify.io.places import (
    REQUESTS_AHEAD,
    check_mounted,
    child,
    for_each,
    is_utf8,
    open_local,
    read_bytes,
)
from sonify.io.tables import open_parquet, read_rows
from sonify.io.tars import Member, index_members, read_member
from sonify.keys import escape_key, hash64, key_order, plain_key, unescape_key
from sonify.media.headers import HEIF_SUFFIXES, IMAGE_SUFFIXES, kind_of_image
from sonify.rows import ImageRef, Reason, Rejected, SourceImage
from sonify.sources.captions import (
    ENDINGS,
    MAX_CAPTION_BYTES,
    MAX_JSON_BYTES,
    TEXT_ENDINGS,
    caption_beside,
    caption_in,
    read_start,
)
from sonify.sources.joins import texts_beside, without_ending
from sonify.sources.tables import captions_in_tables, tables_among
from sonify.sources.userfiles import container, file_beside, list_containers
from sonify.stores import Place

Found = TypeVar("Found")
ArchiveImages = WebDatasetImages | Sa1bImages

TEXT_SUFFIXES = (".caption", ".json", ".txt")  # of captions beside the images
# Far above any camera's file; a file that claims more is refused unread.
MAX_IMAGE_BYTES = 128 << 20
# Decoded at once out of a table; a few megabytes of photographs.
ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ImageKind:
    """One kind of image set.

    Attributes:
        suffixes: of the files that are listed.
        list_files: gives a line of the listing for each file, in the order of keys.
        images_in: names the images in one listed file, from names and headers only.
        read: reads the images of one listed file in the order of keys, given seed and keys as `read_images` is.
    """

    suffixes: tuple[str, ...]
    list_files: Callable[[Any], list[ImageRef]]
    images_in: Callable[[Any, ImageRef], Iterator[ImageRef]]
    read: Callable[[Any, ImageRef, int, Collection[str] | None], Iterator[SourceImage | Rejected]]


def list_images(
    images: Images, seed: int, below: int | None = None, must_meet: bool = True
) -> Iterator[tuple[ImageRef, ...]]:
    """Yield the listing of each unit of the image set as it is now, in a fixed order.

    A sample is of the images with the lowest hashes, whoever looks and in whatever order; a sample of a store's
    archives reads them all, once.

    Args:
        images: the image set.
        seed: of the sample.
        below: the sample's bound where one was drawn before; else it is drawn from what is there.
        must_meet: whether a captions table of which no row names an image is an error.

    Raises:
        NothingListed: there is no file of the set's kind.
        InputError: it cannot be listed, or a table is not what it should be.
    """
    if images.heif:
        require("pillow_heif", extra="heif")
    kind = KINDS[images.kind]
    refs = _list_folder(images, must_meet) if isinstance(images, FolderImages) else kind.list_files(images)
    if images.sample is not None:
        bound = _bound_of_sample(images.sample, images, refs, seed) if below is None else below
        refs = [replace(ref, below=bound) for ref in refs]
    if isinstance(images, FolderImages):
        refs = [ref for ref in refs if _is_sampled(ref, seed)]
    if not refs:
        raise NothingListed(f"images.path: {images.path} holds no {', '.join(kind.suffixes)} file: nothing to do")
    size = images.shard_size if isinstance(images, FolderImages) else 1
    yield from (tuple(refs[start : start + size]) for start in range(0, len(refs), size))


def images_in(images: Images, ref: ImageRef) -> Iterator[ImageRef]:
    """The images that a listed file holds before they are sampled, from names and headers only."""
    return KINDS[images.kind].images_in(images, ref)


def read_images(
    images: Images, refs: Sequence[ImageRef], seed: int, keys: Collection[str] | None = None
) -> Iterator[SourceImage | Rejected]:
    """Yield the images of one unit in the order of their keys, or why one cannot be had.

    With `keys` only those images are read, and no captions.
    """
    if images.heif:
        require("pillow_heif", extra="heif")
    for row in _read(images, refs, seed, keys):
        if isinstance(row, SourceImage) and not images.heif and kind_of_image(row.data) == "HEIF":
            yield Rejected(key=row.key, reason=Reason.UNSUPPORTED, detail="HEIF; images.heif: true reads it")
        else:
            yield row


def _read(
    images: Images, refs: Sequence[ImageRef], seed: int, keys: Collection[str] | None
) -> Iterator[SourceImage | Rejected]:
    read = KINDS[images.kind].read
    if isinstance(images, FolderImages):  # a file each, of which a store is asked for some at once
        for rows in for_each(images.path, lambda ref: list(read(images, ref, seed, keys)), refs, REQUESTS_AHEAD):
            yield from rows
        return
    for ref in refs:
        yield from read(images, ref, seed, keys)


def listed_images(run_dir: Place, unit: str) -> list[ImageRef]:
    """A unit's frozen listing."""
    return list(read_rows(run_dir / layout.listing("concepts", unit), ImageRef))


def join_images(
    images: Images, refs: Sequence[ImageRef], seed: int, wanted: Mapping[str, Found]
) -> Iterator[tuple[SourceImage, Found] | Rejected]:
    """Read a unit's images again, in the order of keys, and pair those that are wanted with what is known of them.

    Each wanted image comes once: itself, or why it cannot be had any more. It is wanted by the key that it was recorded
    under, which of a long name may be another one than today's.
    """
    recorded = {escape_key(unescape_key(key)): key for key in wanted}
    left = dict(wanted)
    lost: dict[str, Rejected] = {}
    for image in read_images(images, refs, seed, recorded.keys()):
        key = recorded.get(image.key, "")
        if key not in left:
            continue  # an archive's rejects come again
        if isinstance(image, Rejected):
            lost[key] = replace(image, key=key)  # unless it is the second member of the image's name
        else:
            yield image, left.pop(key)
    for key in sorted(left, key=key_order):
        yield lost.get(key) or Rejected(key=key, reason=Reason.CHANGED, detail="the image is gone")


def _bound_of_sample(sample: int, images: Images, refs: Sequence[ImageRef], seed: int) -> int:
    """The bound below which exactly `sample` hashes lie, or all where there are fewer."""
    hashes = (_hash(image, seed) for ref in refs for image in images_in(images, ref))
    lowest = heapq.nsmallest(sample, hashes)
    return lowest[-1] + 1 if lowest else 0


def _is_sampled(image: ImageRef, seed: int) -> bool:
    return not image.below or _hash(image, seed) < image.below


def _hash(image: ImageRef, seed: int) -> int:
    return hash64(seed, "sample", plain_key(image.uri)) >> 1  # one bit less, to fit Parquet's signed 64-bit integers


def _is_wanted(image: ImageRef, seed: int, keys: Collection[str] | None) -> bool:
    return _is_sampled(image, seed) and (keys is None or image.key in keys)


def _by_key(image: ImageRef) -> str:
    """What images are sorted by."""
    return plain_key(image.uri)


def _within(container_ref: ImageRef, name: str) -> ImageRef:
    """An image in an archive or table."""
    return replace(container_ref, uri=f"{container_ref.uri}/{name}")


def _unreadable(images: Images, ref: ImageRef, error: OSError) -> Rejected:
    """Reject a file, unless it is the disk or the store that is in trouble: that is raised."""
    check_mounted(images.path, error)
    return Rejected(key=ref.key, reason=Reason.UNREADABLE, detail=error.strerror or str(error))


def _read_image_file(place: Place, image: ImageRef) -> bytes | Rejected:
    data = read_bytes(place, MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        return Rejected(key=image.key, reason=Reason.TOO_LARGE, detail=f"more than {MAX_IMAGE_BYTES} bytes")
    return data


def _list_folder(images: FolderImages, must_meet: bool = True) -> list[ImageRef]:
    """Files in a folder, each with a caption in a table or beside it."""
    listing = list_files(images.path, suffixes_of(images))
    tables = tables_among(listing.others, listing.files)
    heif = any(name.lower().endswith(HEIF_SUFFIXES) for name in listing.others)
    hint = " (images.heif: true reads .heic, with the extra heif)" if heif else ""
    say_passed_over(images.path, listing, chain(_texts_beside(listing), tables), hint)
    # which images have a text is asked only where a table may lack a row for one
    beside = {without_ending(name) for name in _texts_beside(listing)} if tables else set[str]()
    captions = captions_in_tables(images.path, listing.files, tables, beside, must_meet)
    refs = (ImageRef(uri=uri, caption=caption) for uri, caption in zip(listing.files, captions, strict=True))
    return sorted(refs, key=_by_key)


def suffixes_of(images: Images) -> tuple[str, ...]:
    """The endings of what is an image of the set."""
    return (*IMAGE_SUFFIXES, *HEIF_SUFFIXES) if images.heif else IMAGE_SUFFIXES


def _texts_beside(found: Listing) -> Iterator[str]:
    """The files that hold the caption of an image of their name."""
    texts = (name for name in found.others if name.lower().endswith(TEXT_SUFFIXES))
    return (name for name in texts if _has_stem(found.files, f"{name.rpartition('.')[0]}."))


def _has_stem(files: Sequence[str], start: str) -> bool:
    """Whether one of the files is that start and an ending; they are in order, and no set of them all is made."""
    after = (files[at] for at in range(bisect_left(files, start), len(files)))
    return any("." not in name[len(start) :] for name in takewhile(lambda name: name.startswith(start), after))


def _file_itself(_images: FolderImages, ref: ImageRef) -> Iterator[ImageRef]:
    yield ref


def _read_file(
    images: FolderImages, ref: ImageRef, _seed: int, keys: Collection[str] | None
) -> Iterator[SourceImage | Rejected]:
    if keys is not None and ref.key not in keys:
        return
    place = child(images.path, ref.uri)
    try:
        data = _read_image_file(place, ref)
        caption = None if keys is not None else ref.caption or caption_beside(place)
    except OSError as error:
        yield _unreadable(images, ref, error)
        return
    yield data if isinstance(data, Rejected) else SourceImage(uri=ref.uri, data=data, caption=caption)


def _list_archives(images: ArchiveImages) -> list[ImageRef]:
    """Tar archives: WebDataset's, with a `.txt` or `.json` of the same name, and SA-1B's."""
    found = list_containers(images.path, ".tar")
    say_passed_over(images.path, found)
    return [ImageRef(uri=uri) for uri in found.files]


def _images_in_archive(images: ArchiveImages, ref: ImageRef) -> Iterator[ImageRef]:
    with open_local(container(images.path, ref.uri)) as file:
        members, _ = index_members(file, ref.uri)
    names = dict.fromkeys(_plain(images, member.name) for member in members)
    return (_within(ref, name) for name in names if _is_image(images, name))


def _read_archive(
    images: ArchiveImages, ref: ImageRef, seed: int, keys: Collection[str] | None
) -> Iterator[SourceImage | Rejected]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_local(container(images.path, ref.uri)))
            members, rejected = index_members(file, ref.uri)
        except OSError as error:
            yield _unreadable(images, ref, error)
            return
        yield from rejected
        by_name: dict[str, Member] = {}
        for member in members:
            name = _plain(images, member.name)
            if by_name.setdefault(name, member) is not member:
                again = _within(ref, member.name).key
                yield Rejected(key=again, reason=Reason.DUPLICATE_KEY, detail=f"again {name}, but for its ./")
        # of keys that a run has already, what is called junk now may be one
        found = {_within(ref, name): name for name in by_name if _is_image(images, name, junk=keys is not None)}
        texts = _texts_in_archive(images, by_name, found.values()) if keys is None else {}
        for image in sorted(found, key=_by_key):
            if _is_wanted(image, seed, keys):
                text = texts.get(found[image])
                caption = _archived_caption(file, by_name[text]) if text else None
                yield _read_image_member(file, by_name[found[image]], image, caption)


def _is_image(images: Images, name: str, junk: bool = False) -> bool:
    return name.lower().endswith(suffixes_of(images)) and (junk or not is_junk(name))


def _plain(images: ArchiveImages, name: str) -> str:
    """SA-1B's archives say `./sa_1.jpg`; the image is `sa_1.jpg`."""
    return name.removeprefix("./") if isinstance(images, Sa1bImages) else name


def _read_image_member(
    file: BinaryIO, member: Member, image: ImageRef, caption: bytes | None
) -> SourceImage | Rejected:
    if not is_utf8(member.name):
        return Rejected(key=image.key, reason=Reason.UNSUPPORTED, detail="a name that is not UTF-8")
    if member.size_bytes > MAX_IMAGE_BYTES:
        return Rejected(key=image.key, reason=Reason.TOO_LARGE, detail=f"{member.size_bytes} bytes")
    return SourceImage(uri=image.uri, data=read_member(file, member), caption=caption)


def _texts_in_archive(images: ArchiveImages, names: Collection[str], found: Collection[str]) -> Mapping[str, str]:
    """The file with the caption of each image. SA-1B's JSON is not read: it holds masks, some megabytes of them."""
    return texts_beside(names, found, TEXT_ENDINGS if isinstance(images, Sa1bImages) else ENDINGS)


def _archived_caption(file: BinaryIO, text: Member) -> bytes | None:
    limit = MAX_JSON_BYTES if text.name.lower().endswith(".json") else MAX_CAPTION_BYTES
    return caption_in(text.name, read_start(file, text, limit))


def _list_tables(images: ParquetImages) -> list[ImageRef]:
    """Parquet files, as Hugging Face stores images: a column of `{bytes, path}`, of bytes, or of paths."""
    found = list_containers(images.path, ".parquet")
    named = {name for name in found.others if name.lower().endswith(suffixes_of(images))}  # by a table's paths, perhaps
    say_passed_over(images.path, found, named)
    refs = [ImageRef(uri=uri) for uri in found.files]
    if refs:
        _check_columns(images, container(images.path, refs[0].uri))
    return refs


def _check_columns(images: ParquetImages, place: Place) -> None:
    try:
        with open_parquet(place) as file:
            found = file.schema_arrow.names
    except (pa.ArrowException, OSError):
        return  # who reads the images rejects the file, and goes on with the others
    if missing := [name for name in _columns(images) if name not in found]:
        key = "image_column" if missing[0] == images.image_column else "caption_column"
        raise InputError(f"images.{key}: {place} has no column {missing[0]!r}, but {', '.join(found)[:200]}")


def _columns(images: ParquetImages) -> list[str]:
    return [images.image_column, *([images.caption_column] if images.caption_column else [])]


def _images_in_table(images: ParquetImages, ref: ImageRef) -> Iterator[ImageRef]:
    try:
        with open_parquet(container(images.path, ref.uri)) as file:
            rows = file.metadata.num_rows
    except (pa.ArrowException, OSError):
        rows = 0
    return (_row_of(ref, row) for row in range(rows))


def _row_of(ref: ImageRef, row: int) -> ImageRef:
    """A row of a table, numbered with as many digits as keep the order of keys that of the rows."""
    return _within(ref, f"{row:09d}")


def _read_table(
    images: ParquetImages, ref: ImageRef, seed: int, keys: Collection[str] | None
) -> Iterator[SourceImage | Rejected]:
    """Yield the images in the order of rows; damage ends the file and is rejected once."""
    place = container(images.path, ref.uri)
    try:
        with open_parquet(place) as file:
            if missing := [name for name in _columns(images) if name not in file.schema_arrow.names]:
                yield Rejected(key=ref.key, reason=Reason.UNSUPPORTED, detail=f"no column {missing[0]}")
                return
            columns = _columns(images)[: 2 if keys is None else 1]
            for group, numbers in enumerate(_row_numbers(file)):
                rows = [_row_of(ref, number) for number in numbers]
                wanted = [_is_wanted(row, seed, keys) for row in rows]
                if any(wanted):
                    found = compress(zip(rows, _cells(file, group, columns), strict=True), wanted)
                    yield from (_image_of_row(images, place, row, cells) for row, cells in found)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError):
            check_mounted(images.path, error)
        detail = (str(error) or type(error).__name__).splitlines()[0]
        yield Rejected(key=ref.key, reason=Reason.DAMAGED_ARCHIVE, detail=detail)


def _row_numbers(file: pq.ParquetFile) -> list[range]:
    """The numbers of the rows of each row group."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return [range(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def _cells(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[list[pa.Scalar]]:
    """The cells of each row of a row group, some rows at a time, so that memory does not follow the group."""
    for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
        cells = [batch.column(name) for name in columns]
        for row in range(batch.num_rows):
            yield [column[row] for column in cells]


def _image_of_row(images: ParquetImages, place: Place, row: ImageRef, cells: list[pa.Scalar]) -> SourceImage | Rejected:
    data = _image_in_cell(images, place, row, cells[0].as_py())
    if isinstance(data, Rejected):
        return data
    return SourceImage(uri=row.uri, data=data, caption=_caption_in_cell(cells[1].as_py()) if len(cells) > 1 else None)


def _image_in_cell(images: ParquetImages, place: Place, row: ImageRef, value: Any) -> bytes | Rejected:
    """The image itself, or the file beside the table that the cell names."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(data, bytes):
        if len(data) > MAX_IMAGE_BYTES:
            return Rejected(key=row.key, reason=Reason.TOO_LARGE, detail=f"{len(data)} bytes")
        return data
    if not isinstance(path, str) or not path:
        return Rejected(key=row.key, reason=Reason.UNREADABLE, detail="the cell holds no image")
    file = file_beside(place, path)
    if file is None:
        detail = "a path that leads out of the table's folder, or a URL"
        return Rejected(key=row.key, reason=Reason.UNSUPPORTED, detail=detail)
    try:
        return _read_image_file(file, row)
    except OSError as error:
        return _unreadable(images, row, error)


def _caption_in_cell(value: Any) -> bytes | None:
    """A text, or the first of a list of texts."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    return value[:MAX_CAPTION_BYTES] if isinstance(value, bytes) else None


_ARCHIVES = ImageKind((".tar",), _list_archives, _images_in_archive, _read_archive)

KINDS: Mapping[str, ImageKind] = {
    "folder": ImageKind(IMAGE_SUFFIXES, _list_folder, _file_itself, _read_file),
    "webdataset": _ARCHIVES,
    "sa1b": _ARCHIVES,
    "parquet": ImageKind((".parquet",), _list_tables, _images_in_table, _read_table),
}
