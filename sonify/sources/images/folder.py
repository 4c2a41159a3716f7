"""Images as files in a folder, each with a caption in a table or beside it."""

import json
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from upath import UPath

from sonify.config import FolderImages
from sonify.io.places import check_mounted, child, is_file, list_files, read_ahead, read_bytes
from sonify.keys import escape_key
from sonify.rows import ImageRef, Reason, Rejected, SourceImage
from sonify.sources.captions import read_captions_table
from sonify.sources.images.sampling import is_sampled, sampling_bound
from sonify.stores import Place

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CAPTION_TABLES = ("captions.csv", "captions.parquet")
# Far above any camera's file; a file that claims more is refused unread.
MAX_IMAGE_BYTES = 128 << 20
# A caption is cut here, which its own checks then refuse.
MAX_TEXT_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20


def list_folder(images: FolderImages, seed: int, below: int | None) -> Iterator[tuple[ImageRef, ...]]:
    """Yield blocks of `shard_size` files in the order of their keys."""
    tables = [images.path / name for name in CAPTION_TABLES if is_file(images.path / name)]
    captions = read_captions_table(tables[0]) if tables else {}
    uris = sorted(list_files(images.path, IMAGE_SUFFIXES), key=escape_key)
    below = sampling_bound(images.sample, below, seed, lambda: map(escape_key, uris))
    uris = [uri for uri in uris if is_sampled(escape_key(uri), seed, below)]
    for start in range(0, len(uris), images.shard_size):
        block = uris[start : start + images.shard_size]
        yield tuple(ImageRef(uri=uri, caption=captions.get(uri, b""), below=below) for uri in block)


def read_folder(
    images: FolderImages, refs: Sequence[ImageRef], keys: Collection[str] | None
) -> Iterator[SourceImage | Rejected]:
    """Yield each listed file; those of a store are asked for some ahead."""
    wanted = refs if keys is None else [ref for ref in refs if escape_key(ref.uri) in keys]
    read = partial(_read_ref, images.path, with_caption=keys is None)
    yield from map(read, wanted) if isinstance(images.path, Path) else read_ahead(read, wanted)


def _read_ref(root: Place, ref: ImageRef, with_caption: bool) -> SourceImage | Rejected:
    key = escape_key(ref.uri)
    place = child(root, ref.uri)
    try:
        data = read_image_file(place, key)
        caption = None
        if with_caption:
            caption = ref.caption or _sidecar_caption(place)
    except OSError as error:
        check_mounted(root, error)
        return Rejected(key=key, reason=Reason.UNREADABLE, detail=error.strerror or str(error))
    if isinstance(data, Rejected):
        return data
    return SourceImage(key=key, uri=ref.uri, data=data, caption=caption)


def read_image_file(place: Place, key: str) -> bytes | Rejected:
    """The bytes of one image file, or why they are refused.

    Raises:
        OSError: it cannot be read.
        TransientError: the store cannot be reached.
    """
    data = read_bytes(place, MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        return Rejected(key=key, reason=Reason.TOO_LARGE, detail=f"more than {MAX_IMAGE_BYTES} bytes")
    return data


def json_caption(data: bytes) -> bytes | None:
    """The `caption` of a JSON object; a broken object is handed on as no UTF-8, for the caption's checks to refuse."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return b"\xff not JSON"
    caption = record.get("caption") if isinstance(record, dict) else None
    return caption.encode("utf-8", "surrogatepass") if isinstance(caption, str) else None


def _sidecar_caption(place: Place) -> bytes | None:
    text = _read_beside(place.with_suffix(".txt"), MAX_TEXT_BYTES)
    if text is not None:
        return text
    record = _read_beside(place.with_suffix(".json"), MAX_JSON_BYTES)
    return None if record is None else json_caption(record)


def _read_beside(place: Place, limit: int) -> bytes | None:
    """A file that may be there."""
    if isinstance(place, UPath):
        try:
            return read_bytes(place, limit)
        except FileNotFoundError:
            return None
    return read_bytes(place, limit) if place.is_file() else None
