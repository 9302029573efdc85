"""Distinct values of the columns of an Apache Spark DataFrame: sketched and merged on the cluster.

Every partition becomes one message where it lies, batch by batch; messages are merged in a tree of
tasks, and the driver receives a few of them::

    from jaxlab.ndv import spark

    for column in spark.estimate(df, rate=0.01):
        print(column.column, column.result.estimate)

`partition_messages` and `merge_messages` are its two halves, for messages that are kept: a table of
messages, appended to every day, is a table of statistics.

A message carries the number of its partition, and Spark takes the result of one attempt of every
task: what is retried or run twice by speculation counts once, what is lost is named. The tree has a
fixed shape and order, so that the answer is the same in every run, to the last bit. A sample is
drawn by the position of the rows, so it is the same again where Spark reads them in the same order,
from files that is, and not behind a shuffle.

What it costs: executors need jaxlab; JAX is imported in their Python workers, never in the daemon
that forks these, about two seconds for each worker process, and another for compiling if a column
is too large for a dictionary. `spark.python.worker.reuse`, on by default, pays that once a core and
not once a task; above `FAN_IN` partitions the merging tasks use a second set of workers. A worker
computes on one thread of the CPU, as Spark counts on, unless JAX_PLATFORMS or XLA_FLAGS are set for
the executors (`spark.executorEnv.JAX_PLATFORMS`): several workers would each reserve most of a GPU.

Spark keeps timestamps in microseconds, and their unit is part of their hash: sketches of a
DataFrame merge with those of Parquet files whose timestamps are microseconds too. The INT96 that
Spark itself writes by default is read in nanoseconds by Arrow, unless
`coerce_int96_timestamp_unit="us"`.
"""

import functools
import importlib
import inspect
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxlab.ndv import table
from jaxlab.ndv.choice import Rule, learned_rule
from jaxlab.ndv.column_records import MAX_VALUES
from jaxlab.ndv.formats import missing_partitions
from jaxlab.ndv.sampling import check_rate
from jaxlab.ndv.table import (
    ColumnEstimate,
    TableSketch,
    estimate_table,
    merge_all,
    table_from_bytes,
    table_to_bytes,
)

MESSAGES = "partition long, message binary"
"""Schema of a DataFrame of messages."""
FAN_IN = 32
"""Messages that one task, or the driver, merges."""
OPTIONS = frozenset(inspect.signature(table.sketch).parameters) - {
    "batches", "columns", "rate", "partition", "on_batch",
}  # fmt: skip
"""Options of `table.sketch` that are handed on."""
_WORKER_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

Rates = float | int | Sequence[float | int]


def estimate(
    df: Any,
    *,
    columns: Sequence[str] | None = None,
    rate: Rates = 1.0,
    unique_columns: Iterable[str] = (),
    method: str = "auto",
    rule: Rule = learned_rule,
    level: float = 0.95,
    num_draws: int = 256,
    seed: int = 0,
    max_values: int = MAX_VALUES,
    **options: Any,
) -> list[ColumnEstimate]:
    """Number of distinct values of every column of a DataFrame, in one pass over it.

    Args:
      df: the DataFrame.
      columns: names; all by default.
      rate: sampling rate in (0, 1], or one for each partition.
      unique_columns: names of columns that the schema says are unique.
      method: "auto", or an estimator's name.
      rule: chooses estimators when method is "auto".
      level: probability of the intervals.
      num_draws: bootstrap draws.
      seed: of the sample and of the bootstrap.
      max_values: of `merge_messages`.
      **options: of `table.sketch`, as for `partition_messages`.

    Raises:
      ValueError: if an argument is out of range or a column does not exist.
      TypeError: if a column has a type without canonical form, or an option is unknown.
    """
    unique = list(unique_columns)
    if unknown := [name for name in unique if name not in (columns or df.columns)]:
        raise ValueError(
            f"unique_columns has {unknown}; there are {', '.join(columns or df.columns)}"
        )
    found = sketch(df, columns=columns, rate=rate, seed=seed, max_values=max_values, **options)
    return estimate_table(
        found, unique_columns=unique, method=method, rule=rule, level=level, num_draws=num_draws,
        seed=seed,
    )  # fmt: skip


def sketch(
    df: Any,
    *,
    columns: Sequence[str] | None = None,
    rate: Rates = 1.0,
    max_values: int = MAX_VALUES,
    **options: Any,
) -> TableSketch:
    """The merged sketch of all partitions of a DataFrame, on the driver.

    Args:
      df: the DataFrame.
      columns: names; all by default.
      rate: sampling rate in (0, 1], or one for each partition.
      max_values: of `merge_messages`.
      **options: as for `partition_messages`.

    Raises:
      ValueError: if an argument is out of range, a column does not exist, or a partition is
        missing.
      TypeError: if a column has a type without canonical form, or an option is unknown.
    """
    messages = partition_messages(df, columns=columns, rate=rate, **options)
    # With adaptive execution only the RDD that is run knows how many partitions there are.
    num_partitions = _rdd(messages).getNumPartitions()
    if isinstance(rate, Sequence) and len(rate) != num_partitions:
        raise ValueError(
            f"rate has {len(rate)} numbers and the DataFrame {num_partitions} partitions; give one "
            "for each, or one number for all"
        )
    first = options.get("first_partition", 0)
    partitions = range(first, first + num_partitions)
    return merge_messages(messages, partitions=partitions, max_values=max_values)


def partition_messages(
    df: Any,
    *,
    columns: Sequence[str] | None = None,
    rate: Rates = 1.0,
    first_partition: int = 0,
    **options: Any,
) -> Any:
    """One message for each partition of a DataFrame, as a DataFrame; nothing runs yet.

    Rows reach a worker as a stream of Arrow batches and are not kept; a worker holds one batch and
    one sketch per column.

    Args:
      df: the DataFrame.
      columns: names; all by default.
      rate: sampling rate in (0, 1], or one for each partition, with `mixed_rates` implied.
      first_partition: id of the first partition. Messages of several DataFrames merge if no id is
        in two of them.
      **options: of `table.sketch`: is_sampled, collapse, mixed_rates, seed, budget_bytes,
        block_rows, hasher, serialize_nested. With `collapse` every Arrow batch is a block: let
        blocks be partitions, of at most `spark.sql.execution.arrow.maxRecordsPerBatch` rows.

    Returns:
      A DataFrame with the columns partition (long) and message (binary), one row a partition.

    Raises:
      ValueError: if an argument is out of range or a column does not exist.
      TypeError: if a column has a type without canonical form, or an option is unknown.
    """
    names = _select(df, columns)
    if unknown := sorted(options.keys() - OPTIONS):
        raise TypeError(f"options {unknown} are unknown; there are {', '.join(sorted(OPTIONS))}")
    if isinstance(rate, Sequence):
        rate, options = tuple(rate), {**options, "mixed_rates": True}
    for one in rate if isinstance(rate, tuple) else (rate,):
        check_rate(one)
    _check_types(df, names, options)
    # Plain names: Spark would read a dot as a field, and does not tell `a` from `A`.
    positions = [df.columns.index(name) for name in names]
    plain = df.toDF(*(f"c{i}" for i in range(len(df.columns))))
    function = functools.partial(
        _sketch_partition, names=names, rate=rate, first_partition=first_partition, options=options
    )
    return plain.select([f"c{i}" for i in positions]).mapInArrow(function, MESSAGES)


def merge_messages(
    messages: Any,
    *,
    partitions: Iterable[int] | None = None,
    max_values: int = MAX_VALUES,
) -> TableSketch:
    """The merge of a DataFrame of messages, done by the cluster up to the last few.

    Args:
      messages: what `partition_messages` gave, perhaps written and read again.
      partitions: ids that must all be inside.
      max_values: of `table.merge`: values of a column that are kept, and sent from one merging task
        to the next in 5 to 7 bytes each.

    Raises:
      ValueError: if there is no message, messages do not merge, a partition is in two of them, or
        one is missing or was not declared.
      TypeError: on Spark Connect, which has no RDDs.
    """
    parts = sorted(_merge_on_cluster(messages, max_values), key=lambda part: part[0])
    tables = (table_from_bytes(message) for _, message in parts)
    found = merge_all(tables, max_values=max_values)
    if partitions is not None:
        _check_complete(found, list(partitions))
    return found


def _merge_on_cluster(messages: Any, max_values: int) -> list[tuple[int, bytes]]:
    """At most `FAN_IN` messages with their keys, on the driver."""
    rdd = _rdd(messages)
    number = rdd.getNumPartitions()
    if number <= FAN_IN:
        # Without a function on the RDD no second Python worker is started for each task.
        return [_key_and_message(row) for row in messages.collect()]
    merged = rdd.map(_key_and_message)
    while number > FAN_IN:
        number = -(-number // FAN_IN)
        sent = merged.repartitionAndSortWithinPartitions(number, functools.partial(_group, number))
        merged = sent.mapPartitions(functools.partial(_merge_group, number, max_values))
    return merged.collect()


def _select(df: Any, columns: Sequence[str] | None) -> list[str]:
    """The names of the columns, each of them once in the DataFrame."""
    names = list(df.columns if columns is None else dict.fromkeys(columns))
    if missing := [name for name in names if name not in df.columns]:
        raise ValueError(f"columns {missing} do not exist; there are {', '.join(df.columns)}")
    if twice := sorted({name for name in names if df.columns.count(name) > 1}):
        raise ValueError(f"columns {twice} exist more than once; rename one of each, with toDF")
    if not names:
        raise ValueError("there is no column to sketch; name at least one")
    return names


def _check_types(df: Any, names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse here what would otherwise fail on the cluster, by sketching no rows."""
    import pyarrow as pa

    types = importlib.import_module("pyspark.sql.pandas.types")
    arrays = []
    for name in names:
        kind = df.schema[name].dataType
        try:
            arrays.append(pa.array([], types.to_arrow_type(kind)))
        except TypeError:
            raise TypeError(
                f"column {name!r}: Spark has no Arrow form of {kind.simpleString()}; cast it, to a "
                "string for example, or leave it out"
            ) from None
    table.sketch([pa.record_batch(arrays, names=list(names))], partition=0, **options)


def _sketch_partition(
    batches: Iterable[Any],
    *,
    names: Sequence[str],
    rate: float | tuple[float, ...],
    first_partition: int,
    options: Mapping[str, Any],
) -> Iterator[Any]:
    """The message of a partition; runs in a worker."""
    import pyarrow as pa

    _prepare_worker()
    index = importlib.import_module("pyspark").TaskContext.get().partitionId()
    if isinstance(rate, tuple):
        if index >= len(rate):
            raise ValueError(f"rate has {len(rate)} numbers, and there is a partition {index}")
        rate = rate[index]
    found = table.sketch(
        (batch.rename_columns(list(names)) for batch in batches),
        columns=names, rate=rate, partition=first_partition + index, **options,
    )  # fmt: skip
    columns = [pa.array([first_partition + index], pa.int64()), pa.array([table_to_bytes(found)])]
    yield pa.record_batch(columns, names=["partition", "message"])


def _prepare_worker() -> None:
    """One CPU thread for a worker, unless the executor's environment says something else.

    Neither has an effect once this process has used JAX, as it must not.
    """
    os.environ.setdefault("XLA_FLAGS", _WORKER_XLA_FLAGS)
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")


def _key_and_message(row: Any) -> tuple[int, bytes]:
    return row["partition"], bytes(row["message"])


def _group(number: int, key: int) -> int:
    return key % number


def _merge_group(
    number: int, max_values: int, messages: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, bytes]]:
    """The merge of the messages of a group, which come in the order of their keys."""
    _prepare_worker()
    groups = set()

    def tables() -> Iterator[TableSketch]:
        for key, message in messages:
            groups.add(_group(number, key))
            yield table_from_bytes(message)

    first = next(parts := tables(), None)
    if first is not None:
        merged = merge_all(itertools.chain([first], parts), max_values=max_values)
        yield groups.pop(), table_to_bytes(merged)


def _rdd(messages: Any) -> Any:
    if ".connect." in type(messages).__module__:
        raise TypeError(
            "Spark Connect has no RDDs to merge on; collect partition_messages(df) and merge here: "
            "merge_all(table_from_bytes(row.message) for row in messages.collect())"
        )
    return messages.rdd


def _check_complete(found: TableSketch, partitions: list[int]) -> None:
    record = next(iter(found.columns.values())).record
    if missing := missing_partitions(record, partitions):
        raise ValueError(
            f"partitions {missing[:5]} are missing ({len(missing)} of {len(partitions)}); make "
            "their messages again and merge them in"
        )
