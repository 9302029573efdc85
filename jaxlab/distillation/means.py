"""Masked means that are exact for any sharding, padding and accumulation.

Every loss of this package is a `Mean`: what it sums over the valid entries of a batch, and how many
there are. Under `jit` over a mesh both are global; of microbatches both are added up before they
are divided. The loss of a batch is then that of one device that sees all of it at once.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Mean(NamedTuple):
    """A sum over valid entries, and their number.

    Attributes:
      total: the sum, float32.
      count: the number, float32; 0 if there is nothing valid.
    """

    total: Float[Array, ""]
    count: Float[Array, ""]

    @property
    def value(self) -> Float[Array, ""]:
        """The mean; 0 of nothing."""
        return self.total / jnp.maximum(self.count, 1.0)


def masked_mean(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Mean:
    """The mean of the values where the mask is true.

    Values elsewhere may be anything, NaN included: neither they nor their gradients count.

    Args:
      values: to be averaged.
      mask: which of them.
    """
    total = jnp.where(mask, values, 0.0).astype(jnp.float32).sum()
    return Mean(total, mask.sum(dtype=jnp.float32))


def plain_mean(values: Float[Array, "..."]) -> Mean:
    """The mean of all values.

    Args:
      values: to be averaged.
    """
    return Mean(values.astype(jnp.float32).sum(), jnp.float32(values.size))


def pool(means: Iterable[Mean]) -> Mean:
    """The mean over the entries of several batches, each of which counts by its own number.

    Args:
      means: of the batches.
    """
    parts = list(means)
    return Mean(
        jnp.asarray(sum(part.total for part in parts), jnp.float32),
        jnp.asarray(sum(part.count for part in parts), jnp.float32),
    )


def pairs_of_tokens(mask: Bool[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """Which pairs (i, j) are two valid tokens of one text.

    Args:
      mask: True for real tokens.
    """
    return mask[:, :, None] & mask[:, None, :]


def mean_of_tokens(
    hidden: Float[Array, "batch time width"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch width"]:
    """Mean of the hidden states of the real tokens; zeros for a text without any.

    Args:
      hidden: of any floating type.
      mask: True for real tokens.

    Returns:
      float32.

    References:
      Reimers and Gurevych 2019, "Sentence-BERT", arXiv:1908.10084.
    """
    weights = mask.astype(jnp.float32)[:, :, None]
    total = (hidden.astype(jnp.float32) * weights).sum(axis=1)
    return total / jnp.maximum(weights.sum(axis=1), 1.0)
