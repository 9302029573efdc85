"""The students of an ablation: what each of them learns, in a line.

A variant is written `NAME = PART + PART + ...`, with the parts

* `response`, the loss between logits, `response@0.5` with a weight, `response~4` at a temperature,
* `hard`, the loss against labels, with a weight as well,
* any line of the matching grammar, such as `gap:hidden_mse@2->linear`,
* `start:first`, the layers of the teacher that the student starts from.

All variants are compiled into one objective, in which every student has factors of its own.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxlab.distillation import (
    Match,
    Objective,
    ObjectiveConfig,
    Shape,
    compile_objective,
    format_matches,
    parse_matches,
)
from jaxlab.distillation.compared import Task
from jaxlab.distillation.objective import HARD, RESPONSE
from jaxlab.distillation.responses import check_temperature


@dataclasses.dataclass(frozen=True)
class Variant:
    """What one student learns.

    Attributes:
      name: of the student.
      matches: layers that are to agree.
      response: weight of the loss between logits.
      temperature: of that; None takes the settings'.
      hard: weight of the loss against labels.
      start: layers of the teacher that it starts from; "" takes the settings'.
    """

    name: str
    matches: tuple[Match, ...] = ()
    response: float = 0.0
    temperature: float | None = None
    hard: float = 0.0
    start: str = ""


class Compiled(NamedTuple):
    """All variants as one objective.

    Attributes:
      objective: with the terms of all of them.
      factors: for every variant, term -> factor.
      temperatures: of every variant.
    """

    objective: Objective
    factors: list[dict[str, float]]
    temperatures: list[float]


def parse_variant(line: str) -> Variant:
    """The variant that a line describes.

    Args:
      line: `NAME = PART + PART`.

    Raises:
      ValueError: naming the part that cannot be read.

    Example:
      >>> parse_variant("mix = response@0.5~4 + hard@0.5 + start:first")
      Variant(name='mix', matches=(), response=0.5, temperature=4.0, hard=0.5, start='first')
    """
    name, equals, rest = line.partition("=")
    name, parts = name.strip(), [part.strip() for part in rest.split(" + ")]
    if not equals or not name or not all(parts):
        raise ValueError(
            f"variant {line!r}: write NAME = PART + PART, such as kd = response~4 + hard@0.1"
        )
    variant = Variant(name)
    for part in parts:
        try:
            variant = _with_part(variant, part)
        except ValueError as error:
            raise ValueError(f"variant {name!r}, part {part!r}: {error}") from error
    if not (variant.matches or variant.response or variant.hard):
        raise ValueError(f"variant {name!r} learns nothing; give response, hard or a match")
    return variant


def _with_part(variant: Variant, part: str) -> Variant:
    if part.startswith("start:"):
        return dataclasses.replace(variant, start=part.removeprefix("start:"))
    word, _, temperature = part.partition("~")
    word, _, weight = word.partition("@")
    if word == RESPONSE:
        tau = float(temperature) if temperature else None
        if tau is not None:
            check_temperature(tau)
        return dataclasses.replace(variant, response=_weight(weight), temperature=tau)
    if word == HARD:
        return dataclasses.replace(variant, hard=_weight(weight))
    if ":" not in part:
        raise ValueError(
            f"write {RESPONSE}, {RESPONSE}@0.5~4, {HARD}, {HARD}@0.1, start:LAYERS, or a match of "
            "layers such as gap:hidden_mse"
        )
    return dataclasses.replace(variant, matches=(*variant.matches, *parse_matches(part)))


def _weight(text: str) -> float:
    weight = float(text) if text else 1.0
    if not 0.0 <= weight < math.inf:
        raise ValueError(f"the weight {weight:g} must be a number of 0 or more")
    return weight


def compile_variants(
    variants: Sequence[Variant],
    base: ObjectiveConfig,
    student: Shape,
    teacher: Shape,
    task: Task,
) -> Compiled:
    """One objective with the terms of all variants, and the factors of each.

    Args:
      variants: at least one.
      base: what they share: the loss between logits but for weight and temperature, the loss
        against labels but for its weight, how projections begin, the share of the transfer.
      student: sizes of the students.
      teacher: sizes of the teacher.
      task: what the models put out.

    Raises:
      ValueError: if a match does not fit, or logits are to be learnt and the settings have no loss
        between them.
    """
    response = base.response
    if response.kind == "none" and (asking := [v.name for v in variants if v.response]):
        raise ValueError(
            f"variants {asking} learn logits, and stage.objective.response.kind is 'none'; set it "
            "to the loss between them, such as 'kl'"
        )
    # One match without its weight is one set of terms, whoever uses it.
    every = list(dict.fromkeys(_plain(match) for v in variants for match in v.matches))
    config = dataclasses.replace(
        base,
        matches=format_matches(every),
        response=dataclasses.replace(response, weight=float(any(v.response for v in variants))),
        hard=dataclasses.replace(base.hard, weight=float(any(v.hard for v in variants))),
    )
    objective = compile_objective(config, student, teacher, task=task)
    owners = {term.name: term.match for term in objective.terms}
    factors = [_factors(variant, owners, objective.names) for variant in variants]
    temperatures = [
        response.temperature if variant.temperature is None else variant.temperature
        for variant in variants
    ]
    return Compiled(objective, factors, temperatures)


def _plain(match: Match) -> Match:
    return dataclasses.replace(match, weight=1.0)


def _factors(variant: Variant, owners: dict[str, Match], names: Sequence[str]) -> dict[str, float]:
    """Term -> factor for one variant; those that it does not use are 0."""
    weights = {_plain(match): match.weight for match in variant.matches}
    ends = {RESPONSE: variant.response, HARD: variant.hard}
    return {name: ends[name] if name in ends else weights.get(owners[name], 0.0) for name in names}
