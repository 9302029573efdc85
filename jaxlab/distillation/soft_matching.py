"""Matchings of layers that are weights of all pairs, and change during a run.

A weight for every pair (teacher layer, student layer), without a gradient, that multiplies the
distances of the pairs:

* optimal transport: the cheapest way to move the teacher's layers onto the student's, where cost is
  distance; layers whose matter is cheap to move weigh more next time (`EmdMatching`);
* attention: every student layer follows a mean of teacher layers, weighted by how much their first
  tokens point in its direction (`attended_teacher`);
* random: a sorted random choice of teacher layers that is drawn anew every few steps
  (`random_teacher_layers`).

Flows are solved on the device by Sinkhorn's iteration (`entropic_flow`), so that a step needs no
round trip to the host; `exact_flow`, SciPy's linear program on the host, is the exact solution,
which the other approaches as its regularisation falls.

References:
  Li et al. 2020, arXiv:2010.06133 (BERT-EMD); Passban et al. 2021, arXiv:2012.14022 (ALP-KD);
  Haidar et al. 2022, arXiv:2109.10164 (RAIL-KD: random layers); Altschuler et al. 2017,
  arXiv:1705.09634 (rounding of flows).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key

Costs = Float[Array, "teacher_layers student_layers"]

_SMALL = 1e-12

_LEAST_WEIGHT = 1e-4
"""Of a layer in a transport: one without any has no unit cost, and float32 none below this."""


class LayerWeights(NamedTuple):
    """How much every layer weighs in a transport; each adds up to 1.

    Attributes:
      teacher: of the teacher's layers.
      student: of the student's layers.
    """

    teacher: Float[Array, " teacher_layers"]
    student: Float[Array, " student_layers"]


@dataclasses.dataclass(frozen=True)
class EmdMatching:
    """Optimal transport between layers, with weights of layers that follow its costs.

    Attributes:
      temperature: of the softmax that gives the layers their weights; a large one keeps them equal.
      regularization: see `entropic_flow`.
      num_iterations: likewise.
    """

    temperature: float = 1.0
    regularization: float = 0.02
    num_iterations: int = 200

    def __post_init__(self) -> None:
        """Refuse numbers that solve nothing.

        Raises:
          ValueError: naming them.
        """
        for name in ("temperature", "regularization"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be positive and finite")
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations={self.num_iterations} must be 1 or more")

    def init(self, num_teacher_layers: int, num_student_layers: int) -> LayerWeights:
        """Equal weights, before the first step; they belong to `extra`.

        Args:
          num_teacher_layers: layers of the teacher.
          num_student_layers: layers of the student.
        """
        return LayerWeights(
            *(jnp.full(n, 1.0 / n) for n in (num_teacher_layers, num_student_layers))
        )

    def update(self, state: LayerWeights, costs: Costs) -> tuple[LayerWeights, Costs]:
        """Weights of the pairs of this batch, and of the layers for the next.

        A layer's cost is that of moving one unit of it; the next weights are
        `softmax((mean cost / cost) / temperature)`: cheap layers weigh more. None falls below
        1e-4, so that a layer that weighs next to nothing still has a cost and can come back.

        Args:
          state: weights of the layers.
          costs: distance of every pair.

        Returns:
          The next state, and the flow, which adds up to 1: the loss is `(flow * costs).sum()`.
        """
        costs = jax.lax.stop_gradient(costs)
        flow = entropic_flow(
            costs,
            state.teacher,
            state.student,
            regularization=self.regularization,
            num_iterations=self.num_iterations,
        )
        moved = flow * costs
        return LayerWeights(
            self._next(moved.sum(axis=1) / state.teacher),
            self._next(moved.sum(axis=0) / state.student),
        ), flow

    def _next(self, unit_costs: Float[Array, " layers"]) -> Float[Array, " layers"]:
        ratios = (unit_costs.mean() + _SMALL) / (unit_costs + _SMALL)
        weights = jnp.maximum(jax.nn.softmax(ratios / self.temperature), _LEAST_WEIGHT)
        return weights / weights.sum()


def entropic_flow(
    costs: Costs,
    supply: Float[Array, " teacher_layers"],
    demand: Float[Array, " student_layers"],
    *,
    regularization: float = 0.02,
    num_iterations: int = 200,
) -> Costs:
    """The cheapest flow with a bonus for its entropy, by Sinkhorn's iteration on logarithms.

    What the iteration leaves over is distributed at the end: rows and columns of the flow add up to
    supply and demand.

    Args:
      costs: of moving a unit from a teacher layer to a student layer.
      supply: of the teacher's layers, positive.
      demand: of the student's layers, positive, with the same sum.
      regularization: weight of the entropy, in units of the mean cost.
      num_iterations: of Sinkhorn.

    Returns:
      The flow, without a gradient.
    """
    costs, supply, demand = jax.lax.stop_gradient((costs, supply, demand))
    kernel = -costs / (regularization * jnp.maximum(costs.mean(), _SMALL))
    log_supply, log_demand = jnp.log(supply), jnp.log(demand)

    def iterate(_: int | Array, columns: Array) -> Array:
        rows = log_supply - jax.nn.logsumexp(kernel + columns[None, :], axis=1)
        return log_demand - jax.nn.logsumexp(kernel + rows[:, None], axis=0)

    columns = jax.lax.fori_loop(0, num_iterations, iterate, jnp.zeros_like(demand))
    rows = log_supply - jax.nn.logsumexp(kernel + columns[None, :], axis=1)
    flow = jnp.exp(kernel + rows[:, None] + columns[None, :])
    return _with_sums(flow, supply, demand)


def exact_flow(
    costs: Float64[np.ndarray, "teacher_layers student_layers"],
    supply: Float64[np.ndarray, " teacher_layers"],
    demand: Float64[np.ndarray, " student_layers"],
) -> Float64[np.ndarray, "teacher_layers student_layers"]:
    """The cheapest flow, by linear programming on the host.

    Args:
      costs: of moving a unit from a teacher layer to a student layer.
      supply: of the teacher's layers.
      demand: of the student's layers, with the same sum.

    Raises:
      ValueError: if there is no flow: a number is negative, or the sums differ.
    """
    from scipy.optimize import linprog

    rows, columns = costs.shape
    sums = np.concatenate(
        [np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
    )
    found = linprog(costs.ravel(), A_eq=sums, b_eq=np.concatenate([supply, demand]))
    if not found.success:
        raise ValueError(
            f"no flow goes from supply {supply} to demand {demand} ({found.message}); give numbers "
            "of 0 or more with one sum"
        )
    return found.x.reshape(costs.shape)


def _with_sums(flow: Array, supply: Array, demand: Array) -> Array:
    """The flow cut down to its sums, and what it then lacks spread over rows and columns."""
    flow = flow * jnp.minimum(supply / jnp.maximum(flow.sum(axis=1), _SMALL), 1.0)[:, None]
    flow = flow * jnp.minimum(demand / jnp.maximum(flow.sum(axis=0), _SMALL), 1.0)[None, :]
    left = jnp.maximum(supply - flow.sum(axis=1), 0.0)
    lacking = jnp.maximum(demand - flow.sum(axis=0), 0.0)
    # The two have one sum but for rounding, of which there may be nothing else.
    total = jnp.maximum(jnp.maximum(left.sum(), lacking.sum()), _SMALL)
    return flow + left[:, None] * lacking[None, :] / total


def layer_attention(
    student: Float[Array, "student_layers batch width"],
    teacher: Float[Array, "teacher_layers batch width"],
) -> Float[Array, "batch teacher_layers student_layers"]:
    """How much every student layer attends to every teacher layer, `softmax_t(<h_i^S, h_t^T>)`.

    Args:
      student: first tokens of its layers, in the teacher's width.
      teacher: first tokens of its layers.

    Returns:
      Weights of pairs for every text, adding up to 1 over teacher layers, without a gradient.
    """
    products = jnp.einsum("sbw,tbw->bts", student, teacher, preferred_element_type=jnp.float32)
    return jax.lax.stop_gradient(jax.nn.softmax(products, axis=1))


def attended_teacher(
    student: Float[Array, "student_layers batch width"],
    teacher: Float[Array, "teacher_layers batch width"],
) -> Float[Array, "student_layers batch width"]:
    """What every student layer is to follow: the mean of teacher layers that it attends to.

    Args:
      student: first tokens of its layers, in the teacher's width.
      teacher: first tokens of its layers.

    Returns:
      Targets, without a gradient.
    """
    weights = layer_attention(student, teacher)
    return jax.lax.stop_gradient(jnp.einsum("bts,tbw->sbw", weights, teacher.astype(jnp.float32)))


def random_teacher_layers(
    key: Key[Array, ""],
    step: Int[Array, ""],
    num_teacher_layers: int,
    num_student_layers: int,
    *,
    every: int,
) -> Int[Array, " student_layers"]:
    """The teacher layer of every student layer: sorted, random, the top to the top.

    Args:
      key: of the run, the same at every step.
      step: number of updates done.
      num_teacher_layers: layers of the teacher.
      num_student_layers: layers of the student.
      every: steps after which they are drawn anew.

    Raises:
      ValueError: if the student has more layers, or is never drawn.
    """
    if not 1 <= num_student_layers <= num_teacher_layers or every < 1:
        raise ValueError(
            f"{num_student_layers} layers drawn of {num_teacher_layers} every {every} steps; use "
            f"1 to {num_teacher_layers} layers, and 1 step or more"
        )
    below = jax.random.permutation(
        jax.random.fold_in(key, step // every), num_teacher_layers - 1, independent=False
    )
    chosen = jnp.sort(below[: num_student_layers - 1])
    return jnp.append(chosen, num_teacher_layers - 1).astype(jnp.int32)
