"""FedEM: several models are learned together, and every client mixes them in its own way.

References:
  Marfoq et al. 2021, "Federated Multi-Task Learning under a Mixture of Distributions",
  arXiv:2108.10252, algorithm 1; `federatedscope/core/trainers/trainer_FedEM.py` of FederatedScope
  0.3.0.
"""

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
from jaxlab.federated.client_data import ClientView, Schedule, take_batch
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import Limits, TrainCarry, evaluate_client, like, train_client
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Batch, LossOutput, Sums, Task, compute_loss, masked_mean

ROW = "fedem_row"
"""Field of a batch that says where in the client's examples its rows lie."""


def fed_em(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    server_tx: optax.GradientTransformation | None = None,
    weighting: str = "processed",
    compat: bool = False,
) -> Algorithm:
    """Expectation and maximisation: who explains an example best learns most from it.

    With L[i, m] the loss of model m on example i of a client, and pi its mixture, a round begins
    with `q[i, :] = softmax(log pi - L[i, :])` and `pi = mean_i q[i, :]`; then model m is trained
    with the losses of the examples times q[:, m]. The server averages every model by itself.
    Evaluations mix the predictions by pi, see `Task.mix`.

    The variables of a course are those of all models, every leaf (models, ...), see `init_models`;
    models that begin equal stay equal.

    Args:
      task: the learning problem; L is a negative log likelihood.
      tx: optimizer of the clients, new in every round.
      schedule: how much a client trains in a round.
      server_tx: optimizer of the server, see `fed_avg`.
      weighting: see `make_weigh`.
      compat: as the original does: L is the mean over a batch and q that of a batch, the batches
        in the order of the data; and models are trained with equal weights, since the original
        weighs the loss after its gradient has been formed.

    Returns:
      The algorithm; a client keeps `mixture`, pi.

    Raises:
      ConfigError: (a ValueError) if the task cannot mix predictions.
    """
    mix = task.mix
    if mix is None:
        raise ConfigError(
            "fed_em evaluates a mixture of predictions and the task has no mix; classification, "
            "regression and supervised(combine=...) have"
        )
    base, weigh = fed_avg(task, tx, schedule, server_tx=server_tx), make_weigh(weighting)

    def mixture_loss(variables: PyTree, batch: Batch, key: Array, train: bool) -> LossOutput:
        models = {name: value for name, value in variables.items() if name != "mixture"}
        return mix(models, variables["mixture"], batch)

    mixed = Task(task.init, mixture_loss, score_all=task.score_all)

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        losses, kept = _losses(task, received, view, limits, schedule.batch_size, compat)
        q = jax.nn.softmax(_log(state["mixture"])[None] - losses, axis=-1)
        # A client without examples knows nothing about its mixture.
        mean = jnp.where(kept[:, None], q, 0.0).sum(axis=0) / jnp.maximum(kept.sum(), 1)
        mixture = jnp.where(kept.any(), mean, state["mixture"])
        rows = jnp.arange(next(iter(view.examples.values())).shape[0]) - view.offset
        marked = view._replace(examples={**view.examples, ROW: rows})

        def train(variables: PyTree, factor: Array) -> TrainCarry:
            given = task if compat else _weighted(task, factor)
            return train_client(given, tx, schedule, variables, marked, limits, key)

        ends = jax.vmap(train, in_axes=(0, 1))(received, q)
        num_samples = ends.num_samples[0]
        shares = mixture if compat else jnp.ones_like(mixture)
        sums = {
            name: jnp.stack([shares @ value[:, 0], value[0, 1]])
            for name, value in ends.sums.items()
        }
        delta = difference(ends.variables, received)
        return LocalResult(delta, weigh(view, num_samples), {"mixture": mixture}, sums)

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        variables = {**received, "mixture": state["mixture"]}
        batch_size = given.batch_size or schedule.batch_size
        return evaluate_client(mixed, variables, given.view, batch_size)

    def init_client(variables: PyTree) -> Tree:
        num_models = jax.tree.leaves(variables)[0].shape[0]
        return {"mixture": jnp.full(num_models, 1.0 / num_models, jnp.float32)}

    return base._replace(init_client=init_client, local=local, evaluate=evaluate)


def init_models(task: Task, key: Key[Array, ""], num_models: int) -> PyTree:
    """Variables of several models that begin differently, every leaf (models, ...)."""
    return jax.jit(jax.vmap(task.init))(jax.random.split(key, num_models))


def _weighted(task: Task, factor: Float[Array, " examples"]) -> Task:
    """The task with the losses and scores of examples times their factors."""

    def loss(variables: PyTree, batch: Batch, key: Array, train: bool) -> LossOutput:
        output = compute_loss(task, variables, batch, key, train)
        own = factor[batch[ROW]]
        scores = {name: own * value for name, value in output.scores.items()}
        return output._replace(per_example=own * output.per_example, scores=scores)

    return task._replace(loss=loss)


def _losses(
    task: Task, models: PyTree, view: ClientView, limits: Limits, batch_size: int, by_batch: bool
) -> tuple[Float[Array, "places models"], Array]:
    """Losses of all models on every example of a client, or the means over its batches.

    Returns:
      The losses, and which places hold one.
    """
    num_places = -(-limits.max_size // batch_size) * (1 if by_batch else batch_size)
    num_models = jax.tree.leaves(models)[0].shape[0]

    def body(index: Array, losses: Array) -> Array:
        batch, mask = take_batch(view, index * batch_size, batch_size)

        def one(variables: PyTree) -> Array:
            output = compute_loss(task, variables, batch, jax.random.key(0), False)
            if by_batch:
                return masked_mean(output.per_example, mask)[None]
            return output.per_example

        rows = jax.vmap(one)(models).T
        return jax.lax.dynamic_update_slice(losses, rows, (index * rows.shape[0], 0))

    num_batches = (view.size + batch_size - 1) // batch_size
    empty = like(view.size, jnp.zeros((num_places, num_models), jnp.float32))
    losses = jax.lax.fori_loop(0, num_batches, body, empty)
    return losses, jnp.arange(num_places) < (num_batches if by_batch else view.size)


def _log(mixture: Float[Array, " models"]) -> Float[Array, " models"]:
    return jnp.log(jnp.maximum(mixture, jnp.finfo(jnp.float32).tiny))
