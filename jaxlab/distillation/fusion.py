"""How the terms of a distillation objective are weighed against each other.

Terms differ in size by orders of magnitude: a squared difference of hidden states, a divergence of
attention maps, a cross entropy. Each rule here takes the named terms of a batch, as `Mean`s, and
gives the loss, the weights that it used, the value of every term before weighting, and its own
state:

| rule | weights | state |
|---|---|---|
| `FixedWeights` | the given ones | none |
| `RunningMeans` | divided by the running mean of the term | in `extra` |
| `LogVariances` | `exp(-s)` of a learned s, plus s | s is trained with the parameters |
| `GradientBalance` | so that gradients on shared parameters have one norm | in `extra` |

A term without any valid entry in a batch (no labelled row) counts 0 and moves no running mean.

References:
  Kendall et al. 2018, arXiv:1705.07115 (learned variances); Chen et al. 2018, arXiv:1711.02257
  (balanced gradients; here in closed form, not by a second optimizer).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxlab.distillation.means import Mean

Terms = Mapping[str, Mean]
Scalars = dict[str, Float[Array, ""]]

_SMALL = 1e-8


class Fused(NamedTuple):
    """A weighted sum of terms.

    Attributes:
      loss: the sum, float32.
      weights: by which every term was multiplied.
      values: of every term before that.
    """

    loss: Float[Array, ""]
    weights: Scalars
    values: Scalars

    def metrics(self) -> Scalars:
        """What to report: `term/NAME` unweighted, `weight/NAME`."""
        return {
            **{f"term/{name}": value for name, value in self.values.items()},
            **{f"weight/{name}": weight for name, weight in self.weights.items()},
        }


class RunningState(NamedTuple):
    """Exponential means of non-negative numbers.

    Attributes:
      means: weighted sums of what was seen, by name.
      totals: sums of the weights, by which they are divided.
    """

    means: Scalars
    totals: Scalars


@dataclasses.dataclass(frozen=True)
class FixedWeights:
    """Given weights.

    Attributes:
      weights: (name, weight), none negative.
    """

    weights: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        """Refuse what is no weight.

        Raises:
          ValueError: listing all of them.
        """
        wrong = [f"{name}={w}" for name, w in self.weights if not (w >= 0 and math.isfinite(w))]
        if wrong:
            raise ValueError(f"weights {', '.join(wrong)} must be 0 or more, and finite")
        names = [name for name, _ in self.weights]
        if len(set(names)) != len(names):
            raise ValueError(f"terms {names} are named more than once; give each one weight")

    def apply(self, terms: Terms, factors: Mapping[str, Array] | None = None) -> Fused:
        """The weighted sum.

        Args:
          terms: by name, those that have a weight.
          factors: of some of them at this point of the run (a schedule); the others have 1.

        Raises:
          ValueError: if the names are not those of the weights.
        """
        return _sum(terms, self.bases(terms, factors))

    def bases(self, terms: Terms, factors: Mapping[str, Array] | None = None) -> Scalars:
        """Weight times factor of every term.

        Args:
          terms: by name.
          factors: as in `apply`.

        Raises:
          ValueError: as `apply`.
        """
        known, factors = dict(self.weights), factors or {}
        if terms.keys() != known.keys() or not factors.keys() <= known.keys():
            raise ValueError(
                f"there are weights of {sorted(known)}, terms {sorted(terms)} and factors of "
                f"{sorted(factors)}; give every term one weight, and factors of terms only"
            )
        return {
            name: jnp.asarray(known[name] * factors.get(name, 1.0), jnp.float32) for name in terms
        }


@dataclasses.dataclass(frozen=True)
class RunningMeans:
    """Every term divided by its running mean: all have about the size of their weight.

    Attributes:
      base: weights of the terms.
      decay: of the running means, in [0, 1).
    """

    base: FixedWeights
    decay: float = 0.99

    def __post_init__(self) -> None:
        """Refuse a decay that is none.

        Raises:
          ValueError: naming it.
        """
        _check_decay(self.decay)

    def init(self) -> RunningState:
        """The state before the first batch."""
        return _no_means(self.base)

    def update(
        self, state: RunningState, terms: Terms, factors: Mapping[str, Array] | None = None
    ) -> tuple[RunningState, Fused]:
        """The state after a batch, and its weighted sum, for which its own values count already.

        Args:
          state: before it.
          terms: of the batch.
          factors: see `FixedWeights.apply`.

        Raises:
          ValueError: as `FixedWeights.apply`.
        """
        bases = self.base.bases(terms, factors)
        seen = {name: jax.lax.stop_gradient(mean.value) for name, mean in terms.items()}
        state = _move(state, seen, _present(terms), self.decay)
        means = _means(state)
        return state, _sum(terms, {name: bases[name] / means[name] for name in terms})


@dataclasses.dataclass(frozen=True)
class LogVariances:
    """Learned weights: the sum over terms of `w (exp(-s) L + s)`, s the log variance of a term.

    It is twice the published sum, so that s = 0 is the sum with the given weights. It is smallest
    at `s = log L`. A term with no valid entries in a batch does not move its s.

    Attributes:
      base: weights of the terms.
    """

    base: FixedWeights

    def init(self) -> Scalars:
        """The log variances before the first step; they belong to the trained parameters."""
        return {name: jnp.zeros((), jnp.float32) for name, _ in self.base.weights}

    def apply(
        self,
        log_variances: Mapping[str, Array],
        terms: Terms,
        factors: Mapping[str, Array] | None = None,
        *,
        share: float = 1.0,
    ) -> Fused:
        """The weighted sum with its penalty, which goes without weight decay.

        Args:
          log_variances: s, by name.
          terms: of the batch.
          factors: see `FixedWeights.apply`.
          share: of the penalty that counts here, where the terms are of a part of a batch.

        Raises:
          ValueError: as `FixedWeights.apply`.
        """
        bases, present = self.base.bases(terms, factors), _present(terms)
        fused = _sum(terms, {name: bases[name] * jnp.exp(-log_variances[name]) for name in terms})
        penalty = sum(bases[name] * present[name] * log_variances[name] for name in terms)
        return fused._replace(loss=fused.loss + share * penalty)


@dataclasses.dataclass(frozen=True)
class GradientBalance:
    """Weights with which the gradients of all terms on shared parameters have the same norm.

    `w_i = base_i (mean_j g_j) / g_i` with running means g of the norms. `norms` costs one backward
    pass a term: take them every few steps, and of few parameters (the last shared layer).

    Attributes:
      base: weights of the terms, by which the norms differ in the end.
      decay: of the running means, in [0, 1).
    """

    base: FixedWeights
    decay: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a decay that is none.

        Raises:
          ValueError: naming it.
        """
        _check_decay(self.decay)

    def init(self) -> RunningState:
        """The state before the first batch: weights are the given ones until norms come."""
        return _no_means(self.base)

    def norms(self, terms_of: Callable[[PyTree], Mapping[str, Mean]], shared: PyTree) -> Scalars:
        """The norm of every term's gradient.

        Args:
          terms_of: from the shared parameters to the terms of a batch.
          shared: the parameters.
        """

        def values(params: PyTree) -> Scalars:
            return {name: mean.value for name, mean in terms_of(params).items()}

        gradients = jax.jacrev(values)(shared)
        return {name: optax.tree.norm(tree) for name, tree in gradients.items()}

    def update(self, state: RunningState, norms: Mapping[str, Array]) -> RunningState:
        """The state after the norms of a batch. A norm of 0 (nothing valid) does not count.

        Args:
          state: before it.
          norms: of every term.
        """
        seen = {name: jax.lax.stop_gradient(norm) for name, norm in norms.items()}
        return _move(state, seen, {name: norm > 0 for name, norm in seen.items()}, self.decay)

    def apply(
        self, state: RunningState, terms: Terms, factors: Mapping[str, Array] | None = None
    ) -> Fused:
        """The weighted sum.

        Args:
          state: of the norms.
          terms: of the batch.
          factors: see `FixedWeights.apply`.

        Raises:
          ValueError: as `FixedWeights.apply`.
        """
        bases, means = self.base.bases(terms, factors), _means(state)
        known = {name: (state.totals[name] > 0).astype(jnp.float32) for name in terms}
        num_known = jnp.maximum(sum(known.values()), 1.0)
        typical = sum(known[name] * means[name] for name in terms) / num_known
        weights = {
            name: bases[name] * jnp.where(known[name] > 0, typical / means[name], 1.0)
            for name in terms
        }
        return _sum(terms, weights)


def _sum(terms: Terms, weights: Scalars) -> Fused:
    values = {name: mean.value for name, mean in terms.items()}
    loss = sum((weights[name] * values[name] for name in terms), jnp.float32(0.0))
    return Fused(jnp.asarray(loss), weights, values)


def _present(terms: Terms) -> dict[str, Array]:
    return {name: mean.count > 0 for name, mean in terms.items()}


def _no_means(base: FixedWeights) -> RunningState:
    names = [name for name, _ in base.weights]
    return RunningState(*({name: jnp.zeros((), jnp.float32) for name in names} for _ in range(2)))


def _move(
    state: RunningState, seen: Mapping[str, Array], counts: Mapping[str, Array], decay: float
) -> RunningState:
    """Running sums with one more value each, where it counts."""

    def moved(old: Scalars, new: Mapping[str, Array]) -> Scalars:
        return {
            name: jnp.where(counts[name], decay * old[name] + (1 - decay) * new[name], old[name])
            for name in old
        }

    ones = {name: jnp.float32(1.0) for name in state.totals}
    return RunningState(moved(state.means, seen), moved(state.totals, ones))


def _means(state: RunningState) -> Scalars:
    """The running means, to divide by: 1 where nothing was seen yet, and none is tiny."""
    return {
        name: jnp.where(
            total > 0, jnp.maximum(state.means[name] / jnp.maximum(total, _SMALL), _SMALL), 1.0
        )
        for name, total in state.totals.items()
    }


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay={decay} of a running mean must be in [0, 1), such as 0.99")
