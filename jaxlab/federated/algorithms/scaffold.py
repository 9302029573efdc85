"""SCAFFOLD: control variates take out of local steps what is particular to a client.

References:
  Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
  arXiv:1910.06378, algorithm 1 with option II.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.checks import check_positive, check_rate
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import Limits, StepInput, train_client
from jaxlab.federated.tasks import Task


def scaffold(
    task: Task,
    learning_rate: float,
    schedule: Schedule,
    num_clients: int,
    *,
    server_rate: float = 1.0,
) -> Algorithm:
    """Clients step along `g - c_i + c`; control variates c_i stay with them, c with the server.

    After S steps of rate eta from x to y a client's variate is `c_i - c + (x - y) / (S eta)`; the
    server's moves by the mean change of those that took part, times their share of all clients, so
    that it stays the mean over all. All variates begin with 0. Every client counts equally: the
    variates of clients that count more would not add up to c.

    Args:
      task: the learning problem.
      learning_rate: eta, of plain gradient steps.
      schedule: how much a client trains in a round.
      num_clients: all clients that train, whether they take part in a round or not.
      server_rate: how far the server moves along the mean update.

    Returns:
      The algorithm; a client keeps `control`, of the shape of the parameters.

    Raises:
      ConfigError: (a ValueError) if a number is not positive, or none, such as an optimizer.
    """
    check_rate("learning_rate", learning_rate, "scaffold")
    check_positive("scaffold", server_rate=server_rate, num_clients=num_clients)
    tx, weigh = optax.sgd(learning_rate), make_weigh("clients")
    base = fed_avg(task, tx, schedule)

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        start, correction = received["variables"], difference(received["control"], state["control"])

        def corrected(grads: PyTree, params: PyTree, given: StepInput) -> PyTree:
            return jax.tree.map(jnp.add, grads, correction)

        end = train_client(task, tx, schedule, start, view, limits, key, grad_transform=corrected)
        delta = difference(end.variables, start)
        num_steps = jnp.asarray(schedule.num_steps(view.size), jnp.float32)
        # (x - y) / (S eta) is the mean step that was taken, correction included.
        per_step = -1.0 / (jnp.maximum(num_steps, 1.0) * learning_rate)
        change = jax.tree.map(
            lambda d, c: jnp.where(num_steps > 0, per_step * d - c, 0.0),
            delta["params"],
            received["control"],
        )
        kept = {"control": jax.tree.map(jnp.add, state["control"], change)}
        update = {"variables": delta, "control": change}
        return LocalResult(update, weigh(view, end.num_samples), kept, end.sums)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        share = num_updates / num_clients
        return {
            "variables": jax.tree.map(
                lambda old, d: (old + server_rate * d).astype(old.dtype),
                server["variables"], mean["variables"],
            ),
            "control": jax.tree.map(
                lambda c, d: c + share * d, server["control"], mean["control"]
            ),
        }  # fmt: skip

    return base._replace(
        init_server=lambda variables: {"variables": variables, **_no_control(variables)},
        init_client=_no_control,
        broadcast=lambda server: server,
        local=local,
        update_server=update_server,
    )


def _no_control(variables: PyTree) -> Tree:
    def zeros(leaf: Array) -> Array:
        return jnp.zeros(leaf.shape, jnp.float32)

    return {"control": jax.tree.map(zeros, variables["params"])}
