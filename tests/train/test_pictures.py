"""Grids show every image where it belongs, with its caption."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from train.pictures import CAPTION_LINES, GAP, MIN_SIDE, make_grid, wrap_caption

COLOURS = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff"]


def squares(count: int, side: int = MIN_SIDE) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), colour) for colour in COLOURS[:count]]


def test_images_stand_in_rows_in_their_order(tmp_path: Path) -> None:
    make_grid(squares(5), list("abcde"), tmp_path / "grid.png", columns=2)

    grid = Image.open(tmp_path / "grid.png")
    row_height = (grid.height - GAP) // 3
    centres = [
        (GAP + n % 2 * (MIN_SIDE + GAP) + MIN_SIDE // 2, GAP + n // 2 * row_height + MIN_SIDE // 2) for n in range(5)
    ]
    assert [grid.getpixel(centre) for centre in centres] == [square.getpixel((0, 0)) for square in squares(5)]
    assert grid.getpixel((grid.width - 20, grid.height - row_height)) == (255, 255, 255)


def test_another_caption_is_another_picture(tmp_path: Path) -> None:
    for name, caption in (("a", "rain"), ("b", "dog"), ("none", "")):
        make_grid(squares(1), [caption], tmp_path / f"{name}.png")

    a, b, none = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("a", "b", "none"))
    assert np.array_equal(a[: GAP + MIN_SIDE], b[: GAP + MIN_SIDE])
    assert not np.array_equal(a, b)
    assert (none[GAP + MIN_SIDE :] == 255).all()
    assert not (a[GAP + MIN_SIDE :] == 255).all()


def test_small_images_are_enlarged_without_blur(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))

    make_grid([image], ["x"], tmp_path / "grid.png")

    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(grid[GAP : GAP + 128 : 2, GAP : GAP + 128 : 2], np.asarray(image))


@pytest.mark.parametrize(
    "caption", ["", "dog", "a dog barks at the sea " * 9, "x" * 500, "x" * 100_000, "sound of " + "y" * 300]
)
def test_captions_fit_below_their_image(caption: str) -> None:
    font = ImageFont.load_default(13)

    lines = wrap_caption(caption, font, 128)

    assert 1 <= len(lines) <= CAPTION_LINES
    assert all(font.getlength(line) <= 128 for line in lines)
    assert lines[-1].endswith("…") == (len(caption) > 40)


@pytest.mark.parametrize(("count", "captions"), [(0, []), (2, ["one"])])
def test_a_caption_for_each_image_is_needed(count: int, captions: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a caption for each"):
        make_grid(squares(count), captions, tmp_path / "grid.png")
