"""Images in tar archives: WebDataset's, with a `.txt` or `.json` of the same name, and SA-1B's."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import BinaryIO

from sonify.config import Sa1bImages, WebDatasetImages
from sonify.io.places import check_mounted, is_utf8, open_local
from sonify.io.tars import Member, index_members, read_member
from sonify.keys import escape_key
from sonify.rows import ImageRef, Reason, Rejected, SourceImage
from sonify.sources.containers import container, list_containers
from sonify.sources.images.folder import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
    json_caption,
)
from sonify.sources.images.sampling import is_sampled, sampling_bound

ArchiveImages = WebDatasetImages | Sa1bImages


def list_archives(images: ArchiveImages, seed: int, below: int | None) -> Iterator[tuple[ImageRef, ...]]:
    """Yield each archive as a unit. A sample of a store's archives reads them all, once."""
    uris = list_containers(images.path, ".tar")
    below = sampling_bound(
        images.sample, below, seed, lambda: (key for uri in uris for key in archive_keys(images, uri))
    )
    for uri in uris:
        yield (ImageRef(uri=uri, caption=b"", below=below),)


def read_archive(
    images: ArchiveImages, ref: ImageRef, seed: int, keys: Collection[str] | None
) -> Iterator[SourceImage | Rejected]:
    """Yield the images of one archive, in the order of their keys."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_local(container(images.path, ref.uri)))
            members, rejected = index_members(file, ref.uri)
        except OSError as error:
            check_mounted(images.path, error)
            yield Rejected(key=escape_key(ref.uri), reason=Reason.UNREADABLE, detail=error.strerror or str(error))
            return
        yield from rejected
        by_name: dict[str, Member] = {}
        for member in members:
            name = _plain(images, member.name)
            if by_name.setdefault(name, member) is not member:
                again = escape_key(f"{ref.uri}/{member.name}")
                yield Rejected(key=again, reason=Reason.DUPLICATE_KEY, detail=f"again {name}, but for its ./")
        named = sorted((escape_key(f"{ref.uri}/{name}"), name) for name in by_name if _is_image(name))
        for key, name in named:
            if is_sampled(key, seed, ref.below) and (keys is None or key in keys):
                caption = _caption(images, file, by_name, name) if keys is None else None
                yield _read_image(file, by_name[name], key, f"{ref.uri}/{name}", caption)


def archive_keys(images: ArchiveImages, uri: str) -> Iterator[str]:
    """The keys of an archive's images, from its headers."""
    with open_local(container(images.path, uri)) as file:
        members, _ = index_members(file, uri)
    names = dict.fromkeys(_plain(images, member.name) for member in members)
    return (escape_key(f"{uri}/{name}") for name in names if _is_image(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _plain(images: ArchiveImages, name: str) -> str:
    """SA-1B's archives say `./sa_1.jpg`; the image is `sa_1.jpg`."""
    return name.removeprefix("./") if isinstance(images, Sa1bImages) else name


def _read_image(file: BinaryIO, member: Member, key: str, uri: str, caption: bytes | None) -> SourceImage | Rejected:
    if not is_utf8(member.name):
        return Rejected(key=key, reason=Reason.UNSUPPORTED, detail="a name that is not UTF-8")
    if member.size_bytes > MAX_IMAGE_BYTES:
        return Rejected(key=key, reason=Reason.TOO_LARGE, detail=f"{member.size_bytes} bytes")
    return SourceImage(key=key, uri=uri, data=read_member(file, member), caption=caption)


def _caption(images: ArchiveImages, file: BinaryIO, by_name: Mapping[str, Member], name: str) -> bytes | None:
    """The caption beside an image. SA-1B's JSON holds masks, some megabytes of them, and no caption: it is not read."""
    stem = name.rpartition(".")[0]
    if text := by_name.get(f"{stem}.txt"):
        return read_member(file, replace(text, size_bytes=min(text.size_bytes, MAX_TEXT_BYTES)))
    record = by_name.get(f"{stem}.json")
    if record is None or isinstance(images, Sa1bImages):
        return None
    return json_caption(read_member(file, replace(record, size_bytes=min(record.size_bytes, MAX_JSON_BYTES))))
