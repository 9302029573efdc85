"""Text, shapes and the placing of blocks, from which `pictures` makes its figures.

Blocks are images of their own on the colour of the page; `beside` and `below` put them together.
Text is set in the font that ships in `assets`, without the layout engine that only some machines
have, so that the same Pillow draws the same pixels everywhere.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from jaxlab.data.emoji import composite

ASSETS = Path(__file__).parent / "assets"
FONT_FILE = "noto_sans_sc_subset.ttf"
ELLIPSIS = "…"

Colour = tuple[int, int, int]

PAGE: Colour = (246, 247, 249)
PAPER: Colour = (255, 255, 255)
LINE: Colour = (222, 226, 233)
INK: Colour = (24, 32, 44)
MUTED: Colour = (100, 110, 125)
GREEN: Colour = (22, 163, 74)
DARK_GREEN: Colour = (17, 122, 56)
BAR: Colour = (150, 172, 212)
TRACK: Colour = (231, 235, 242)

RADIUS = 12
SMOOTHING = 4  # shapes are drawn this much larger and reduced: PIL draws none with smooth edges


@functools.lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """The shipped font: all characters of the emoji names and 3,755 common Chinese ones.

    Characters that it lacks are drawn as a box.

    Args:
      size: pixels per em.

    Raises:
      FileNotFoundError: if the font is missing.
    """
    path = ASSETS / FONT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. Restore it from the repository, or rebuild it with "
            "`python -m experiments.common.build_font`."
        )
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def clean_line(text: str) -> str:
    r"""A text on one line, without the characters that only control others.

    Line breaks and runs of spaces become one space; control and format characters and variation
    selectors go; half a surrogate pair becomes U+FFFD.

    Args:
      text: any text.

    Example:
      >>> clean_line(" 早上\n 好\u200b ")
      '早上 好'
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    spaced = " ".join(text.split())
    return "".join(
        char
        for char in spaced
        if unicodedata.category(char) not in ("Cc", "Cf") and not "\ufe00" <= char <= "\ufe0f"
    )


def ellipsize(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text if it fits a width, else its longest beginning that does with an ellipsis.

    Args:
      text: one line.
      font: font that it will be set in.
      width: pixels.

    Returns:
      A text at most `width` wide; the ellipsis alone if that is all that fits, or more.
    """
    if font.getlength(text) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if font.getlength(text[:middle].rstrip() + ELLIPSIS) <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + ELLIPSIS


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float, num_lines: int) -> list[str]:
    """Breaks a text into lines, between words or before Chinese characters.

    Args:
      text: one line.
      font: font that it will be set in.
      width: pixels.
      num_lines: most lines to make; the last one ends in an ellipsis if more would be needed.

    Returns:
      1 to `num_lines` lines, each at most `width` wide.
    """
    lines = [""]
    words = re.findall(r"[!-\u2e7f]+|\s+|.", text)
    for index, word in enumerate(words):
        if font.getlength((lines[-1] + word).rstrip()) <= width or not lines[-1].strip():
            lines[-1] += word
        elif len(lines) < num_lines:
            lines.append(word.lstrip())
        else:
            lines[-1] += "".join(words[index:])
            break
    return [ellipsize(line.strip(), font, width) for line in lines]


def text_line(text: str, size: int, colour: Colour, width: int) -> Image.Image:
    """One line of text as a block 1.4 times as high as the font's size.

    Args:
      text: any text; made one line, and ellipsised if it is too long.
      size: pixels per em.
      colour: colour of the text.
      width: pixels that the block may be wide at most.
    """
    font = load_font(size)
    line = ellipsize(clean_line(text), font, width)
    block = Image.new("RGB", (max(math.ceil(font.getlength(line)), 1), round(size * 1.4)), PAGE)
    ImageDraw.Draw(block).text((0, block.height / 2), line, colour, font, anchor="lm")
    return block


def rounded(
    width: int,
    height: int,
    fill: Colour,
    outline: Colour,
    line_width: float,
    radius: float = RADIUS,
    background: Colour = PAGE,
) -> Image.Image:
    """A rectangle with round corners and smooth edges.

    Args:
      width: pixels.
      height: pixels.
      fill: colour inside.
      outline: colour of the line around it, which lies inside the rectangle.
      line_width: pixels; 0 for no line.
      radius: pixels.
      background: colour outside the corners.
    """
    block = Image.new("RGB", (width * SMOOTHING, height * SMOOTHING), background)
    ImageDraw.Draw(block).rounded_rectangle(
        (0, 0, block.width - 1, block.height - 1),
        round(radius * SMOOTHING),
        fill,
        outline,
        round(line_width * SMOOTHING),
    )
    return block.reduce(SMOOTHING)


@functools.lru_cache(maxsize=8)
def check_mark(size: int) -> Image.Image:
    """A white check on a green disc, RGBA.

    Args:
      size: pixels, width and height.
    """
    mark = Image.new("RGBA", (size * SMOOTHING,) * 2, (*GREEN, 0))
    draw = ImageDraw.Draw(mark)
    draw.ellipse((0, 0, mark.width - 1, mark.height - 1), GREEN)
    points = [
        (x * mark.width, y * mark.height) for x, y in ((0.27, 0.53), (0.43, 0.69), (0.74, 0.35))
    ]
    draw.line(points, PAPER, round(0.11 * mark.width), joint="curve")
    return mark.reduce(SMOOTHING)


def fit(image: UInt8[np.ndarray, "height width channels"], size: int) -> Image.Image:
    """A picture on white in a square, as large as fits.

    Args:
      image: uint8, 3 channels for RGB or 4 for RGBA.
      size: pixels, width and height of the square.
    """
    pixels = composite(image) if image.shape[2] == 4 else image
    height, width = pixels.shape[:2]
    ratio = size / max(height, width)
    shape = (max(round(width * ratio), 1), max(round(height * ratio), 1))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.size != shape:
        picture = picture.resize(shape, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), PAPER)
    square.paste(picture, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return square


def beside(blocks: Sequence[Image.Image], gap: int) -> Image.Image:
    """Blocks from left to right, their tops level.

    Args:
      blocks: at least one.
      gap: pixels between them.
    """
    width = sum(block.width for block in blocks) + gap * (len(blocks) - 1)
    row = Image.new("RGB", (width, max(block.height for block in blocks)), PAGE)
    left = 0
    for block in blocks:
        row.paste(block, (left, 0))
        left += block.width + gap
    return row


def below(blocks: Sequence[Image.Image], gap: int) -> Image.Image:
    """Blocks from top to bottom, their left sides level.

    Args:
      blocks: at least one.
      gap: pixels between them.
    """
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
    column = Image.new("RGB", (max(block.width for block in blocks), height), PAGE)
    top = 0
    for block in blocks:
        column.paste(block, (0, top))
        top += block.height + gap
    return column


def bar(width: int, height: int, share: float, colour: Colour) -> Image.Image:
    """A bar with round ends on white, filled from the left.

    Args:
      width: pixels.
      height: pixels.
      share: part that is filled, 0 to 1; what lies outside counts as the nearer end.
      colour: colour of that part.
    """
    track = rounded(width, height, TRACK, TRACK, 0, height / 2, PAPER)
    filled = min(round(max(share, 0.0) * width), width)
    if filled:
        full = rounded(width, height, colour, colour, 0, height / 2, PAPER)
        track.paste(full.crop((0, 0, filled, height)), (0, 0))
    return track
