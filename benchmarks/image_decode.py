"""Decoding JPEGs to a shorter side of 512, against Pillow's full decode and resize.

Run as `python -m benchmarks.image_decode`; ten seconds. The floor is a ratio of 2 with a PSNR above 35 dB.
"""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.measure import interleaved, report
from sonify.media.pixels import decode_rgb

SIDE_PX = 512
SIZES = (
    (1500, 2250),
    (2250, 1500),
    (2000, 3000),
    (1100, 1650),
)  # SA-1B's size first; none is a multiple of 512


def make_photo(width: int, height: int, seed: int) -> bytes:
    """Make a JPEG of about 2 bits a pixel, as cameras write: falling spectrum, sharp edges, sensor noise."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    texture = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency**1.3, (height, width))
    image = Image.fromarray((128 + 40 * texture / texture.std()).clip(0, 255).astype(np.uint8))
    image = Image.merge("RGB", (image, image.point(lambda v: v * 0.9), image.point(lambda v: 255 - v * 0.8)))
    draw = ImageDraw.Draw(image)
    for centre in rng.integers(0, (width, height), (60, 2)):
        corners = centre + rng.integers(-height // 12, height // 12, (3, 2))
        draw.polygon([(int(x), int(y)) for x, y in corners], tuple(int(c) for c in rng.integers(40, 216, 3)))
    noisy = np.asarray(image) + rng.normal(0, 3, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def decode_in_full(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    scale = SIDE_PX / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def psnr_db(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return 10 * math.log10(255**2 / error)


def main() -> None:
    photos = [make_photo(*size, seed) for seed, size in enumerate(SIZES)]
    ours, theirs = interleaved(
        lambda: [decode_rgb(data, SIDE_PX) for data in photos],
        lambda: [decode_in_full(data) for data in photos],
    )
    bits = 8 * sum(map(len, photos)) / sum(width * height for width, height in SIZES)
    worst = min(psnr_db(decode_rgb(data, SIDE_PX), decode_in_full(data)) for data in photos)
    report(
        "image_decode",
        len(photos) / ours,
        len(photos) / theirs,
        "images/s",
        psnr_db=round(worst, 1),
        bits_per_pixel=round(bits, 2),
    )


if __name__ == "__main__":
    main()
