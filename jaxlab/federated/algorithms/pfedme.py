"""pFedMe: clients solve for a personal model near the shared one, which follows the solutions.

References:
  Dinh et al. 2020, "Personalized Federated Learning with Moreau Envelopes", arXiv:2006.08848,
  algorithm 1; `federatedscope/core/trainers/trainer_pFedMe.py` of FederatedScope 0.3.0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import (
    Algorithm,
    EvaluationInput,
    LocalResult,
    Tree,
    difference,
    make_weigh,
)
from jaxlab.federated.checks import check_optimizer, check_positive, check_rate
from jaxlab.federated.client_data import ClientView, Schedule, shuffle_epochs, take_batch
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import (
    Limits,
    StepInput,
    TrainCarry,
    evaluate_client,
    like,
    make_sgd_step,
    pull_towards,
    run_steps,
    start_carry,
    train_client,
)
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Sums, Task


class Pair(NamedTuple):
    """The two models of a client.

    Attributes:
      shared: parameters w, which are sent.
      own: training of theta.
    """

    shared: PyTree
    own: TrainCarry


class Inner(NamedTuple):
    """How theta is trained, and how w follows it.

    Attributes:
      task: the learning problem.
      tx: optimizer of theta.
      schedule: how much a client trains in a round.
      num_steps: K, of theta on a batch.
      regularisation: lambda, with which theta is held at w.
      rate: how far w moves towards theta: lambda times eta.
    """

    task: Task
    tx: optax.GradientTransformation
    schedule: Schedule
    num_steps: int
    regularisation: float
    rate: float


def pfedme(
    task: Task,
    personal_tx: optax.GradientTransformation,
    learning_rate: float,
    schedule: Schedule,
    *,
    num_inner_steps: int = 5,
    regularisation: float = 0.1,
    beta: float = 1.0,
    outer: str = "batch",
) -> Algorithm:
    """K steps of theta on `F + lambda / 2 ||theta - w||^2`, then `w -= lambda eta (w - theta)`.

    The server mixes: `(1 - beta) w + beta mean_i w_i`. Evaluations are of theta, which is K steps
    from the received model over training examples of the client; those of the received model are
    found under `global/`.

    Args:
      task: the learning problem.
      personal_tx: optimizer of theta; in the original `optax.sgd` with its own rate.
      learning_rate: eta, of w.
      schedule: how much a client trains in a round; every batch is used for K steps.
      num_inner_steps: K.
      regularisation: lambda.
      beta: how far the server moves towards the mean.
      outer: when w moves: after the K steps of every `batch`, from which theta begins at w again,
        as in the paper; or, as in the original, at the end of every `epoch`, that is after as many
        steps as an epoch has batches, of which there are K times as many; theta goes on, and every
        such epoch begins with a new order of the examples.

    Raises:
      ConfigError: (a ValueError) if a number is out of range, or there is no such `outer`.
    """
    check_optimizer("personal_tx", personal_tx, "pfedme")
    check_rate("learning_rate", learning_rate, "pfedme")
    check_positive(
        "pfedme", num_inner_steps=num_inner_steps, regularisation=regularisation, beta=beta
    )
    if outer not in ("batch", "epoch"):
        raise ConfigError(f"outer={outer!r} must be 'batch' or 'epoch'")
    rate = regularisation * learning_rate
    inner = Inner(task, personal_tx, schedule, num_inner_steps, regularisation, rate)
    base, weigh = fed_avg(task, personal_tx, schedule), make_weigh("processed")

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        pair = Pair(received["params"], start_carry(task, personal_tx, received, view))
        if outer == "batch":
            step = functools.partial(_batch_step, inner)
            pair = run_steps(step, pair, view, schedule, limits, key)
        else:
            pair = _run_epochs(inner, pair, view, limits, key)
        end = {**pair.own.variables, "params": pair.shared}
        num_samples = pair.own.num_samples / num_inner_steps
        weight = weigh(view, num_samples)
        return LocalResult(difference(end, received), weight, state, pair.own.sums)

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        return base.update_server(server, jax.tree.map(lambda d: beta * d, mean), num_updates)

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        return _evaluate(inner, received, given)

    return base._replace(local=local, update_server=update_server, evaluate=evaluate)


def _follow(inner: Inner, shared: PyTree, own: PyTree) -> PyTree:
    """Where w is after it has moved towards theta."""
    return jax.tree.map(lambda w, t: w - inner.rate * (w - t), shared, own)


def _inner_step(inner: Inner, pair: Pair, given: StepInput) -> Pair:
    """One step of theta."""
    penalty = pull_towards(pair.shared, inner.regularisation)
    step = make_sgd_step(inner.task, inner.tx, penalty=penalty)
    return pair._replace(own=step(pair.own, given))


def _batch_step(inner: Inner, pair: Pair, given: StepInput) -> Pair:
    """K steps of theta from w on one batch, and w after them."""
    start = pair.own._replace(
        variables={**pair.own.variables, "params": pair.shared},
        opt_state=inner.tx.init(pair.shared),
    )

    def step(number: Array, pair: Pair) -> Pair:
        return _inner_step(inner, pair, given._replace(key=jax.random.fold_in(given.key, number)))

    pair = jax.lax.fori_loop(0, inner.num_steps, step, pair._replace(own=start))
    return pair._replace(shared=_follow(inner, pair.shared, pair.own.variables["params"]))


def _run_epochs(
    inner: Inner, pair: Pair, view: ClientView, limits: Limits, key: Key[Array, ""]
) -> Pair:
    """The round of a client as in the original: w moves at the end of every epoch."""
    schedule = inner.schedule
    order_key, step_key = jax.random.split(key)
    num_epochs = inner.num_steps * limits.max_epochs
    orders = shuffle_epochs(order_key, view.size, num_epochs, limits.max_size)
    length = jnp.maximum(schedule.num_batches(view.size), 1)
    num_steps = _count_steps(schedule, view.size, inner.num_steps)

    def body(index: Array, pair: Pair) -> Pair:
        epoch, place = _find_batch(index, length, inner.num_steps)
        order = orders[epoch] if schedule.shuffle else None
        batch, mask = take_batch(view, place * schedule.batch_size, schedule.batch_size, order)
        given = StepInput(batch, mask, jax.random.fold_in(step_key, index), index)
        pair = _inner_step(inner, pair, given)
        is_end = ((index + 1) % length == 0) | (index + 1 == num_steps)
        moved = _follow(inner, pair.shared, pair.own.variables["params"])
        shared = jax.tree.map(lambda new, old: jnp.where(is_end, new, old), moved, pair.shared)
        return pair._replace(shared=shared)

    return jax.lax.fori_loop(0, num_steps, body, like(view.size, pair))


def _evaluate(inner: Inner, received: Tree, given: EvaluationInput) -> Sums:
    """Metrics of theta, which is K steps from the received model, and of that model."""
    tuning = Schedule(
        inner.schedule.batch_size, inner.num_steps, "step", shuffle=inner.schedule.shuffle
    )
    own = train_client(
        inner.task, inner.tx, tuning, received, given.train, given.limits.at_least(tuning),
        given.key, penalty=pull_towards(received["params"], inner.regularisation),
    )  # fmt: skip
    batch_size = given.batch_size or inner.schedule.batch_size
    sums = evaluate_client(inner.task, own.variables, given.view, batch_size)
    shared = evaluate_client(inner.task, received, given.view, batch_size)
    return sums | {f"global/{name}": value for name, value in shared.items()}


def _count_steps(schedule: Schedule, size: Array, factor: int) -> Array:
    """Steps of a round with `factor` times as many epochs, of which the last may be shorter."""
    batches, steps = schedule.num_batches(size), schedule.num_steps(size)
    epochs = -(-steps // jnp.maximum(batches, 1))
    return jnp.asarray(steps + (factor - 1) * epochs * batches)


def _find_batch(index: Array, length: Array, num_uses: int) -> tuple[Array, Array]:
    """Which epoch a step's batch was taken in, and as which of that epoch's batches.

    A batch is taken every `num_uses` steps, and used on even where an epoch of `length` steps ends
    in between; an epoch begins with its first batch again.
    """
    taken = index // num_uses
    epoch = taken * num_uses // length
    first = -(-epoch * length // num_uses)  # the first one that was taken in the epoch
    return epoch, taken - first
