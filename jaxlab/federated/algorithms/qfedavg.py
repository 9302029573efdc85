"""q-FedAvg: clients whose loss is large count more.

References:
  Li et al. 2020, "Fair Resource Allocation in Federated Learning", arXiv:1905.10497, algorithm 2.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.checks import check_not_negative, check_rate
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import Limits, evaluate_client, squared_norm, train_client
from jaxlab.federated.tasks import Task

SMALLEST_LOSS = 1e-10
"""A loss counts as at least this: that of a client that fits all of its examples is 0."""


def q_fed_avg(task: Task, learning_rate: float, schedule: Schedule, q: float) -> Algorithm:
    """Descends on `sum_i F_i^(q+1) / (q+1)`, with steps as long as its curvature allows.

    F_i is the loss of the received model on all examples of a client, and with L = 1 / eta a client
    sends `F_i^q L Delta_i` and `q F_i^(q-1) L^2 ||Delta_i||^2 + L F_i^q`; the server moves by the
    sum of the former over the sum of the latter. With q = 0 this is the plain mean.

    Args:
      task: the learning problem.
      learning_rate: eta, of plain gradient steps.
      schedule: how much a client trains in a round.
      q: 0 for the mean loss; the larger, the more the clients are made equal.

    Raises:
      ConfigError: (a ValueError) if a number is out of range.
    """
    check_rate("learning_rate", learning_rate, "q_fed_avg")
    check_not_negative("q_fed_avg, which with less would favour clients that fare well", q=q)
    tx, weigh = optax.sgd(learning_rate), make_weigh("clients")
    base, lipschitz = fed_avg(task, tx, schedule), 1.0 / learning_rate

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        total, count = evaluate_client(task, received, view, schedule.batch_size)["loss"]
        loss = jnp.maximum(total / jnp.maximum(count, 1.0), SMALLEST_LOSS)
        end = train_client(task, tx, schedule, received, view, limits, key)
        delta = difference(end.variables, received)
        mass = lipschitz * loss**q
        slope = q * loss ** (q - 1) * lipschitz**2 * squared_norm(delta["params"])
        update = {
            "variables": jax.tree.map(lambda d: mass * d, delta),
            "mass": mass,
            "curvature": slope + mass,
        }
        return LocalResult(update, weigh(view, end.num_samples), state, end.sums)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        moved = jax.tree.map(lambda d: d / mean["mass"], mean["variables"])
        params = jax.tree.map(lambda d: d / mean["curvature"], mean["variables"]["params"])
        return base.update_server(server, {**moved, "params": params}, num_updates)

    return base._replace(local=local, update_server=update_server)
