"""Image sets: what there is (`list_images`, by the driver) and what it holds (`read_images`, by a worker).

A unit's frozen listing is a list of `ImageRef`: the files of a folder's block, or one archive. Keys are the escaped
path relative to the image set, so they are unique without looking at other units.
"""

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from sonify.config import FolderImages, Images, WebDatasetImages
from sonify.engine.tars import Member, index_tar, read_member
from sonify.errors import InputError
from sonify.keys import escape_key, hash64
from sonify.rows import ImageRef, Reason, Rejected, SourceImage
from sonify.sources.files import check_mounted, is_utf8, with_readable_names
from sonify.sources.usertables import read_user_table

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CAPTION_TABLES = ("captions.csv", "captions.parquet")
# Far above any camera's file; a file that claims more is refused unread.
MAX_IMAGE_BYTES = 128 << 20
# A caption is cut here, which its own checks then refuse; SA-1B's JSON with its masks reaches some megabytes.
MAX_TEXT_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20


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
        units = _list_folder(images, seed, below)
    else:
        units = _list_archives(images, seed, below)
    first = next(units, None)
    if first is None:
        found = "no .tar file" if isinstance(images, WebDatasetImages) else f"no {', '.join(IMAGE_SUFFIXES)} file"
        raise InputError(f"images.path: {images.path} holds {found}: nothing to do")
    yield from chain([first], units)


def read_images(images: Images, refs: Sequence[ImageRef], seed: int) -> Iterator[SourceImage | Rejected]:
    """Yield the images of one unit in the order of their keys, or why one cannot be had."""
    if isinstance(images, FolderImages):
        for ref in refs:
            yield _read_file(images.path, ref)
    else:
        for ref in refs:
            yield from _read_archive(images.path, ref, seed)


def captions_by_uri(table: Path) -> dict[str, bytes]:
    """Read a captions table (file, caption).

    Raises:
        InputError: it is not such a table.
    """
    columns = read_user_table(table, ("file", "caption"))
    files = (file.decode("utf-8", "surrogateescape") for file in columns["file"])
    return dict(zip(files, columns["caption"], strict=True))


def _list_folder(images: FolderImages, seed: int, below: int | None) -> Iterator[tuple[ImageRef, ...]]:
    tables = [images.path / name for name in CAPTION_TABLES if (images.path / name).is_file()]
    captions = captions_by_uri(tables[0]) if tables else {}
    uris = _relative_files(images.path, IMAGE_SUFFIXES)
    if images.sample is None:
        below = 0
    elif below is None:
        below = _sampling_bound((escape_key(uri) for uri in uris), images.sample, seed)
    if below:
        uris = [uri for uri in uris if _sampling_hash(escape_key(uri), seed) < below]
    uris.sort(key=escape_key)
    for start in range(0, len(uris), images.shard_size):
        block = uris[start : start + images.shard_size]
        yield tuple(ImageRef(uri=uri, caption=captions.get(uri, b""), below=below) for uri in block)


def _list_archives(images: WebDatasetImages, seed: int, below: int | None) -> Iterator[tuple[ImageRef, ...]]:
    uris = [images.path.name] if images.path.is_file() else _relative_files(images.path, (".tar",))
    if images.sample is None:
        below = 0
    elif below is None:
        keys = chain.from_iterable(_archive_keys(_archive(images.path, uri), uri) for uri in uris)
        below = _sampling_bound(keys, images.sample, seed)
    for uri in sorted(uris, key=escape_key):
        yield (ImageRef(uri=uri, caption=b"", below=below),)


def _relative_files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    found = (path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return with_readable_names(path.relative_to(root).as_posix() for path in found)


def _archive(root: Path, uri: str) -> Path:
    return root if root.is_file() else root / uri


def _archive_keys(archive: Path, uri: str) -> Iterator[str]:
    members, _ = index_tar(archive, uri)
    return (escape_key(f"{uri}/{m.name}") for m in members if m.name.lower().endswith(IMAGE_SUFFIXES))


def _sampling_hash(key: str, seed: int) -> int:
    return hash64(seed, "sample", key) >> 1  # one bit less, to fit Parquet's signed 64-bit integers


def _sampling_bound(keys: Iterable[str], sample: int, seed: int) -> int:
    """The bound below which exactly `sample` sampling hashes lie, or all where there are fewer."""
    lowest = heapq.nsmallest(sample, (_sampling_hash(key, seed) for key in keys))
    return lowest[-1] + 1 if lowest else 0


def _read_file(root: Path, ref: ImageRef) -> SourceImage | Rejected:
    key = escape_key(ref.uri)
    path = root / ref.uri
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            return Rejected(key=key, reason=Reason.TOO_LARGE, detail=f"{path.stat().st_size} bytes")
        data = path.read_bytes()
        caption = ref.caption or _sidecar_caption(path)
    except OSError as error:
        check_mounted(root, error)
        return Rejected(key=key, reason=Reason.UNREADABLE, detail=error.strerror or str(error))
    return SourceImage(key=key, uri=ref.uri, data=data, caption=caption)


def _sidecar_caption(path: Path) -> bytes | None:
    text = path.with_suffix(".txt")
    if text.is_file():
        with text.open("rb") as file:
            return file.read(MAX_TEXT_BYTES)
    record = path.with_suffix(".json")
    if record.is_file():
        with record.open("rb") as file:
            return _json_caption(file.read(MAX_JSON_BYTES))
    return None


def _json_caption(data: bytes) -> bytes | None:
    """The `caption` of a JSON object; a broken object is handed on as no UTF-8, for the caption's checks to refuse."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return b"\xff not JSON"
    caption = record.get("caption") if isinstance(record, dict) else None
    return caption.encode("utf-8", "surrogatepass") if isinstance(caption, str) else None


def _read_archive(root: Path, ref: ImageRef, seed: int) -> Iterator[SourceImage | Rejected]:
    archive = _archive(root, ref.uri)
    try:
        members, rejected = index_tar(archive, ref.uri)
    except OSError as error:
        check_mounted(root, error)
        yield Rejected(key=escape_key(ref.uri), reason=Reason.UNREADABLE, detail=error.strerror or str(error))
        return
    yield from rejected
    by_name = {member.name: member for member in members}
    images = sorted((escape_key(f"{ref.uri}/{m.name}"), m) for m in members if m.name.lower().endswith(IMAGE_SUFFIXES))
    with archive.open("rb") as file:
        for key, member in images:
            if ref.below and _sampling_hash(key, seed) >= ref.below:
                continue
            if not is_utf8(member.name):
                yield Rejected(key=key, reason=Reason.UNSUPPORTED, detail="a name that is not UTF-8")
                continue
            if member.size_bytes > MAX_IMAGE_BYTES:
                yield Rejected(key=key, reason=Reason.TOO_LARGE, detail=f"{member.size_bytes} bytes")
                continue
            caption = _member_caption(file, by_name, member.name.rpartition(".")[0])
            yield SourceImage(key=key, uri=f"{ref.uri}/{member.name}", data=read_member(file, member), caption=caption)


def _member_caption(file: BinaryIO, by_name: Mapping[str, Member], stem: str) -> bytes | None:
    if text := by_name.get(f"{stem}.txt"):
        return read_member(file, replace(text, size_bytes=min(text.size_bytes, MAX_TEXT_BYTES)))
    if record := by_name.get(f"{stem}.json"):
        return _json_caption(read_member(file, replace(record, size_bytes=min(record.size_bytes, MAX_JSON_BYTES))))
    return None
