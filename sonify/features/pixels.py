"""An image as the VAE sees it: a square of one size, cut from the middle."""

import numpy as np
from PIL import Image

from sonify.media.pixels import decode_rgb


def decode_square(data: bytes, size: int) -> np.ndarray:
    """Decode to (size, size, 3) uint8: the shorter side becomes `size`, what the longer has more is cut at both ends.

    Raises:
        UnreadableImage: damaged, too large, or neither JPEG, PNG nor WebP.
    """
    image = decode_rgb(data, size)  # leaves what is smaller as it is
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.array(square if side == size else square.resize((size, size), Image.Resampling.BICUBIC))
