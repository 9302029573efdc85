"""Mime and MimeLite: local steps of the optimizer of the server, whose state clients leave alone.

References:
  Karimireddy et al. 2021, "Breaking the centralized barrier for cross-device federated learning",
  arXiv:2008.03606, algorithm 1.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree, difference, make_weigh
from jaxlab.federated.checks import check_optimizer, check_positive
from jaxlab.federated.client_data import ClientView, Schedule, take_batch
from jaxlab.federated.fedavg import fed_avg, make_server_update
from jaxlab.federated.local import Limits, StepInput, evaluate_client, like, train_client
from jaxlab.federated.tasks import Sums, Task, compute_loss, masked_mean, masked_sums


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

    Raises:
      ConfigError: (a ValueError) if the optimizer is none, or the rate not positive.
    """
    check_optimizer("tx", tx, "mime_lite")
    check_positive("mime_lite", server_rate=server_rate)
    weigh = make_weigh(weighting)
    _, move = make_server_update(None)

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        start, opt_state = received["variables"], received["opt_state"]
        train_key, gradient_key = jax.random.split(key)

        fixed = _in_state(tx, opt_state)
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


def mime(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    server_rate: float = 1.0,
    weighting: str = "examples",
) -> Algorithm:
    """MimeLite with gradients that are corrected for what is particular to a client.

    A step is one along `g_i(y) - g_i(x) + c`, both gradients on the same batch, x the received
    model and c the mean of the clients' whole gradients at x. That takes two exchanges, and so two
    rounds of a course: in the first one (third, ...) the cohort sends gradients, from which the
    server makes c, and in the second one (fourth, ...) the cohort trains. In the paper both are the
    same clients; here each round draws its own, which leaves c as unbiased as it was. The course
    must be synchronous and have an even number of rounds: a late gradient does not go with the
    trainings of a round.

    Args:
      task: the learning problem.
      tx: optimizer, such as `optax.sgd(0.1, momentum=0.9)` or `optax.adam(1e-3)`.
      schedule: how much a client trains in a round.
      server_rate: how far the server moves along the mean update.
      weighting: see `make_weigh`.

    Raises:
      ConfigError: (a ValueError) if the optimizer is none, or the rate not positive.
    """
    check_optimizer("tx", tx, "mime")
    check_positive("mime", server_rate=server_rate)
    weigh = make_weigh(weighting)

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        update, sums = jax.lax.cond(
            received["trains"],
            lambda: like(
                view.size, _send_training(task, tx, schedule, received, view, limits, key)
            ),
            lambda: like(view.size, _send_gradient(task, schedule, received, view, key)),
        )
        return LocalResult(update, weigh(view, jnp.asarray(view.size)), state, sums)

    return fed_avg(task, tx, schedule)._replace(
        init_server=lambda v: {
            "variables": v,
            "opt_state": tx.init(v["params"]),
            "control": jax.tree.map(jnp.zeros_like, v["params"]),
            "trains": jnp.asarray(False),
        },
        broadcast=lambda server: server,
        local=local,
        update_server=functools.partial(_move_in_turns, tx, server_rate),
        rounds_per_step=2,
    )


def _send_gradient(
    task: Task, schedule: Schedule, received: Tree, view: ClientView, key: Key[Array, ""]
) -> tuple[Tree, Sums]:
    """What a client sends in the first of two rounds, and its metrics."""
    start = received["variables"]
    grads = full_gradient(task, start, view, schedule.batch_size, key)
    sums = evaluate_client(task, start, view, schedule.batch_size)
    return {"variables": jax.tree.map(jnp.zeros_like, start), "grads": grads}, sums


def _send_training(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    received: Tree,
    view: ClientView,
    limits: Limits,
    key: Key[Array, ""],
) -> tuple[Tree, Sums]:
    """What a client sends in the second of two rounds, and its metrics."""
    start = received["variables"]

    def corrected(grads: PyTree, params: PyTree, given: StepInput) -> PyTree:
        def loss(params: PyTree) -> Array:
            variables = {**start, "params": params}
            output = compute_loss(task, variables, given.batch, given.key, True)
            return masked_mean(output.per_example, given.mask)

        there = jax.grad(loss)(start["params"])
        return jax.tree.map(lambda g, h, c: g - h + c, grads, there, received["control"])

    end = train_client(
        task, _in_state(tx, received["opt_state"]), schedule, start, view, limits, key,
        grad_transform=corrected,
    )  # fmt: skip
    still = jax.tree.map(jnp.zeros_like, start["params"])
    return {"variables": difference(end.variables, start), "grads": still}, end.sums


def _move_in_turns(
    tx: optax.GradientTransformation,
    server_rate: float,
    server: Tree,
    mean: Tree,
    num_updates: Float[Array, ""],
) -> Tree:
    """The server after a round: it has a new control variate, or a new model, by turns."""
    trained, control = server["trains"], server["control"]
    _, move = make_server_update(None)
    step = jax.tree.map(lambda d: server_rate * d, mean["variables"])
    moved = move(server, step, num_updates)["variables"]
    params = server["variables"]["params"]
    _, opt_state = tx.update(control, server["opt_state"], params)

    def choose(after_training: PyTree, after_gradients: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(trained, a, b), after_training, after_gradients)

    return {
        "variables": choose(moved, server["variables"]),
        "opt_state": choose(opt_state, server["opt_state"]),
        "control": choose(control, mean["grads"]),
        "trains": ~trained,
    }


def _in_state(tx: optax.GradientTransformation, opt_state: PyTree) -> optax.GradientTransformation:
    """The optimizer in a state that its steps do not change."""

    def step(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return tx.update(updates, opt_state, params)[0], state

    return optax.GradientTransformation(lambda params: (), step)


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
            output = compute_loss(task, given, batch, jax.random.fold_in(key, index), True)
            return masked_sums(output, mask)["loss"][0]

        return jax.tree.map(jnp.add, total, jax.grad(loss)(params))

    num_batches = (view.size + batch_size - 1) // batch_size
    zeros = like(view.size, jax.tree.map(jnp.zeros_like, params))
    total = jax.lax.fori_loop(0, num_batches, body, zeros)
    return jax.tree.map(lambda g: g / jnp.maximum(view.size, 1), total)
