"""Samples of whole blocks of rows (row groups, pages, files): cheap to read, and treacherous.

Where equal values lie together, the rows of a block say little of the rest of the table: on a
sorted key of four rows each, 1 % of the blocks holds every value four times, and an estimator that
takes them for a sample of rows answers a hundredth of the truth. COLLAPSE keeps one row of every
value in every block and takes the result for a uniform sample of the table so collapsed, whose
number of distinct values is the same.

It repairs sorted and clustered keys, and is no cure: on other columns its answers have been off by
factors of two to fifteen. Estimators that divide by f_2 (Chao, AE) break on collapsed samples, DUJ1
does not. Estimates from block samples carry the status "block" and the interval that is certain:
from the values seen to these and one more for every row that was not read. Nothing narrower holds,
since blocks that are all alike, of one value each, may lie among others of which every row differs.

References:
  Chaudhuri, Das, Srivastava 2004, "Effective use of block-level sampling in statistics estimation",
  SIGMOD (COLLAPSE).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64, Shaped

from jaxlab.ndv.arguments import as_integers, as_vector, check_integer
from jaxlab.ndv.profile import Profile, profile_from_counts
from jaxlab.ndv.sampling import check_rate, rows_without_replacement

Values = Sequence[Any] | Shaped[np.ndarray, " rows"]
Blocks = Sequence[int] | Int[np.ndarray, " block_rows"]
CLUSTERED_ABOVE = 0.2
"""Difference of the shares of `Clustering` above which a column counts as clustered."""


class Clustering(NamedTuple):
    """How much more often values repeat inside blocks than they would if rows lay at random.

    Attributes:
      in_blocks: share of the rows of a block that repeat a value of the same block.
      at_random: the same share of blocks of rows that lie at random. Alone neither says anything:
        a column of few values has a high share of both.
    """

    in_blocks: float
    at_random: float

    @property
    def difference(self) -> float:
        """`in_blocks` less `at_random`, in [-1, 1]."""
        return self.in_blocks - self.at_random

    @property
    def is_clustered(self) -> bool:
        """Whether the difference is above 0.2: do not take the rows for a sample of rows."""
        return self.difference > CLUSTERED_ABOVE


def sample_blocks(
    num_blocks: int, rate: float | int, *, seed: int, partition: int = 0
) -> Int64[np.ndarray, " sampled"]:
    """Numbers of the blocks to read, ascending: round(rate num_blocks) of them, at least one.

    Divide their number by `num_blocks` for the rate that was really drawn.

    Args:
      num_blocks: blocks of the partition.
      rate: share of the blocks, in (0, 1].
      seed: of the draw.
      partition: number of the partition.

    Raises:
      ValueError: if an argument is out of range.
    """
    check_rate(rate)
    check_integer(num_blocks, "num_blocks")
    number = min(num_blocks, max(1, math.floor(rate * num_blocks + 0.5)))
    return rows_without_replacement(num_blocks, number, seed=seed, partition=partition)


def collapse(
    values: Values, blocks: Blocks
) -> tuple[Shaped[np.ndarray, " collapsed"], Int64[np.ndarray, " collapsed"]]:
    """Every value of every block once.

    Args:
      values: sampled values, without nulls, or their 64-bit hashes.
      blocks: the block of every row.

    Returns:
      Values and their blocks, sorted by block, then by value.

    Raises:
      ValueError: if the lengths differ.
    """
    values, blocks = as_vector(values, "values"), as_integers(blocks, "blocks")
    if len(values) != len(blocks):
        raise ValueError(f"{len(values)} values and {len(blocks)} blocks; wanted one block per row")
    order = np.lexsort((values, blocks))
    values, blocks = values[order], blocks[order]
    first = np.ones(len(values), bool)
    first[1:] = (values[1:] != values[:-1]) | (blocks[1:] != blocks[:-1])
    return values[first], blocks[first].astype(np.int64)


def collapsed_profile(values: Values, blocks: Blocks, rate: float | int) -> Profile:
    """Profile of the collapsed sample, in a population of collapsed rows / rate.

    For an estimate with an interval: `Sample(profile, is_block_sample=True, most=rows of the whole
    column, rows_read=len(values))`.

    Args:
      values: sampled values, without nulls, or their 64-bit hashes.
      blocks: the block of every row.
      rate: share of the blocks that was read.

    Raises:
      ValueError: if the lengths differ or the rate is not in (0, 1].
    """
    check_rate(rate)
    collapsed, _ = collapse(values, blocks)
    _, counts = np.unique(collapsed, return_counts=True)
    return profile_from_counts(counts, population=len(collapsed) / rate, rate=rate)


def repeated_share(values: Values, blocks: Blocks) -> float:
    """Share of rows that repeat a value of their own block; 0 without rows.

    Raises:
      ValueError: if the lengths differ.
    """
    return (len(values) - len(collapse(values, blocks)[0])) / max(len(values), 1)


def clustering(
    values: Values,
    blocks: Blocks,
    *,
    seed: int = 0,
    row_sample: Sequence[Any] | Shaped[np.ndarray, " compared"] | None = None,
) -> Clustering:
    """Whether values lie together, by comparison with rows at random.

    Finds what differs between the blocks that were read. Blocks of one and the same value look like
    rows at random, whatever the other blocks hold: no cluster found is no proof of none.

    Args:
      values: values of a block sample, without nulls, or their hashes.
      blocks: the block of every row; at least two different ones, or nothing can be compared.
      seed: of the shuffle.
      row_sample: as many values of a sample of single rows, to be compared with. Without it the
        rows of the block sample are shuffled among its own blocks, which tells clustered columns
        the better the more blocks there are.

    Raises:
      ValueError: if lengths differ, or there is one block and no row sample.
    """
    values, blocks = as_vector(values, "values"), as_integers(blocks, "blocks")
    if row_sample is None and len(values) and blocks.min() == blocks.max():
        raise ValueError(
            "blocks has one block only: nothing to compare with; read a second block or give a "
            "row_sample of the same size"
        )
    source = values if row_sample is None else as_vector(row_sample, "row_sample")
    shuffled = np.random.default_rng(seed).permutation(source)
    return Clustering(repeated_share(values, blocks), repeated_share(shuffled, blocks))
