"""Hashes of a column's values as a stream of blocks, computed by compiled code on the CPU.

`hash_column` gives the hash of every row by NumPy. The same bits come several times faster as
blocks of the values alone: numbers go to the compiled hash without a copy where Arrow holds them as
64-bit words, texts in rows of as many bytes as the longest of a block takes, the codes of a
dictionary look up hashes of its entries. Two blocks are hashed ahead while the caller works on one.

Columns of few rows, unusual types and hashes other than the two of numbers take the way of
`hash_column`, where nothing is compiled.
"""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int, Int32, UInt8, UInt32, UInt64

from jaxlab.ndv.columns import canonical_column, hash_column
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

BLOCK_ROWS = 2**19
"""Rows of a block of numbers, at most."""
_TEXT_ROWS = 2**17
_WIDTHS = (16, 32, 64, 128)
_MAX_WIDTH = 64
_AHEAD = 2


class HashedBlock(NamedTuple):
    """Hashes of consecutive values of a column.

    Attributes:
      lanes: the hashes, on the host; after `rows` of them anything may stand. Their number is a
        power of two, or small, see `is_compiled`.
      rows: number of values.
    """

    lanes: Lanes
    rows: int

    def words(self, where: Any = None) -> UInt64[np.ndarray, " chosen"]:
        """The hashes as 64-bit words: all, or those at positions or in a slice."""
        where = slice(self.rows) if where is None else where
        return join_words(Lanes(*(np.asarray(half)[where] for half in self.lanes)))


def block_of(words: UInt64[np.ndarray, " rows"]) -> HashedBlock:
    """A block of some hashes."""
    return HashedBlock(split_words(_padded(words)), len(words))


def is_compiled(block: HashedBlock) -> bool:
    """Whether compiled code works on a block: else it is small, or there is no CPU device."""
    return len(block.lanes.hi) >= MIN_COMPILED_ROWS and host_device() is not None


def hashed_blocks(
    column: Any, hasher: Hasher = FAST, *, serialize_nested: bool = False
) -> Iterator[HashedBlock]:
    """Blocks of the hashes of a column's values, in order; nulls are left out.

    Args:
      column: NumPy array of one dimension, Arrow array or chunked array.
      hasher: which hash.
      serialize_nested: whether lists, structs and maps are hashed by their serialisation.

    Raises:
      TypeError: if the type of the column has no canonical form.
      ValueError: if a NumPy array is not of one dimension.
    """
    tasks = _tasks(column, hasher, serialize_nested)
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


def _tasks(
    column: Any, hasher: Hasher, serialize_nested: bool
) -> Iterator[Callable[[], HashedBlock]]:
    """What hashes each block of a column."""
    if not isinstance(column, np.ndarray):
        import pyarrow as pa

        if isinstance(column, pa.ChunkedArray):
            for chunk in column.chunks:
                yield from _tasks(chunk, hasher, serialize_nested)
            return
        if isinstance(column, pa.DictionaryArray) and len(column) >= MIN_COMPILED_ROWS:
            yield from _dictionary_tasks(column, hasher, serialize_nested)
            return
    is_plain = hasher.hash_id in (0, 1) and host_device() is not None
    if not is_plain or len(column) < MIN_COMPILED_ROWS or getattr(column, "dictionary", None):
        yield functools.partial(_hash_by_rows, column, hasher, serialize_nested)
        return
    canonical = canonical_column(column[:1], serialize_nested=serialize_nested)
    step = _TEXT_ROWS if canonical.words is None else BLOCK_ROWS
    for start in range(0, len(column), step):
        rows = column[start : start + step]
        yield functools.partial(_hash_canonical, rows, hasher, serialize_nested)


def _hash_by_rows(column: Any, hasher: Hasher, serialize_nested: bool) -> HashedBlock:
    hashed = hash_column(column, hasher, serialize_nested=serialize_nested)
    return block_of(join_words(hashed.lanes)[hashed.valid])


def _dictionary_tasks(
    column: Any, hasher: Hasher, serialize_nested: bool
) -> Iterator[Callable[[], HashedBlock]]:
    """Looks up the hashes of a dictionary's entries by the codes of the rows."""
    values = hash_column(column.dictionary, hasher, serialize_nested=serialize_nested)
    words, codes = join_words(values.lanes), column.indices.drop_null().to_numpy()
    if not values.valid.all():
        codes = codes[values.valid[codes]]

    def look_up(own: np.ndarray) -> HashedBlock:
        return block_of(np.take(words, own))

    for start in range(0, len(codes), BLOCK_ROWS):
        yield functools.partial(look_up, codes[start : start + BLOCK_ROWS])


def _hash_canonical(column: Any, hasher: Hasher, serialize_nested: bool) -> HashedBlock:
    """Hashes of the values of some rows."""
    canonical = canonical_column(column, serialize_nested=serialize_nested)
    valid = None if canonical.valid.all() else canonical.valid
    if canonical.words is not None:
        if canonical.is_unsigned and canonical.words.max(initial=0) >= 2**63:
            return _hash_by_rows(column, hasher, serialize_nested)
        return _hash_numbers(canonical.words if valid is None else canonical.words[valid], hasher)
    assert canonical.data is not None and canonical.offsets is not None
    starts, lengths = canonical.offsets[:-1], np.diff(canonical.offsets).astype(np.int32)
    if valid is not None:
        starts, lengths = starts[valid], lengths[valid]
    words = _text_words(canonical.data, starts, lengths, hasher)
    return _hash_numbers(words, hasher) if hasher.hash_id == 0 else block_of(words)


def _hash_numbers(words: UInt64[np.ndarray, " rows"], hasher: Hasher) -> HashedBlock:
    halves = np.ascontiguousarray(_padded(words), "<u8").view("<u4")
    hashes = _hash_halves if len(words) < MIN_COMPILED_ROWS else _compiled_numbers()
    return HashedBlock(Lanes(*hashes(halves, hasher)), len(words))


def _hash_halves(halves: UInt32[Array | np.ndarray, " halves"], hasher: Hasher) -> Lanes:
    """Hashes of words that lie as pairs of halves, the lower one first."""
    return hash_words(Lanes(halves[1::2], halves[::2]), hasher)


@functools.cache
def _compiled_numbers() -> Callable[..., Lanes]:
    return compiled(_hash_halves, (1,))


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
