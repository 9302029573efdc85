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
        return LossOutput(losses, state, {"correct": correct})

    return Task(base.init, loss, check=base.check)


def nt_xent(
    first: Float[Array, "batch features"],
    second: Float[Array, "batch features"],
    mask: Bool[Array, " batch"],
    temperature: float = 0.1,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Normalised cross entropy between views, of every example (NT-Xent).

    Every view is to find the other view of its example among all views of the batch but itself, by
    their cosines.

    Args:
      first: projections of one view of every example.
      second: those of another view.
      mask: which rows are examples; others are no candidates, and their numbers mean nothing.
      temperature: cosines are divided by it.

    Returns:
      The mean of the two losses of an example, in nats, and 1 where the first view finds the
      second.
    """
    size = first.shape[0]
    both = jnp.concatenate([first, second]).astype(jnp.float32)
    lengths = jnp.sqrt(jnp.maximum((both**2).sum(axis=-1, keepdims=True), _SMALL))
    unit = both / lengths
    scores = jnp.matmul(unit, unit.T, precision="highest") / temperature
    is_other = jnp.tile(mask, 2)[None, :] & ~jnp.eye(2 * size, dtype=bool)
    scores = jnp.where(is_other, scores, jnp.finfo(jnp.float32).min / 2)
    partner = jnp.roll(jnp.arange(2 * size), size)
    found = jnp.take_along_axis(scores, partner[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(scores, axis=1) - found
    correct = (scores.argmax(axis=1) == partner).astype(jnp.float32)
    return (losses[:size] + losses[size:]) / 2, correct[:size]


def _no_labels(output: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Stands for a score of outputs, of which there is none by itself."""
    raise AssertionError("a contrastive task is about two outputs")
