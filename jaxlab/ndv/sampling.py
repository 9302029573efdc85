"""Which rows to read: samples that do not depend on how a table is cut into calls and machines.

Every random number has an address, (seed, partition, row), and comes from a counter-based
generator (Philox 4x64): a row is in the sample or not, whoever looks at it and in which order.

* Bernoulli: each row by itself, with one probability; the number of rows is random.
* Fixed size without replacement, over partitions of known sizes: `hypergeometric_sizes` says how
  many rows each gives, `rows_without_replacement` which; over streams of unknown length a
  `Reservoir` keeps the rows of the smallest tags, and reservoirs merge.
* With replacement: `multinomial_sizes` and `rows_with_replacement`; part of the literature (Chao,
  Chao and Lee, the method of moments) assumes it.

Whole blocks of rows are sampled in `blocks`, partitions at different rates in `mixed_rates`.

References:
  Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", SC; Vitter 1985,
  "Random sampling with a reservoir", ACM TOMS 11; Efraimidis and Spirakis 2006, "Weighted random
  sampling with a reservoir", Information Processing Letters 97 (rows by the order of random tags).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt64

from jaxlab.ndv.arguments import (
    as_integers,
    as_vector,
    check_instance,
    check_integer,
    check_number,
)

_ROWS_PER_COUNTER = 4
_BERNOULLI, _TAGS, _ROWS, _REPLACED, _SIZES = range(5)
"""Streams of one seed that share no number."""

Sizes = Sequence[int] | Int64[np.ndarray, " partitions"]


def bernoulli_rows(
    rate: float | int, *, seed: int, partition: int, start: int, num_rows: int
) -> Int64[np.ndarray, " sampled"]:
    """Which of the rows start, ..., start + num_rows - 1 of a partition are in the sample.

    Args:
      rate: probability of each row, in (0, 1].
      seed: the same in every process, at least 0.
      partition: number of the partition.
      start: position of the first row in the partition.
      num_rows: how many rows to look at.

    Returns:
      Positions relative to `start`, ascending.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> whole = bernoulli_rows(0.5, seed=1, partition=0, start=0, num_rows=10)
      >>> part = bernoulli_rows(0.5, seed=1, partition=0, start=7, num_rows=3)
      >>> bool((part + 7 == whole[whole >= 7]).all())
      True
    """
    check_rate(rate)
    if rate == 1:
        _check_not_negative(start=start, num_rows=num_rows)
        return np.arange(num_rows, dtype=np.int64)
    words = row_words(seed=seed, partition=partition, start=start, num_rows=num_rows)
    # 2^64 as a Python number: the threshold is exact for every rate that a float can hold.
    return np.flatnonzero(words < np.uint64(int(rate * 2**64)))


def row_words(
    *, seed: int, partition: int, start: int, num_rows: int, stream: int = _BERNOULLI
) -> UInt64[np.ndarray, " rows"]:
    """Uniform 64-bit words of rows, each a function of (seed, partition, row, stream).

    Args:
      seed: at least 0, below 2^64.
      partition: likewise.
      start: position of the first row in the partition.
      num_rows: how many words to give.
      stream: which of the independent words of a row.

    Raises:
      ValueError: if an argument is out of range.
    """
    _check_not_negative(seed=seed, partition=partition, start=start, num_rows=num_rows)
    counter, skipped = divmod(start, _ROWS_PER_COUNTER)
    generator = _philox(seed, partition, stream, counter)
    return generator.random_raw(skipped + num_rows)[skipped:]


def hypergeometric_sizes(
    partition_rows: Sizes, num_samples: int, *, seed: int
) -> Int64[np.ndarray, " partitions"]:
    """How many rows of each partition are in a sample of fixed size without replacement.

    Every partition first draws each of its rows with the same probability; as many rows as are then
    too many or too few are taken back or added uniformly. All samples of the size stay equally
    likely, so the counts have the multivariate hypergeometric distribution, for any number of rows.

    Args:
      partition_rows: rows of the partitions, at least 0.
      num_samples: rows of the sample, at most all.
      seed: of the draw.

    Raises:
      ValueError: if a size is negative, or there are fewer rows than samples.
    """
    rows = _partition_rows(partition_rows)
    check_integer(num_samples, "num_samples")
    total = int(rows.sum())
    if not 0 <= num_samples <= total:
        raise ValueError(
            f"num_samples={num_samples} is not from 0 to the {total} rows of all partitions"
        )
    rng = _generator(seed, 0, _SIZES)
    taken = rng.binomial(rows, num_samples / total if total else 0.0).astype(np.int64)
    missing = num_samples - int(taken.sum())
    if missing > 0:
        return taken + _counts_of_choice(rows - taken, missing, rng)
    return taken - _counts_of_choice(taken, -missing, rng)


def rows_without_replacement(
    num_rows: int, num_samples: int, *, seed: int, partition: int
) -> Int64[np.ndarray, " sampled"]:
    """Positions of `num_samples` different rows of a partition, ascending, all equally likely.

    Raises:
      ValueError: if there are fewer rows than samples, or an argument is negative.
    """
    _check_not_negative(num_rows=num_rows, num_samples=num_samples)
    if num_samples > num_rows:
        raise ValueError(
            f"num_samples={num_samples} of num_rows={num_rows}: a sample without replacement has "
            "at most all rows"
        )
    rng = _generator(seed, partition, _ROWS)
    return np.sort(rng.choice(num_rows, num_samples, replace=False, shuffle=False))


def multinomial_sizes(
    partition_rows: Sizes, num_samples: int, *, seed: int
) -> Int64[np.ndarray, " partitions"]:
    """How many of `num_samples` draws with replacement fall into each partition.

    Raises:
      ValueError: if a size is negative, or rows are drawn where there are none.
    """
    rows = _partition_rows(partition_rows)
    _check_not_negative(num_samples=num_samples)
    if num_samples and not rows.sum():
        raise ValueError(f"num_samples={num_samples} of no rows; wanted a partition with rows")
    share = rows / max(int(rows.sum()), 1)
    return _generator(seed, 1, _SIZES).multinomial(num_samples, share)


def rows_with_replacement(
    num_rows: int, num_samples: int, *, seed: int, partition: int
) -> Int64[np.ndarray, " sampled"]:
    """Positions of `num_samples` rows of a partition, ascending, each drawn from all rows.

    Raises:
      ValueError: if rows are drawn where there are none, or an argument is negative.
    """
    _check_not_negative(num_rows=num_rows, num_samples=num_samples)
    if num_samples and not num_rows:
        raise ValueError(f"num_samples={num_samples} of num_rows=0; wanted a partition with rows")
    return np.sort(_generator(seed, partition, _REPLACED).integers(0, num_rows or 1, num_samples))


@dataclasses.dataclass(frozen=True)
class Reservoir:
    """A sample of fixed size without replacement of all rows seen so far.

    Attributes:
      tags: random words of the kept rows, ascending; at most `capacity`.
      values: what was given for these rows, in the same order.
      num_rows: rows seen.
      capacity: rows kept at most.
    """

    tags: UInt64[np.ndarray, " kept"]
    values: Shaped[np.ndarray, " kept"]
    num_rows: int
    capacity: int


def empty_reservoir(capacity: int, dtype: np.dtype | type = np.uint64) -> Reservoir:
    """A reservoir that has seen nothing.

    Args:
      capacity: rows to keep, at least 1.
      dtype: type of the values, such as hashes.

    Raises:
      ValueError: if the capacity is not positive.
    """
    check_integer(capacity, "capacity", "how many rows to keep")
    if capacity < 1:
        raise ValueError(f"capacity={capacity}; wanted at least one row to keep")
    return Reservoir(np.zeros(0, np.uint64), np.zeros(0, dtype), 0, capacity)


def update_reservoir(
    reservoir: Reservoir,
    values: Sequence[Any] | Shaped[np.ndarray, " rows"],
    *,
    seed: int,
    partition: int,
    start: int,
) -> Reservoir:
    """The reservoir after more rows, the same for any order and any cut into calls.

    Args:
      reservoir: where to start.
      values: the rows start, start + 1, ... of the partition.
      seed: the same in every process.
      partition: number of the partition.
      start: position of the first row.

    Raises:
      ValueError: if an argument is negative.
    """
    check_instance(reservoir, Reservoir, "reservoir", "begin with empty_reservoir(capacity)")
    array = as_vector(values, "values")
    # Python's integers have no width of their own: they get that of the reservoir.
    values = array if isinstance(values, np.ndarray) else array.astype(reservoir.values.dtype)
    tags = row_words(
        seed=seed, partition=partition, start=start, num_rows=len(values), stream=_TAGS
    )
    if len(reservoir.tags) == reservoir.capacity:
        low = np.flatnonzero(tags < reservoir.tags[-1])
        tags, kept = tags[low], values[low]
    else:
        kept = values
    added = Reservoir(tags, kept, len(values), reservoir.capacity)
    return merge_reservoirs(reservoir, added)


def merge_reservoirs(a: Reservoir, b: Reservoir) -> Reservoir:
    """The reservoir of the rows of both; associative and commutative.

    Raises:
      ValueError: if the capacities differ.
    """
    for name, one in (("a", a), ("b", b)):
        check_instance(one, Reservoir, name, "begin with empty_reservoir(capacity)")
    if a.capacity != b.capacity:
        raise ValueError(
            f"cannot merge: capacities {a.capacity} and {b.capacity}; build both reservoirs with "
            "the same one"
        )
    tags = np.concatenate([a.tags, b.tags])
    order = np.argsort(tags, kind="stable")[: a.capacity]
    values = np.concatenate([a.values, b.values])[order]
    return Reservoir(tags[order], values, a.num_rows + b.num_rows, a.capacity)


def non_null_population(num_rows: int, num_sampled: int, num_nulls_sampled: int) -> float:
    """Rows of a table that are not null in a column, as a sample of its rows tells.

    Args:
      num_rows: rows of the table.
      num_sampled: rows of the sample, nulls included.
      num_nulls_sampled: how many of them are null.

    Returns:
      num_rows (1 - null share of the sample); 0 for an empty sample.

    Raises:
      ValueError: unless num_nulls_sampled <= num_sampled <= num_rows.
    """
    for name, value in (
        ("num_rows", num_rows),
        ("num_sampled", num_sampled),
        ("num_nulls_sampled", num_nulls_sampled),
    ):
        check_integer(value, name)
    if not 0 <= num_nulls_sampled <= num_sampled <= num_rows:
        raise ValueError(
            f"num_nulls_sampled={num_nulls_sampled}, num_sampled={num_sampled}, "
            f"num_rows={num_rows}; wanted 0 <= nulls <= sampled <= rows"
        )
    return num_rows * (num_sampled - num_nulls_sampled) / num_sampled if num_sampled else 0.0


def check_rate(rate: float | int) -> None:
    """Refuse what is no sampling rate.

    Raises:
      TypeError: if it is no number.
      ValueError: if it is not in (0, 1].
    """
    check_number(rate, "rate", "a number in (0, 1]; 0.01 reads one row in a hundred")
    if not 0 < rate <= 1:
        raise ValueError(f"rate={rate} is not in (0, 1]; 0.01 reads one row in a hundred")


def _philox(seed: int, partition: int, stream: int, counter: int) -> np.random.Philox:
    key = np.array([seed, partition], np.uint64)
    return np.random.Philox(key=key, counter=np.array([counter, 0, stream, 0], np.uint64))


def _generator(seed: int, partition: int, stream: int) -> np.random.Generator:
    _check_not_negative(seed=seed, partition=partition)
    return np.random.Generator(_philox(seed, partition, stream, 0))


def _counts_of_choice(sizes: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Per-partition counts of a uniform choice of `number` of the items of all partitions."""
    ends = np.cumsum(sizes)
    chosen = rng.choice(int(ends[-1]) if len(ends) else 0, number, replace=False, shuffle=False)
    where = np.searchsorted(ends, chosen, side="right")
    return np.bincount(where, minlength=len(sizes)).astype(np.int64)


def _partition_rows(partition_rows: Sizes) -> np.ndarray:
    rows = as_integers(partition_rows, "partition_rows")
    if rows.size and rows.min() < 0:
        raise ValueError(f"partition_rows has the entry {rows.min()}; wanted at least 0")
    return rows


def _check_not_negative(**arguments: int) -> None:
    for name, value in arguments.items():
        check_integer(value, name)
        if not 0 <= value < 2**63:
            raise ValueError(f"{name}={value} is not from 0 to 2^63 - 1")
