"""Torch's default initialisers, for networks that must start as the originals do."""

import math

import jax
from flax import linen as nn

_STD_OF_CUT_NORMAL = 0.87962566103423978


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform on +-1/sqrt(fan_in): the default of torch's Linear and Conv2d, weights and biases.

    Args:
      fan_in: number of inputs of one output unit (kernel height * width * input channels).

    Returns:
      An initialiser.
    """
    return uniform(1.0 / math.sqrt(fan_in))


def uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform on +-bound.

    Args:
      bound: half of the width of the interval.

    Returns:
      An initialiser.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jax.numpy.float32) -> jax.Array:
        return jax.random.uniform(key, _flat(shape), dtype, -bound, bound).reshape(shape)

    return init


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype=jax.numpy.float32) -> jax.Array:
    """Normal with variance 2 / fan_in, cut at two standard deviations: Flax's `he_normal`.

    Args:
      key: key of the draw.
      shape: shape of the kernel, outputs last.
      dtype: floating type.

    Returns:
      The kernel.
    """
    deviation = math.sqrt(2.0 / math.prod(shape[:-1])) / _STD_OF_CUT_NORMAL
    drawn = jax.random.truncated_normal(key, -2.0, 2.0, _flat(shape), dtype).reshape(shape)
    return drawn * jax.numpy.asarray(deviation, dtype)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to draw in: the numbers are the same.

    A draw of a small array of four axes takes XLA up to ten times as long to compile for a CPU.
    Matrices stay as they are: they may be drawn in shards.
    """
    return (math.prod(shape),) if len(shape) > 2 else shape
