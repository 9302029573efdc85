"""Partitions sampled at different rates: GEE_MIXED, from weights that sketches carry.

A profile mixes values of all partitions and forgets where each was seen; no estimator of a profile
is right when a small partition was read whole and a large one at 1 %. GEE has a form that is: a
value that was seen exactly once, in a partition of which n_p of N_p rows were sampled, stands for
sqrt(N_p / n_p) values, every other value for itself. With equal rates that is GEE.

References:
  Charikar, Chaudhuri, Motwani, Narasayya 2000, "Towards estimation error guarantees for distinct
  values", PODS (GEE, the case of one rate).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt

from jaxlab.ndv import bottom_k, registers
from jaxlab.ndv.arguments import as_integers, as_reals, as_vector
from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.formats import Record
from jaxlab.ndv.mask_sketch import MaskSketch
from jaxlab.ndv.registers import Registers
from jaxlab.ndv.sampling import check_rate


class MixedEstimate(NamedTuple):
    """GEE_MIXED with its upper bound.

    Attributes:
      value: the estimate.
      high: what it is if a value seen once stands for N_p / n_p values, as in the upper bound of
        GEE.
      deviation: standard deviation of `high` over the values that a sketch may keep; 0 if it kept
        all.
    """

    value: float
    high: float
    deviation: float = 0.0


def singleton_weights(
    counts: Sequence[int] | Int[np.ndarray, " values"] | UInt[np.ndarray, " values"],
    rate: float | int,
) -> Float32[np.ndarray, " values"]:
    """Weights of the values of one partition's sample.

    Args:
      counts: rows of each value in the sample.
      rate: sampling rate of the partition, n_p / N_p.

    Returns:
      sqrt(1 / rate) where the count is 1, else 1.

    Raises:
      ValueError: if the rate is not in (0, 1].
    """
    check_rate(rate)
    return np.where(as_vector(counts, "counts") == 1, 1 / np.sqrt(rate), 1.0).astype(np.float32)


def gee_mixed_from_counts(
    counts: Sequence[Sequence[int]] | Int[np.ndarray, "partitions values"],
    rates: Sequence[float | int] | Float[np.ndarray, " rates"],
) -> float:
    """GEE_MIXED of known counts.

    Args:
      counts: rows of each value in each partition's sample.
      rates: sampling rates of the partitions, in (0, 1].

    Raises:
      ValueError: if a rate is out of range or the numbers of partitions differ.

    Example:
      >>> gee_mixed_from_counts([[1, 1, 0], [0, 4, 1]], [0.25, 1.0])
      4.0
    """
    if len(counts) != len(rates):
        raise ValueError(f"{len(counts)} partitions have counts and {len(rates)} have rates")
    rates = as_reals(rates, "rates")
    for rate in rates.tolist():
        check_rate(rate)
    counts = np.stack([as_integers(part, "counts of a partition") for part in counts])
    total = counts.sum(axis=0)
    weight_of_singletons = counts.T @ (1 / np.sqrt(rates))
    return float(np.where(total == 1, weight_of_singletons, total > 0).sum())


def gee_mixed(record: Record) -> float:
    """GEE_MIXED of a record with weights: what its retained values stand for, together.

    Not clamped; the truth is at least the number of sampled values and at most that of all rows.

    Args:
      record: of registers, bottom-k or mask sketches, built with `singleton_weights`.

    Raises:
      ValueError: if the record has no weights.
    """
    return estimate_mixed(record).value


def estimate_mixed(record: Record) -> MixedEstimate:
    """`gee_mixed` of a record, its upper bound, and how far a sketch may have that off.

    Of all values a sketch keeps each with the same probability theta. The sum of w over those that
    it kept, divided by theta, has the variance (1 - theta) / theta times the sum of w^2 over all.

    Args:
      record: of registers, bottom-k or mask sketches, built with `singleton_weights`.

    Raises:
      ValueError: if the record has no weights.
    """
    if record.weights is None:
        raise ValueError(
            "record has no weights; build it with singleton_weights of each partition's rate"
        )
    sketch, weights = record.sketch, record.weights.astype(np.float64)
    if isinstance(sketch, Registers):
        weights = weights[np.asarray(sketch.count) > 0]
        scale = float(registers.distinct(sketch)) / max(len(weights), 1)
    elif isinstance(sketch, BottomK):
        weights = weights[: sketch.count.shape[-1] - 1]
        scale = 1 / float(bottom_k.theta(sketch))
    else:
        assert isinstance(sketch, MaskSketch)
        scale = 2.0 ** int(sketch.level)
    value, high, fourth = (float((weights**power).sum() * scale) for power in (1, 2, 4))
    return MixedEstimate(value, high, math.sqrt(fourth * max(scale - 1, 0.0)))
