"""CountSketch: the second moment of a sample's counts from a small table, for Chao-Lee's estimator.

Every value adds its count, with a sign of its own, to one cell of each row of the table. The sum of
squares of a row is an unbiased estimate of F2 = sum i^2 f_i with relative standard deviation
about sqrt(2 / width); the median over the rows guards against a bad one. Tables with the same seed
add up: the merge of machines is a sum.

References:
  Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", ICALP 2002; Alon, Matias,
  Szegedy, STOC 1996. Sizes as in the code of arXiv:2206.05476, which seeds each process by its
  clock; such tables do not add up, and here the seed is part of the sketch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from jaxlab.ndv.hashing import FAST, Hasher, Lanes, fmix32
from jaxlab.ndv.sketch import (
    bucket_reduce,
    check_rows,
    check_same_hasher,
    check_same_size,
    register_sketch,
)

_ROW_STEP = 0x9E3779B9


@register_sketch(("table",))
@dataclasses.dataclass(frozen=True)
class CountSketch:
    """Signed sums of counts.

    Attributes:
      table: int32 of shape (..., depth, width).
      hasher: the hash, static; its seed also chooses the cells and signs.
    """

    table: Int32[Array | np.ndarray, "*columns depth width"]
    hasher: Hasher


def dimensions(epsilon: float = 0.01, gamma: float = 0.1) -> tuple[int, int]:
    """Depth ceil(ln(4 / gamma)) and width ceil(1 / epsilon^2) of a table.

    Args:
      epsilon: error as a share of the norm of the counts, in (0, 1].
      gamma: probability of a larger error, in (0, 1].

    Raises:
      ValueError: if one is out of range.

    Example:
      >>> dimensions()
      (4, 10000)
    """
    for name, value in (("epsilon", epsilon), ("gamma", gamma)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value} is not in (0, 1]")
    # Rounded first: 1 / 0.07^2 must not become one cell more by the last bit.
    return math.ceil(math.log(4 / gamma)), math.ceil(round(1 / epsilon**2, 6))


def empty(depth: int = 4, width: int = 10_000, *, hasher: Hasher = FAST) -> CountSketch:
    """A table of zeros.

    Raises:
      ValueError: if depth or width is not positive.
    """
    if depth < 1 or width < 1:
        raise ValueError(f"depth={depth} and width={width} must both be at least 1")
    return CountSketch(jnp.zeros((depth, width), jnp.int32), hasher)


def update(
    sketch: CountSketch,
    hashes: Lanes,
    counts: Int[Array | np.ndarray, " rows"] | None = None,
    valid: Bool[Array | np.ndarray, " rows"] | None = None,
    *,
    method: str | None = None,
) -> CountSketch:
    """The table with values added; a value may come in several rows.

    Args:
      sketch: of one column.
      hashes: (rows,) hashes by the sketch's hasher.
      counts: how often each row's value occurs, 1 by default.
      valid: which rows count. All by default.
      method: "scatter" or "tiles", see `bucket_reduce`; by default what suits the backend.

    Raises:
      ValueError: if shapes differ.
    """
    check_rows(hashes, valid)
    depth, width = sketch.table.shape[-2:]
    hi, lo = jnp.asarray(hashes.hi), jnp.asarray(hashes.lo)
    amount = jnp.ones(hi.shape, jnp.int32) if counts is None else jnp.asarray(counts, jnp.int32)
    if valid is not None:
        amount = jnp.where(valid, amount, 0)
    cells, signs = _cells(Lanes(hi, lo), sketch.hasher.seed, depth, width)
    sums = jax.vmap(lambda own, cell: bucket_reduce(own, cell, width, "add", method=method))
    return CountSketch(sketch.table + sums(signs * amount[None], cells), sketch.hasher)


def merge(a: CountSketch, b: CountSketch) -> CountSketch:
    """The table of the rows of both; associative and commutative, of any column axes.

    Raises:
      ValueError: if depths, widths or hashers differ.
    """
    check_same_hasher(a.hasher, b.hasher)
    for axis, name in ((-2, "depths"), (-1, "widths")):
        check_same_size(name, a.table.shape[axis], b.table.shape[axis])
    return CountSketch(a.table + b.table, a.hasher)


def merge_over_axis(sketch: CountSketch, axis_name: str) -> CountSketch:
    """The merge of every device's table, the same on all: one `psum`; inside `shard_map`."""
    return CountSketch(jax.lax.psum(sketch.table, axis_name), sketch.hasher)


def second_moment(sketch: CountSketch) -> Float[Array | np.ndarray, "*columns"]:
    """F2, the sum of squared counts: the median over rows of their sums of squares.

    float64 for NumPy arrays, else float32. The original takes the upper of the two middle rows.
    """
    host = isinstance(sketch.table, np.ndarray)
    xp, kind = (np, np.float64) if host else (jnp, jnp.float32)
    squares = xp.sum(sketch.table.astype(kind) ** 2, axis=-1)
    return xp.asarray(xp.median(squares, axis=-1))


def excess_moment(
    sketch: CountSketch, num_rows: float | Float[Array | np.ndarray, "*columns"]
) -> Float[Array | np.ndarray, "*columns"]:
    """s2 = sum i (i - 1) f_i = F2 - n of a sample of n rows, at least 0."""
    xp = np if isinstance(sketch.table, np.ndarray) else jnp
    return xp.asarray(xp.maximum(second_moment(sketch) - num_rows, 0))


def _cells(
    hashes: Lanes, seed: int, depth: int, width: int
) -> tuple[Int32[Array, "depth rows"], Int32[Array, "depth rows"]]:
    """Cell and sign of every hash in every row of the table."""
    keys = [(seed + (row + 1) * _ROW_STEP) % 2**32 for row in range(depth)]
    key: UInt32[Array, "depth 1"] = jnp.asarray(np.array(keys, np.uint32))[:, None]
    hi = jnp.broadcast_to(jnp.asarray(hashes.hi)[None], (depth, hashes.hi.shape[0]))
    mixed = jnp.asarray(fmix32(hi + key)) ^ jnp.asarray(hashes.lo)[None]
    mixed = jnp.asarray(fmix32(mixed + (key ^ np.uint32(_ROW_STEP))))
    sign = 1 - 2 * (fmix32(mixed + key) >> np.uint32(31)).astype(jnp.int32)
    return (mixed % np.uint32(width)).astype(jnp.int32), jnp.asarray(sign)
