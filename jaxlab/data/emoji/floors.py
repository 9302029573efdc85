"""Trivial floors of the emoji protocols: what no training at all reaches.

A network that does not beat the pixel nearest neighbour has learned less than a thumbnail shows.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxlab.data.emoji.loader import STYLES, EmojiSet
from jaxlab.data.emoji.split import EmojiSplit

THUMBNAIL_SIZE = 8
RECALLS = (1, 5, 10)
CHUNK = 64  # drawings turned to float64 at once
TIE = 1e-9  # equal drawings differ by rounding, distinct ones by more


def pixel_features(
    images: UInt8[np.ndarray, "n height width 4"], size: int = THUMBNAIL_SIZE
) -> Float[np.ndarray, "n dim"]:
    """Thumbnails of drawings as unit vectors: on white, block means, mean removed, normalised.

    The mean removed is the drawing's own, over pixels and channels. A constant drawing gives zeros.

    Args:
      images: RGBA, uint8.
      size: side of the thumbnail in pixels; must divide height and width.

    Returns:
      float64, dim = size * size * 3.

    Raises:
      ValueError: if `size` does not divide the sides.
    """
    count, height, width, _ = images.shape
    if height % size or width % size:
        raise ValueError(
            f"size={size} does not divide the drawings' {height}x{width} pixels; "
            "choose a divisor such as 8 or 16"
        )
    flat = np.empty((count, size * size * 3))
    for start in range(0, count, CHUNK):
        chunk = images[start : start + CHUNK]
        alpha = chunk[..., 3:] / 255
        on_white = chunk[..., :3] * alpha + 255 * (1 - alpha)
        blocks = on_white.reshape(-1, size, height // size, size, width // size, 3)
        flat[start : start + CHUNK] = blocks.mean(axis=(2, 4)).reshape(len(chunk), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def pixel_recall(
    queries: Float[np.ndarray, "queries dim"],
    query_concepts: Int[np.ndarray, " queries"],
    gallery: Float[np.ndarray, "gallery dim"],
    gallery_concepts: Int[np.ndarray, " gallery"],
) -> dict[str, float]:
    """Recall of names by the nearest captioned drawing; ties count against the model.

    A name's score is that of the nearest of its drawings in the gallery; a name without a drawing
    is never found.

    Args:
      queries: features of the drawings that look for their name.
      query_concepts: name of each query.
      gallery: features of the captioned drawings.
      gallery_concepts: name of each of them.

    Returns:
      "r1", "r5", "r10" in percent.
    """
    similarity = queries @ gallery.T
    names = int(max(query_concepts.max(), gallery_concepts.max())) + 1
    scores = np.full((names, len(queries)), -np.inf)
    np.maximum.at(scores, gallery_concepts, similarity.T)
    own = scores[query_concepts, np.arange(len(queries))]
    ranks = (scores >= own - TIE).sum(axis=0)
    found = np.isfinite(own)
    return {f"r{k}": 100.0 * float(((ranks <= k) & found).mean()) for k in RECALLS}


def pixel_floor(
    emoji: EmojiSet,
    split: EmojiSplit,
    images: UInt8[np.ndarray, "styles emoji height width 4"] | None = None,
) -> dict[str, float]:
    """Pixel nearest neighbour of the level "unseen drawing": 24.1 / 40.6 / 48.7.

    Each unseen base drawing takes the names of the nearest base drawings that are trained on, in
    either style, among the 1,911 base names.

    Args:
      emoji: the set.
      split: its standard split.
      images: drawings of both styles in the order of `STYLES`, decoded here when absent.

    Returns:
      "r1", "r5", "r10" in percent, image to text.
    """
    if images is None:
        images = np.stack([emoji.images(style) for style in STYLES])
    level = split.levels["unseen_drawing"]
    train = split.train[emoji.is_base[split.train[:, 1]]]
    return pixel_recall(
        pixel_features(images[level.image_queries[:, 0], level.image_queries[:, 1]]),
        emoji.concepts[level.image_queries[:, 1]],
        pixel_features(images[train[:, 0], train[:, 1]]),
        emoji.concepts[train[:, 1]],
    )


def category_floor(emoji: EmojiSet, split: EmojiSplit) -> dict[str, float]:
    """Trivial scores of sorting the unseen concepts into their categories.

    Returns:
      "chance": mean per class of guessing, in percent: 100 over the number of categories that
      have unseen concepts. "largest": plain accuracy of always naming the largest, in percent.
    """
    categories = emoji.categories[emoji.base_index[split.unseen_concepts]]
    counts = np.bincount(categories)
    return {
        "chance": 100.0 / int((counts > 0).sum()),
        "largest": 100.0 * float(counts.max() / counts.sum()),
    }
