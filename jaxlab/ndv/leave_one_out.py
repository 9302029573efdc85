"""The distributed method of Li et al.: frequencies of a sample from two sketches per machine.

Every machine sends a HyperLogLog sketch of the distinct values of its sample (S_j) and one of the
values that its sample holds exactly once (A_j). A value is a singleton of the whole sample exactly
when it is one of a single machine and absent elsewhere, so with Z_j the union of S_l over l != j

    f1 = sum_j (|A_j u Z_j| - |Z_j|),    d = |union of all S_j|.

Unions are register-wise maxima. The Z_j of k machines come in four forms with equal bits:
`without_own_direct` (k^2 maxima), `without_own_tree` (k log k, a dyadic tree like the original's),
`without_own_scans` (running maxima from both ends) and `without_own_top_two`, which needs nothing
of a register but its two largest values and so becomes `pmax`, `psum`, `pmax` on a mesh.

The error of f1 is several times that of one sketch, since f1 is a sum of differences: on Poisson
samples 2 to 3 times 1.04 / sqrt(m) at f1 / d = 0.77, about 6 times at 0.034. The general form for
f_i grows exponentially in i and its error with it. `registers`, `bottom_k` and `mask_sketch` give
the whole profile with less error from fewer bytes.

References:
  Li, Wei, Ding, Dai, Lu, Zhou, "Sampling-based estimation of the number of distinct values in
  distributed environment", KDD 2022, arXiv:2206.05476, and its code.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt64

from jaxlab.ndv import hll
from jaxlab.ndv.hashing import AUTHORS, Hasher, Lanes, join_words, split_words


class MachineSketches(NamedTuple):
    """What a machine sends.

    Attributes:
      distinct: registers of the distinct values of its sample.
      by_count: registers of the values that its sample holds exactly 1, 2, ... times.
    """

    distinct: UInt8[np.ndarray, " m"]
    by_count: UInt8[np.ndarray, "orders m"]


def count_hashes(
    hashes: Lanes, valid: Bool[np.ndarray, " rows"] | None = None
) -> tuple[UInt64[np.ndarray, " values"], Int[np.ndarray, " values"]]:
    """The distinct hashes of a machine's rows and how often each occurs, on the host.

    Args:
      hashes: (rows,) hashes, NumPy.
      valid: which rows count. All by default.
    """
    words = join_words(hashes)
    return np.unique(words if valid is None else words[valid], return_counts=True)


def sketch_machine(
    words: UInt64[np.ndarray, " values"],
    counts: Int[np.ndarray, " values"],
    precision: int,
    *,
    hasher: Hasher = AUTHORS,
    orders: int = 1,
) -> MachineSketches:
    """The sketches of one machine, on the host.

    Args:
      words: distinct 64-bit hashes of its values.
      counts: how often each occurs in its sample.
      precision: log2 of the number of registers; 16 in the experiments of the paper.
      hasher: the hash, the same for all machines; id 0 or 2.
      orders: number of exact counts that get a sketch of their own.

    Raises:
      ValueError: for hash id 1, whose registers need 128 bits.
    """
    start = hll.empty(precision, hasher=hasher)
    lanes = split_words(words)
    chosen = [counts > 0, *(counts == i for i in range(1, orders + 1))]
    made = [np.asarray(hll.update_on_host(start, lanes, which).registers) for which in chosen]
    return MachineSketches(made[0], np.stack(made[1:]))


def without_own_direct(distinct: UInt8[Array, "machines m"]) -> UInt8[Array, "machines m"]:
    """For every machine the union of the others' sketches; one maximum for every pair."""
    own = jnp.eye(distinct.shape[0], dtype=bool)[:, :, None]
    return jnp.where(own, jnp.uint8(0), distinct[None]).max(axis=1)


def without_own_scans(distinct: UInt8[Array, "machines m"]) -> UInt8[Array, "machines m"]:
    """The same by running maxima over the machines before and after."""
    nothing = jnp.zeros_like(distinct[:1])
    before = jax.lax.cummax(jnp.concatenate([nothing, distinct[:-1]]), axis=0)
    after = jax.lax.cummax(jnp.concatenate([distinct[1:], nothing]), axis=0, reverse=True)
    return jnp.maximum(before, after)


def without_own_tree(distinct: UInt8[Array, "machines m"]) -> UInt8[Array, "machines m"]:
    """The same by a dyadic tree: what lies outside a node is outside its parent or its sibling."""
    machines = distinct.shape[0]
    depth = max(machines - 1, 0).bit_length()
    levels = [jnp.pad(distinct, ((0, 2**depth - machines), (0, 0)))]
    for _ in range(depth):
        levels.append(jnp.maximum(levels[-1][0::2], levels[-1][1::2]))
    outside = jnp.zeros_like(levels[-1])
    for level in reversed(levels[:-1]):
        siblings = level.reshape(-1, 2, level.shape[-1])[:, ::-1].reshape(level.shape)
        outside = jnp.maximum(jnp.repeat(outside, 2, axis=0), siblings)
    return outside[:machines]


def without_own_top_two(distinct: UInt8[Array, "machines m"]) -> UInt8[Array, "machines m"]:
    """The same from the largest value of every register, its multiplicity, and the next value."""
    first = distinct.max(axis=0, keepdims=True)
    is_first = distinct == first
    second = jnp.where(is_first, jnp.uint8(0), distinct).max(axis=0, keepdims=True)
    alone = is_first & (is_first.sum(axis=0, keepdims=True) == 1)
    return jnp.where(alone, second, first)


def without_own_over_axis(
    distinct: UInt8[Array, "machines m"], axis_name: str
) -> UInt8[Array, "machines m"]:
    """The same for machines spread over a mesh axis; inside `shard_map`.

    Args:
      distinct: the sketches of this device's machines, one or more.
      axis_name: the mesh axis over which the machines lie.

    Returns:
      For each of this device's machines the union of all other machines' sketches.
    """
    ranks = distinct.astype(jnp.int32)
    first = jax.lax.pmax(ranks.max(axis=0, keepdims=True), axis_name)
    is_first = ranks == first
    number = jax.lax.psum(is_first.sum(axis=0, keepdims=True, dtype=jnp.int32), axis_name)
    second = jnp.where(is_first, 0, ranks).max(axis=0, keepdims=True)
    second = jax.lax.pmax(second, axis_name)
    return jnp.where(is_first & (number == 1), second, first).astype(jnp.uint8)


def singletons(
    distinct: UInt8[Array | np.ndarray, "machines m"],
    once: UInt8[Array | np.ndarray, "once_machines once_m"],
    estimate: Callable[..., Float[Array | np.ndarray, " machines"]],
) -> Float[Array | np.ndarray, ""]:
    """f1, the number of values that the whole sample holds exactly once.

    Single terms may be negative by the noise of the sketches; their sum is clamped at 0, not they.
    In float32 the differences of k machines round by about 1e-7 sqrt(k) d, far below that noise.

    Args:
      distinct: registers of every machine's distinct values, all of the same hash and seed.
      once: registers of every machine's local singletons.
      estimate: from registers to the number of distinct values, such as `hll.raw_estimate`.

    Returns:
      float64 from NumPy arrays (with `raw_estimate`: the numbers of the original), else float32.

    Raises:
      ValueError: if the two arrays differ in shape.
    """
    _check_pair(distinct, once)
    if isinstance(distinct, np.ndarray):
        others = np.asarray(without_own_top_two(jnp.asarray(distinct)))
        terms = estimate(np.maximum(once, others)) - estimate(others)
        return np.asarray(max(float(terms.sum()), 0.0))
    others = without_own_top_two(distinct)
    terms = estimate(jnp.maximum(once, others)) - estimate(others)
    return jnp.maximum(terms.sum(), 0)


def singletons_over_axis(
    distinct: UInt8[Array, "machines m"],
    once: UInt8[Array, "once_machines once_m"],
    estimate: Callable[..., Float[Array, " machines"]],
    axis_name: str,
) -> Float[Array, ""]:
    """f1 for machines spread over a mesh axis; inside `shard_map`, the same on all devices.

    Three reductions of m numbers and one of a scalar; no device holds more than its own sketches.

    Args:
      distinct: registers of the distinct values of this device's machines.
      once: registers of their local singletons.
      estimate: from registers to the number of distinct values.
      axis_name: the mesh axis over which the machines lie.

    Raises:
      ValueError: if the two arrays differ in shape.
    """
    _check_pair(distinct, once)
    others = without_own_over_axis(distinct, axis_name)
    terms = estimate(jnp.maximum(once, others)) - estimate(others)
    return jnp.maximum(jax.lax.psum(terms.sum(), axis_name), 0)


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as an ordered sum of non-negative ones.

    Example:
      >>> list(compositions(2, 2))
      [(0, 2), (1, 1), (2, 0)]
    """
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def frequency_by_inclusion_exclusion(
    order: int, machines: int, union_size: Callable[[frozenset[tuple[int, int]]], float]
) -> float:
    """f_order, the number of values that the whole sample holds exactly `order` times.

    Sums over the ways a to share `order` among the machines. With P the machines that take part and
    Z the union of the distinct values of the others, one of them counts
    |intersection over P of A_j^(a_j) without Z|, which is the alternating sum over the non-empty
    subsets T of P of |union over T of A_j^(a_j) u Z|, less |Z|. There are C(order + machines - 1,
    order) ways and 2^order subsets: keep to order 1 or 2 with sketches, whose errors add up.

    Args:
      order: i of f_i, at least 1.
      machines: number of machines, at least 1.
      union_size: size of the union of sets, each named (machine, count): the values that the
        machine holds exactly `count` times, and for count 0 all that it holds.

    Raises:
      ValueError: if order or machines is not positive.
    """
    if order < 1 or machines < 1:
        raise ValueError(f"order={order} and machines={machines} must both be at least 1")
    total = 0.0
    for shares in compositions(order, machines):
        parts = [(machine, share) for machine, share in enumerate(shares) if share]
        rest = frozenset((machine, 0) for machine, share in enumerate(shares) if not share)
        total -= union_size(rest)
        for size in range(1, len(parts) + 1):
            for subset in itertools.combinations(parts, size):
                total += (-1) ** (size + 1) * union_size(rest.union(subset))
    return total


def frequency_from_registers(
    distinct: UInt8[np.ndarray, "machines m"],
    by_count: UInt8[np.ndarray, "orders machines m"],
    order: int,
    estimate: Callable[..., Float[np.ndarray, ""]],
) -> float:
    """f_order from sketches, on the host; at least 0.

    Args:
      distinct: registers of every machine's distinct values.
      by_count: registers of the values that a machine holds exactly 1, 2, ... times.
      order: i of f_i; 1 or 2 in practice.
      estimate: from one sketch's registers to the number of distinct values.

    Raises:
      ValueError: if there are no sketches for that order.
    """
    if not 1 <= order <= len(by_count):
        raise ValueError(
            f"order={order} is not from 1 to {len(by_count)}, the counts that have sketches"
        )
    sizes: dict[frozenset[tuple[int, int]], float] = {}

    def union_size(names: frozenset[tuple[int, int]]) -> float:
        if names not in sizes:
            parts = [distinct[j] if not i else by_count[i - 1, j] for j, i in names]
            union = np.max([np.zeros_like(distinct[0]), *parts], axis=0)
            sizes[names] = float(estimate(union))
        return sizes[names]

    return max(frequency_by_inclusion_exclusion(order, len(distinct), union_size), 0.0)


def subsample_counts(
    counts: Int[np.ndarray, " values"], rate: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Distinct values and singletons after sampling the rows of a sample once more.

    Args:
      counts: how often each value occurs in the sample.
      rate: share of its rows to keep, the rate at which the sample itself was drawn.
      rng: source of randomness.

    Returns:
      d' and f1' of `subsampled_shlosser`.

    Raises:
      ValueError: if the rate is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate={rate} is not in (0, 1]")
    kept = rng.binomial(counts, rate)
    return int((kept > 0).sum()), int((kept == 1).sum())


def subsampled_shlosser(d: float, f1: float, sub_d: float, sub_f1: float) -> float:
    """Shlosser's estimate without the profile: d + f1 (d - d') / f1'.

    The sample is sampled once more at its own rate q, to d' distinct values and f1' singletons. In
    expectation d - d' = sum (1 - q)^i f_i and f1' = sum i q (1 - q)^(i - 1) f_i, the two sums of
    Shlosser's estimator. A sub-sample without singletons is taken to hold one.

    Args:
      d: distinct values of the sample.
      f1: its singletons.
      sub_d: distinct values of the sub-sample.
      sub_f1: its singletons.

    Returns:
      The estimate, not clamped to the number of rows.

    Raises:
      ValueError: if a count is negative or the sub-sample has more values than the sample.

    Example:
      >>> subsampled_shlosser(d=100.0, f1=40.0, sub_d=20.0, sub_f1=16.0)
      300.0
    """
    if min(d, f1, sub_d, sub_f1) < 0 or sub_d > d:
        raise ValueError(
            f"d={d}, f1={f1}, sub_d={sub_d}, sub_f1={sub_f1} must not be negative, and the "
            "sub-sample cannot have more distinct values than the sample"
        )
    return d + f1 * (d - sub_d) / max(sub_f1, 1.0)


def _check_pair(
    distinct: UInt8[Array | np.ndarray, "machines m"],
    once: UInt8[Array | np.ndarray, "once_machines once_m"],
) -> None:
    if distinct.shape != once.shape:
        raise ValueError(
            f"distinct has shape {distinct.shape} and once {once.shape}; wanted one sketch of each "
            "for every machine, with the same number of registers"
        )
