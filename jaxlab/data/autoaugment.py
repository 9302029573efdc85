"""AutoAugment, the ImageNet policy in its "original" variant, on Pillow images.

One of 25 sub-policies is drawn uniformly; its two operations are applied in order, each with its
own probability, at a level out of 10.

References:
  Cubuk et al. 2019, arXiv:1805.09501, table 9; the variant is the one that Chinese CLIP trains with
  (`auto_augment="original"` of timm, called in `cn_clip/training/data.py`).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (123, 117, 104)
"""Colour of pixels that a rotation or shear brings in: 255 times the channel means of CLIP."""

Operation = tuple[str, float, int]
"""Name in `OPERATIONS`, probability in [0, 1], level in [0, 10]."""

POLICY: tuple[tuple[Operation, Operation], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


def auto_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image after a sub-policy drawn uniformly from `POLICY`.

    Args:
      image: an RGB image.
      rng: generator that draws the sub-policy, which operations run, and the signs.

    Returns:
      An RGB image of the same size.

    Raises:
      ValueError: if the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"image has mode {image.mode}; AutoAugment takes RGB: convert it first")
    for name, probability, level in POLICY[rng.integers(len(POLICY))]:
        if rng.random() < probability:
            sign = 1 if rng.random() < 0.5 else -1
            image = OPERATIONS[name](image, level, sign)
    return image


def rotate(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Rotated by `sign * level * 3` degrees, bicubic, size kept."""
    degrees = sign * level / 10 * 30
    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=FILL)


def shear_x(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Sheared along x by `sign * level * 0.03`, bicubic, size kept."""
    matrix = (1.0, sign * level / 10 * 0.3, 0.0, 0.0, 1.0, 0.0)
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=FILL,
    )


def posterize(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Reduced to the upper `int(level / 10 * 4) + 4` bits of each channel; 8 change nothing."""
    return ImageOps.posterize(image, int(level / 10 * 4) + 4)


def solarize(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Values at or above `min(256, int(level / 10 * 256))` inverted."""
    return ImageOps.solarize(image, min(256, int(level / 10 * 256)))


def color(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Saturation times `level * 0.18 + 0.1`."""
    return ImageEnhance.Color(image).enhance(level / 10 * 1.8 + 0.1)


def contrast(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Contrast times `level * 0.18 + 0.1`."""
    return ImageEnhance.Contrast(image).enhance(level / 10 * 1.8 + 0.1)


def sharpness(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Sharpness times `level * 0.18 + 0.1`."""
    return ImageEnhance.Sharpness(image).enhance(level / 10 * 1.8 + 0.1)


def equalize(image: Image.Image, level: int, sign: int) -> Image.Image:
    """The histogram of each channel made uniform."""
    return ImageOps.equalize(image)


def auto_contrast(image: Image.Image, level: int, sign: int) -> Image.Image:
    """Each channel stretched to its full range."""
    return ImageOps.autocontrast(image)


def invert(image: Image.Image, level: int, sign: int) -> Image.Image:
    """The negative."""
    return ImageOps.invert(image)


OPERATIONS: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    "rotate": rotate,
    "shear_x": shear_x,
    "posterize": posterize,
    "solarize": solarize,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "equalize": equalize,
    "auto_contrast": auto_contrast,
    "invert": invert,
}
"""Operations by name: (RGB image, level 0 to 10, sign 1 or -1) to an RGB image."""
