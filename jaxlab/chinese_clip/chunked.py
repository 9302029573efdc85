"""The contrastive loss of the global batch in memory linear in the batch.

No N x N matrix is ever held. Every device compares its own images with all texts, `chunk_size`
texts at a time, keeping running log-sum-exps of its rows and of the columns it has seen; the
backward pass recomputes the same blocks. The texts come to a device in one of two ways: gathered
once, or passed around a ring of devices together with what their columns have collected so far.

The log-sum-exp in pieces is that of Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Integer

from jaxlab.parallel import shard_map

Transport = Literal["all_gather", "ring"]
LOWEST = float(jnp.finfo(jnp.float32).min)


class _Ids(NamedTuple):
    """What image and what text a row holds; equal ids make positives."""

    image: Array
    text: Array


class _Stats(NamedTuple):
    """Running log-sum-exp and sums over positives of rows or columns.

    Attributes:
      maximum: largest logit so far.
      total: sum of exp(logit - maximum).
      positive: sum of the positives' logits.
      count: number of positives.
    """

    maximum: Array
    total: Array
    positive: Array
    count: Array

    def merge(self, other: "_Stats") -> "_Stats":
        """Statistics of the union of two disjoint sets of logits."""
        maximum = jnp.maximum(self.maximum, other.maximum)
        total = self.total * jnp.exp(self.maximum - maximum)
        total = total + other.total * jnp.exp(other.maximum - maximum)
        return _Stats(maximum, total, self.positive + other.positive, self.count + other.count)

    def log_sum_exp(self) -> Array:
        """Logarithm of the sum of exponentials."""
        return self.maximum + jnp.log(self.total)

    def cross_entropy(self) -> Array:
        """Cross entropy with the uniform distribution over the positives."""
        return self.log_sum_exp() - self.positive / self.count


class _Columns(NamedTuple):
    """Texts that a device compares with its images.

    Attributes:
      text: features, (columns, dim).
      ids: ids of the rows they come from.
      log_sum_exp: of the finished columns; zeros in the forward pass, which does not read it.
      count: number of positives of the finished columns; likewise.
    """

    text: Array
    ids: _Ids
    log_sum_exp: Array
    count: Array


class _Devices(NamedTuple):
    """How the texts travel.

    Attributes:
      axis_name: mesh axis of the batch, `None` for one device without a mesh.
      size: number of devices along it.
      transport: `all_gather` or `ring`.
    """

    axis_name: str | None
    size: int
    transport: Transport


def chunked_contrastive_loss(
    image: Float[Array, "batch dim"],
    text: Float[Array, "text_batch dim"],
    log_scale: Float[Array, ""],
    *,
    chunk_size: int = 1024,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    transport: Transport = "all_gather",
    image_ids: Integer[Array, " batch"] | None = None,
    text_ids: Integer[Array, " batch"] | None = None,
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
      image_ids: rows with equal ids hold the same image and are positives of each other.
      text_ids: rows with equal ids hold the same text and are positives of each other.
      tower_grad_scale: see `contrastive_loss`.

    Returns:
      The mean of the two directions, float32, in nats.

    Raises:
      ValueError: if the batches differ in size or do not split over the devices, the chunk size is
        not positive or the transport unknown.
    """
    check_pairs(image, text)
    batch = image.shape[0]
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be a positive number of texts")
    if transport not in get_args(Transport):
        raise ValueError(f"transport={transport!r} is unknown; use one of {get_args(Transport)}")
    devices = _Devices(None, 1, transport)
    if mesh is not None:
        devices = _Devices(axis_name, mesh.shape[axis_name], transport)
    check_divisible(batch, devices.size)
    own = jnp.arange(batch, dtype=jnp.int32)
    ids = _Ids(own if image_ids is None else image_ids, own if text_ids is None else text_ids)
    loss = _make_loss(mesh, devices, min(chunk_size, batch), batch)
    return loss(
        scale_gradient(image, tower_grad_scale),
        scale_gradient(text, tower_grad_scale),
        log_scale.astype(jnp.float32),
        ids,
    )


def _make_loss(
    mesh: Mesh | None, devices: _Devices, chunk_size: int, batch: int
) -> Callable[..., Array]:
    """The loss as a function of global arrays, with its own backward pass."""
    rows, whole = P(devices.axis_name), P()

    def forward(image: Array, text: Array, log_scale: Array, ids: _Ids) -> tuple:
        return _forward(image, text, log_scale, ids, devices, chunk_size, batch)

    def backward(image: Array, text: Array, log_scale: Array, ids: _Ids, finished: tuple) -> tuple:
        return _backward(image, text, log_scale, ids, finished, devices, chunk_size, batch)

    if mesh is not None:
        inputs = (rows, rows, whole, rows)
        forward = shard_map(forward, mesh=mesh, in_specs=inputs, out_specs=(whole, rows))
        backward = shard_map(
            backward, mesh=mesh, in_specs=(*inputs, rows), out_specs=(rows, rows, whole)
        )

    @jax.custom_vjp
    def loss(image: Array, text: Array, log_scale: Array, ids: _Ids) -> Array:
        return forward(image, text, log_scale, ids)[0]

    def loss_forward(image: Array, text: Array, log_scale: Array, ids: _Ids) -> tuple:
        value, finished = forward(image, text, log_scale, ids)
        return value, (image, text, log_scale, ids, finished)

    def loss_backward(saved: tuple, gradient: Array) -> tuple:
        image, text, log_scale = (gradient * g for g in backward(*saved))
        return image.astype(saved[0].dtype), text.astype(saved[1].dtype), log_scale, None

    loss.defvjp(loss_forward, loss_backward)
    return loss


def _forward(
    image: Array,
    text: Array,
    log_scale: Array,
    ids: _Ids,
    devices: _Devices,
    chunk_size: int,
    batch: int,
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """One device's part of the loss, and what its rows and columns need for the backward pass."""
    scale = jnp.exp(log_scale)

    def visit(rows: _Stats, columns: _Columns) -> tuple[_Stats, _Stats]:
        def step(rows: _Stats, chunk: tuple[_Columns, Array]) -> tuple[_Stats, _Stats]:
            columns, valid = chunk
            logits, positive = _block(image, ids, columns, valid, scale)
            rows = rows.merge(_stats(jnp.where(valid[None], logits, LOWEST), positive, axis=1))
            return rows, _stats(logits, positive, axis=0)

        return _scan_chunks(step, rows, columns, chunk_size)

    unknown = _varying(jnp.zeros(text.shape[0], jnp.float32), devices)
    rows, columns = _sweep(
        visit,
        _empty_stats(image.shape[0], devices),
        _Columns(text, ids, unknown, unknown),
        _empty_stats(text.shape[0], devices),
        devices,
        merge=_Stats.merge,
        reduce=_reduce_stats,
    )
    total = rows.cross_entropy().sum() + columns.cross_entropy().sum()
    if devices.axis_name is not None:
        total = jax.lax.psum(total, devices.axis_name)
    finished = (rows.log_sum_exp(), rows.count, columns.log_sum_exp(), columns.count)
    return total / (2 * batch), finished


def _backward(
    image: Array,
    text: Array,
    log_scale: Array,
    ids: _Ids,
    finished: tuple[Array, Array, Array, Array],
    devices: _Devices,
    chunk_size: int,
    batch: int,
) -> tuple[Array, Array, Array]:
    """Gradients of the loss: of this device's images, of its texts, and of the log scale."""
    scale = jnp.exp(log_scale)
    row_lse, row_count, column_lse, column_count = finished
    Carry = tuple[Array, Array]

    def visit(carry: Carry, columns: _Columns) -> tuple[Carry, Array]:
        def step(carry: Carry, chunk: tuple[_Columns, Array]) -> tuple[Carry, Array]:
            d_image, d_log_scale = carry
            columns, valid = chunk
            logits, positive = _block(image, ids, columns, valid, scale)
            d_logits = jnp.exp(logits - row_lse[:, None])
            d_logits += jnp.exp(logits - columns.log_sum_exp[None])
            d_logits -= positive * (1.0 / row_count[:, None] + 1.0 / columns.count[None])
            d_logits = jnp.where(valid[None], d_logits, 0.0) / (2 * batch)
            d_image += scale * _product("rc,cd->rd", d_logits, columns.text)
            d_text = scale * _product("rc,rd->cd", d_logits, image)
            return (d_image, d_log_scale + jnp.sum(d_logits * logits)), d_text

        return _scan_chunks(step, carry, columns, chunk_size)

    def zeros(*shape: int) -> Array:
        return _varying(jnp.zeros(shape, jnp.float32), devices)

    (d_image, d_log_scale), d_text = _sweep(
        visit,
        (zeros(*image.shape), zeros()),
        _Columns(text, ids, column_lse, column_count),
        zeros(*text.shape),
        devices,
        merge=jnp.add,
        reduce=_reduce_sum,
    )
    if devices.axis_name is not None:
        d_log_scale = jax.lax.psum(d_log_scale, devices.axis_name)
    return d_image, d_text, d_log_scale


def _product(equation: str, a: Array, b: Array) -> Array:
    """A matrix product with float32 result."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _block(
    image: Array, ids: _Ids, columns: _Columns, valid: Array, scale: Array
) -> tuple[Array, Array]:
    """Logits of all rows with some columns, and which of them are positives."""
    logits = scale * _product("rd,cd->rc", image, columns.text)
    positive = ids.image[:, None] == columns.ids.image[None]
    positive |= ids.text[:, None] == columns.ids.text[None]
    return logits, positive & valid[None]


def _stats(logits: Array, positive: Array, axis: int) -> _Stats:
    """Statistics of a block of logits along an axis."""
    maximum = logits.max(axis=axis, keepdims=True)
    return _Stats(
        jnp.squeeze(maximum, axis),
        jnp.exp(logits - maximum).sum(axis=axis),
        jnp.where(positive, logits, 0.0).sum(axis=axis),
        positive.sum(axis=axis, dtype=jnp.float32),
    )


def _empty_stats(size: int, devices: _Devices) -> _Stats:
    """Statistics of no logits."""
    zero = _varying(jnp.zeros(size, jnp.float32), devices)
    return _Stats(zero + LOWEST, zero, zero, zero)


def _varying(x: Array, devices: _Devices) -> Array:
    """Mark a constant as different on every device, as a loop that adds to it needs."""
    if devices.axis_name is None:
        return x
    return jax.lax.pcast(x, (devices.axis_name,), to="varying")


def _scan_chunks(
    step: Callable[..., Any], carry: Any, columns: _Columns, chunk_size: int
) -> tuple[Any, Any]:
    """Scan `step(carry, (columns, valid))` over chunks of columns; the last one is padded."""
    size = columns.text.shape[0]
    chunk_size = min(chunk_size, size)
    num_chunks = -(-size // chunk_size)
    missing = num_chunks * chunk_size - size

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode="edge")
        return padded.reshape(num_chunks, chunk_size, *x.shape[1:])

    valid = (jnp.arange(num_chunks * chunk_size) < size).reshape(num_chunks, chunk_size)
    carry, results = jax.lax.scan(step, carry, (jax.tree.map(split, columns), valid))
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], results)


def _sweep(
    visit: Callable[..., tuple[Any, Any]],
    carry: Any,
    columns: _Columns,
    collected: Any,
    devices: _Devices,
    *,
    merge: Callable[[Any, Any], Any],
    reduce: Callable[[Any, _Devices], Any],
) -> tuple[Any, Any]:
    """Show all columns of all devices to this device's rows.

    Args:
      visit: from (carry, columns) to the carry and what the columns got from this device's rows.
      carry: what this device's rows have collected.
      columns: this device's own columns.
      collected: what its own columns have collected before the first visit: nothing.
      devices: how the columns travel.
      merge: puts together what columns got from two devices (ring).
      reduce: from what all columns got here to what the own ones got everywhere (all-gather).

    Returns:
      The final carry, and what this device's own columns collected from all rows.
    """
    name = devices.axis_name
    if name is None:
        return visit(carry, columns)
    if devices.transport == "all_gather":
        everyone = jax.tree.map(lambda x: jax.lax.all_gather(x, name, tiled=True), columns)
        carry, results = visit(carry, everyone)
        return carry, reduce(results, devices)
    neighbours = [(i, (i + 1) % devices.size) for i in range(devices.size)]

    def step(state: tuple[Any, Any, Any], _: None) -> tuple[tuple[Any, Any, Any], None]:
        carry, columns, collected = state
        carry, results = visit(carry, columns)
        collected = merge(collected, results)
        columns, collected = jax.tree.map(
            lambda x: jax.lax.ppermute(x, name, neighbours), (columns, collected)
        )
        return (carry, columns, collected), None

    (carry, _, collected), _ = jax.lax.scan(step, (carry, columns, collected), length=devices.size)
    return carry, collected


def _reduce_stats(stats: _Stats, devices: _Devices) -> _Stats:
    """Merge what all devices found for all columns, and keep this device's columns."""
    mine = jax.tree.map(
        lambda x: jax.lax.all_to_all(
            x.reshape(devices.size, -1), devices.axis_name, split_axis=0, concat_axis=0
        ),
        stats,
    )
    maximum = mine.maximum.max(axis=0)
    total = (mine.total * jnp.exp(mine.maximum - maximum[None])).sum(axis=0)
    return _Stats(maximum, total, mine.positive.sum(axis=0), mine.count.sum(axis=0))


def _reduce_sum(gradients: Array, devices: _Devices) -> Array:
    """Add what all devices found for all columns, and keep this device's columns."""
    return jax.lax.psum_scatter(gradients, devices.axis_name, tiled=True)


def scale_gradient(x: Float[Array, "*shape"], scale: float) -> Float[Array, "*shape"]:
    """The identity, whose gradient is multiplied by `scale`.

    Args:
      x: any array.
      scale: factor of the gradient; 1 leaves `x` alone.

    Returns:
      `x`, bit-identical.
    """
    if scale == 1.0:
        return x

    @jax.custom_vjp
    def identity(x: Array) -> Array:
        return x

    identity.defvjp(lambda x: (x, None), lambda _, gradient: (gradient * scale,))
    return identity(x)


def check_pairs(image: jax.Array, text: jax.Array) -> None:
    """Refuse features that are not pairs row by row.

    Args:
      image: image features.
      text: text features.

    Raises:
      ValueError: naming both shapes.
    """
    if image.shape != text.shape:
        raise ValueError(
            f"image and text features differ: {image.shape} and {text.shape}; row i of one must be "
            "the pair of row i of the other, in the same width"
        )


def check_divisible(batch: int, parts: int) -> None:
    """Refuse a batch that does not split into equal parts.

    Args:
      batch: rows of the global batch.
      parts: number of parts.

    Raises:
      ValueError: naming both.
    """
    if parts < 1 or batch % parts or batch < parts:
        raise ValueError(
            f"a global batch of {batch} rows does not split over {parts} devices; use a positive "
            f"multiple of {max(parts, 1)}"
        )
