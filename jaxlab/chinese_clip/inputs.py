"""What people have (paths, bytes, pictures, arrays, texts) as the rows that a program takes."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.data.images import decode_image, to_rgb

TEXT_LENGTH_STEP = 16  # tokens; texts are padded to a multiple, so that few programs compile


def open_picture(picture: Any, compat: str, apply_exif: bool) -> Image.Image:
    """A picture of any kind as Pillow's.

    Args:
      picture: path, bytes of an image file, Pillow image, or uint8 array (height, width) gray,
        (height, width, 3) RGB or (height, width, 4) RGBA.
      compat: "white" makes it RGB on white, "original" leaves it in its own mode.
      apply_exif: turn pictures in files by their EXIF orientation.

    Raises:
      FileNotFoundError: if a path is no file.
      ValueError: if the file is no picture, or the array none of these.
      TypeError: if it is something else.
    """
    if isinstance(picture, str | os.PathLike):
        path = Path(picture).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; give the path of a picture")
        return decode_image(
            path.read_bytes(), example_id=path, compat=compat, apply_exif=apply_exif
        )
    if isinstance(picture, bytes):
        return decode_image(picture, example_id="in memory", compat=compat, apply_exif=apply_exif)
    if isinstance(picture, np.ndarray):
        picture = _array_to_picture(picture)
    if not isinstance(picture, Image.Image):
        raise TypeError(
            f"got {type(picture).__name__}; wanted the path of a picture, the bytes of its file, a "
            "Pillow image, or a uint8 array (height, width, 3)"
        )
    return to_rgb(picture) if compat == "white" else picture


def _array_to_picture(array: np.ndarray) -> Image.Image:
    channels = array.shape[2:] or (1,)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size or (
        channels[0] not in (1, 3, 4)
    ):  # fmt: skip
        raise ValueError(
            f"got an array of type {array.dtype} and shape {array.shape}; wanted uint8 (height, "
            "width, 3) for RGB, (height, width, 4) for RGBA or (height, width) for gray"
        )
    return Image.fromarray(array[..., 0] if channels == (1,) and array.ndim == 3 else array)


def as_pictures(images: Any) -> Iterable[Any]:
    """One picture or several as several.

    Raises:
      TypeError: if it is neither a picture nor a sequence.
    """
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if isinstance(images, np.ndarray):
        return images if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise TypeError(
            f"images is {images!r}; give one picture (path, bytes, Pillow image, uint8 array) or a "
            "list of them"
        )
    return images


def check_transformed(images: np.ndarray, size: int) -> Float[np.ndarray, "images size size 3"]:
    """Pictures that `image_transform` has made, ours (NHWC) or the original's (NCHW), as NHWC.

    Args:
      images: floating.
      size: height and width that the image tower takes.

    Raises:
      ValueError: if they have another shape.
    """
    if images.ndim == 4 and images.shape[1:] == (3, size, size):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; floating arrays must be what "
            f"image_transform makes, (images, {size}, {size}, 3) or (images, 3, {size}, {size}). "
            "Give pixels as uint8, one (height, width, 3) array a picture"
        )
    return images.astype(np.float32)


def check_ids(ids: np.ndarray, config: ChineseClipConfig) -> Int[np.ndarray, "texts time"]:
    """Token ids that a text tower takes, as int32.

    Raises:
      ValueError: if they are no rows of integers, too long, or outside the vocabulary.
    """
    longest, entries = config.text.max_positions, config.text.vocab_size
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or ids.shape[1] > longest:
        raise ValueError(
            f"ids have type {ids.dtype} and shape {ids.shape}; wanted integers (texts, time) with "
            f"at most {longest} tokens a text, as tokenize makes them"
        )
    if ids.size and not 0 <= ids.min() <= ids.max() < entries:
        raise ValueError(
            f"ids lie in {ids.min()} to {ids.max()}; the vocabulary has {entries} entries"
        )
    return ids.astype(np.int32)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def pad_rows(block: np.ndarray, devices: int) -> np.ndarray:
    """The block with its last row repeated, to a power of two for each device.

    Args:
      block: at least one row.
      devices: that the rows are spread over.
    """
    rows = devices * _power_of_two(-(-len(block) // devices))
    return np.concatenate([block, np.repeat(block[-1:], rows - len(block), axis=0)])


def split_rows(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Blocks of at most `size` rows, in order."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def chunks(items: Iterable[Any], size: int) -> Iterator[Sequence[Any]]:
    """Lists of at most `size` items, in order, of anything that can be iterated over."""
    iterator = iter(items)
    for first in iterator:
        yield list(chain([first], islice(iterator, size - 1)))
