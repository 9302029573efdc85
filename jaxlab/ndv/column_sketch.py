"""One column while its rows are read: a dictionary of hashes, then those below a threshold.

A column starts as an exact dictionary, hash -> rows. When it has more entries than fit a message,
the values of the smallest hashes stay, with their rows, and a list of heavy values, which are
counted exactly from then on. A column of few values thus is exact. From there on most rows cost a
hash and a comparison: only those below the threshold, the smallest hash that was let go, are
counted. The threshold falls as values come; the count of a value that stays is exact, since its
hash was below at all times. The end is the same for any cut into calls: the values of the K
smallest hashes, or fewer if their message would be too large.

The partial result is a `Record`, see `column_records`. All rows of a heavy value count below the
threshold, too, if it is there: the list is used where a profile is read, so that a value that is
heavy in one partition and not in another is counted once.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt64

from jaxlab.ndv import bottom_k, fused
from jaxlab.ndv.arguments import check_integer
from jaxlab.ndv.bottom_k import BottomK, Held
from jaxlab.ndv.column_records import MAX_VALUES, cut_column
from jaxlab.ndv.compact import payload_bytes
from jaxlab.ndv.formats import Record
from jaxlab.ndv.hashing import FAST, Hasher, split_words
from jaxlab.ndv.known_words import KnownWords, count_words, know_words
from jaxlab.ndv.sketch import MIN_COMPILED_ROWS
from jaxlab.ndv.streams import HashedBlock, Limit, block_of, block_of_array, hashed_blocks

_BYTES_PER_VALUE = 7
_MOST_BYTES_PER_VALUE = 13
_BYTES_PER_HEAVY = 16
_BYTES_OF_HEADER = 80
_HEAVY_SHARE = 4
_MAX_UNKNOWN_SHARE = 64
_MAX_STEP = 2**20
_MIN_HEAVY_SKETCH, _MIN_HEAVY_DICTIONARY = 16, 1024

Words = UInt64[np.ndarray, " rows"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How columns are sketched.

    Attributes:
      capacity: values that a message holds, at most.
      num_heavy: values counted exactly beside them, at most.
      max_bytes: of a message's values and their counts; of values that would take more, fewer are
        sent.
      block_rows: rows that go to the device at a time.
      hasher: the hash, the same on all machines.
    """

    capacity: int
    num_heavy: int
    max_bytes: int
    block_rows: int = 2**16
    hasher: Hasher = FAST


def settings_for_budget(
    budget_bytes: int, *, block_rows: int = 2**16, hasher: Hasher = FAST
) -> Settings:
    """The largest sketch of a column that fits a number of bytes.

    Args:
      budget_bytes: what a partition may send for a column, at least 256; 65,536 gives 8,765 values,
        and the number of sampled values to about 1.1 %.
      block_rows: rows that go to the device at a time.
      hasher: the hash.

    Raises:
      ValueError: if the budget is too small or a block has no row.
    """
    check_integer(budget_bytes, "budget_bytes", "bytes a column and partition, 65536 is usual")
    check_integer(block_rows, "block_rows")
    if budget_bytes < 256 or block_rows < 1:
        raise ValueError(
            f"budget_bytes={budget_bytes}, block_rows={block_rows}; wanted at least 256 bytes a "
            "column and partition (65536 is usual), and at least one row"
        )
    num_heavy = min(256, budget_bytes // 8 // _BYTES_PER_HEAVY)
    room = budget_bytes - _BYTES_OF_HEADER - num_heavy * _BYTES_PER_HEAVY
    capacity = min(room // _BYTES_PER_VALUE, MAX_VALUES)
    return Settings(capacity, num_heavy, room, block_rows, hasher)


def _nothing() -> Held:
    return Held(np.zeros(0, np.uint64), np.zeros(0, np.int64), None)


def _no_words() -> np.ndarray:
    return np.zeros(0, np.uint64)


@dataclasses.dataclass(frozen=True)
class ColumnState:
    """A column while its rows are read.

    Attributes:
      pending: hashes of rows that do not fill a block yet.
      values: the dictionary; with a threshold once it was too large.
      heavy: the heavy values from then on, and their rows.
      known: a table of `values`; None if there is none.
      known_heavy: a table of the heavy values; None if there is none.
      on_device: in place of `values`, where JAX does not run on the CPU, once there is a threshold.
      num_rows: rows with a value.
      num_nulls: rows without.
    """

    pending: UInt64[np.ndarray, " pending"] = dataclasses.field(default_factory=_no_words)
    values: Held = dataclasses.field(default_factory=_nothing)
    heavy: Held = dataclasses.field(default_factory=_nothing)
    known: KnownWords | None = None
    known_heavy: KnownWords | None = None
    on_device: BottomK | None = None
    num_rows: int = 0
    num_nulls: int = 0


def empty_column() -> ColumnState:
    """A column that has seen nothing."""
    return ColumnState()


def add_rows(state: ColumnState, block: HashedBlock, settings: Settings) -> ColumnState:
    """The column after more rows; the same for any cut into calls.

    A dictionary that is too large after a whole number of `settings.block_rows` gets a threshold.
    On an accelerator full blocks are handed over and not waited for: while it works, the host
    hashes the next rows.

    Args:
      state: where to start.
      block: hashes of the rows with a value, in order.
      settings: the same for all calls.
    """
    done = state.num_rows - len(state.pending)
    state = dataclasses.replace(state, num_rows=state.num_rows + block.num_values)
    if _is_cut(state) and state.on_device is None:
        return _add_below(_without_pending(state, settings), block, settings)
    if block.all_rows is not None:
        counted = None if _is_cut(state) else _add_counted(state, block, settings)
        if counted is not None:
            return counted
        block = block.all_rows()
    # Counted blocks end anywhere; what follows goes on to the next whole number of rows.
    size = settings.block_rows
    first = size - done % size
    if len(state.pending) or block.rows < first:
        pending = np.concatenate([state.pending, block.words()])
        if len(pending) < first:
            return dataclasses.replace(state, pending=pending)
        block = block_of(pending)
    whole = first + (block.rows - first) // size * size
    rest = block.words(slice(whole, block.rows))
    state = _add_blocks(state, _rows_of(block, 0, whole), settings, first)
    return dataclasses.replace(state, pending=rest)


def add_column(
    state: ColumnState, column: Any, settings: Settings, *, serialize_nested: bool = False
) -> ColumnState:
    """The column after the rows of an array; the same for any cut into calls.

    Args:
      state: where to start.
      column: NumPy array of one dimension, Arrow array or chunked array.
      settings: the same for all calls.
      serialize_nested: whether lists, structs and maps are hashed by their serialisation.

    Raises:
      TypeError: if the type of the column has no canonical form.
      ValueError: if a NumPy array is not of one dimension.
    """
    arrays = fused.arrays_of(column, settings.hasher)
    if arrays is not None:
        for array in arrays:
            state = _add_array(state, array, settings)
        return state
    with fused.metered():
        return _add_by_blocks(state, column, settings, serialize_nested)


def needed_rows(state: ColumnState) -> Limit | None:
    """Which rows matter to a column from here on; None if all do."""
    limit = state.values.limit
    return None if limit is None or len(state.heavy.words) else Limit(0, limit >> 32)


def finish_column(state: ColumnState, settings: Settings) -> Record:
    """The partial result of a column; waits for the device. Rate and partitions are left open."""
    state = _on_host(_without_pending(state, settings))
    values, heavy = bottom_k.cut(state.values, settings.capacity), state.heavy
    if values.limit is None:
        chosen = _heavy(state.values, settings.num_heavy, _MIN_HEAVY_DICTIONARY)
        heavy = Held(values.words[chosen], values.counts[chosen], None)
    record = Record(
        bottom_k.from_held(values, settings.hasher),
        state.num_rows,
        state.num_nulls,
        heavy_hashes=heavy.words,
        heavy_counts=heavy.counts.astype(np.uint64),
    )
    return _fitted(record, len(values.words), settings)


def _fitted(record: Record, number: int, settings: Settings) -> Record:
    """The record with as many of its smallest hashes as fit the bytes of a message."""
    most = settings.max_bytes
    while number * _MOST_BYTES_PER_VALUE > most and (size := payload_bytes(record)) > most:
        number = min(number - 1, number * most // size)
        record = cut_column(record, number)
    return record


@functools.cache
def _device_update() -> jax.stages.Wrapped:
    return jax.jit(bottom_k.update, donate_argnums=0)


def _is_cut(state: ColumnState) -> bool:
    return state.values.limit is not None or state.on_device is not None


def _without_pending(state: ColumnState, settings: Settings) -> ColumnState:
    pending = state.pending
    if not len(pending):
        return state
    state = dataclasses.replace(state, pending=pending[:0])
    return _add_blocks(state, block_of(pending), settings, len(pending))


def _on_host(state: ColumnState) -> ColumnState:
    """The column with its values in NumPy."""
    if state.on_device is None:
        return state
    sketch = jax.tree.map(np.asarray, state.on_device)
    return dataclasses.replace(state, values=bottom_k.held(sketch), on_device=None)


def _add_by_blocks(
    state: ColumnState, column: Any, settings: Settings, serialize_nested: bool
) -> ColumnState:
    """The column after the hashes of an array, as they come."""

    def limit() -> Limit | None:
        return needed_rows(state)

    for block in hashed_blocks(
        column, settings.hasher, serialize_nested=serialize_nested, limit=limit
    ):
        state = add_rows(state, block, settings)
    return state


def _add_array(state: ColumnState, array: Any, settings: Settings) -> ColumnState:
    """The column after an array, in one pass over its buffers."""
    start, step = 0, settings.block_rows
    while not _is_cut(state) and start < len(array):
        piece = array.slice(start, step)
        for part, counted in fused.count_values(piece, settings.hasher, settings.capacity):
            all_rows = functools.partial(block_of_array, part, settings.hasher)
            if counted is None:
                block = all_rows()
            else:
                words, rows = counted
                lanes, num_values = split_words(words), int(rows.sum())
                block = HashedBlock(lanes, len(words), num_values, rows, all_rows)
            state = add_rows(state, block, settings)
        # Most columns get a threshold at once or never: there the steps get longer.
        start, step = start + step, min(2 * step, max(settings.block_rows, _MAX_STEP))
    return state if start >= len(array) else _count_below(state, array.slice(start), settings)


def _count_below(state: ColumnState, array: Any, settings: Settings) -> ColumnState:
    """The column after an array, of which rows below the threshold count."""
    state = _on_host(_without_pending(state, settings))
    limit, capacity = state.values.limit, settings.capacity
    assert limit is not None
    found = fused.count_below(array, settings.hasher, limit, capacity, state.heavy.words)
    values = bottom_k.add_counts(state.values, found.values)
    seen = np.flatnonzero(found.heavy_rows)
    heavy_rows = Held(state.heavy.words[seen], found.heavy_rows[seen], None)
    state = dataclasses.replace(
        state,
        heavy=state.heavy._replace(counts=state.heavy.counts + found.heavy_rows),
        num_rows=state.num_rows + found.num_values,
    )
    return _with_values(state, bottom_k.add_counts(values, heavy_rows), None, capacity)


def _add_blocks(
    state: ColumnState, block: HashedBlock, settings: Settings, first: int
) -> ColumnState:
    """The column after `first` rows and whole blocks of `settings.block_rows`."""
    start, stop = 0, first
    while not _is_cut(state) and start < block.rows:
        rest = _rows_of(block, start, block.rows)
        counted = _count_known(state.values, state.known, rest, settings.capacity)
        if counted is not None:
            return dataclasses.replace(state, values=counted[0], known=counted[1])
        # Sorting a block finds what is new, or that from here on there is a threshold.
        state = _sort_block(state, _rows_of(block, start, stop).words(), settings)
        start, stop = stop, stop + settings.block_rows
    if start < block.rows:
        state = _add_below(state, _rows_of(block, start, block.rows), settings)
    return state


def _rows_of(block: HashedBlock, start: int, stop: int) -> HashedBlock:
    """Some of the rows, as a block of about so many."""
    if start == 0 and 2 * stop > len(block.lanes.hi):
        return HashedBlock(block.lanes, stop, stop)
    return block_of(block.words(slice(start, stop)))


def _add_counted(state: ColumnState, block: HashedBlock, settings: Settings) -> ColumnState | None:
    """The column after rows that were counted; None if that is too much for its dictionary."""
    assert block.counts is not None
    values = bottom_k.add_counts(state.values, _counted(state.pending))
    values = bottom_k.add_counts(values, Held(block.words(), block.counts, None))
    if len(values.words) > settings.capacity:
        return None
    return dataclasses.replace(state, values=values, pending=state.pending[:0])


def _counted(rows: Words) -> Held:
    words, counts = np.unique(rows, return_counts=True)
    return Held(words, counts, None)


def _count_known(
    values: Held, known: KnownWords | None, block: HashedBlock, most: int
) -> tuple[Held, KnownWords | None] | None:
    """Values and their table after rows of mostly known ones; None if that must be found out."""
    if block.rows < MIN_COMPILED_ROWS or not len(values.words):
        return None
    known = known or know_words(values.words, values.counts, most)
    rows, unknown = count_words(known, block)
    seen = np.flatnonzero(rows)
    values = bottom_k.add_counts(values, Held(known.words[seen], rows[seen], None))
    values = bottom_k.add_counts(values, _counted(block.words(unknown)))
    if len(values.words) > most:
        return None
    # Many unknown rows make a new table worth while.
    return values, known if _MAX_UNKNOWN_SHARE * len(unknown) < block.rows else None


def _sort_block(state: ColumnState, block: Words, settings: Settings) -> ColumnState:
    """The column after one block, after which its dictionary may have a threshold."""
    values = bottom_k.add_counts(state.values, _counted(block))
    if len(values.words) <= settings.capacity:
        return dataclasses.replace(state, values=values, known=None)
    chosen = _heavy(values, settings.num_heavy, _MIN_HEAVY_SKETCH)
    heavy = Held(values.words[chosen], values.counts[chosen], None)
    known = know_words(heavy.words, heavy.counts, settings.num_heavy) if len(chosen) else None
    state = dataclasses.replace(
        state, values=bottom_k.cut(values, settings.capacity), heavy=heavy, known=None,
        known_heavy=known,
    )  # fmt: skip
    if not _has_accelerator():
        return state
    sketch = bottom_k.from_counts(
        values.words, values.counts, settings.capacity, hasher=settings.hasher
    )
    sketch = jax.tree.map(jax.numpy.asarray, sketch)
    return dataclasses.replace(state, values=_nothing(), on_device=sketch)


def _add_below(state: ColumnState, block: HashedBlock, settings: Settings) -> ColumnState:
    """The column after some rows: those below the threshold count, and all of heavy values."""
    state = _add_heavy(state, block)
    if state.on_device is not None:
        return _add_on_device(state, block, settings)
    values, limit = state.values, state.values.limit
    assert limit is not None
    near = np.flatnonzero(np.asarray(block.lanes.hi)[: block.rows] <= np.uint32(limit >> 32))
    words = block.words(near)
    if block.counts is not None:
        values = bottom_k.add_counts(values, Held(words, block.counts[near], None))
        return _with_values(state, values, state.known, settings.capacity)
    below = block_of(words[words < np.uint64(limit)])
    counted = _count_known(values, state.known, below, 2 * settings.capacity)
    if counted is None:
        counted = bottom_k.add_counts(values, _counted(below.words())), None
    return _with_values(state, *counted, settings.capacity)


def _with_values(
    state: ColumnState, values: Held, known: KnownWords | None, capacity: int
) -> ColumnState:
    """The column with other values; a lower threshold if they are far too many."""
    if len(values.words) > 2 * capacity:
        values, known = bottom_k.cut(values, capacity), None
    return dataclasses.replace(state, values=values, known=known)


def _add_heavy(state: ColumnState, block: HashedBlock) -> ColumnState:
    """The column after the rows of heavy values."""
    words, counts, _ = state.heavy
    if not len(words):
        return state
    if block.counts is not None:
        own = block.words()
        place = np.searchsorted(own, words).clip(max=len(own) - 1)
        counts = counts + np.where(own[place] == words, block.counts[place], 0)
    else:
        assert state.known_heavy is not None
        rows, unknown = count_words(state.known_heavy, block)
        counts = counts + rows
        if len(state.known_heavy.missing):
            rest = block.words(unknown)
            for number in state.known_heavy.missing:
                counts[number] += (rest == words[number]).sum()
    return dataclasses.replace(state, heavy=state.heavy._replace(counts=counts))


def _has_accelerator() -> bool:
    """Whether rows below a threshold are counted by a device beside the host."""
    return jax.default_backend() != "cpu"


def _add_on_device(state: ColumnState, block: HashedBlock, settings: Settings) -> ColumnState:
    """The column after some rows, in whole blocks that are not waited for, the last one padded."""
    size, sketch = settings.block_rows, state.on_device
    for start in range(0, block.rows, size):
        rows = min(size, block.rows - start)
        padded = np.zeros(size, np.uint64)
        padded[:rows] = block.words(slice(start, start + rows))
        given = jax.device_put((split_words(padded), np.arange(size) < rows))
        sketch = _device_update()(sketch, *given)
    return dataclasses.replace(state, on_device=sketch)


def _heavy(values: Held, most: int, least_rows: int) -> np.ndarray:
    """Positions of the heavy entries of a dictionary, ascending.

    Entries of at least 1 / (4 most) of the rows; of too many the heaviest, of equal ones those of
    the smallest hash.
    """
    counts = values.counts
    share = counts.astype(np.float64) * (_HEAVY_SHARE * most) >= counts.sum()
    place = np.flatnonzero(share & (counts >= least_rows))
    order = np.lexsort((values.words[place], -counts[place]))
    return np.sort(place[order[:most]])
