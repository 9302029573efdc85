"""Aggregation that a minority of wrong or hostile clients cannot take over.

Every rule sees the updates of a round as a tree whose leaves are (updates, ...), float32 or
narrower, and gives one update, float32. Distances and norms are those of the whole update, all
leaves together; medians and trimmed means are taken of every number by itself. But for
`multi_krum`, `norm_bounding` and those that say so, all updates count equally: weights are what
clients say of themselves. Staleness takes nothing away.

With `compat` a rule does what FederatedScope 0.3.0 does where that departs from the definition.

References:
  Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"
  (Krum); Yin et al. 2018, "Byzantine-Robust Distributed Learning", arXiv:1803.01498 (median,
  trimmed mean); El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in
  Byzantium", arXiv:1802.07927 (Bulyan); Sun et al. 2019, "Can You Really Backdoor Federated
  Learning?", arXiv:1911.07963 (norm bounding); Pillutla et al. 2022, "Robust Aggregation for
  Federated Learning", arXiv:1912.13445 (geometric median); Karimireddy et al. 2021, "Learning from
  History for Byzantine Robust Optimization", arXiv:2012.10333 (centred clipping);
  `federatedscope/core/aggregators` of FederatedScope 0.3.0.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxlab.federated.aggregators import StackAggregator
from jaxlab.federated.strategy import ConfigError

Combine = Callable[[PyTree, Array, Array], PyTree]
Distances = Float[Array, "updates updates"]


def median() -> StackAggregator:
    """The median of every number; of an even number of updates the mean of the two in the middle.

    Example:
      >>> import numpy as np
      >>> updates = {"w": jnp.array([[0.0], [1.0], [2.0], [1e6]])}
      >>> median().combine(updates, jnp.ones(4), jnp.zeros(4, jnp.int32))["w"]
      Array([1.5], dtype=float32)
    """

    def combine(updates: PyTree, weights: Array, staleness: Array) -> PyTree:
        return jax.tree.map(_middle, updates)

    return _rule(combine, 1, "the median")


def trimmed_mean(ratio: float) -> StackAggregator:
    """The mean of every number without its largest and its smallest values.

    Of m updates floor(ratio * m) are dropped at either end, in exact arithmetic: 29 of 100 at 0.29.

    Args:
      ratio: share that is dropped at either end, in [0, 0.5).

    Raises:
      ConfigError: (a ValueError) if the ratio is out of range.
    """
    if not 0 <= ratio < 0.5:
        raise ConfigError(f"ratio={ratio} must be in [0, 0.5): at 0.5 nothing would be left")

    def combine(updates: PyTree, weights: Array, staleness: Array) -> PyTree:
        num_updates = weights.shape[0]
        dropped = math.floor(Fraction(str(ratio)) * num_updates)
        return jax.tree.map(lambda leaf: _trimmed(leaf, dropped), updates)

    return _rule(combine, 1, f"the trimmed mean (ratio {ratio})")


def krum(num_byzantine: int, *, compat: bool = False) -> StackAggregator:
    """The update that is nearest to its neighbours.

    The score of an update is the sum of the squared distances to its m - f - 2 nearest others, of m
    updates with f hostile ones among them; the smallest wins.

    Args:
      num_byzantine: f, at most this many updates are hostile; m must be at least f + 3, and the
        proof of the paper wants 2 f + 3.
      compat: distances are sums over the leaves of norms that are not squared, so that what a leaf
        counts depends on how a model is cut into leaves.

    Raises:
      ConfigError: (a ValueError) if `num_byzantine` is negative.
    """
    return multi_krum(num_byzantine, 1, compat=compat)


def multi_krum(num_byzantine: int, num_selected: int, *, compat: bool = False) -> StackAggregator:
    """The weighted mean of the updates with the best scores of `krum`.

    Args:
      num_byzantine: f, at most this many updates are hostile; m must be at least f + 3.
      num_selected: updates that are averaged; all if there are fewer.
      compat: see `krum`.

    Raises:
      ConfigError: (a ValueError) if a number is out of range.
    """
    _check_byzantine(num_byzantine)
    if num_selected < 1:
        raise ConfigError(f"num_selected={num_selected} must be at least 1")

    def combine(updates: PyTree, weights: Array, staleness: Array) -> PyTree:
        distances = _pairwise(updates, compat)
        everyone = jnp.ones(weights.shape[0], bool)
        scores = krum_scores(distances, everyone, weights.shape[0] - num_byzantine - 2)
        best = jnp.argsort(scores)[:num_selected]
        shares = weights[best] / weights[best].sum()
        return jax.tree.map(lambda leaf: _weighted(leaf[best], shares), updates)

    name = f"Krum (num_byzantine {num_byzantine})"
    return _rule(combine, num_byzantine + 3, name)


def bulyan(
    num_byzantine: int, *, compat: bool = False, sample_rate: float = 1.0
) -> StackAggregator:
    """Krum again and again, then of every number the mean of those nearest to the median.

    Of m updates theta = m - 2 f are selected: the winner of Krum, over max(1, m' - f - 2)
    neighbours among the m' that are left, until there are enough. Of theta values the
    theta - 2 f that are closest to their median are averaged.

    Args:
      num_byzantine: f, at most this many updates are hostile; m must be at least 4 f + 3.
      compat: select the m - floor(2 r f) best scores of one run of Krum, with its distances of
        `compat`, and drop floor(r f) values at either end of every number, f being hostile clients
        among all and r the `sample_rate`.
      sample_rate: share of the clients in a cohort, for `compat` only.

    Raises:
      ConfigError: (a ValueError) if a number is out of range.
    """
    _check_byzantine(num_byzantine)
    if not 0 < sample_rate <= 1 or (sample_rate != 1 and not compat):
        raise ConfigError(
            f"sample_rate={sample_rate} must be in (0, 1], and is for compat=True only: otherwise "
            "num_byzantine is that of a cohort"
        )

    def combine(updates: PyTree, weights: Array, staleness: Array) -> PyTree:
        num_updates = weights.shape[0]
        distances = _pairwise(updates, compat)
        if compat:
            everyone = jnp.ones(num_updates, bool)
            scores = krum_scores(distances, everyone, num_updates - num_byzantine - 2)
            kept = num_updates - int(2 * sample_rate * num_byzantine)
            chosen, dropped = jnp.argsort(scores)[:kept], int(sample_rate * num_byzantine)
            return jax.tree.map(lambda leaf: _trimmed(leaf[chosen], dropped), updates)
        theta = num_updates - 2 * num_byzantine
        chosen = select_by_krum(distances, num_byzantine, theta)
        kept = theta - 2 * num_byzantine
        return jax.tree.map(lambda leaf: _mean_around_middle(leaf[chosen], kept), updates)

    return _rule(combine, 4 * num_byzantine + 3, f"Bulyan (num_byzantine {num_byzantine})")


def norm_bounding(bound: float) -> StackAggregator:
    """The weighted mean of updates that are scaled down to a norm.

    Args:
      bound: largest L2 norm of an update, over all of its leaves.

    Raises:
      ConfigError: (a ValueError) if the bound is not positive.
    """
    _check_positive("bound", bound)

    def combine(updates: PyTree, weights: Array, staleness: Array) -> PyTree:
        norms = jnp.sqrt(_squared_norms(updates))
        scales = jnp.minimum(1.0, bound / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny))
        shares = scales * weights / weights.sum()
        return jax.tree.map(lambda leaf: _weighted(leaf, shares), updates)

    return _rule(combine, 1, f"norm bounding ({bound})")


def geometric_median(
    *, num_steps: int = 100, smoothing: float = 1e-6, weighted: bool = False
) -> StackAggregator:
    """The point whose sum of distances to the updates is smallest, by the steps of Weiszfeld.

    Args:
      num_steps: steps from the mean.
      smoothing: distances below it count as it, so that a step does not divide by zero.
      weighted: updates count by their weights, as in Pillutla et al., and not equally.

    Raises:
      ConfigError: (a ValueError) if a number is out of range.
    """
    _check_positive("smoothing", smoothing)
    _check_positive("num_steps", num_steps)

    def combine(updates: PyTree, weights: Array, staleness: Array) -> PyTree:
        counted = weights if weighted else jnp.ones_like(weights)

        def step(_: Array, center: PyTree) -> PyTree:
            distances = jnp.sqrt(_squared_norms(_minus(updates, center)))
            pulls = counted / jnp.maximum(distances, smoothing)
            return _mean(updates, pulls)

        return jax.lax.fori_loop(0, num_steps, step, _mean(updates, counted))

    return _rule(combine, 1, "the geometric median")


def centered_clipping(radius: float, *, num_steps: int = 3) -> StackAggregator:
    """The mean of updates that are drawn towards a centre, which is the last such mean.

    v <- v + mean_i (x_i - v) min(1, radius / ||x_i - v||), from v = 0: updates are differences to
    the model, and without clients nothing moves.

    Args:
      radius: how far from the centre an update counts wholly, in L2 norm.
      num_steps: how often the centre moves.

    Raises:
      ConfigError: (a ValueError) if a number is out of range.
    """
    _check_positive("radius", radius)
    _check_positive("num_steps", num_steps)

    def combine(updates: PyTree, weights: Array, staleness: Array) -> PyTree:
        num_updates = weights.shape[0]

        def step(_: Array, center: PyTree) -> PyTree:
            away = _minus(updates, center)
            norms = jnp.sqrt(_squared_norms(away))
            scales = jnp.minimum(1.0, radius / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny))
            moved = jax.tree.map(lambda leaf: _weighted(leaf, scales / num_updates), away)
            return jax.tree.map(jnp.add, center, moved)

        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], jnp.float32), updates)
        return jax.lax.fori_loop(0, num_steps, step, start)

    return _rule(combine, 1, f"centred clipping (radius {radius})")


def krum_scores(
    distances: Distances, available: Bool[Array, " updates"], num_neighbours: Int[Array, ""] | int
) -> Float[Array, " updates"]:
    """For every update the sum of the distances to its nearest others; infinite if not available.

    Args:
      distances: between all updates, squared for Krum as it is defined.
      available: which updates take part.
      num_neighbours: how many are summed.
    """
    num_updates = distances.shape[0]
    others = available[None, :] & ~jnp.eye(num_updates, dtype=bool)
    nearest = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
    counted = jnp.arange(num_updates)[None, :] < num_neighbours
    return jnp.where(available, jnp.where(counted, nearest, 0.0).sum(axis=1), jnp.inf)


def select_by_krum(
    distances: Distances, num_byzantine: int, num_selected: int
) -> Int[Array, " selected"]:
    """The winners of Krum, each among those that the ones before it have left.

    Args:
      distances: squared, between all updates.
      num_byzantine: hostile updates at most.
      num_selected: winners.
    """
    num_updates = distances.shape[0]

    def select(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        available, chosen = carry
        neighbours = jnp.maximum(1, num_updates - number - num_byzantine - 2)
        scores = krum_scores(distances, available, neighbours)
        # The last one has no neighbour and an infinite score, like those that are gone.
        winner = jnp.argmin(jnp.where(available, jnp.minimum(scores, _LARGEST), jnp.inf))
        return available.at[winner].set(False), chosen.at[number].set(winner)

    start = (jnp.ones(num_updates, bool), jnp.zeros(num_selected, jnp.int32))
    return jax.lax.fori_loop(0, num_selected, select, start)[1]


_LARGEST = float(jnp.finfo(jnp.float32).max)


def _rule(combine: Combine, min_updates: int, name: str) -> StackAggregator:
    return StackAggregator(jax.jit(combine), min_updates, name)


def _check_byzantine(num_byzantine: object) -> None:
    if isinstance(num_byzantine, bool) or not isinstance(num_byzantine, int) or num_byzantine < 0:
        raise ConfigError(
            f"num_byzantine={num_byzantine!r} must not be negative, and an integer: a number of "
            "clients"
        )


def _check_positive(name: str, value: float | int) -> None:
    if not 0 < value < np.inf:
        raise ConfigError(f"{name}={value} must be positive and finite")


def _rows(leaf: Array) -> Float[Array, "updates numbers"]:
    return leaf.astype(jnp.float32).reshape(leaf.shape[0], -1)


def _squared_norms(updates: PyTree) -> Float[Array, " updates"]:
    squares = [jnp.square(_rows(leaf)).sum(axis=1) for leaf in jax.tree.leaves(updates)]
    return functools.reduce(jnp.add, squares)


def _pairwise(updates: PyTree, compat: bool) -> Distances:
    """Distances between all updates: squared, or in `compat` the sum over leaves of the norms.

    Differences are taken before they are squared: updates have much in common.
    """

    def from_one(leaf: Array) -> Distances:
        rows = _rows(leaf)
        squares = jax.lax.map(lambda row: jnp.square(rows - row[None]).sum(axis=1), rows)
        return jnp.sqrt(squares) if compat else squares

    return functools.reduce(jnp.add, map(from_one, jax.tree.leaves(updates)))


def _minus(updates: PyTree, center: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, c: leaf.astype(jnp.float32) - c[None], updates, center)


def _weighted(leaf: Array, shares: Float[Array, " updates"]) -> Array:
    """Sum over updates of share times update, float32."""
    shares = shares.reshape(-1, *[1] * (leaf.ndim - 1))
    return (leaf.astype(jnp.float32) * shares).sum(axis=0)


def _mean(updates: PyTree, weights: Float[Array, " updates"]) -> PyTree:
    return jax.tree.map(lambda leaf: _weighted(leaf, weights / weights.sum()), updates)


def _middle(leaf: Array) -> Array:
    ordered, half = jnp.sort(leaf.astype(jnp.float32), axis=0), leaf.shape[0] // 2
    return ordered[half] if leaf.shape[0] % 2 else (ordered[half - 1] + ordered[half]) / 2


def _trimmed(leaf: Array, dropped: int) -> Array:
    ordered = jnp.sort(leaf.astype(jnp.float32), axis=0)
    return ordered[dropped : leaf.shape[0] - dropped].mean(axis=0)


def _mean_around_middle(leaf: Array, kept: int) -> Array:
    """The mean of those values that are closest to the median."""
    ordered = jnp.sort(leaf.astype(jnp.float32), axis=0)
    nearest = jnp.argsort(jnp.abs(ordered - _middle(leaf)[None]), axis=0)[:kept]
    return jnp.take_along_axis(ordered, nearest, axis=0).mean(axis=0)
