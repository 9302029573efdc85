"""Rows of the global batch against all its columns, a block at a time, over one or many devices.

What `chunked.py` and `sigmoid.py` share: how texts travel to the device that has the images
(gathered once, or passed around a ring), how they are taken in chunks, which pairs are positives,
and the nearest column of every row.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlab.layers.precision import full_precision

Transport = Literal["all_gather", "ring"]
LOWEST = float(jnp.finfo(jnp.float32).min)
_NO_PLACE = jnp.iinfo(jnp.int32).max


class Ids(NamedTuple):
    """What image and what text a row holds; equal ids make positives.

    Attributes:
      image: (rows, words), equal where images are.
      text: (rows, words), equal where texts are.
      row: number of the row in the global batch.
    """

    image: Array
    text: Array
    row: Array


class Columns(NamedTuple):
    """Texts that a device compares with its images.

    Attributes:
      text: features, (columns, dim).
      ids: ids of the rows they come from.
      finished: what a backward pass needs to know of every column, `()` in a forward pass.
    """

    text: Array
    ids: Ids
    finished: Any


class Devices(NamedTuple):
    """How the texts travel.

    Attributes:
      axis_name: mesh axis of the batch, `None` for one device without a mesh.
      size: number of devices along it.
      transport: `all_gather` or `ring`.
    """

    axis_name: str | None
    size: int
    transport: str


class Best(NamedTuple):
    """The nearest of the columns seen so far, for every row (or the other way round).

    Attributes:
      maximum: its logit.
      place: its number in the global batch; of equal ones the lowest.
      hit: 1 where it is a positive.
    """

    maximum: Array
    place: Array
    hit: Array

    def merge(self, other: "Best") -> "Best":
        """The nearest of the union of two disjoint sets of columns."""
        better = other.maximum > self.maximum
        better |= (other.maximum == self.maximum) & (other.place < self.place)
        return Best(*(jnp.where(better, b, a) for a, b in zip(self, other, strict=True)))

    def merge_devices(self) -> "Best":
        """The nearest over the first axis, one entry for each device."""
        maximum = self.maximum.max(axis=0)
        place = jnp.where(self.maximum == maximum[None], self.place, _NO_PLACE).min(axis=0)
        chosen = (self.maximum == maximum[None]) & (self.place == place[None])
        return Best(maximum, place, jnp.where(chosen, self.hit, 0.0).max(axis=0))


def make_devices(mesh: Mesh | None, axis_name: str, transport: str) -> Devices:
    """The devices of a mesh axis, or one device.

    Args:
      mesh: the mesh, `None` for one device.
      axis_name: mesh axis of the batch.
      transport: how texts travel.

    Returns:
      The devices.

    Raises:
      ValueError: if the transport is unknown.
    """
    if transport not in get_args(Transport):
        raise ValueError(f"transport={transport!r} is unknown; use one of {get_args(Transport)}")
    if mesh is None:
        return Devices(None, 1, transport)
    return Devices(axis_name, mesh.shape[axis_name], transport)


def make_ids(batch: int, image_ids: Array | None, text_ids: Array | None) -> Ids:
    """Ids of all rows; where none are given every row is a kind of its own.

    Args:
      batch: number of rows.
      image_ids: (rows,) or (rows, words), `None` if all images differ.
      text_ids: the same of texts.

    Returns:
      The ids.
    """
    row = jnp.arange(batch, dtype=jnp.int32)
    image, text = (
        (row if given is None else given).reshape(batch, -1) for given in (image_ids, text_ids)
    )
    return Ids(image, text, row)


def block(
    image: Array, ids: Ids, columns: Columns, valid: Array, scale: Array
) -> tuple[Array, Array]:
    """Logits of all rows with some columns, and which of them are positives.

    Args:
      image: features of the rows.
      ids: ids of the rows.
      columns: the columns.
      valid: which columns are not padding.
      scale: multiplier of the cosines.

    Returns:
      float32 logits (rows, columns), and booleans.
    """
    logits = scale * product("rd,cd->rc", image, columns.text)
    positive = equal_rows(ids.image, columns.ids.image) | equal_rows(ids.text, columns.ids.text)
    return logits, positive & valid[None]


def product(equation: str, a: Array, b: Array) -> Array:
    """A matrix product with float32 result."""
    with full_precision(a.dtype):
        return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def equal_rows(a: Array, b: Array) -> Array:
    """True at (i, j) where row i of (rows, words) `a` equals row j of (columns, words) `b`."""
    same = a[:, None, 0] == b[None, :, 0]
    for word in range(1, a.shape[1]):
        same &= a[:, None, word] == b[None, :, word]
    return same


def best_along(logits: Array, positive: Array, numbers: Array, axis: int) -> Best:
    """The nearest of a block along an axis.

    Args:
      logits: (rows, columns).
      positive: which are positives.
      numbers: numbers in the global batch along the axis, increasing.
      axis: 1 for the nearest column of every row, 0 for the nearest row of every column.

    Returns:
      One entry a row, or a column.
    """
    place = jnp.expand_dims(jnp.argmax(logits, axis=axis), axis)
    maximum, hit = (jnp.take_along_axis(x, place, axis=axis) for x in (logits, positive))
    return Best(
        jnp.squeeze(maximum, axis),
        jnp.take(numbers, jnp.squeeze(place, axis)),
        jnp.squeeze(hit, axis).astype(jnp.float32),
    )


def no_best(size: int, devices: Devices) -> Best:
    """The nearest of no columns."""
    zero = varying(jnp.zeros(size, jnp.float32), devices)
    return Best(zero + LOWEST, varying(jnp.full(size, _NO_PLACE, jnp.int32), devices), zero)


def varying(x: Array, devices: Devices) -> Array:
    """Mark a constant as different on every device, as a loop that adds to it needs."""
    if devices.axis_name is None:
        return x
    return jax.lax.pcast(x, (devices.axis_name,), to="varying")


def sum_devices(x: Float[Array, ""], devices: Devices) -> Float[Array, ""]:
    """The sum over all devices."""
    return x if devices.axis_name is None else jax.lax.psum(x, devices.axis_name)


def scan_chunks(
    step: Callable[..., Any], carry: Any, columns: Columns, chunk_size: int
) -> tuple[Any, Any]:
    """Scan `step(carry, (columns, valid))` over chunks of columns; the last one is padded.

    Args:
      step: from the carry and a chunk to the carry and what the chunk's columns got.
      carry: what the rows have collected.
      columns: all of them.
      chunk_size: columns of a chunk.

    Returns:
      The last carry, and what all columns got.
    """
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


def sweep(
    visit: Callable[..., tuple[Any, Any]],
    carry: Any,
    columns: Columns,
    collected: Any,
    devices: Devices,
    *,
    merge: Callable[[Any, Any], Any],
    reduce: Callable[[Any, Devices], Any],
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


def exchange(results: Any, devices: Devices) -> Any:
    """What every device found for this device's columns, (devices, columns of one)."""
    return jax.tree.map(
        lambda x: jax.lax.all_to_all(
            x.reshape(devices.size, -1), devices.axis_name, split_axis=0, concat_axis=0
        ),
        results,
    )


def reduce_sum(gradients: Any, devices: Devices) -> Any:
    """Add what all devices found for all columns, and keep this device's columns."""
    return jax.tree.map(lambda x: jax.lax.psum_scatter(x, devices.axis_name, tiled=True), gradients)


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


def check_chunk_size(chunk_size: int) -> None:
    """Refuse a chunk without a text.

    Args:
      chunk_size: texts compared at a time.

    Raises:
      ValueError: if it is not positive.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be a positive number of texts")
