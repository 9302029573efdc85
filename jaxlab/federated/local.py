"""Local training: what a client does between the model it gets and the update it sends.

`run_steps` walks through the batches of a client; what a step is, the algorithm says. The usual
step (`make_sgd_step`) is made of parts that can be replaced: the loss and a term added to it, the
gradient and an optax chain.

References:
  `federatedscope/core/trainers/torch_trainer.py` of FederatedScope 0.3.0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxlab.federated.client_data import (
    ClientView,
    Schedule,
    shuffle_epochs,
    take_batch,
)
from jaxlab.federated.tasks import (
    OF_CLIENT,
    Batch,
    LossOutput,
    Sums,
    Task,
    compute_loss,
    masked_mean,
    masked_sums,
)

Carry = TypeVar("Carry")
Penalty = Callable[[PyTree], Float[Array, ""]]
Gradient = Callable[[Callable[[PyTree], tuple[Array, Any]], PyTree], tuple[PyTree, Any]]
"""`(function with an auxiliary output, parameters) -> (gradient, that output)`."""

REGULARISATION = "regularisation"
"""Training metric of a client whose loss has a penalty: its mean value over the steps."""


class StepInput(NamedTuple):
    """What a step gets.

    Attributes:
      batch: rows of the client.
      mask: which rows are examples.
      key: of this step.
      step: its number in the round.
    """

    batch: Batch
    mask: Bool[Array, " batch"]
    key: Key[Array, ""]
    step: Int[Array, ""]


class Limits(NamedTuple):
    """Sizes that a compiled program is made for; they bound its clients.

    Attributes:
      max_size: most examples of a client.
      max_epochs: most epochs of a client in a round.
    """

    max_size: int
    max_epochs: int

    def at_least(self, schedule: Schedule) -> "Limits":
        """The limits for a schedule beside that of the course; a step may be an epoch."""
        return Limits(self.max_size, max(self.max_epochs, schedule.amount))


def run_steps(
    step: Callable[[Carry, StepInput], Carry],
    carry: Carry,
    view: ClientView,
    schedule: Schedule,
    limits: Limits,
    key: Key[Array, ""],
) -> Carry:
    """Walks through the batches of a client.

    The number of steps is the client's own: nothing is computed for batches that it does not have.
    Under `vmap` clients that have ended wait for the others, unchanged.

    Args:
      step: `(carry, input) -> carry`.
      carry: what the steps change.
      view: the client's examples.
      schedule: how much it trains.
      limits: sizes that bound it.
      key: of the client and the round.

    Returns:
      The carry after the last step; the one given if the client has no batch.
    """
    order_key, step_key = jax.random.split(key)
    orders = None
    if schedule.shuffle:
        orders = shuffle_epochs(order_key, view.size, limits.max_epochs, limits.max_size)
    num_batches = jnp.maximum(schedule.num_batches(view.size), 1)

    def body(index: Array, carry: Carry) -> Carry:
        order = None
        if orders is not None:
            order = orders[jnp.minimum(index // num_batches, limits.max_epochs - 1)]
        start = (index % num_batches) * schedule.batch_size
        batch, mask = take_batch(view, start, schedule.batch_size, order)
        return step(carry, StepInput(batch, mask, jax.random.fold_in(step_key, index), index))

    return jax.lax.fori_loop(0, schedule.num_steps(view.size), body, like(view.size, carry))


class TrainCarry(NamedTuple):
    """What an ordinary step changes.

    Attributes:
      variables: parameters and what else the model keeps.
      opt_state: of the optimizer, new in every round.
      num_samples: examples that were processed.
      sums: training metrics over the round.
    """

    variables: PyTree
    opt_state: Any
    num_samples: Float[Array, ""]
    sums: Sums


def make_sgd_step(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    penalty: Penalty | None = None,
    grad_transform: Callable[[PyTree, PyTree, StepInput], PyTree] | None = None,
    gradient: Gradient | None = None,
) -> Callable[[TrainCarry, StepInput], TrainCarry]:
    """One step of local training.

    Args:
      task: the learning problem.
      tx: optimizer, clipping included.
      penalty: added to the mean loss, a function of the parameters.
      grad_transform: `(gradient, parameters, input) -> gradient`, before the optimizer.
      gradient: how the gradient of the loss is taken; None at the parameters themselves.

    Returns:
      `(carry, input) -> carry`.
    """

    def at_the_point(objective: Callable[..., Any], params: PyTree) -> tuple[PyTree, Any]:
        return jax.grad(objective, has_aux=True)(params)

    take_gradient = gradient or at_the_point

    def step(carry: TrainCarry, given: StepInput) -> TrainCarry:
        params = carry.variables["params"]
        kept = {k: v for k, v in carry.variables.items() if k != "params"}

        def objective(params: PyTree) -> tuple[Array, tuple[dict[str, Any], Sums]]:
            output = compute_loss(task, {"params": params, **kept}, given.batch, given.key, True)
            loss = masked_mean(output.per_example, given.mask)
            sums = masked_sums(output, given.mask)
            if penalty is None:
                return loss, (output.model_state, sums)
            added = penalty(params)
            if REGULARISATION in carry.sums:
                count = sums["loss"][1]
                sums[REGULARISATION] = jnp.stack([added * count, count])
            return loss + added, (output.model_state, sums)

        grads, (model_state, sums) = take_gradient(objective, params)
        if grad_transform is not None:
            grads = grad_transform(grads, params, given)
        updates, opt_state = tx.update(grads, carry.opt_state, params)
        variables = {"params": optax.apply_updates(params, updates), **model_state}
        return TrainCarry(
            variables, opt_state, carry.num_samples + given.mask.sum(),
            jax.tree.map(jnp.add, carry.sums, sums),
        )  # fmt: skip

    return step


def start_carry(
    task: Task,
    tx: optax.GradientTransformation,
    variables: PyTree,
    view: ClientView,
    *,
    has_penalty: bool = False,
) -> TrainCarry:
    """The carry before the first step of a round.

    Args:
      task: the learning problem.
      tx: the optimizer.
      variables: what the client starts from.
      view: its examples.
      has_penalty: the steps have a penalty, whose value is a training metric, `regularisation`.
    """
    sums = _zero_sums(_output_shapes(task, variables, view))
    if has_penalty:
        sums[REGULARISATION] = jnp.zeros(2, jnp.float32)
    return TrainCarry(variables, tx.init(variables["params"]), jnp.float32(0.0), sums)


def _output_shapes(task: Task, variables: PyTree, view: ClientView) -> LossOutput:
    """Shapes of what an evaluation of two examples gives: one more than a mean over them has."""
    first, _ = take_batch(view, jnp.int32(0), 2)
    return jax.eval_shape(
        lambda v, b: compute_loss(task, v, b, jax.random.key(0), False), variables, first
    )


def _zero_sums(shapes: LossOutput) -> Sums:
    return {name: jnp.zeros(2, jnp.float32) for name in ("loss", *shapes.scores)}


def train_client(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    variables: PyTree,
    view: ClientView,
    limits: Limits,
    key: Key[Array, ""],
    *,
    penalty: Penalty | None = None,
    grad_transform: Callable[[PyTree, PyTree, StepInput], PyTree] | None = None,
    gradient: Gradient | None = None,
) -> TrainCarry:
    """Ordinary steps from some variables on, with an optimizer that is new.

    Args:
      task: the learning problem.
      tx: the optimizer.
      schedule: how much the client trains.
      variables: what it starts from.
      view: its examples.
      limits: sizes that bound it.
      key: of the client and the round.
      penalty: see `make_sgd_step`.
      grad_transform: see `make_sgd_step`.
      gradient: see `make_sgd_step`.

    Returns:
      The carry after the last step.
    """
    step = make_sgd_step(
        task, tx, penalty=penalty, grad_transform=grad_transform, gradient=gradient
    )
    carry = start_carry(task, tx, variables, view, has_penalty=penalty is not None)
    return run_steps(step, carry, view, schedule, limits, key)


def pull_towards(center: PyTree, strength: Float[Array, ""] | float) -> Penalty:
    """The penalty `strength ||params - center||^2 / 2`, whose gradient pulls towards the centre."""

    def penalty(params: PyTree) -> Float[Array, ""]:
        return 0.5 * strength * squared_norm(jax.tree.map(jnp.subtract, params, center))

    return penalty


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """Sum of the squares of all numbers of a tree, float32."""
    squares = (jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))
    return sum(squares, jnp.float32(0.0))


def evaluate_client(task: Task, variables: PyTree, view: ClientView, batch_size: int) -> Sums:
    """Sums and counts of loss and scores over all examples of a client.

    A score of all examples at once (`Task.score_all`) has a name that ends in `@client` and counts
    as if every example had it, so that the mean over clients is weighted by their examples; a
    client that has no such number has the count 0.

    Args:
      task: the learning problem.
      variables: the model.
      view: the client's examples.
      batch_size: rows of a forward pass.
    """
    shapes = _output_shapes(task, variables, view)
    max_rows = -(-view.max_size // batch_size) * batch_size
    rows = {
        name: jnp.zeros((max_rows, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in ((shapes.kept or {}) if task.score_all is not None else {}).items()
    }

    def body(index: Array, carry: tuple[Sums, dict[str, Array]]) -> tuple[Sums, dict[str, Array]]:
        start = index * batch_size
        batch, mask = take_batch(view, start, batch_size)
        output = compute_loss(task, variables, batch, jax.random.key(0), False)
        sums = jax.tree.map(jnp.add, carry[0], masked_sums(output, mask))
        return sums, {
            name: jax.lax.dynamic_update_slice_in_dim(before, (output.kept or {})[name], start, 0)
            for name, before in carry[1].items()
        }

    num_batches = (view.size + batch_size - 1) // batch_size
    begin = like(view.size, (_zero_sums(shapes), rows))
    sums, rows = jax.lax.fori_loop(0, num_batches, body, begin)
    if task.score_all is None:
        return sums
    found = task.score_all(rows, jnp.arange(max_rows) < view.size)
    return sums | {
        f"{name}{OF_CLIENT}": jnp.where(pair[1] > 0, view.size * pair, 0.0)
        for name, pair in found.items()
    }


def like(witness: Array, tree: Carry) -> Carry:
    """The tree, varying over the mesh axes that the witness varies over.

    Inside `shard_map` the carry of a loop must vary over the devices from the start if its steps
    make it do so; elsewhere this changes nothing.

    Args:
      witness: an array that varies, such as the size of a client.
      tree: arrays.
    """
    varies = jnp.asarray(witness).ravel()[0] == 0
    # A choice between two equal values varies as its condition does; the compiler drops it.
    return jax.tree.map(lambda leaf: jax.lax.select_n(varies, leaf, leaf), tree)
