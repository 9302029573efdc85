"""Hashes of a column's values as a stream of blocks, computed by compiled code on the CPU.

`hash_column` gives the hash of every row by NumPy. The same bits come several times faster as
blocks of the values alone: numbers go to the compiled hash without a copy where Arrow holds them as
64-bit words, texts in rows of as many bytes as the longest of a block takes. Blocks in which values
repeat, by the look of their first rows, are counted by Arrow, so that each value is hashed once.
Two blocks are worked on ahead while the caller takes one.

A sketch that has seen many values changes by few rows. It tells so by a `Limit`, and gets only
rows within: those are found by a comparison, which is all that most rows cost.

Columns of few rows, unusual types and hashes other than the two of numbers take the way of
`hash_column`, where nothing is compiled.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, UInt8, UInt32, UInt64

from jaxlab.ndv import fused
from jaxlab.ndv.columns import NAN_BITS, canonical_column, hash_column
from jaxlab.ndv.hashing import (
    FAST,
    SHORT_TEXT,
    Hasher,
    Lanes,
    hash_words,
    join_words,
    murmur3_x64_128,
    murmur3_x64_128_texts,
    split_words,
    text_words_of_rows,
)
from jaxlab.ndv.sketch import MIN_COMPILED_ROWS, compiled, host_device

BLOCK_ROWS = 2**18
"""Rows of a block of numbers, at most."""
_TEXT_ROWS = 2**16
_WIDTHS = (16, 32, 64, 128)
_MAX_WIDTH = 64
_AHEAD = 2
_PROBE_ROWS, _PROBE_VALUES = 4096, 2800
# More rows than one in so many are hashed all: to pick them out would take longer.
_MIN_LIMIT_SHARE = 8


class Limit(NamedTuple):
    """The rows that may change a sketch.

    Attributes:
      precision: log2 of the number of registers, which the top bits of a hash choose; 0 if it has
        none.
      most: the largest that the 32 bits behind them may be.
    """

    precision: int
    most: int


@dataclasses.dataclass(frozen=True)
class HashedBlock:
    """Hashes of consecutive values of a column.

    Attributes:
      lanes: the hashes, on the host; after `rows` of them anything may stand. Their number is a
        power of two, or small, see `is_compiled`.
      rows: number of hashes.
      num_values: number of values that the block stands for: `rows` unless some were left out, or
        equal ones counted.
      counts: values of every hash, which then all differ; None for one each.
      all_rows: gives the block with a hash for every value; None if this one is it.
    """

    lanes: Lanes
    rows: int
    num_values: int
    counts: Int[np.ndarray, " rows"] | None = None
    all_rows: Callable[[], "HashedBlock"] | None = None

    def words(self, where: Any = None) -> UInt64[np.ndarray, " chosen"]:
        """The hashes as 64-bit words: all, or those at positions or in a slice."""
        where = slice(self.rows) if where is None else where
        return join_words(Lanes(*(np.asarray(half)[where] for half in self.lanes)))


def block_of(words: UInt64[np.ndarray, " rows"]) -> HashedBlock:
    """A block of some hashes."""
    return HashedBlock(split_words(_padded(words)), len(words), len(words))


def block_of_array(array: Any, hasher: Hasher) -> HashedBlock:
    """The hashes of an array of `fused.arrays_of`."""
    lanes, number = fused.hash_rows(array, hasher)
    return HashedBlock(lanes, number, number)


def is_compiled(block: HashedBlock) -> bool:
    """Whether compiled code works on a block: else it is small, or there is no CPU device."""
    return len(block.lanes.hi) >= MIN_COMPILED_ROWS and host_device() is not None


def hashed_blocks(
    column: Any,
    hasher: Hasher = FAST,
    *,
    serialize_nested: bool = False,
    limit: Callable[[], Limit | None] | None = None,
) -> Iterator[HashedBlock]:
    """Blocks of the hashes of a column's values, in order; nulls are left out.

    Args:
      column: NumPy array of one dimension, Arrow array or chunked array.
      hasher: which hash.
      serialize_nested: whether lists, structs and maps are hashed by their serialisation.
      limit: tells which rows the caller needs; asked from other threads, for every block. All rows
        by default. Rows outside may come all the same.

    Raises:
      TypeError: if the type of the column has no canonical form.
      ValueError: if a NumPy array is not of one dimension.
    """
    tasks = _Work(hasher, serialize_nested, limit).tasks(column)
    if len(column) < 2 * MIN_COMPILED_ROWS:
        yield from (task() for task in tasks)
    else:
        yield from _ahead(tasks)


def padded_rows(rows: int) -> int:
    """The next power of two."""
    return 1 << max(rows - 1, 0).bit_length()


def _ahead(tasks: Iterator[Callable[[], HashedBlock]]) -> Iterator[HashedBlock]:
    """The results of tasks in order, some of them computed before they are asked for."""
    with concurrent.futures.ThreadPoolExecutor(min(_AHEAD, os.cpu_count() or 1)) as pool:
        waiting: collections.deque[concurrent.futures.Future[HashedBlock]] = collections.deque()
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Work:
    """How the blocks of a column are hashed."""

    def __init__(
        self, hasher: Hasher, serialize_nested: bool, limit: Callable[[], Limit | None] | None
    ):
        self.hasher, self.serialize_nested, self.limit = hasher, serialize_nested, limit
        self.is_counted = True

    def tasks(self, column: Any) -> Iterator[Callable[[], HashedBlock]]:
        """What hashes each block of a column."""
        if not isinstance(column, np.ndarray):
            import pyarrow as pa

            if isinstance(column, pa.ChunkedArray):
                for chunk in column.chunks:
                    yield from self.tasks(chunk)
                return
            if isinstance(column, pa.DictionaryArray):
                yield from self._dictionary_tasks(column)
                return
        if len(column) < MIN_COMPILED_ROWS or host_device() is None:
            yield functools.partial(self.hash_by_rows, column)
            return
        canonical = canonical_column(column[:1], serialize_nested=self.serialize_nested)
        step = _TEXT_ROWS if canonical.words is None else BLOCK_ROWS
        for start in range(0, len(column), step):
            yield functools.partial(self.hash_rows, column[start : start + step])

    def hash_by_rows(self, column: Any) -> HashedBlock:
        hashed = hash_column(column, self.hasher, serialize_nested=self.serialize_nested)
        return block_of(join_words(hashed.lanes)[hashed.valid])

    def _dictionary_tasks(self, column: Any) -> Iterator[Callable[[], HashedBlock]]:
        """Counts the codes of the rows, or looks up the hashes of a large dictionary's entries."""
        nested = self.serialize_nested
        values = hash_column(column.dictionary, self.hasher, serialize_nested=nested)
        words, codes = join_words(values.lanes), column.indices.drop_null().to_numpy()
        if not values.valid.all():
            codes = codes[values.valid[codes]]

        def look_up(own: np.ndarray) -> HashedBlock:
            return block_of(np.take(words, own))

        def count(own: np.ndarray) -> HashedBlock:
            counts = np.bincount(own, minlength=len(words))
            return _counted_block(words, counts, functools.partial(look_up, own))

        step = min(len(column), BLOCK_ROWS)
        task = count if _PROBE_VALUES * len(words) < _PROBE_ROWS * step // 4 else look_up
        for start in range(0, len(codes), BLOCK_ROWS):
            yield functools.partial(task, codes[start : start + BLOCK_ROWS])

    def hash_rows(self, column: Any) -> HashedBlock:
        """Hashes of the values of some rows, each once if they repeat."""
        if self.is_counted and len(column) >= MIN_COMPILED_ROWS:
            counted = _count_values(column)
            if counted is not None:
                values, counts = counted
                words = self.hash_by_rows(values).words()
                rows = functools.partial(self.hash_each, column)
                return _counted_block(words, counts, rows)
            self.is_counted = False  # the next block is like this one
        return self.hash_each(column)

    def hash_each(self, column: Any) -> HashedBlock:
        """Hashes of the values of some rows."""
        if self.hasher.hash_id not in (0, 1):
            return self.hash_by_rows(column)
        arrays = fused.arrays_of(column, self.hasher) if self.limit is None else None
        if arrays is not None:
            return block_of_array(arrays[0], self.hasher)
        if not isinstance(column, np.ndarray) and column.null_count:
            column = column.drop_null()
        doubles = _doubles(column)
        if doubles is not None:
            return self._hash_numbers(doubles, is_float=True)
        canonical = canonical_column(column, serialize_nested=self.serialize_nested)
        if canonical.words is not None:
            words = canonical.words if canonical.valid.all() else canonical.words[canonical.valid]
            if canonical.is_unsigned and words.max(initial=0) >= 2**63:
                return self.hash_by_rows(column)
            return self._hash_numbers(words)
        assert canonical.data is not None and canonical.offsets is not None
        starts, lengths = canonical.offsets[:-1], np.diff(canonical.offsets).astype(np.int32)
        if not canonical.valid.all():
            starts, lengths = starts[canonical.valid], lengths[canonical.valid]
        words = _text_words(canonical.data, starts, lengths, self.hasher)
        return self._hash_numbers(words) if self.hasher.hash_id == 0 else block_of(words)

    def _hash_numbers(
        self, words: UInt64[np.ndarray, " rows"], *, is_float: bool = False
    ) -> HashedBlock:
        halves = np.ascontiguousarray(_padded(words), "<u8").view("<u4")
        limit = self.limit() if self.limit is not None else None
        if len(words) < MIN_COMPILED_ROWS:
            lanes = _hash_halves(halves, self.hasher, is_float)
        elif limit is None or limit.most >= 2**32 // _MIN_LIMIT_SHARE:
            lanes = Lanes(*_compiled(_hash_halves, 1, 2)(halves, self.hasher, is_float))
        else:
            most, up = np.uint32(limit.most), np.uint32(limit.precision)
            within = _compiled(is_within, 1, 2)(halves, self.hasher, is_float, most, up)
            chosen = words[np.flatnonzero(within[: len(words)])]
            lanes = _hash_halves(chosen.astype("<u8").view("<u4"), self.hasher, is_float)
            return HashedBlock(lanes, len(chosen), len(words))
        return HashedBlock(lanes, len(words), len(words))


def is_within(
    halves: UInt32[Array | np.ndarray, " halves"],
    hasher: Hasher,
    is_float: bool,
    most: UInt32[Array | np.ndarray, ""] | np.uint32,
    precision: UInt32[Array | np.ndarray, ""] | np.uint32,
) -> Bool[Array | np.ndarray, " rows"]:
    """Which words have hashes within a `Limit`; NumPy in, NumPy out, else JAX.

    Args:
      halves: of the words, the lower one first.
      hasher: the hash.
      is_float: whether the words are the bits of any floats.
      most: of the limit.
      precision: of the limit.
    """
    hashes = _hash_halves(halves, hasher, is_float)
    # A shift by 32, where there are no registers, leaves nothing.
    rest = (hashes.hi << precision) | (hashes.lo >> (np.uint32(32) - precision))
    return rest <= most


def _hash_halves(
    halves: UInt32[Array | np.ndarray, " halves"], hasher: Hasher, is_float: bool
) -> Lanes:
    """Hashes of words that lie as pairs of halves, the lower one first."""
    pairs = halves.reshape(-1, 2)  # XLA reads these about twice as fast as every second half
    words = Lanes(pairs[:, 1], pairs[:, 0])
    return hash_words(_canonical_floats(words) if is_float else words, hasher)


def _canonical_floats(words: Lanes) -> Lanes:
    """The bits of floats with 0.0 for -0.0 and one NaN."""
    xp = np if isinstance(words.hi, np.ndarray) else jnp
    size, infinity = words.hi & np.uint32(0x7FFFFFFF), np.uint32(0x7FF00000)
    is_nan = (size > infinity) | ((size == infinity) & (words.lo != 0))
    hi = xp.where((size == 0) & (words.lo == 0), np.uint32(0), words.hi)
    lo = xp.where(is_nan, np.uint32(NAN_BITS & 0xFFFFFFFF), words.lo)
    return Lanes(xp.where(is_nan, np.uint32(NAN_BITS >> 32), hi), lo)


def _doubles(column: Any) -> UInt64[np.ndarray, " rows"] | None:
    """The bits of a column of 64-bit floats without nulls; None for any other."""
    if not isinstance(column, np.ndarray):
        import pyarrow as pa

        if column.type != pa.float64():
            return None
        column = column.to_numpy()
    return np.ascontiguousarray(column).view(np.uint64) if column.dtype == np.float64 else None


def _count_values(column: Any) -> tuple[Any, Int[np.ndarray, " values"]] | None:
    """The values of some rows and their numbers of rows; None if few repeat in the first ones."""
    import pyarrow as pa
    import pyarrow.types as types

    if isinstance(column, np.ndarray):
        if column.dtype.kind not in "iuf":
            return None
        column = pa.array(column)
    kind = column.type
    is_text = types.is_string(kind) or types.is_large_string(kind)
    if not (is_text or types.is_integer(kind) or types.is_floating(kind)):
        return None
    if len(column.slice(0, _PROBE_ROWS).unique()) > _PROBE_VALUES:
        return None
    pairs = column.value_counts()
    values, counts = pairs.field(0), pairs.field(1).to_numpy()
    if values.null_count:
        is_value = values.is_valid()
        values, counts = values.filter(is_value), counts[is_value.to_numpy(zero_copy_only=False)]
    return values, counts


def _counted_block(
    words: UInt64[np.ndarray, " values"],
    counts: Int[np.ndarray, " values"],
    all_rows: Callable[[], HashedBlock],
) -> HashedBlock:
    """A block of values that were counted; those of one hash, such as -0.0 and 0.0, together."""
    words, place = np.unique(words[counts > 0], return_inverse=True)
    counts = np.bincount(place, counts[counts > 0], len(words)).astype(np.int64)
    return HashedBlock(split_words(words), len(words), int(counts.sum()), counts, all_rows)


@functools.cache
def _compiled(function: Callable[..., Any], *static: int) -> Callable[..., Any]:
    return compiled(function, static)


def _text_words(
    data: UInt8[np.ndarray, " bytes"],
    starts: Int[np.ndarray, " rows"],
    lengths: Int32[np.ndarray, " rows"],
    hasher: Hasher,
) -> UInt64[np.ndarray, " rows"]:
    """Words of texts: for hash id 0 those that are hashed, for id 1 the hashes."""
    longest = int(lengths.max(initial=0))
    if longest <= SHORT_TEXT and hasher.hash_id == 0:
        return _words_of_width(data, starts, lengths, 8, hasher)
    if longest <= _MAX_WIDTH:
        width = -(-max(longest, 1) // 16) * 16
        return _words_of_width(data, starts, lengths, width, hasher)
    words = np.zeros(len(starts), np.uint64)
    kind = np.searchsorted(_WIDTHS, lengths)
    for index in np.unique(kind):
        chosen = np.flatnonzero(kind == index)
        own = (data, starts[chosen], lengths[chosen])
        if index < len(_WIDTHS):
            words[chosen] = _words_of_width(*own, _WIDTHS[index], hasher)
        else:
            words[chosen] = _murmur_of_any_length(*own, hasher.seed)
    return words


def _words_of_width(
    data: UInt8[np.ndarray, " bytes"],
    starts: Int[np.ndarray, " rows"],
    lengths: Int32[np.ndarray, " rows"],
    width: int,
    hasher: Hasher,
) -> UInt64[np.ndarray, " rows"]:
    """The same of texts of at most `width` bytes."""
    rows, seed = len(starts), hasher.seed
    texts = _gather(data, starts, width)
    make = text_words_of_rows if hasher.hash_id == 0 else murmur3_x64_128_texts
    if rows < MIN_COMPILED_ROWS // 16:
        return np.asarray(make(texts, lengths, seed))
    return _compiled_texts(make)(_padded(texts), _padded(lengths), np.uint64(seed))[:rows]


@functools.cache
def _compiled_texts(make: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return compiled(make, wide=True)


def _gather(
    data: UInt8[np.ndarray, " bytes"], starts: Int[np.ndarray, " rows"], width: int
) -> UInt64[np.ndarray, "rows words"]:
    """The `width` bytes from every start, as little-endian words; anything behind the last."""
    last = len(data) - width
    late = np.flatnonzero(starts > last)
    if last < 0:
        data, last = np.concatenate([data, np.zeros(width, np.uint8)]), len(data)
        late = late[:0]
    # Overlapping windows as items of one opaque type: NumPy copies each by one move.
    windows = np.ndarray((last + 1,), f"V{width}", buffer=data, strides=(1,))
    rows = windows[np.minimum(starts, last) if len(late) else starts]
    if len(late):
        tail = np.concatenate([data[last:], np.zeros(width, np.uint8)])
        windows = np.ndarray((width + 1,), f"V{width}", buffer=tail, strides=(1,))
        rows[late] = windows[starts[late] - last]
    return rows.view("<u8").reshape(len(starts), width // 8)


def _murmur_of_any_length(
    data: UInt8[np.ndarray, " bytes"],
    starts: Int[np.ndarray, " rows"],
    lengths: Int32[np.ndarray, " rows"],
    seed: int,
) -> UInt64[np.ndarray, " rows"]:
    """The same for long texts, by NumPy."""
    ends = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    parts = [data[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    return murmur3_x64_128(np.concatenate([data[:0], *parts]), ends, seed)[0]


def _padded(rows: np.ndarray) -> np.ndarray:
    """Many rows with zeros behind them, to a power of two."""
    missing = 0 if len(rows) < MIN_COMPILED_ROWS // 16 else padded_rows(len(rows)) - len(rows)
    if not missing:
        return rows
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
