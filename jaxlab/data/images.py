"""Encoded images to the pixels that a CLIP image tower takes.

The evaluation transform of Chinese CLIP squashes an image to a square (no cropping, the aspect is
not kept) with Pillow's antialiased bicubic filter, scales to [0, 1] and normalises each channel.

References:
  `cn_clip/clip/utils.py` (`image_transform`) of Chinese-CLIP 1.6.0.
"""

import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of the red, green and blue channel in [0, 1], of OpenAI CLIP."""
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the red, green and blue channel in [0, 1], of OpenAI CLIP."""

T = TypeVar("T")

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa")


def decode_image(
    data: bytes,
    *,
    example_id: object = None,
    compat: str = "white",
    apply_exif: bool = False,
) -> Image.Image:
    """The first frame of an encoded image.

    Args:
      data: the bytes of an image file in any format that Pillow reads.
      example_id: named in the error, so that a corrupt record can be found.
      compat: "white" gives an RGB image by `to_rgb`. "original" leaves the image in its own mode,
        for `squash_resize` to resize before it converts, as Chinese CLIP does: palette images are
        then resized by nearest neighbour, transparency is dropped after the resize and shows
        whatever colour lies under it, and 16-bit images saturate at 255.
      apply_exif: turn the image by its EXIF orientation; the original ignores it.

    Returns:
      A loaded Pillow image.

    Raises:
      ValueError: if the bytes are no image or a damaged one; the message names `example_id`. Also
        if `compat` is unknown.
    """
    _check_choice("compat", compat, ("white", "original"))
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        if apply_exif:
            image = ImageOps.exif_transpose(image)
        return to_rgb(image) if compat == "white" else image
    except Exception as error:  # the decoders of Pillow raise a dozen unrelated kinds
        raise ValueError(
            f"image of example {example_id}: {len(data)} bytes that begin with {data[:8]!r} cannot "
            f"be decoded ({type(error).__name__}: {error}); replace the file, or skip and count "
            "corrupt records"
        ) from error


def to_rgb(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """An 8-bit RGB image: transparency composited on a colour, 16 bits scaled to 8.

    Transparency is an alpha channel or a transparent palette entry, gray or colour. Gray levels of
    16 bits are scaled by 1/257 and rounded (Pillow's own conversion saturates at 255). CMYK, YCbCr
    and the rest are converted as Pillow does.

    Args:
      image: an image of any mode.
      background: red, green and blue in [0, 255] under transparent pixels.

    Raises:
      ValueError: if Pillow has no conversion from the mode of the image to RGB.
    """
    if image.mode in _SIXTEEN_BIT_MODES:
        image = _scale_sixteen_bits(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        top = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", top.size, (*background, 255)), top).convert(
            "RGB"
        )
    return image.convert("RGB")


def _scale_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    gray = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return gray
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (gray, alpha))


def squash_resize(image: Image.Image, resolution: int) -> UInt8[np.ndarray, "height width 3"]:
    """The image squashed to a square by Pillow's bicubic filter (a = -0.5, antialiased), as RGB.

    An RGB image of the right size passes unchanged. An image of another mode is resized in its own
    mode and converted after, as the original does.

    Args:
      image: an image of any mode and size.
      resolution: height and width of the result, in pixels.
    """
    resized = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
    return np.array(resized.convert("RGB"))


def normalize(pixels: T) -> T:
    """Pixels minus the mean over the standard deviation of CLIP, per channel, in float32.

    Args:
      pixels: (..., 3), NumPy or JAX; integers count as [0, 255], floats as [0, 1].

    Returns:
      float32 of the same shape and kind.

    Raises:
      ValueError: if the last axis is not the three colour channels.
    """
    array: Any = pixels
    if array.ndim < 1 or array.shape[-1] != 3:
        raise ValueError(f"pixels have shape {array.shape}; the last axis must be red, green, blue")
    last = (1,) * (array.ndim - 1) + (3,)
    scaled = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.integer):
        scaled = scaled / np.float32(255)
    mean, std = (np.array(x, np.float32).reshape(last) for x in (IMAGE_MEAN, IMAGE_STD))
    return (scaled - mean) / std


def image_transform(
    resolution: int = 224,
    *,
    layout: str = "HWC",
    compat: str = "white",
    apply_exif: bool = False,
) -> Callable[[bytes | Image.Image], Float32[np.ndarray, "a b c"]]:
    """The evaluation transform of Chinese CLIP: decode, squash, scale, normalise.

    Args:
      resolution: height and width of the result, in pixels: 224, or 336 for ViT-L/14@336.
      layout: "HWC" for the models of this library, "CHW" for the original's and ONNX graphs.
      compat: "white" converts to RGB first, "original" last; see `decode_image`.
      apply_exif: turn encoded images by their EXIF orientation.

    Returns:
      A function from the bytes of an image file, or a Pillow image, to a float32 array.

    Raises:
      ValueError: if `resolution` is not positive, or `layout` or `compat` is unknown.
      TypeError: from the function, for anything else, such as a path.
    """
    _check_choice("layout", layout, ("HWC", "CHW"))
    _check_choice("compat", compat, ("white", "original"))
    if resolution < 1:
        raise ValueError(f"resolution={resolution} is not positive; Chinese CLIP uses 224 or 336")

    def transform(image: bytes | Image.Image) -> Float32[np.ndarray, "a b c"]:
        if not isinstance(image, bytes | Image.Image):
            raise TypeError(
                f"got {type(image).__name__}; wanted the bytes of an image file, such as "
                "Path(name).read_bytes(), or a Pillow image"
            )
        if isinstance(image, bytes):
            image = decode_image(image, compat=compat, apply_exif=apply_exif)
        elif compat == "white":
            image = to_rgb(image)
        pixels = normalize(squash_resize(image, resolution))
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if layout == "CHW" else pixels

    return transform


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
