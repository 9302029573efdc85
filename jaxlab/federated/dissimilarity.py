"""How far the updates of clients are apart.

References:
  Li et al. 2020, "Federated Optimization in Heterogeneous Networks", arXiv:1812.06127, definition 3
  (B-local dissimilarity); `federatedscope/core/monitors/metric_calculator.py` of FederatedScope
  0.3.0 (`calc_blocal_dissim`, `calc_l2_dissim`).
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxlab.federated.aggregators import StackAggregator


def local_dissimilarity(
    updates: PyTree, weights: Float[np.ndarray, " clients"]
) -> dict[str, float]:
    """`B = sqrt(sum p_i ||d_i||^2 / ||sum p_i d_i||^2)` of every tensor; 1 where all agree.

    Args:
      updates: differences to the model of the server, every leaf (clients, ...).
      weights: of the clients; p_i are their shares.

    Returns:
      Name of the entry -> B, infinite where updates cancel, and 1 where nobody moves.

    Example:
      >>> updates = {"w": np.array([[1.0, 2.0], [-1.0, 1.0]])}
      >>> round(local_dissimilarity(updates, np.array([0.25, 0.75]))["w"], 7)
      1.2317635
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        rows = np.asarray(leaf, np.float64).reshape(len(shares), -1)
        squares, mean = shares @ np.square(rows).sum(axis=1), np.square(shares @ rows).sum()
        ratio = squares / mean if mean > 0 else (np.inf if squares > 0 else 1.0)
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = float(np.sqrt(ratio))
    return found


def update_norms(updates: PyTree) -> Float[np.ndarray, " clients"]:
    """L2 norm of the whole update of every client.

    Args:
      updates: differences to the model of the server, every leaf (clients, ...).

    Example:
      >>> update_norms({"w": np.array([[3.0], [0.0]]), "b": np.array([[4.0], [2.0]])})
      array([5., 2.])
    """
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(updates)]
    squares = [np.square(leaf).reshape(len(leaf), -1).sum(axis=1) for leaf in leaves]
    return np.sqrt(np.sum(squares, axis=0))


def measured(
    rule: StackAggregator, note: Callable[[dict[str, float], np.ndarray], None]
) -> StackAggregator:
    """The same rule, which tells how far the updates of a round are apart.

    Args:
      rule: of all updates at once, see `stacked_mean` for the weighted mean.
      note: called in every round with the dissimilarity of every entry and the norm of every
        update.
    """

    def combine(updates: PyTree, weights: jax.Array, staleness: jax.Array) -> PyTree:
        rows = jax.device_get(updates)
        note(local_dissimilarity(rows, np.asarray(weights)), update_norms(rows))
        return rule.combine(updates, weights, staleness)

    return rule._replace(combine=combine)


def stacked_mean(staleness_exponent: float = 0.0) -> StackAggregator:
    """The mean of `weighted_mean`, of all updates at once.

    Args:
      staleness_exponent: late updates are worth `(1 + staleness) ** -exponent`.
    """

    def combine(updates: PyTree, weights: jax.Array, staleness: jax.Array) -> PyTree:
        shares = weights * (1.0 + staleness) ** -staleness_exponent / weights.sum()
        return jax.tree.map(lambda leaf: jax.numpy.tensordot(shares, leaf, 1), updates)

    return StackAggregator(combine, 1, "stacked_mean")
