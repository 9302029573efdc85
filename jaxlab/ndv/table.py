"""Tables: one pass over record batches to a sketch per column, merging, and an estimate each.

Two functions are all that an engine needs: every partition calls `sketch` on its record batches
and sends `table_to_bytes` of the result; whoever collects calls `merge` in any order. Then::

    table = merge_all(map(table_from_bytes, messages))
    for column in estimate_table(table):
        print(column.column, column.result.estimate, column.result.method)

Messages hold hashes of long texts, and numbers and short texts as they are: a message is as private
as its column. A partition counted twice would turn values that occur once into values that
occur twice: with ids, `merge` refuses it, and `estimate_table` names the partitions that are
missing.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab.ndv.arguments import check_instance, check_integer
from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.choice import (
    NdvEstimate,
    Rule,
    Sample,
    estimate_columns,
    learned_rule,
    repeats,
)
from jaxlab.ndv.column_records import MAX_VALUES, merge_columns, read_profile
from jaxlab.ndv.column_sketch import (
    ColumnState,
    Settings,
    add_column,
    add_rows,
    empty_column,
    finish_column,
    settings_for_budget,
)
from jaxlab.ndv.columns import check_kinds
from jaxlab.ndv.formats import Record, missing_partitions
from jaxlab.ndv.hashing import FAST, Hasher
from jaxlab.ndv.mixed_rates import estimate_mixed, singleton_weights
from jaxlab.ndv.sampling import bernoulli_rows, check_rate
from jaxlab.ndv.streams import HashedBlock, block_of, hashed_blocks
from jaxlab.ndv.table_bytes import (
    TableColumn,
    TableSketch,
    table_from_bytes,
    table_to_bytes,
    with_sizes,
)

__all__ = [
    "DEFAULT_BUDGET_BYTES", "ColumnEstimate", "TableColumn", "TableSketch", "estimate_table",
    "merge", "merge_all", "sketch", "table_from_bytes", "table_to_bytes",
]  # fmt: skip

DEFAULT_BUDGET_BYTES = 2**16
_MADE_BY = "sketch, merge or table_from_bytes gives one"
logger = logging.getLogger(__name__)


class ColumnEstimate(NamedTuple):
    """The answer for one column of a table.

    Attributes:
      column: its name.
      result: estimate, interval, method, reason, coverage and status.
      num_rows: rows of the table, nulls included.
      num_read: sampled rows, nulls included.
      null_fraction: share of the sampled rows that are null.
      bytes_exchanged: bytes that the partitions sent for this column; what they sent for all
        columns together is `TableSketch.shared_bytes`.
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
      budget_bytes: what the partition may send for a column; a merge of partitions takes more.
      block_rows: rows that go to the device at a time.
      hasher: the hash, the same in all partitions.
      serialize_nested: whether lists, structs and maps are hashed by their serialisation.
      on_batch: called with the number of rows after each batch.

    Raises:
      ValueError: if an argument is out of range, a column does not exist or holds numbers in one
        batch and texts in another, or there is no batch and no list of columns.
      TypeError: if a column has a type without canonical form; it is named.
    """
    check_rate(rate)
    _check_names(columns, "columns")
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is of type {type(batches).__name__}; wanted Arrow record batches or tables, "
            "such as [table] or table.to_batches()"
        )
    if partition is not None:
        check_integer(partition, "partition", "the number of the partition, or None")
        if not 0 <= partition < 2**64:
            raise ValueError(f"partition={partition} is not from 0 to 2^64 - 1")
    settings = settings_for_budget(budget_bytes, block_rows=block_rows, hasher=hasher)
    drawn = _Draw(float(rate), seed, partition or 0, is_given=is_sampled or collapse)
    scan = _Scan(None if columns is None else list(columns))
    for batch in batches:
        names = scan.start(batch)
        size, taken = batch.num_rows, drawn.sample(batch.select(names), scan.num_rows)
        for name in names:
            scan.add(name, taken, settings, collapse=collapse, serialize_nested=serialize_nested)
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
        found[name] = TableColumn(record, float(population), 0)
    num_rows = round(scan.num_rows / drawn.rate) if drawn.is_given else scan.num_rows
    return with_sizes(TableSketch(found, num_rows, scan.num_read, collapse))


def merge(a: TableSketch, b: TableSketch, *, max_values: int = MAX_VALUES) -> TableSketch:
    """Partial result of the rows of both; associative and commutative.

    A column keeps the values of both, so that its message may be larger than the budget of a
    partition: twice as large at first, and 5 to 7 bytes a value for up to `max_values` in the end.

    Args:
      a: a partial result.
      b: of other partitions.
      max_values: values of a column to keep, at most; the same in all merges, or their order shows
        in the result. Fewer make smaller messages between machines, and larger errors: the number
        of sampled values is known to about 1 / sqrt(max_values).

    Raises:
      ValueError: if they have other columns or settings, one is a block sample and the other not, a
        partition is in both, or sampling rates differ and the sketches were not built for it.
    """
    for name, one in (("a", a), ("b", b)):
        check_instance(one, TableSketch, name, _MADE_BY)
    if a.columns.keys() != b.columns.keys():
        different = sorted(a.columns.keys() ^ b.columns.keys())
        raise ValueError(f"cannot merge: columns {different} are in one table sketch only")
    if a.is_block_sample != b.is_block_sample:
        raise ValueError("cannot merge: one table sketch is of blocks and the other of rows")
    columns = {}
    for name, left in a.columns.items():
        right = b.columns[name]
        try:
            record = merge_columns(left.record, right.record, max_values)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error
        columns[name] = TableColumn(
            record, left.population + right.population, left.sent_bytes + right.sent_bytes
        )
    return TableSketch(
        columns,
        a.num_rows + b.num_rows,
        a.num_read + b.num_read,
        a.is_block_sample,
        a.shared_bytes + b.shared_bytes,
    )


def merge_all(tables: Iterable[TableSketch], *, max_values: int = MAX_VALUES) -> TableSketch:
    """`merge` of one or more, pairwise as they come: a few of them are held at a time.

    Args:
      tables: partial results.
      max_values: of `merge`.

    Raises:
      ValueError: if there is none, or two do not merge.
    """
    merged: list[tuple[int, TableSketch]] = []  # of 2^level tables each, lower levels last
    if isinstance(tables, TableSketch) or not isinstance(tables, Iterable):
        raise TypeError(f"tables is a {type(tables).__name__}; wanted a list of table sketches")
    for index, table in enumerate(tables):
        check_instance(table, TableSketch, f"tables[{index}]", _MADE_BY)
        level = 0
        while merged and merged[-1][0] == level:
            table, level = merge(merged.pop()[1], table, max_values=max_values), level + 1
        merged.append((level, table))
    if not merged:
        raise ValueError("tables is empty; wanted at least one table sketch to merge")
    _, whole = merged.pop()
    while merged:
        whole = merge(merged.pop()[1], whole, max_values=max_values)
    return whole


def estimate_table(
    table: TableSketch,
    *,
    unique_columns: Iterable[str] | None = (),
    partitions: Iterable[int] | None = None,
    method: str = "auto",
    rule: Rule = learned_rule,
    level: float = 0.95,
    num_draws: int = 256,
    seed: int = 0,
) -> list[ColumnEstimate]:
    """Number of distinct values of every column.

    Args:
      table: the merge of all partitions.
      unique_columns: names of columns that the schema says are unique. Those that repeat a value
        get a warning and the estimate of any other column.
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
    check_instance(table, TableSketch, "table", _MADE_BY)
    _check_names(unique_columns, "unique_columns")
    unique = set(() if unique_columns is None else unique_columns)
    if unknown := sorted(unique - table.columns.keys()):
        raise ValueError(f"unique_columns has {unknown}; there are {', '.join(table.columns)}")
    if partitions is not None:
        if not isinstance(partitions, Iterable):
            raise TypeError(f"partitions={partitions!r} is no list; wanted ids, as range(number)")
        _check_complete(table, list(partitions))
    samples = [_sample(table, name, name in unique) for name in table.columns]
    for name, sample in zip(table.columns, samples, strict=True):
        if sample.is_unique_key and (found := repeats(sample)):
            logger.warning(
                "column %r was declared unique, but %s; remove it from unique_columns", name, found
            )
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
        self._kinds: dict[str, tuple[str, str]] = {}
        self._num_batches = 0

    def start(self, batch: Any) -> list[str]:
        """The names of the columns, all of the first batch by default."""
        if not all(hasattr(batch, name) for name in ("schema", "select", "num_rows")):
            raise TypeError(
                f"batches gives {type(batch).__name__}; wanted Arrow record batches or tables, "
                "such as [table] or table.to_batches()"
            )
        if self.names is None:
            self.names = list(batch.schema.names)
            self.states = {name: empty_column() for name in self.names}
            self.non_null = dict.fromkeys(self.names, 0)
        if missing := [name for name in self.names if name not in batch.schema.names]:
            raise ValueError(
                f"columns {missing} do not exist; the table has {', '.join(batch.schema.names)}"
            )
        check_kinds(self._kinds, batch.schema, self.names, f"batch {self._num_batches}")
        self._num_batches += 1
        return self.names

    def add(
        self,
        name: str,
        batch: Any,
        settings: Settings,
        *,
        collapse: bool,
        serialize_nested: bool,
    ) -> None:
        """Take a column of a batch in; of a block sample one row of every value in it."""
        state, column = self.states[name], batch.column(name)
        before = state.num_rows
        try:
            if collapse:
                block, num_values = _collapsed(
                    hashed_blocks(column, settings.hasher, serialize_nested=serialize_nested)
                )
                state = add_rows(state, block, settings)
            else:
                state = add_column(state, column, settings, serialize_nested=serialize_nested)
                num_values = state.num_rows - before
        except TypeError as error:
            raise TypeError(f"column {name!r}: {error}") from error
        num_nulls = state.num_nulls + batch.num_rows - num_values
        self.states[name] = dataclasses.replace(state, num_nulls=num_nulls)


def _collapsed(blocks: Iterable[HashedBlock]) -> tuple[HashedBlock, int]:
    """One row of every value, and the number of all rows."""
    blocks = list(blocks)
    words = np.concatenate([np.zeros(0, np.uint64), *(block.words() for block in blocks)])
    return block_of(np.unique(words)), sum(block.num_values for block in blocks)


def _finish(
    state: ColumnState, settings: Settings, rate: float, partition: int | None, mixed_rates: bool
) -> Record:
    """The record of a column, with its rate, partition and, for mixed rates, its weights."""
    record = finish_column(state, settings)
    sketch, weights = record.sketch, None
    if mixed_rates:
        assert isinstance(sketch, BottomK)
        count = np.asarray(sketch.count)
        weights = singleton_weights(count[count > 0], rate)
    ids = np.array([] if partition is None else [partition], np.uint64)
    return dataclasses.replace(record, rate=rate, partitions=ids, weights=weights)


def _sample(table: TableSketch, name: str, is_unique: bool) -> Sample:
    column = table.columns[name]
    profile, num_retained = read_profile(column.record, column.population)
    is_blocks, nulls = table.is_block_sample, column.record.num_nulls
    return Sample(
        profile,
        num_retained,
        is_unique_key=is_unique,
        is_block_sample=is_blocks,
        # Nulls of the blocks that were not read are not known: there every row may hold a value.
        most=max(table.num_rows, table.num_read) - nulls if is_blocks else None,
        rows_read=table.num_read - nulls if is_blocks else None,
        mixed=None if column.record.weights is None else estimate_mixed(column.record),
    )


def _check_names(names: Any, what: str) -> None:
    if isinstance(names, str) or not isinstance(names, Iterable | None):
        raise TypeError(f"{what}={names!r} is no list; wanted names, as in [{names!r}]")


def _check_complete(table: TableSketch, partitions: list[int]) -> None:
    for name, column in table.columns.items():
        if missing := missing_partitions(column.record, partitions):
            raise ValueError(
                f"partitions {missing[:5]} are missing from column {name!r} ({len(missing)} of "
                f"{len(partitions)}); sketch them and merge them in"
            )
