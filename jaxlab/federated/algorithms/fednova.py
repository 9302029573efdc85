"""FedNova: clients that take more steps do not pull the model to themselves.

References:
  Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
  Optimization", arXiv:2007.07481.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.checks import check_rate
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import Limits, train_client
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Task


def fed_nova(
    task: Task,
    learning_rate: float,
    schedule: Schedule,
    *,
    momentum: float = 0.0,
    server_tx: optax.GradientTransformation | None = None,
    weighting: str = "examples",
) -> Algorithm:
    """The mean of what clients move in a step, times the mean number of steps.

    The server moves by `(sum_i p_i a_i) (sum_i p_i Delta_i / a_i)`. a_i is the number of steps of
    a client, or with momentum rho what its gradients count for in Delta_i: a gradient that k steps
    follow counts `1 + rho + ... + rho^k`. With as many steps for every client it is FedAvg.

    Args:
      task: the learning problem.
      learning_rate: of gradient steps of the clients.
      schedule: how much a client trains in a round.
      momentum: rho, new in every round.
      server_tx: optimizer of the server, see `fed_avg`.
      weighting: p_i, see `make_weigh`. By default the examples of a client: the goal is the mean
        loss over all examples, whoever takes how many steps.

    Raises:
      ConfigError: (a ValueError) if the momentum is not in [0, 1), or the rate no positive number.
    """
    check_rate("learning_rate", learning_rate, "fed_nova")
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum={momentum} must be in [0, 1)")
    tx = optax.sgd(learning_rate, momentum=momentum or None)
    base = fed_avg(task, tx, schedule, server_tx=server_tx)
    weigh = make_weigh(weighting)

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        end = train_client(task, tx, schedule, received, view, limits, key)
        delta = difference(end.variables, received)
        steps = count_gradients(jnp.asarray(schedule.num_steps(view.size)), momentum)
        per_step = jax.tree.map(lambda d: d / jnp.maximum(steps, 1.0), delta["params"])
        update = {"variables": {**delta, "params": per_step}, "steps": steps}
        return LocalResult(update, weigh(view, end.num_samples), state, end.sums)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        moved = jax.tree.map(lambda d: mean["steps"] * d, mean["variables"]["params"])
        return base.update_server(server, {**mean["variables"], "params": moved}, num_updates)

    return base._replace(local=local, update_server=update_server)


def count_gradients(num_steps: Array, momentum: float) -> Float[Array, ""]:
    """What the gradients of steps with momentum count for together.

    `sum_k (1 - rho^(k+1)) / (1 - rho)` over k = 0 ... steps - 1; the number of steps without
    momentum.

    Example:
      >>> count_gradients(jnp.int32(3), 0.5)  # 1.75 + 1.5 + 1
      Array(4.25, dtype=float32)
    """
    steps = num_steps.astype(jnp.float32)
    vanished = momentum * (1.0 - momentum**steps) / (1.0 - momentum)
    return (steps - vanished) / (1.0 - momentum)
