"""Activation functions under the names that the size tables use.

The activation is part of a checkpoint's meaning: the CLIP family was trained with `quick_gelu`,
BERT with the exact `gelu`, and taking one for the other moves features by 2e-2 (the tanh form by
5e-4).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The sigmoid approximation of GELU of the CLIP family, `x * sigmoid(1.702 x)`.

    Args:
      x: any shape and floating dtype.

    Returns:
      The same shape and dtype.

    References:
      Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU of BERT, `x * Phi(x)` with the normal distribution function `Phi`.

    In float32 and by the error function, as in the original: twice as fast on CPUs as by `erfc`,
    whose digits in the far tail are lost in the next matrix product.

    Args:
      x: any shape and floating dtype.

    Returns:
      The same shape and dtype.

    References:
      Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The tanh approximation of GELU (`gelu_new` in BERT configs).

    Args:
      x: any shape and floating dtype.

    Returns:
      The same shape and dtype.

    References:
      Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "quick_gelu": quick_gelu,
        "gelu": gelu,
        "gelu_new": gelu_tanh,
        "relu": jax.nn.relu,
        "swish": jax.nn.silu,
    }
)
"""Activation functions by the names that configs and original checkpoints use."""


def check_activation(name: str) -> None:
    """Refuse an activation that is not in `ACTIVATIONS`.

    Args:
      name: the name found in a config.

    Raises:
      ValueError: if the name is unknown; the message lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown; use one of {sorted(ACTIVATIONS)}")
