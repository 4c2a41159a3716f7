import io
import math
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

from sonify.media.pixels import (
    MAX_JPEG_SCANS,
    UnreadableImage,
    decode_for_model,
    decode_rgb,
    decode_square,
    encode_jpeg,
    inspect_image,
    to_jpeg,
)
from sonify.rows import Reason
from tests.builders import encoded, picture

RED = (255, 0, 0)
ORIENTATION = 0x0112


def quarters(width: int = 64, height: int = 32) -> Image.Image:
    """Four colours, so that every flip and turn shows."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), RED)
    draw.rectangle((width // 2, 0, width, height // 2 - 1), (0, 255, 0))
    draw.rectangle((0, height // 2, width // 2 - 1, height), (0, 0, 255))
    return image


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth light, sharp edges and grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for corners in rng.integers(0, (width, height), (40, 3, 2)):
        draw.polygon([(int(x), int(y)) for x, y in corners], tuple(int(c) for c in rng.integers(0, 256, 3)))
    grain = rng.normal(0, 4, (height, width, 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, before: tuple[bytes, ...] = ()) -> bytes:
    """A PNG written by hand. `rows` are the scan lines, each with its filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = (chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *before, *body))


def refusal(data: bytes, read: Callable[[bytes], object] = inspect_image) -> Reason:
    with pytest.raises(UnreadableImage) as caught:
        read(data)
    return caught.value.reason


def assert_near(image: Image.Image, xy: tuple[int, int], rgb: object, tolerance: int = 3) -> None:
    pixel = image.getpixel(xy)
    assert np.abs(np.asarray(pixel) - np.asarray(rgb)).max() <= tolerance, (pixel, rgb)


def psnr(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return 10 * math.log10(255**2 / error)


# How a picture must be turned away from upright so that the tag turns it back.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_gives_the_same_picture(orientation: int, kind: str) -> None:
    turn = STORED[orientation]
    stored = quarters() if turn is None else quarters().transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(stored, kind, exif=exif, quality=95)

    picture = decode_rgb(data)
    info = inspect_image(data)

    assert picture.size == (info.width, info.height) == (64, 32)
    for xy in ((8, 8), (56, 8), (8, 24), (56, 24)):
        assert_near(picture, xy, quarters().getpixel(xy), tolerance=6)
    assert info.verbatim == (kind == "JPEG" and orientation == 1)
    assert decode_rgb(data, 16).size == (32, 16)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"])
def test_damaged_metadata_do_not_hide_a_picture(exif: bytes) -> None:
    data = encoded(quarters(), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's "corrupt EXIF data"
        assert inspect_image(data).verbatim
        assert decode_rgb(data).size == (64, 32)


def test_an_orientation_behind_the_pixels_counts() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = encoded(quarters(), "PNG").replace(chunk(b"IEND", b""), late + chunk(b"IEND", b""))
    assert (inspect_image(data).width, decode_rgb(data).width) == (32, 32)


def test_cmyk_red_is_red() -> None:
    data = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert_near(decode_rgb(data), (16, 16), RED)
    assert not inspect_image(data).verbatim


def test_ycck_is_told_from_cmyk_by_the_adobe_marker() -> None:
    # Adobe stores inks inverted, so red (no cyan, no black) is (255, 0, 0, 255), and YCCK holds the Y, Cb and
    # Cr of the complement of the first three, which is cyan. Pillow inverts what it writes.
    stored = Image.new("CMYK", (32, 32), (255 - 179, 255 - 171, 255 - 1, 255 - 255))
    data = encoded(stored, "JPEG", quality=95)
    marker = data.index(b"Adobe")
    data = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    assert_near(decode_rgb(data), (16, 16), RED)


def test_grey_becomes_rgb_and_may_be_kept() -> None:
    data = encoded(Image.new("L", (16, 16), 100), "JPEG")
    assert_near(decode_rgb(data), (8, 8), (100, 100, 100))
    assert inspect_image(data).verbatim


def test_one_bit_grey_is_black_and_white() -> None:
    image = Image.new("1", (16, 16), 0)
    image.putpixel((3, 3), 1)
    picture = decode_rgb(encoded(image, "PNG"))
    assert picture.getpixel((3, 3)) == (255, 255, 255)
    assert picture.getpixel((4, 4)) == (0, 0, 0)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    rows = b"".join(b"\0" + struct.pack(">4H", 0, 257, 30000, 65535) for _ in range(2))
    picture = decode_rgb(png(4, 2, depth=16, colour=0, rows=rows))
    assert [picture.getpixel((x, 1)) for x in range(4)] == [(v, v, v) for v in (0, 1, 117, 255)]


def test_16_bit_grey_with_a_transparent_value_is_white_there() -> None:
    rows = b"\0" + struct.pack(">3H", 0, 30000, 30001)
    data = png(3, 1, depth=16, colour=0, rows=rows, before=(chunk(b"tRNS", struct.pack(">H", 30000)),))
    assert [decode_rgb(data).getpixel((x, 0)) for x in range(3)] == [(v, v, v) for v in (0, 255, 117)]


def test_16_bit_rgb_is_scaled_not_clipped() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 30000, 0, 256, 32768, 65535)
    picture = decode_rgb(png(2, 1, depth=16, colour=2, rows=rows))
    assert_near(picture, (0, 0), (255, 117, 0), tolerance=1)
    assert_near(picture, (1, 0), (1, 128, 255), tolerance=1)


def test_16_bit_alpha_is_over_white() -> None:
    rows = b"\0" + struct.pack(">4H", 0, 0, 0, 32768)
    assert_near(decode_rgb(png(1, 1, depth=16, colour=6, rows=rows)), (0, 0), (127, 127, 127), tolerance=1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_over_white(kind: str) -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    image.paste((255, 0, 0, 128), (0, 0, 8, 16))
    picture = decode_rgb(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert_near(picture, (2, 2), (255, 127, 127), tolerance=1)
    assert picture.getpixel((12, 2)) == (255, 255, 255)


def test_grey_with_alpha_is_over_white() -> None:
    assert_near(decode_rgb(encoded(Image.new("LA", (4, 4), (0, 64)), "PNG")), (1, 1), (191, 191, 191), tolerance=1)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_a_transparent_entry(transparency: int | bytes) -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    picture = decode_rgb(encoded(image, "PNG", transparency=transparency))
    assert [picture.getpixel((x, 0)) for x in range(2)] == [RED, (255, 255, 255)]


def test_palette_without_transparency() -> None:
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE)
    assert_near(decode_rgb(encoded(image, "PNG")), (8, 8), RED)


def test_rgb_with_a_transparent_colour() -> None:
    picture = decode_rgb(encoded(quarters(), "PNG", transparency=RED))
    assert picture.getpixel((8, 8)) == (255, 255, 255)
    assert picture.getpixel((8, 24)) == (0, 0, 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("blue", "red", "green")]
    options: dict[str, object] = {} if kind == "TIFF" else {"duration": 100}
    options |= {"WEBP": {"lossless": True}, "GIF": {"comment": b"of a GIF"}}.get(kind, {})
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    inspect_image(data)
    assert_near(decode_rgb(data), (8, 8), (0, 0, 255), tolerance=3 if kind == "AVIF" else 0)


def swapped_profile(**replaced: bytes) -> bytes:
    """SRGB's profile with the named tags' values taken from others of its tags, and another description."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {
        bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    }
    values = {name: bytes(profile[at + 4 : at + 12]) for name, at in entries.items()}
    for name, other in replaced.items():
        at = entries[name.encode()]
        profile[at + 4 : at + 12] = values[other]
    described = int.from_bytes(values[b"desc"][:4], "big") + 28
    profile[described : described + 8] = "test".encode("utf-16-be")
    return bytes(profile)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_another_colour_profile_is_converted(kind: str) -> None:
    # In a space whose red is sRGB's green and the other way about, stored red looks green.
    profile = swapped_profile(rXYZ=b"gXYZ", gXYZ=b"rXYZ")
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.new("RGB", (16, 16), RED), kind, icc_profile=profile, **options)
    assert_near(decode_rgb(data), (8, 8), (0, 255, 0))


def test_srgb_pixels_are_left_alone() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ramp = Image.fromarray(np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3))
    assert decode_rgb(encoded(ramp, "PNG", icc_profile=profile)).tobytes() == ramp.tobytes()


@pytest.mark.parametrize("damage", [b"", b"not a profile", None])
def test_a_useless_colour_profile_is_ignored(damage: bytes | None) -> None:
    profile = damage if damage is not None else swapped_profile()[:300]
    data = encoded(Image.new("RGB", (16, 16), RED), "JPEG", icc_profile=profile, quality=95)
    assert_near(decode_rgb(data), (8, 8), RED)


def test_a_profile_for_another_kind_of_picture_is_ignored() -> None:
    data = encoded(Image.new("L", (16, 16), 100), "JPEG", icc_profile=swapped_profile())
    assert_near(decode_rgb(data), (8, 8), (100, 100, 100))


@pytest.mark.parametrize(
    ("size", "min_side", "expected"),
    [
        ((1500, 2250), 512, (512, 768)),
        ((2250, 1500), 512, (768, 512)),
        ((1023, 1535), 512, (512, 768)),
        ((1024, 1024), 512, (512, 512)),
        ((511, 900), 512, (511, 900)),
        ((512, 900), 512, (512, 900)),
        ((513, 700), 512, (512, 699)),
        ((7, 400), 3, (3, 171)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_shorter_side_is_asked_for_and_nothing_is_enlarged(
    size: tuple[int, int], min_side: int, expected: tuple[int, int], kind: str
) -> None:
    assert decode_rgb(encoded(Image.new("RGB", size), kind), min_side).size == expected


@pytest.mark.parametrize("size", [(1500, 2250), (2047, 1025), (1024, 1536), (700, 600)])
@pytest.mark.parametrize("options", [{}, {"progressive": True, "subsampling": 0, "quality": 95}])
def test_a_scaled_decode_looks_like_a_full_one(size: tuple[int, int], options: dict[str, object]) -> None:
    data = encoded(photo(*size), "JPEG", **{"quality": 90, **options})
    small = decode_rgb(data, 512)
    full = decode_rgb(data).resize(small.size, Image.Resampling.LANCZOS)
    assert psnr(small, full) > 35


def test_a_scaled_decode_converts_like_a_full_one() -> None:
    inks = Image.merge("CMYK", (*photo(1200, 1300).split(), Image.new("L", (1200, 1300), 40)))
    data = encoded(inks, "JPEG", quality=90)
    small = decode_rgb(data, 300)
    assert psnr(small, decode_rgb(data).resize(small.size, Image.Resampling.LANCZOS)) > 35


@pytest.mark.parametrize(
    "kind",
    ["JPEG", "PROGRESSIVE", "PNG", "WEBP", "LOSSLESS", "GIF", "BMP", "TIFF", "LZW", "DEFLATE", "TIFF JPEG", "AVIF"],
)
def test_every_cut_is_found(kind: str) -> None:
    format_and_options: dict[str, tuple[str, dict[str, object]]] = {
        "PROGRESSIVE": ("JPEG", {"progressive": True}),
        "LOSSLESS": ("WEBP", {"lossless": True}),
        "LZW": ("TIFF", {"compression": "tiff_lzw"}),
        "DEFLATE": ("TIFF", {"compression": "tiff_adobe_deflate"}),
        "TIFF JPEG": ("TIFF", {"compression": "jpeg"}),
    }
    name, options = format_and_options.get(kind, (kind, {}))
    data = encoded(photo(120, 90), name, **options)
    inspect_image(data)
    # without their end marks a JPEG and a GIF have still all pixels
    end = len(data) - {"JPEG": 2, "GIF": 3}.get(name, 0)
    cuts = [*range(0, end, len(data) // 150), *range(end - 12, end)]
    assert {refusal(data[:cut]) for cut in cuts} == {Reason.UNREADABLE}


def test_a_cut_file_is_refused_while_decoding() -> None:
    data = encoded(photo(120, 90), "JPEG")
    for cut in (700, len(data) // 2, len(data) - 20):
        assert refusal(data[:cut], decode_rgb) == Reason.UNREADABLE
        assert refusal(data[:cut], lambda cut_data: decode_rgb(cut_data, 32)) == Reason.UNREADABLE


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(encoded(photo(60, 60), "PNG"))
    data[len(data) // 2] ^= 4
    assert refusal(bytes(data)) == Reason.UNREADABLE


@pytest.mark.parametrize("read", [inspect_image, decode_rgb, lambda data: to_jpeg(data, None)])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.UNREADABLE),
        (b"<html>not found</html>", Reason.UNREADABLE),
        (b"\xff\xd8\xff", Reason.UNREADABLE),
        (b"\xff\xd8\xff\xd9", Reason.UNREADABLE),
        (b"\x89PNG\r\n\x1a\n", Reason.UNREADABLE),
        (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\10\0\0\0\0") + chunk(b"IEND", b""),
            Reason.UNREADABLE,
        ),
        (png(1, 1, depth=8, colour=3, rows=b"\0\0"), Reason.UNREADABLE),
        (b"RIFF\x10\0\0\0WEBPVP8 ", Reason.UNREADABLE),
        (b"RIFF", Reason.UNREADABLE),
        (b"GIF89a", Reason.UNREADABLE),
        (b"BM is how this text begins", Reason.UNREADABLE),
        (b"II*\0\x08\0\0\0", Reason.UNREADABLE),
        (b"\0\0\x01\0\x01\0", Reason.UNSUPPORTED),
        (b"\xff\x4f\xff\x51", Reason.UNSUPPORTED),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", Reason.UNSUPPORTED),
        (b"8BPS\0\x01", Reason.UNSUPPORTED),
        (b"\0\0\0\x1cftypavif", Reason.UNREADABLE),
        (b"\0\0\0\x1cftypisom\0\0\2\0isommp41", Reason.UNSUPPORTED),
    ],
)
def test_what_is_not_a_picture_is_refused(data: bytes, reason: Reason, read: Callable[[bytes], object]) -> None:
    assert refusal(data, read) == reason


def test_refusals_say_the_same_in_every_run() -> None:
    details = []
    for _ in range(2):
        with pytest.raises(UnreadableImage) as caught:
            inspect_image(b"\x89PNG\r\n\x1a\n" + bytes(20))
        details.append(caught.value.detail)
    assert details[0] == details[1]
    assert "0x" not in details[0]


def frame_of(width: int, height: int) -> bytes:
    """A JPEG that claims another size in its frame header."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def huge_webp(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0x10) + canvas + encoded(quarters(), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text_bomb(name: bytes, prefix: bytes) -> bytes:
    bomb = prefix + zlib.compress(bytes(200_000_000), 9)
    return png(1, 1, depth=8, colour=0, rows=b"\0\0", before=(chunk(name, bomb),))


def bmp(width: int, height: int, compression: int = 0) -> bytes:
    """A bitmap that claims a size, with hardly a pixel."""
    info = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<III", 2000, 0, 1078) + info + bytes(1024) + bytes(200)


def tiff(tags: dict[int, int], counts: dict[int, int] | None = None, kind: int = 4) -> bytes:
    """A grey TIFF of 8 x 8 with other values, or more of them than there are, or of another type (4: LONG)."""
    whole = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64} | tags
    if 324 in tags:
        whole = {tag: value for tag, value in whole.items() if tag not in (273, 278, 279)}
    entries = b"".join(
        struct.pack("<HHLL", tag, kind, (counts or {}).get(tag, 1), value) for tag, value in sorted(whole.items())
    )
    pixels = bytes(range(64))
    return b"II*\0" + struct.pack("<L", 8 + 64) + pixels + struct.pack("<H", len(whole)) + entries + bytes(4)


def heif(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95, **options)
    return file.getvalue()


def with_size(data: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIF that claims another size in each of its items' properties."""
    changed = bytearray(data)
    for found in re.finditer(rb"ispe\0\0\0\0", data):
        changed[found.end() : found.end() + 8] = struct.pack(">II", width, height)
    return bytes(changed)


BOMBS: dict[str, tuple[Callable[[], bytes], Reason | None]] = {
    "png": (lambda: png(30_000, 30_000, depth=8, colour=2, rows=b""), Reason.TOO_LARGE),
    "png one bit": (lambda: png(30_000, 30_000, depth=1, colour=0, rows=b""), Reason.TOO_LARGE),
    "png thin": (lambda: png(100_000, 1, depth=8, colour=0, rows=bytes(100_001)), Reason.TOO_LARGE),
    "png negative": (lambda: png(2**32 - 1, 2**32 - 1, depth=8, colour=0, rows=b""), Reason.TOO_LARGE),
    # The picture is read, and nothing of these is unpacked beyond a limit.
    "png zTXt": (lambda: text_bomb(b"zTXt", b"k\0\0"), None),
    "png iTXt": (lambda: text_bomb(b"iTXt", b"k\0\1\0\0\0"), None),
    "png XMP": (lambda: text_bomb(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"), None),
    "png raw EXIF": (lambda: text_bomb(b"zTXt", b"Raw profile type exif\0\0"), None),
    "png iCCP": (lambda: text_bomb(b"iCCP", b"k\0\0"), None),
    "gif": (lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;", Reason.TOO_LARGE),
    "gif frame": (lambda: b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\x44\1\0;", Reason.TOO_LARGE),
    "gif comment": (lambda: b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1x" * 40_000_000, Reason.UNREADABLE),
    "bmp": (lambda: bmp(40_000, 40_000), Reason.TOO_LARGE),
    "bmp runs": (lambda: bmp(10_000, 9_000, compression=1), Reason.TOO_LARGE),
    "bmp negative": (lambda: bmp(10, 2**32 - 40_000_000), Reason.TOO_LARGE),
    "tiff": (lambda: tiff({256: 60_000, 257: 60_000}), Reason.TOO_LARGE),
    "tiff one bit": (lambda: tiff({256: 600_000_000, 257: 100, 258: 1, 278: 1}), Reason.TOO_LARGE),
    "tiff one bit square": (lambda: tiff({256: 60_000, 257: 60_000, 258: 1, 278: 1}), Reason.TOO_LARGE),
    "tiff tile": (lambda: tiff({322: 60_000, 323: 60_000, 324: 8, 325: 8, 259: 5}), Reason.TOO_LARGE),
    "tiff bits": (lambda: tiff({256: 50_000, 257: 2_000, 258: 64, 277: 64, 278: 2_000, 259: 5}), Reason.TOO_LARGE),
    "tiff signed bits": (
        lambda: tiff({256: 50_000, 257: 2_000, 258: 64, 277: 64, 278: 2_000, 259: 5}, kind=9),
        Reason.TOO_LARGE,
    ),
    "tiff strips": (lambda: tiff({}, counts={273: 2**25}), Reason.UNREADABLE),
    "tiff values": (lambda: tiff({}, counts={258: 2**25}), Reason.UNREADABLE),
    "avif": (lambda: with_size(encoded(quarters(), "AVIF"), 60_000, 60_000), Reason.UNREADABLE),
    "avif 150 MP": (lambda: with_size(encoded(quarters(), "AVIF"), 15_000, 10_000), Reason.TOO_LARGE),
    "heif": (lambda: with_size(heif(photo(640, 480)), 30_000, 30_000), Reason.TOO_LARGE),
    # More data than pixels: the decoder stops at the last pixel.
    "png IDAT": (lambda: png(1, 1, depth=8, colour=0, rows=bytes(200_000_000)), None),
    "jpeg": (lambda: frame_of(65_500, 65_500), Reason.TOO_LARGE),
    "jpeg height unknown": (lambda: frame_of(8, 0), Reason.UNREADABLE),
    "webp extended": (lambda: huge_webp(2**24, 2**24), Reason.TOO_LARGE),
    "webp extended 150 MP": (lambda: huge_webp(15_000, 10_000), Reason.TOO_LARGE),
    "webp lossless": (
        lambda: b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f" + (2**28 - 1).to_bytes(4, "little") + bytes(15),
        Reason.TOO_LARGE,
    ),
    "webp lossy": (
        lambda: b"RIFF\x20\0\0\0WEBPVP8 \x14\0\0\0\x30\1\0\x9d\1\x2a\xff\x3f\xff\x3f" + bytes(10),
        Reason.TOO_LARGE,
    ),
}

READ_AND_MEASURE = """
import resource, sys, warnings
resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))  # memory that is asked for and not touched is no peak
from sonify.media.pixels import UnreadableImage, inspect_image
from tests.processes import peak_kib
warnings.simplefilter("error")
try:
    inspect_image(sys.stdin.buffer.read())
    print("None")
except UnreadableImage as refused:
    print(refused.reason)
print(peak_kib() // 1024)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(name: str) -> None:
    make, reason = BOMBS[name]
    result = subprocess.run(
        [sys.executable, "-c", READ_AND_MEASURE], input=make(), capture_output=True, check=True, timeout=60
    )
    outcome, peak_mib = result.stdout.decode().split()
    assert outcome == str(reason)
    assert int(peak_mib) < 300
    assert result.stderr == b""


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(Image.new("L", (512, 512), 77), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    inspect_image(data[:-2] + 10 * scan + b"\xff\xd9")
    assert refusal(data[:-2] + MAX_JPEG_SCANS * scan + b"\xff\xd9") == Reason.TOO_LARGE


def test_a_size_that_pillow_would_warn_of_is_no_warning() -> None:
    data = encoded(Image.new("1", (9_990, 10_000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inspect_image(data).width == 9_990


def test_encoding_twice_gives_the_same_bytes_without_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    source = encoded(photo(100, 80), "JPEG", exif=exif, comment=b"secret")
    first, second = (encode_jpeg(decode_rgb(source)) for _ in range(2))
    assert first == second
    assert b"secret" not in first
    assert not Image.open(io.BytesIO(first)).getexif()
    assert psnr(decode_rgb(first), decode_rgb(source)) > 30


def test_bytes_are_kept_where_they_are_what_is_asked_for() -> None:
    data = encoded(photo(300, 200), "JPEG")
    assert to_jpeg(data, None) == data
    assert to_jpeg(data, 200) == data
    assert to_jpeg(data, 512) == data
    assert inspect_image(to_jpeg(data, 100)).height == 100


def test_other_pictures_become_upright_rgb_jpegs() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "secret")
    for data, size in (
        (encoded(quarters(), "PNG", pnginfo=text), (64, 32)),
        (encoded(quarters(), "WEBP"), (64, 32)),
        (encoded(quarters().convert("CMYK"), "JPEG"), (64, 32)),
        (encoded(quarters(), "JPEG", exif=exif), (32, 64)),
    ):
        made = to_jpeg(data, None)
        info = inspect_image(made)
        assert (info.width, info.height, info.verbatim) == (*size, True)
        assert b"secret" not in made


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_decode_for_a_model_refuses_what_inspection_refuses(kind):
    """Cut at every place, and with one byte changed at many: each is refused by both or by neither."""
    whole = picture(3, (96, 64), kind)
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in range(0, len(whole), max(1, len(whole) // 150))]
    for place in rng.integers(0, len(whole), 300):
        damaged.append(whole[:place] + bytes([int(rng.integers(256))]) + whole[place + 1 :])
    seen = set()
    for data in [whole, *damaged]:
        outcomes = []
        for inspect in (inspect_image, lambda data: decode_for_model(data, 16)[0]):
            try:
                outcomes.append(inspect(data))
            except UnreadableImage as error:
                outcomes.append(error.reason)
        assert outcomes[0] == outcomes[1]
        seen.add(type(outcomes[0]))
    assert len(seen) == 2  # some were refused, some were not


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("side", [40, 300, 5000])
def test_a_decode_for_a_model_gives_the_picture_and_the_original_size(orientation, side):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.open(io.BytesIO(picture(1, (600, 400)))), "JPEG", exif=exif)
    info, image = decode_for_model(data, side)
    assert info == inspect_image(data)
    assert (info.width, info.height) == ((600, 400) if orientation == 1 else (400, 600))
    expected = decode_rgb(data, side)
    assert image.size == expected.size
    assert image.tobytes() == expected.tobytes()
    assert min(image.size) == min(side, 400)


# --- what stands in, before and behind pictures of telephones, scanners and image editors


def png_with(*chunks: bytes) -> bytes:
    data = encoded(quarters(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


LONG = bytes(range(256)) * 12_000  # 3 MB, beyond what Pillow unpacks


@pytest.mark.parametrize(
    "made",
    [
        chunk(b"tEXt", b"Comment\0" + LONG.replace(b"\0", b" ")),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LONG),
        b"".join(chunk(b"tEXt", b"Comment\0" + b"x" * 1_000_000) for _ in range(70)),
        chunk(b"iCCP", b"large\0\0" + zlib.compress(LONG)),
        chunk(b"iCCP", b"damaged\0\0" + LONG[:1000]),
    ],
    ids=["tEXt", "zTXt", "packed XMP", "XMP", "many", "ICC", "no ICC"],
)
def test_a_png_with_long_texts_or_profile_is_a_picture(made: bytes) -> None:
    data = png_with(made)
    assert inspect_image(data).width == 64
    assert decode_rgb(data).tobytes() == decode_rgb(encoded(quarters(), "PNG")).tobytes()
    late = data[:33] + data[33 + len(made) : -12] + made + data[-12:]  # behind the pixels
    assert decode_for_model(late, 16)[0] == inspect_image(late) == inspect_image(data)


def test_a_long_profile_of_a_png_counts() -> None:
    profile = swapped_profile(rXYZ=b"gXYZ", gXYZ=b"rXYZ") + bytes(2_000_000)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    data = encoded(Image.new("RGB", (16, 16), RED), "PNG")
    data = data[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)) + data[33:]
    assert_near(decode_rgb(data), (8, 8), (0, 255, 0))


def test_a_text_that_turns_a_png_still_does_and_a_damaged_one_is_found() -> None:
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>'))
    assert inspect_image(png_with(xmp)).width == 32
    raw = "\nexif\n      26\n" + (b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0" + bytes(4)).hex()
    assert (
        inspect_image(png_with(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw.encode())))).width == 32
    )
    broken = png_with(chunk(b"tEXt", b"Comment\0x")[:-1] + b"!")
    assert refusal(broken) == Reason.UNREADABLE


def test_what_follows_a_jpeg_is_nothing_to_it() -> None:
    film = np.random.default_rng(0).bytes(20_000_000)  # of a moving photograph; it looks like scans by chance
    assert film.count(b"\xff\xda") > MAX_JPEG_SCANS
    for options in ({}, {"progressive": True}):
        data = encoded(quarters(), "JPEG", **options)
        assert inspect_image(data + film) == inspect_image(data)
        assert decode_rgb(data + film).tobytes() == decode_rgb(data).tobytes()


def test_the_first_picture_of_a_telephone_s_two_is_taken() -> None:
    data = encoded(quarters(), "MPO", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    assert data.startswith(b"\xff\xd8\xff")
    assert inspect_image(data).verbatim
    assert_near(decode_rgb(data), (8, 8), RED, tolerance=6)


def test_a_jpeg_with_megabytes_of_metadata_is_a_picture() -> None:
    data = encoded(quarters(), "JPEG", exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08" + bytes(65_000))
    more = b"".join(
        b"\xff\xe1\xff\xff" + b"http://ns.adobe.com/xmp/extension/\0".ljust(65_533, b"x") for _ in range(40)
    )
    assert inspect_image(data[:2] + more + data[2:]).verbatim


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_of_whole_numbers_is_the_picture(mode: str, compression: str | None) -> None:
    plain = quarters().convert("L").convert(mode) if mode in ("1", "I;16") else quarters().convert(mode)
    if mode == "I;16":
        plain = Image.fromarray(np.asarray(quarters().convert("L")).astype(np.uint16) * 257)
    expected = (
        quarters().convert("L" if mode in ("1", "L", "LA", "I;16") else "RGB").convert("1" if mode == "1" else "RGB")
    )
    picture = decode_rgb(encoded(plain, "TIFF", compression=compression))
    for xy in ((8, 8), (56, 8), (8, 24), (56, 24)):
        assert_near(picture, xy, expected.convert("RGB").getpixel(xy), tolerance=3)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_a_tiff_without_a_range_is_refused(mode: str) -> None:
    for read in (inspect_image, decode_rgb):
        assert refusal(encoded(Image.new(mode, (8, 8)), "TIFF"), read) == Reason.UNSUPPORTED


def test_a_tiff_that_libtiff_alone_knows_is_refused() -> None:
    assert refusal(encoded(quarters(), "TIFF", compression="zstd")) == Reason.UNSUPPORTED
    assert refusal(tiff({262: 0, 258: 16, 279: 128}) + bytes(64)) == Reason.UNSUPPORTED
    assert inspect_image(tiff({})).width == 8
    assert inspect_image(encoded(quarters(), "TIFF", big_tiff=True)).width == 64


def test_a_bitmap_of_runs_is_the_picture() -> None:
    rows = b"".join(bytes((8, value, 0, 0)) for value in range(8)) + b"\0\1"
    palette = b"".join(bytes((n, n, n, 0)) for n in range(256))
    head = struct.pack("<IIIHHIIIIII", 40, 8, 8, 1, 8, 1, len(rows), 0, 0, 256, 0)
    data = b"BM" + struct.pack("<III", 1078 + len(rows), 0, 1078) + head + palette + rows
    assert [decode_rgb(data).getpixel((3, 7 - n)) for n in range(8)] == [(n, n, n) for n in range(8)]


def test_a_heif_is_upright_and_its_thumbnail_is_not_the_picture() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = heif(photo(640, 480), exif=exif.tobytes(), thumbnails=[400])
    info, seen = decode_for_model(data, 200)
    assert (info.width, info.height) == (480, 640)
    full = decode_rgb(data).resize(seen.size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    assert seen.tobytes() == full.tobytes()


def test_a_forged_size_of_a_heif_is_refused() -> None:
    assert refusal(with_size(heif(photo(640, 480)), 64, 64)) == Reason.UNREADABLE
    assert refusal(heif(photo(640, 480))[:-2000]) == Reason.UNREADABLE


def jpeg(array):
    return encoded(Image.fromarray(array), quality=95, subsampling=0)


def thirds(width, height):
    """Red, green and blue along the longer side."""
    colours = np.zeros((3, 1, 3), np.uint8)
    colours[[0, 1, 2], 0, [0, 1, 2]] = 255
    array = np.repeat(np.repeat(colours, max(width, height) // 3, 0), min(width, height), 1)
    return array if height > width else array.transpose(1, 0, 2)


@pytest.mark.parametrize("shape", [(600, 200), (200, 600), (96, 32), (32, 96), (1800, 600)])
def test_the_square_is_cut_from_the_middle_at_any_size(shape):
    square = decode_square(jpeg(thirds(*shape)), 128)
    assert (square.shape, square.dtype) == ((128, 128, 3), np.uint8)
    inner = square[8:-8, 8:-8].astype(int)
    assert np.abs(inner - [0, 255, 0]).mean() < 6


def test_nothing_is_stretched():
    array = np.full((300, 500, 3), 255, np.uint8)
    rows, columns = np.mgrid[:300, :500]
    array[np.hypot(rows - 150, columns - 250) < 100] = 0
    disc = decode_square(jpeg(array), 150)[..., 0] < 128
    assert abs(int(disc.any(0).sum()) - 100) <= 1
    assert abs(int(disc.any(1).sum()) - 100) <= 1


def test_what_is_smaller_is_enlarged_and_what_fits_is_kept():
    array = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    small = Image.fromarray(array).resize((64, 64), Image.Resampling.BICUBIC)
    kept = decode_square(jpeg(np.asarray(small)), 64)
    assert np.array_equal(kept, np.asarray(Image.open(io.BytesIO(jpeg(np.asarray(small))))))
    large = decode_square(jpeg(np.asarray(small)), 256).astype(float)
    assert np.abs(large - np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC))).mean() < 3


def test_a_damaged_square_has_a_reason():
    with pytest.raises(UnreadableImage):
        decode_square(jpeg(thirds(60, 30))[:-200], 64)
