"""Images as a person sees them: opened without trust, upright, opaque, in sRGB.

Pillow's format classes are called directly: `Image.open` warns of sizes that are fine here, which no thread
can silence for itself, and puts memory addresses into its messages, so rejects would differ between runs.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageCms
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sonify.media.headers import (
    ImageKind,
    foreign_kind,
    jpeg_scans,
    kind_of_image,
    read_tiff_head,
    webp_size,
    without_long_texts,
)
from sonify.rows import Reason

MAX_PIXELS = 100_000_000  # 400 MB decoded; SA-1B has 3.4 megapixels, the largest common cameras have 61
MAX_BYTES = 4 * MAX_PIXELS
MAX_SIDE_PX = 65_500  # libjpeg's JPEG_MAX_DIMENSION: a longer side could not be written again
# Each scan is a pass over the whole picture, and an empty one is 14 bytes: 0.16 MB kept a core busy for 11 s.
# Progressive encoders write about ten.
MAX_JPEG_SCANS = 100
JPEG_QUALITY = 95
MOST_LONGER = 4  # a strip of 65,500 x 1,500 pixels would else be 110 MB, and a window holds many

# Of a GIF no more is read, and of that the first picture: a comment before it can have a block for each byte.
MAX_GIF_BYTES = 16 << 20
# Pillow unpacks run-length encoded bitmaps in Python, pixel by pixel.
MAX_RLE_PIXELS = MAX_RLE_BYTES = 16_000_000
# None, CCITT, LZW, JPEG, deflate (two numbers) and PackBits; the others of libtiff's nobody sends as photographs.
TIFF_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})
TIFF_PHOTOMETRIC = 262
_READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIF"
_WIDE_GREY = ("I;16", "I;16B", "I;16L")
# Not whole numbers of 32 bits, floats and LAB.
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", *_WIDE_GREY})

# What Pillow raises for damaged files: EOFError by its WebP source, the others seen in mutated files. AVIF and HEIF
# raise RuntimeError, an AVIF of no duration divides by it, and a TIFF may say by a fraction where its pixels are.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, RuntimeError, ArithmeticError)
_PNG_END = b"IEND\xaeB\x60\x82"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):
    """An image that is refused; `reason` and `detail` are those of its `Rejected`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """Width and height are of the upright picture. `verbatim`: the bytes may be kept as they are.

    That is an 8-bit RGB or grey JPEG that needs no turning.
    """

    width: int
    height: int
    verbatim: bool


def inspect_image(data: bytes) -> ImageInfo:
    """Check the size before any pixel is decoded, then prove that the file decodes to its end.

    Raises:
        UnreadableImage: damaged, too large, or of no kind that is read.
    """
    with _refusals():
        image = _open(data)
        width, height = image.size
        if isinstance(image, JpegImageFile):
            # To read the entropy-coded stream to its end is the proof; at 1/8 the rest of the work is small.
            image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
        _check_end(image, data)
        if _orientation(image) >= 5:
            width, height = height, width
        return ImageInfo(width=width, height=height, verbatim=_is_verbatim(image))


def decode_rgb(data: bytes, min_side: int | None = None) -> Image.Image:
    """Decode to 8-bit sRGB, upright, transparency over white, the first frame where there are several.

    With `min_side`, the shorter side becomes that many pixels; nothing is enlarged.

    Raises:
        UnreadableImage: damaged, too large, or of no kind that is read.
    """
    with _refusals():
        return _upright(_open(data), min_side)


def decode_for_model(data: bytes, shorter_side_px: int) -> tuple[ImageInfo, Image.Image]:
    """Decode once: what `inspect_image` says and proves, and the picture of `decode_rgb`.

    Raises:
        UnreadableImage: damaged, too large, or of no kind that is read.
    """
    with _refusals():
        image = _open(data)
        width, height = image.size
        picture = _upright(image, seen_side(image.size, shorter_side_px))
        _check_end(image, data)
        if _orientation(image) >= 5:
            width, height = height, width
        return ImageInfo(width=width, height=height, verbatim=_is_verbatim(image)), picture


def decode_square(data: bytes, size: int) -> np.ndarray:
    """Decode to (size, size, 3) uint8: the shorter side becomes `size`, what the longer has more is cut at both ends.

    Raises:
        UnreadableImage: damaged, too large, or of no kind that is read.
    """
    image = decode_rgb(data, size)  # leaves what is smaller as it is
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.array(square if side == size else square.resize((size, size), Image.Resampling.BICUBIC))


def seen_side(size: tuple[int, int], shorter_side_px: int) -> int:
    """The shorter side that a model sees, less than asked for where the longer would be over `MOST_LONGER` times it."""
    return max(1, min(shorter_side_px, MOST_LONGER * shorter_side_px * min(size) // max(size)))


def _upright(image: ImageFile, min_side: int | None) -> Image.Image:
    size = shrunk_size(image.size, min_side)
    # of other kinds too, pillow-heif would take a thumbnail for the picture
    draft = image.draft(None, size) if size != image.size and isinstance(image, JpegImageFile) else None
    image.load()
    picture = _opaque(image)
    if draft or picture.size != size:
        # Against full decode and LANCZOS, of heavy JPEGs (5 bits a pixel), BICUBIC is 2.2 times as fast,
        # LANCZOS 1.95. The box says where a scaled decode rounded its size up: else the picture shifts.
        box = draft[1] if draft else None
        picture = picture.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    picture = _srgb(picture, image.info.get("icc_profile"))
    orientation = _orientation(image)
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _check_end(image: ImageFile, data: bytes) -> None:
    """Refuse a PNG that is damaged behind its last pixel, where decoding stops."""
    if isinstance(image, PngImageFile):
        _open(data).verify()  # every chunk's checksum
        if _PNG_END not in data:
            raise UnreadableImage(Reason.UNREADABLE, "PNG file without its end")


def encode_jpeg(image: Image.Image) -> bytes:
    """Encode without metadata; the same image gives the same bytes."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, comment=b"")  # Pillow would carry a source's comment over
    return file.getvalue()


def to_jpeg(data: bytes, min_side: int | None) -> bytes:
    """Keep the bytes where they are already what is asked for, else decode, shrink and encode.

    Bytes that are kept are not decoded: `inspect_image` has proved them before.

    Raises:
        UnreadableImage: damaged, too large, or of no kind that is read.
    """
    with _refusals():
        image = _open(data)
        if _is_verbatim(image) and (min_side is None or min(image.size) <= min_side):
            return data
    return encode_jpeg(decode_rgb(data, min_side))


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise UnreadableImage(Reason.TOO_LARGE, f"at most {MAX_PIXELS // 1_000_000} megapixels are read") from error
    except _DECODER_ERRORS as error:
        raise UnreadableImage(Reason.UNREADABLE, " ".join(str(error).split())) from error


def _open(data: bytes) -> ImageFile:
    """Read the header only, and refuse what is too large; the leading bytes say what it is, never a name."""
    if (kind := kind_of_image(data)) is None:
        if found := foreign_kind(data):
            raise UnreadableImage(Reason.UNSUPPORTED, f"{found}, not {_READ}")
        raise UnreadableImage(Reason.UNREADABLE, f"not a {_READ} file" if data else "empty file")
    image = _open_kind(kind, data)
    _check_size(*image.size)
    if image.mode not in _MODES:
        raise UnreadableImage(
            Reason.UNSUPPORTED, f"pixels of Pillow's mode {image.mode}, of which nobody says the range"
        )
    return image


def _open_kind(kind: ImageKind, data: bytes) -> ImageFile:
    match kind:
        case "JPEG":
            image = JpegImageFile(io.BytesIO(data))
            _check_scans(image, data)
        case "PNG":
            image = _open_png(data)
        case "WEBP":
            _check_size(*webp_size(data))  # before the class is called: it makes the canvas at once
            image = WebPImageFile(io.BytesIO(data))
        case "TIFF":
            image = _open_tiff(data)
        case "BMP":
            image = BmpImageFile(io.BytesIO(data))
            _check_runs(image, data)
        case "GIF":
            image = GifImageFile(io.BytesIO(data[:MAX_GIF_BYTES]))
        case "AVIF":
            AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # else one for each CPU, for each picture, in each worker
            image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
        case "HEIF":
            image = _open_heif(data)
        case _:
            assert_never(kind)
    return image


def _check_scans(image: JpegImageFile, data: bytes) -> None:
    # to count in all of the file is quick, and never too few: the film behind a telephone's picture may look so
    if "progressive" in image.info and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        scans = jpeg_scans(data)
        if scans > MAX_JPEG_SCANS:
            raise UnreadableImage(Reason.TOO_LARGE, f"{scans} JPEG scans; at most {MAX_JPEG_SCANS} are read")


def _open_png(data: bytes) -> PngImageFile:
    plain, profile = without_long_texts(data)
    image = PngImageFile(io.BytesIO(plain))
    if image.mode == "P" and image.palette is None:
        raise UnreadableImage(Reason.UNREADABLE, "PNG of palette colours without a palette")
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def _open_tiff(data: bytes) -> TiffImageFile:
    head = read_tiff_head(data)
    _check_size(head.width, head.height)  # before the class is called, and before the canvas below is made
    if head.compression not in TIFF_COMPRESSIONS:
        raise UnreadableImage(Reason.UNSUPPORTED, f"TIFF of compression {head.compression}")
    if head.piece_bytes > MAX_BYTES:
        raise UnreadableImage(Reason.TOO_LARGE, f"{head.piece_bytes} bytes in a strip; at most {MAX_BYTES} are read")
    image = TiffImageFile(io.BytesIO(data))
    if image.mode in _WIDE_GREY and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0:
        raise UnreadableImage(Reason.UNSUPPORTED, "TIFF of 16 bits in which 0 is white")
    if head.width * head.height > (Image.MAX_IMAGE_PIXELS or 0):
        image.im = Image.core.new(image.mode, (head.width, head.height))  # else Pillow warns, of a size that is fine
    return image


def _check_runs(image: BmpImageFile, data: bytes) -> None:
    packed = int.from_bytes(data[30:34], "little") in (1, 2)
    if packed and (image.width * image.height > MAX_RLE_PIXELS or len(data) > MAX_RLE_BYTES):
        raise UnreadableImage(Reason.TOO_LARGE, f"run-length encoded bitmap of over {MAX_RLE_PIXELS:,} pixels or bytes")


def _open_heif(data: bytes) -> ImageFile:
    from pillow_heif import HeifImageFile  # noqa: PLC0415 - an extra, which who lists and reads images asks for

    return HeifImageFile(io.BytesIO(data))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        limit = f"{MAX_PIXELS // 1_000_000} megapixels and sides of {MAX_SIDE_PX}"
        raise UnreadableImage(Reason.TOO_LARGE, f"{width} x {height} pixels; at most {limit} are read")


def _is_verbatim(image: ImageFile) -> bool:
    return isinstance(image, JpegImageFile) and image.mode in ("RGB", "L") and _orientation(image) == 1


def _orientation(image: ImageFile) -> int:
    """The EXIF orientation, 1 to 8, of a loaded image or any JPEG: a PNG's may stand behind its pixels."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        return 1  # a viewer shows the picture although its metadata are damaged
    return orientation if orientation in _UPRIGHT else 1


def shrunk_size(size: tuple[int, int], min_side: int | None) -> tuple[int, int]:
    """Width and height with a shorter side of at most `min_side` pixels."""
    shorter = min(size)
    if min_side is None or shorter <= min_side:
        return size
    width, height = (round(side * min_side / shorter) for side in size)
    return width, height


def _opaque(image: Image.Image) -> Image.Image:
    """The picture over white, as 8-bit L, RGB or CMYK: the colours that its profile speaks of."""
    grey = image.mode in ("1", "L", "LA", "La", *_WIDE_GREY)
    if image.mode in _WIDE_GREY:
        image = _eight_bits(image)
    elif image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    if image.mode == "CMYK":
        return image
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey to 8 bits, with alpha where one value is transparent. Pillow's conversion clips."""
    wide = image.convert("I")  # the one mode for which `point` takes a table of 65,536 values
    grey = wide.point([round(value / 257) for value in range(65536)], "L")
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    alpha = wide.point([0 if value == clear else 255 for value in range(65536)], "L")
    return Image.merge("LA", (grey, alpha))


def _srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if not ImageCms.getProfileDescription(source).startswith("sRGB"):
                target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
                picture = ImageCms.ImageCmsTransform(source, target, picture.mode, "RGB").apply(picture)
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # damaged, or not for this kind of picture: viewers show the numbers as they are
    return picture if picture.mode == "RGB" else picture.convert("RGB")
