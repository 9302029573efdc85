"""What the sketches share: pytrees with static settings, reductions by bucket, count profiles.

A sketch is a frozen dataclass of arrays and a static `Hasher`. Its functions are written for one
column; `jax.vmap` runs them over the columns of a table. Settings are static, so that sketches that
must not be merged are refused while tracing, before any device has worked.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxlab.ndv.arguments import check_integer
from jaxlab.ndv.hashing import HASH_IDS, Hasher, Lanes
from jaxlab.parallel import DATA_AXIS, shard_map

EMPTY_HASH = 0xFFFFFFFF
MAX_CAPACITY = 2**24
MIN_COMPILED_ROWS = 2**14
"""Fewer rows are worked on by NumPy on the host: to compile and to pad would take longer."""
_TILE = 128
T = TypeVar("T")
Result = TypeVar("Result")


class SketchProfile(NamedTuple):
    """How many values of the sample occur once, twice, ..., as a sketch estimates it.

    All fields are counts of the whole sample, float32 on a device and float64 on the host; they
    are fractional. Sums and differences of them come from the same retained values: estimators
    whose formula has f_1 / n must take this n, not the exact number of rows.

    Attributes:
      f: f[i - 1] is the number of values that occur i times, for i up to the asked length.
      d: number of distinct values.
      n: number of rows, sum of i f_i over all i.
      d_tail: number of values that occur more often than the asked length.
      n_tail: their rows.
      s2_tail: their sum of i (i - 1).
      saturated: whether a count stopped at its maximum, so that the tails are lower bounds.
    """

    f: Float[Array | np.ndarray, "*columns length"]
    d: Float[Array | np.ndarray, "*columns"]
    n: Float[Array | np.ndarray, "*columns"]
    d_tail: Float[Array | np.ndarray, "*columns"]
    n_tail: Float[Array | np.ndarray, "*columns"]
    s2_tail: Float[Array | np.ndarray, "*columns"]
    saturated: Bool[Array | np.ndarray, "*columns"]


def register_sketch(
    arrays: tuple[str, ...], static: tuple[str, ...] = ("hasher",)
) -> Callable[[type[T]], type[T]]:
    """Make a frozen dataclass a pytree: of some fields the arrays, of the others the structure.

    The class is rebuilt without its constructor: leaves may be anything that JAX puts there.
    """

    def register(cls: type[T]) -> type[T]:
        def flatten(sketch: T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
            keyed = [(jax.tree_util.GetAttrKey(name), getattr(sketch, name)) for name in arrays]
            return keyed, tuple(getattr(sketch, name) for name in static)

        def unflatten(settings: tuple[Any, ...], leaves: Any) -> T:
            sketch = object.__new__(cls)
            for name, value in zip((*static, *arrays), (*settings, *leaves), strict=True):
                object.__setattr__(sketch, name, value)
            return sketch

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        return cls

    return register


def check_same_hasher(a: Hasher, b: Hasher) -> None:
    """Refuse to combine hashes of two kinds.

    Raises:
      ValueError: naming both hashers.
    """
    if a != b:
        raise ValueError(
            f"cannot merge: hashes of {HASH_IDS[a.hash_id]} with seed {a.seed} and of "
            f"{HASH_IDS[b.hash_id]} with seed {b.seed}; build both sketches with the same Hasher"
        )


def check_same_size(what: str, a: int, b: int) -> None:
    """Refuse to combine sketches of two sizes.

    Raises:
      ValueError: naming what differs and both sizes.
    """
    if a != b:
        raise ValueError(f"cannot merge: {what} {a} and {b}; build both sketches with the same one")


def check_precision(precision: int, low: int, high: int) -> None:
    """Refuse a number of registers that the sketch cannot have.

    Raises:
      TypeError: if it is no whole number.
      ValueError: if precision is not in [low, high].
    """
    check_integer(precision, "precision", f"a whole number from {low} to {high}")
    if not low <= precision <= high:
        raise ValueError(
            f"precision={precision} is not from {low} to {high}; a sketch has 2^precision registers"
        )


def check_capacity(capacity: int) -> None:
    """Refuse a number of retained hashes that no sketch has.

    Raises:
      TypeError: if it is no whole number.
      ValueError: if the capacity is not from 2 to `MAX_CAPACITY`.
    """
    check_integer(capacity, "capacity", "how many values to keep")
    if not 2 <= capacity <= MAX_CAPACITY:
        raise ValueError(
            f"capacity={capacity} is not from 2 to {MAX_CAPACITY}; 4096 gives d to about 1.6 %"
        )


def check_rows(hashes: Lanes, valid: Bool[Array | np.ndarray, " rows"] | None) -> None:
    """Refuse hashes that are not one column of rows with a mask of the same length.

    Raises:
      ValueError: naming the shapes.
    """
    shapes = [np.shape(half) for half in hashes]
    shapes += [] if valid is None else [np.shape(valid)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"hashes and mask have shapes {shapes}; wanted (rows,) for all: a sketch takes one "
            "column, use jax.vmap for many"
        )


def on_mesh(function: Callable[..., Result], mesh: Mesh) -> Callable[..., Result]:
    """Run a function of rows on every device's part of the rows, with a replicated result.

    Args:
      function: takes arrays whose first axis is rows and ends with a collective over `DATA_AXIS`,
        such as the `merge_over_axis` of a sketch.
      mesh: a mesh with a `data` axis that divides the rows; pad and mask them to fit.

    Returns:
      A function of the global arrays; call it under `jax.jit`.
    """
    return shard_map(
        function, mesh=mesh, in_specs=PartitionSpec(DATA_AXIS), out_specs=PartitionSpec()
    )


def gather_over_axis(tree: T, axis_name: str) -> T:
    """Every device's arrays, stacked along a new first axis and the same on all devices.

    A sum of arrays that are zero but for the own row: its result is provably replicated.

    Args:
      tree: pytree of integer arrays.
      axis_name: mesh axis, inside `shard_map`.
    """
    size, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)

    def gather(leaf: Array) -> Array:
        own = jnp.zeros((size, *leaf.shape), leaf.dtype).at[index].set(leaf)
        return jax.lax.psum(own, axis_name)

    return jax.tree.map(gather, tree)


def match_varying(tree: T, like: Array) -> T:
    """Make constants vary over the mesh axes that `like` varies over, as loops in `shard_map` ask.

    Args:
      tree: pytree of integer or boolean arrays.
      like: integers of shape (rows,), at least one.
    """
    zero = like[0] & like.dtype.type(0)
    return jax.tree.map(lambda leaf: leaf ^ zero.astype(leaf.dtype), tree)


def default_method() -> str:
    """How to reduce by bucket on this backend: "tiles" on a TPU, else "scatter"."""
    return "tiles" if jax.default_backend() == "tpu" else "scatter"


@functools.cache
def host_device() -> Any:
    """The CPU device, or None where the processes of JAX run without one."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def compiled(
    function: Callable[..., Any], static: tuple[int, ...] = (), *, wide: bool = False
) -> Callable[..., Any]:
    """A function jitted for the CPU device, from and to the host's NumPy.

    Aligned arrays get to the device and back without a copy. The code runs in the calling thread:
    threads of the caller share the processors better than the parts of one short call would.

    Args:
      function: of arrays, and hashable values at the static positions, to an array or a tuple of
        them. XLA computes what two results have in common once for each: let them share little.
      static: positions of arguments that are no arrays.
      wide: whether it computes with 64-bit numbers.
    """
    options = {"xla_cpu_multi_thread_eigen": False}
    jitted = jax.jit(function, static_argnums=static, compiler_options=options)

    def call(*arguments: Any) -> Any:
        with contextlib.ExitStack() as stack:  # each context costs as much as the call
            if wide:
                stack.enter_context(jax.enable_x64(True))
            if jax.default_backend() != "cpu":
                stack.enter_context(jax.default_device(host_device()))
            found = jitted(*arguments)
        return tuple(map(np.asarray, found)) if isinstance(found, tuple) else np.asarray(found)

    return call


def bucket_reduce(
    values: Array,
    bucket: Int[Array, " rows"],
    size: int,
    op: str,
    *,
    method: str | None = None,
) -> Array:
    """Minimum, maximum or sum of the values of every bucket.

    Two forms with the same bits: "scatter" writes every row into its bucket, which CPUs and GPUs do
    well; "tiles" compares every row with every bucket, 128 buckets at a time, and reduces: rows x
    size operations without a scatter, for TPUs, where a scatter runs row by row.

    Args:
      values: (rows,) integers.
      bucket: the bucket of every row; rows outside [0, size) count nowhere.
      size: number of buckets.
      op: "min" (empty buckets get the maximum of the type), "max" or "add" (empty buckets get 0).
      method: "scatter", "tiles", or None for the backend's.

    Returns:
      (size,) of the type of the values.

    Raises:
      ValueError: for an unknown op or method.
    """
    if op not in ("min", "max", "add"):
        raise ValueError(f"op={op!r} is not one of 'min', 'max', 'add'")
    method = default_method() if method is None else method
    if method not in ("scatter", "tiles"):
        raise ValueError(f"method={method!r} is not one of 'scatter', 'tiles'")
    empty = jnp.iinfo(values.dtype).max if op == "min" else 0
    if method == "scatter":
        start = jnp.full(size, empty, values.dtype)
        # Negative positions count from the end in NumPy's sense: send them out of bounds.
        position = jnp.where(bucket < 0, size, bucket)
        return getattr(start.at[position], op)(values, mode="drop")
    reduce = {"min": jnp.min, "max": jnp.max, "add": jnp.sum}[op]

    def one_tile(names: Int[Array, " tile"]) -> Array:
        own = jnp.where(
            names[:, None] == bucket[None], values[None], jnp.asarray(empty, values.dtype)
        )
        return reduce(own, axis=1).astype(values.dtype)

    tiles = -(-size // _TILE)
    names = jnp.arange(tiles * _TILE, dtype=bucket.dtype).reshape(tiles, _TILE)
    return jax.lax.map(one_tile, names).reshape(-1)[:size]


def combine_counts(
    order: tuple[UInt32[Array, " slots"], ...], counts: UInt32[Array, " slots"]
) -> tuple[tuple[UInt32[Array, " slots"], ...], UInt32[Array, " slots"]]:
    """Sort slots by their keys and add the counts of equal ones; empty slots go last.

    Args:
      order: the keys, the most significant first; empty slots have the largest.
      counts: 0 in empty slots; sums stop at 2^32 - 1.

    Returns:
      The distinct keys in ascending order and their counts; behind them slots with `EMPTY_HASH` in
      every key and count 0.
    """
    slots = counts.shape[0]
    *keys, counts = jax.lax.sort((*order, counts), num_keys=len(order))
    first = jnp.zeros(slots, bool).at[0].set(True)
    for key in keys:
        first = first.at[1:].set(first[1:] | (key[1:] != key[:-1]))
    segment = jnp.cumsum(first, dtype=jnp.int32) - 1
    empty = jnp.full(slots, EMPTY_HASH, jnp.uint32)
    merged = tuple(empty.at[segment].set(key, indices_are_sorted=True) for key in keys)
    return merged, _saturating_segment_sum(counts, segment)


def _saturating_segment_sum(
    counts: UInt32[Array, " slots"], segment: Int[Array, " slots"]
) -> UInt32[Array, " slots"]:
    """Sums of 32-bit counts that stop at the maximum, added in halves of 16 bits."""
    half, low_bits = np.uint32(16), np.uint32(0xFFFF)
    zeros = jnp.zeros(counts.shape[0], jnp.uint32)
    low = zeros.at[segment].add(counts & low_bits, indices_are_sorted=True)
    high = zeros.at[segment].add(counts >> half, indices_are_sorted=True) + (low >> half)
    total = (high << half) | (low & low_bits)
    return jnp.where(high > low_bits, np.uint32(EMPTY_HASH), total)


def absorb(
    sketch: T,
    hashes: Lanes,
    valid: Bool[Array | np.ndarray, " rows"] | None,
    *,
    passes: Callable[[T, Lanes], Bool[Array, " rows"]],
    combine: Callable[[T, Lanes, UInt32[Array, " block"]], T],
    block: int,
) -> T:
    """Feed rows to a sketch that soon turns most of them away: only the others are sorted.

    Every round takes the next `block` rows that the sketch would still retain. A full sketch needs
    one round for thousands of rows, an empty one takes them all, block by block.

    Args:
      sketch: where to start.
      hashes: (rows,) hashes.
      valid: which rows count; None for all.
      passes: whether the sketch would retain a hash.
      combine: the sketch with a block of hashes added, given counts of 1, or 0 for no row.
      block: rows sorted at a time.

    Raises:
      ValueError: if shapes differ.
    """
    check_rows(hashes, valid)
    hi, lo = jnp.asarray(hashes.hi), jnp.asarray(hashes.lo)
    rows = hi.shape[0]
    if not rows:
        return sketch
    counted = jnp.ones(rows, bool) if valid is None else jnp.asarray(valid)
    block = min(block, rows)

    def pending_rows(state: tuple[T, Array]) -> Array:
        return state[1] & passes(state[0], Lanes(hi, lo))

    def one_round(state: tuple[T, Array]) -> tuple[T, Array]:
        pending = pending_rows(state)
        (where,) = jnp.nonzero(pending, size=block, fill_value=rows)
        taken = Lanes(
            *(half.at[where].get(mode="fill", fill_value=EMPTY_HASH) for half in (hi, lo))
        )
        counts = (where < rows).astype(jnp.uint32)
        return combine(state[0], Lanes(*taken), counts), pending.at[where].set(False, mode="drop")

    start = match_varying((jax.tree.map(jnp.asarray, sketch), counted), hi)
    return jax.lax.while_loop(lambda state: jnp.any(pending_rows(state)), one_round, start)[0]


def count_profile(
    counts: Int[Array | np.ndarray, " slots"] | UInt32[Array | np.ndarray, " slots"],
    scale: Float[Array | np.ndarray, ""] | np.floating,
    length: int,
    maximum: int,
) -> SketchProfile:
    """Profile of the sample from the counts of a uniform choice of its values.

    Args:
      counts: how often each retained value occurs; 0 for slots without a value.
      scale: number of distinct values that one retained value stands for.
      length: number of frequencies asked for.
      maximum: where counts stop.

    Returns:
      float64 if the counts are a NumPy array, else float32.

    Raises:
      ValueError: if length is not from 1 to maximum - 1.
    """
    if not 1 <= length < maximum:
        raise ValueError(
            f"length={length} is not from 1 to {maximum - 1}, the largest count that is known "
            "exactly; ask for fewer frequencies or build with wider counts"
        )
    host = isinstance(counts, np.ndarray)
    xp, kind = (np, np.float64) if host else (jnp, jnp.float32)
    slot = xp.where((counts > 0) & (counts <= length), counts, length + 1).astype(np.int32) - 1
    if host:
        histogram = np.bincount(slot, minlength=length + 1)[:length]
    else:
        histogram = bucket_reduce(jnp.ones(slot.shape, jnp.int32), jnp.asarray(slot), length, "add")
    number = counts.astype(kind)
    tail = (counts > length).astype(kind)
    return SketchProfile(
        f=(histogram * scale).astype(kind),
        d=(xp.sum(counts > 0) * scale).astype(kind),
        n=(xp.sum(number) * scale).astype(kind),
        d_tail=(xp.sum(tail) * scale).astype(kind),
        n_tail=(xp.sum(tail * number) * scale).astype(kind),
        s2_tail=(xp.sum(tail * number * (number - 1)) * scale).astype(kind),
        saturated=xp.asarray(xp.any(counts >= counts.dtype.type(maximum))),
    )
