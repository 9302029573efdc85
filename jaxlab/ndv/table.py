"""Tables: one pass over record batches to a sketch per column, merging, and an estimate each.

Two functions are all that an engine needs: every partition calls `sketch` on its record batches
and sends `table_to_bytes` of the result; whoever collects calls `merge` in any order. Then::

    table = functools.reduce(merge, map(table_from_bytes, messages))
    for column in estimate_table(table):
        print(column.column, column.result.estimate, column.result.method)

Messages hold hashes, not the values; but those of numbers are invertible, so that a message is as
private as its column. A partition counted twice would turn values that occur once into values that
occur twice: with ids, `merge` refuses it, and `estimate_table` names the partitions that are
missing.
"""

import dataclasses
import functools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.choice import NdvEstimate, Rule, Sample, estimate_columns, start_rule
from jaxlab.ndv.column_sketch import (
    ColumnState,
    Settings,
    add_rows,
    empty_column,
    finish_column,
    merge_columns,
    read_profile,
    settings_for_budget,
)
from jaxlab.ndv.compact import column_from_bytes, column_to_bytes
from jaxlab.ndv.formats import Reader, Record, missing_partitions
from jaxlab.ndv.hashing import FAST, Hasher
from jaxlab.ndv.mixed_rates import gee_mixed, singleton_weights
from jaxlab.ndv.registers import Registers
from jaxlab.ndv.sampling import bernoulli_rows, check_rate
from jaxlab.ndv.streams import HashedBlock, block_of, hashed_blocks

DEFAULT_BUDGET_BYTES = 2**16
MAGIC, VERSION = b"JXNT", 1
_HEADER = struct.Struct("<4sBBQQI")
_COLUMN = struct.Struct("<dQII")


class TableColumn(NamedTuple):
    """The partial result of one column.

    Attributes:
      record: sketch or dictionary of the sampled rows.
      population: rows of the scanned partitions that are not null; collapsed rows / rate for block
        samples.
      sent_bytes: bytes that the partitions sent, or would send, for this column.
    """

    record: Record
    population: float
    sent_bytes: int


@dataclasses.dataclass(frozen=True)
class TableSketch:
    """Partial results of the columns of a table.

    Attributes:
      columns: by name.
      num_rows: rows of the table, as far as it was scanned; num_read / rate if only a sample was
        given.
      num_read: rows in the sample, nulls included.
      is_block_sample: whether batches were blocks, each collapsed to its distinct values.
    """

    columns: Mapping[str, TableColumn]
    num_rows: int
    num_read: int
    is_block_sample: bool = False


class ColumnEstimate(NamedTuple):
    """The answer for one column of a table.

    Attributes:
      column: its name.
      result: estimate, interval, method, reason, coverage and status.
      num_rows: rows of the table, nulls included.
      num_read: sampled rows, nulls included.
      null_fraction: share of the sampled rows that are null.
      bytes_exchanged: bytes that the partitions sent for this column.
    """

    column: str
    result: NdvEstimate
    num_rows: int
    num_read: int
    null_fraction: float
    bytes_exchanged: int


def sketch(
    batches: Iterable[Any],
    *,
    columns: Sequence[str] | None = None,
    rate: float | int = 1.0,
    is_sampled: bool = False,
    collapse: bool = False,
    mixed_rates: bool = False,
    partition: int | None = None,
    seed: int = 0,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    block_rows: int = 2**16,
    hasher: Hasher = FAST,
    serialize_nested: bool = False,
    on_batch: Callable[[int], object] | None = None,
) -> TableSketch:
    """Partial result of one partition, in one pass.

    A Bernoulli sample of the rows is drawn by their position in the partition, so that the cut into
    batches does not matter. Hashing on the host and counting on the device overlap.

    Args:
      batches: Arrow record batches or tables, in the order of the partition's rows.
      columns: names; all by default.
      rate: sampling rate in (0, 1].
      is_sampled: whether the batches already are a sample at this rate; else it is drawn here.
      collapse: whether each batch is a block of a block sample (implies `is_sampled`): one row of
        every value in it is kept.
      mixed_rates: whether other partitions have other rates; the answer then is GEE_MIXED.
      partition: id of the partition, which also makes its sample differ from the others'. None for
        a table in one piece: nothing then detects a repeated or lost one.
      seed: of the sample, the same in all partitions.
      budget_bytes: what the partition may send for a column.
      block_rows: rows that go to the device at a time.
      hasher: the hash, the same in all partitions.
      serialize_nested: whether lists, structs and maps are hashed by their serialisation.
      on_batch: called with the number of rows after each batch.

    Raises:
      ValueError: if an argument is out of range, a column does not exist, or there is no batch and
        no list of columns.
      TypeError: if a column has a type without canonical form; it is named.
    """
    check_rate(rate)
    settings = settings_for_budget(budget_bytes, block_rows=block_rows, hasher=hasher)
    drawn = _Draw(float(rate), seed, partition or 0, is_given=is_sampled or collapse)
    scan = _Scan(None if columns is None else list(columns))
    for batch in batches:
        names = scan.start(batch)
        size, taken = batch.num_rows, drawn.sample(batch.select(names), scan.num_rows)
        for name in names:
            blocks = _hash(taken, name, hasher, serialize_nested)
            scan.states[name] = _add_column(
                scan.states[name], blocks, taken.num_rows, settings, collapse=collapse
            )
            scan.non_null[name] += size - batch.column(name).null_count
        scan.num_rows, scan.num_read = scan.num_rows + size, scan.num_read + taken.num_rows
        if on_batch is not None:
            on_batch(size)
    if scan.names is None:
        raise ValueError("batches is empty and columns is None; name the columns to sketch")
    found = {}
    for name, state in scan.states.items():
        record = _finish(state, settings, drawn.rate, partition, mixed_rates)
        # A given sample stands for its rows / rate; nulls inside dictionaries show in rows only.
        is_scan = drawn.rate < 1 and not drawn.is_given
        population = scan.non_null[name] if is_scan else record.num_rows / drawn.rate
        found[name] = TableColumn(record, float(population), len(column_to_bytes(record)))
    num_rows = round(scan.num_rows / drawn.rate) if drawn.is_given else scan.num_rows
    return TableSketch(found, num_rows, scan.num_read, collapse)


def merge(a: TableSketch, b: TableSketch) -> TableSketch:
    """Partial result of the rows of both; associative and commutative.

    Raises:
      ValueError: if they have other columns or settings, one is a block sample and the other not, a
        partition is in both, or sampling rates differ and the sketches were not built for it.
    """
    if a.columns.keys() != b.columns.keys():
        different = sorted(a.columns.keys() ^ b.columns.keys())
        raise ValueError(f"cannot merge: columns {different} are in one table sketch only")
    if a.is_block_sample != b.is_block_sample:
        raise ValueError("cannot merge: one table sketch is of blocks and the other of rows")
    columns = {}
    for name, left in a.columns.items():
        right = b.columns[name]
        try:
            record = merge_columns(left.record, right.record)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error
        columns[name] = TableColumn(
            record, left.population + right.population, left.sent_bytes + right.sent_bytes
        )
    return TableSketch(columns, a.num_rows + b.num_rows, a.num_read + b.num_read, a.is_block_sample)


def merge_all(tables: Iterable[TableSketch]) -> TableSketch:
    """`merge` of one or more.

    Raises:
      ValueError: if there is none, or two do not merge.
    """
    tables = list(tables)
    if not tables:
        raise ValueError("tables is empty; wanted at least one table sketch to merge")
    return functools.reduce(merge, tables)


def estimate_table(
    table: TableSketch,
    *,
    unique_columns: Iterable[str] = (),
    partitions: Iterable[int] | None = None,
    method: str = "auto",
    rule: Rule = start_rule,
    level: float = 0.95,
    num_draws: int = 256,
    seed: int = 0,
) -> list[ColumnEstimate]:
    """Number of distinct values of every column.

    Args:
      table: the merge of all partitions.
      unique_columns: names of columns that the schema says are unique.
      partitions: ids that must all be inside.
      method: "auto", or an estimator's name.
      rule: chooses estimators when method is "auto".
      level: probability of the intervals.
      num_draws: bootstrap draws.
      seed: of the bootstrap.

    Raises:
      ValueError: if partitions are missing or were not declared, a unique column does not exist, or
        another argument is out of range.
    """
    unique = set(unique_columns)
    if unknown := sorted(unique - table.columns.keys()):
        raise ValueError(f"unique_columns has {unknown}; there are {', '.join(table.columns)}")
    if partitions is not None:
        _check_complete(table, list(partitions))
    samples = [_sample(table, name, name in unique) for name in table.columns]
    results = estimate_columns(
        samples, method=method, rule=rule, level=level, num_draws=num_draws, seed=seed
    )
    answers = []
    for (name, column), found in zip(table.columns.items(), results, strict=True):
        record = column.record
        answers.append(
            ColumnEstimate(
                name, found, table.num_rows, table.num_read,
                record.num_nulls / max(table.num_read, 1), column.sent_bytes,
            )
        )  # fmt: skip
    return answers


def table_to_bytes(table: TableSketch) -> bytes:
    """The table sketch as a message, little-endian.

    Magic "JXNT", u8 version, u8 whether blocks were sampled, u64 rows, u64 rows read, u32 number of
    columns; for each f64 population, u64 bytes sent, u32 and u32 lengths of its name and its
    record, the name in UTF-8, the record by `column_to_bytes`; a CRC-32 of all before.
    """
    parts = [
        _HEADER.pack(
            MAGIC, VERSION, table.is_block_sample, table.num_rows, table.num_read,
            len(table.columns),
        )
    ]  # fmt: skip
    for name, column in table.columns.items():
        text, record = name.encode(), column_to_bytes(column.record)
        parts += [_COLUMN.pack(column.population, column.sent_bytes, len(text), len(record))]
        parts += [text, record]
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def table_from_bytes(data: bytes) -> TableSketch:
    """The table sketch that `table_to_bytes` wrote.

    Raises:
      ValueError: for anything else, with the offset where bytes are missing.
    """
    reader = Reader(data)
    magic, version, is_block_sample, num_rows, num_read, num_columns = reader.unpack(_HEADER)
    if (magic, version) != (MAGIC, VERSION) or is_block_sample > 1:
        raise ValueError(
            f"bytes start with {magic!r}, version {version}; a table sketch of this release starts "
            f"with {MAGIC!r}, version {VERSION}"
        )
    raw = []
    for _ in range(num_columns):
        population, sent_bytes, name_bytes, record_bytes = reader.unpack(_COLUMN)
        raw.append((reader.take(name_bytes), population, sent_bytes, reader.take(record_bytes)))
    reader.finish(zlib.crc32(data[: reader.offset]), reader.number("<I"))
    columns = {
        name.decode(): TableColumn(column_from_bytes(record), population, sent_bytes)
        for name, population, sent_bytes, record in raw
    }
    return TableSketch(columns, num_rows, num_read, bool(is_block_sample))


class _Draw(NamedTuple):
    """How the rows of a partition are sampled; `is_given` if the batches are the sample."""

    rate: float
    seed: int
    partition: int
    is_given: bool

    def sample(self, batch: Any, start: int) -> Any:
        """The sampled rows of a batch whose first row is the start-th of the partition."""
        if self.is_given or self.rate == 1:
            return batch
        return batch.take(
            bernoulli_rows(
                self.rate, seed=self.seed, partition=self.partition, start=start,
                num_rows=batch.num_rows,
            )
        )  # fmt: skip


class _Scan:
    """What a pass over the batches has found so far."""

    def __init__(self, names: list[str] | None):
        self.names, self.num_rows, self.num_read = names, 0, 0
        self.states: dict[str, ColumnState] = {name: empty_column() for name in names or ()}
        self.non_null: dict[str, int] = dict.fromkeys(names or (), 0)

    def start(self, batch: Any) -> list[str]:
        """The names of the columns, all of the first batch by default."""
        if self.names is None:
            self.names = list(batch.schema.names)
            self.states = {name: empty_column() for name in self.names}
            self.non_null = dict.fromkeys(self.names, 0)
        if missing := [name for name in self.names if name not in batch.schema.names]:
            raise ValueError(
                f"columns {missing} do not exist; the table has {', '.join(batch.schema.names)}"
            )
        return self.names


def _hash(batch: Any, name: str, hasher: Hasher, serialize_nested: bool) -> Iterator[HashedBlock]:
    """Hashes of the rows with a value."""
    try:
        yield from hashed_blocks(batch.column(name), hasher, serialize_nested=serialize_nested)
    except TypeError as error:
        raise TypeError(f"column {name!r}: {error}") from error


def _add_column(
    state: ColumnState,
    blocks: Iterable[HashedBlock],
    num_rows: int,
    settings: Settings,
    *,
    collapse: bool,
) -> ColumnState:
    """The column after a batch; of a block sample one row of every value in it."""
    if collapse:
        parts = [block.words() for block in blocks]
        words = np.concatenate([np.zeros(0, np.uint64), *parts])
        num_nulls, words = num_rows - len(words), np.unique(words)
        blocks, num_rows = [block_of(words)], num_nulls + len(words)
    num_values = 0
    for block in blocks:
        state, num_values = add_rows(state, block, settings), num_values + block.rows
    return dataclasses.replace(state, num_nulls=state.num_nulls + num_rows - num_values)


def _finish(
    state: ColumnState, settings: Settings, rate: float, partition: int | None, mixed_rates: bool
) -> Record:
    """The record of a column, with its rate, partition and, for mixed rates, its weights."""
    record = finish_column(state, settings)
    sketch, weights = record.sketch, None
    if mixed_rates:
        assert isinstance(sketch, BottomK | Registers)
        count = np.asarray(sketch.count)
        count = count if isinstance(sketch, Registers) else count[count > 0]
        weights = singleton_weights(count, rate)
    ids = np.array([] if partition is None else [partition], np.uint64)
    return dataclasses.replace(record, rate=rate, partitions=ids, weights=weights)


def _sample(table: TableSketch, name: str, is_unique: bool) -> Sample:
    column = table.columns[name]
    profile, num_retained = read_profile(column.record, column.population)
    rows = table.num_rows
    return Sample(
        profile,
        num_retained,
        is_unique_key=is_unique,
        is_block_sample=table.is_block_sample,
        most=max(rows, float(profile.d)) if table.is_block_sample else None,
        mixed=_mixed(column.record),
    )


def _mixed(record: Record) -> tuple[float, float] | None:
    """GEE_MIXED, and what it is if a singleton stands for N_p / n_p values, its upper bound."""
    if record.weights is None:
        return None
    squares = dataclasses.replace(record, weights=np.square(record.weights))
    return gee_mixed(record), gee_mixed(squares)


def _check_complete(table: TableSketch, partitions: list[int]) -> None:
    for name, column in table.columns.items():
        if missing := missing_partitions(column.record, partitions):
            raise ValueError(
                f"partitions {missing[:5]} are missing from column {name!r} ({len(missing)} of "
                f"{len(partitions)}); sketch them and merge them in"
            )
