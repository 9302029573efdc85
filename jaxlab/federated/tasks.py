"""What clients learn: a model with its loss, as pure functions of variables and a batch.

Variables are `{"params": ...}` and whatever else the model keeps (`batch_stats`): parameters are
optimised, the rest is what the forward pass leaves behind, and both are exchanged.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key, PyTree

Batch = Mapping[str, Any]
Sums = dict[str, Float[Array, " two"]]
"""Name -> (sum, count), so that batches, clients and devices add up to means."""


class LossOutput(NamedTuple):
    """The loss of a batch, and what comes with it.

    Attributes:
      per_example: loss of every example, float32; those that the mask leaves out are not used.
      model_state: the other variables after the forward pass, such as `batch_stats`.
      scores: per example, metric name -> number, such as `correct`.
    """

    per_example: Float[Array, " batch"]
    model_state: dict[str, Any]
    scores: dict[str, Float[Array, " batch"]]


class Task(NamedTuple):
    """A learning problem.

    Attributes:
      init: `key -> variables`.
      loss: `(variables, batch, key, train) -> LossOutput`; the batch holds the arrays of the
        examples, `train` is static.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    loss: Callable[[PyTree, Batch, Key[Array, ""], bool], LossOutput]


def classification(
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    prepare: Callable[[Array], Array] = lambda x: x,
) -> Task:
    """Softmax classification of `x` into `y`.

    Args:
      module: called with `(x, train=...)`, gives logits; it may keep `batch_stats` and draw from
        the stream `dropout`.
      example: shape and type of one `x`, as `prepare` gives it, without the batch axis.
      prepare: from `x` of the batch to the input of the module, on the device.

    Returns:
      A task whose scores are `correct`, 1 where the largest logit is that of `y`.
    """

    def init(key: Key[Array, ""]) -> PyTree:
        inputs = jnp.zeros((1, *example.shape), example.dtype)
        return dict(module.init(key, inputs, train=False))

    def loss(variables: PyTree, batch: Batch, key: Key[Array, ""], train: bool) -> LossOutput:
        logits, model_state = apply(module, variables, prepare(batch["x"]), key, train)
        logits = logits.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        correct = (jnp.argmax(logits, axis=-1) == batch["y"]).astype(jnp.float32)
        return LossOutput(losses, model_state, {"correct": correct})

    return Task(init, loss)


def regression(module: nn.Module, example: jax.ShapeDtypeStruct) -> Task:
    """Least squares: the loss of an example is the mean of its squared errors.

    Args:
      module: called with `(x, train=...)`, gives predictions of the shape of `y`.
      example: shape and type of one `x`, without the batch axis.
    """

    def init(key: Key[Array, ""]) -> PyTree:
        inputs = jnp.zeros((1, *example.shape), example.dtype)
        return dict(module.init(key, inputs, train=False))

    def loss(variables: PyTree, batch: Batch, key: Key[Array, ""], train: bool) -> LossOutput:
        predicted, model_state = apply(module, variables, batch["x"], key, train)
        target = jnp.reshape(batch["y"], predicted.shape)
        errors = jnp.square(predicted.astype(jnp.float32) - target)
        axes = tuple(range(1, errors.ndim))
        return LossOutput(errors.mean(axis=axes), model_state, {})

    return Task(init, loss)


def apply(
    module: nn.Module, variables: PyTree, inputs: Array, key: Key[Array, ""], train: bool
) -> tuple[Array, dict[str, Any]]:
    """The output of a module, and the variables other than parameters after it.

    Args:
      module: called with `(inputs, train=...)`.
      variables: its variables.
      inputs: a batch.
      key: of the stream `dropout`.
      train: update what the module keeps, and draw.
    """
    kept = {name: value for name, value in variables.items() if name != "params"}
    if not train:
        return cast(Array, module.apply(variables, inputs, train=False)), kept
    rngs = {"dropout": key}
    out, changed = module.apply(variables, inputs, train=True, mutable=list(kept), rngs=rngs)
    return cast(Array, out), dict(changed)


def masked_mean(values: Float[Array, " batch"], mask: Bool[Array, " batch"]) -> Float[Array, ""]:
    """Mean over the examples that the mask keeps; 0 if it keeps none."""
    kept = jnp.where(mask, values, 0.0)
    return kept.sum() / jnp.maximum(mask.sum(), 1)


def masked_sums(output: LossOutput, mask: Bool[Array, " batch"]) -> Sums:
    """Sums and counts of the loss and of every score over the examples that the mask keeps."""
    count = mask.sum().astype(jnp.float32)
    values = {"loss": output.per_example, **output.scores}
    return {
        name: jnp.stack([jnp.where(mask, value, 0.0).sum(), count])
        for name, value in values.items()
    }
