"""The standard split of the emoji set: three levels of unseen, and what is asked at each.

*Unseen drawing*: the concept is known in the other style. *Unseen combination*: the concept and
the skin tone are known, the pair is not, nor is its name. *Unseen concept*: nothing of it is
trained on.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from jaxlab.data.emoji.loader import STYLES, EmojiSet

SEED = 2026
NUM_UNSEEN_CONCEPTS = 191
NUM_UNSEEN_DRAWINGS = 382
MIN_VARIATIONS = 5
LEVELS = ("unseen_drawing", "unseen_combination", "unseen_concept")


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalLevel:
    """What one level asks, both ways. Every query has one positive.

    A drawing is a row (style, item): style 0 Google, 1 Twitter. A text is an item: its short name.

    Attributes:
      image_queries: drawings that look for their name.
      text_gallery: items whose names are ranked.
      image_targets: position in `text_gallery` of the right name of each image query.
      text_queries: items whose names look for their drawing.
      image_gallery: drawings that are ranked.
      text_targets: position in `image_gallery` of the right drawing of each text query.
    """

    image_queries: Int[np.ndarray, "image_queries 2"]
    text_gallery: Int[np.ndarray, " text_gallery"]
    image_targets: Int[np.ndarray, " image_queries"]
    text_queries: Int[np.ndarray, " text_queries"]
    image_gallery: Int[np.ndarray, "image_gallery 2"]
    text_targets: Int[np.ndarray, " text_queries"]


@dataclasses.dataclass(frozen=True, eq=False)
class EmojiSplit:
    """Training drawings and the three levels of unseen.

    Attributes:
      train: training drawings, rows (style, item), style-major, int32 (5542, 2).
      unseen_concepts: concepts that are not trained on, in the order drawn, int32 (191,).
      unseen_combinations: items not trained on in either style, sorted, int32 (341,).
      unseen_drawing_concepts: concepts of which one style is not trained on, in the order drawn,
        int32 (382,).
      unseen_drawing_styles: that style, int32 (382,).
      levels: name of the level (`LEVELS`) -> what it asks.
    """

    train: Int[np.ndarray, "train 2"]
    unseen_concepts: Int[np.ndarray, " unseen_concepts"]
    unseen_combinations: Int[np.ndarray, " unseen_combinations"]
    unseen_drawing_concepts: Int[np.ndarray, " unseen_drawings"]
    unseen_drawing_styles: Int[np.ndarray, " unseen_drawings"]
    levels: Mapping[str, RetrievalLevel]


def standard_split(emoji: EmojiSet) -> EmojiSplit:
    """The split that published numbers on the emoji set refer to; it has no options.

    With `numpy.random.default_rng(2026)`, in this order: a permutation p of the concepts, whose
    first 191 are the unseen concepts; for every other concept in order with at least 5 skin-tone
    variations, a fifth of them (rounded down) as unseen combinations; for each of the next 382
    concepts of p the style whose drawings, base and variations, are not trained on.

    Args:
      emoji: the whole set.

    Raises:
      ValueError: if the set has too few concepts for the split.
    """
    if emoji.num_concepts < NUM_UNSEEN_CONCEPTS + NUM_UNSEEN_DRAWINGS:
        raise ValueError(
            f"the emoji set has {emoji.num_concepts} concepts, the standard split needs at least "
            f"{NUM_UNSEEN_CONCEPTS + NUM_UNSEEN_DRAWINGS}; load the whole set with load_emoji()"
        )
    rng = np.random.default_rng(SEED)
    order = rng.permutation(emoji.num_concepts).astype(np.int32)
    concepts = order[:NUM_UNSEEN_CONCEPTS]
    combinations = _draw_combinations(emoji, concepts, rng)
    drawing_concepts = order[NUM_UNSEEN_CONCEPTS : NUM_UNSEEN_CONCEPTS + NUM_UNSEEN_DRAWINGS]
    drawing_styles = np.asarray([rng.integers(len(STYLES)) for _ in drawing_concepts], np.int32)

    trained = np.ones((len(STYLES), emoji.num_emoji), bool)
    trained[:, np.isin(emoji.concepts, concepts)] = False
    trained[:, combinations] = False
    for concept, style in zip(drawing_concepts, drawing_styles, strict=True):
        trained[style, emoji.concepts == concept] = False
    return EmojiSplit(
        train=np.argwhere(trained).astype(np.int32),
        unseen_concepts=concepts,
        unseen_combinations=combinations,
        unseen_drawing_concepts=drawing_concepts,
        unseen_drawing_styles=drawing_styles,
        levels={
            "unseen_drawing": _drawing_level(emoji, drawing_concepts, drawing_styles),
            "unseen_combination": _combination_level(emoji, combinations),
            "unseen_concept": _concept_level(emoji, concepts),
        },
    )


def _draw_combinations(
    emoji: EmojiSet, unseen_concepts: Int[np.ndarray, " unseen"], rng: np.random.Generator
) -> Int[np.ndarray, " combinations"]:
    unseen = set(unseen_concepts.tolist())
    drawn = []
    for concept in range(emoji.num_concepts):
        variations = np.flatnonzero((emoji.concepts == concept) & ~emoji.is_base)
        if concept not in unseen and len(variations) >= MIN_VARIATIONS:
            drawn.append(rng.choice(variations, len(variations) // MIN_VARIATIONS, replace=False))
    return np.sort(np.concatenate(drawn)).astype(np.int32)


def _drawings(
    styles: Int[np.ndarray, " n"] | int, items: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "n 2"]:
    return np.stack([np.broadcast_to(styles, items.shape), items], axis=1).astype(np.int32)


def _both_styles(items: Int[np.ndarray, " n"]) -> Int[np.ndarray, "m 2"]:
    return np.concatenate([_drawings(style, items) for style in range(len(STYLES))])


def _drawing_level(
    emoji: EmojiSet,
    concepts: Int[np.ndarray, " unseen"],
    styles: Int[np.ndarray, " unseen"],
) -> RetrievalLevel:
    """382 base drawings among 1,911 base names; their names among 1,911 base drawings.

    The image gallery has the unseen drawing where a concept has one, else Google's.
    """
    names = emoji.base_index
    gallery = _drawings(0, names)
    gallery[concepts, 0] = styles
    return RetrievalLevel(
        image_queries=_drawings(styles, names[concepts]),
        text_gallery=names,
        image_targets=concepts,
        text_queries=names[concepts],
        image_gallery=gallery,
        text_targets=concepts,
    )


def _combination_level(emoji: EmojiSet, items: Int[np.ndarray, " unseen"]) -> RetrievalLevel:
    """682 drawings among all names; their 341 names among all Google drawings."""
    everything = np.arange(emoji.num_emoji, dtype=np.int32)
    queries = _both_styles(items)
    return RetrievalLevel(
        image_queries=queries,
        text_gallery=everything,
        image_targets=queries[:, 1],
        text_queries=items,
        image_gallery=_drawings(0, everything),
        text_targets=items,
    )


def _concept_level(emoji: EmojiSet, concepts: Int[np.ndarray, " unseen"]) -> RetrievalLevel:
    """382 base drawings among the 191 unseen names; those names among 191 Google drawings."""
    items = emoji.base_index[concepts]
    positions = np.arange(len(items), dtype=np.int32)
    return RetrievalLevel(
        image_queries=_both_styles(items),
        text_gallery=items,
        image_targets=np.tile(positions, len(STYLES)),
        text_queries=items,
        image_gallery=_drawings(0, items),
        text_targets=positions,
    )
