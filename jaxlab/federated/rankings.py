"""Scores of how well the examples of a class are ranked above the others, on the device.

They are functions of all examples of a client at once, not sums over them: a client computes its
own, and a report takes their mean weighted by examples, as the original does.

References:
  Fawcett 2006, "An introduction to ROC analysis", Pattern Recognition Letters 27(8), section 7;
  `federatedscope/core/monitors/metric_calculator.py` (`eval_roc_auc`, `eval_ap`) of FederatedScope
  0.3.0. It takes 0.5 for a client without both classes, which has no number here, refuses a class
  that is missing among several, and ranks by predicted classes, not by scores, for `ap`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

Pairs = dict[str, Float[Array, " two"]]
"""Name -> (number, 1), or (0, 0) if there is none."""


class Ranking(NamedTuple):
    """How examples are ranked.

    Attributes:
      roc_auc: the chance that a positive example is above a negative one, a tie being one half.
      average_precision: mean over the positive examples of the share of positive ones among those
        that are ranked as high or higher.
      is_known: whether there are positive and negative examples; else both numbers mean nothing.
    """

    roc_auc: Float[Array, ""]
    average_precision: Float[Array, ""]
    is_known: Bool[Array, ""]


def rank(
    scores: Float[Array, " examples"],
    positive: Bool[Array, " examples"],
    mask: Bool[Array, " examples"],
) -> Ranking:
    """How some examples are ranked; examples of equal scores share their place.

    Args:
      scores: larger is more likely positive; both numbers are NaN if one that counts is.
      positive: which examples are.
      mask: which of them count.
    """
    positive, negative = positive & mask, ~positive & mask
    # Those that do not count stand last, behind even a score of minus infinity.
    keys = (~mask).astype(jnp.int32), -scores
    _, ranked, is_positive, is_negative = jax.lax.sort((*keys, positive, negative), num_keys=2)
    place = jnp.arange(scores.shape[0])
    begins = (ranked != jnp.roll(ranked, 1)) | (place == 0)
    first = jax.lax.cummax(jnp.where(begins, place, 0))
    ends = jnp.roll(begins, -1) | (place == place[-1])
    last = jax.lax.cummin(jnp.where(ends, place, place[-1]), reverse=True)

    num_positive, num_negative = positive.sum(), negative.sum()
    hits, misses = jnp.cumsum(is_positive), jnp.cumsum(is_negative)
    before = misses[first] - is_negative[first]
    beaten = num_negative - 0.5 * (misses[last] + before)
    precision = hits[last] / jnp.maximum(hits[last] + misses[last], 1)

    def mean(values: Array) -> Array:
        found = jnp.where(is_positive, values, 0.0).sum() / jnp.maximum(num_positive, 1)
        return jnp.where((jnp.isnan(scores) & mask).any(), jnp.nan, found)

    auc = mean(beaten / jnp.maximum(num_negative, 1))
    return Ranking(auc, mean(precision), (num_positive > 0) & (num_negative > 0))


def rank_classes(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    mask: Bool[Array, " examples"],
    names: Sequence[str] = ("roc_auc", "average_precision"),
) -> Pairs:
    """Means over the classes of how each is ranked by its softmax against the rest.

    Of two classes the second one is ranked, as scikit-learn does. A class of which there is no
    example, or nothing else, is left out.

    Args:
      logits: of the examples.
      labels: their classes.
      mask: which examples count.
      names: fields of `Ranking`.
    """
    num_classes = logits.shape[-1]
    numbers = jnp.arange(1 if num_classes == 2 else 0, num_classes)
    logits = logits.astype(jnp.float32)

    def one(number: Array) -> Ranking:
        # The softmax rises with its odds, which do not round to 1.
        others = jnp.where(jnp.arange(num_classes) == number, -jnp.inf, logits)
        odds = logits[:, number] - jax.nn.logsumexp(others, axis=-1)
        return rank(odds, labels == number, mask)

    return _mean_over(one, numbers, names)


def rank_columns(
    logits: Float[Array, "examples columns"],
    labels: Num[Array, "examples columns"],
    mask: Bool[Array, " examples"],
    names: Sequence[str] = ("roc_auc", "average_precision"),
) -> Pairs:
    """Means over the columns of how their examples of label 1 are ranked.

    A column is over the examples whose label in it is not NaN; one without both labels is left out.

    Args:
      logits: of the examples.
      labels: 1, 0, or NaN where not known.
      mask: which examples count.
      names: fields of `Ranking`.
    """

    def one(number: Array) -> Ranking:
        own = labels[:, number]
        return rank(logits[:, number].astype(jnp.float32), own == 1, mask & ~jnp.isnan(own))

    return _mean_over(one, jnp.arange(logits.shape[-1]), names)


def _mean_over(
    one: Callable[[Array], Ranking], numbers: Int[Array, " numbers"], names: Sequence[str]
) -> Pairs:
    found = jax.lax.map(one, numbers)
    count = found.is_known.sum()
    values = {"roc_auc": found.roc_auc, "average_precision": found.average_precision}

    def pair(value: Array) -> Array:
        mean = jnp.where(found.is_known, value, 0.0).sum() / jnp.maximum(count, 1)
        return jnp.stack([mean, count > 0])

    return {name: pair(values[name]) for name in names}
