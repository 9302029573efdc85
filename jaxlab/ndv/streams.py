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

import jax
import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8, UInt32, UInt64

from jaxlab.ndv.columns import canonical_column, hash_column
from jaxlab.ndv.hashing import (
    FAST,
    Hasher,
    Lanes,
    hash_bytes,
    hash_lanes_of_texts,
    hash_words,
)
from jaxlab.ndv.sketch import MIN_COMPILED_ROWS, compiled, host_device

BLOCK_ROWS = 2**18
"""Rows of a block of numbers, at most."""
_TEXT_ROWS = 2**16
_WIDTHS = (16, 32, 48, 64, 128, 256, 512, 1024)
_AHEAD = 2


class HashedBlock(NamedTuple):
    """Hashes of consecutive values of a column.

    Attributes:
      lanes: the hashes, on the host or the CPU device; after `rows` of them anything may stand.
      rows: number of values.
    """

    lanes: Lanes
    rows: int

    def words(self) -> UInt64[np.ndarray, " rows"]:
        """The hashes as 64-bit words."""
        return words_at(self.lanes, slice(self.rows))


def words_at(lanes: Lanes, where: Any) -> UInt64[np.ndarray, " chosen"]:
    """The 64-bit words of some hashes, on the host.

    Args:
      lanes: (rows,) hashes.
      where: positions, a mask or a slice.
    """
    hi, lo = (np.asarray(half)[where] for half in lanes)
    words = np.empty((len(hi), 2), "<u4")
    words[:, 0], words[:, 1] = lo, hi
    return words.view("<u8").reshape(-1)


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


def room_for(rows: int) -> Lanes:
    """Zeros for the hashes of so many rows: a power of two where compiled code will take them."""
    size = rows if has_room(rows) else padded_rows(rows)
    return Lanes(np.zeros(size, np.uint32), np.zeros(size, np.uint32))


def has_room(size: int) -> bool:
    """Whether code for arrays of that length is compiled, or NumPy works on them."""
    return size < MIN_COMPILED_ROWS or size == padded_rows(size)


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
    canonical = canonical_column(column, serialize_nested=serialize_nested)
    if canonical.words is not None:
        words = canonical.words if canonical.valid.all() else canonical.words[canonical.valid]
        for start in range(0, len(words), BLOCK_ROWS):
            yield functools.partial(_hash_numbers, words[start : start + BLOCK_ROWS], hasher)
        return
    assert canonical.data is not None and canonical.offsets is not None
    texts = _Texts(canonical.data, canonical.offsets, canonical.valid, canonical.valid.all())
    for start in range(0, len(column), _TEXT_ROWS):
        yield functools.partial(_hash_texts, texts, slice(start, start + _TEXT_ROWS), hasher)


def _hash_by_rows(column: Any, hasher: Hasher, serialize_nested: bool) -> HashedBlock:
    hashed = hash_column(column, hasher, serialize_nested=serialize_nested)
    rows = int(hashed.valid.sum())
    lanes = room_for(rows)
    for half, given in zip(lanes, hashed.lanes, strict=True):
        half[:rows] = np.asarray(given)[hashed.valid]
    return HashedBlock(lanes, rows)


def _dictionary_tasks(
    column: Any, hasher: Hasher, serialize_nested: bool
) -> Iterator[Callable[[], HashedBlock]]:
    """Looks up the hashes of a dictionary's entries by the codes of the rows."""
    values = hash_column(column.dictionary, hasher, serialize_nested=serialize_nested)
    codes = column.indices.drop_null().to_numpy(zero_copy_only=False)
    if not values.valid.all():
        codes = codes[values.valid[codes]]

    def look_up(own: np.ndarray) -> HashedBlock:
        lanes = room_for(len(own))
        for half, given in zip(lanes, values.lanes, strict=True):
            np.take(np.asarray(given), own, out=np.asarray(half)[: len(own)], mode="clip")
        return HashedBlock(lanes, len(own))

    for start in range(0, len(codes), BLOCK_ROWS):
        yield functools.partial(look_up, codes[start : start + BLOCK_ROWS])


def _hash_numbers(words: UInt64[np.ndarray, " rows"], hasher: Hasher) -> HashedBlock:
    rows = len(words)
    size = max(padded_rows(rows), MIN_COMPILED_ROWS)
    halves = np.ascontiguousarray(words, "<u8").view("<u4")
    if rows < size:
        halves = np.concatenate([halves, np.zeros(2 * (size - rows), np.uint32)])
    return HashedBlock(Lanes(*_compiled_numbers()(halves, hasher)), rows)


@functools.cache
def _compiled_numbers() -> Callable[..., Lanes]:
    def hashes(halves: jax.Array, hasher: Hasher) -> Lanes:
        return hash_words(Lanes(halves[1::2], halves[::2]), hasher)

    return compiled(hashes, (1,))


class _Texts(NamedTuple):
    """The texts of a column: text i is data[offsets[i]:offsets[i + 1]] if it is valid."""

    data: UInt8[np.ndarray, " bytes"]
    offsets: Int[np.ndarray, " ends"]
    valid: Bool[np.ndarray, " rows"]
    all_valid: Bool[np.ndarray, ""] | np.bool_


def _hash_texts(texts: _Texts, rows: slice, hasher: Hasher) -> HashedBlock:
    """Hashes of the valid texts among some rows, those of about one length together."""
    starts = texts.offsets[rows.start : min(rows.stop, len(texts.offsets) - 1)]
    lengths = np.diff(texts.offsets[rows.start : rows.stop + 1])
    if not texts.all_valid:
        valid = texts.valid[rows]
        starts, lengths = starts[valid], lengths[valid]
    lengths = lengths.astype(np.int32)
    longest = int(lengths.max(initial=0))
    if longest <= _WIDTHS[3]:
        width = -(-max(longest, 1) // 16) * 16
        return HashedBlock(_hash_width(texts.data, starts, lengths, width, hasher), len(starts))
    hashes = room_for(len(starts))
    kind = np.searchsorted(_WIDTHS, lengths)
    for index in np.unique(kind):
        chosen = np.flatnonzero(kind == index)
        own = (texts.data, starts[chosen], lengths[chosen])
        if index < len(_WIDTHS) and len(chosen) >= MIN_COMPILED_ROWS // 16:
            found = _hash_width(*own, _WIDTHS[index], hasher)
        else:
            found = _hash_unequal(*own, hasher)
        for half, part in zip(hashes, found, strict=True):
            half[chosen] = np.asarray(part)[: len(chosen)]
    return HashedBlock(hashes, len(starts))


def _hash_width(
    data: UInt8[np.ndarray, " bytes"],
    starts: Int[np.ndarray, " rows"],
    lengths: Int32[np.ndarray, " rows"],
    width: int,
    hasher: Hasher,
) -> Lanes:
    """Hashes of texts of at most `width` bytes, padded at the end to a power of two of them."""
    size = padded_rows(len(starts))
    words = _gather(data, starts, width)
    if len(starts) < size:
        words = np.concatenate([words, np.zeros((size - len(starts), width // 4), np.uint32)])
        lengths = np.concatenate([lengths, np.zeros(size - len(lengths), np.int32)])
    return Lanes(*_compiled_texts()(words, lengths, hasher))


@functools.cache
def _compiled_texts() -> Callable[..., Lanes]:
    return compiled(hash_lanes_of_texts, (2,))


def _gather(
    data: UInt8[np.ndarray, " bytes"], starts: Int[np.ndarray, " rows"], width: int
) -> UInt32[np.ndarray, "rows words"]:
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
    return rows.view("<u4").reshape(len(starts), width // 4)


def _hash_unequal(
    data: UInt8[np.ndarray, " bytes"],
    starts: Int[np.ndarray, " rows"],
    lengths: Int32[np.ndarray, " rows"],
    hasher: Hasher,
) -> Lanes:
    """Hashes of texts of any lengths, by NumPy."""
    ends = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    parts = [data[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    packed = np.concatenate(parts) if parts else data[:0]
    return hash_bytes(packed, ends, hasher)[0]
