"""The largest logits instead of all of them, which for a vocabulary are thirty thousand a token."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TopLogits(NamedTuple):
    """The largest logits, and what the others amount to.

    Attributes:
      values: the k largest logits, from large to small.
      ids: their classes.
      log_rest: log of the sum of `exp` over all other logits; -inf if there is none.
    """

    values: Float[Array, "*rows k"]
    ids: Int[Array, "*rows k"]
    log_rest: Float[Array, "*rows"]


def top_logits(logits: Float[Array, "*rows classes"], k: int) -> TopLogits:
    """The k largest logits and the mass of the rest.

    Args:
      logits: of all classes.
      k: up to their number.

    Raises:
      ValueError: if there are fewer classes.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"top_k={k} of {logits.shape[-1]} classes; use 1 to {logits.shape[-1]}")
    logits = logits.astype(jnp.float32)
    values, ids = jax.lax.top_k(logits, k)
    others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
    return TopLogits(values, ids.astype(jnp.int32), jax.nn.logsumexp(others, axis=-1))


def rebuild_logits(top: TopLogits, num_classes: int) -> Float[Array, "*rows classes"]:
    """Logits of a whole distribution: the largest as they were, the rest spread evenly.

    At temperature 1 the probabilities of the largest are exactly the teacher's, and those of the
    others add up to what theirs do. At other temperatures the rest is flatter than it was.

    Args:
      top: the largest, and the mass of the rest.
      num_classes: number of classes.
    """
    num_others = max(num_classes - top.values.shape[-1], 1)
    # A rest without mass is as unlikely as float32 has it, and finite.
    each = jnp.maximum(top.log_rest - math.log(num_others), jnp.finfo(jnp.float32).min / 2)
    logits = jnp.broadcast_to(each[..., None], (*each.shape, num_classes))
    return jnp.put_along_axis(
        logits, top.ids, top.values.astype(jnp.float32), axis=-1, inplace=False
    )
