"""FedGC: contrastive learning in which the examples of other clients are wrong answers, too.

A client that has few kinds of examples sees few that differ. After its ordinary steps it therefore
takes one more, on its last batch, in which the second views of the other clients of the round are
further candidates that must not be chosen.

References:
  `federatedscope/cl/fedgc` and `federatedscope/cl/trainer/trainer.py` (`CLTrainer`) of
  FederatedScope 0.3.0. There the server computes the loss and sends it, and the gradient finds its
  way through memory that both share.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key, PyTree, UInt32

from jaxlab.federated.algorithm import (
    Algorithm,
    Exchange,
    LocalResult,
    Others,
    Tree,
    difference,
    make_weigh,
)
from jaxlab.federated.checks import check_positive
from jaxlab.federated.client_data import ClientView, Schedule, take_batch
from jaxlab.federated.exchange import Alone
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import (
    Limits,
    StepInput,
    TrainCarry,
    make_sgd_step,
    run_steps,
    start_carry,
)
from jaxlab.federated.simclr import FIRST, SECOND, nt_xent
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import MASK, Batch, LossOutput, Task, compute_loss, masked_mean

GLOBAL_LOSS = "global_loss"
"""Training metric: the loss of the last step, with the candidates of other clients."""


class LastBatch(NamedTuple):
    """What the last ordinary step was given, from which its views follow.

    Attributes:
      batch: rows of the client.
      mask: which rows are examples.
      key_data: numbers of the key of the step: its views are drawn again, and not others.
    """

    batch: Batch
    mask: Bool[Array, " batch"]
    key_data: UInt32[Array, "..."]


class Walk(NamedTuple):
    """What a client keeps until it hears of the others.

    Attributes:
      carry: after its ordinary steps.
      last: the batch that is projected.
    """

    carry: TrainCarry
    last: LastBatch


def fed_gc(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    temperature: float = 0.1,
    global_weight: float = 5.0,
    server_tx: optax.GradientTransformation | None = None,
    weighting: str = "processed",
    compat: bool = False,
) -> Algorithm:
    """Clients train, tell each other projections of their last batch, and take one more step.

    They are told the second views only, which is all that is used of another client. The step is
    one of the same optimizer, along `global_weight` times the gradient of the loss alone; the
    original adds the gradient of the last batch, which it does not clear.

    Args:
      task: a contrastive one, see `contrastive`, of the same temperature.
      tx: optimizer of the clients, new in every round; clipping included.
      schedule: how much a client trains in a round.
      temperature: cosines are divided by it in the step of the exchange.
      global_weight: factor of the loss of that step.
      server_tx: optimizer of the server, see `fed_avg`.
      weighting: what a client counts by in the mean, see `make_weigh`; the step of the exchange
        adds nothing.
      compat: compare with others as the original does, see `nt_xent`.

    Returns:
      The algorithm; courses of it are synchronous, and of whole cohorts.

    Raises:
      ConfigError: (a ValueError) if a number is not positive, or, once shapes are known, if the
        task keeps no projections.
    """
    check_positive("fed_gc", temperature=temperature, global_weight=global_weight)
    base = fed_avg(task, tx, schedule, server_tx=server_tx, weighting=weighting)
    weigh = make_weigh(weighting)

    def project(variables: PyTree, last: LastBatch) -> tuple[LossOutput, Array, Array]:
        key = jax.random.wrap_key_data(last.key_data)
        output = compute_loss(task, variables, last.batch, key, True)
        kept = output.kept or {}
        if missing := [name for name in (FIRST, SECOND) if name not in kept]:
            raise ConfigError(
                f"fed_gc: the loss of the task keeps no {' and no '.join(missing)}: clients "
                "exchange projections; take a task that contrastive(...) makes, or one whose "
                "LossOutput has kept={'first': ..., 'second': ...}, (batch, features) each"
            )
        return output, kept[FIRST], kept[SECOND]

    def offer(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> tuple[Walk, Tree]:
        del state
        ordinary = make_sgd_step(task, tx)

        def step(walk: Walk, given: StepInput) -> Walk:
            last = LastBatch(given.batch, given.mask, jax.random.key_data(given.key))
            return Walk(ordinary(walk.carry, given), last)

        start = Walk(start_carry(task, tx, received, view), _no_batch(view, schedule))
        walk = run_steps(step, start, view, schedule, limits, key)
        _, _, second = project(walk.carry.variables, walk.last)
        return walk, {SECOND: second, MASK: walk.last.mask}

    def answer(
        received: Tree, state: Tree, view: ClientView, walk: Walk, others: Others
    ) -> LocalResult:
        seen = others.offers[MASK] & others.counts[:, None]

        def objective(params: PyTree) -> tuple[Array, tuple[dict[str, Any], Array]]:
            variables = {**walk.carry.variables, "params": params}
            output, first, second = project(variables, walk.last)
            losses, _ = nt_xent(
                first, second, walk.last.mask, temperature, others=others.offers[SECOND],
                others_mask=seen, compat=compat,
            )  # fmt: skip
            loss = masked_mean(losses, walk.last.mask)
            return global_weight * loss, (output.model_state, loss)

        params = walk.carry.variables["params"]
        grads, (model_state, loss) = jax.grad(objective, has_aux=True)(params)
        updates, _ = tx.update(grads, walk.carry.opt_state, params)
        moved = {"params": optax.apply_updates(params, updates), **model_state}
        count = walk.last.mask.sum().astype(jnp.float32)
        sums = {**walk.carry.sums, GLOBAL_LOSS: jnp.stack([loss * count, count])}
        weight = weigh(view, walk.carry.num_samples)
        return LocalResult(difference(moved, received), weight, state, sums)

    exchange = Exchange(offer, answer)
    return base._replace(local=Alone(exchange), exchange=exchange)


def _no_batch(view: ClientView, schedule: Schedule) -> LastBatch:
    """What stands for the last batch of a client that takes no step: no examples."""
    batch, mask = take_batch(view, jnp.int32(0), schedule.batch_size)
    nobody = jnp.zeros_like(mask)
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return LastBatch({**batch, MASK: nobody}, nobody, jnp.zeros(shape.shape, shape.dtype))
