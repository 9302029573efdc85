"""The evaluations of a course in their order: the best one, an early end, convergence, drops.

References:
  `federatedscope/core/monitors/monitor.py` (`update_best_result`) and `early_stopper.py` of
  FederatedScope 0.3.0.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxlab.federated.monitoring import check_metric, is_larger_better
from jaxlab.federated.server_state import Evaluation
from jaxlab.federated.strategy import ConfigError


def best_evaluation(
    evaluations: Iterable[Evaluation], metric: str, *, larger_is_better: bool | None = None
) -> Evaluation | None:
    """The evaluation in which a metric is best, with all that was measured then.

    Its other metrics are those of the same model, and not each the best of the course.

    Args:
      evaluations: those of a course, in order; of equally good ones the first is taken, those in
        which the metric is not finite are not.
      metric: such as `val/loss`.
      larger_is_better: None tells by the name, see `is_larger_better`.

    Returns:
      The evaluation, None if there is none.

    Raises:
      ConfigError: (a ValueError) if an evaluation has no such metric, listing those that it has.
    """
    sign = _sign(metric, larger_is_better)
    best, best_value = None, -math.inf
    for evaluation in evaluations:
        check_metric(metric, evaluation.metrics)
        value = sign * evaluation.metrics[metric]
        if math.isfinite(value) and value > best_value:
            best, best_value = evaluation, value
    return best


def convergence(
    evaluations: Sequence[Evaluation],
    num_rounds: int,
    metric: str | None = None,
    *,
    larger_is_better: bool | None = None,
) -> dict[str, int | float]:
    """Where a course that has ended has converged, for its report.

    That is where it ended early, else where the metric was best.

    Args:
      evaluations: those of the course, in order.
      num_rounds: aggregations after which it was to end.
      metric: None tells nothing of a course that went on to its end.
      larger_is_better: None tells by the name, see `is_larger_better`.

    Returns:
      `convergence_round`, aggregations before, and `convergence_seconds` of virtual time; `{}` if
      nothing is known.

    Example:
      >>> row = [Evaluation(2, 500_000, {"val/loss": 1.0}), Evaluation(4, 900_000, {"val/loss": 2})]
      >>> convergence(row, 4, "val/loss")
      {'convergence_round': 2, 'convergence_seconds': 0.5}
    """
    found = None
    if evaluations and evaluations[-1].round < num_rounds:
        found = evaluations[-1]
    elif metric is not None:
        found = best_evaluation(evaluations, metric, larger_is_better=larger_is_better)
    if found is None:
        return {}
    return {"convergence_round": found.round, "convergence_seconds": found.time_us / 1e6}


def performance_drop(
    metric: str, delta: float = 0.0, *, larger_is_better: bool | None = None
) -> Callable[[Sequence[Evaluation]], bool]:
    """Tells when a metric has become worse from one evaluation to the next.

    ::

        has_dropped = performance_drop("test/fairness/correct_min", 0.1)  # of the worst client
        run_course(..., on_round=lambda s: has_dropped(s.server.evaluations) and tell(s))

    As the `is_converged` of a course it ends it. Clients one by one are those of
    `Report(keep_raw=...)`.

    Args:
      metric: such as `val/loss`.
      delta: by how much more it must be worse, 0 or more.
      larger_is_better: None tells by the name, see `is_larger_better`.

    Returns:
      `evaluations so far -> whether the last one is a drop`; one that is not finite after one that
      is counts as a drop.

    Raises:
      ConfigError: (a ValueError) if delta is negative, or the name tells nothing; from the
        function, if an evaluation has no such metric.

    Example:
      >>> values = [Evaluation(n, 0, {"val/correct": x}) for n, x in enumerate([0.5, 0.75, 0.25])]
      >>> [performance_drop("val/correct", 0.25)(values[:n]) for n in (1, 2, 3)]
      [False, False, True]
    """
    if not delta >= 0:
        raise ConfigError(f"delta={delta} must be 0 or more: it is a loss of {metric!r}")
    sign = _sign(metric, larger_is_better)

    def has_dropped(evaluations: Sequence[Evaluation]) -> bool:
        for evaluation in evaluations[-2:]:
            check_metric(metric, evaluation.metrics)
        values = [sign * evaluation.metrics[metric] for evaluation in evaluations[-2:]]
        if len(values) < 2 or not math.isfinite(values[0]):
            return False
        return not values[1] >= values[0] - delta

    return has_dropped


class StopState(NamedTuple):
    """What an early stop remembers, of one course or of many clients; larger is better.

    Attributes:
      best: the best value.
      num_without: values since then.
      recent: the last `patience` values, oldest first, in the mode `mean`; in `best` not used.
      num_seen: values in all.
    """

    best: Float[np.ndarray, "*clients"]
    num_without: Int[np.ndarray, "*clients"]
    recent: Float[np.ndarray, "*clients kept"]
    num_seen: Int[np.ndarray, "*clients"]


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """Ends a course whose metric does not improve any more, the `is_converged` of a course.

    Attributes:
      metric: such as `val/loss`.
      patience: `best`: evaluations in a row without an improvement that end the course; `mean`:
        evaluations whose mean the newest is compared with; 0 never ends it.
      delta: by how much more a value must be better to be an improvement.
      mode: better than the `best` before, or than the `mean` of those before.
      larger_is_better: None tells by the name, see `is_larger_better`.
      compat: a value that is better by exactly delta, such as an equal one, is an improvement, as
        in FederatedScope 0.3.0, where a metric that stands still never ends a course.
    """

    metric: str
    patience: int = 5
    delta: float = 0.0
    mode: str = "best"
    larger_is_better: bool | None = None
    compat: bool = False

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ConfigError: (a ValueError) if a field is out of range.
        """
        if (
            not isinstance(self.patience, int)
            or self.patience < 0
            or not self.delta >= 0
            or self.mode not in ("best", "mean")
        ):
            raise ConfigError(
                f"EarlyStop: patience={self.patience!r} must be an integer, 0 or more, delta="
                f"{self.delta} 0 or more, and mode={self.mode!r} one of 'best', 'mean'"
            )
        _sign(self.metric, self.larger_is_better)

    def __call__(self, evaluations: Sequence[Evaluation]) -> bool:
        """Whether the course ends with the last of some evaluations.

        Raises:
          ConfigError: (a ValueError) if an evaluation has no such metric.
        """
        for evaluation in evaluations:
            check_metric(self.metric, evaluation.metrics)
        return self.is_over([evaluation.metrics[self.metric] for evaluation in evaluations])

    def is_over(self, values: Iterable[float]) -> bool:
        """Whether the last of some values ends the course.

        Example:
          >>> EarlyStop("val/loss", patience=2).is_over([3.0, 2.0, 2.5, 2.0])
          True
        """
        state = self.init(())
        for value in values:
            state = self.note(state, np.asarray(value, np.float64))
        return bool(self.has_ended(state))

    def init(self, shape: tuple[int, ...]) -> StopState:
        """The state before the first value, of as many courses or clients as the shape has."""
        zeros = np.zeros(shape, np.int64)
        recent = np.zeros((*shape, max(1, self.patience if self.mode == "mean" else 1)))
        return StopState(np.full(shape, -np.inf), zeros, recent, zeros)

    def note(self, state: StopState, values: Float[np.ndarray, "*clients"]) -> StopState:
        """Takes the next values; one that is not a number is no improvement."""
        signed = np.asarray(_sign(self.metric, self.larger_is_better) * values, np.float64)
        if self.mode == "mean":
            return self._note_mean(state, signed)
        better = self._is_better(signed, state.best)
        return state._replace(
            best=np.where(better, signed, state.best),
            num_without=np.where(better, 0, state.num_without + 1),
            num_seen=np.asarray(state.num_seen + 1),
        )

    def has_ended(self, state: StopState) -> Bool[np.ndarray, "*clients"]:
        """Whether the last value has ended a course."""
        return np.asarray((state.num_without >= self.patience) & (self.patience > 0))

    def _note_mean(self, state: StopState, signed: np.ndarray) -> StopState:
        if not self.patience:
            return state._replace(num_seen=np.asarray(state.num_seen + 1))
        is_full = state.num_seen >= self.patience
        worse = is_full & ~self._is_better(signed, np.asarray(state.recent.mean(axis=-1)))
        return state._replace(
            best=np.asarray(np.fmax(state.best, signed)),
            num_without=np.where(worse, self.patience, 0),
            recent=np.concatenate([state.recent[..., 1:], signed[..., None]], axis=-1),
            num_seen=np.asarray(state.num_seen + 1),
        )

    def _is_better(self, values: np.ndarray, before: np.ndarray) -> np.ndarray:
        above = before + self.delta
        return np.asarray(values >= above if self.compat else values > above)


def _sign(metric: str, larger_is_better: bool | None) -> float:
    larger = is_larger_better(metric) if larger_is_better is None else larger_is_better
    return 1.0 if larger else -1.0
