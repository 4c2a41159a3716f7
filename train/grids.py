"""Labelled grids of images, to look at while a model learns."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sonify.io.write import write_whole
from train.manifest import encode_png

GAP = 8
FONT_SIZE = 13
CAPTION_LINES = 2
# A grid is for the eye: small images are shown larger, pixel by pixel.
MIN_SIDE = 128
INK, PAPER = "black", "white"


def make_grid(images: Sequence[Image.Image], captions: Sequence[str], path: Path, columns: int | None = None) -> None:
    """Write images of one size, each above its caption, as one PNG; about as wide as high unless `columns` are given.

    Raises:
        ValueError: there is no image, or not a caption for each.
        DiskFull: no room is left.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"expected a caption for each image, found {len(captions)} for {len(images)}")
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = (side * max(1, math.ceil(MIN_SIDE / images[0].width)) for side in images[0].size)
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 4
    row_height = height + CAPTION_LINES * line + GAP
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + GAP) + GAP, rows * row_height + GAP), PAPER)
    draw = ImageDraw.Draw(grid)
    for n, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + n % columns * (width + GAP), GAP + n // columns * row_height
        grid.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, text in enumerate(wrap_caption(caption, font, width)):
            draw.text((left, top + height + number * line), text, fill=INK, font=font)
    write_whole(path, encode_png(grid))


def wrap_caption(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a caption between words into lines that fit; what is too long ends in dots."""
    lines = [""]
    for word in caption.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    shown = [*lines[:CAPTION_LINES]]
    if len(lines) > CAPTION_LINES:
        shown[-1] += "…"
    return [_shorten(text, font, width) for text in shown]


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if len(text) > width:  # a letter has a pixel at least, and the loop below would take minutes for a long word
        text = text[:width] + "…"
    while len(text) > 1 and font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text
