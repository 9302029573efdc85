"""Progressive knowledge transfer of MobileBERT: one layer after the other, then pre-training.

The first part of a run is cut into equal pieces, one a layer. In the piece of layer l the student's
layers up to l are matched (squared difference of hidden states, divergence of attention maps);
those below l, which had their turn, learn by a tenth. After the last layer there is the loss of
pre-training only. Everything here is a function of the progress of a run, for the objective
(weights of matches and of the loss) and for the optimizer (factors of layers).

References:
  Sun et al. 2020, arXiv:2004.02984, section 3.4.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.distillation.grammar import EMBEDDINGS

_LAYER = re.compile(r"layer_(\d+)")
_ROUNDING = 1e-5
"""Added before a quotient of float32 is rounded down: 0.3 / 0.5 * 10 may be 5.9999995."""


@dataclasses.dataclass(frozen=True)
class ProgressiveTransfer:
    """The plan of a run.

    Attributes:
      num_layers: layers of the student.
      transfer_share: share of the run in which layers are matched, in (0, 1].
      total_weight: sum of the weights of all matches that are active.
      lower_factor: by which layers below the current one learn.
    """

    num_layers: int
    transfer_share: float = 0.5
    total_weight: float = 0.5
    lower_factor: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what makes no plan.

        Raises:
          ValueError: listing all of it.
        """
        wrong = []
        if self.num_layers < 1:
            wrong.append(f"num_layers={self.num_layers} must be 1 or more")
        if not 0.0 < self.transfer_share <= 1.0:
            wrong.append(f"transfer_share={self.transfer_share} must be in (0, 1]")
        for name in ("total_weight", "lower_factor"):
            if not getattr(self, name) >= 0.0:
                wrong.append(f"{name}={getattr(self, name)} must be 0 or more")
        if wrong:
            raise ValueError("; ".join(wrong))

    def current_layer(self, progress: Float[Array, ""]) -> Int[Array, ""]:
        """The layer whose turn it is; `num_layers` when all had theirs.

        Args:
          progress: of the run, in [0, 1].
        """
        turn = jnp.floor(progress / self.transfer_share * self.num_layers + _ROUNDING)
        return jnp.minimum(turn.astype(jnp.int32), self.num_layers)

    def match_weights(
        self, progress: Float[Array, ""], student_layers: Sequence[int]
    ) -> Float[Array, " matches"]:
        """Weight of every match: equal ones up to the current layer, none above or afterwards.

        Args:
          progress: of the run.
          student_layers: the student's layer of every match, `EMBEDDINGS` for those.

        Raises:
          ValueError: if a layer does not exist.
        """
        wrong = [i for i in student_layers if not EMBEDDINGS <= i < self.num_layers]
        if wrong:
            raise ValueError(
                f"matches of layers {wrong}; the student has {self.num_layers}, from 0, and "
                f"{EMBEDDINGS} is its embeddings"
            )
        current = self.current_layer(progress)
        layers = jnp.asarray(tuple(student_layers), jnp.int32)
        active = ((layers <= current) & (current < self.num_layers)).astype(jnp.float32)
        return self.total_weight * active / jnp.maximum(active.sum(), 1.0)

    def loss_weight(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """Weight of the loss of pre-training: 1 when all layers had their turn, 0 before.

        Args:
          progress: of the run.
        """
        return (self.current_layer(progress) == self.num_layers).astype(jnp.float32)

    def layer_factors(self, progress: Float[Array, ""]) -> Float[Array, " layers"]:
        """By which every layer learns: less below the current one; all alike afterwards.

        Args:
          progress: of the run.
        """
        current = self.current_layer(progress)
        had_their_turn = (jnp.arange(self.num_layers) < current) & (current < self.num_layers)
        return jnp.where(had_their_turn, jnp.float32(self.lower_factor), jnp.float32(1.0))


@jax.custom_vjp
def scale_gradient(values: PyTree, factor: Float[Array, ""]) -> PyTree:
    """The same values, whose gradient is multiplied by a factor.

    Args:
      values: tree of arrays.
      factor: gets no gradient itself.
    """
    del factor
    return values


def _keep_factor(values: PyTree, factor: Array) -> tuple[PyTree, Array]:
    return values, factor


def _times_factor(factor: Array, gradients: PyTree) -> tuple[PyTree, Array]:
    scaled = jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), gradients)
    return scaled, jnp.zeros_like(factor)


scale_gradient.defvjp(_keep_factor, _times_factor)


def scale_layer_gradients(params: PyTree, factors: Float[Array, " layers"]) -> PyTree:
    """The same parameters, whose layers' gradients are multiplied by their factors.

    For optimizers whose updates are proportional to gradients. Those of Adam are not: use
    `scale_layer_updates`.

    Args:
      params: tree with `layer_i` somewhere in its paths; everything else has the factor of layer 0.
      factors: of every layer.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: scale_gradient(leaf, factors[_layer_of(path)]), params
    )


class _NumUpdates(NamedTuple):
    count: Int[Array, ""]


def scale_layer_updates(plan: ProgressiveTransfer, num_steps: int) -> optax.GradientTransformation:
    """Multiplies the updates of layers by their factors: a learning rate of their own.

    It comes last in a chain. The embeddings go with layer 0.

    Args:
      plan: gives the factors.
      num_steps: of the whole run, of which the count of updates is the progress.

    Raises:
      ValueError: if there is no step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} of the whole run must be 1 or more")

    def init(params: PyTree) -> _NumUpdates:
        del params
        return _NumUpdates(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, _NumUpdates]:
        del params
        factors = plan.layer_factors(state.count.astype(jnp.float32) / num_steps)
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (leaf * factors[_layer_of(path)]).astype(leaf.dtype), updates
        )
        return scaled, _NumUpdates(state.count + 1)

    return optax.GradientTransformation(init, update)


def _layer_of(path: tuple[object, ...]) -> int:
    """The layer in a path of a tree; what is outside of layers is below all: 0."""
    found = _LAYER.search(jax.tree_util.keystr(path))
    return int(found[1]) if found else 0
