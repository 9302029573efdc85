"""Metrics of classifiers, on the host in float64. All are fractions of 1.

Scores are logits or probabilities: only their order matters. Equal scores count half a win in
`roc_auc`, fall into one step of the precision-recall curve, and go to the lower class in
`accuracy`.

References:
  The four metrics of the ELEVATER image classification tasks (Li et al. 2022, arXiv:2204.08790).
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num


def accuracy(
    scores: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " labels"]
) -> float:
    """Share of rows whose highest score is that of their label.

    Args:
      scores: higher is more likely; of equal scores the lower class wins.
      labels: the true class of every row, in [0, classes).

    Raises:
      ValueError: if there are no rows, the lengths differ, a label is out of range or a score is
        NaN.
    """
    return float(_hits(scores, labels).mean())


def mean_per_class_accuracy(
    scores: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " labels"]
) -> float:
    """Mean over the classes that occur in `labels` of the share of their rows that are right.

    Args:
      scores: higher is more likely; of equal scores the lower class wins.
      labels: the true class of every row, in [0, classes).

    Raises:
      ValueError: as `accuracy`.
    """
    hits = _hits(scores, labels)
    return float(np.mean([hits[labels == c].mean() for c in np.unique(labels)]))


def eleven_point_average_precision(
    scores: Float[np.ndarray, "..."], labels: Num[np.ndarray, "..."] | Bool[np.ndarray, "..."]
) -> float:
    """Mean over recalls t = 0, 0.1 ... 1 of the highest precision at a recall of t or more.

    The curve has the end point (recall 0, precision 1), as scikit-learn's, so the term of t = 0 is
    always 1. Recalls are compared as ratios of integers: 3 of 10 positives reach t = 0.3.

    Args:
      scores: (rows,), or (rows, classes) for the mean over the classes.
      labels: 1 or 0, of the shape of `scores`.

    Raises:
      ValueError: if shapes differ, a label is neither 0 nor 1, a class has no positive, or a score
        is NaN.

    Example:
      >>> scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
      >>> round(eleven_point_average_precision(scores, np.array([1, 0, 1, 0, 1])), 7)
      0.7636364
    """
    positive = _check_binary(scores, labels)
    if scores.ndim == 2:
        pairs = zip(scores.T, positive.T, strict=True)
        return float(np.mean([eleven_point_average_precision(s, p) for s, p in pairs]))
    hits, taken = _counts_at_thresholds(scores, positive)
    if not hits[-1]:
        raise ValueError(
            f"no positive among {positive.size} labels: the average precision is not defined; "
            "leave the class out"
        )
    precision = np.append(1.0, hits / taken)
    tenths = np.append(0, hits) * 10
    return float(np.mean([precision[tenths >= t * hits[-1]].max() for t in range(11)]))


def roc_auc(
    scores: Float[np.ndarray, " rows"],
    labels: Num[np.ndarray, " labels"] | Bool[np.ndarray, " labels"],
) -> float:
    """Area under the receiver operating characteristic: P(positive scores above negative).

    Equal scores count one half (Mann-Whitney).

    Args:
      scores: higher is more likely positive.
      labels: 1 or 0.

    Raises:
      ValueError: if shapes differ, a label is neither 0 nor 1, one of the two kinds is missing, or
        a score is NaN.

    Example:
      >>> roc_auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0]))
      0.875
    """
    positive = _check_binary(scores, labels)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not (num_positive and num_negative):
        raise ValueError(
            f"{num_positive} positive and {num_negative} negative labels: the ROC curve needs both"
        )
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    wins = mean_rank[group][positive].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_negative))


def _hits(
    scores: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " labels"]
) -> Bool[np.ndarray, " rows"]:
    rows, classes = scores.shape
    if rows == 0 or labels.shape != (rows,):
        raise ValueError(
            f"scores have shape {scores.shape} and labels {labels.shape}; wanted one label for "
            "every row, and at least one row"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"label {labels[wrong[0]]} of row {wrong[0]} is not one of {classes} classes "
            f"({wrong.size} such labels); wanted 0 to {classes - 1}"
        )
    check_no_nan(scores)
    return np.argmax(scores, axis=1) == labels


def _counts_at_thresholds(
    scores: Float[np.ndarray, " rows"], positive: Bool[np.ndarray, " rows"]
) -> tuple[Int[np.ndarray, " thresholds"], Int[np.ndarray, " thresholds"]]:
    """Positives and rows at or above every distinct score, from the highest score down."""
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    hits, ranked = np.cumsum(positive[order]), scores[order]
    last_of_group = np.append(ranked[1:] != ranked[:-1], True)
    return hits[last_of_group], np.flatnonzero(last_of_group) + 1


def _check_binary(
    scores: Float[np.ndarray, "..."], labels: Num[np.ndarray, "..."] | Bool[np.ndarray, "..."]
) -> Bool[np.ndarray, "..."]:
    if scores.shape != labels.shape or scores.ndim not in (1, 2) or not scores.size:
        raise ValueError(
            f"scores have shape {scores.shape} and labels {labels.shape}; wanted the same, (rows,) "
            "or (rows, classes), and not empty"
        )
    other = np.setdiff1d(labels, (0, 1))
    if other.size:
        raise ValueError(f"labels hold {other[:5].tolist()}; wanted 1 (positive) and 0 (negative)")
    check_no_nan(scores)
    return labels.astype(bool)


def check_no_nan(scores: Float64[np.ndarray, "..."] | Float[np.ndarray, "..."]) -> None:
    """Refuse scores that are NaN.

    Args:
      scores: of any shape.

    Raises:
      ValueError: with their number.
    """
    num_nan = int(np.isnan(scores).sum())
    if num_nan:
        raise ValueError(f"{num_nan} of {scores.size} scores are NaN: the model has diverged")
