"""Scores of chosen classes and of predicted numbers, and those that GLUE asks for.

Everything is counted on the host in float64 and given as fractions of 1, correlations from -1 to 1.
A correlation with something that never changes, and an F1 of nothing found and nothing there, are
0.

References:
  Wang et al. 2019, arXiv:1804.07461 (GLUE); Guo et al. 2017, arXiv:1706.04599 (calibration).
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int, Num

Classes = Int[np.ndarray, " examples"]
Labels = Int[np.ndarray, " labels"]
Numbers = Num[np.ndarray, " examples"]
RightNumbers = Num[np.ndarray, " labels"]


def share_correct(chosen: Classes, labels: Labels) -> float:
    """Share of the examples whose chosen class is right.

    Args:
      chosen: class of every example.
      labels: right class of every example.

    Raises:
      ValueError: if there are none, or not as many.
    """
    _check(chosen, labels)
    return float(np.mean(np.asarray(chosen) == np.asarray(labels)))


def binary_f1(chosen: Classes, labels: Labels) -> float:
    """F1 of class 1.

    Args:
      chosen: 0 or 1 for every example.
      labels: 0 or 1 for every example.

    Raises:
      ValueError: if there are none, or not as many.
    """
    _check(chosen, labels)
    return _f1(np.asarray(chosen) == 1, np.asarray(labels) == 1)


def macro_f1(chosen: Classes, labels: Labels, num_classes: int) -> float:
    """Mean of the F1 of every class that is there or was chosen.

    Args:
      chosen: class of every example.
      labels: right class of every example.
      num_classes: how many there are.

    Raises:
      ValueError: if there are no examples, not as many, or a class is out of range.
    """
    _check(chosen, labels)
    chosen, labels = np.asarray(chosen), np.asarray(labels)
    present = np.union1d(chosen, labels)
    if present.min() < 0 or present.max() >= num_classes:
        raise ValueError(
            f"classes {present.min()} to {present.max()} are not all in 0 to {num_classes - 1}"
        )
    return float(np.mean([_f1(chosen == c, labels == c) for c in present]))


def matthews(chosen: Classes, labels: Labels) -> float:
    """Matthews correlation: that of class 1 chosen with class 1 right.

    Args:
      chosen: 0 or 1 for every example.
      labels: 0 or 1 for every example.

    Raises:
      ValueError: if there are none, or not as many.
    """
    _check(chosen, labels)
    ones = ((np.asarray(each) == 1).astype(np.float64) for each in (chosen, labels))
    return pearson(*ones)


def pearson(values: Numbers, labels: RightNumbers) -> float:
    """Pearson correlation.

    Args:
      values: predicted.
      labels: right ones.

    Raises:
      ValueError: if there are none, or not as many.
    """
    _check(values, labels)
    x, y = (np.asarray(each, np.float64) - np.mean(each) for each in (values, labels))
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size > 0 else 0.0


def spearman(values: Numbers, labels: RightNumbers) -> float:
    """Spearman correlation: that of ranks, equal values sharing the mean of theirs.

    Args:
      values: predicted.
      labels: right ones.

    Raises:
      ValueError: if there are none, or not as many.
    """
    from scipy.stats import rankdata

    _check(values, labels)
    return pearson(rankdata(values), rankdata(labels))


def regression_scores(values: Numbers, labels: RightNumbers) -> dict[str, float]:
    """Both correlations and the mean squared error of predicted numbers.

    Args:
      values: predicted.
      labels: right ones.

    Raises:
      ValueError: if there are none, or not as many.
    """
    error = np.asarray(values, np.float64) - np.asarray(labels, np.float64)
    return {
        "pearson": pearson(values, labels),
        "spearman": spearman(values, labels),
        "mse": float(np.mean(error**2)),
    }


GLUE_METRICS: Mapping[str, Mapping[str, Callable[..., float]]] = {
    "cola": {"matthews": matthews},
    "sst2": {"accuracy": share_correct},
    "mrpc": {"f1": binary_f1, "accuracy": share_correct},
    "stsb": {"pearson": pearson, "spearman": spearman},
    "qqp": {"f1": binary_f1, "accuracy": share_correct},
    "mnli": {"accuracy": share_correct},
    "qnli": {"accuracy": share_correct},
    "rte": {"accuracy": share_correct},
    "wnli": {"accuracy": share_correct},
}
"""Task -> its official metrics, the first one that which papers name."""


def glue_scores(task: str, predicted: Numbers, labels: RightNumbers) -> dict[str, float]:
    """The official metrics of a task of GLUE.

    Args:
      task: its name.
      predicted: classes, or the numbers of STS-B.
      labels: right ones.

    Raises:
      ValueError: if there is no such task, no example, or not as many labels.
    """
    if task not in GLUE_METRICS:
        raise ValueError(f"{task!r} is no task of GLUE; those are {', '.join(GLUE_METRICS)}")
    return {name: metric(predicted, labels) for name, metric in GLUE_METRICS[task].items()}


def glue_average(scores: Mapping[str, Mapping[str, float]], *, first: bool = False) -> float:
    """The average over tasks.

    Args:
      scores: task -> its official metrics.
      first: take the first metric of a task with two, as most papers do; else their mean, as the
        leaderboard does.

    Raises:
      ValueError: if a task is unknown, lacks a metric, or there is none.
    """
    unfit = [
        task
        for task, found in scores.items()
        if task not in GLUE_METRICS or GLUE_METRICS[task].keys() - found.keys()
    ]
    if unfit or not scores:
        raise ValueError(f"{unfit or 'no'} tasks: give tasks of GLUE with all of their metrics")
    each = []
    for task, found in scores.items():
        own = [found[name] for name in GLUE_METRICS[task]]
        each.append(own[0] if first else float(np.mean(own)))
    return float(np.mean(each))


def expected_calibration_error(
    logits: Float[np.ndarray, "examples classes"], labels: Labels, num_bins: int = 15
) -> float:
    """Mean over examples of |confidence - accuracy| of the bin that an example's confidence is in.

    Args:
      logits: of a classifier.
      labels: right classes.
      num_bins: bins of equal width of the confidence, the largest probability.

    Raises:
      ValueError: if there are no examples, or not as many labels.
    """
    _check(labels, logits[:, 0])
    shifted = np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted)
    confidence = 1.0 / probabilities.sum(axis=1)  # of the largest, whose exponential is 1
    correct = logits.argmax(axis=1) == np.asarray(labels)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, confidence - correct, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def _f1(chosen: np.ndarray, right: np.ndarray) -> float:
    both = int((chosen & right).sum())
    total = int(chosen.sum()) + int(right.sum())
    return 2.0 * both / total if total else 0.0


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"{len(first)} predictions and {len(second)} labels; give one of each for every "
            "example, and one example at least"
        )
