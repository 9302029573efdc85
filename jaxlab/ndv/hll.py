"""HyperLogLog: the number of distinct values from 2^precision one-byte registers.

Every hash chooses a register and has a rank, one more than a number of leading zeros; a register
keeps the largest rank. Union is the register-wise maximum. The relative standard error is
1.04 / sqrt(2^precision).

Where register and rank come from depends on the hash: for ids 0 and 2 the top bits choose the
register and the remaining bits give the rank (Flajolet et al.; so does the code of Li et al.); for
id 1 the low bits of the first 64 bits choose it and the second 64 bits give the rank, as in Apache
DataSketches.

References:
  Flajolet et al., "HyperLogLog: the analysis of a near-optimal cardinality estimation algorithm",
  AofA 2007; Ertl, arXiv:1702.01284, algorithm 6 (improved raw estimator).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8, UInt32

from jaxlab.ndv import fused
from jaxlab.ndv.hashing import FAST, Hasher, Lanes, leading_zeros
from jaxlab.ndv.sketch import (
    bucket_reduce,
    check_precision,
    check_rows,
    check_same_hasher,
    check_same_size,
    compiled,
    register_sketch,
)
from jaxlab.ndv.streams import Limit, hashed_blocks, is_compiled

MIN_PRECISION, MAX_PRECISION = 4, 21
COUPON_MAX_RANK = 63
ESTIMATORS = ("ertl", "raw")
# (1 - 2^-20)^(2^32) is nothing, and so is the square of what is left after 32 square roots.
_SERIES_TERMS = 32
_SMALL_ALPHA = {16: 0.673, 32: 0.697, 64: 0.709}


class Positions(NamedTuple):
    """Where hashes go in a sketch.

    Attributes:
      register: number of the register.
      rank: 1 to the largest rank.
    """

    register: Int32[Array | np.ndarray, " rows"]
    rank: Int32[Array | np.ndarray, " rows"]


@register_sketch(("registers",))
@dataclasses.dataclass(frozen=True)
class Hll:
    """The largest rank of every register.

    Attributes:
      registers: uint8 of shape (..., 2^precision); 0 where nothing came.
      hasher: the hash, static.
    """

    registers: UInt8[Array | np.ndarray, "*columns registers"]
    hasher: Hasher


def empty(precision: int, *, hasher: Hasher = FAST) -> Hll:
    """A sketch that has seen nothing.

    Args:
      precision: log2 of the number of registers, 4 to 21.
      hasher: the hash that its rows will have.

    Raises:
      ValueError: if the precision is out of range.
    """
    check_precision(precision, MIN_PRECISION, MAX_PRECISION)
    return Hll(jnp.zeros(2**precision, jnp.uint8), hasher)


def max_rank(precision: int, hasher: Hasher) -> int:
    """The largest rank that a register can hold."""
    return COUPON_MAX_RANK if hasher.hash_id == 1 else 65 - precision


def positions(hashes: Lanes, precision: int) -> Positions:
    """Register from the top bits, rank from the rest: hash ids 0 and 2; NumPy or JAX."""
    hi, lo = hashes
    up, down = np.uint32(precision), np.uint32(32 - precision)
    zeros = leading_zeros(Lanes((hi << up) | (lo >> down), lo << up)).astype(np.int32)
    return Positions((hi >> down).astype(np.int32), (zeros + 1).clip(max=65 - precision))


def coupon_positions(first: Lanes, second: Lanes, precision: int) -> Positions:
    """Register from the low bits of the first 64, rank from the second 64: hash id 1."""
    register = first.lo & np.uint32(2**precision - 1)
    zeros = leading_zeros(second).astype(np.int32)
    return Positions(register.astype(np.int32), (zeros + 1).clip(max=COUPON_MAX_RANK))


def update(
    sketch: Hll,
    hashes: Lanes,
    valid: Bool[Array | np.ndarray, " rows"] | None = None,
    *,
    second: Lanes | None = None,
    method: str | None = None,
) -> Hll:
    """The sketch with rows added.

    Args:
      sketch: of one column.
      hashes: (rows,) hashes by the sketch's hasher.
      valid: which rows count; nulls and padding do not. All by default.
      second: the second 64 bits of the hashes, for hash id 1 only.
      method: "scatter" or "tiles", see `bucket_reduce`; by default what suits the backend.

    Raises:
      ValueError: if shapes differ, or `second` is missing or given without need.
    """
    check_rows(hashes, valid)
    size = sketch.registers.shape[-1]
    hashes = Lanes(jnp.asarray(hashes.hi), jnp.asarray(hashes.lo))
    if second is not None:
        second = Lanes(jnp.asarray(second.hi), jnp.asarray(second.lo))
    register, rank = map(jnp.asarray, _positions_of(sketch, hashes, second))
    if valid is not None:
        register = jnp.where(valid, register, size)
    # 32-bit numbers: accelerators have no atomic maximum of bytes.
    largest = bucket_reduce(rank, register, size, "max", method=method)
    return Hll(jnp.maximum(sketch.registers, largest.astype(jnp.uint8)), sketch.hasher)


def update_on_host(
    sketch: Hll,
    hashes: Lanes,
    valid: Bool[np.ndarray, " rows"] | None = None,
    *,
    second: Lanes | None = None,
) -> Hll:
    """As `update`, by NumPy: nothing is compiled, which suits parts of many different lengths.

    Args:
      sketch: of one column.
      hashes: (rows,) hashes by the sketch's hasher, NumPy.
      valid: which rows count. All by default.
      second: the second 64 bits of the hashes, for hash id 1 only.

    Raises:
      ValueError: as `update`.
    """
    check_rows(hashes, valid)
    rows = slice(None) if valid is None else valid
    hashes = Lanes(hashes.hi[rows], hashes.lo[rows])
    if second is not None:
        second = Lanes(second.hi[rows], second.lo[rows])
    register, rank = map(np.asarray, _positions_of(sketch, hashes, second))
    registers = np.array(sketch.registers)
    np.maximum.at(registers, register, rank.astype(np.uint8))
    return Hll(registers, sketch.hasher)


def update_from_column(sketch: Hll, column: Any, *, serialize_nested: bool = False) -> Hll:
    """The sketch with the values of a column added; nulls do not count.

    Where JAX runs on a CPU only rows that raise a register are written, which soon are few.

    Args:
      sketch: of one column, with hash id 0.
      column: NumPy array of one dimension, Arrow array or chunked array.
      serialize_nested: whether lists, structs and maps are hashed by their serialisation.

    Returns:
      The sketch, in NumPy where JAX runs on a CPU, else on the device.

    Raises:
      TypeError: if the type of the column has no canonical form.
      ValueError: if the hash of the sketch has another id.
    """
    if sketch.hasher.hash_id != 0:
        raise ValueError(
            f"sketch has hash_id={sketch.hasher.hash_id}; wanted 0, or use `hash_column` and "
            "`update`, which take the second 64 bits of other hashes"
        )
    on_host = jax.default_backend() == "cpu"
    arrays = fused.arrays_of(column, sketch.hasher)
    if arrays is not None:
        found = fused.raise_registers(arrays, sketch.hasher, np.asarray(sketch.registers))
        return Hll(found if on_host else jnp.asarray(found), sketch.hasher)
    with fused.metered():
        return _update_by_blocks(sketch, column, serialize_nested, on_host)


def _update_by_blocks(sketch: Hll, column: Any, serialize_nested: bool, on_host: bool) -> Hll:
    """The sketch with the hashes of a column added as they come."""
    if on_host:
        sketch = Hll(np.asarray(sketch.registers), sketch.hasher)

    def limit() -> Limit | None:
        return _raising(sketch) if on_host else None

    for block in hashed_blocks(
        column, sketch.hasher, serialize_nested=serialize_nested, limit=limit
    ):
        if on_host:
            find = _compiled_search() if is_compiled(block) else is_within
            where = np.flatnonzero(find(_limits(sketch), block.lanes)[: block.rows])
            if len(where):
                chosen = Lanes(block.lanes.hi[where], block.lanes.lo[where])
                sketch = update_on_host(sketch, chosen)
        else:
            valid = np.arange(len(block.lanes.hi)) < block.rows
            rows = jax.device_put((block.lanes, valid))
            sketch = _device_update()(sketch, *rows)
    return sketch


def is_within(
    limits: UInt32[Array | np.ndarray, " registers"], hashes: Lanes
) -> Bool[Array | np.ndarray, " rows"]:
    """Whose hash behind the register number is at most its register's limit; NumPy or JAX."""
    up = np.uint32(limits.shape[-1].bit_length() - 1)
    down = np.uint32(32) - up
    register, rest = (hashes.hi >> down).astype(np.int32), (hashes.hi << up) | (hashes.lo >> down)
    if isinstance(hashes.hi, np.ndarray):
        return np.asarray(rest <= np.asarray(limits)[register])
    return jnp.asarray(rest <= jnp.take(limits, register, mode="clip"))


def _limits(sketch: Hll) -> UInt32[np.ndarray, " registers"]:
    """The largest 32 bits behind a register number that may raise it: a rank has zeros ahead."""
    zeros = np.minimum(np.asarray(sketch.registers), 32).astype(np.uint64)
    return (np.uint64(2**32 - 1) >> zeros).astype(np.uint32)


def _raising(sketch: Hll) -> Limit:
    """The rows whose rank is above the least of the registers."""
    precision = sketch.registers.shape[-1].bit_length() - 1
    return Limit(precision, (2**32 - 1) >> int(sketch.registers.min()))


def merge(a: Hll, b: Hll) -> Hll:
    """The sketch of the rows of both: associative, commutative, idempotent; any column axes.

    Raises:
      ValueError: if the numbers of registers or the hashers differ.
    """
    check_same_hasher(a.hasher, b.hasher)
    check_same_size("numbers of registers", a.registers.shape[-1], b.registers.shape[-1])
    return Hll(jnp.maximum(a.registers, b.registers), a.hasher)


def merge_over_axis(sketch: Hll, axis_name: str) -> Hll:
    """The merge of every device's sketch, the same on all: one `pmax`; inside `shard_map`."""
    largest = jax.lax.pmax(sketch.registers.astype(jnp.int32), axis_name)
    return Hll(largest.astype(jnp.uint8), sketch.hasher)


def distinct(sketch: Hll, estimator: str = "ertl") -> Float[Array | np.ndarray, "*columns"]:
    """Estimate of the number of distinct values.

    Args:
      sketch: of any leading column axes.
      estimator: "ertl" (unbiased in every range) or "raw" (with linear counting below 2.5 m, as in
        the code of Li et al.).

    Returns:
      float64 if the registers are a NumPy array, else float32.

    Raises:
      ValueError: if the estimator is unknown.
    """
    if estimator == "raw":
        return raw_estimate(sketch.registers)
    if estimator == "ertl":
        precision = sketch.registers.shape[-1].bit_length() - 1
        return ertl_estimate(sketch.registers, max_rank(precision, sketch.hasher))
    raise ValueError(f"estimator={estimator!r} is not one of {ESTIMATORS}")


def raw_estimate(
    registers: UInt8[Array | np.ndarray, "*columns registers"],
) -> Float[Array | np.ndarray, "*columns"]:
    """The estimate alpha m^2 / sum 2^-M, or m ln(m / V) if it is at most 2.5 m and V > 0 are empty.

    There is no correction for large numbers: hashes have 64 bits.
    """
    xp, kind = _numbers(registers)
    size = registers.shape[-1]
    alpha = _SMALL_ALPHA.get(size, 0.7213 / (1 + 1.079 / size))
    total = xp.sum(xp.exp2(-registers.astype(kind)), axis=-1)
    estimate = kind(alpha * size * size) / total
    num_empty = xp.sum(registers == 0, axis=-1)
    linear = size * xp.log(size / xp.maximum(num_empty, 1).astype(kind))
    small = (estimate <= 2.5 * size) & (num_empty > 0)
    return xp.asarray(xp.where(small, linear, estimate).astype(kind))


def ertl_estimate(
    registers: UInt8[Array | np.ndarray, "*columns registers"], max_rank: int
) -> Float[Array | np.ndarray, "*columns"]:
    """The improved raw estimator of Ertl, for every range; 0 for empty registers.

    Args:
      registers: the ranks.
      max_rank: the largest rank that a register can hold.
    """
    xp, kind = _numbers(registers)
    size = registers.shape[-1]
    inner = (registers > 0) & (registers < max_rank)
    terms = xp.where(inner, xp.exp2(-registers.astype(kind)), kind(0))
    num_used = xp.sum(registers > 0, axis=-1).astype(kind)
    num_full = xp.sum(registers >= max_rank, axis=-1).astype(kind)
    full = size * _tau(1 - num_full / size, xp) * kind(2.0 ** (1 - max_rank))
    total = full + xp.sum(terms, axis=-1) + size * _sigma(num_used / size, xp)
    return xp.asarray((size * size / (2 * math.log(2)) / total).astype(kind))


@functools.cache
def _compiled_search() -> Callable[..., np.ndarray]:
    return compiled(is_within)


@functools.cache
def _device_update() -> Callable[..., Hll]:
    return jax.jit(update, donate_argnums=0)


def _positions_of(sketch: Hll, hashes: Lanes, second: Lanes | None) -> Positions:
    """Positions by the rule of the sketch's hash."""
    if (second is not None) != (sketch.hasher.hash_id == 1):
        raise ValueError(
            f"second is {'given' if second is not None else 'missing'} and the sketch has hash_id="
            f"{sketch.hasher.hash_id}; hash id 1 needs the second 64 bits of its hashes, no other"
        )
    precision = sketch.registers.shape[-1].bit_length() - 1
    if second is None:
        return positions(hashes, precision)
    return coupon_positions(hashes, second, precision)


def _numbers(registers: Array | np.ndarray) -> tuple[ModuleType, Any]:
    return (np, np.float64) if isinstance(registers, np.ndarray) else (jnp, jnp.float32)


def _sigma(used: Any, xp: ModuleType) -> Any:
    """The series x + sum over k >= 1 of x^(2^k) 2^(k - 1) at x = 1 - used; infinite at used = 0.

    By logarithms: repeated squaring in 32 bits would lose a digit every three steps.
    """
    log = xp.log1p(-xp.where(used < 1, used, 0.5))
    terms = [xp.exp(log * 2.0**k) * 2.0 ** (k - 1) for k in range(1, _SERIES_TERMS + 1)]
    total = xp.where(used < 1, 1 - used + sum(terms), 0.0)
    return xp.where(used > 0, total, xp.inf)


def _tau(x: Any, xp: ModuleType) -> Any:
    """(1 - x - sum over k >= 1 of (1 - x^(2^-k))^2 2^-k) / 3; 0 at 0 and at 1."""
    log = xp.log(xp.where(x > 0, x, 1.0))
    terms = [xp.expm1(log * 2.0**-k) ** 2 * 2.0**-k for k in range(1, _SERIES_TERMS + 1)]
    return xp.where(x > 0, (1 - x - sum(terms)) / 3, 0.0)
