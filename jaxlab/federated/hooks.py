"""Functions of one's own at the points of local training, for any algorithm.

They are pure and are composed by wrapping: of functions of a batch, or before a round, the one
wrapped last comes first; of functions of a loss, or after a round, it comes last.

=====================  ============================================================
point of the original  here
=====================  ============================================================
`on_fit_start`         `hook_rounds(before=)`
`on_epoch_start`       `train_client(grad_transform=)` in a `local` of one's own, where
                       `given.step % schedule.num_batches(view.size)` is 0
`on_batch_start`       `hook_task(batch=)`: from a batch to the one that is used
`on_batch_forward`     `hook_task(loss=)`: from losses and scores to others
`on_batch_backward`    a transform of gradients, `optax.chain(mine, tx)`
`on_batch_end`         a transform of steps, `optax.chain(tx, mine)`
`on_epoch_end`         as `on_epoch_start`, where it is `num_batches - 1`
`on_fit_end`           `hook_rounds(after=)`
=====================  ============================================================

The original has three lists of named functions, for training, evaluation and fine-tuning. Here the
functions of a task are told whether it trains (`train`), and `fine_tuned` takes an algorithm of a
task and an optimizer of its own. What a list does by position or by name, a list does::

    hooks = [("flip", flip), ("scale", scale)]
    hooks.insert(1, ("noise", noise))  # register_hook_in_train(insert_pos=1)
    hooks = [(name, crop if name == "flip" else f) for name, f in hooks]  # replace_hook_in_train
    hooks = [(name, f) for name, f in hooks if name != "scale"]  # reset_hook_in_train
    for _, function in reversed(hooks):
        task = hook_task(task, batch=function)

and with transforms of gradients `optax.named_chain(*hooks)` is the optimizer.

References:
  `federatedscope/core/trainers/trainer.py` (`HOOK_TRIGGER`) of FederatedScope 0.3.0.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree
from jaxlab.federated.client_data import ClientView
from jaxlab.federated.local import Limits
from jaxlab.federated.tasks import Batch, LossOutput, Task

OnBatch = Callable[[Batch, Key[Array, ""], bool], Batch]
"""`(batch, key, train) -> batch`, such as a picture that is flipped; its field `mask` stays."""

OnLoss = Callable[[LossOutput, PyTree, Batch, bool], LossOutput]
"""`(output, variables, batch, train) -> output`, such as one with a term more."""

BeforeRound = Callable[[Tree, Tree, ClientView, Key[Array, ""]], Tree]
"""`(what was received, client state, view, key) -> what training starts from`."""

AfterRound = Callable[[LocalResult, Tree, Key[Array, ""]], LocalResult]
"""`(result, what was received, key) -> result`, such as one with noise in its update."""


def hook_task(task: Task, *, batch: OnBatch | None = None, loss: OnLoss | None = None) -> Task:
    """The task with functions before and after its loss.

    Args:
      task: the learning problem.
      batch: changes what the loss is of.
      loss: changes what comes out.
    """
    on_batch, on_loss = batch, loss

    def change(given: Batch, key: Key[Array, ""], train: bool) -> Batch:
        return given if on_batch is None else on_batch(given, key, train)

    def hooked(variables: PyTree, given: Batch, key: Key[Array, ""], train: bool) -> LossOutput:
        own_key, key = jax.random.split(key)
        used = change(given, own_key, train)
        output = task.loss(variables, used, key, train)
        return output if on_loss is None else on_loss(output, variables, used, train)

    def mix(models: PyTree, shares: Array, given: Batch) -> LossOutput:
        assert task.mix is not None, "only then this is used"
        return task.mix(models, shares, change(given, jax.random.key(0), False))

    # Examples that are changed first cannot be looked at as they lie.
    check = task.check if batch is None else None
    return task._replace(loss=hooked, mix=mix if task.mix is not None else None, check=check)


def hook_rounds(
    algorithm: Algorithm, *, before: BeforeRound | None = None, after: AfterRound | None = None
) -> Algorithm:
    """The algorithm with functions before and after the training of a client.

    Updates are then still the difference to what training started from.

    Args:
      algorithm: what clients do.
      before: changes what training starts from.
      after: changes what it gives.
    """

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        before_key, after_key, key = jax.random.split(key, 3)
        start = received if before is None else before(received, state, view, before_key)
        result = algorithm.local(start, state, view, limits, key)
        return result if after is None else after(result, received, after_key)

    return algorithm._replace(local=local)
