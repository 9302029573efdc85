"""From the updates of a round to one: weighted means, with what staleness takes away.

A linear aggregator is two coefficients an update, `sum a_i x_i / sum b_i`: such a mean can be
folded while clients are computed. A `StackAggregator` sees all updates at once, and a
`ModelAggregator` is made anew from the model of every round.

References:
  McMahan et al. 2017, arXiv:1602.05629; Nguyen et al. 2022 (FedBuff), arXiv:2106.06639;
  `federatedscope/core/aggregators` of FederatedScope 0.3.0.
"""

import inspect
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.federated.checks import describe, describe_tree
from jaxlab.federated.strategy import ConfigError

_logger = logging.getLogger(__name__)

Coefficients = Callable[
    [Float[np.ndarray, " updates"], Int[np.ndarray, " updates"]],
    tuple[Float[np.ndarray, " updates"], Float[np.ndarray, " updates"]],
]


class LinearAggregator(NamedTuple):
    """A mean of updates.

    Attributes:
      coefficients: `(weights, staleness) -> (a, b)`; the mean is `sum a_i x_i / sum b_i`.
      weighted: whether an update counts by its weight, and not as one.
    """

    coefficients: Coefficients
    weighted: bool


class StackAggregator(NamedTuple):
    """A rule that must see all updates at once.

    Attributes:
      combine: `(updates, every leaf (updates, ...); weights (updates,); staleness (updates,)) ->
        update`, traceable; all weights are positive and all numbers finite.
      min_updates: fewer cannot be combined, and leave the model as it is.
      name: for messages.
      gives_all: `combine` gives an update for each, every leaf (updates, ...), as an algorithm with
        a model for every client takes it.
    """

    combine: Callable[[PyTree, Array, Array], PyTree]
    min_updates: int = 1
    name: str = "aggregator"
    gives_all: bool = False


class ModelAggregator(NamedTuple):
    """A rule that depends on the model of the server.

    Attributes:
      at: `(what clients are sent in a round, number of the round) -> rule` of that round.
    """

    at: Callable[[PyTree, int], StackAggregator]


Rule = LinearAggregator | StackAggregator
Aggregator = Rule | ModelAggregator

Take = Callable[[int, np.float32, PyTree], PyTree]
"""`(place of an update, factor, after) -> factor * update`, float32, computed after `after`."""


def weighted_mean(
    *, ignore_weight: bool = False, staleness_exponent: float = 0.0
) -> LinearAggregator:
    """The mean of FedAvg; late updates are worth `(1 + staleness) ** -exponent`.

    The discount takes from an update without giving to the others: the weights are those of the
    whole buffer, as in the original.

    Args:
      ignore_weight: every update counts as one instead of by its number of examples.
      staleness_exponent: 0 for no discount.

    Raises:
      ConfigError: (a ValueError) if the exponent is negative.

    Example:
      >>> mean = weighted_mean(staleness_exponent=0.5)
      >>> a, b = mean.coefficients(np.array([10.0, 30.0]), np.array([0, 2]))
      >>> np.round(a / b.sum(), 6)
      array([0.25    , 0.433013])
    """
    if not 0 <= staleness_exponent < np.inf:
        raise ConfigError(
            f"staleness_exponent={staleness_exponent} would make late updates worth more; use 0 or "
            "more"
        )

    def coefficients(
        weights: Float[np.ndarray, " updates"], staleness: Int[np.ndarray, " updates"]
    ) -> tuple[Float[np.ndarray, " updates"], Float[np.ndarray, " updates"]]:
        counted = (weights > 0).astype(np.float64) if ignore_weight else weights
        return counted * (1.0 + staleness) ** -staleness_exponent, counted

    return LinearAggregator(coefficients, not ignore_weight)


def combine_updates(
    rule: Rule,
    weights: Float[np.ndarray, " updates"],
    staleness: Int[np.ndarray, " updates"],
    take: Take,
) -> PyTree:
    """One update made of those whose weight is positive.

    A mean adds them one by one in the order in which they came, so that the sum does not depend on
    which of them were computed together.

    Args:
      rule: what is made of them.
      weights: by which they count; 0 leaves one out.
      staleness: rounds between the model of each and the server's.
      take: gives them. A program of its own: multiplied and added in one, a term would be rounded
        or not depending on what else is computed.

    Returns:
      A tree of float32, or None if there is too little to make it of.
    """
    if isinstance(rule, LinearAggregator):
        above, below = rule.coefficients(weights, staleness)
        total = float(below.sum())
        if not total > 0:
            return None
        update: PyTree = None
        for place, factor in enumerate(above / total):
            if factor:
                term = take(place, np.float32(factor), update)
                update = term if update is None else _add(update, term)
        return update
    used = np.flatnonzero(weights > 0)
    if len(used) < rule.min_updates:
        _logger.warning(
            "%s needs %d updates and got %d: the model stays as it is",
            rule.name, rule.min_updates, len(used),
        )  # fmt: skip
        return None
    pieces: list[PyTree] = []
    for place in used.tolist():
        pieces.append(take(place, np.float32(1.0), pieces[-1] if pieces else None))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pieces)
    own_weights = jnp.asarray(weights[used], jnp.float32)
    combined = rule.combine(stacked, own_weights, jnp.asarray(staleness[used], jnp.int32))
    _check_combined(rule.name, combined, stacked if rule.gives_all else pieces[0])
    return combined


def check_aggregator(rule: object) -> None:
    """Looks whether something is an aggregator, before it is needed.

    Args:
      rule: what was given.

    Raises:
      ConfigError: (a ValueError) saying what an aggregator is.
    """
    if isinstance(rule, ModelAggregator | LinearAggregator):
        return
    if not isinstance(rule, StackAggregator):
        raise ConfigError(
            f"aggregator={describe(rule)} is no aggregator: a function of one's own becomes one by "
            "federated.StackAggregator(combine, name='mine'), where combine(updates, weights, "
            "staleness) gets all updates, every leaf (updates, ...), and gives one; rules that "
            "there are must be called, such as federated.median()"
        )
    try:
        inspect.signature(rule.combine).bind(None, None, None)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError):
            return  # some functions do not tell what they take
        raise ConfigError(
            f"combine of the aggregator {rule.name!r} is called as combine(updates, weights, "
            f"staleness), and it takes {inspect.signature(rule.combine)}"
        ) from None


def _check_combined(name: str, combined: PyTree, one: PyTree) -> None:
    """Looks whether a rule gave an update; shapes are all that is looked at."""
    if jax.tree.structure(combined) != jax.tree.structure(one):
        raise ConfigError(
            f"the aggregator {name!r} gave {describe_tree(combined)}; wanted one update, "
            f"{describe_tree(one)}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(one)
    wrong = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} is {describe(got)} and must be "
        f"of the shape {wanted.shape}"
        for (path, wanted), got in zip(leaves, jax.tree.leaves(combined), strict=True)
        if np.shape(got) != wanted.shape
    ]
    if wrong:
        raise ConfigError(
            f"the aggregator {name!r} gave no update: {'; '.join(wrong)}. combine gets every leaf "
            "as (updates, ...) and gives it without that axis, such as leaf.mean(axis=0)"
        )


@jax.jit
def _add(total: PyTree, terms: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, terms)
