"""What every task of GLUE is scored by, and the average over tasks in its two conventions.

References:
  Wang et al. 2019, arXiv:1804.07461.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Num

from jaxlab.metrics.scores import (
    f1_score,
    matthews_correlation,
    pearson_correlation,
    spearman_correlation,
)

GLUE_METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("f1", "accuracy"),
    "mnli": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
"""Task -> names of its metrics, the one that papers quote first."""


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float((predictions == labels).mean())


_FUNCTIONS = {
    "matthews": matthews_correlation,
    "accuracy": _accuracy,
    "f1": f1_score,
    "pearson": pearson_correlation,
    "spearman": spearman_correlation,
}


def glue_scores(
    task: str, predictions: Num[np.ndarray, " rows"], labels: Num[np.ndarray, " labels"]
) -> dict[str, float]:
    """The metrics of a task.

    Args:
      task: of `GLUE_METRICS`.
      predictions: classes, in the order of the data (F1 is of the class 1), or numbers for `stsb`.
      labels: the true ones.

    Raises:
      ValueError: for an unknown task, no rows, or other numbers of them.
    """
    if task not in GLUE_METRICS:
        raise ValueError(f"no task {task!r} of GLUE; there are {', '.join(GLUE_METRICS)}")
    if predictions.shape != labels.shape or not labels.size:
        raise ValueError(
            f"{task}: predictions {predictions.shape} and labels {labels.shape}; wanted as many"
        )
    return {name: _FUNCTIONS[name](predictions, labels) for name in GLUE_METRICS[task]}


def glue_average(
    scores: Mapping[str, Mapping[str, float]],
    convention: str = "leaderboard",
) -> float:
    """Mean over the tasks; the two parts of MNLI are one task of two metrics.

    Args:
      scores: task -> metric -> score, of the tasks to average; WNLI counts if it is given.
      convention: `leaderboard` takes the mean of the two metrics of a task, `papers` the first one
        (and the matched part of MNLI).

    Raises:
      ValueError: if nothing is given, or naming tasks and metrics that are unknown or missing.

    Example:
      >>> scores = {"mrpc": {"f1": 0.9, "accuracy": 0.8}, "rte": {"accuracy": 0.6}}
      >>> [round(glue_average(scores, way), 4) for way in ("leaderboard", "papers")]
      [0.725, 0.75]
    """
    if convention not in ("leaderboard", "papers"):
        raise ValueError(f"convention={convention!r}; wanted 'leaderboard' or 'papers'")
    unknown = sorted(set(scores) - set(GLUE_METRICS))
    missing = [
        f"{task}/{metric}"
        for task, found in scores.items()
        for metric in GLUE_METRICS.get(task, ())
        if metric not in found
    ]
    if unknown or missing or not scores:
        raise ValueError(
            f"{len(scores)} tasks; unknown: {unknown}, without a score: {missing}; there are "
            f"{', '.join(GLUE_METRICS)}"
        )
    num_counted = 1 if convention == "papers" else None
    of_task: dict[str, list[float]] = {}
    for task in GLUE_METRICS:
        if task in scores:
            values = [scores[task][metric] for metric in GLUE_METRICS[task]]
            of_task.setdefault(task.removesuffix("_mismatched"), []).extend(values)
    return float(np.mean([float(np.mean(v[:num_counted])) for v in of_task.values()]))
