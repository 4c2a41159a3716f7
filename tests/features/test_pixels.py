import io

import numpy as np
import pytest
from PIL import Image

from sonify.features.pixels import decode_square
from sonify.media.pixels import UnreadableImage


def jpeg(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


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


def test_damage_has_a_reason():
    with pytest.raises(UnreadableImage):
        decode_square(jpeg(thirds(60, 30))[:-200], 64)
