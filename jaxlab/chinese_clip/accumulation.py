"""A step on more pairs than fit into memory, with the loss of all of them.

A contrastive loss compares every row with every other, so the gradients of the parts of a batch do
not add up to that of the batch. But the loss reaches the towers through the features alone. So
(1) the features of all parts are computed without gradient and kept, (2) the loss and its gradient
with respect to the features are computed once, on all of them, and (3) every part goes through the
towers again with its share of that gradient. Both passes of a part draw the same dropout and the
same patches, so that the sum is the gradient of the whole batch; in memory are the activations of
one part, and the features of all.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
arXiv:2101.06983. The original's `accum_freq` computes the loss once a part, masks patches in its
second pass only, draws dropout anew in it, and updates batch statistics in both.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from jaxlab.training.state import TrainState
from jaxlab.training.step import (
    LossFn,
    TrainStep,
    apply_gradients,
    join_microbatches,
    split_microbatches,
)


class StepParts(NamedTuple):
    """A loss over the rows of a batch, taken apart where the rows meet.

    Attributes:
      encode: `(params, frozen, extra, batch, key) -> (features, extra)`, the features a tree of
        arrays with one row for each of the batch; rows do not see each other (but through batch
        statistics of a part).
      teach: `(frozen, batch, key) -> taught`, such a tree without a gradient: what a teacher says.
      objective: `(params, frozen, features, taught, batch) -> (loss, metrics)`.
    """

    encode: Callable[[PyTree, PyTree, PyTree, PyTree, Key[Array, ""]], tuple[PyTree, PyTree]]
    teach: Callable[[PyTree, PyTree, Key[Array, ""]], PyTree]
    objective: Callable[[PyTree, PyTree, PyTree, PyTree, PyTree], tuple[Array, dict[str, Array]]]


def compose_loss(parts: StepParts) -> LossFn:
    """The parts as one loss function, for `jaxlab.training.make_train_step`.

    Args:
      parts: the parts.

    Returns:
      `loss_fn(params, frozen, extra, batch, key) -> (loss, (extra, metrics))`.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, extra: PyTree, batch: PyTree, key: Key[Array, ""]
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        features, extra = parts.encode(params, frozen, extra, batch, key)
        # The teacher sees what the student sees: the same key makes the same augmentation.
        taught = parts.teach(frozen, batch, jax.random.clone(key))
        loss, metrics = parts.objective(params, frozen, features, taught, batch)
        return loss, (extra, metrics)

    return loss_fn


def make_cached_step(
    parts: StepParts,
    tx: optax.GradientTransformation,
    *,
    num_microbatches: int,
    post_update: Callable[[PyTree], PyTree] | None = None,
) -> TrainStep:
    """A step with the gradient of the whole batch and the memory of a part of it.

    Part i takes the rows i, i + k, i + 2k, ... and the key `fold_in(key, i)`; `extra` goes through
    the parts once, one after the other. The towers run forward twice and backward once.

    Args:
      parts: the loss, taken apart.
      tx: the optimizer over `params`.
      num_microbatches: number of parts, k; must divide the rows of a batch.
      post_update: from the updated parameters to those of the next step.

    Returns:
      A pure, jittable step, see `jaxlab.training.make_train_step`.

    Raises:
      ValueError: if `num_microbatches` is not positive; when traced, if the rows do not divide.
    """
    if num_microbatches < 1:
        raise ValueError(f"num_microbatches={num_microbatches} must be at least 1")

    def step(
        state: TrainState, frozen: PyTree, batch: PyTree, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        pieces = split_microbatches(batch, num_microbatches)
        indices = jnp.arange(num_microbatches, dtype=jnp.int32)

        def look(extra: PyTree, part: tuple[Array, PyTree]) -> tuple[PyTree, tuple]:
            index, piece = part
            own = jax.random.fold_in(key, index)
            features, after = parts.encode(state.params, frozen, extra, piece, own)
            taught = parts.teach(frozen, piece, jax.random.clone(own))
            return after, (features, taught, extra)

        extra, (features, taught, before) = jax.lax.scan(look, state.extra, (indices, pieces))
        features, taught = join_microbatches((features, taught))

        def objective(params: PyTree, features: PyTree) -> tuple[Array, dict[str, Array]]:
            return parts.objective(params, frozen, features, taught, batch)

        (loss, metrics), (direct, wanted) = jax.value_and_grad(objective, (0, 1), has_aux=True)(
            state.params, features
        )

        def pull_back(total: PyTree, part: tuple) -> tuple[PyTree, None]:
            index, piece, extra, share = part
            own = jax.random.fold_in(key, index)

            def encode(params: PyTree) -> PyTree:
                return parts.encode(params, frozen, extra, piece, own)[0]

            _, pull = jax.vjp(encode, state.params)
            return jax.tree.map(jnp.add, total, pull(share)[0]), None

        shares = split_microbatches(wanted, num_microbatches)
        grads, _ = jax.lax.scan(pull_back, direct, (indices, pieces, before, shares))
        metrics = {**metrics, "loss": loss}
        return apply_gradients(state, grads, extra, metrics, tx, post_update)

    return step
