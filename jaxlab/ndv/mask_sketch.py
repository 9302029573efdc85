"""Power-of-two mask sketch: the hashes that end in `level` zero bits, with their counts.

The sketch retains every hash with hash & (2^level - 1) = 0. When more than `capacity` are retained,
the level rises until they fit, which keeps every second value at a time. Each retained value stands
for 2^level values of the sample. Against bottom-k: no order among hashes is needed and the level
alone describes what is missing, but the number of retained values swings between half and all of
the capacity.

References:
  Gibbons, "Distinct sampling for highly-accurate answers to distinct values queries", VLDB 2001.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt32

from jaxlab.ndv.hashing import FAST, Hasher, Lanes, trailing_zeros
from jaxlab.ndv.sketch import (
    EMPTY_HASH,
    SketchProfile,
    absorb,
    bucket_reduce,
    check_capacity,
    check_rows,
    check_same_hasher,
    check_same_size,
    combine_counts,
    count_profile,
    gather_over_axis,
    register_sketch,
)

DEFAULT_CAPACITY = 10_000
MAX_COUNT = 2**32 - 1
MAX_LEVEL = 64
_MIN_BLOCK = 1024


@register_sketch(("hi", "lo", "count", "level"))
@dataclasses.dataclass(frozen=True)
class MaskSketch:
    """Retained hashes, most trailing zeros first, and their counts.

    Attributes:
      hi: upper halves, uint32 of shape (..., capacity); 2^32 - 1 in empty slots.
      lo: lower halves.
      count: rows of each hash, stopping at 2^32 - 1; 0 in empty slots, which come last.
      level: number of trailing zero bits that every retained hash has, int32.
      hasher: the hash, static.
    """

    hi: UInt32[Array | np.ndarray, "*columns slots"]
    lo: UInt32[Array | np.ndarray, "*columns slots"]
    count: UInt32[Array | np.ndarray, "*columns slots"]
    level: Int32[Array | np.ndarray, "*columns"]
    hasher: Hasher


def empty(capacity: int = DEFAULT_CAPACITY, *, hasher: Hasher = FAST) -> MaskSketch:
    """A sketch that has seen nothing.

    Args:
      capacity: the largest number of hashes that it retains, 2 to 2^24.
      hasher: the hash that its rows will have.

    Raises:
      ValueError: if the capacity is out of range.
    """
    check_capacity(capacity)
    nothing = jnp.full(capacity, EMPTY_HASH, jnp.uint32)
    return MaskSketch(nothing, nothing, jnp.zeros(capacity, jnp.uint32), jnp.int32(0), hasher)


def update(
    sketch: MaskSketch,
    hashes: Lanes,
    valid: Bool[Array | np.ndarray, " rows"] | None = None,
    *,
    block: int | None = None,
) -> MaskSketch:
    """The sketch with rows added; the same for any order and any cut into calls.

    Args:
      sketch: of one column.
      hashes: (rows,) hashes by the sketch's hasher.
      valid: which rows count; nulls and padding do not. All by default.
      block: rows sorted at a time, by default max(1024, capacity).

    Raises:
      ValueError: if shapes differ.
    """
    check_rows(hashes, valid)
    zeros = jnp.asarray(trailing_zeros(hashes)).astype(jnp.int32)
    return absorb(
        sketch,
        hashes,
        valid,
        passes=lambda state, rows: zeros >= state.level,
        combine=_add,
        block=max(_MIN_BLOCK, sketch.hi.shape[-1]) if block is None else block,
    )


def merge(a: MaskSketch, b: MaskSketch) -> MaskSketch:
    """The sketch of the rows of both, of one column; associative and commutative.

    Raises:
      ValueError: if the capacities or the hashers differ.
    """
    check_same_hasher(a.hasher, b.hasher)
    check_same_size("capacities", a.hi.shape[-1], b.hi.shape[-1])
    higher = dataclasses.replace(a, level=jnp.maximum(a.level, b.level))
    return _add(higher, Lanes(jnp.asarray(b.hi), jnp.asarray(b.lo)), jnp.asarray(b.count))


def merge_over_axis(sketch: MaskSketch, axis_name: str) -> MaskSketch:
    """The merge of every device's sketch, the same on all; inside `shard_map`.

    One `pmax` of the levels, then a gathering of 12 bytes a slot and device.
    """
    level = jax.lax.pmax(sketch.level, axis_name)
    every = gather_over_axis((sketch.hi, sketch.lo, sketch.count), axis_name)
    hi, lo, count = (jnp.asarray(leaf).reshape(-1) for leaf in every)
    return _retain(Lanes(hi, lo), count, level, sketch.hi.shape[-1], sketch.hasher)


def distinct(sketch: MaskSketch) -> Float[Array | np.ndarray, "*columns"]:
    """Estimate of the number of distinct values: 2^level for each retained one."""
    number = (sketch.count > 0).sum(axis=-1) * _scale(sketch)
    return np.asarray(number) if isinstance(sketch.count, np.ndarray) else number


def profile(sketch: MaskSketch, length: int) -> SketchProfile:
    """Profile of the rows that one column's sketch has seen; exact at level 0.

    Args:
      sketch: of one column; use `jax.vmap` for many.
      length: number of frequencies asked for.

    Returns:
      f_1 ... f_length, d, n and the rest; float64 if the arrays are NumPy's, else float32.

    Raises:
      ValueError: if length is not positive.
    """
    return count_profile(sketch.count, _scale(sketch), length, MAX_COUNT)


def _scale(sketch: MaskSketch) -> Float[Array | np.ndarray, "*columns"]:
    if isinstance(sketch.hi, np.ndarray):
        return np.asarray(np.exp2(np.asarray(sketch.level, np.float64)))
    return jnp.ldexp(jnp.float32(1), jnp.asarray(sketch.level))


def _add(sketch: MaskSketch, hashes: Lanes, counts: UInt32[Array, " block"]) -> MaskSketch:
    hi = jnp.concatenate([sketch.hi, hashes.hi])
    lo = jnp.concatenate([sketch.lo, hashes.lo])
    count = jnp.concatenate([sketch.count, counts])
    return _retain(
        Lanes(hi, lo), count, jnp.asarray(sketch.level), sketch.hi.shape[-1], sketch.hasher
    )


def _retain(
    hashes: Lanes,
    counts: UInt32[Array, " slots"],
    level: Int32[Array, ""],
    size: int,
    hasher: Hasher,
) -> MaskSketch:
    """The distinct hashes at the lowest level, not below `level`, at which they fit into `size`."""
    key = _missing_zeros(hashes, counts > 0)
    (_, hi, lo), count = combine_counts(
        (key, jnp.asarray(hashes.hi), jnp.asarray(hashes.lo)), counts
    )
    # After sorting, the hashes of a level are a prefix.
    missing = _missing_zeros(Lanes(hi, lo), count > 0).astype(jnp.int32)
    of_level = bucket_reduce(
        jnp.ones(missing.shape, jnp.int32), MAX_LEVEL - missing, MAX_LEVEL + 1, "add"
    )
    at_least = jnp.cumsum(of_level[::-1])[::-1]
    level = jnp.maximum(level, jnp.argmax(at_least <= size).astype(jnp.int32))
    keep = (MAX_LEVEL - missing >= level)[:size]
    nothing = np.uint32(EMPTY_HASH)
    return MaskSketch(
        jnp.where(keep, hi[:size], nothing),
        jnp.where(keep, lo[:size], nothing),
        jnp.where(keep, count[:size], np.uint32(0)),
        level,
        hasher,
    )


def _missing_zeros(hashes: Lanes, used: Bool[Array, " slots"]) -> UInt32[Array, " slots"]:
    """64 less the trailing zeros of a hash; the largest number for slots without one."""
    missing = np.uint32(MAX_LEVEL) - jnp.asarray(trailing_zeros(hashes))
    return jnp.where(used, missing, np.uint32(EMPTY_HASH))
