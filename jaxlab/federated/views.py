"""Views of examples that contrastive learning compares: pictures cropped, mirrored and recoloured.

References:
  Chen et al. 2020, arXiv:2002.05709, appendix A; `SimCLRTransform` in
  `federatedscope/cl/dataloader/Cifar10.py` of FederatedScope 0.3.0.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxlab.data.device_augment import gaussian_blur, hue_matrix
from jaxlab.federated.simclr import Augment
from jaxlab.federated.strategy import ConfigError

_ASPECT = 4 / 3
_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Views:
    """How much two views of a picture differ; the defaults are the original's, 0 does nothing.

    Attributes:
      min_area: a crop has at least this share of the picture; 1 takes it all.
      flip: probability of a mirror image.
      color: largest relative change of brightness and contrast, of saturation the half, and of the
        hue a quarter of a turn times it.
      color_probability: of any change of colour.
      gray: probability of a picture without colours.
      blur: probability of a Gaussian blur.
      max_sigma: its largest standard deviation, in pixels.
    """

    min_area: float = 0.5
    flip: float = 0.5
    color: float = 0.4
    color_probability: float = 0.8
    gray: float = 0.2
    blur: float = 0.5
    max_sigma: float = 1.0

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        shares = ("flip", "color", "color_probability", "gray", "blur")
        problems = [
            f"{name}={getattr(self, name)} must be in [0, 1]"
            for name in shares
            if not 0 <= getattr(self, name) <= 1
        ]
        if not 0 < self.min_area <= 1:
            problems.append(f"min_area={self.min_area} must be in (0, 1]")
        if not self.max_sigma > 0:
            problems.append(f"max_sigma={self.max_sigma} must be positive")
        if problems:
            raise ConfigError("Views: " + "; ".join(problems))


def picture_views(views: Views = Views()) -> Augment:
    """Views of pictures.

    Args:
      views: how much they differ.

    Returns:
      `(key, pictures) -> pictures` of the same shape, (batch, height, width, channels), float32 in
      [0, 1]; hue, saturation and gray are of pictures with three channels.
    """

    def one(key: Key[Array, ""], picture: Float[Array, "height width channels"]) -> Array:
        crop_key, flip_key, color_key, gray_key, blur_key = jax.random.split(key, 5)
        if views.min_area < 1:
            picture = _crop(crop_key, picture, views.min_area)
        is_mirrored = jax.random.uniform(flip_key) < views.flip
        picture = jnp.where(is_mirrored, picture[:, ::-1], picture)
        if views.color:
            picture = _recolor(color_key, picture, views)
        if picture.shape[-1] == 3:
            luma = jnp.broadcast_to((picture @ jnp.asarray(_LUMA))[..., None], picture.shape)
            picture = jnp.where(jax.random.uniform(gray_key) < views.gray, luma, picture)
        if views.blur:
            whether, sigma = jax.random.uniform(blur_key, (2,))
            blurred = gaussian_blur(picture, 0.1 + sigma * (views.max_sigma - 0.1))
            picture = jnp.where(whether < views.blur, blurred, picture)
        return jnp.clip(picture, 0.0, 1.0)

    def augment(key: Key[Array, ""], pictures: Array) -> Array:
        return jax.vmap(one)(jax.random.split(key, len(pictures)), pictures)

    return augment


def noisy_views(scale: float) -> Augment:
    """Views of numbers: noise of a standard deviation is added, as fits tables and the like.

    Args:
      scale: the standard deviation.
    """
    return lambda key, x: x + scale * jax.random.normal(key, x.shape, x.dtype)


def _crop(key: Key[Array, ""], picture: Array, min_area: float) -> Array:
    """A part of a picture, enlarged to its size."""
    height, width, _ = picture.shape
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, minval=min_area, maxval=1.0)
    bound = math.log(_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=-bound, maxval=bound))
    sides = jnp.minimum(jnp.sqrt(area * jnp.stack([1 / aspect, aspect])), 1.0)
    begin = jax.random.uniform(place_key, (2,)) * (1 - sides)
    translation = -begin * jnp.asarray([height, width]) / sides
    return jax.image.scale_and_translate(
        picture, picture.shape, (0, 1), 1 / sides, translation, "cubic", antialias=False
    )


def _recolor(key: Key[Array, ""], picture: Array, views: Views) -> Array:
    """A picture whose colours have changed, or with some probability not."""
    draws = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
    brightness, contrast = 1 + views.color * draws[0], 1 + views.color * draws[1]
    changed = picture * brightness
    changed = changed.mean() + contrast * (changed - changed.mean())
    if picture.shape[-1] == 3:
        gray = (changed @ jnp.asarray(_LUMA))[..., None]
        changed = gray + (1 + views.color / 2 * draws[2]) * (changed - gray)
        changed = changed @ hue_matrix(views.color * math.pi / 2 * draws[3]).T
    return jnp.where((draws[4] + 1) / 2 < views.color_probability, changed, picture)
