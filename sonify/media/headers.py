"""What image files say of themselves, read before a library opens them: it may make whatever a header claims.

Everything here raises `ValueError` or `struct.error` of what is no such file, or one that nobody writes.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

ImageKind = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp"),
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".tif", ".tiff"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # under `images.heif`

_SIGNATURES: tuple[tuple[bytes, ImageKind], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    *((signature, "TIFF") for signature in (b"II*\0", b"MM\0*", b"II+\0\x08\0", b"MM\0+\0\x08")),
    (b"BM", "BMP"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
)
_FOREIGN = {b"8BPS": "PSD", b"%!PS": "PostScript", b"%PDF": "PDF", b"\0\0\1\0": "ICO", b"\xffO\xffQ": "JPEG 2000"}

# Decompressed, of one chunk, by Pillow; it refuses a picture with a longer one.
_PNG_TEXT_BYTES = 1 << 20
# Of print shops' profiles the largest have some megabytes.
MAX_PROFILE_BYTES = 16 << 20
# Texts that may say how a picture is turned.
_TURNING = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_TEXTS_KEPT = 8
# A marker in a JPEG's entropy-coded data that is neither a stuffed byte, nor fill, nor a restart.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_TIFF_ENTRIES = 1024
_TIFF_BYTES = (1, 2, 6, 7)  # the types whose values Pillow leaves as bytes
# Nobody writes the signed ones (6, 8, 9, 17) and 13, but Pillow and libtiff take them for a size.
_TIFF_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q", 17: "q"}
_TIFF_PIECES = (273, 279, 324, 325)  # offsets and sizes of strips and tiles
# The longest of any other tag that Pillow looks at is the palette of 16-bit pictures.
_TIFF_VALUES = 3 * 65536
# Tiles of 16 x 16 over 100 megapixels; each becomes an object.
_TIFF_MOST_PIECES = 400_000


def kind_of_image(data: bytes) -> ImageKind | None:
    """What a file is by its leading bytes; None is nothing that is read."""
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    brands = _brands(data)
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def foreign_kind(data: bytes) -> str | None:
    """The name of a kind that is known and not read."""
    return "a video or its like" if data[4:8] == b"ftyp" else _FOREIGN.get(data[:4])


def _brands(data: bytes) -> frozenset[bytes]:
    """Source: ISO/IEC 14496-12, 4.3: the major brand, its version, and those that the file is compatible with."""
    if data[4:8] != b"ftyp":
        return frozenset()
    box = data[8 : min(int.from_bytes(data[:4], "big"), 1024)]
    return frozenset(box[at : at + 4] for at in range(0, len(box), 4) if at != 4)


def jpeg_scans(data: bytes) -> int:
    """How many scans a JPEG has up to its end: another picture or a film may follow, as telephones write them."""
    scans, at = 0, 2
    while found := _JPEG_MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def webp_size(data: bytes) -> tuple[int, int]:
    """Source: RFC 9649, sections 2.5 to 2.7."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffHead:
    """What the first picture of a TIFF claims; `piece_bytes` is one strip or tile, unpacked."""

    width: int
    height: int
    compression: int
    piece_bytes: int


def read_tiff_head(data: bytes) -> TiffHead:
    """Read the first directory.

    Raises:
        ValueError: it is damaged, or claims more values or pieces than any picture has.
    Source: TIFF 6.0, section 2; BigTIFF has entries of 20 bytes.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(f"{order}Q" if big else f"{order}L", data, 8 if big else 4)
    (entries,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, start)
    if entries > _TIFF_ENTRIES:
        raise ValueError(f"{entries} tags in the first directory")
    first: dict[int, int] = {}
    for entry in range(entries):
        at = start + (8 + 20 * entry if big else 2 + 12 * entry)
        tag, kind, count = struct.unpack_from(f"{order}HHQ" if big else f"{order}HHL", data, at)
        most = _TIFF_MOST_PIECES if tag in _TIFF_PIECES else _TIFF_VALUES
        if count > most and kind not in _TIFF_BYTES:
            raise ValueError(f"{count} values of tag {tag}")
        if tag in first:
            raise ValueError(f"tag {tag} twice")
        first[tag] = _tiff_value(data, order, big, at)
    return _tiff_head(first)


def _tiff_value(data: bytes, order: str, big: bool, entry: int) -> int:
    """The first value of a tag that holds whole numbers, 0 of others."""
    kind, count = struct.unpack_from(f"{order}HQ" if big else f"{order}HL", data, entry + 2)
    letter = _TIFF_NUMBERS.get(kind)
    if letter is None or count == 0:
        return 0
    at, room = entry + (12 if big else 8), 8 if big else 4
    if count * struct.calcsize(f"={letter}") > room:
        (at,) = struct.unpack_from(f"{order}Q" if big else f"{order}L", data, at)
    return struct.unpack_from(f"{order}{letter}", data, at)[0] if at < len(data) else 0


def _tiff_head(first: dict[int, int]) -> TiffHead:
    width, height = first.get(256, 0), first.get(257, 0)
    strip = width, min(first.get(278) or height, height)
    across, down = (first[322], first.get(323, 0)) if 322 in first else strip
    bits = max(first.get(258, 1), 1) * max(first.get(277, 1), 1)
    return TiffHead(
        width=width,
        height=height,
        compression=first.get(259, 1),
        piece_bytes=(across * bits + 7) // 8 * down,
    )


def without_long_texts(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without the texts and the profile that are too long for Pillow, and that profile.

    It unpacks each up to a limit and refuses the picture beyond; the pixels do not need them. Of texts only those stay
    that may say how the picture is turned. A chunk whose checksum is wrong stays, to be found.

    Source: PNG (third edition), sections 5.3 and 11.3.
    """
    kept: list[bytes] = []
    profile: bytes | None = None
    texts, at, start = 0, 8, 0
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        drop = False
        if name in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") and end <= len(data):
            body = data[at + 8 : end - 4]
            whole = zlib.crc32(body, zlib.crc32(name)) == int.from_bytes(data[end - 4 : end], "big")
            if name == b"iCCP":
                unpacked = _unpacked(body.partition(b"\0")[2][1:], MAX_PROFILE_BYTES)
                drop = whole and (unpacked is None or len(unpacked) > _PNG_TEXT_BYTES)
                profile = unpacked if drop else profile
            else:
                turning = texts < _TEXTS_KEPT and _may_turn(name, body)
                texts += turning
                drop = whole and not turning
        if drop:
            kept.append(data[start:at])
            start = end
        at = end
    return (b"".join((*kept, data[start:])) if kept else data), profile


def _may_turn(name: bytes, body: bytes) -> bool:
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _TURNING or len(body) > _PNG_TEXT_BYTES:
        return False
    packed = b""
    if name == b"zTXt":
        packed = rest[1:]
    elif name == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    return _unpacked(packed, _PNG_TEXT_BYTES) is not None


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """What was packed, as far as it is sound; None where it is longer than the limit."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, limit)
    except zlib.error:
        return b""
    return None if unpacker.unconsumed_tail else unpacked
