"""The emoji set: a real Chinese and English image-text set that ships with the library.

Use::

    from jaxlab.data.emoji import load_emoji, standard_split

    emoji = load_emoji()
    split = standard_split(emoji)
    google = emoji.images("google")  # uint8 (3786, 64, 64, 4), RGBA
    style, index = split.train[0]
    emoji.texts(index)  # the Chinese name, then keywords
"""

from jaxlab.data.emoji.floors import category_floor, pixel_floor
from jaxlab.data.emoji.loader import STYLES, EmojiSet, composite, load_emoji
from jaxlab.data.emoji.split import LEVELS, EmojiSplit, RetrievalLevel, standard_split

__all__ = [
    "LEVELS",
    "STYLES",
    "EmojiSet",
    "EmojiSplit",
    "RetrievalLevel",
    "category_floor",
    "composite",
    "load_emoji",
    "pixel_floor",
    "standard_split",
]
