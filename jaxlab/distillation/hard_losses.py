"""Losses against labels: classes, numbers, tags and spans.

Every loss is a `Mean` over the rows that have a label: padded rows, rows without a label
(`has_label`) and ignored tokens change neither the loss nor its gradient.

References:
  `label_smoothed_cross_entropy.py` of OFA-Compress (smoothing, the worst examples, R-Drop); Liang
  et al. 2021, arXiv:2106.14448 (R-Drop); Devlin et al. 2019, arXiv:1810.04805 (spans).
"""

import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxlab.distillation.means import Mean, masked_mean
from jaxlab.distillation.rows import IGNORED

logger = logging.getLogger(__name__)


def label_ce(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    has_label: Bool[Array, " batch"],
    *,
    smoothing: float = 0.0,
    kept: Float[Array, ""] | float = 1.0,
) -> Mean:
    """Cross entropy with the right class, smoothed as in OFA's code.

    `(1 - eps - eps_i) (-log p_y) + eps_i sum_c (-log p_c)` with `eps_i = eps / (C - 1)`: the right
    class has the share `1 - eps`, each of the others `eps_i`.

    Args:
      logits: of the head.
      labels: right classes; a negative one is none, those of rows without a label may be anything.
      has_label: rows that count.
      smoothing: eps, in [0, 1).
      kept: share of the rows with the smallest losses that counts, see `kept_share`: of the whole
        batch, which therefore must not go through in parts.

    Returns:
      The mean, in nats.

    Raises:
      ValueError: if eps is no share, or there is one class only.
    """
    valid = has_label & (labels >= 0)
    losses = _smoothed(logits, jnp.where(valid, labels, 0), smoothing)
    return masked_mean(losses, smallest_share(losses, valid, kept))


def token_ce(
    logits: Float[Array, "batch time classes"],
    labels: Int[Array, "batch time"],
    has_label: Bool[Array, " batch"] | None = None,
    *,
    smoothing: float = 0.0,
) -> Mean:
    """Cross entropy of tags, or of masked words: a mean over the tokens that have a label.

    Args:
      logits: of every token.
      labels: right classes, `IGNORED` or another negative number where there is none.
      has_label: rows that count; `None` counts all.
      smoothing: see `label_ce`.

    Returns:
      The mean, in nats.

    Raises:
      ValueError: as `label_ce`.
    """
    valid = labels >= 0
    if has_label is not None:
        valid &= has_label[:, None]
    return masked_mean(_smoothed(logits, jnp.where(valid, labels, 0), smoothing), valid)


def label_mse(
    predictions: Float[Array, "batch *one"],
    labels: Float[Array, " batch"],
    has_label: Bool[Array, " batch"],
) -> Mean:
    """Squared difference with the right number.

    Args:
      predictions: (batch,) or (batch, 1).
      labels: right numbers; those of rows without a label may be anything, NaN included.
      has_label: rows that count.

    Raises:
      ValueError: if there is more than one prediction a row.
    """
    if predictions.size != labels.size:
        raise ValueError(
            f"predictions of shape {predictions.shape} for {labels.shape[0]} numbers; a regression "
            "has one output a row: give the head num_labels=1"
        )
    right = jnp.where(has_label, labels, 0.0).astype(jnp.float32)
    return masked_mean((predictions.reshape(-1).astype(jnp.float32) - right) ** 2, has_label)


def span_ce(
    logits: Float[Array, "batch time 2"],
    spans: Int[Array, "batch 2"],
    mask: Bool[Array, "batch time"],
    has_label: Bool[Array, " batch"],
) -> Mean:
    """Cross entropy of the first and the last token of an answer, the mean of the two.

    An end that is not among the tokens (cut off, or negative) does not count. Where a text lacks
    one end only, the original takes means over beginnings and over ends apart; this one is over all
    of them, and so does not depend on microbatches. Padded tokens have no part in the distribution;
    in the original they do.

    Args:
      logits: for beginning and end, of every token.
      spans: positions of the first and the last token.
      mask: True for real tokens.
      has_label: rows that count.

    Returns:
      The mean over beginnings and ends, in nats.
    """
    scores = jnp.where(mask[..., None], logits.astype(jnp.float32), jnp.finfo(jnp.float32).min / 2)
    log_probabilities = jax.nn.log_softmax(scores, axis=1)
    inside = (spans >= 0) & (spans < logits.shape[1])
    positions = jnp.where(inside, spans, 0)[:, None, :]
    # A position that is padding is outside as well.
    inside &= jnp.take_along_axis(mask[..., None], positions, axis=1)[:, 0]
    losses = -jnp.take_along_axis(log_probabilities, positions, axis=1)[:, 0]
    return masked_mean(losses, inside & has_label[:, None])


def r_drop(
    first: Float[Array, "*rows classes"],
    second: Float[Array, "*rows classes"],
    mask: Bool[Array, "*rows"],
    allowed: Bool[Array, "*#rows classes"] | None = None,
) -> Mean:
    """`(KL(p || q) + KL(q || p)) / 2` of two passes that differ in their dropout.

    Args:
      first: logits of one pass.
      second: logits of the other; the gradient goes to both.
      mask: rows that count. Labels are not needed.
      allowed: classes that may be predicted; `None` is all.

    Returns:
      The mean, in nats.
    """
    both = [logits.astype(jnp.float32) for logits in (first, second)]
    if allowed is not None:
        both = [jnp.where(allowed, logits, jnp.finfo(jnp.float32).min / 2) for logits in both]
    logs = [jax.nn.log_softmax(logits, axis=-1) for logits in both]
    # The two divergences add up to the product of the differences.
    losses = 0.5 * ((jnp.exp(logs[0]) - jnp.exp(logs[1])) * (logs[0] - logs[1])).sum(axis=-1)
    return masked_mean(losses, mask)


def kept_share(progress: Float[Array, ""], dropped: float, after: float) -> Float[Array, ""]:
    """Share of the rows that counts when the worst of a batch are dropped from some point on.

    Args:
      progress: share of the run that is over.
      dropped: share of the worst rows, in [0, 1).
      after: the last point of the run at which all count.

    Raises:
      ValueError: if it is no share.
    """
    if not 0.0 <= dropped < 1.0:
        raise ValueError(f"dropped={dropped} is the share of rows left out; use one in [0, 1)")
    return jnp.where(progress > after, jnp.float32(1.0 - dropped), jnp.float32(1.0))


def smallest_share(
    losses: Float[Array, " batch"], mask: Bool[Array, " batch"], share: Float[Array, ""] | float
) -> Bool[Array, " batch"]:
    """Which of the valid rows are among the given share with the smallest losses.

    Of n valid rows `floor(n share)` are, at least one if there is any; equal losses go by position.

    Args:
      losses: of the rows.
      mask: which are valid.
      share: in (0, 1].
    """
    order = jnp.argsort(jnp.where(mask, losses, jnp.inf), stable=True)
    ranks = jnp.argsort(order, stable=True)
    num_valid = mask.sum(dtype=jnp.int32)
    # 10 * (1 - 0.1) is 8.999... in float32: such products are meant to be whole.
    num_kept = jnp.floor(num_valid * share + 1e-4).astype(jnp.int32)
    return mask & (ranks < jnp.maximum(num_kept, 1))


def check_labels(
    labels: Shaped[np.ndarray, "..."] | Sequence[int], num_classes: int, name: str = "labels"
) -> None:
    """Refuse labels that no class has; warn where a training set shows one class only.

    Args:
      labels: all labels of a data set, on the host; `IGNORED` and -1 are no labels.
      num_classes: number of classes of the head.
      name: what they are labels of, for the message.

    Raises:
      TypeError: if labels are no integers.
      ValueError: listing labels that are out of range with their numbers, or if there is none.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"{name} are {labels.dtype}; classes are integers (a regression takes label_mse)"
        )
    found, counts = np.unique(labels[(labels != IGNORED) & (labels != -1)], return_counts=True)
    outside = (found < 0) | (found >= num_classes)
    if outside.any():
        listing = ", ".join(
            f"{label} ({count} times)"
            for label, count in zip(found[outside][:10], counts[outside][:10], strict=True)
        )
        raise ValueError(
            f"{name}: the head has num_labels={num_classes}, classes 0 to {num_classes - 1}; got "
            f"{listing}. Give it {int(found.max()) + 1}, or map the labels by their names"
        )
    if not len(found):
        raise ValueError(
            f"{name}: none of {labels.size} rows has a label; without any, set the weight of hard "
            "labels to 0"
        )
    if len(found) == 1 and num_classes > 1:
        logger.warning("%s: all %d are of class %d", name, int(counts[0]), int(found[0]))


def _smoothed(
    logits: Float[Array, "*rows classes"], labels: Int[Array, "*rows"], smoothing: float
) -> Float[Array, "*rows"]:
    num_classes = logits.shape[-1]
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing={smoothing} is a share of the target; use one in [0, 1)")
    if num_classes < 2:
        raise ValueError(
            f"logits of {num_classes} class have no cross entropy; use 2 classes or more, or "
            "label_mse for a regression"
        )
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    right = -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    if smoothing == 0.0:
        return right
    other = smoothing / (num_classes - 1)
    return (1.0 - smoothing - other) * right - other * log_probabilities.sum(axis=-1)
