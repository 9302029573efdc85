"""Layers that start and normalise as torch's do, and leave padded rows out."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxlab.layers.initializers import torch_uniform
from jaxlab.layers.normalization import per_channel

Mask = Bool[Array, " batch"] | None
"""Which rows of a batch are examples; None if all are."""


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with torch's running statistics, over masked rows.

    While training, the statistics are those of the rows that the mask keeps, and the running ones
    (collection `batch_stats`) move a tenth towards them; the running variance takes the unbiased
    variance, as torch does and flax does not. A batch without rows moves nothing. The `BatchNorm`
    of `jaxlab.layers` knows no mask, but groups of devices and narrower types.

    Attributes:
      affine: have a scale and a bias.
      epsilon: added to the variance.
      momentum: how far the running statistics move.
    """

    affine: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space channels"], *, train: bool, mask: Mask = None
    ) -> Float[Array, "batch *space channels"]:
        """Normalise each channel; rows beyond the mask are normalised, too, and count nowhere."""
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        scale, bias = jnp.ones(channels), jnp.zeros(channels)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (channels,))
            bias = self.param("bias", nn.initializers.zeros, (channels,))
        if train:
            used_mean, used_var, count = _moments(x, mask)
            if not self.is_initializing():
                step = self.momentum * (count > 0)
                unbiased = used_var * count / jnp.maximum(count - 1, 1)
                mean.value += step * (used_mean - mean.value)
                var.value += step * (unbiased - var.value)
        else:
            used_mean, used_var = mean.value, var.value
        factor = scale * jax.lax.rsqrt(used_var + self.epsilon)
        shift = bias - used_mean * factor
        return x * per_channel(factor, x.ndim) + per_channel(shift, x.ndim)


def dense(x: Array, features: int, *, name: str, use_bias: bool = True) -> Array:
    """A layer `x @ kernel + bias` of the calling module, drawn as torch draws it."""
    draw = torch_uniform(x.shape[-1])
    layer = nn.Dense(features, use_bias, kernel_init=draw, bias_init=draw, name=name)
    return layer(x)


def convolution(
    x: Array, features: int, size: int, *, name: str, stride: int = 1, use_bias: bool = True
) -> Array:
    """A square convolution of the calling module, padded by half of its size, drawn as torch does.

    Args:
      x: NHWC pictures.
      features: output channels.
      size: height and width of the kernel, odd.
      name: of the layer.
      stride: step in both directions.
      use_bias: have a bias.

    Returns:
      NHWC.
    """
    draw = torch_uniform(size * size * x.shape[-1])
    layer = nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=use_bias,
        kernel_init=draw,
        bias_init=draw,
        name=name,
    )
    return layer(x)


def _moments(x: Array, mask: Mask) -> tuple[Array, Array, Array]:
    """Mean, biased variance and number of the values of every channel, of the masked rows."""
    places = tuple(range(x.ndim - 1))
    weight = jnp.ones(x.shape[0]) if mask is None else mask.astype(x.dtype)
    weight = weight.reshape((-1,) + (1,) * (x.ndim - 1))
    count = weight.sum() * math.prod(x.shape[1:-1])
    mean = (x * weight).sum(axis=places) / jnp.maximum(count, 1)
    centred = (x - per_channel(mean, x.ndim)) * weight
    return mean, jnp.square(centred).sum(axis=places) / jnp.maximum(count, 1), count
