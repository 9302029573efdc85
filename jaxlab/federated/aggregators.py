"""From the updates of a round to one: weighted means, with what staleness takes away.

A linear aggregator is two coefficients an update, `sum a_i x_i / sum b_i`: such a mean can be
folded while clients are computed. A `StackAggregator` sees all updates at once, and a
`ModelAggregator` is made anew from the model of every round.

References:
  McMahan et al. 2017, arXiv:1602.05629; Nguyen et al. 2022 (FedBuff), arXiv:2106.06639;
  `federatedscope/core/aggregators` of FederatedScope 0.3.0.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.federated.strategy import ConfigError

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
    """

    combine: Callable[[PyTree, Array, Array], PyTree]
    min_updates: int = 1
    name: str = "aggregator"


class ModelAggregator(NamedTuple):
    """A rule that depends on the model of the server.

    Attributes:
      at: `(what clients are sent in a round, number of the round) -> rule` of that round.
    """

    at: Callable[[PyTree, int], StackAggregator]


Rule = LinearAggregator | StackAggregator
Aggregator = Rule | ModelAggregator


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
    if staleness_exponent < 0:
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
