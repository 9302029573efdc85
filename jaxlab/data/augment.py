"""Training augmentation of photographs on the host, with Pillow.

Random resized crop, horizontal flip and AutoAugment, then the pixels of
`jaxlab.data.images.normalize`: what Chinese CLIP does under `use_augment`. Drawings have an
augmentation of their own, on the device: `jaxlab.data.device_augment`.

References:
  `cn_clip/training/data.py` of Chinese-CLIP 1.6.0, which calls timm's `create_transform`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from PIL import Image

from jaxlab.data.autoaugment import auto_augment
from jaxlab.data.images import decode_image, normalize, squash_resize, to_rgb

_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image before it is normalised.

    Attributes:
      crop_scale: smallest and largest share of the image's area that a crop keeps, in (0, 1].
      crop_ratio: smallest and largest ratio of width to height of a crop.
      flip_probability: probability of a horizontal flip; 0 where images hold text, which a flip
        would mirror.
      auto_augment: apply AutoAugment's ImageNet policy.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    auto_augment: bool = True

    def __post_init__(self):
        """Checks ranges."""
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_scale={self.crop_scale}: wanted 0 < smallest <= largest <= 1, "
                "such as (0.9, 1.0)"
            )
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(
                f"crop_ratio={self.crop_ratio}: wanted 0 < smallest <= largest, "
                "such as (0.75, 1.3333)"
            )
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(
                f"flip_probability={self.flip_probability} is no probability; give 0 to 1"
            )


def random_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A box of random area, aspect and place inside an image.

    The share of the area is uniform in `scale`, the logarithm of the aspect uniform between the
    logarithms of `ratio`. After ten draws that do not fit, the largest centred box whose aspect is
    in `ratio`.

    Args:
      width: width of the image in pixels.
      height: height of the image in pixels.
      rng: generator that draws the box.
      scale: smallest and largest share of the area.
      ratio: smallest and largest width over height.

    Returns:
      (left, top, right, bottom) in pixels, right and bottom exclusive.
    """
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return left, top, left + box_width, top + box_height
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def augment_image(
    image: Image.Image,
    resolution: int,
    rng: np.random.Generator,
    config: AugmentConfig = AugmentConfig(),
    *,
    compat: str = "white",
) -> Image.Image:
    """A random view of an image: crop, bicubic resize to a square, flip, AutoAugment.

    Args:
      image: an image of any mode.
      resolution: height and width of the result, in pixels.
      rng: generator of every random choice.
      config: ranges and probabilities.
      compat: "white" converts to RGB first, transparency composited on white; "original" crops and
        resizes in the image's own mode and converts after, as the original does.

    Returns:
      An RGB image of `resolution` by `resolution` pixels.

    Raises:
      ValueError: if `compat` is unknown.
    """
    if compat not in ("white", "original"):
        raise ValueError(f"compat={compat!r} is not one of 'white', 'original'")
    image = to_rgb(image) if compat == "white" else image
    box = random_crop_box(*image.size, rng, config.crop_scale, config.crop_ratio)
    view = Image.fromarray(squash_resize(image.crop(box), resolution))
    if rng.random() < config.flip_probability:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return auto_augment(view, rng) if config.auto_augment else view


def train_transform(
    resolution: int = 224, config: AugmentConfig = AugmentConfig()
) -> Callable[[bytes | Image.Image, np.random.Generator], Float32[np.ndarray, "height width 3"]]:
    """The training transform of Chinese CLIP: decode, augment, scale, normalise.

    Args:
      resolution: height and width of the result, in pixels.
      config: ranges and probabilities.

    Returns:
      A function from the bytes of an image file, or a Pillow image, and a generator to a float32
      array (resolution, resolution, 3).
    """

    def transform(
        image: bytes | Image.Image, rng: np.random.Generator
    ) -> Float32[np.ndarray, "height width 3"]:
        decoded = decode_image(image) if isinstance(image, bytes) else image
        return normalize(np.asarray(augment_image(decoded, resolution, rng, config)))

    return transform
