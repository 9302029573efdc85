"""Partitions sampled at different rates: GEE_MIXED, from weights that sketches carry.

A profile mixes values of all partitions and forgets where each was seen; no estimator of a profile
is right when a small partition was read whole and a large one at 1 %. GEE has a form that is: a
value that was seen exactly once, in a partition of which n_p of N_p rows were sampled, stands for
sqrt(N_p / n_p) values, every other value for itself. With equal rates that is GEE.

References:
  Charikar, Chaudhuri, Motwani, Narasayya 2000, "Towards estimation error guarantees for distinct
  values", PODS (GEE, the case of one rate).
"""

import numpy as np
from jaxtyping import Float, Float32, Int, UInt

from jaxlab.ndv import bottom_k, registers
from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.formats import Record
from jaxlab.ndv.mask_sketch import MaskSketch
from jaxlab.ndv.registers import Registers
from jaxlab.ndv.sampling import check_rate


def singleton_weights(
    counts: Int[np.ndarray, " values"] | UInt[np.ndarray, " values"], rate: float | int
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
    return np.where(counts == 1, 1 / np.sqrt(rate), 1.0).astype(np.float32)


def gee_mixed_from_counts(
    counts: Int[np.ndarray, "partitions values"], rates: Float[np.ndarray, " rates"]
) -> float:
    """GEE_MIXED of known counts.

    Args:
      counts: rows of each value in each partition's sample.
      rates: sampling rates of the partitions, in (0, 1].

    Raises:
      ValueError: if a rate is out of range or the numbers of partitions differ.

    Example:
      >>> counts = np.array([[1, 1, 0], [0, 4, 1]])
      >>> gee_mixed_from_counts(counts, np.array([0.25, 1.0]))
      4.0
    """
    if len(counts) != len(rates):
        raise ValueError(f"{len(counts)} partitions have counts and {len(rates)} have rates")
    for rate in rates.tolist():
        check_rate(rate)
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
    if record.weights is None:
        raise ValueError(
            "record has no weights; build it with singleton_weights of each partition's rate"
        )
    sketch, weights = record.sketch, record.weights.astype(np.float64)
    if isinstance(sketch, Registers):
        used = np.asarray(sketch.count) > 0
        mean = weights[used].sum() / max(int(used.sum()), 1)
        return float(mean * registers.distinct(sketch))
    if isinstance(sketch, BottomK):
        capacity = sketch.count.shape[-1] - 1
        return float(weights[:capacity].sum() / bottom_k.theta(sketch))
    assert isinstance(sketch, MaskSketch)
    return float(weights.sum() * 2.0 ** int(sketch.level))
