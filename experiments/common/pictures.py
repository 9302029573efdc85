"""The pictures that retrieval experiments end with: queries beside what was found for them.

Every function takes plain data and gives an image: small blocks (a card, a list of captions) are
drawn by themselves and put beside and below one another. Text is set in the font that ships beside
this file, so that Chinese is legible on machines without a Chinese font.

Use::

    found = tuple(PictureResult(image, "饺子", 0.83, correct=True) for image in images)
    figure = draw_retrieval([TextQuery("饺子", found)], [], title="Unseen drawings")
    save_png(workdir / "retrieval.png", figure)
"""

import dataclasses
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from experiments.common.drawing import (
    BAR,
    DARK_GREEN,
    GREEN,
    INK,
    LINE,
    MUTED,
    PAGE,
    PAPER,
    bar,
    below,
    beside,
    check_mark,
    clean_line,
    ellipsize,
    fit,
    load_font,
    rounded,
    text_line,
    wrap,
)

# Pixels.
WIDTH = 1100
MARGIN = 36
GAP = 12  # between blocks
PADDING = 11  # inside cards
MIN_QUERY_WIDTH = 172
MIN_CARD_WIDTH, MAX_CARD_WIDTH = 94, 160
PICTURE, CARD_PICTURE, LARGE_PICTURE = 92, 96, 160  # beside captions, in cards, in a search
LIST_LINE, LIST_TEXT = 25, 400  # of captions: height of one; most that text takes from the bars
TITLE, SUBTITLE, HEADING, QUERY, CAPTION, NUMBER = 29, 16, 18, 23, 14, 12  # font sizes


@dataclasses.dataclass(frozen=True, eq=False)
class PictureResult:
    """A picture that was found.

    Attributes:
      image: uint8, (height, width, 3) RGB or (height, width, 4) RGBA, drawn on white.
      caption: what stands below it.
      score: similarity to the query, finite.
      correct: whether it is a right answer; None where nobody knows.

    Raises:
      ValueError: if the image cannot be drawn or the score is not finite.
    """

    image: UInt8[np.ndarray, "height width channels"]
    caption: str
    score: float
    correct: bool | None = None

    def __post_init__(self) -> None:
        check_image(self.image)
        _check_score(self.score, self.caption)


@dataclasses.dataclass(frozen=True)
class CaptionResult:
    """A caption that was found.

    Attributes:
      text: the caption.
      score: similarity to the query, finite.
      correct: whether it is a right answer; None where nobody knows.

    Raises:
      ValueError: if the score is not finite.
    """

    text: str
    score: float
    correct: bool | None = None

    def __post_init__(self) -> None:
        _check_score(self.score, self.text)


@dataclasses.dataclass(frozen=True, eq=False)
class TextQuery:
    """A text and the pictures that were found for it.

    Attributes:
      text: the query.
      results: at least one picture, best first.

    Raises:
      ValueError: if there are no results.
    """

    text: str
    results: tuple[PictureResult, ...]

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError(f"query {self.text!r} has no results; give at least one picture")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageQuery:
    """A picture and the captions that were found for it.

    Attributes:
      image: uint8, (height, width, 3) RGB or (height, width, 4) RGBA, drawn on white.
      results: at least one caption, best first.

    Raises:
      ValueError: if the image cannot be drawn or there are no results.
    """

    image: UInt8[np.ndarray, "height width channels"]
    results: tuple[CaptionResult, ...]

    def __post_init__(self) -> None:
        check_image(self.image)
        if not self.results:
            raise ValueError("an image query has no results; give at least one caption")


def check_image(image: UInt8[np.ndarray, "height width channels"]) -> None:
    """Refuses what cannot be drawn.

    Args:
      image: a NumPy array.

    Raises:
      ValueError: unless it is uint8, (height, width, 3) or (height, width, 4), and not empty.
    """
    shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] not in (3, 4) or 0 in shape:
        raise ValueError(
            f"got an image of shape {shape} and type {dtype}, wanted uint8 of shape (height, "
            "width, 3) for RGB or (height, width, 4) for RGBA; convert it first"
        )


def draw_retrieval(
    text_queries: Sequence[TextQuery],
    image_queries: Sequence[ImageQuery],
    *,
    title: str,
    subtitle: str = "",
    text_heading: str = "Text to picture",
    image_heading: str = "Picture to text",
) -> Image.Image:
    """Texts with the pictures found for them, then pictures with the captions found for them.

    Right answers have a green frame and a green mark. Bars are as long as their scores, relative
    to the largest score of all captions; a negative score has none. Texts that do not fit end in an
    ellipsis.

    Args:
      text_queries: one row each; pictures that do not fit beside each other go on below.
      image_queries: two beside each other; either of the two sequences may be empty.
      title: what stands above.
      subtitle: a line below the title.
      text_heading: what stands above the text queries.
      image_heading: what stands above the image queries.

    Returns:
      An RGB image, 1100 pixels wide.

    Raises:
      ValueError: if there is no query at all.
    """
    if not text_queries and not image_queries:
        raise ValueError("there is nothing to draw: give at least one text or image query")
    blocks = [_header(title, subtitle, legend=_has_marks([*text_queries, *image_queries]))]
    if text_queries:
        blocks.append(_heading(text_heading))
        blocks += _text_rows(text_queries)
    if image_queries:
        blocks.append(_heading(image_heading))
        blocks += _image_rows(image_queries)
    return _frame(below(blocks, GAP))


def draw_search(
    query: TextQuery | ImageQuery, *, title: str = "", subtitle: str = ""
) -> Image.Image:
    """One query with all its results, larger than in `draw_retrieval`.

    Args:
      query: a text with pictures, or a picture with captions.
      title: what stands above; by default the query, or that captions were found.
      subtitle: a line below the title.

    Returns:
      An RGB image, 1100 pixels wide.
    """
    legend = _has_marks([query])
    if isinstance(query, TextQuery):
        header = _header(title or query.text, subtitle, legend)
        results = _cards(query.results, _inner_width(), MAX_CARD_WIDTH, LARGE_PICTURE)
    else:
        header = _header(title or "Captions for a picture", subtitle, legend)
        scale, num_lines = _largest_score([query]), len(query.results)
        results = _image_card(query, _inner_width(), LARGE_PICTURE, scale, num_lines)
    return _frame(below([header, results], 2 * GAP))


def save_png(path: str | Path, image: Image.Image) -> Path:
    """Writes an image whole or not at all; the same image gives the same bytes.

    Args:
      path: file to write; its folder is made if it is missing.
      image: any image.

    Returns:
      The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


# Blocks: every function below gives an image of its own.


def _text_rows(queries: Sequence[TextQuery]) -> list[Image.Image]:
    """A row a query: its text at the left, its pictures beside it."""
    room = _inner_width() - MIN_QUERY_WIDTH
    most = max(len(query.results) for query in queries)
    columns = min(most, room // (MIN_CARD_WIDTH + GAP))
    card_width = min(room // columns - GAP, MAX_CARD_WIDTH)
    cards_width = columns * (card_width + GAP) - GAP
    rows = []
    for query in queries:
        cards = _cards(query.results, cards_width, card_width, CARD_PICTURE)
        text = _query_text(query.text, _inner_width() - cards_width - GAP, cards.height)
        rows.append(beside([text, cards], GAP))
    return rows


def _query_text(text: str, width: int, height: int) -> Image.Image:
    """A query in at most three lines, in the middle of its row."""
    font = load_font(QUERY)
    lines = wrap(clean_line(text), font, width - GAP, 3)
    block = Image.new("RGB", (width, height), PAGE)
    draw = ImageDraw.Draw(block)
    leading = round(QUERY * 1.35)
    first = (height - leading * (len(lines) - 1)) / 2
    for number, line in enumerate(lines):
        draw.text((0, first + number * leading), line, INK, font, anchor="lm")
    return block


def _cards(
    results: Sequence[PictureResult], width: int, card_width: int, picture: int
) -> Image.Image:
    """Cards beside each other, as many as fit the width, then on below."""
    columns = max((width + GAP) // (card_width + GAP), 1)
    cards = [_result_card(result, card_width, picture) for result in results]
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    return below([beside(row, GAP) for row in rows], GAP)


def _result_card(result: PictureResult, width: int, picture: int) -> Image.Image:
    """A white card: the picture, below it the caption and the score; a right one in green."""
    picture = min(picture, width - 2 * PADDING)
    height = PADDING + picture + 10 + CAPTION + 8 + NUMBER + PADDING
    right = bool(result.correct)
    card = rounded(width, height, PAPER, GREEN if right else LINE, 2.5 if right else 1)
    card.paste(fit(result.image, picture), ((width - picture) // 2, PADDING))
    draw = ImageDraw.Draw(card)
    font = load_font(CAPTION)
    caption = ellipsize(clean_line(result.caption), font, width - PADDING)
    middle = PADDING + picture + 10 + CAPTION // 2
    draw.text((width / 2, middle), caption, DARK_GREEN if right else INK, font, anchor="mm")
    middle += CAPTION // 2 + 8 + NUMBER // 2
    score, font = f"{result.score:z.2f}", load_font(NUMBER)
    mark = check_mark(NUMBER + 2)
    left = round((width - font.getlength(score) - (mark.width + 4 if right else 0)) / 2)
    if right:
        card.paste(mark, (left, middle - mark.height // 2), mark)
        left += mark.width + 4
    draw.text((left, middle), score, MUTED, font, anchor="lm")
    return card


def _image_rows(queries: Sequence[ImageQuery]) -> list[Image.Image]:
    """Two queries a row, each a picture and its captions."""
    width = (_inner_width() - GAP) // 2
    scale = _largest_score(queries)
    most = max(len(query.results) for query in queries)
    blocks = [_image_card(query, width, PICTURE, scale, most) for query in queries]
    return [beside(blocks[start : start + 2], GAP) for start in range(0, len(blocks), 2)]


def _image_card(
    query: ImageQuery, width: int, picture: int, scale: float, num_lines: int
) -> Image.Image:
    """A white card: the picture at the left, its captions at the right."""
    padding = PADDING + 4
    height = max(picture, num_lines * LIST_LINE) + 2 * padding
    card = rounded(width, height, PAPER, LINE, 1)
    card.paste(fit(query.image, picture), (padding, (height - picture) // 2))
    left = padding + picture + 2 * GAP
    lines = [_caption_line(result, width - left - padding, scale) for result in query.results]
    captions = below(lines, 0)
    card.paste(captions, (left, (height - captions.height) // 2))
    return card


def _caption_line(result: CaptionResult, width: int, scale: float) -> Image.Image:
    """A mark where it is right, the caption, a bar for the score, the score."""
    line = Image.new("RGB", (width, LIST_LINE), PAPER)
    draw = ImageDraw.Draw(line)
    right = bool(result.correct)
    mark, number_width, middle = check_mark(16), 44, LIST_LINE / 2
    if right:
        line.paste(mark, (0, (LIST_LINE - mark.height) // 2), mark)
    text_left = mark.width + 8
    bar_width = max(round(0.3 * width), width - number_width - LIST_TEXT)
    bar_left = width - number_width - bar_width
    font = load_font(CAPTION + 1)
    text = ellipsize(clean_line(result.text), font, bar_left - GAP - text_left)
    draw.text((text_left, middle), text, DARK_GREEN if right else INK, font, anchor="lm")
    score_bar = bar(bar_width, 8, result.score / scale, GREEN if right else BAR)
    line.paste(score_bar, (bar_left, (LIST_LINE - score_bar.height) // 2))
    score = f"{result.score:z.2f}"
    draw.text((width, middle), score, MUTED, load_font(NUMBER), anchor="rm")
    return line


def _header(title: str, subtitle: str, legend: bool) -> Image.Image:
    """The title, at its right what the green mark means, below it the subtitle."""
    width = _inner_width()
    entry = _legend() if legend else Image.new("RGB", (1, 1), PAGE)
    line = text_line(title, TITLE, INK, width - entry.width - GAP)
    first = Image.new("RGB", (width, line.height), PAGE)
    first.paste(line, (0, 0))
    first.paste(entry, (width - entry.width, (line.height - entry.height) // 2))
    return below([first, text_line(subtitle, SUBTITLE, MUTED, width)] if subtitle else [first], 2)


def _legend() -> Image.Image:
    words = text_line("right answer", CAPTION, MUTED, _inner_width())
    check = check_mark(16)
    mark = Image.new("RGB", (check.width, words.height), PAGE)
    mark.paste(check, (0, (words.height - check.height) // 2), check)
    return beside([mark, words], 6)


def _heading(text: str) -> Image.Image:
    space = Image.new("RGB", (1, GAP), PAGE)
    return below([space, text_line(text, HEADING, MUTED, _inner_width())], 0)


def _frame(block: Image.Image) -> Image.Image:
    """The page: a block with its margins."""
    page = Image.new("RGB", (WIDTH, block.height + 2 * MARGIN), PAGE)
    page.paste(block, (MARGIN, MARGIN))
    return page


def _inner_width() -> int:
    return WIDTH - 2 * MARGIN


def _has_marks(queries: Sequence[TextQuery | ImageQuery]) -> bool:
    """Whether the right answers of any query are known."""
    return any(result.correct is not None for query in queries for result in query.results)


def _largest_score(queries: Sequence[ImageQuery]) -> float:
    """The score that fills a bar; 1 if none is positive."""
    largest = max(result.score for query in queries for result in query.results)
    return largest if largest > 0 else 1.0


def _check_score(score: float, text: str) -> None:
    if not math.isfinite(score):
        raise ValueError(f"the score of {text!r} is {score}; only finite scores can be drawn")
