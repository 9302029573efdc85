"""The emoji set: a real Chinese and English image-text set that ships with the library.

Use::

    from jaxlab.data.emoji import load_emoji, standard_split

    emoji = load_emoji()
    split = standard_split(emoji)
    google = emoji.images("google")  # uint8 (3786, 64, 64, 4), RGBA
    style, index = split.train[0]
    emoji.texts(index)  # the Chinese name, then keywords
"""

from typing import TYPE_CHECKING, Any

from jaxlab.data.emoji.floors import category_floor, pixel_floor
from jaxlab.data.emoji.loader import STYLES, EmojiSet, composite, load_emoji
from jaxlab.data.emoji.source import EmojiSource, emoji_source
from jaxlab.data.emoji.split import LEVELS, EmojiSplit, RetrievalLevel, standard_split

if TYPE_CHECKING:
    from jaxlab.data.emoji.tfds_builder import EmojiBuilder

__all__ = [
    "LEVELS",
    "STYLES",
    "EmojiBuilder",
    "EmojiSet",
    "EmojiSource",
    "EmojiSplit",
    "RetrievalLevel",
    "category_floor",
    "composite",
    "emoji_source",
    "load_emoji",
    "pixel_floor",
    "standard_split",
]


def __getattr__(name: str) -> Any:
    if name == "EmojiBuilder":  # tensorflow_datasets takes a second to import
        from jaxlab.data.emoji.tfds_builder import EmojiBuilder

        return EmojiBuilder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
