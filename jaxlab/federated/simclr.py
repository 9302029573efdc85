"""Contrastive learning without labels (FedSimCLR): two views of an example are to be alike.

The task goes with every algorithm: clients train `models.SimCLR()` on examples without `y`, and
what comes out of it is measured by a linear layer on the features that it has learned
(`models.ResNetProbe`, whose `backbone` has the same names).

References:
  Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations",
  arXiv:2002.05709; `federatedscope/cl/loss/NT_xentloss.py` of FederatedScope 0.3.0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key, PyTree

from jaxlab.federated.checks import check_positive
from jaxlab.federated.tasks import MASK, Batch, LossOutput, Task, apply, supervised

Augment = Callable[[Key[Array, ""], Array], Array]
"""`(key, inputs of a batch) -> views of them`, of the same shape; pure."""

FIRST, SECOND = "first", "second"
"""Names under which the loss of a contrastive task keeps the projections of both views."""

_SMALL = 1e-12


def contrastive(
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    augment: Augment,
    *,
    temperature: float = 0.1,
    prepare: Callable[[Array], Array] = lambda x: x,
    masked: bool = True,
) -> Task:
    """Projections of two views of an example are to be nearer than those of others of the batch.

    The loss, `nt_xent`, is one of a batch: its size is part of the problem, also in evaluations.
    The score `correct` is 1 where the other view is the nearest of all.

    Args:
      module: called with `(views, train=...)`, gives projections (batch, features); such as
        `models.SimCLR()`.
      example: shape and type of one view, without the batch axis.
      augment: draws views.
      temperature: cosines are divided by it.
      prepare: from `x` of the batch to what is augmented, on the device.
      masked: the module is also called with `mask=`, see `supervised`.

    Raises:
      ConfigError: (a ValueError) if the temperature is not positive, or the module cannot be called
        so.
    """
    check_positive("contrastive", temperature=temperature)
    base = supervised(module, example, _no_labels, prepare=prepare, masked=masked)

    def loss(variables: PyTree, batch: Batch, key: Key[Array, ""], train: bool) -> LossOutput:
        inputs, mask = prepare(batch["x"]), batch[MASK]
        views_keys, *keys = jax.random.split(key, 3)
        projections: list[Array] = []
        state: dict[str, Any] = {k: v for k, v in variables.items() if k != "params"}
        for view_key, own_key in zip(jax.random.split(views_keys), keys, strict=True):
            projected, state = apply(
                module, {**variables, **state}, augment(view_key, inputs), own_key, train,
                mask if masked else None,
            )  # fmt: skip
            projections.append(projected)
        losses, correct = nt_xent(projections[0], projections[1], mask, temperature)
        kept = {FIRST: projections[0], SECOND: projections[1]}
        return LossOutput(losses, state, {"correct": correct}, kept)

    return Task(base.init, loss, check=base.check)


def nt_xent(
    first: Float[Array, "batch features"],
    second: Float[Array, "batch features"],
    mask: Bool[Array, " batch"],
    temperature: float = 0.1,
    *,
    others: Float[Array, "clients rows features"] | None = None,
    others_mask: Bool[Array, "clients rows"] | None = None,
    compat: bool = False,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Normalised cross entropy between views, of every example (NT-Xent).

    Every view is to find the other view of its example among all views of the batch but itself, by
    their cosines; with `others`, the second views of other clients, also among these (FedGC).

    Args:
      first: projections of one view of every example.
      second: those of another view.
      mask: which rows are examples; others are no candidates, and their numbers mean nothing.
      temperature: cosines are divided by it.
      others: projections that are wrong for all, as many rows a client as the batch has; None are
        none.
      others_mask: which of them are examples; None means all.
      compat: compare as the original does: only the first views look among the others, and in place
        of a second view the row of the same number of every other client looks among the first
        ones, which is how its matrix of cosines is cut.

    Returns:
      The mean of the two losses of an example, in nats, and 1 where the first view finds the
      second.

    References:
      Chen et al. 2020, arXiv:2002.05709, eq. 1; `federatedscope/cl/loss/NT_xentloss.py` and, with
      others, `federatedscope/cl/fedgc/utils.py` of FederatedScope 0.3.0.
    """
    size = first.shape[0]
    unit = _unit(jnp.concatenate([first, second]))
    scores = _cosines(unit, unit)
    is_other = jnp.tile(mask, 2)[None, :] & ~jnp.eye(2 * size, dtype=bool)
    if others is not None:
        seen = jnp.ones(others.shape[:2], bool) if others_mask is None else others_mask
        more, may_count = _against(unit, mask, _unit(others), seen, compat=compat)
        scores = jnp.concatenate([scores, more], axis=1)
        is_other = jnp.concatenate([is_other, may_count], axis=1)
    scores = jnp.where(is_other, scores / temperature, jnp.finfo(jnp.float32).min / 2)
    partner = jnp.roll(jnp.arange(2 * size), size)
    found = jnp.take_along_axis(scores, partner[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(scores, axis=1) - found
    correct = (scores.argmax(axis=1) == partner).astype(jnp.float32)
    return (losses[:size] + losses[size:]) / 2, correct[:size]


def _against(
    unit: Array, mask: Array, others: Array, seen: Array, *, compat: bool
) -> tuple[Array, Array]:
    """Cosines of all views with those of other clients, and which are of examples.

    Args:
      unit: both views of the batch, (2 batch, features).
      mask: which rows of the batch are examples.
      others: (clients, rows, features).
      seen: which of them are examples.
      compat: see `nt_xent`.
    """
    flat = others.reshape(-1, others.shape[-1])
    scores = _cosines(unit, flat)
    may_count = jnp.broadcast_to(seen.reshape(-1)[None, :], scores.shape)
    if not compat:
        return scores, may_count
    size = len(mask)
    # Rows i of all clients, against the first views: (row, client and first view).
    turned = _cosines(flat, unit[:size]).reshape(*seen.shape, size)
    turned = jnp.moveaxis(turned, 0, 1).reshape(seen.shape[1], -1)
    allowed = jnp.moveaxis(seen[..., None] & mask[None, None, :], 0, 1).reshape(turned.shape)
    return (
        jnp.concatenate([scores[:size], turned]),
        jnp.concatenate([may_count[:size], allowed]),
    )


def _unit(rows: Array) -> Float[Array, "*rows features"]:
    """Rows of length 1, float32."""
    rows = rows.astype(jnp.float32)
    return rows / jnp.sqrt(jnp.maximum((rows**2).sum(axis=-1, keepdims=True), _SMALL))


def _cosines(rows: Array, columns: Array) -> Float[Array, "rows columns"]:
    return jnp.matmul(rows, columns.T, precision="highest")


def _no_labels(output: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Stands for a score of outputs, of which there is none by itself."""
    raise AssertionError("a contrastive task is about two outputs")
