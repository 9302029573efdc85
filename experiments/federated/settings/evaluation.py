"""Settings of the evaluations, and of an early end by them."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import negative, refuse

SPLITS = ("train", "val", "test")
"""What evaluations may go over."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and when.

    Attributes:
      every_rounds: aggregations between two evaluations; the last model is always evaluated, with 0
        it alone.
      splits: examples that every client evaluates on, of `val` and `test`; () if `by_server` tells
        all.
      by_server: examples of all clients that the server evaluates the shared model on by itself, as
        one set and in large batches; found under `test_server`.
      scores: what is measured beside the loss: of classes `correct` (shown as accuracy), `f1`,
        `hits@5` and others that `jaxlab.federated.classification` has; of numbers `mse`, with its
        root; () takes the first of classes and none of numbers.
      target: value of `metric` whose first time is reported; 0 reports none.
      metric: what `target`, `early_stop` and the best round are told by; `auto` takes the first
        of `scores`, or the loss, of `val` where that is evaluated, else of the last of `splits`.
      report: `weighted_avg`, over all examples; `avg`, over clients; `fairness`, how it is spread
        over clients.
    """

    every_rounds: int = 1
    splits: tuple[str, ...] = ("test",)
    by_server: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    target: float = 0.0
    metric: str = "auto"
    report: tuple[str, ...] = ("weighted_avg", "avg", "fairness")

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = negative(self, "every_rounds", "target")
        forms = ("weighted_avg", "avg", "fairness")
        if "weighted_avg" not in self.report or set(self.report) - set(forms):
            problems.append(
                f"report={self.report} must be weighted_avg, and perhaps avg and fairness"
            )
        if set(self.splits) - set(SPLITS) or not (self.splits or self.by_server):
            problems.append(f"splits={self.splits} must be some of {', '.join(SPLITS)}")
        if set(self.by_server) - set(SPLITS):
            problems.append(f"by_server={self.by_server} must be some of {', '.join(SPLITS)}")
        refuse(problems)


@dataclasses.dataclass(frozen=True)
class EarlyStopConfig:
    """When a course ends before its last round, by `evaluation.metric`.

    In the baseline `local` every client stops by its own metric.

    Attributes:
      patience: evaluations without an improvement that are waited for; 0 waits for ever.
      delta: what counts as one.
      mode: `best`, better than the best so far; `mean`, better than the mean of the last `patience`
        evaluations.
      at_target: end when `evaluation.target` is reached; not in the baseline `local`.
    """

    patience: int = 0
    delta: float = 0.0
    mode: Literal["best", "mean"] = "best"
    at_target: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) if a number is negative."""
        refuse(negative(self, "patience", "delta"))
