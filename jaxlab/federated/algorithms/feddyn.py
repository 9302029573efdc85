"""FedDyn: a penalty that changes with the rounds makes local and global optima agree.

References:
  Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", arXiv:2111.04263,
  algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.checks import check_positive
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.fedavg import fed_avg, make_server_update
from jaxlab.federated.local import Limits, StepInput, pull_towards, train_client
from jaxlab.federated.tasks import Task


def fed_dyn(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    num_clients: int,
    *,
    alpha: float,
) -> Algorithm:
    """Clients minimise `F_i(w) - <g_i, w> + alpha / 2 ||w - received||^2`.

    After training from x to y a client's g_i is `g_i - alpha (y - x)`, which at the optimum is the
    gradient of F_i. The server keeps `h - alpha * sum_i (y_i - x) / clients` and moves to
    `mean_i y_i - h / alpha`. Every client counts equally.

    Args:
      task: the learning problem.
      tx: optimizer of the clients, new in every round.
      schedule: how much a client trains in a round.
      num_clients: all clients that train, whether they take part in a round or not.
      alpha: strength of the penalty.

    Returns:
      The algorithm; a client keeps `gradient`, of the shape of the parameters.

    Raises:
      ConfigError: (a ValueError) if `alpha` is not positive: the server divides by it.
    """
    check_positive("fed_dyn, whose server divides by them", alpha=alpha, num_clients=num_clients)
    base, weigh = fed_avg(task, tx, schedule), make_weigh("clients")
    _, move = make_server_update(None)

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        def tilted(grads: PyTree, params: PyTree, given: StepInput) -> PyTree:
            return difference(grads, state["gradient"])

        end = train_client(
            task, tx, schedule, received, view, limits, key,
            penalty=pull_towards(received["params"], alpha), grad_transform=tilted,
        )  # fmt: skip
        delta = difference(end.variables, received)
        kept = jax.tree.map(lambda g, d: g - alpha * d, state["gradient"], delta["params"])
        return LocalResult(delta, weigh(view, end.num_samples), {"gradient": kept}, end.sums)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        share = alpha * num_updates / num_clients
        drift = jax.tree.map(lambda h, d: h - share * d, server["drift"], mean["params"])
        step = jax.tree.map(lambda d, h: d - h / alpha, mean["params"], drift)
        return {**move(server, {**mean, "params": step}, num_updates), "drift": drift}

    return base._replace(
        init_server=lambda variables: {"variables": variables, "drift": _zeros(variables)},
        init_client=lambda variables: {"gradient": _zeros(variables)},
        local=local,
        update_server=update_server,
    )


def _zeros(variables: PyTree) -> PyTree:
    def zeros(leaf: Array) -> Array:
        return jnp.zeros(leaf.shape, jnp.float32)

    return jax.tree.map(zeros, variables["params"])
