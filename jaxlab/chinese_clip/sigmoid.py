"""The pairwise sigmoid loss over the global batch, in memory linear in the batch.

Every image with every text is one question, "do they belong together?": no row or column is
normalised, so that the loss is a sum over blocks. Blocks and devices are walked as in `chunked.py`.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", arXiv:2303.15343.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Integer

from jaxlab.chinese_clip.chunked import LossAndAccuracies
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

INITIAL_BIAS = -10.0
"""Start of the bias: nearly all pairs of a batch are negatives."""


class _Plan(NamedTuple):
    """What is static in a loss: the devices, the texts of a chunk, the rows of the batch."""

    devices: Devices
    chunk_size: int
    batch: int


def sigmoid_loss(
    image: Float[Array, "batch dim"],
    text: Float[Array, "text_batch dim"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    chunk_size: int = 1024,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    transport: Transport = "all_gather",
    image_ids: Integer[Array, "batch *words"] | None = None,
    text_ids: Integer[Array, "batch *text_words"] | None = None,
    tower_grad_scale: float = 1.0,
) -> LossAndAccuracies:
    """Sigmoid loss of all pairs, `-1/N sum_ij log sigmoid(y_ij (exp(tau) f_i g_j + b))`.

    y_ij is 1 where image i and text j belong together and -1 elsewhere. It does not depend on the
    order or the division of the batch. Second derivatives are not defined.

    Args:
      image: L2-normalised image features of the global batch.
      text: L2-normalised text features of the global batch.
      log_scale: tau, the logarithm of the multiplier; not clamped here. The paper starts at log 10.
      bias: b, added to every logit; the paper starts at -10.
      chunk_size: texts compared at a time; a device holds batch / devices * chunk_size logits.
      mesh: devices over whose axis `axis_name` the batch is split; `None` uses one device.
      axis_name: mesh axis of the batch.
      transport: `all_gather` holds all texts on every device; `ring` holds one device's share.
      image_ids: rows with equal ids hold the same image; see `chunked_contrastive_loss`.
      text_ids: rows with equal ids hold the same text.
      tower_grad_scale: factor of the gradient that reaches the features, see `contrastive_loss`.

    Returns:
      The loss, float32, and both in-batch accuracies.

    Raises:
      ValueError: if the batches differ in size or do not split over the devices, the chunk size is
        not positive or the transport unknown.

    Example:
      >>> e = jnp.eye(2)
      >>> round(float(sigmoid_loss(e, e, jnp.log(10.0), jnp.float32(-10.0)).loss), 4)
      0.6932
    """
    check_pairs(image, text)
    check_chunk_size(chunk_size)
    batch, devices = image.shape[0], make_devices(mesh, axis_name, transport)
    check_divisible(batch, devices.size)
    loss = _make_loss(mesh, _Plan(devices, min(chunk_size, batch), batch))
    return loss(
        scale_gradient(image, tower_grad_scale),
        scale_gradient(text, tower_grad_scale),
        log_scale.astype(jnp.float32),
        bias.astype(jnp.float32),
        make_ids(batch, image_ids, text_ids),
    )


def _make_loss(mesh: Mesh | None, plan: _Plan) -> Callable[..., LossAndAccuracies]:
    """The loss as a function of global arrays, with its own backward pass."""
    rows, whole = P(plan.devices.axis_name), P()

    def forward(image: Array, text: Array, log_scale: Array, bias: Array, ids: Ids) -> tuple:
        return _forward(image, text, log_scale, bias, ids, plan)

    def backward(image: Array, text: Array, log_scale: Array, bias: Array, ids: Ids) -> tuple:
        return _backward(image, text, log_scale, bias, ids, plan)

    if mesh is not None:
        inputs = (rows, rows, whole, whole, rows)
        forward = shard_map(forward, mesh=mesh, in_specs=inputs, out_specs=whole)
        backward = shard_map(
            backward, mesh=mesh, in_specs=inputs, out_specs=(rows, rows, whole, whole)
        )

    @jax.custom_vjp
    def loss(
        image: Array, text: Array, log_scale: Array, bias: Array, ids: Ids
    ) -> LossAndAccuracies:
        return LossAndAccuracies(*forward(image, text, log_scale, bias, ids))

    def loss_forward(*saved: Any) -> tuple:
        return LossAndAccuracies(*forward(*saved)), saved

    def loss_backward(saved: tuple, gradient: LossAndAccuracies) -> tuple:
        image, text, log_scale, bias = (gradient.loss * g for g in backward(*saved))
        return image.astype(saved[0].dtype), text.astype(saved[1].dtype), log_scale, bias, None

    loss.defvjp(loss_forward, loss_backward)
    return loss


def _forward(
    image: Array, text: Array, log_scale: Array, bias: Array, ids: Ids, plan: _Plan
) -> tuple[Array, Array, Array]:
    """Loss and accuracies, from one device's rows."""
    scale, devices = jnp.exp(log_scale), plan.devices
    Carry = tuple[Array, Best]

    def visit(carry: Carry, columns: Columns) -> tuple[Carry, Best]:
        def step(carry: Carry, chunk: tuple[Columns, Array]) -> tuple[Carry, Best]:
            total, rows = carry
            columns, valid = chunk
            logits, positive = block(image, ids, columns, valid, scale)
            signed = jnp.where(positive, -1.0, 1.0) * (logits + bias)
            total += jnp.where(valid[None], jax.nn.softplus(signed), 0.0).sum()
            shown = jnp.where(valid[None], logits, LOWEST)
            rows = rows.merge(best_along(shown, positive, columns.ids.row, axis=1))
            return (total, rows), best_along(logits, positive, ids.row, axis=0)

        return scan_chunks(step, carry, columns, plan.chunk_size)

    (total, rows), columns = sweep(
        visit,
        (varying(jnp.zeros((), jnp.float32), devices), no_best(image.shape[0], devices)),
        Columns(text, ids, ()),
        no_best(text.shape[0], devices),
        devices,
        merge=Best.merge,
        reduce=lambda best, devices: exchange(best, devices).merge_devices(),
    )
    total, image_hits, text_hits = (
        sum_devices(x, devices) / plan.batch for x in (total, rows.hit.sum(), columns.hit.sum())
    )
    return total, image_hits, text_hits


def _backward(
    image: Array, text: Array, log_scale: Array, bias: Array, ids: Ids, plan: _Plan
) -> tuple[Array, Array, Array, Array]:
    """Gradients: of this device's images, of its texts, of the log scale and of the bias."""
    scale, devices = jnp.exp(log_scale), plan.devices
    Carry = tuple[Array, Array, Array]

    def visit(carry: Carry, columns: Columns) -> tuple[Carry, Array]:
        def step(carry: Carry, chunk: tuple[Columns, Array]) -> tuple[Carry, Array]:
            d_image, d_log_scale, d_bias = carry
            columns, valid = chunk
            logits, positive = block(image, ids, columns, valid, scale)
            d_logits = (jax.nn.sigmoid(logits + bias) - positive) / plan.batch
            d_logits = jnp.where(valid[None], d_logits, 0.0)
            d_image += scale * product("rc,cd->rd", d_logits, columns.text)
            d_text = scale * product("rc,rd->cd", d_logits, image)
            d_log_scale += jnp.sum(d_logits * logits)
            return (d_image, d_log_scale, d_bias + d_logits.sum()), d_text

        return scan_chunks(step, carry, columns, plan.chunk_size)

    def zeros(*shape: int) -> Array:
        return varying(jnp.zeros(shape, jnp.float32), devices)

    (d_image, *scalars), d_text = sweep(
        visit,
        (zeros(*image.shape), zeros(), zeros()),
        Columns(text, ids, ()),
        zeros(*text.shape),
        devices,
        merge=jnp.add,
        reduce=reduce_sum,
    )
    d_log_scale, d_bias = (sum_devices(x, devices) for x in scalars)
    return d_image, d_text, d_log_scale, d_bias
