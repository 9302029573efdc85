"""FedAdagrad, FedYogi and FedAdam: adaptive steps of the server, for `fed_avg(server_tx=)`.

They differ from the optimizers of the same names: the moments are not corrected for their start,
and the second one begins at the square of what keeps the division from 0.

References:
  Reddi et al. 2021, "Adaptive Federated Optimization", arXiv:2003.00295, algorithm 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxlab.federated.checks import check_positive
from jaxlab.federated.strategy import ConfigError

SecondMoment = Callable[[Array, Array], Array]
"""`(second moment, squared update) -> the next second moment`."""


class Moments(NamedTuple):
    """What the optimizer keeps, of the shape of the parameters.

    Attributes:
      first: moving mean of the gradients.
      second: v.
    """

    first: PyTree
    second: PyTree


def fed_adagrad(
    learning_rate: float, *, b1: float = 0.0, tau: float = 1e-3
) -> optax.GradientTransformation:
    """`v += d^2`; steps `learning_rate m / (sqrt(v) + tau)`, with m the mean of the updates d.

    Args:
      learning_rate: of the server.
      b1: decay of m, which begins at 0.
      tau: degree of adaptivity; v begins at its square.
    """
    return _adaptive(learning_rate, b1, 0.0, tau, lambda v, square: v + square)


def fed_yogi(
    learning_rate: float, *, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """`v -= (1 - b2) d^2 sign(v - d^2)`; else as `fed_adagrad`.

    Args:
      learning_rate: of the server.
      b1: decay of m, which begins at 0.
      b2: decay of v.
      tau: degree of adaptivity; v begins at its square.
    """
    return _adaptive(
        learning_rate, b1, b2, tau, lambda v, square: v - (1 - b2) * square * jnp.sign(v - square)
    )


def fed_adam(
    learning_rate: float, *, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """`v = b2 v + (1 - b2) d^2`; else as `fed_adagrad`.

    Args:
      learning_rate: of the server.
      b1: decay of m, which begins at 0.
      b2: decay of v.
      tau: degree of adaptivity; v begins at its square.
    """
    return _adaptive(learning_rate, b1, b2, tau, lambda v, square: b2 * v + (1 - b2) * square)


def _adaptive(
    learning_rate: float, b1: float, b2: float, tau: float, next_second: SecondMoment
) -> optax.GradientTransformation:
    check_positive("an adaptive server optimizer", learning_rate=learning_rate, tau=tau)
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise ConfigError(f"b1={b1} and b2={b2} must be in [0, 1)")

    def init(params: PyTree) -> Moments:
        def filled(value: float) -> PyTree:
            return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, jnp.float32), params)

        return Moments(filled(0.0), filled(tau**2))

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        del params
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, updates)
        second = jax.tree.map(lambda v, g: next_second(v, jnp.square(g)), state.second, updates)
        steps = jax.tree.map(lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), first, second)
        return steps, Moments(first, second)

    return optax.GradientTransformation(init, update)
