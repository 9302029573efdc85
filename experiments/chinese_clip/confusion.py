"""Which classes are taken for which: a picture of the shares, and the pairs that stand out."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int
from PIL import Image, ImageDraw

from experiments.common.drawing import INK, MUTED, PAGE, ellipsize, load_font

MOST_NAMED = 60  # with more classes the names would be too small to read
SIDE = 720  # pixels of the square of cells, about
NAME_WIDTH, GAP, TITLE_HEIGHT = 170, 10, 56
LOW, HIGH = np.array([255.0, 255.0, 255.0]), np.array([30.0, 64.0, 175.0])


def confusion_shares(
    num_classes: int, labels: Int[np.ndarray, " rows"], guesses: Int[np.ndarray, " rows"]
) -> Float64[np.ndarray, "classes classes"]:
    """Share of every class's pictures (rows) that is taken for each class (columns).

    Args:
      num_classes: number of classes.
      labels: true classes.
      guesses: classes found.

    Returns:
      Rows that sum to 1, or to 0 for a class without pictures.
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, guesses), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def worst_confusions(
    class_names: Sequence[str],
    labels: Int[np.ndarray, " rows"],
    guesses: Int[np.ndarray, " rows"],
    most: int = 8,
) -> dict[str, dict[str, float]]:
    """The pairs of classes that are confused most, for a table.

    Args:
      class_names: one name a class.
      labels: true classes.
      guesses: classes found.
      most: how many pairs.

    Returns:
      "A as B" -> how many pictures, and the percent of A's pictures.
    """
    shares = confusion_shares(len(class_names), labels, guesses)
    pairs, counts = np.unique(
        np.stack([labels, guesses])[:, labels != guesses], axis=1, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:most]
    return {
        f"{class_names[a]} as {class_names[b]}": {
            "pictures": int(count),
            "percent": 100 * float(shares[a, b]),
        }
        for a, b, count in zip(*pairs[:, order], counts[order], strict=True)
    }


def draw_confusion(
    class_names: Sequence[str],
    labels: Int[np.ndarray, " rows"],
    guesses: Int[np.ndarray, " rows"],
) -> Image.Image:
    """The shares as a square of cells, true classes from top to bottom.

    Args:
      class_names: one name a class; left out where there are more than 60.
      labels: true classes.
      guesses: classes found.
    """
    shares = confusion_shares(len(class_names), labels, guesses)[..., None]
    cell = max(2, min(40, SIDE // len(class_names)))
    colours = (LOW + shares * (HIGH - LOW)).astype(np.uint8)
    square = Image.fromarray(colours.repeat(cell, axis=0).repeat(cell, axis=1))
    named = len(class_names) <= MOST_NAMED
    left = (NAME_WIDTH if named else 0) + 2 * GAP
    page = Image.new("RGB", (left + square.width + 2 * GAP, TITLE_HEIGHT + square.height), PAGE)
    page.paste(square, (left, TITLE_HEIGHT - GAP))
    draw, small = ImageDraw.Draw(page), load_font(min(15, max(8, cell - 1)))
    title = "Rows: the class. Columns: what it is taken for. Dark: all of it."
    title = ellipsize(title, load_font(16), page.width - 2 * GAP)
    draw.text((GAP, GAP), title, INK, load_font(16))
    for row, name in enumerate(class_names if named else ()):
        middle = TITLE_HEIGHT - GAP + (row + 0.5) * cell
        text = ellipsize(name, small, NAME_WIDTH)
        draw.text((left - GAP, middle), text, MUTED, small, anchor="rm")
    return page
