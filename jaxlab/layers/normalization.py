"""Normalisation layers that keep their statistics in float32 and follow torch's conventions."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

NormName = Literal["batch", "group"]


def per_channel(x: jax.Array, rank: int) -> jax.Array:
    """View a per-channel vector as an array of `rank` axes, channels last.

    Args:
      x: (channels,).
      rank: number of axes wanted.

    Returns:
      (1, ..., 1, channels).
    """
    return x.reshape((1,) * (rank - 1) + x.shape)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32 and cast back to the input's dtype.

    Variance is the mean of squared deviations (two passes): the one-pass form loses 5e-2 on inputs
    of mean 1000.

    Attributes:
      epsilon: added to the variance; 1e-5 in the CLIP family, 1e-12 in BERT.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Normalise the last axis.

        Args:
          x: any floating dtype.

        Returns:
          The same shape and dtype.
        """
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with torch's running statistics.

    While training, the batch's own statistics are used and the running ones (collection
    `batch_stats`: `mean`, `var`) move by `1 - decay` towards them; the running *variance* takes the
    unbiased batch variance, n/(n-1) times the biased one, as torch does and flax does not.
    Under `jit` with a batch sharded over devices the statistics are those of the global batch
    (what torch calls synchronised batch norm). With `num_groups` = number of devices each
    contiguous part of the batch is normalised by its own statistics, as unsynchronised data
    parallel programs do; the running statistics then take the mean over the groups (the original
    keeps those of its first process).

    Attributes:
      train: use and record batch statistics; else the stored ones, which stay as they are.
      epsilon: added to the variance.
      decay: share of the old running statistics that is kept (torch's momentum is 1 - decay).
      num_groups: parts of the batch with statistics of their own.
      scale_init: initialiser of the scale.
    """

    train: bool
    epsilon: float = 1e-5
    decay: float = 0.9
    num_groups: int = 1
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space channels"]) -> Float[Array, "..."]:
        """Normalise each channel.

        Args:
          x: any floating dtype; statistics are float32.

        Returns:
          The same shape and dtype.

        Raises:
          ValueError: while training, if the batch does not split into `num_groups` equal parts.
        """
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        wide = x.astype(jnp.float32)
        if not self.train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            shift = bias - running_mean.value * factor
            y = wide * per_channel(factor, x.ndim) + per_channel(shift, x.ndim)
            return y.astype(x.dtype)

        if x.shape[0] % self.num_groups:
            raise ValueError(
                f"a batch of {x.shape[0]} rows does not split into num_groups={self.num_groups} "
                "equal parts; use a multiple, or num_groups=1 for statistics of the whole batch"
            )
        grouped = wide.reshape(self.num_groups, -1, channels)
        mean = grouped.mean(axis=1, keepdims=True)
        var = jnp.square(grouped - mean).mean(axis=1, keepdims=True)
        if not self.is_initializing():
            count = grouped.shape[1]
            unbiased = var * (count / max(count - 1, 1))
            keep, take = self.decay, 1.0 - self.decay
            running_mean.value = keep * running_mean.value + take * mean.mean(axis=(0, 1))
            running_var.value = keep * running_var.value + take * unbiased.mean(axis=(0, 1))
        factor = jax.lax.rsqrt(var + self.epsilon) * per_channel(scale, 3)
        y = (grouped - mean) * factor + per_channel(bias, 3)
        return y.reshape(x.shape).astype(x.dtype)
