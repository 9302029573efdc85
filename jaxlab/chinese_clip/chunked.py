"""The contrastive loss of the global batch in memory linear in the batch.

No N x N matrix is ever held. Every device compares its own images with all texts, `chunk_size`
texts at a time, keeping running log-sum-exps of its rows and of the columns it has seen; the
backward pass recomputes the same blocks. The texts come to a device in one of two ways: gathered
once, or passed around a ring of devices together with what their columns have collected so far.

The log-sum-exp in pieces is that of Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Integer

from jaxlab.chinese_clip.sweep import (
    LOWEST,
    Best,
    Columns,
    Devices,
    Ids,
    Transport,
    best_along,
    block,
    check_chunk_size,
    check_divisible,
    check_pairs,
    exchange,
    make_devices,
    make_ids,
    no_best,
    product,
    reduce_sum,
    scale_gradient,
    scan_chunks,
    sum_devices,
    sweep,
    varying,
)
from jaxlab.parallel import shard_map


class LossAndAccuracies(NamedTuple):
    """A loss over pairs, and how often the nearest row of the other kind is the right one.

    Attributes:
      loss: float32.
      image_to_text: share of the images whose nearest text is a positive; no gradient.
      text_to_image: share of the texts whose nearest image is a positive; no gradient.
    """

    loss: Float[Array, ""]
    image_to_text: Float[Array, ""]
    text_to_image: Float[Array, ""]


class _Stats(NamedTuple):
    """Running log-sum-exp and sums over positives of rows or columns.

    Attributes:
      best: the largest logit so far.
      total: sum of exp(logit - largest).
      positive: sum of the positives' logits.
      count: number of positives.
      everything: sum of all logits.
    """

    best: Best
    total: Array
    positive: Array
    count: Array
    everything: Array

    def merge(self, other: "_Stats") -> "_Stats":
        """Statistics of the union of two disjoint sets of logits."""
        best = self.best.merge(other.best)
        total = self.total * jnp.exp(self.best.maximum - best.maximum)
        total = total + other.total * jnp.exp(other.best.maximum - best.maximum)
        sums = (a + b for a, b in zip(self[2:], other[2:], strict=True))
        return _Stats(best, total, *sums)

    def log_sum_exp(self) -> Array:
        """Logarithm of the sum of exponentials."""
        return self.best.maximum + jnp.log(self.total)

    def cross_entropy(self, smoothing: float, batch: int) -> Array:
        """Cross entropy with the uniform distribution over the positives, smoothed over all."""
        target = (1.0 - smoothing) * self.positive / self.count
        return self.log_sum_exp() - target - smoothing * self.everything / batch


class _Plan(NamedTuple):
    """What is static in a loss.

    Attributes:
      devices: how texts travel.
      chunk_size: texts compared at a time.
      batch: rows of the global batch.
      smoothing: share of the target that is spread over all rows.
    """

    devices: Devices
    chunk_size: int
    batch: int
    smoothing: float


def chunked_contrastive_loss(
    image: Float[Array, "batch dim"],
    text: Float[Array, "text_batch dim"],
    log_scale: Float[Array, ""],
    *,
    chunk_size: int = 1024,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    transport: Transport = "all_gather",
    image_ids: Integer[Array, "batch *words"] | None = None,
    text_ids: Integer[Array, "batch *text_words"] | None = None,
    label_smoothing: float = 0.0,
    tower_grad_scale: float = 1.0,
) -> Float[Array, ""]:
    """The loss of `contrastive_loss` with memory linear in the batch.

    Values and gradients equal those of the dense form to float32 rounding for every chunk size
    (it need not divide anything), transport and number of devices. Second derivatives are not
    defined.

    Args:
      image: L2-normalised image features of the global batch.
      text: L2-normalised text features of the global batch.
      log_scale: tau, the logarithm of the multiplier; not clamped here.
      chunk_size: texts compared at a time; a device holds batch / devices * chunk_size logits.
      mesh: devices over whose axis `axis_name` the batch is split; `None` uses one device.
      axis_name: mesh axis of the batch.
      transport: `all_gather` holds all texts on every device; `ring` holds one device's share and
        passes it on, in as many steps as there are devices.
      image_ids: rows with equal ids hold the same image and are positives of each other; one
        integer a row, or several words.
      text_ids: rows with equal ids hold the same text and are positives of each other.
      label_smoothing: see `contrastive_loss`.
      tower_grad_scale: see `contrastive_loss`.

    Returns:
      The mean of the two directions, float32, in nats.

    Raises:
      ValueError: if the batches differ in size or do not split over the devices, the chunk size is
        not positive or the transport unknown.
    """
    return chunked_loss_and_accuracies(
        image, text, log_scale, chunk_size=chunk_size, mesh=mesh, axis_name=axis_name,
        transport=transport, image_ids=image_ids, text_ids=text_ids,
        label_smoothing=label_smoothing, tower_grad_scale=tower_grad_scale,
    ).loss  # fmt: skip


def chunked_loss_and_accuracies(
    image: Float[Array, "batch dim"],
    text: Float[Array, "text_batch dim"],
    log_scale: Float[Array, ""],
    *,
    chunk_size: int = 1024,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    transport: Transport = "all_gather",
    image_ids: Integer[Array, "batch *words"] | None = None,
    text_ids: Integer[Array, "batch *text_words"] | None = None,
    label_smoothing: float = 0.0,
    tower_grad_scale: float = 1.0,
) -> LossAndAccuracies:
    """The loss of `chunked_contrastive_loss`, with the accuracies that the same blocks show.

    Args:
      image: see `chunked_contrastive_loss`, as everything here.
      text: see there.
      log_scale: see there.
      chunk_size: see there.
      mesh: see there.
      axis_name: see there.
      transport: see there.
      image_ids: see there.
      text_ids: see there.
      label_smoothing: see there.
      tower_grad_scale: see there.

    Returns:
      The loss and both accuracies; of equally near rows the lower one counts.

    Raises:
      ValueError: see `chunked_contrastive_loss`.
    """
    check_pairs(image, text)
    check_chunk_size(chunk_size)
    batch, devices = image.shape[0], make_devices(mesh, axis_name, transport)
    check_divisible(batch, devices.size)
    loss = _make_loss(mesh, _Plan(devices, min(chunk_size, batch), batch, label_smoothing))
    return loss(
        scale_gradient(image, tower_grad_scale),
        scale_gradient(text, tower_grad_scale),
        log_scale.astype(jnp.float32),
        make_ids(batch, image_ids, text_ids),
    )


def _make_loss(mesh: Mesh | None, plan: _Plan) -> Callable[..., LossAndAccuracies]:
    """The loss as a function of global arrays, with its own backward pass."""
    rows, whole = P(plan.devices.axis_name), P()

    def forward(image: Array, text: Array, log_scale: Array, ids: Ids) -> tuple:
        return _forward(image, text, log_scale, ids, plan)

    def backward(image: Array, text: Array, log_scale: Array, ids: Ids, finished: tuple) -> tuple:
        return _backward(image, text, log_scale, ids, finished, plan)

    if mesh is not None:
        inputs = (rows, rows, whole, rows)
        forward = shard_map(forward, mesh=mesh, in_specs=inputs, out_specs=(whole, rows))
        backward = shard_map(
            backward, mesh=mesh, in_specs=(*inputs, rows), out_specs=(rows, rows, whole)
        )

    @jax.custom_vjp
    def loss(image: Array, text: Array, log_scale: Array, ids: Ids) -> LossAndAccuracies:
        return forward(image, text, log_scale, ids)[0]

    def loss_forward(image: Array, text: Array, log_scale: Array, ids: Ids) -> tuple:
        value, finished = forward(image, text, log_scale, ids)
        return value, (image, text, log_scale, ids, finished)

    def loss_backward(saved: tuple, gradient: LossAndAccuracies) -> tuple:
        image, text, log_scale = (gradient.loss * g for g in backward(*saved))
        return image.astype(saved[0].dtype), text.astype(saved[1].dtype), log_scale, None

    loss.defvjp(loss_forward, loss_backward)
    return loss


def _forward(
    image: Array, text: Array, log_scale: Array, ids: Ids, plan: _Plan
) -> tuple[LossAndAccuracies, tuple[Array, Array, Array, Array]]:
    """One device's part of the loss, and what its rows and columns need for the backward pass."""
    scale, devices = jnp.exp(log_scale), plan.devices

    def visit(rows: _Stats, columns: Columns) -> tuple[_Stats, _Stats]:
        def step(rows: _Stats, chunk: tuple[Columns, Array]) -> tuple[_Stats, _Stats]:
            columns, valid = chunk
            logits, positive = block(image, ids, columns, valid, scale)
            rows = rows.merge(_stats(logits, positive, valid, columns.ids.row, axis=1))
            return rows, _stats(logits, positive, None, ids.row, axis=0)

        return scan_chunks(step, rows, columns, plan.chunk_size)

    rows, columns = sweep(
        visit,
        _empty_stats(image.shape[0], devices),
        Columns(text, ids, ()),
        _empty_stats(text.shape[0], devices),
        devices,
        merge=_Stats.merge,
        reduce=_reduce_stats,
    )
    total = rows.cross_entropy(plan.smoothing, plan.batch).sum()
    total += columns.cross_entropy(plan.smoothing, plan.batch).sum()
    hits = (sum_devices(s.best.hit.sum(), devices) / plan.batch for s in (rows, columns))
    finished = (rows.log_sum_exp(), rows.count, columns.log_sum_exp(), columns.count)
    return LossAndAccuracies(sum_devices(total, devices) / (2 * plan.batch), *hits), finished


def _backward(
    image: Array,
    text: Array,
    log_scale: Array,
    ids: Ids,
    finished: tuple[Array, Array, Array, Array],
    plan: _Plan,
) -> tuple[Array, Array, Array]:
    """Gradients of the loss: of this device's images, of its texts, and of the log scale."""
    scale, devices = jnp.exp(log_scale), plan.devices
    row_lse, row_count, column_lse, column_count = finished
    Carry = tuple[Array, Array]

    def visit(carry: Carry, columns: Columns) -> tuple[Carry, Array]:
        def step(carry: Carry, chunk: tuple[Columns, Array]) -> tuple[Carry, Array]:
            d_image, d_log_scale = carry
            columns, valid = chunk
            lse, count = columns.finished
            logits, positive = block(image, ids, columns, valid, scale)
            d_logits = jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - lse[None])
            target = positive * (1.0 / row_count[:, None] + 1.0 / count[None])
            d_logits -= (1.0 - plan.smoothing) * target + 2.0 * plan.smoothing / plan.batch
            d_logits = jnp.where(valid[None], d_logits, 0.0) / (2 * plan.batch)
            d_image += scale * product("rc,cd->rd", d_logits, columns.text)
            d_text = scale * product("rc,rd->cd", d_logits, image)
            return (d_image, d_log_scale + jnp.sum(d_logits * logits)), d_text

        return scan_chunks(step, carry, columns, plan.chunk_size)

    def zeros(*shape: int) -> Array:
        return varying(jnp.zeros(shape, jnp.float32), devices)

    (d_image, d_log_scale), d_text = sweep(
        visit,
        (zeros(*image.shape), zeros()),
        Columns(text, ids, (column_lse, column_count)),
        zeros(*text.shape),
        devices,
        merge=jnp.add,
        reduce=reduce_sum,
    )
    return d_image, d_text, sum_devices(d_log_scale, devices)


def _stats(
    logits: Array, positive: Array, valid: Array | None, numbers: Array, axis: int
) -> _Stats:
    """Statistics of a block of logits along an axis; columns that are not valid do not count."""
    shown = logits if valid is None else jnp.where(valid[None], logits, LOWEST)
    best = best_along(shown, positive, numbers, axis)
    counted = logits if valid is None else jnp.where(valid[None], logits, 0.0)
    return _Stats(
        best,
        jnp.exp(shown - jnp.expand_dims(best.maximum, axis)).sum(axis=axis),
        jnp.where(positive, logits, 0.0).sum(axis=axis),
        positive.sum(axis=axis, dtype=jnp.float32),
        counted.sum(axis=axis),
    )


def _empty_stats(size: int, devices: Devices) -> _Stats:
    """Statistics of no logits."""
    zero = varying(jnp.zeros(size, jnp.float32), devices)
    return _Stats(no_best(size, devices), zero, zero, zero, zero)


def _reduce_stats(stats: _Stats, devices: Devices) -> _Stats:
    """Merge what all devices found for all columns, and keep this device's columns."""
    mine = exchange(stats, devices)
    best = mine.best.merge_devices()
    total = (mine.total * jnp.exp(mine.best.maximum - best.maximum[None])).sum(axis=0)
    return _Stats(best, total, *(x.sum(axis=0) for x in mine[2:]))
