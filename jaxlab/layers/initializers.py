"""Torch's default initialisers, for networks that must start as the originals do."""

import math

import jax
from flax import linen as nn


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
        if len(shape) > 2:
            # The same numbers; XLA takes up to ten times as long to compile the draw of a small
            # array of four axes for a CPU.
            return init(key, (math.prod(shape),), dtype).reshape(shape)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
