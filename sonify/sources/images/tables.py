"""Images in Parquet files, as Hugging Face stores them: a column of `{bytes, path}`, of bytes, or of paths.

The key is the row's number. Rows are read some at a time, so that memory follows the batch and not the row group.
"""

from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sonify.config import ParquetImages
from sonify.errors import InputError
from sonify.io.places import check_mounted, open_place
from sonify.keys import escape_key
from sonify.rows import ImageRef, Reason, Rejected, SourceImage
from sonify.sources.containers import container, file_beside, list_containers
from sonify.sources.images.folder import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, read_image_file
from sonify.sources.images.sampling import is_sampled, sampling_bound
from sonify.stores import Place

# Decoded at once; a few megabytes of photographs.
BATCH_ROWS = 16
# A column's pages are read through a buffer of this size: without one its whole part of a row group is held.
BUFFER_BYTES = 1 << 20


def list_tables(images: ParquetImages, seed: int, below: int | None) -> Iterator[tuple[ImageRef, ...]]:
    """Yield each file as a unit; a sample needs the number of rows only.

    Raises:
        InputError: the first file has no such column, or a sample is to be drawn from a file that is none.
    """
    uris = list_containers(images.path, ".parquet")
    if uris:
        _check_columns(images, container(images.path, uris[0]))
    below = sampling_bound(images.sample, below, seed, lambda: (key for uri in uris for key in table_keys(images, uri)))
    for uri in uris:
        yield (ImageRef(uri=uri, caption=b"", below=below),)


def read_table(
    images: ParquetImages, ref: ImageRef, seed: int, keys: Collection[str] | None
) -> Iterator[SourceImage | Rejected]:
    """Yield the images of one file in the order of its rows; damage ends it and is rejected once."""
    place = container(images.path, ref.uri)
    try:
        with _open(place) as file:
            if missing := [name for name in _columns(images) if name not in file.schema_arrow.names]:
                yield Rejected(key=escape_key(ref.uri), reason=Reason.UNSUPPORTED, detail=f"no column {missing[0]}")
                return
            for group, numbers in enumerate(_row_numbers(file)):
                wanted = {n for n in numbers if _is_wanted(ref, n, seed, keys)}
                if wanted:
                    rows = zip(numbers, _rows(file, group, _columns(images)[: 2 if keys is None else 1]), strict=True)
                    yield from (_image(images, place, row_uri(ref.uri, n), row) for n, row in rows if n in wanted)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError):
            check_mounted(images.path, error)
        detail = (str(error) or type(error).__name__).splitlines()[0]
        yield Rejected(key=escape_key(ref.uri), reason=Reason.DAMAGED_ARCHIVE, detail=detail)


def row_uri(uri: str, row: int) -> str:
    """How a row is named: with as many digits as keep the order of keys that of the rows."""
    return f"{uri}/{row:09d}"


def _open(place: Place) -> pq.ParquetFile:
    source: Any = place if isinstance(place, Path) else open_place(place)
    return pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)


def _columns(images: ParquetImages) -> list[str]:
    return [images.image_column, *([images.caption_column] if images.caption_column else [])]


def _check_columns(images: ParquetImages, place: Place) -> None:
    try:
        with _open(place) as file:
            found = file.schema_arrow.names
    except (pa.ArrowException, OSError):
        return  # who reads the images rejects the file, and goes on with the others
    if missing := [name for name in _columns(images) if name not in found]:
        key = "image_column" if missing[0] == images.image_column else "caption_column"
        raise InputError(f"images.{key}: {place} has no column {missing[0]!r}, but {', '.join(found)[:200]}")


def table_keys(images: ParquetImages, uri: str) -> Iterator[str]:
    """The keys of a table's images, from its footer."""
    try:
        with _open(container(images.path, uri)) as file:
            rows = file.metadata.num_rows
    except (pa.ArrowException, OSError):
        rows = 0
    return (escape_key(row_uri(uri, row)) for row in range(rows))


def _row_numbers(file: pq.ParquetFile) -> list[range]:
    """The numbers of the rows of each row group."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return [range(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def _is_wanted(ref: ImageRef, row: int, seed: int, keys: Collection[str] | None) -> bool:
    key = escape_key(row_uri(ref.uri, row))
    return is_sampled(key, seed, ref.below) and (keys is None or key in keys)


def _rows(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[list[pa.Scalar]]:
    """The cells of each row of a row group."""
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
        cells = [batch.column(name) for name in columns]
        for row in range(batch.num_rows):
            yield [column[row] for column in cells]


def _image(images: ParquetImages, place: Place, uri: str, cells: list[pa.Scalar]) -> SourceImage | Rejected:
    key = escape_key(uri)
    data = _image_bytes(images, place, key, cells[0].as_py())
    if isinstance(data, Rejected):
        return data
    return SourceImage(key=key, uri=uri, data=data, caption=_caption(cells[1].as_py()) if len(cells) > 1 else None)


def _image_bytes(images: ParquetImages, place: Place, key: str, value: Any) -> bytes | Rejected:
    """The image itself, or the file beside the table that the cell names."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(data, bytes):
        if len(data) > MAX_IMAGE_BYTES:
            return Rejected(key=key, reason=Reason.TOO_LARGE, detail=f"{len(data)} bytes")
        return data
    if not isinstance(path, str) or not path:
        return Rejected(key=key, reason=Reason.UNREADABLE, detail="the cell holds no image")
    file = file_beside(place, path)
    if file is None:
        return Rejected(
            key=key, reason=Reason.UNSUPPORTED, detail="a path that leads out of the table's folder, or a URL"
        )
    try:
        return read_image_file(file, key)
    except OSError as error:
        check_mounted(images.path, error)
        return Rejected(key=key, reason=Reason.UNREADABLE, detail=error.strerror or "no such file")


def _caption(value: Any) -> bytes | None:
    """A text, or the first of a list of texts."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    return value[:MAX_TEXT_BYTES] if isinstance(value, bytes) else None
