"""The settings of an objective: matches of layers, a loss between logits, a loss against labels.

What they compile to stands in `objective`.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxlab.distillation import responses, schedules
from jaxlab.distillation.grammar import parse_matches

Schedule = Literal["constant", "growth", "decay", "continuation", "after_transfer", "piecewise"]


@dataclasses.dataclass(frozen=True)
class ResponseConfig:
    """The loss between the logits of student and teacher.

    Attributes:
      kind: `kl` or `ce` between distributions, `mse` between logits, `none`.
      weight: factor of the loss.
      temperature: divides the logits of both.
      scale_by_temperature: multiply by its square; None does so for `kl` and not for `ce`, as the
        systems do that use them. Not of `mse`.
      temperature_schedule: `constant`, or a temperature for every example (`flsw`, `cwsm`), around
        the mean over the batch, which then has no microbatches.
      beta: how much those vary, 0 or more; a tenth of `temperature` is the lowest there is.
      gamma: exponent of `flsw`, 0 or more.
      schedule: how the weight changes over a run: `constant`, `growth`, `decay`, `continuation`
        (to 0 over two thirds of the run, and 0 while the loss of a batch is below the margin),
        `piecewise`, or `after_transfer`, see `ObjectiveConfig`.
      reduction: mean over `rows`, or over rows times classes (`numel`); `mse` has the latter only.
      tokens: of a model that labels tokens, `real` ones count, or those with a `label` only.
      shift_probability: let the right class have the teacher's largest probability.
      annealing: `mse` against logits that grow to the teacher's in so many steps (Annealing-KD); 0
        compares with the logits as they are.
      margin: of a `continuation`, at the end of the run; it grows with the teacher's logits.
      bounds: shares of the run, in (0, 1), at which the factor of a `piecewise` schedule changes.
      factors: of the weight between them, one more than `bounds`.
    """

    kind: Literal["none", "kl", "ce", "mse"] = "kl"
    weight: float = 1.0
    temperature: float = 1.0
    scale_by_temperature: bool | None = None
    temperature_schedule: Literal["constant", "flsw", "cwsm"] = "constant"
    beta: float = 1.0
    gamma: float = 1.0
    schedule: Schedule = "constant"
    reduction: responses.Reduction = "rows"
    tokens: Literal["real", "label"] = "real"
    shift_probability: bool = False
    annealing: int = 0
    margin: float = 1.0
    bounds: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
          ValueError: listing all that is wrong.
        """
        problems = _of_words(self) + _of_numbers(self, ("weight", "beta", "gamma"))
        if self.annealing < 0 or (self.annealing and self.kind != "mse"):
            problems.append(f"annealing={self.annealing} goes with kind='mse', not {self.kind!r}")
        if self.kind == "mse" and self.reduction != "rows":
            problems.append(
                f"reduction={self.reduction!r} is of distributions; kind='mse' is always a mean "
                "over classes: leave it 'rows'"
            )
        if self.kind == "mse" and self.scale_by_temperature is not None:
            problems.append(
                f"scale_by_temperature={self.scale_by_temperature} is of distributions; kind='mse' "
                "has no such factor: leave it None, and change weight"
            )
        if self.schedule == "continuation" and not (self.annealing and self.margin >= 0):
            problems.append(
                f"schedule='continuation' needs annealing={self.annealing} of 1 or more and "
                f"margin={self.margin} of 0 or more"
            )
        try:
            responses.check_temperature(self.temperature)
        except ValueError as error:
            problems.append(str(error))
        problems += _of_pieces(self)
        if problems:
            raise ValueError("response: " + "; ".join(problems))

    @property
    def is_used(self) -> bool:
        """Whether logits are compared at all."""
        return self.kind != "none" and self.weight > 0


@dataclasses.dataclass(frozen=True)
class HardConfig:
    """The loss against labels; examples without one have no part in it.

    Attributes:
      weight: factor of the loss; 0 learns from the teacher alone.
      label_smoothing: probability of a label that goes to the other classes; not of numbers or
        answers.
      schedule: how the weight changes over a run: `constant`, `growth`, `decay`, `continuation`
        (growth over two thirds of the run), `piecewise`, or `after_transfer`, see
        `ObjectiveConfig`.
      drop_worst: share of the examples of a batch, those with the largest losses, that is left out,
        of a classification; the batch then has no microbatches.
      drop_after: share of the run after which it is.
      r_drop: weight of the symmetric KL between two passes with different dropout (R-Drop).
      bounds: of a `piecewise` schedule, see `ResponseConfig`.
      factors: likewise.
    """

    weight: float = 0.0
    label_smoothing: float = 0.0
    schedule: Schedule = "constant"
    drop_worst: float = 0.0
    drop_after: float = 0.0
    r_drop: float = 0.0
    bounds: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
          ValueError: listing all that is wrong.
        """
        problems = _of_words(self) + _of_numbers(self, ("weight", "drop_after", "r_drop"))
        problems += [
            f"{name}={getattr(self, name)} is not in [0, 1)"
            for name in ("label_smoothing", "drop_worst")
            if not 0 <= getattr(self, name) < 1
        ]
        problems += _of_pieces(self)
        if problems:
            raise ValueError("hard: " + "; ".join(problems))


def _of_words(config: Any) -> list[str]:
    """Which settings are none of the words that they may be."""
    allowed = {
        name: get_args(hint)
        for name, hint in get_type_hints(type(config)).items()
        if get_origin(hint) is Literal
    }
    return [
        f"{name}={getattr(config, name)!r} is not one of {', '.join(words)}"
        for name, words in allowed.items()
        if getattr(config, name) not in words
    ]


def _of_numbers(config: Any, names: Iterable[str]) -> list[str]:
    """Which numbers are negative, or not finite."""
    return [
        f"{name}={getattr(config, name)} must be a finite number, 0 or more"
        for name in names
        if not 0 <= getattr(config, name) < math.inf
    ]


def _of_pieces(config: ResponseConfig | HardConfig) -> list[str]:
    """What is wrong with the pieces of a schedule."""
    bounds, factors = config.bounds, config.factors
    if config.schedule != "piecewise":
        return (
            [f"bounds={bounds} and factors={factors} go with schedule='piecewise' alone"]
            if bounds or factors
            else []
        )
    try:
        schedules.check_pieces(bounds, factors)
    except ValueError as error:
        return [str(error)]
    if all(0 <= factor < math.inf for factor in factors):
        return []
    return [f"factors={factors} must be finite numbers, 0 or more"]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What a student learns.

    Attributes:
      matches: what layers are to agree in, a line of the grammar (see `grammar`); "" is nothing.
      response: the loss between logits.
      hard: the loss against labels.
      projection_init: how projections begin, see `projections`.
      transfer_share: share of the run in which the matches with `schedule=progressive` take their
        turns, layer after layer; losses with `schedule="after_transfer"` begin after it.
      weighting: how the terms are weighed beside their own weights (see `fusion`): `fixed`, by
        their `running_mean`, by a learned `uncertainty`, or so that their gradients have one norm
        (`gradient_norm`).
      weighting_every: updates after which the norms of gradients are taken anew; each time costs a
        backward pass a term.
    """

    matches: str = ""
    response: ResponseConfig = ResponseConfig()
    hard: HardConfig = HardConfig()
    projection_init: Literal["normal", "orthogonal", "identity"] = "normal"
    transfer_share: float = 0.5
    weighting: Literal["fixed", "running_mean", "uncertainty", "gradient_norm"] = "fixed"
    weighting_every: int = 10

    def __post_init__(self) -> None:
        """Check the ranges, that the line can be read, and that something is learnt.

        Raises:
          ValueError: if not.
        """
        matches = parse_matches(self.matches)
        problems = _of_words(self)
        if self.weighting_every < 1:
            problems.append(f"weighting_every={self.weighting_every} must be 1 or more updates")
        if not 0 < self.transfer_share <= 1:
            problems.append(f"transfer_share={self.transfer_share} must be in (0, 1]")
        if problems:
            raise ValueError("; ".join(problems))
        if not (matches or self.response.is_used or self.hard.weight):
            raise ValueError(
                "the objective is empty: give matches, a response of positive weight or a hard "
                "loss of positive weight"
            )
