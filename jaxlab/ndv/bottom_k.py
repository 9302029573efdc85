"""Bottom-k with counts: the K smallest hashes of a sample's values, and how often each occurs.

The hashes below theta, the (K + 1)-th smallest, are a uniform choice of the distinct values, the
same wherever the rows lie; their counts are exact. Everything that a profile says of the choice,
divided by theta / 2^64, holds for the sample. With at most K distinct values the profile is exact.
The relative standard deviation of d is about 1 / sqrt(K), that of f_i about sqrt(d / (K f_i)).

Only rows below theta are sorted. Sketches of K + 1 slots merge in any order to the same bits: a
hash among the K + 1 smallest of all rows is among those of every part that has it.

`merge` keeps K hashes of all. `union` keeps every hash below the smallest theta, on the host: of
many machines with K hashes each it makes one sketch of many times K, in as many slots as needed.

References:
  Gibbons, "Distinct sampling for highly-accurate answers to distinct values queries", VLDB 2001;
  Bar-Yossef et al., "Counting distinct elements in a data stream", RANDOM 2002;
  Dasgupta, Lang, Rhodes, Thaler, "A framework for estimating stream expression cardinalities", ICDT
  2016, for the union below the smallest theta.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32, UInt64

from jaxlab.ndv.hashing import FAST, Hasher, Lanes, join_words, split_words
from jaxlab.ndv.sketch import (
    EMPTY_HASH,
    SketchProfile,
    absorb,
    check_capacity,
    check_same_hasher,
    check_same_size,
    combine_counts,
    count_profile,
    gather_over_axis,
    register_sketch,
)

MAX_COUNT = 2**32 - 1
_MIN_SLOTS = 3
_MIN_BLOCK = 1024


@register_sketch(("hi", "lo", "count"))
@dataclasses.dataclass(frozen=True)
class BottomK:
    """The K + 1 smallest hashes in ascending order, and their counts.

    Attributes:
      hi: upper halves, uint32 of shape (..., K + 1); 2^32 - 1 in empty slots.
      lo: lower halves.
      count: rows of each hash, stopping at 2^32 - 1; 0 in empty slots, which come last.
      hasher: the hash, static.
    """

    hi: UInt32[Array | np.ndarray, "*columns slots"]
    lo: UInt32[Array | np.ndarray, "*columns slots"]
    count: UInt32[Array | np.ndarray, "*columns slots"]
    hasher: Hasher


def empty(capacity: int, *, hasher: Hasher = FAST) -> BottomK:
    """A sketch that has seen nothing.

    Args:
      capacity: K, the number of hashes that a full sketch retains, 2 to 2^24.
      hasher: the hash that its rows will have.

    Raises:
      ValueError: if the capacity is out of range.
    """
    check_capacity(capacity)
    nothing = jnp.full(capacity + 1, EMPTY_HASH, jnp.uint32)
    return BottomK(nothing, nothing, jnp.zeros(capacity + 1, jnp.uint32), hasher)


def update(
    sketch: BottomK,
    hashes: Lanes,
    valid: Bool[Array | np.ndarray, " rows"] | None = None,
    *,
    block: int | None = None,
) -> BottomK:
    """The sketch with rows added; the same for any order and any cut into calls.

    Args:
      sketch: of one column.
      hashes: (rows,) hashes by the sketch's hasher.
      valid: which rows count; nulls and padding do not. All by default.
      block: rows sorted at a time, by default max(1024, K).

    Raises:
      ValueError: if shapes differ.
    """
    slots = sketch.hi.shape[-1]
    return absorb(
        sketch,
        hashes,
        valid,
        passes=lambda state, rows: ~_less(Lanes(state.hi[-1], state.lo[-1]), rows),
        combine=_add,
        block=max(_MIN_BLOCK, slots - 1) if block is None else block,
    )


def merge(a: BottomK, b: BottomK) -> BottomK:
    """The sketch of the rows of both, of one column; associative and commutative.

    Raises:
      ValueError: if the capacities or the hashers differ.
    """
    check_same_hasher(a.hasher, b.hasher)
    check_same_size("capacities", a.hi.shape[-1] - 1, b.hi.shape[-1] - 1)
    return _add(a, Lanes(jnp.asarray(b.hi), jnp.asarray(b.lo)), jnp.asarray(b.count))


def from_counts(
    words: UInt64[np.ndarray, " values"],
    counts: Int[np.ndarray, " values"],
    capacity: int,
    *,
    hasher: Hasher = FAST,
) -> BottomK:
    """The sketch of values that were counted already, on the host.

    Args:
      words: different hashes by the hasher, in any order.
      counts: their rows, at least 1.
      capacity: K, 2 to 2^24.
      hasher: the hash.

    Raises:
      ValueError: if the capacity is out of range.
    """
    check_capacity(capacity)
    slots = capacity + 1
    smallest = np.argsort(words, kind="stable")[:slots]
    hi, lo = (np.full(slots, EMPTY_HASH, np.uint32) for _ in range(2))
    count = np.zeros(slots, np.uint32)
    hi[: len(smallest)], lo[: len(smallest)] = split_words(words[smallest])
    count[: len(smallest)] = np.minimum(counts[smallest], MAX_COUNT)
    return BottomK(hi, lo, count, hasher)


class Held(NamedTuple):
    """The values below a threshold, on the host.

    Attributes:
      words: their hashes, ascending.
      counts: their rows, at least 1.
      limit: the threshold, above all of them; None if there is none, so that these are all values.
    """

    words: UInt64[np.ndarray, " values"]
    counts: Int[np.ndarray, " values"]
    limit: int | None


def held(sketch: BottomK) -> Held:
    """What a sketch of one column holds; a last slot in use is its threshold."""
    words, counts = join_words(Lanes(sketch.hi, sketch.lo)), np.asarray(sketch.count)
    if counts[-1]:
        return Held(words[:-1], counts[:-1].astype(np.int64), int(words[-1]))
    used = counts > 0
    return Held(words[used], counts[used].astype(np.int64), None)


def from_held(values: Held, hasher: Hasher = FAST) -> BottomK:
    """The sketch of some values in as many slots as needed, 3 at least, on the host.

    The slot of a threshold has the count `MAX_COUNT`, whatever was counted of it: the values below
    and the threshold alone decide the bits.

    Args:
      values: at least two if there is a threshold.
      hasher: the hash.
    """
    number, has_limit = len(values.words), values.limit is not None
    slots = max(number + 1, _MIN_SLOTS)
    hi, lo = (np.full(slots, EMPTY_HASH, np.uint32) for _ in range(2))
    count = np.zeros(slots, np.uint32)
    hi[:number], lo[:number] = split_words(values.words)
    count[:number] = np.minimum(values.counts, MAX_COUNT)
    if has_limit:
        hi[-1:], lo[-1:] = split_words(np.array([values.limit], np.uint64))
        count[-1] = MAX_COUNT
    return BottomK(hi, lo, count, hasher)


def cut(values: Held, most: int) -> Held:
    """The smallest `most` values at most; the next one then is the threshold."""
    if len(values.words) <= most:
        return values
    return Held(values.words[:most], values.counts[:most], int(values.words[most]))


def add_counts(values: Held, more: Held) -> Held:
    """All values of two below the lower threshold, with the counts added."""
    limit = min((x.limit for x in (values, more) if x.limit is not None), default=None)
    a, b = (_below(x, limit) for x in (values, more))
    if len(a.words) < len(b.words):
        a, b = b, a
    if not len(b.words):
        return Held(a.words, a.counts, limit)
    place = np.searchsorted(a.words, b.words)
    is_new = np.append(a.words, np.uint64(0))[place] != b.words
    is_new |= place == len(a.words)
    counts = a.counts.copy()
    counts[place[~is_new]] += b.counts[~is_new]
    if not is_new.any():
        return Held(a.words, counts, limit)
    words = np.insert(a.words, place[is_new], b.words[is_new])
    return Held(words, np.insert(counts, place[is_new], b.counts[is_new]), limit)


def union(a: BottomK, b: BottomK, most: int) -> BottomK:
    """The sketch of all values below the smaller threshold; associative and commutative.

    Any capacities. The threshold of the result is F, the smaller of T, the lowest threshold of all
    parts, and the (most + 1)-th smallest value below T of all rows. A partial union stops at F or
    above, since its parts are some of the parts, and its values some of the values; so it holds all
    that F needs, and any order of merging with one `most` ends in the same bits.

    Args:
      a: of one column; NumPy or JAX.
      b: likewise.
      most: values to keep, at least 2; of more the smallest.

    Returns:
      In NumPy, in as many slots as needed, see `from_held`. Counts stop at 2^32 - 1.

    Raises:
      ValueError: if the hashers differ or `most` is out of range.
    """
    check_same_hasher(a.hasher, b.hasher)
    check_capacity(most)
    return from_held(cut(add_counts(held(a), held(b)), most), a.hasher)


def union_profile(sketches: Sequence[BottomK], length: int) -> SketchProfile:
    """Profile of the rows of many machines from the union of their sketches.

    Args:
      sketches: of one column, of any capacities, NumPy or JAX.
      length: number of frequencies asked for.

    Raises:
      ValueError: if there is none, hashers differ or length is not positive.
    """
    if not sketches:
        raise ValueError("sketches is empty; wanted at least one")
    for sketch in sketches:
        check_same_hasher(sketches[0].hasher, sketch.hasher)
    parts = [held(sketch) for sketch in sketches]
    limit = min((part.limit for part in parts if part.limit is not None), default=None)
    parts = [_below(part, limit) for part in parts]
    words = np.concatenate([part.words for part in parts])
    values, place = np.unique(words, return_inverse=True)
    counts = np.concatenate([part.counts for part in parts])
    total = np.bincount(place, counts, len(values)).astype(np.int64)
    scale = np.float64(1 if limit is None else 2**64 / limit)
    return count_profile(np.minimum(total, MAX_COUNT), scale, length, MAX_COUNT)


def merge_over_axis(sketch: BottomK, axis_name: str) -> BottomK:
    """The merge of every device's sketch, the same on all; inside `shard_map`.

    Gathers the sketches, 12 (K + 1) bytes a device, and sorts them once.
    """
    every = gather_over_axis((sketch.hi, sketch.lo, sketch.count), axis_name)
    hi, lo, count = (jnp.asarray(leaf).reshape(-1) for leaf in every)
    return _smallest(Lanes(hi, lo), count, sketch.hi.shape[-1], sketch.hasher)


def theta(sketch: BottomK) -> Float[Array | np.ndarray, "*columns"]:
    """Share of all hashes that the sketch retains: 1 while it has at most K distinct ones.

    float64 for NumPy arrays, else float32.
    """
    host = isinstance(sketch.hi, np.ndarray)
    xp, kind = (np, np.float64) if host else (jnp, jnp.float32)
    last = (sketch.hi[..., -1].astype(kind) + sketch.lo[..., -1].astype(kind) * kind(2.0**-32)) * (
        kind(2.0**-32)
    )
    return xp.where(sketch.count[..., -1] > 0, last, kind(1))


def distinct(sketch: BottomK) -> Float[Array | np.ndarray, "*columns"]:
    """Estimate of the number of distinct values: retained ones / theta; exact up to K."""
    retained = (sketch.count[..., :-1] > 0).sum(axis=-1) / theta(sketch)
    return np.asarray(retained) if isinstance(sketch.count, np.ndarray) else retained


def profile(sketch: BottomK, length: int) -> SketchProfile:
    """Profile of the rows that one column's sketch has seen; exact up to K distinct values.

    Args:
      sketch: of one column; use `jax.vmap` for many.
      length: number of frequencies asked for.

    Returns:
      f_1 ... f_length, d, n and the rest; float64 if the arrays are NumPy's, else float32.

    Raises:
      ValueError: if length is not positive.
    """
    return count_profile(sketch.count[:-1], 1.0 / theta(sketch), length, MAX_COUNT)


def _below(values: Held, limit: int | None) -> Held:
    if limit is None or limit == values.limit:
        return values
    end = int(np.searchsorted(values.words, np.uint64(limit)))
    return Held(values.words[:end], values.counts[:end], limit)


def _less(a: Lanes, b: Lanes) -> Array:
    return jnp.asarray((a.hi < b.hi) | ((a.hi == b.hi) & (a.lo < b.lo)))


def _add(sketch: BottomK, hashes: Lanes, counts: UInt32[Array, " block"]) -> BottomK:
    hi = jnp.concatenate([sketch.hi, hashes.hi])
    lo = jnp.concatenate([sketch.lo, hashes.lo])
    count = jnp.concatenate([sketch.count, counts])
    return _smallest(Lanes(hi, lo), count, sketch.hi.shape[-1], sketch.hasher)


def _smallest(hashes: Lanes, counts: UInt32[Array, " slots"], size: int, hasher: Hasher) -> BottomK:
    (hi, lo), count = combine_counts((jnp.asarray(hashes.hi), jnp.asarray(hashes.lo)), counts)
    return BottomK(hi[:size], lo[:size], count[:size], hasher)
