"""Random-access sources of emoji drawings with their texts.

`emoji_source` reads the array_record files that `EmojiBuilder` prepares once into the cache
directory, without TensorFlow and without network. Where array_record does not exist (macOS,
Windows) it serves the same records from memory.
"""

import dataclasses
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from jaxlab.data.emoji.loader import STYLES, EmojiSet, load_emoji
from jaxlab.data.emoji.split import LEVELS, EmojiSplit, standard_split
from jaxlab.packages import cache_dir

SPLITS = ("train", *LEVELS)


@runtime_checkable
class EmojiSource(Protocol):
    """What `emoji_source` returns: a sequence of records.

    A record has `image` (uint8 (64, 64, 4) RGBA, or the bytes of the WebP file), `example_id`
    (style * 3786 + item), `style` (0 Google, 1 Twitter), `index` (item of `EmojiSet`),
    `concept`, `category`, `name_zh`, `name_en` (bytes, UTF-8), `keywords_zh`, `keywords_en`
    (sequences of bytes).
    """

    def __len__(self) -> int:
        """Number of drawings."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """The record of one drawing."""
        ...


def drawings_of_split(split: EmojiSplit, name: str) -> Int[np.ndarray, "drawings 2"]:
    """Drawings (style, item) of a split: the training drawings, or the queries of a level.

    Args:
      split: the standard split.
      name: one of `SPLITS`.

    Raises:
      ValueError: for another name.
    """
    if name not in SPLITS:
        raise ValueError(f"split={name!r} is not one of {', '.join(map(repr, SPLITS))}")
    return split.train if name == "train" else split.levels[name].image_queries


def emoji_record(emoji: EmojiSet, style: int, index: int, encoded: bytes) -> dict[str, Any]:
    """One record as TFDS returns it, with the drawing still encoded."""
    return {
        "image": encoded,
        "example_id": style * emoji.num_emoji + index,
        "style": style,
        "index": index,
        "concept": int(emoji.concepts[index]),
        "category": int(emoji.categories[index]),
        "name_zh": emoji.names_zh[index].encode("utf-8"),
        "keywords_zh": [word.encode("utf-8") for word in emoji.keywords_zh[index]],
        "name_en": emoji.names_en[index].encode("utf-8"),
        "keywords_en": [word.encode("utf-8") for word in emoji.keywords_en[index]],
    }


def emoji_records(
    emoji: EmojiSet, split: EmojiSplit, name: str, encoded: Sequence[Sequence[bytes]]
) -> Iterator[dict[str, Any]]:
    """Every record of a split, in its order.

    Args:
      emoji: the set.
      split: its standard split.
      name: one of `SPLITS`.
      encoded: `EmojiSet.encoded_images` of every style.
    """
    for style, index in drawings_of_split(split, name).tolist():
        yield emoji_record(emoji, style, index, encoded[style][index])


@dataclasses.dataclass(frozen=True)
class MemoryEmojiSource:
    """The records of a split in memory.

    Attributes:
      records: the records, drawings encoded.
      decode: whether `image` is returned as RGBA pixels.
    """

    records: Sequence[Mapping[str, Any]]
    decode: bool

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        record = dict(self.records[index])
        if not self.decode:
            return record
        from PIL import Image

        with Image.open(io.BytesIO(record["image"]), formats=("WEBP",)) as image:
            return {**record, "image": np.array(image.convert("RGBA"))}


def has_array_record() -> bool:
    """Whether array_record files can be read and written here (it ships for Linux only)."""
    return importlib.util.find_spec("array_record") is not None


def emoji_source(
    *, split: str = "train", data_dir: str | Path | None = None, decode: bool = True
) -> EmojiSource:
    """A random-access source of one split of the emoji set, for `jaxlab.data.pipeline` or grain.

    The first call prepares array_record files (21 MB, a few seconds); later calls read them. Where
    array_record is missing the records are served from memory, equal in content and order.

    Args:
      split: "train", "unseen_drawing", "unseen_combination" or "unseen_concept".
      data_dir: where the prepared files live; `cache_dir() / "tfds"` by default.
      decode: False returns the bytes of the WebP file instead of pixels.

    Raises:
      ValueError: for another split, or damaged assets.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(map(repr, SPLITS))}")
    if not has_array_record():
        emoji = load_emoji()
        encoded = [emoji.encoded_images(style) for style in STYLES]
        records = tuple(emoji_records(emoji, standard_split(emoji), split, encoded))
        return MemoryEmojiSource(records, decode)

    import tensorflow_datasets as tfds

    from jaxlab.data.emoji.tfds_builder import prepare_emoji

    builder = prepare_emoji(cache_dir() / "tfds" if data_dir is None else Path(data_dir))
    decoders = None if decode else {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=decoders)
