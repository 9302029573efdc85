"""The picture at the end of a run on the emoji set: queries with what the model found for them."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.common.pictures import (
    CaptionResult,
    ImageQuery,
    PictureResult,
    TextQuery,
    draw_retrieval,
)
from jaxlab.data.emoji import EmojiSet, EmojiSplit
from jaxlab.metrics import top_k_blockwise

NUM_QUERIES = 4
NUM_PICTURES, NUM_CAPTIONS = 7, 5
SEED = 0


def draw_emoji_retrieval(
    emoji: EmojiSet,
    split: EmojiSplit,
    drawings: UInt8[np.ndarray, "style emoji height width 4"],
    image_features: Float[np.ndarray, "style emoji dim"],
    name_features: Float[np.ndarray, "emoji dim"],
    *,
    language: str = "zh",
) -> Image.Image:
    """Names with their nearest drawings, and drawings never seen with their nearest names.

    The queries are drawn at random, with a fixed seed, from the unseen drawings: none is chosen by
    what was found for it.

    Args:
      emoji: the set.
      split: its split.
      drawings: all drawings.
      image_features: their normalised features.
      name_features: those of the names.
      language: of the names, `zh` or `en`.
    """
    level = split.levels["unseen_drawing"]
    names = emoji.names_zh if language == "zh" else emoji.names_en
    chosen = np.random.default_rng(SEED).permutation(len(level.text_queries))
    texts, pictures = chosen[:NUM_QUERIES], chosen[NUM_QUERIES : 2 * NUM_QUERIES]
    rows = level.image_gallery
    gallery = image_features[rows[:, 0], rows[:, 1]]
    found = top_k_blockwise(name_features[level.text_queries[texts]], gallery, NUM_PICTURES)
    text_queries = [
        TextQuery(
            names[level.text_queries[query]],
            tuple(
                PictureResult(
                    drawings[tuple(rows[place])],
                    names[rows[place, 1]],
                    float(score),
                    bool(place == level.text_targets[query]),
                )
                for place, score in zip(places, scores, strict=True)
            ),
        )
        for query, places, scores in zip(texts, found.indices, found.scores, strict=True)
    ]
    shown = level.image_queries[pictures]
    found = top_k_blockwise(
        image_features[shown[:, 0], shown[:, 1]], name_features[level.text_gallery], NUM_CAPTIONS
    )
    image_queries = [
        ImageQuery(
            drawings[tuple(row)],
            tuple(
                CaptionResult(
                    names[level.text_gallery[place]],
                    float(score),
                    bool(place == level.image_targets[query]),
                )
                for place, score in zip(places, scores, strict=True)
            ),
        )
        for query, row, places, scores in zip(
            pictures, shown, found.indices, found.scores, strict=True
        )
    ]
    return draw_retrieval(
        text_queries,
        image_queries,
        title="Drawings the model was never shown, found by their names",
        subtitle=f"{len(gallery):,} drawings and names; the right drawing is of a style that its "
        "concept was not trained on in",
        text_heading="A name looks for its drawing",
        image_heading="A drawing looks for its name",
    )
