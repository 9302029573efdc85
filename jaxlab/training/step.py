"""The usual optimisation step, made from a loss function and an optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxlab.training.optimizer import learning_rate
from jaxlab.training.state import TrainState

LossFn = Callable[[PyTree, PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, tuple[PyTree, Any]]]
TrainStep = Callable[[Any, PyTree, PyTree, jax.Array], tuple[Any, dict[str, jax.Array]]]

REMAT = ("none", "dots", "full")


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    num_microbatches: int = 1,
    remat: str = "none",
    post_update: Callable[[PyTree], PyTree] | None = None,
) -> TrainStep:
    """`step(state, frozen, batch, key) -> (state, metrics)` that descends a loss.

    A batch of n rows goes through in `num_microbatches` parts of equal size, one after the other,
    so that activations of one part alone are in memory; gradients and metrics are their means,
    accumulated in float32. Part i takes the rows i, i + k, i + 2k, ...: each device keeps the rows
    it has. For a loss that is a mean over rows this is the gradient of the whole batch; a loss over
    pairs of rows (contrastive) sees the pairs within a part only.

    The compute type is the model's affair: parameters stay float32 here.

    Args:
      loss_fn: `loss_fn(params, frozen, extra, batch, key) -> (loss, (extra, metrics))`, loss and
        metrics scalars. Parts see `extra` one after the other, and each a key of its own.
      tx: the optimizer over `params`.
      num_microbatches: number of parts; must divide the rows of a batch.
      remat: what the backward pass computes again instead of keeping: "none", "dots" (all but the
        results of matrix products) or "full". Models that do this block by block save more memory
        for "full" than this option, which is about the loss as a whole.
      post_update: from the updated parameters to those of the next step (a clamp, a projection).

    Returns:
      A pure, jittable step. Its metrics are float32 scalars: those of `loss_fn`, `loss`,
      `grad_norm` (before clipping), and `learning_rate` if `tx` is from `make_optimizer`.

    Raises:
      ValueError: if an argument is out of range; when traced, if the rows do not divide.
    """
    if num_microbatches < 1:
        raise ValueError(f"num_microbatches={num_microbatches} must be at least 1")
    loss_and_grad = jax.value_and_grad(_rematerialized(loss_fn, remat), has_aux=True)

    def step(
        state: TrainState, frozen: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if num_microbatches == 1:
            (loss, (extra, metrics)), grads = loss_and_grad(
                state.params, frozen, state.extra, batch, key
            )
            metrics = {**metrics, "loss": loss}
        else:
            grads, extra, metrics = _accumulate(
                loss_and_grad, num_microbatches, state, frozen, batch, key
            )
        return apply_gradients(state, grads, extra, metrics, tx, post_update)

    return step


def apply_gradients(
    state: TrainState,
    grads: PyTree,
    extra: PyTree,
    metrics: dict[str, jax.Array],
    tx: optax.GradientTransformation,
    post_update: Callable[[PyTree], PyTree] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The end of a step: the optimizer's update, and what is reported of it.

    Args:
      state: before the step.
      grads: gradients, a tree like `state.params`.
      extra: arrays that change without a gradient, after the step.
      metrics: scalars of the step.
      tx: the optimizer.
      post_update: from the updated parameters to those of the next step.

    Returns:
      The state after the step, and the metrics in float32 with `grad_norm` (before clipping) and,
      if `tx` is from `make_optimizer`, `learning_rate`.
    """
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if post_update is not None:
        params = post_update(params)
    metrics = {**_float32(metrics), "grad_norm": optax.tree.norm(grads).astype(jnp.float32)}
    if (rate := learning_rate(opt_state)) is not None:
        metrics["learning_rate"] = rate
    new_state = dataclasses.replace(
        state, step=state.step + 1, params=params, extra=extra, opt_state=opt_state
    )
    return new_state, metrics


def split_microbatches(batch: PyTree, num_microbatches: int) -> PyTree:
    """Rows of a batch as (parts, rows of a part, ...); part i has the rows i, i + parts, ...

    Args:
      batch: tree of arrays of shape (rows, ...), with the same rows in every leaf.
      num_microbatches: number of parts.

    Returns:
      The tree with shapes (parts, rows // parts, ...).

    Raises:
      ValueError: if the rows are not a multiple of the parts.
    """

    def split(leaf: Any) -> jax.Array:
        rows = leaf.shape[0]
        if rows % num_microbatches:
            raise ValueError(
                f"a batch of {rows} rows does not divide into {num_microbatches} microbatches; "
                f"use a multiple, such as {max(rows // num_microbatches, 1) * num_microbatches}"
            )
        parts = leaf.reshape(rows // num_microbatches, num_microbatches, *leaf.shape[1:])
        return jnp.moveaxis(parts, 1, 0)

    return jax.tree.map(split, batch)


def join_microbatches(parts: PyTree) -> PyTree:
    """Rows of all parts in the order of the batch: the inverse of `split_microbatches`.

    Args:
      parts: tree of arrays of shape (parts, rows of a part, ...).

    Returns:
      The tree with shapes (parts * rows of a part, ...).
    """

    def join(leaf: jax.Array) -> jax.Array:
        rows = leaf.shape[0] * leaf.shape[1]
        return jnp.moveaxis(leaf, 0, 1).reshape(rows, *leaf.shape[2:])

    return jax.tree.map(join, parts)


def _accumulate(
    loss_and_grad: Callable[..., Any],
    num_microbatches: int,
    state: TrainState,
    frozen: PyTree,
    batch: PyTree,
    key: jax.Array,
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
    """Mean gradients, last `extra` and mean metrics over the parts of a batch."""
    parts = split_microbatches(batch, num_microbatches)

    def one(extra: PyTree, index: jax.Array, part: PyTree) -> tuple[PyTree, PyTree, Any]:
        (loss, (extra, metrics)), grads = loss_and_grad(
            state.params, frozen, extra, part, jax.random.fold_in(key, index)
        )
        return _float32(grads), extra, {**_float32(metrics), "loss": loss.astype(jnp.float32)}

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    shapes = jax.eval_shape(one, state.extra, jnp.zeros((), jnp.int32), first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))

    def body(carry: Any, part: Any) -> tuple[Any, None]:
        sums, extra = carry
        grads, extra, metrics = one(extra, *part)
        return (jax.tree.map(jnp.add, sums, (grads, metrics)), extra), None

    indices = jnp.arange(num_microbatches, dtype=jnp.int32)
    (sums, extra), _ = jax.lax.scan(body, (zeros, state.extra), (indices, parts))
    grads, metrics = jax.tree.map(lambda total: total / num_microbatches, sums)
    return grads, extra, metrics


def _rematerialized(loss_fn: LossFn, remat: str) -> LossFn:
    if remat not in REMAT:
        raise ValueError(f"remat={remat!r} is not one of {', '.join(REMAT)}")
    if remat == "none":
        return loss_fn
    policies = jax.checkpoint_policies
    keep = policies.nothing_saveable if remat == "full" else policies.dots_saveable
    return jax.checkpoint(loss_fn, policy=keep)


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
