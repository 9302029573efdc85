"""Losses of Chinese CLIP on features of the global batch.

The dense contrastive loss is written in the global view: under `jit` over a mesh its batch is the
global one and its gradient the true one. `chunked.py` holds the same loss in memory linear in the
batch.

Yang et al. 2022, arXiv:2211.01335; Radford et al. 2021, arXiv:2103.00020, figure 3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from jaxlab.chinese_clip.chunked import chunked_contrastive_loss
from jaxlab.chinese_clip.model import normalize, similarity
from jaxlab.chinese_clip.sweep import check_divisible, check_pairs, equal_rows, scale_gradient

__all__ = [
    "MAX_LOG_SCALE",
    "chunked_contrastive_loss",
    "clamp_log_scale",
    "contrastive_loss",
    "distillation_loss",
    "in_batch_accuracies",
    "local_contrastive_loss",
    "resize_features",
    "same_pair",
]

MAX_LOG_SCALE = 4.6052
"""Upper bound of the log of the multiplier: the multiplier stays at or below about 100."""


def clamp_log_scale(
    log_scale: Float[Array, ""], maximum: float = MAX_LOG_SCALE
) -> Float[Array, ""]:
    """Clamp the log of the multiplier to [0, maximum]; done after every optimizer step.

    Args:
      log_scale: logarithm of the inverse temperature.
      maximum: upper bound.

    Returns:
      The clamped value.
    """
    return jnp.clip(log_scale, 0.0, maximum)


def contrastive_loss(
    image: Float[Array, "batch dim"],
    text: Float[Array, "text_batch dim"],
    log_scale: Float[Array, ""],
    positives: Bool[Array, "batch batch"] | None = None,
    *,
    label_smoothing: float = 0.0,
    tower_grad_scale: float = 1.0,
) -> Float[Array, ""]:
    """Symmetric InfoNCE over the global batch, `(CE(Z) + CE(Z^T)) / 2` with `Z = exp(tau) F G^T`.

    Row i of `image` and row i of `text` are a pair, every other row is a negative. With `positives`
    the target of a row (and of a column) is uniform over its positives, so that a batch that holds
    a text or an image twice is not taught to tell them apart.

    Args:
      image: L2-normalised image features.
      text: L2-normalised text features.
      log_scale: tau, the logarithm of the multiplier; not clamped here.
      positives: True where image i and text j belong together; `None` means the diagonal. See
        `same_pair`.
      label_smoothing: share of a row's target that is spread evenly over the whole batch, as in
        torch's cross entropy; the original has none.
      tower_grad_scale: factor of the gradient that reaches the features (not the one of
        `log_scale`). 1 is the true gradient; 1 / number of devices reproduces the original's
        default, which passes no gradient through its gather.

    Returns:
      The mean of the two directions, float32, in nats.

    Raises:
      ValueError: if the two batches differ in size.

    Example:
      >>> e = jnp.eye(4)
      >>> round(float(contrastive_loss(e, e, jnp.log(1.0))), 4)
      0.7437
    """
    check_pairs(image, text)
    image = scale_gradient(image, tower_grad_scale)
    text = scale_gradient(text, tower_grad_scale)
    logits = similarity(image, text, log_scale)
    if positives is None:
        rows = columns = jnp.diagonal(logits)
    else:
        rows, columns = (
            _mean_over(z, right) for z, right in ((logits, positives), (logits.T, positives.T))
        )
    rows, columns = (
        jax.nn.logsumexp(z, axis=1)
        - (1.0 - label_smoothing) * own
        - (label_smoothing * z.mean(axis=1) if label_smoothing else 0.0)
        for z, own in ((logits, rows), (logits.T, columns))
    )
    return (rows.mean() + columns.mean()) / 2


def _mean_over(logits: Array, positives: Array) -> Array:
    """Mean of every row over its positives."""
    count = jnp.maximum(positives.sum(axis=1), 1)
    return jnp.where(positives, logits, 0.0).sum(axis=1) / count


def same_pair(
    image_ids: Integer[Array, "batch *words"] | None,
    text_ids: Integer[Array, "batch *text_words"] | None,
) -> Bool[Array, "batch batch"]:
    """Which images and texts of a batch belong together: rows that share an image or a text.

    Args:
      image_ids: what image a row holds, one integer or several words; `None` if all differ.
      text_ids: what text a row holds, likewise; `None` if all differ.

    Returns:
      True at (i, j) if rows i and j hold the same image or the same text.

    Raises:
      ValueError: if both are `None`.
    """
    given = [ids.reshape(ids.shape[0], -1) for ids in (image_ids, text_ids) if ids is not None]
    if not given:
        raise ValueError("image_ids and text_ids are both None; pass one, or no positives at all")
    same = [equal_rows(ids, ids) for ids in given]
    return same[0] if len(same) == 1 else same[0] | same[1]


def local_contrastive_loss(
    image: Float[Array, "batch dim"],
    text: Float[Array, "text_batch dim"],
    log_scale: Float[Array, ""],
    num_shards: int,
    *,
    label_smoothing: float = 0.0,
    tower_grad_scale: float = 1.0,
) -> Float[Array, ""]:
    """Contrastive loss with negatives from the same shard only, averaged over shards.

    The original's `skip_aggregate`: every device compares its own rows, nothing is gathered. Under
    `jit` with the batch sharded over `num_shards` devices no features move.

    Args:
      image: L2-normalised image features of the global batch.
      text: L2-normalised text features of the global batch.
      log_scale: tau, the logarithm of the multiplier.
      num_shards: number of contiguous equal parts of the batch.
      label_smoothing: see `contrastive_loss`.
      tower_grad_scale: see `contrastive_loss`.

    Returns:
      float32, in nats.

    Raises:
      ValueError: if the batches differ in size or do not split into equal parts.
    """
    check_pairs(image, text)
    check_divisible(image.shape[0], num_shards)
    parts = (num_shards, -1, image.shape[1])

    def one(image: Array, text: Array) -> Array:
        return contrastive_loss(
            image, text, log_scale,
            label_smoothing=label_smoothing, tower_grad_scale=tower_grad_scale,
        )  # fmt: skip

    return jax.vmap(one)(image.reshape(parts), text.reshape(parts)).mean()


def in_batch_accuracies(
    image: Float[Array, "batch dim"],
    text: Float[Array, "text_batch dim"],
    positives: Bool[Array, "batch batch"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """How often the nearest row of the other kind in the batch is the right one.

    Args:
      image: L2-normalised image features.
      text: L2-normalised text features.
      positives: True where image i and text j belong together; `None` means the diagonal.

    Returns:
      `image_to_text_accuracy` and `text_to_image_accuracy`, fractions of 1; ties go to the lower
      row. No gradient.

    Raises:
      ValueError: if the two batches differ in size.
    """
    check_pairs(image, text)
    cosines = jax.lax.stop_gradient(similarity(image, text, jnp.float32(0.0)))
    right = jnp.eye(image.shape[0], dtype=bool) if positives is None else positives

    def accuracy(scores: Array, right: Array) -> Array:
        best = jnp.argmax(scores, axis=1)
        return jnp.take_along_axis(right, best[:, None], axis=1).mean(dtype=jnp.float32)

    return {
        "image_to_text_accuracy": accuracy(cosines, right),
        "text_to_image_accuracy": accuracy(cosines.T, right.T),
    }


def distillation_loss(
    student: Float[Array, "batch dim"], teacher: Float[Array, "batch teacher_dim"]
) -> Float[Array, ""]:
    """Distillation of image features, `1 - mean_i cos(T_i, resize(S_i))`.

    Where the widths differ the student's vector is resized to the teacher's, see
    `resize_features`. The original adds it to the contrastive loss with weight 0.5. No gradient
    reaches the teacher.

    Args:
      student: the student's normalised image features.
      teacher: the teacher's image features of the same images.

    Returns:
      float32, in [0, 2].
    """
    resized = resize_features(student, teacher.shape[1])
    cosines = jnp.sum(normalize(resized) * normalize(jax.lax.stop_gradient(teacher)), axis=1)
    return 1.0 - cosines.mean()


def resize_features(
    features: Float[Array, "batch dim"], new_dim: int
) -> Float[Array, "batch new_dim"]:
    """Resize every vector by linear interpolation with half-pixel centres, clamped at the edges.

    Args:
      features: one vector a row.
      new_dim: wanted width.

    Returns:
      float32 vectors of the new width; unchanged if the width is the wanted one.

    Example:
      >>> resize_features(jnp.array([[0.0, 1.0, 2.0, 3.0]]), 6)[0].round(4).tolist()
      [0.0, 0.5, 1.166700005531311, 1.833299994468689, 2.5, 3.0]
    """
    dim = features.shape[1]
    if new_dim == dim:
        return features.astype(jnp.float32)
    centres = np.clip((np.arange(new_dim) + 0.5) * dim / new_dim - 0.5, 0.0, dim - 1.0)
    lower = np.minimum(centres.astype(np.int32), dim - 1)
    upper = np.minimum(lower + 1, dim - 1)
    share = jnp.asarray(centres - lower, jnp.float32)[None]
    features = features.astype(jnp.float32)
    return features[:, lower] * (1.0 - share) + features[:, upper] * share
