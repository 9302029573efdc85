"""k-partition registers with counts: a fixed-shape sketch of the whole profile of a sample.

A value's hash chooses one of 2^precision registers by its top bits. Every register keeps the
smallest remaining hash that it has seen, and how many rows had it. The kept values are a uniform
choice of the distinct values, the same on every machine, so their counts add exactly when sketches
merge: a minimum and a masked sum, which a mesh does as `pmin` and `psum`.

With m registers the relative standard deviation of d is about 1 / sqrt(m), that of f_i about
sqrt(d / (m f_i)). Counts take one or two bytes and stop at their maximum.

References:
  Bar-Yossef et al. 2002 and Giroire 2009 for distinct counts from minima of partitions;
  Gibbons, "Distinct sampling for highly-accurate answers to distinct values queries", VLDB 2001,
  for counts of hash-chosen values.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32, UInt64

from jaxlab.ndv.hashing import FAST, Hasher, Lanes
from jaxlab.ndv.sketch import (
    EMPTY_HASH,
    SketchProfile,
    bucket_reduce,
    check_precision,
    check_rows,
    check_same_hasher,
    check_same_size,
    compiled,
    count_profile,
    register_sketch,
)
from jaxlab.ndv.streams import HashedBlock, block_of, is_compiled

MIN_PRECISION, MAX_PRECISION = 4, 20
COUNT_TYPES = {8: np.uint8, 16: np.uint16}


@register_sketch(("minimum", "count"))
@dataclasses.dataclass(frozen=True)
class Registers:
    """Smallest hash of every register and its number of rows.

    Attributes:
      minimum: uint32 of shape (..., registers); 2^32 - 1 in empty registers.
      count: uint8 or uint16 of the same shape, saturating; 0 in empty registers.
      hasher: the hash, static.
    """

    minimum: UInt32[Array | np.ndarray, "*columns registers"]
    count: Array | np.ndarray
    hasher: Hasher


def empty(precision: int, *, count_bits: int = 16, hasher: Hasher = FAST) -> Registers:
    """A sketch that has seen nothing.

    Args:
      precision: log2 of the number of registers, 4 to 20.
      count_bits: 8 or 16; counts stop at 2^count_bits - 1.
      hasher: the hash that its rows will have.

    Raises:
      ValueError: if precision or count_bits is none of these.
    """
    check_precision(precision, MIN_PRECISION, MAX_PRECISION)
    if count_bits not in COUNT_TYPES:
        raise ValueError(f"count_bits={count_bits} is not one of {sorted(COUNT_TYPES)}")
    size = 2**precision
    return Registers(
        jnp.full(size, EMPTY_HASH, jnp.uint32), jnp.zeros(size, COUNT_TYPES[count_bits]), hasher
    )


def from_counts(
    words: UInt64[np.ndarray, " values"],
    counts: Int[np.ndarray, " values"],
    precision: int,
    *,
    count_bits: int = 16,
    hasher: Hasher = FAST,
) -> Registers:
    """The sketch of values that were counted already, on the host.

    Args:
      words: different hashes by the hasher, in any order.
      counts: their rows, at least 1.
      precision: log2 of the number of registers, 4 to 20.
      count_bits: 8 or 16; counts stop at 2^count_bits - 1.
      hasher: the hash.

    Raises:
      ValueError: if precision or count_bits is out of range.
    """
    sketch = jax.tree.map(np.asarray, empty(precision, count_bits=count_bits, hasher=hasher))
    block = dataclasses.replace(block_of(words), num_values=int(counts.sum()), counts=counts)
    return update_on_host(sketch, block)


def update(
    sketch: Registers,
    hashes: Lanes,
    valid: Bool[Array | np.ndarray, " rows"] | None = None,
    *,
    method: str | None = None,
) -> Registers:
    """The sketch with rows added.

    Args:
      sketch: of one column.
      hashes: (rows,) hashes by the sketch's hasher.
      valid: which rows count; nulls and padding do not. All by default.
      method: "scatter" or "tiles", see `bucket_reduce`; by default what suits the backend.

    Raises:
      ValueError: if shapes differ.
    """
    check_rows(hashes, valid)
    size = sketch.minimum.shape[-1]
    bucket, rest = _split(Lanes(*map(jnp.asarray, hashes)), size)
    if valid is not None:
        bucket = jnp.where(valid, bucket, size)
    minimum = bucket_reduce(rest, bucket, size, "min", method=method)
    kept = rest == minimum.at[bucket].get(mode="fill", fill_value=0)
    count = bucket_reduce(kept.astype(jnp.uint32), bucket, size, "add", method=method)
    return merge(sketch, Registers(minimum, _saturate(count, sketch.count.dtype), sketch.hasher))


def search(
    minimum: UInt32[Array | np.ndarray, " registers"], hashes: Lanes
) -> Int32[Array | np.ndarray, " rows"]:
    """What every row does to registers: 0 nothing, 1 a new minimum, 2 + r one more row of r's.

    Args:
      minimum: the smallest remaining hash of every register.
      hashes: (rows,) hashes; NumPy in, NumPy out, else JAX.
    """
    bucket, rest = _split(hashes, minimum.shape[-1])
    if isinstance(hashes.hi, np.ndarray):
        least = np.asarray(minimum)[bucket]
        return np.where(rest == least, bucket + np.int32(2), (rest < least).astype(np.int32))
    least = jnp.take(minimum, bucket, mode="clip")
    return jnp.where(rest == least, bucket + np.int32(2), (rest < least).astype(np.int32))


def update_on_host(sketch: Registers, block: HashedBlock) -> Registers:
    """As `update`, in NumPy: rows that do not change the sketch are searched only.

    The search is compiled for the CPU where there are many rows. A sketch soon has small minima,
    which few rows pass, so that what is done for those costs little.

    Args:
      sketch: of one column, NumPy.
      block: hashes by the sketch's hasher.
    """
    size = sketch.minimum.shape[-1]
    minimum = np.asarray(sketch.minimum)
    find = _compiled_search() if is_compiled(block) else search
    codes = find(minimum, block.lanes)[: block.rows]
    where = np.flatnonzero(codes != 0)
    rows = None if block.counts is None else block.counts[where]
    found = np.bincount(codes[where], rows, size + 2).astype(np.int64)
    count = sketch.count + found[2:]
    if found[1]:
        lower = where[codes[where] == 1]
        bucket, rest = _split(Lanes(block.lanes.hi[lower], block.lanes.lo[lower]), size)
        before, minimum = minimum, minimum.copy()
        np.minimum.at(minimum, bucket, rest)
        kept = rest == minimum[bucket]
        rows = None if block.counts is None else block.counts[lower[kept]]
        new = np.bincount(bucket[kept], rows, size).astype(np.int64)
        count = np.where(minimum == before, count, 0) + new
    count = np.minimum(count, np.iinfo(sketch.count.dtype).max).astype(sketch.count.dtype)
    return Registers(minimum, count, sketch.hasher)


def merge(a: Registers, b: Registers) -> Registers:
    """The sketch of the rows of both; associative and commutative, of any leading column axes.

    Raises:
      ValueError: if the numbers of registers, the widths of counts or the hashers differ.
    """
    _check_mergeable(a, b)
    minimum = jnp.minimum(a.minimum, b.minimum)
    count = _kept(a, minimum) + _kept(b, minimum)
    return Registers(minimum, _saturate(count, a.count.dtype), a.hasher)


def merge_over_axis(sketch: Registers, axis_name: str) -> Registers:
    """The merge of every device's sketch, the same on all; inside `shard_map`.

    One `pmin` and one `psum` of as many 32-bit numbers as there are registers.
    """
    minimum = jax.lax.pmin(sketch.minimum, axis_name)
    count = jax.lax.psum(_kept(sketch, minimum), axis_name)
    return Registers(minimum, _saturate(count, sketch.count.dtype), sketch.hasher)


def distinct(sketch: Registers) -> Float[Array | np.ndarray, "*columns"]:
    """Estimate of the number of distinct values, one formula for every range.

    m m_ne / (sum of the kept hashes as fractions of their range + number of empty registers), with
    m_ne registers that are not empty: the maximum of the likelihood of Poisson arrivals, times
    (m - 1) / m when no register is empty. float64 for NumPy arrays, else float32; 0 when empty.
    """
    host = isinstance(sketch.minimum, np.ndarray)
    xp, kind = (np, np.float64) if host else (jnp, jnp.float32)
    size = sketch.minimum.shape[-1]
    used = sketch.count > 0
    num_used = xp.sum(used, axis=-1).astype(kind)
    fraction = (sketch.minimum.astype(kind) + kind(0.5)) * kind(2.0**-32)
    # Half a step keeps the sum positive: at its least it is m 2^-33.
    total = xp.sum(xp.where(used, fraction, kind(1)), axis=-1)
    bias = xp.where(num_used == size, (size - 1) / size, 1.0).astype(kind)
    return xp.asarray(bias * size * num_used / total)


def profile(sketch: Registers, length: int) -> SketchProfile:
    """Profile of the rows that one column's sketch has seen.

    Args:
      sketch: of one column; use `jax.vmap` for many.
      length: number of frequencies asked for.

    Returns:
      f_1 ... f_length, d, n and the rest; float64 if the arrays are NumPy's, else float32.

    Raises:
      ValueError: if length is not below the maximum count.
    """
    host = isinstance(sketch.count, np.ndarray)
    xp = np if host else jnp
    d = distinct(sketch)
    num_used = xp.sum(sketch.count > 0).astype(d.dtype)
    scale = xp.asarray(d / xp.maximum(num_used, 1))
    counts = sketch.count.astype(np.int32)
    return count_profile(counts, scale, length, int(np.iinfo(sketch.count.dtype).max))


def _split(hashes: Lanes, size: int) -> tuple[Any, Any]:
    """Register and remaining hash of every row."""
    up, down = np.uint32(size.bit_length() - 1), np.uint32(33 - size.bit_length())
    rest = (hashes.hi << up) | (hashes.lo >> down)
    return (hashes.hi >> down).astype(np.int32), rest


@functools.cache
def _compiled_search() -> Callable[..., np.ndarray]:
    return compiled(search)


def _kept(sketch: Registers, minimum: UInt32[Array, "*columns registers"]) -> Array:
    """Counts of the registers whose value is the overall minimum, as uint32."""
    count = jnp.asarray(sketch.count).astype(jnp.uint32)
    return jnp.where(sketch.minimum == minimum, count, np.uint32(0))


def _saturate(count: Array, dtype: np.dtype) -> Array:
    return jnp.minimum(count, np.uint32(np.iinfo(dtype).max)).astype(dtype)


def _check_mergeable(a: Registers, b: Registers) -> None:
    check_same_hasher(a.hasher, b.hasher)
    check_same_size("numbers of registers", a.minimum.shape[-1], b.minimum.shape[-1])
    check_same_size("bytes of counts", a.count.dtype.itemsize, b.count.dtype.itemsize)
