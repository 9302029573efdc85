"""Matches whose pairs of layers change during a run, as terms of an objective.

One term holds all layers of both networks, and is a mean over the student's layers:

* `random`: every layer of the student follows a layer of the teacher that is drawn anew every few
  updates, a function of the run's key and the step;
* `emd`: all pairs, by the weights of the cheapest transport. The costs of a batch give the weights
  of the steps after it, so that a step is exact for any number of microbatches;
* `alp`: first tokens follow the mean of the teacher's layers that they attend to, batch by batch.

References:
  See `soft_matching`, which has the rules.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxlab.distillation.attentions import Attended, Mask
from jaxlab.distillation.grammar import MOVING, Match
from jaxlab.distillation.means import Mean
from jaxlab.distillation.soft_matching import (
    Costs,
    EmdMatching,
    LayerWeights,
    attended_teacher,
    random_teacher_layers,
)


class EmdState(NamedTuple):
    """What an `emd` match takes from step to step.

    Attributes:
      weights: of the layers.
      flow: weights of all pairs, which add up to 1.
    """

    weights: LayerWeights
    flow: Costs


def check_moving(match: Match, num_teacher_layers: int, num_student_layers: int) -> None:
    """Refuse matches that cannot move.

    Args:
      match: of a strategy of `MOVING`.
      num_teacher_layers: layers of the teacher.
      num_student_layers: layers of the student.

    Raises:
      ValueError: naming the knowledge, schedule or number of layers.
    """
    kind, name = match.kind, f"{match.strategy}:{match.knowledge}"
    if kind.num_layers != 1 or len(kind.features) != 1 or kind.is_relation:
        raise ValueError(f"{name!r} is of several features; move hidden states or attention maps")
    if match.strategy == "alp" and (kind.features != ("hidden",) or match.knowledge == "mean_pkd"):
        raise ValueError(f"{name!r}: only first tokens attend; use hidden_mse, cos or pkd")
    if match.schedule == "progressive" or match.convention != "exact":
        raise ValueError(
            f"{name!r} holds all layers at once: schedule=progressive and norm do not go with it"
        )
    if match.strategy == "random" and num_student_layers > num_teacher_layers:
        raise ValueError(
            f"{name!r} draws {num_student_layers} layers of {num_teacher_layers}; use emd or alp"
        )


def init_matchings(terms: Sequence[Any]) -> dict[str, EmdState]:
    """The states of `emd` matches before the first step, all layers alike.

    Args:
      terms: of an objective.
    """
    states = {}
    for term in terms:
        if term.match.strategy == "emd":
            sizes = len(term.pair.teacher), len(term.pair.student)
            flow = jnp.full(sizes, 1.0 / (sizes[0] * sizes[1]))
            states[term.name] = EmdState(EmdMatching().init(*sizes), flow)
    return states


def current_matchings(
    terms: Sequence[Any],
    states: Mapping[str, EmdState],
    key: Key[Array, ""],
    step: Int[Array, ""],
) -> dict[str, Array]:
    """What moving matches compare at a step: by term its layers (`random`) or its flow (`emd`).

    Args:
      terms: of an objective.
      states: of `emd` matches.
      key: of the run, the same at every step.
      step: updates done.
    """
    found = {name: state.flow for name, state in states.items()}
    for term in terms:
        if term.match.strategy == "random":
            own = jax.random.fold_in(key, zlib.crc32(term.name.encode()))
            sizes = len(term.pair.teacher), len(term.pair.student)
            found[term.name] = random_teacher_layers(own, step, *sizes, every=term.match.every)
    return found


def next_matchings(
    terms: Sequence[Any],
    states: Mapping[str, EmdState],
    costs: Mapping[str, Costs],
    step: Int[Array, ""],
) -> dict[str, EmdState]:
    """The states after a step.

    Args:
      terms: of an objective.
      states: before it.
      costs: distances of all pairs in its batch, by term.
      step: updates done before it.
    """
    every = {term.name: term.match.every for term in terms}

    def update(name: str, state: EmdState) -> EmdState:
        return jax.lax.cond(
            step % every[name] == 0,
            lambda: EmdState(*EmdMatching().update(state.weights, costs[name])),
            lambda: state,
        )

    return {name: update(name, state) for name, state in states.items()}


def moving_loss(
    strategy: str,
    loss: Callable[..., Mean],
    student: Sequence[Array],
    teacher: Sequence[Array],
    mask: Mask,
    matching: Array | None,
) -> tuple[Mean, Mean | None]:
    """The loss of a moving match.

    Args:
      strategy: one of `MOVING`.
      loss: between features of one layer.
      student: features of all its layers, hidden states in the teacher's width.
      teacher: features of all its layers.
      mask: True for real tokens.
      matching: what `current_matchings` has of the term.

    Returns:
      The loss; for `emd` the distances of all pairs, too (teacher layers, student layers), without
      a gradient.

    Raises:
      ValueError: if there is no matching.
    """
    assert strategy in MOVING, strategy
    own, others = jnp.stack(student), jax.lax.stop_gradient(jnp.stack(teacher))
    if strategy == "alp":
        own, others = own[:, :, :1], attended_teacher(own[:, :, 0], others[:, :, 0])[:, :, None]
        assert not isinstance(mask, Attended), "hidden states have no keys"
        mask = mask.any(axis=1)[:, None]
    elif strategy == "emd":
        matching = needed_matching(strategy, matching)
        each = jax.vmap(lambda one, other: loss(one, other, mask), in_axes=(0, None))
        pairs = jax.lax.map(lambda other: each(own, other), others)
        mean = Mean((matching * pairs.total).sum(), pairs.count[0, 0])
        return mean, jax.lax.stop_gradient(pairs)
    else:
        others = others[needed_matching(strategy, matching)]
    found = jax.vmap(lambda one, other: loss(one, other, mask))(own, others)
    return Mean(found.total.mean(), found.count[0]), None


def needed_matching(strategy: str, matching: Array | None) -> Array:
    """What a strategy that goes from step to step compares at this one.

    Args:
      strategy: one of `STEPPING`.
      matching: what `current_matchings` has of the term.

    Raises:
      ValueError: if there is none.
    """
    if matching is None:
        raise ValueError(
            f"a {strategy!r} matching moves from step to step; train with make_distillation_step "
            "and distillation_extra(objective) as extra of the TrainState, or match by a strategy "
            "that stays, such as gap"
        )
    return matching
