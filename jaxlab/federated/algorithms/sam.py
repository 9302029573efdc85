"""Sharpness-aware steps of the clients: gradients are taken where the loss nearby is worst.

References:
  Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
  arXiv:2010.01412; Kwon et al. 2021, "ASAM", arXiv:2102.11600; in federated learning Caldarola et
  al. 2022, arXiv:2203.11834, and `federatedscope/contrib/trainer/sam.py` of FederatedScope 0.3.0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxlab.federated.checks import check_not_negative
from jaxlab.federated.local import Gradient, squared_norm

TINY = 1e-16
"""Added to the norm of the gradient, which may be 0."""

SCALED = ("kernel", "embedding", "scale")
"""Parameters, by the last part of their name, whose size counts in ASAM; `weight` in torch."""


def sharpness_aware(rho: float, *, adaptive: bool = False, eta: float = 0.0) -> Gradient:
    """The gradient at `w + e` for `fed_avg(..., gradient=)`: FedSAM, or FedASAM.

    `e = rho g / ||g||`; adaptive `e = rho T^2 g / ||T g||`, with `T = |w| + eta` for kernels,
    embeddings and scales and 1 for biases. The metrics and what else the model keeps are those at
    w.

    Args:
      rho: how far away the gradient is taken.
      adaptive: measure distances relative to the parameters.
      eta: added to their size.

    Raises:
      ConfigError: (a ValueError) if a number is negative.
    """
    check_not_negative("sharpness_aware", rho=rho, eta=eta)

    def sizes(params: PyTree) -> PyTree:
        def size(path: tuple[Any, ...], leaf: Array) -> Array:
            name = jax.tree_util.keystr(path[-1:], simple=True)
            return jnp.abs(leaf) + eta if adaptive and name in SCALED else jnp.ones_like(leaf)

        return jax.tree_util.tree_map_with_path(size, params)

    def gradient(
        objective: Callable[[PyTree], tuple[Array, Any]], params: PyTree
    ) -> tuple[PyTree, Any]:
        grads, aux = jax.grad(objective, has_aux=True)(params)
        scales = sizes(params)
        scaled = jax.tree.map(jnp.multiply, scales, grads)
        factor = rho / (jnp.sqrt(squared_norm(scaled)) + TINY)
        worst = jax.tree.map(
            lambda w, t, s: (w + factor * t * s).astype(w.dtype), params, scales, scaled
        )
        return jax.grad(objective, has_aux=True)(worst)[0], aux

    return gradient
