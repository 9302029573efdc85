"""What a model without labels has learned: its features, on which a linear layer is trained.

The features are computed once and stay as they are (the original's linear probe trains its layer
behind the whole network, with the same result but for what its pictures are augmented with)::

    features = extract_features(module, variables, data, prepare)
    algorithm = fed_avg(classification(models.LogisticRegression(10), shape), tx, schedule)

References:
  Chen et al. 2020, arXiv:2002.05709, section 4.2; `LPTrainer` in
  `federatedscope/cl/trainer/trainer.py` of FederatedScope 0.3.0.
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from jaxlab.federated.client_data import ClientData
from jaxlab.federated.models import ResNet, SimCLR


def make_features(module: nn.Module) -> Callable[[PyTree, Array], Float[Array, "batch features"]]:
    """What a linear layer is trained on.

    Args:
      module: `SimCLR`, of which that is the network without the projector; of any other module it
        is what comes out.

    Returns:
      `(variables, inputs) -> features`, as in evaluations.
    """
    backbone = ResNet(0, module.blocks, module.widths) if isinstance(module, SimCLR) else None

    def features(variables: PyTree, x: Array) -> Array:
        if backbone is None:
            return cast(Array, module.apply(variables, x, train=False))
        own = {kind: entries["backbone"] for kind, entries in variables.items()}
        return cast(Array, backbone.apply(own, x, train=False))

    return features


def extract_features(
    module: nn.Module,
    variables: PyTree,
    data: ClientData,
    prepare: Callable[[Array], Array] = lambda x: x,
    *,
    batch_size: int = 256,
) -> ClientData:
    """The same examples with features in place of inputs.

    Args:
      module: see `make_features`.
      variables: of it.
      data: examples with `x`, on the host.
      prepare: from `x` of a batch to the input of the module.
      batch_size: examples of a forward pass.

    Returns:
      The data, whose `x` is (examples, features), float32, on the host.
    """
    features = make_features(module)
    compute = jax.jit(lambda x: features(variables, prepare(x)).astype(jnp.float32))
    x = np.asarray(data.examples["x"])
    found = []
    for start in range(0, len(x), batch_size):
        part = x[start : start + batch_size]
        filled = np.concatenate([part, np.repeat(part[:1], batch_size - len(part), axis=0)])
        found.append(np.asarray(compute(filled))[: len(part)])
    if not found:
        shape = jax.eval_shape(compute, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)).shape
        found = [np.zeros((0, *shape[1:]), np.float32)]
    return dataclasses.replace(data, examples={**data.examples, "x": np.concatenate(found)})
