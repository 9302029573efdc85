"""Metrics of text tasks on arrays of predictions and labels, on the host in float64.

All but the correlations are fractions of 1.

References:
  Wang et al. 2019, arXiv:1804.07461 (GLUE); Matthews 1975, "Comparison of the predicted and
  observed secondary structure of T4 phage lysozyme".
"""

import numpy as np
from jaxtyping import Int, Num

from jaxlab.metrics.classification import check_no_nan


def matthews_correlation(
    predictions: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " labels"]
) -> float:
    """Matthews' correlation of classes; 0 where predictions or labels are all of one class.

    Args:
      predictions: a class of each row.
      labels: the true classes.

    Raises:
      ValueError: if there are no rows, or other numbers of them.

    Example:
      >>> matthews_correlation(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]))
      0.5773502691896258
    """
    _check_rows(predictions, labels)
    classes = np.union1d(predictions, labels)
    guessed = (predictions[:, None] == classes).sum(0).astype(np.float64)
    true = (labels[:, None] == classes).sum(0).astype(np.float64)
    rows = float(len(labels))
    right = float((predictions == labels).sum())
    scale = np.sqrt((rows**2 - guessed @ guessed) * (rows**2 - true @ true))
    return float((right * rows - guessed @ true) / scale) if scale > 0 else 0.0


def pearson_correlation(
    predictions: Num[np.ndarray, " rows"], labels: Num[np.ndarray, " labels"]
) -> float:
    """Pearson's correlation; 0 where one side is constant.

    Args:
      predictions: a number of each row.
      labels: the true numbers.

    Raises:
      ValueError: if there are no rows, other numbers of them, or a NaN.
    """
    _check_rows(predictions, labels)
    left, right = (values.astype(np.float64) for values in (predictions, labels))
    for values in (left, right):
        check_no_nan(values)
    left, right = left - left.mean(), right - right.mean()
    scale = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / scale) if scale > 0 else 0.0


def spearman_correlation(
    predictions: Num[np.ndarray, " rows"], labels: Num[np.ndarray, " labels"]
) -> float:
    """Pearson's correlation of ranks, where equal numbers share the mean of their ranks.

    Args:
      predictions: a number of each row.
      labels: the true numbers.

    Raises:
      ValueError: as `pearson_correlation`.
    """
    _check_rows(predictions, labels)
    for values in (predictions, labels):
        check_no_nan(values.astype(np.float64))
    return pearson_correlation(_ranks(predictions), _ranks(labels))


def f1_score(
    predictions: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " labels"], positive: int = 1
) -> float:
    """F1 of one class; 0 where it is neither predicted nor true.

    Args:
      predictions: a class of each row.
      labels: the true classes.
      positive: the class.

    Raises:
      ValueError: if there are no rows, or other numbers of them.
    """
    _check_rows(predictions, labels)
    both = int(((predictions == positive) & (labels == positive)).sum())
    either = int((predictions == positive).sum() + (labels == positive).sum())
    return 2 * both / either if either else 0.0


def macro_f1_score(
    predictions: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " labels"]
) -> float:
    """Mean of the F1 of all classes that are predicted or true.

    Args:
      predictions: a class of each row.
      labels: the true classes.

    Raises:
      ValueError: if there are no rows, or other numbers of them.
    """
    _check_rows(predictions, labels)
    classes = np.union1d(predictions, labels)
    return float(np.mean([f1_score(predictions, labels, int(c)) for c in classes]))


def _ranks(values: Num[np.ndarray, " rows"]) -> np.ndarray:
    """Ranks from 1 on; equal values share their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def _check_rows(predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.shape != labels.shape or not labels.size:
        raise ValueError(
            f"predictions have shape {predictions.shape} and labels {labels.shape}; wanted one of "
            "each for every row, and at least one row"
        )
