"""Names and numbers of evaluations: which one is watched, and what they come to over clients."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.federated.settings import RunConfig
from jaxlab.federated import ConfigError, Report, is_larger_better
from jaxlab.federated.monitoring import SERVER_SUFFIX

SPREAD = re.compile("/(avg|fairness)/")
"""What the names of numbers have in them that tell how clients differ."""

AT_MOST_ONE = ("accuracy", "f1", "roc_auc", "average_precision", "hits")
"""Scores that are shares, so that no target is above 1."""

_SHOWN = {"correct": "accuracy"}  # names of sums -> names of their means
_SUMMED = {shown: name for name, shown in _SHOWN.items()}


class ClientNumbers:
    """Turns the sums of all clients into metrics, and keeps what every client had by itself.

    Attributes:
      values: split -> name -> value of every client at the last evaluation, NaN where it is not
        known.

    Args:
      forms: of the report.
    """

    def __init__(self, forms: Sequence[str]) -> None:
        self.values: dict[str, dict[str, np.ndarray]] = {}
        self._report = Report(tuple(forms), keep_raw=self.values.__setitem__)

    def summarize(self, split: str, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of a split: `test/accuracy`, `test/global/accuracy`, `test/avg/loss` ..."""
        return self._report(split, {shown_name(name): rows for name, rows in sums.items()})


def shown_name(name: str) -> str:
    """The name under which the mean of a sum is shown, `global/accuracy` for `global/correct`."""
    prefix, slash, last = name.rpartition("/")
    return f"{prefix}{slash}{_SHOWN.get(last, last)}"


def spread(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """How metrics are spread over clients, as rows of a table.

    Args:
      metrics: names and numbers of an evaluation.

    Returns:
      `split/name` -> heading -> number, of the metrics of which the mean over clients is known.
    """
    rows: dict[str, dict[str, float]] = {}
    for name in metrics:
        split, is_mean, metric = name.partition("/avg/")
        if is_mean:
            whole = f"{split}/{metric}"
            rows[whole] = {"all examples": metrics[whole], "mean of clients": metrics[name]}
            start = f"{split}/fairness/{metric}_"
            rows[whole] |= {
                key.removeprefix(start).replace("_", " "): value
                for key, value in metrics.items()
                if key.startswith(start)
            }
    return rows


def score_names(config: RunConfig, num_classes: int | None) -> list[str]:
    """What evaluations measure beside the loss, as it is shown.

    Args:
      config: the settings of the run.
      num_classes: of the data; None for targets that are numbers.
    """
    scores = config.evaluation.scores
    if num_classes is None:
        return ["mse", "rmse"] if scores else []
    return [shown_name(name) for name in scores or ("correct",)]


def is_reached(metric: str, value: float, target: float) -> bool:
    """Whether a metric is as good as a target."""
    return value >= target if is_larger_better(metric) else value <= target


def watched_metric(
    config: RunConfig, num_classes: int | None, scores: Sequence[str] | None = None
) -> str:
    """The metric that targets, early stopping and the best round look at.

    Args:
      config: the settings of the run.
      num_classes: of the data; None for targets that are numbers.
      scores: what a task of one's own measures beside the loss; None for others.

    Raises:
      ConfigError: (a ValueError) if evaluations have no such metric, listing those that they have,
        or the target is a share above 1.
    """
    evaluation, is_own = config.evaluation, config.task.has_own_scores
    own = () if scores is None else scores
    names = [*(own if is_own else score_names(config, num_classes)), "loss"]
    splits = [*(f"{each}{SERVER_SUFFIX}" for each in evaluation.by_server), *evaluation.splits]
    if evaluation.metric == "auto":
        # What is chosen by must not be what is told at the end, where there is something else.
        chosen = [split for split in splits if split.startswith("val")] or splits
        metric = f"{chosen[-1]}/{names[0]}"
    else:
        metric = evaluation.metric
    if not is_own or scores is not None:
        _check_measured(metric, splits, names)
    last = metric.rpartition("/")[2].partition("@")[0]
    if last in AT_MOST_ONE and evaluation.target > 1:
        raise ConfigError(
            f"evaluation.target={evaluation.target:g} is above 1, and {metric} is a share; wanted "
            f"a number such as {evaluation.target / 100 if evaluation.target <= 100 else 0.9:g}"
        )
    return metric


def _check_measured(metric: str, splits: Sequence[str], names: Sequence[str]) -> None:
    """Raises ConfigError unless evaluations have a metric, and its name tells what is better."""
    known = [f"{split}/{name}" for split in splits for name in names]
    plain = re.sub(r"(_unseen|/(global|untuned|avg))(?=/)", "", metric)
    if plain not in known:
        raise ConfigError(
            f"evaluation.metric={metric!r} is not measured; there are "
            f"{', '.join(known)}, and such as test_unseen/, test/avg/, test/global/ and "
            "test/untuned/ where there are unseen clients and other models"
        )
    try:
        is_larger_better(metric)
    except ConfigError as error:
        raise ConfigError(
            f"evaluation.metric={metric!r}: its name does not tell whether it is better where it "
            f"is larger; name a metric that does, such as {splits[-1]}/loss"
        ) from error


def baseline_metric(metric: str) -> str:
    """What a baseline has in place of a metric: it evaluates one model, and has no server.

    Args:
      metric: of a course.

    Example:
      >>> baseline_metric("test_server/accuracy"), baseline_metric("test/global/avg/loss")
      ('test/accuracy', 'test/avg/loss')
    """
    return re.sub(rf"({SERVER_SUFFIX}|/(global|untuned))(?=/)", "", metric)


def own_metric(metric: str) -> str:
    """What a client by itself has in place of a metric, as its sum is called.

    Args:
      metric: of a course.

    Example:
      >>> own_metric("test_unseen/avg/accuracy")
      'test/correct'
    """
    name = re.sub(r"(_unseen|/avg)(?=/)", "", baseline_metric(metric))
    split, _, last = name.partition("/")
    return f"{split}/{_SUMMED.get(last, last)}"
