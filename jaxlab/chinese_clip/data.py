"""Image-text pairs in the original's formats, as batches for training and retrieval.

Images leave the host as uint8 and are normalised on the device. Text is cleaned (lower case,
straight quotes) before it is tokenised, as the original does with data sets.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Int64, Key, UInt8

from jaxlab.chinese_clip.feature_cache import FeatureCache
from jaxlab.chinese_clip.objective import split_ids
from jaxlab.data.augment import AugmentConfig, augment_image
from jaxlab.data.images import decode_image, normalize, squash_resize
from jaxlab.data.pairs import PairSource
from jaxlab.text import WordPieceTokenizer


@dataclasses.dataclass(frozen=True)
class PairDataConfig:
    """Where image-text pairs lie and how they are read.

    Attributes:
      folder: holds `{split}_imgs.tsv` and `{split}_texts.jsonl`, or `lmdb/{split}`.
      train_split: split that is trained on.
      eval_split: split whose retrieval is measured, its files checked at the start; "" measures
        none.
      test_split: split whose retrieval is measured at the end only, such as the one that results
        are reported on where `eval_split` chooses the checkpoint; "" for none.
      augment: random crops, flips and AutoAugment while training; otherwise the evaluation
        transform.
      augmentation: their ranges.
      compat: `white` composites transparent pictures on white and scales 16 bits to 8, `original`
        treats both as the original does, see `decode_image`.
      apply_exif: turn pictures by their EXIF orientation, which the original ignores.
      remainder: the pairs at the end of an epoch that do not fill a batch: `carry` them into the
        first batch of the next epoch, `wrap` fills up with pairs of the same epoch, seen twice
        (the original), `drop` leaves them out.
      on_error: `error` stops at broken records and lists them, `skip` leaves them out and counts
        them.
      num_threads: threads that decode and augment.
      eval_batch_size: images or texts that are encoded at a time in an evaluation.
    """

    folder: str = ""
    train_split: str = "train"
    eval_split: str = "valid"
    test_split: str = ""
    augment: bool = True
    augmentation: AugmentConfig = AugmentConfig()
    compat: Literal["white", "original"] = "white"
    apply_exif: bool = False
    remainder: Literal["carry", "wrap", "drop"] = "carry"
    on_error: Literal["error", "skip"] = "error"
    num_threads: int = 4
    eval_batch_size: int = 256

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
          ValueError: if one is out of range.
        """
        if self.num_threads < 0 or self.eval_batch_size < 1:
            raise ValueError(
                f"PairDataConfig: num_threads={self.num_threads} must be at least 0 and "
                f"eval_batch_size={self.eval_batch_size} at least 1"
            )


def make_pair_transform(
    config: PairDataConfig,
    tokenizer: WordPieceTokenizer,
    image_size: int,
    context_length: int,
    *,
    with_image_id: bool = False,
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]:
    """From a record of a `PairSource` to a training example.

    Args:
      config: whether and how to augment.
      tokenizer: texts to ids.
      image_size: height and width of the images, in pixels.
      context_length: length of the ids.
      with_image_id: give which image it is, for a loss in which equal images match.

    Returns:
      `(record, generator) -> {"image": uint8 (size, size, 3), "ids": int32 (length,)}`, and
      `image_id`, uint32 (2,), if asked. It raises ValueError for an image that cannot be decoded.
    """

    def transform(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        name = f"{record['example_id']} (image_id {record['image_id']})"
        pixels = training_view(record["image"], rng, config, image_size, example_id=name)
        ids = tokenizer.tokenize(record["text"], context_length=context_length, clean=True)
        return {"image": pixels, "ids": ids[0], **_image_id(record, with_image_id)}

    return transform


def training_view(
    image: bytes,
    rng: np.random.Generator,
    config: PairDataConfig,
    image_size: int,
    *,
    example_id: object = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """The pixels of an image file as training sees them.

    Args:
      image: bytes of the file.
      rng: generator of the augmentation.
      config: whether and how to augment.
      image_size: height and width of the result, in pixels.
      example_id: named in the error.

    Raises:
      ValueError: if the image cannot be decoded.
    """
    decoded = decode_image(
        image, example_id=example_id, compat=config.compat, apply_exif=config.apply_exif
    )
    if not config.augment:
        return squash_resize(decoded, image_size)
    view = augment_image(decoded, image_size, rng, config.augmentation, compat=config.compat)
    return np.asarray(view)


def make_cached_transform(
    cache: FeatureCache,
    tokenizer: WordPieceTokenizer,
    context_length: int,
    *,
    with_image_id: bool = False,
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]:
    """From a record of `CachedPairs` to a training example with the features of a random view.

    Args:
      cache: features of the images.
      tokenizer: texts to ids.
      context_length: length of the ids.
      with_image_id: give which image it is, for a loss in which equal images match.

    Returns:
      `(record, generator) -> {"image_features": float32 (dim,), "ids": int32 (length,)}`, and
      `image_id`, uint32 (2,), if asked.
    """

    def transform(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        view = int(rng.integers(cache.num_views))
        ids = tokenizer.tokenize(record["text"], context_length=context_length, clean=True)
        features = cache.read(int(record["image_id"]), view)
        return {
            "image_features": features, "ids": ids[0], **_image_id(record, with_image_id)
        }  # fmt: skip

    return transform


def _image_id(record: dict[str, Any], is_wanted: bool) -> dict[str, np.ndarray]:
    """The id of a record's image as a device holds it, if it is wanted."""
    return {"image_id": split_ids(np.asarray(record["image_id"], np.int64))} if is_wanted else {}


def prepare_pixels(
    key: Key[Array, ""], images: UInt8[Array, "batch height width 3"]
) -> Float[Array, "batch height width 3"]:
    """From uint8 images to normalised float32, on the device; takes a key only as `Prepare` does.

    Args:
      key: not used.
      images: NHWC.

    Returns:
      NHWC.
    """
    del key
    return normalize(images)


class RetrievalSet:
    """The distinct images and texts of a split, and which belong together.

    Attributes:
      image_ids: ids in first-seen order, int64.
      text_ids: ids in first-seen order, int64.
      texts: the texts, in the order of `text_ids`.
      images_of_text: positions of the right images of every text.
    """

    def __init__(self, source: PairSource) -> None:
        """Collect what a split holds; images stay in their file.

        Args:
          source: pairs of the split.
        """
        pairs = [source.pairs[int(index)] for index in source.kept]
        images = {
            image_id: i for i, image_id in enumerate(dict.fromkeys(p.image_id for p in pairs))
        }
        texts = {text_id: i for i, text_id in enumerate(dict.fromkeys(p.text_id for p in pairs))}
        text_of = {pair.text_id: pair.text for pair in pairs}
        self._store = source.images
        self.image_ids: Int64[np.ndarray, " images"] = np.asarray(list(images), np.int64)
        self.text_ids: Int64[np.ndarray, " texts"] = np.asarray(list(texts), np.int64)
        self.texts = [text_of[text_id] for text_id in texts]
        self.images_of_text: list[list[int]] = [[] for _ in texts]
        for pair in pairs:
            self.images_of_text[texts[pair.text_id]].append(images[pair.image_id])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def read_images(
        self,
        start: int,
        stop: int,
        image_size: int,
        *,
        compat: str = "white",
        apply_exif: bool = False,
    ) -> UInt8[np.ndarray, "images size size 3"]:
        """The images at some positions, through the evaluation transform.

        Args:
          start: first position.
          stop: position after the last.
          image_size: height and width of the result, in pixels.
          compat: see `decode_image`.
          apply_exif: turn pictures by their EXIF orientation.

        Raises:
          ValueError: naming the image that cannot be decoded.
        """
        chosen = self.image_ids[start:stop].tolist()
        decoded = (
            decode_image(self._store.read(i), example_id=i, compat=compat, apply_exif=apply_exif)
            for i in chosen
        )
        return np.stack([squash_resize(image, image_size) for image in decoded])
