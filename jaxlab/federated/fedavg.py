"""FedAvg, and FedProx and FedOpt, which differ from it in a term and in a step.

References:
  McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
  arXiv:1602.05629; Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx),
  arXiv:1812.06127; Reddi et al. 2021, "Adaptive Federated Optimization" (FedOpt), arXiv:2003.00295.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import (
    Algorithm,
    LocalResult,
    Tree,
    difference,
    make_weigh,
)
from jaxlab.federated.checks import check_not_negative, check_optimizer
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.local import (
    Gradient,
    Limits,
    evaluate_client,
    pull_towards,
    train_client,
)
from jaxlab.federated.tasks import Task


def fed_avg(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    server_tx: optax.GradientTransformation | None = None,
    prox_mu: float = 0.0,
    weighting: str = "processed",
    gradient: Gradient | None = None,
) -> Algorithm:
    """Clients train, the server takes the weighted mean.

    Args:
      task: the learning problem.
      tx: optimizer of the clients, new in every round; clipping included.
      schedule: how much a client trains in a round.
      server_tx: optimizer of the server, stepped with minus the mean update as the gradient
        (FedOpt, see `fed_adam`); None takes the mean itself. Variables that are no parameters are
        always averaged.
      prox_mu: weight of `||w - received||^2 / 2` in the loss of a client (FedProx).
      weighting: what a client counts by in the mean, see `make_weigh`.
      gradient: how a client takes gradients, such as `sharpness_aware`; None at the point itself.

    Returns:
      The algorithm; its updates are differences to the variables that were received.

    Raises:
      ConfigError: (a ValueError) if an optimizer is none, a number is out of range, or there is no
        such weighting.
    """
    check_optimizer("tx", tx, "fed_avg")
    check_optimizer("server_tx", server_tx, "fed_avg", optional=True)
    check_not_negative("fed_avg", prox_mu=prox_mu)
    weigh = make_weigh(weighting)

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        penalty = pull_towards(received["params"], prox_mu) if prox_mu else None
        end = train_client(
            task, tx, schedule, received, view, limits, key, penalty=penalty, gradient=gradient
        )
        delta = difference(end.variables, received)
        return LocalResult(delta, weigh(view, end.num_samples), state, end.sums)

    init_server, update_server = make_server_update(server_tx)
    return Algorithm(
        init_server=init_server,
        init_client=lambda variables: {},
        broadcast=lambda server: server["variables"],
        local=local,
        update_server=update_server,
        evaluation=lambda server: server["variables"],
        evaluate=lambda received, state, given: evaluate_client(
            task, received, given.view, given.batch_size or schedule.batch_size
        ),
        variables=lambda server: server["variables"],
        schedule=schedule,
        task=task,
    )


def make_server_update(server_tx: optax.GradientTransformation | None) -> Any:
    """How the server moves by the mean difference: onto the mean, or by an optimizer.

    Args:
      server_tx: steps the parameters with minus the mean difference as their gradient; None adds
        the difference.

    Returns:
      `variables -> server tree` and `(server tree, mean difference, number of updates) -> server
      tree`; the tree holds `variables` and the state of the optimizer.
    """

    def init(variables: PyTree) -> Tree:
        opt_state = {} if server_tx is None else server_tx.init(variables["params"])
        return {"variables": variables, "opt_state": opt_state}

    def update(server: Tree, mean: PyTree, num_updates: Float[Array, ""]) -> Tree:
        del num_updates
        variables = server["variables"]
        moved = jax.tree.map(lambda old, d: (old + d).astype(old.dtype), variables, mean)
        if server_tx is None:
            return {**server, "variables": moved}
        grads = jax.tree.map(jnp.negative, mean["params"])
        updates, opt_state = server_tx.update(grads, server["opt_state"], variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"variables": {**moved, "params": params}, "opt_state": opt_state}

    return init, update
