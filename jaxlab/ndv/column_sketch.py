"""The partial result of one column: a dictionary of hashes while that is smaller, then registers.

A column starts as an exact dictionary, hash -> rows. When it has more entries than fit the bytes of
the registers, it becomes registers with counts and a list of heavy values, which are counted
exactly from then on. A column of few values thus is exact, and never larger than its dictionary.

A partial result is a `Record`. The dictionary is a bottom-k sketch of half as many slots as there
are registers, none of them the (K + 1)-th, so that the settings of either form follow from the
other. Registers see every row, heavy or not: a heavy value is taken out where a profile is read, so
that a value that is heavy in one partition and not in another is counted once. Merging is
associative and commutative, bit for bit: dictionaries add, or turn into registers when their union
is too large; the counts of heavy values add.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt64

from jaxlab.ndv import fused, registers
from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.formats import MAX_HEAVY, Record, merge_records
from jaxlab.ndv.hashing import FAST, Hasher, Lanes, join_words, split_words
from jaxlab.ndv.known_words import KnownWords, count_words, know_words
from jaxlab.ndv.profile import Profile, dense_profile, profile_from_counts
from jaxlab.ndv.registers import Registers
from jaxlab.ndv.sketch import EMPTY_HASH, MIN_COMPILED_ROWS, count_profile
from jaxlab.ndv.streams import HashedBlock, Limit, block_of, block_of_array, hashed_blocks

PROFILE_LENGTH = 256
"""Frequencies kept apart in the profile of a sketch."""
_COUNT_BITS = 16
_BYTES_PER_REGISTER = 6
_BYTES_PER_HEAVY = 16
_BYTES_OF_HEADER = 80
_HEAVY_SHARE = 4
_MAX_UNKNOWN_SHARE = 64
_MAX_STEP = 2**20
_MIN_HEAVY_SKETCH, _MIN_HEAVY_DICTIONARY = 16, 1024

Words = UInt64[np.ndarray, " rows"]
Values = UInt64[np.ndarray, " values"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How columns are sketched, the same on all machines.

    Attributes:
      precision: log2 of the number of registers, 4 to 20.
      num_heavy: values counted exactly beside the registers, at most.
      block_rows: rows that go to the device at a time.
      hasher: the hash.
    """

    precision: int = 13
    num_heavy: int = 256
    block_rows: int = 2**16
    hasher: Hasher = FAST

    @property
    def capacity(self) -> int:
        """Entries of a dictionary that takes the bytes of the registers."""
        return 2 ** (self.precision - 1)


def settings_for_budget(
    budget_bytes: int, *, block_rows: int = 2**16, hasher: Hasher = FAST
) -> Settings:
    """The largest sketch of a column that fits a number of bytes.

    Args:
      budget_bytes: what a partition may send for a column, at least 256; 65,536 gives 8,192
        registers, and the number of sampled values to about 1.1 %.
      block_rows: rows that go to the device at a time.
      hasher: the hash.

    Raises:
      ValueError: if the budget is too small or a block has no row.
    """
    if budget_bytes < 256 or block_rows < 1:
        raise ValueError(
            f"budget_bytes={budget_bytes}, block_rows={block_rows}; wanted at least 256 bytes a "
            "column and partition (65536 is usual), and at least one row"
        )
    num_heavy = min(256, budget_bytes // 8 // _BYTES_PER_HEAVY)
    room = budget_bytes - _BYTES_OF_HEADER - num_heavy * _BYTES_PER_HEAVY
    precision = (room // _BYTES_PER_REGISTER).bit_length() - 1
    precision = min(precision, registers.MAX_PRECISION)
    return Settings(precision, num_heavy, block_rows, hasher)


@dataclasses.dataclass(frozen=True)
class ColumnState:
    """A column while its rows are read.

    Attributes:
      pending: hashes of rows that do not fill a block yet.
      words: hashes of the dictionary, ascending; of the heavy values once there are registers.
      counts: their rows.
      registers: on the device, or in NumPy where JAX runs on a CPU; None while the dictionary is
        small enough.
      known: a table of values of the dictionary, or of all heavy values; None if there is none yet.
      num_rows: rows with a value.
      num_nulls: rows without.
    """

    pending: UInt64[np.ndarray, " pending"]
    words: UInt64[np.ndarray, " values"]
    counts: UInt64[np.ndarray, " values"]
    registers: Registers | None = None
    known: KnownWords | None = None
    num_rows: int = 0
    num_nulls: int = 0


def empty_column() -> ColumnState:
    """A column that has seen nothing."""
    nothing = np.zeros(0, np.uint64)
    return ColumnState(nothing, nothing, nothing)


def add_rows(state: ColumnState, block: HashedBlock, settings: Settings) -> ColumnState:
    """The column after more rows; the same for any cut into calls.

    A dictionary that is too large after a whole number of `settings.block_rows` becomes registers.
    On an accelerator full blocks are handed over and not waited for: while it works, the host
    hashes the next rows.

    Args:
      state: where to start.
      block: hashes of the rows with a value, in order.
      settings: the same for all calls.
    """
    done = state.num_rows - len(state.pending)
    state = dataclasses.replace(state, num_rows=state.num_rows + block.num_values)
    if state.registers is not None and _on_host() and block.rows != block.num_values:
        return _add_to_registers(state, block, settings)
    if block.all_rows is not None:
        counted = None if state.registers is not None else _add_counted(state, block, settings)
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
    if state.registers is None or state.known is not None or not _on_host():
        return None
    minimum = np.asarray(state.registers.minimum)
    return Limit(len(minimum).bit_length() - 1, int(minimum.max()))


def finish_column(state: ColumnState, settings: Settings) -> Record:
    """The partial result of a column; waits for the device. Rate and partitions are left open."""
    if len(state.pending):
        state = _add_blocks(state, block_of(state.pending), settings, len(state.pending))
    if state.registers is not None:
        sketch, heavy = state.registers, slice(None)
    else:
        sketch = _dictionary(state.words, state.counts, settings)
        heavy = _heavy(state.words, state.counts, settings.num_heavy, _MIN_HEAVY_DICTIONARY)
    return Record(
        sketch,
        state.num_rows,
        state.num_nulls,
        heavy_hashes=state.words[heavy],
        heavy_counts=state.counts[heavy],
    )


def merge_columns(a: Record, b: Record) -> Record:
    """The partial result of the rows of both; associative and commutative.

    Raises:
      ValueError: if they were built with other settings, a partition is in both, only one of them
        tracks partitions, or their sampling rates differ and they have no weights.
    """
    if len(a.heavy_hashes) + len(b.heavy_hashes) > MAX_HEAVY:
        a, b = _drop_lightest(a), _drop_lightest(b)
    if isinstance(a.sketch, BottomK) and isinstance(b.sketch, BottomK):
        merged = merge_records(a, b)
        if is_dictionary(merged):
            return merged
    return merge_records(_as_registers(a), _as_registers(b))


def is_dictionary(record: Record) -> bool:
    """Whether a partial result holds every value with its exact count."""
    return isinstance(record.sketch, BottomK) and not record.sketch.count[-1]


class ReadProfile(NamedTuple):
    """What a partial result says of its column.

    Attributes:
      profile: of the sample, on the host.
      num_retained: values that the registers chose; None if the profile is exact.
    """

    profile: Profile
    num_retained: int | None


def read_profile(record: Record, population: float | int) -> ReadProfile:
    """Profile of the sampled rows of a column.

    The number of rows is the sketch's own estimate, sum of i f_i, with the heavy values exact: f_1
    / n must have numerator and denominator from the same choice of values. The population is exact.

    Args:
      record: a partial result.
      population: rows of the column that are not null.
    """
    if isinstance(record.sketch, BottomK) and is_dictionary(record):
        counts = np.asarray(record.sketch.count).astype(np.int64)
        return ReadProfile(
            profile_from_counts(counts, population=population, rate=record.rate), None
        )
    sketch = _as_registers(record).sketch
    assert isinstance(sketch, Registers)
    counts = np.asarray(sketch.count).astype(np.int64)
    scale = float(registers.distinct(sketch)) / max(int((counts > 0).sum()), 1)
    slot, rest = _places(record.heavy_hashes, sketch.minimum.shape[-1])
    seen = (counts[slot] > 0) & (np.asarray(sketch.minimum)[slot] == rest)
    # A list holds what partitions that found the value heavy saw of it, a register all rows.
    heavy = np.maximum(record.heavy_counts.astype(np.int64), np.where(seen, counts[slot], 0))
    counts[slot[seen]] = 0
    light = count_profile(counts, np.float64(scale), PROFILE_LENGTH, 2**_COUNT_BITS - 1)
    often = heavy[heavy > PROFILE_LENGTH].astype(np.float64)
    seldom = np.bincount(heavy[heavy <= PROFILE_LENGTH], minlength=PROFILE_LENGTH + 1)[1:]
    profile = dense_profile(
        light.f + seldom,
        n=np.asarray(light.n + heavy.sum()),
        d=np.asarray(light.d + len(heavy)),
        population=np.asarray(population, np.float64),
        rate=np.asarray(record.rate, np.float64),
        n_tail=np.asarray(light.n_tail + often.sum()),
        d_tail=np.asarray(light.d_tail + len(often)),
        s2_tail=np.asarray(light.s2_tail + (often * (often - 1)).sum()),
    )
    return ReadProfile(profile, int((counts > 0).sum()) + len(heavy))


@functools.cache
def _device_update() -> jax.stages.Wrapped:
    return jax.jit(registers.update, donate_argnums=0)


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
    while state.registers is None and start < len(array):
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
        # Most columns turn into registers at once or never: there the steps get longer.
        start, step = start + step, min(2 * step, max(settings.block_rows, _MAX_STEP))
    return state if start >= len(array) else _fill_registers(state, array.slice(start), settings)


def _fill_registers(state: ColumnState, array: Any, settings: Settings) -> ColumnState:
    """The column after an array all of whose rows go to the registers."""
    if len(state.pending):
        state = _add_to_registers(state, block_of(state.pending), settings)
    assert state.registers is not None
    before = jax.tree.map(np.asarray, state.registers)
    found = fused.fill_registers(array, settings.hasher, before.minimum, state.words)
    count = np.where(found.minimum == before.minimum, before.count, 0) + found.rows
    count = np.minimum(count, np.iinfo(before.count.dtype).max).astype(before.count.dtype)
    sketch = Registers(found.minimum, count, before.hasher)
    if len(seen := np.flatnonzero(found.heavy_rows)):
        lanes, rows = split_words(state.words[seen]), found.heavy_rows[seen]
        sketch = registers.update_on_host(
            sketch, HashedBlock(lanes, len(seen), int(rows.sum()), rows)
        )
    return dataclasses.replace(
        state,
        pending=state.pending[:0],
        counts=state.counts + found.heavy_rows.astype(np.uint64),
        registers=sketch if _on_host() else jax.tree.map(jax.numpy.asarray, sketch),
        num_rows=state.num_rows + found.num_values,
    )


def _add_blocks(
    state: ColumnState, block: HashedBlock, settings: Settings, first: int
) -> ColumnState:
    """The column after `first` rows and whole blocks of `settings.block_rows`."""
    start, stop = 0, first
    while state.registers is None and start < block.rows:
        rest = _rows_of(block, start, block.rows)
        counted = _count_known(state, rest, settings)
        if counted is not None:
            return counted
        # Sorting a block finds what is new, or that from here on there are registers.
        state = _sort_block(state, _rows_of(block, start, stop).words(), settings)
        start, stop = stop, stop + settings.block_rows
    if start < block.rows:
        state = _add_to_registers(state, _rows_of(block, start, block.rows), settings)
    return state


def _rows_of(block: HashedBlock, start: int, stop: int) -> HashedBlock:
    """Some of the rows, as a block of about so many."""
    if start == 0 and 2 * stop > len(block.lanes.hi):
        return HashedBlock(block.lanes, stop, stop)
    return block_of(block.words(slice(start, stop)))


def _add_counted(state: ColumnState, block: HashedBlock, settings: Settings) -> ColumnState | None:
    """The column after rows that were counted; None if that is too much for its dictionary."""
    assert block.counts is not None
    pending, rows = np.unique(state.pending, return_counts=True)
    words, counts = _add_counts(state.words, state.counts, pending, rows)
    words, counts = _add_counts(words, counts, block.words(), block.counts)
    if len(words) > settings.capacity:
        return None
    return dataclasses.replace(state, words=words, counts=counts, pending=pending[:0])


def _count_known(state: ColumnState, block: HashedBlock, settings: Settings) -> ColumnState | None:
    """The column after some blocks of mostly known values, or None if that must be found out."""
    if block.rows < MIN_COMPILED_ROWS or not len(state.words):
        return None
    known = state.known or know_words(state.words, state.counts, settings.capacity)
    rows, unknown = count_words(known, block)
    new, new_rows = np.unique(block.words(unknown), return_counts=True)
    words, counts = _add_counts(
        state.words, state.counts, np.concatenate([known.words, new]), np.append(rows, new_rows)
    )
    if len(words) > settings.capacity:
        return None
    # Many unknown rows make a new table worth while.
    kept = known if _MAX_UNKNOWN_SHARE * len(unknown) < block.rows else None
    return dataclasses.replace(state, words=words, counts=counts, known=kept)


def _sort_block(state: ColumnState, block: Words, settings: Settings) -> ColumnState:
    """The column after one block, which may turn its dictionary into registers."""
    new, rows = np.unique(block, return_counts=True)
    words, counts = _add_counts(state.words, state.counts, new, rows)
    if len(words) <= settings.capacity:
        return dataclasses.replace(state, words=words, counts=counts, known=None)
    sketch = registers_of_counts(words, counts, settings.precision, settings.hasher)
    heavy = _heavy(words, counts, settings.num_heavy, _MIN_HEAVY_SKETCH)
    if not _on_host():
        sketch = jax.tree.map(jax.numpy.asarray, sketch)
    known = know_words(words[heavy], counts[heavy], settings.num_heavy) if len(heavy) else None
    return dataclasses.replace(
        state, words=words[heavy], counts=counts[heavy], registers=sketch, known=known
    )


def _add_to_registers(state: ColumnState, block: HashedBlock, settings: Settings) -> ColumnState:
    """The column after some rows: all go to the registers, heavy ones are counted too."""
    assert state.registers is not None
    counts, sketch = state.counts, state.registers
    if block.counts is not None:
        own = block.words()
        place = np.searchsorted(own, state.words).clip(max=len(own) - 1)
        counts = counts + np.where(own[place] == state.words, block.counts[place], 0).astype(
            np.uint64
        )
    elif state.known is not None:
        rows, unknown = count_words(state.known, block)
        counts = counts + rows.astype(np.uint64)
        if len(state.known.missing):
            rest = block.words(unknown)
            for number in state.known.missing:
                counts[number] += np.uint64((rest == state.words[number]).sum())
    if _on_host():
        sketch = registers.update_on_host(sketch, block)
        return dataclasses.replace(state, counts=counts, registers=sketch)
    size = settings.block_rows
    for start in range(0, block.rows, size):
        rows = min(size, block.rows - start)
        padded = np.zeros(size, np.uint64)
        padded[:rows] = block.words(slice(start, start + rows))
        given = jax.device_put((split_words(padded), np.arange(size) < rows))
        sketch = _device_update()(sketch, *given)
    return dataclasses.replace(state, counts=counts, registers=sketch)


def _on_host() -> bool:
    """Whether the registers are best kept in NumPy."""
    return jax.default_backend() == "cpu"


def _add_counts(
    words: Values, counts: Values, more: Words, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A dictionary with more rows of some words; those that it does not have must differ."""
    place = np.searchsorted(words, more)
    inside = place < len(words)
    inside[inside] = words[place[inside]] == more[inside]
    counts = counts.copy()
    np.add.at(counts, place[inside], rows[inside].astype(np.uint64))
    if inside.all():
        return words, counts
    union = np.concatenate([words, more[~inside]])
    order = np.argsort(union)
    return union[order], np.concatenate([counts, rows[~inside].astype(np.uint64)])[order]


def _heavy(words: Values, counts: Values, most: int, least_rows: int) -> np.ndarray:
    """Positions of the heavy entries of a dictionary, ascending.

    Entries of at least 1 / (4 most) of the rows; of too many the heaviest, of equal ones those of
    the smallest hash.
    """
    share = counts.astype(np.float64) * (_HEAVY_SHARE * most) >= counts.sum()
    place = np.flatnonzero(share & (counts >= least_rows))
    order = np.lexsort((words[place], -counts[place].astype(np.float64)))
    return np.sort(place[order[:most]])


def _dictionary(words: Values, counts: Values, settings: Settings) -> BottomK:
    slots = settings.capacity + 1
    lanes = np.full((2, slots), EMPTY_HASH, np.uint32)
    lanes[:, : len(words)] = split_words(words)
    count = np.zeros(slots, np.uint32)
    count[: len(words)] = np.minimum(counts, np.uint64(EMPTY_HASH))
    return BottomK(lanes[0], lanes[1], count, settings.hasher)


def _places(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Register and remaining hash of 64-bit hashes."""
    precision = size.bit_length() - 1
    slot = (words >> np.uint64(64 - precision)).astype(np.int64)
    return slot, ((words << np.uint64(precision)) >> np.uint64(32)).astype(np.uint32)


def registers_of_counts(words: Values, counts: Values, precision: int, hasher: Hasher) -> Registers:
    """Registers that have seen each of some hashes so many times, on the host.

    Args:
      words: different hashes, ascending.
      counts: their rows, at least 1.
      precision: log2 of the number of registers.
      hasher: the hash.
    """
    size = 2**precision
    slot, rest = _places(words, size)
    minimum = np.full(size, EMPTY_HASH, np.uint32)
    np.minimum.at(minimum, slot, rest)
    kept = rest == minimum[slot]
    rows = np.zeros(size, np.uint64)
    np.add.at(rows, slot[kept], counts[kept].astype(np.uint64))
    count = np.minimum(rows, np.uint64(2**_COUNT_BITS - 1)).astype(np.uint16)
    return Registers(minimum, count, hasher)


def _as_registers(record: Record) -> Record:
    """The record with registers in place of its dictionary."""
    sketch = record.sketch
    if isinstance(sketch, Registers):
        return record
    assert isinstance(sketch, BottomK)
    used = np.asarray(sketch.count) > 0
    words = join_words(Lanes(sketch.hi, sketch.lo))[used]
    counts = np.asarray(sketch.count)[used].astype(np.uint64)
    precision = (sketch.count.shape[-1] - 1).bit_length()
    converted = registers_of_counts(words, counts, precision, sketch.hasher)
    weights = None
    if record.weights is not None:
        slot, rest = _places(words, 2**precision)
        kept = rest == np.asarray(converted.minimum)[slot]
        weights = np.ones(2**precision, np.float32)
        weights[slot[kept]] = record.weights[kept]
        # Two values with the same remaining hash are one to the registers, seen more than once.
        weights[np.asarray(converted.count) != 1] = 1
    return dataclasses.replace(record, sketch=converted, weights=weights)


def _drop_lightest(record: Record) -> Record:
    """The record with half as many heavy values as it may have."""
    most = MAX_HEAVY // 2
    order = np.lexsort((record.heavy_hashes, -record.heavy_counts.astype(np.float64)))
    kept = np.sort(order[:most])
    return dataclasses.replace(
        record, heavy_hashes=record.heavy_hashes[kept], heavy_counts=record.heavy_counts[kept]
    )
