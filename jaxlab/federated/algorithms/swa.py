"""FedSWA: the mean of the global models of several rounds is what is evaluated and published.

References:
  Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
  arXiv:1803.05407; in federated learning Caldarola et al. 2022, arXiv:2203.11834;
  `federatedscope/core/workers/wrapper/fedswa.py` of FederatedScope 0.3.0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxlab.federated.algorithm import Algorithm, Tree
from jaxlab.federated.strategy import ConfigError


def stochastic_averaging(
    algorithm: Algorithm,
    num_rounds: int,
    *,
    start_round: int = 30,
    every_rounds: int = 10,
    compat: bool = False,
) -> Algorithm:
    """Averages the model after `start_round` rounds and after every few more; training goes on.

    Until then the model itself is evaluated.

    Args:
      algorithm: what is learned; its server tree has the model under `variables`, as those of
        `fed_avg` and of what is made of it have.
      num_rounds: rounds of the course.
      start_round: rounds before the first model of the mean.
      every_rounds: rounds from one model of the mean to the next.
      compat: the original keeps a reference and no copy of the first model, so that what it
        averages first is the second model with itself.

    Raises:
      ConfigError: (a ValueError) if averaging would not start before the end.
    """
    if not 0 < start_round < num_rounds or every_rounds < 1:
        raise ConfigError(
            f"start_round={start_round} must be between 1 and num_rounds - 1={num_rounds - 1}, and "
            f"every_rounds={every_rounds} at least 1"
        )

    def init_server(variables: PyTree) -> Tree:
        zero = jnp.int32(0)
        return {
            "plain": algorithm.init_server(variables),
            "mean": variables,
            "round": zero,
            "num_models": zero,
        }

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        plain = algorithm.update_server(server["plain"], mean, num_updates)
        number = server["round"] + 1
        since = number - start_round
        is_counted = (since >= 0) & (since % every_rounds == 0)
        follows = since <= (every_rounds if compat else 0)
        count = server["num_models"].astype(jnp.float32)

        def average(old: Array, new: Array) -> Array:
            moved = ((old * count + new) / (count + 1)).astype(old.dtype)
            return jnp.where(follows, new, jnp.where(is_counted, moved, old))

        return {
            "plain": plain,
            "mean": jax.tree.map(average, server["mean"], plain["variables"]),
            "round": number,
            "num_models": server["num_models"] + is_counted,
        }

    def averaged(server: Tree) -> Tree:
        return {**server["plain"], "variables": server["mean"]}

    return algorithm._replace(
        init_server=init_server,
        broadcast=lambda server: algorithm.broadcast(server["plain"]),
        update_server=update_server,
        evaluation=lambda server: algorithm.evaluation(averaged(server)),
        variables=lambda server: algorithm.variables(averaged(server)),
    )
