"""MimeLite: local steps with the optimizer of the server, whose state clients do not change.

References:
  Karimireddy et al. 2021, "Breaking the centralized barrier for cross-device federated learning",
  arXiv:2008.03606, algorithm 1 (MimeLite).
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.client_data import ClientView, Schedule, take_batch
from jaxlab.federated.fedavg import fed_avg, make_server_update
from jaxlab.federated.local import Limits, like, train_client
from jaxlab.federated.tasks import Task, masked_sums


def mime_lite(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    server_rate: float = 1.0,
    weighting: str = "examples",
) -> Algorithm:
    """Every local step is one of the optimizer in the state that the server has sent.

    A client also sends the gradient of the received model over all of its examples; the mean of
    these is what the state of the optimizer follows, so that it is that of the whole, and not of
    whoever trained last. An optimizer without a state makes it FedAvg.

    Args:
      task: the learning problem.
      tx: optimizer, such as `optax.sgd(0.1, momentum=0.9)` or `optax.adam(1e-3)`.
      schedule: how much a client trains in a round.
      server_rate: how far the server moves along the mean update.
      weighting: see `make_weigh`.
    """
    weigh = make_weigh(weighting)
    _, move = make_server_update(None)

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        start, opt_state = received["variables"], received["opt_state"]
        train_key, gradient_key = jax.random.split(key)

        def step(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
            return tx.update(updates, opt_state, params)[0], state

        fixed = optax.GradientTransformation(lambda params: (), step)
        end = train_client(task, fixed, schedule, start, view, limits, train_key)
        update = {
            "variables": difference(end.variables, start),
            "grads": full_gradient(task, start, view, schedule.batch_size, gradient_key),
        }
        return LocalResult(update, weigh(view, end.num_samples), state, end.sums)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        params = server["variables"]["params"]
        _, opt_state = tx.update(mean["grads"], server["opt_state"], params)
        step = jax.tree.map(lambda d: server_rate * d, mean["variables"])
        return {**move(server, step, num_updates), "opt_state": opt_state}

    return fed_avg(task, tx, schedule)._replace(
        init_server=lambda v: {"variables": v, "opt_state": tx.init(v["params"])},
        broadcast=lambda server: server,
        local=local,
        update_server=update_server,
    )


def full_gradient(
    task: Task, variables: PyTree, view: ClientView, batch_size: int, key: Key[Array, ""]
) -> PyTree:
    """Gradient of the mean loss over all examples of a client; zeros if it has none.

    Args:
      task: the learning problem.
      variables: where it is taken.
      view: the examples.
      batch_size: rows that are computed at once.
      key: for what the model draws.
    """
    params = variables["params"]

    def body(index: Array, total: PyTree) -> PyTree:
        batch, mask = take_batch(view, index * batch_size, batch_size)

        def loss(params: PyTree) -> Array:
            given = {**variables, "params": params}
            output = task.loss(given, batch, jax.random.fold_in(key, index), True)
            return masked_sums(output, mask)["loss"][0]

        return jax.tree.map(jnp.add, total, jax.grad(loss)(params))

    num_batches = (view.size + batch_size - 1) // batch_size
    zeros = like(view.size, jax.tree.map(jnp.zeros_like, params))
    total = jax.lax.fori_loop(0, num_batches, body, zeros)
    return jax.tree.map(lambda g: g / jnp.maximum(view.size, 1), total)
