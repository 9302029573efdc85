"""Counting rows of values that are known: a table of hashes that compiled code looks rows up in.

A column of few values, or the heavy values of any column, need no sort: every row's hash is looked
up in one table slot, compared, and the entries are counted. Two values that fall into one slot do
not matter but for speed: the heavier takes it, and rows of the other come back as unknown.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Int64, UInt32, UInt64

from jaxlab.ndv.hashing import Lanes, split_words
from jaxlab.ndv.sketch import compiled
from jaxlab.ndv.streams import HashedBlock, is_compiled, padded_rows

_SLOTS_PER_VALUE = 64
_MAX_SLOTS = 2**20
# Windows of the lower half of a hash that are tried for a table in which no two values meet.
_SHIFTS = (0, 4, 8, 12)


class KnownWords(NamedTuple):
    """Values in a table.

    Attributes:
      words: their hashes.
      entry: for every slot 1 + the number of its value, or 0.
      known: the hashes behind an empty one, number 0.
      shift: bits of the lower half of a hash to skip before its slot.
      missing: numbers of the values that have no slot.
    """

    words: UInt64[np.ndarray, " values"]
    entry: Int32[np.ndarray, " slots"]
    known: Lanes
    shift: np.uint32
    missing: Int64[np.ndarray, " missing"]


def know_words(
    words: UInt64[np.ndarray, " values"], counts: Int[np.ndarray, " values"], capacity: int
) -> KnownWords:
    """A table of values.

    Args:
      words: different hashes.
      counts: their rows so far: of two in one slot the more frequent is kept.
      capacity: values that a table of this shape is for, at least as many as there are.
    """
    num_slots = min(_MAX_SLOTS, padded_rows(_SLOTS_PER_VALUE * capacity))
    known = np.zeros(capacity + 1, np.uint64)
    known[1 : len(words) + 1] = words
    lanes = split_words(known)
    ascending = np.argsort(counts, kind="stable")
    best = None
    for shift in map(np.uint32, _SHIFTS):
        entry = np.zeros(num_slots, np.int32)
        slot = (lanes.lo[1:][ascending] >> shift) & np.uint32(num_slots - 1)
        entry[slot] = ascending + 1  # of equal slots the last one, of most rows, stays
        missing = np.setdiff1d(np.arange(len(words)), entry[entry > 0] - 1)
        if best is None or len(missing) < len(best.missing):
            best = KnownWords(words, entry, lanes, shift, missing)
        if not len(missing):
            break
    assert best is not None
    return best


def find_words(
    hashes: Lanes,
    entry: Int32[Array | np.ndarray, " slots"],
    known: Lanes,
    shift: UInt32[Array | np.ndarray, ""] | np.uint32,
) -> Int32[Array | np.ndarray, " rows"]:
    """1 + the number of every row's value, or 0; NumPy in, NumPy out, else JAX.

    Args:
      hashes: (rows,) hashes.
      entry: of `KnownWords`, as are the others.
      known: the known hashes.
      shift: bits to skip.
    """
    slot = (hashes.lo >> shift) & np.uint32(len(entry) - 1)
    # A row whose hash is 0 may equal the empty entry: it is number 0, unknown, all the same.
    if isinstance(hashes.hi, np.ndarray):
        found = np.asarray(entry)[slot]
        same = (known.hi[found] == hashes.hi) & (known.lo[found] == hashes.lo)
        return np.where(same, found, np.int32(0))
    found = jnp.take(entry, slot, mode="clip")
    hi, lo = (jnp.take(half, found, mode="clip") for half in known)
    return jnp.where((hi == hashes.hi) & (lo == hashes.lo), found, np.int32(0))


def count_words(
    known: KnownWords, block: HashedBlock
) -> tuple[Int[np.ndarray, " values"], Int64[np.ndarray, " unknown"]]:
    """Rows of every known value, and the positions of all other rows.

    Args:
      known: the values.
      block: the rows.
    """
    find = _compiled_find() if is_compiled(block) else find_words
    numbers = find(block.lanes, known.entry, known.known, known.shift)[: block.rows]
    counts = np.bincount(numbers, minlength=len(known.words) + 1)
    unknown = np.flatnonzero(numbers == 0) if counts[0] else np.zeros(0, np.int64)
    return counts[1:], unknown


@functools.cache
def _compiled_find() -> Callable[..., np.ndarray]:
    return compiled(find_words)
