"""Several students of one teacher in one program: the teacher runs once a step for all of them.

Students of one shape differ in their parameters at the start, in their dropout, and in what they
learn: every term of a common objective has a factor of its own for every student (0 leaves it out),
so that strategies of matching, weights, temperatures and seeds are one more axis of arrays. Each
student has its own optimizer state and is clipped by itself: it trains as it would alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.distillation.grammar import STEPPING
from jaxlab.distillation.objective import Objective
from jaxlab.distillation.responses import check_temperature
from jaxlab.distillation.train import (
    PRINCIPAL,
    PROJECTIONS,
    STUDENT,
    Parts,
    distillation_params,
    progress_at,
    teach,
)
from jaxlab.training.state import TrainState
from jaxlab.training.step import TrainStep


class Variants(NamedTuple):
    """What makes the students of a sweep different.

    Attributes:
      factors: of the weight of every term, in the order of `objective.names`.
      temperatures: of the loss between logits.
      seeds: students with one seed draw the same dropout.
    """

    factors: Float[Array, "students terms"]
    temperatures: Float[Array, " students"]
    seeds: Int[Array, " students"]


def make_variants(
    objective: Objective,
    factors: Sequence[Mapping[str, float]],
    *,
    temperatures: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> Variants:
    """The variants of a sweep from factors by name.

    Args:
      objective: with the terms of all variants.
      factors: for every student, name of a term, or of the match it belongs to (`hidden_mse` for
        all of `hidden_mse/...`) -> factor of its weight; 0 for what is not named.
      temperatures: for every student, positive; None takes that of the objective.
      seeds: for every student; None gives all 0.

    Raises:
      ValueError: if a name is no term of the objective, the lengths differ, or factors are
        negative, temperatures not positive, or either not finite.

    Example:
      >>> from jaxlab.distillation import ObjectiveConfig, Shape, compile_objective
      >>> config = ObjectiveConfig("last1:cos,last1:mmd[emb=no]")
      >>> objective = compile_objective(config, Shape(2, 8, 2), Shape(4, 8, 2))
      >>> objective.names
      ('cos/3-1', 'mmd/3/3-1/1', 'response')
      >>> each = [{"response": 1.0}, {"response": 1.0, "cos": 2.0}]
      >>> make_variants(objective, each).factors.tolist()
      [[0.0, 0.0, 1.0], [2.0, 0.0, 1.0]]
    """
    number = len(factors)
    temperatures = (
        [objective.config.response.temperature] * number
        if temperatures is None
        else (list(temperatures))
    )
    seeds = [0] * number if seeds is None else list(seeds)
    if not number or len(temperatures) != number or len(seeds) != number:
        raise ValueError(
            f"{number} sets of factors, {len(temperatures)} temperatures and {len(seeds)} seeds; "
            "give one of each for every student, and one student at least"
        )
    for temperature in temperatures:
        check_temperature(temperature)
    rows = [_factors_of(objective, student) for student in factors]
    return Variants(
        jnp.asarray(rows, jnp.float32),
        jnp.asarray(temperatures, jnp.float32),
        jnp.asarray(seeds, jnp.int32),
    )


def init_sweep(
    objective: Objective,
    students: Sequence[PyTree],
    tx: optax.GradientTransformation,
    key: jax.Array,
    seeds: Sequence[int] | None = None,
    fitted: Sequence[Mapping[str, Any]] = (),
) -> TrainState:
    """The state before the first step: every leaf has the students as its first axis.

    Args:
      objective: of the sweep.
      students: parameters of every student, of one shape.
      tx: the optimizer of each.
      key: of the run.
      seeds: students with one seed begin with the same projections; None gives all one.
      fitted: projections of an earlier training, see `Objective.init`.

    Raises:
      ValueError: if the students are not of one shape.
    """
    shapes = {str(jax.tree.map(jnp.shape, student)) for student in students}
    if len(shapes) != 1:
        raise ValueError(
            f"{len(students)} students of {len(shapes)} different shapes; a sweep trains students "
            "of one shape: make one of each"
        )
    seeds = [0] * len(students) if seeds is None else seeds
    run_key, projections_key = jax.random.split(key)
    each = [
        distillation_params(objective, student, jax.random.fold_in(projections_key, seed), fitted)
        for student, seed in zip(students, seeds, strict=True)
    ]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return TrainState(jnp.zeros((), jnp.int32), params, {}, jax.vmap(tx.init)(params), run_key)


def make_sweep_step(
    parts: Parts,
    tx: optax.GradientTransformation,
    num_steps: int,
    variants: Variants,
    names: Sequence[str],
    *,
    at_once: int = 0,
) -> TrainStep:
    """`step(states, frozen, batch, key) -> (states, metrics)` for all students of a sweep.

    Args:
      parts: objective and networks.
      tx: the optimizer of each student.
      num_steps: updates of the run, for schedules.
      variants: from `make_variants`.
      names: of the students, for the metrics `loss/<name>`.
      at_once: students that are computed side by side; the others come after them. 0 is all: the
        fastest on an accelerator. Few are enough for two cores and need less memory. The numbers
        are the same.

    Raises:
      ValueError: if there are not as many names as variants, or the objective asks for what
        students side by side do not have.
    """
    number = len(variants.seeds)
    if len(names) != number:
        raise ValueError(f"{len(names)} names for {number} students; give one each")
    objective = parts.objective
    if objective.config.weighting != "fixed":
        raise ValueError(
            f"weighting={objective.config.weighting!r} has a state a student; a sweep has fixed "
            "weights: train the students one by one"
        )
    if moving := [term.name for term in objective.terms if term.match.strategy in STEPPING]:
        raise ValueError(
            f"{', '.join(moving)} take layers from step to step, a state that a sweep does not "
            "have: train the students one by one, or match by a strategy that stays"
        )
    if objective.config.hard.r_drop:
        raise ValueError(
            f"hard.r_drop={objective.config.hard.r_drop} takes a second pass of a student, which a "
            "sweep does not make: set it to 0, or train the students one by one"
        )

    def update(student: Any, shared: Any) -> Any:
        params, opt_state, factors, temperature, seed = student
        batch, teacher, principal, progress, key = shared
        key = jax.random.fold_in(key, seed)

        def loss_fn(params: Mapping[str, PyTree]) -> Array:
            shown = parts.student(
                params[STUDENT], batch, taps=objective.student_taps, train=True, key=key
            )
            projections = {**params[PROJECTIONS], **principal}
            losses = objective(
                projections, shown, teacher, batch, progress, temperature=temperature
            )
            weighted = {
                name: weight * factors[objective.names.index(name)]
                for name, weight in losses.weights.items()
            }
            return losses._replace(weights=weighted).total()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(grads)

    def step(
        state: TrainState, frozen: PyTree, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        teacher = teach(parts, frozen, batch)
        progress = progress_at(state.step, num_steps)
        shared = (batch, teacher, frozen.get(PRINCIPAL, {}), progress, key)
        each = (state.params, state.opt_state, *variants)
        size = at_once or number
        if size >= number:
            found = jax.vmap(update, in_axes=(0, None))(each, shared)
        else:
            found = jax.lax.map(lambda one: update(one, shared), each, batch_size=size)
        params, opt_state, losses, norms = found
        metrics = {f"loss/{name}": losses[i] for i, name in enumerate(names)}
        metrics |= {"loss": losses.mean(), "grad_norm": norms.max()}
        state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return state, metrics

    return step


def student_of(state: TrainState, index: int) -> PyTree:
    """The parameters of one student of a sweep, without its projections.

    Args:
      state: of the sweep.
      index: its place.

    Returns:
      What `exported_params` gives of a single distillation.
    """
    return jax.tree.map(lambda leaf: leaf[index], state.params[STUDENT])


def _factors_of(objective: Objective, student: Mapping[str, float]) -> list[float]:
    matches = {name: name.partition("/")[0] for name in objective.names}
    if wrong := [f"{n}={f}" for n, f in student.items() if not 0.0 <= f < math.inf]:
        raise ValueError(
            f"factors {', '.join(wrong)} of weights must be 0 (left out) or more, and finite"
        )
    if unknown := student.keys() - {*matches, *matches.values()}:
        raise ValueError(
            f"{sorted(unknown)} are no terms of the objective; it has {', '.join(objective.names)}"
        )
    return [float(student.get(name, student.get(match, 0.0))) for name, match in matches.items()]
