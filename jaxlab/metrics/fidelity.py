"""How alike a student and its teacher are, and how sure a model is, on the host in float64.

References:
  Kornblith et al. 2019, arXiv:1905.00414 (linear CKA); Guo et al. 2017, arXiv:1706.04599
  (calibration error).
"""

import numpy as np
from jaxtyping import Float, Int

from jaxlab.metrics.classification import check_no_nan


def agreement(
    student: Float[np.ndarray, "rows classes"], teacher: Float[np.ndarray, "rows classes"]
) -> float:
    """Share of rows for which both models give the same class.

    Args:
      student: logits or probabilities.
      teacher: likewise.

    Raises:
      ValueError: if there are no rows, or a NaN.
    """
    _check(student, teacher)
    return float((student.argmax(1) == teacher.argmax(1)).mean())


def mean_divergence(
    student: Float[np.ndarray, "rows classes"], teacher: Float[np.ndarray, "rows classes"]
) -> float:
    """Mean Kullback-Leibler divergence from the teacher's distribution to the student's, in nats.

    Args:
      student: logits.
      teacher: logits.

    Raises:
      ValueError: if there are no rows, or a NaN.
    """
    _check(student, teacher)
    ours, theirs = _log_softmax(student), _log_softmax(teacher)
    return float((np.exp(theirs) * (theirs - ours)).sum(1).mean())


def linear_cka(
    student: Float[np.ndarray, "rows width"], teacher: Float[np.ndarray, "rows other_width"]
) -> float:
    """Linear centred kernel alignment of two representations of the same rows, 0 to 1.

    It does not change with rotations and scales of either; 0 where one is constant.

    Args:
      student: a vector of each row; any width.
      teacher: likewise.

    Raises:
      ValueError: if there are no rows, or a NaN.
    """
    for values in (student, teacher):
        _check(values, values)
    left, right = (v.astype(np.float64) - v.astype(np.float64).mean(0) for v in (student, teacher))
    if len(left) < min(left.shape[1], right.shape[1]):  # kernels of rows are smaller
        ours, theirs = left @ left.T, right @ right.T
        shared = (ours * theirs).sum()
    else:
        shared = np.linalg.norm(left.T @ right) ** 2
        ours, theirs = left.T @ left, right.T @ right
    scale = np.linalg.norm(ours) * np.linalg.norm(theirs)
    return float(shared / scale) if scale > 0 else 0.0


def calibration_error(
    probabilities: Float[np.ndarray, "rows classes"],
    labels: Int[np.ndarray, " labels"],
    num_bins: int = 15,
) -> float:
    """Expected calibration error: how far confidence is from accuracy, over bins of confidence.

    Args:
      probabilities: of each class, summing to 1.
      labels: the true classes.
      num_bins: of equal width; a confidence at an edge is of the lower bin.

    Raises:
      ValueError: if there are no rows, other numbers of labels, or rows do not sum to 1.
    """
    _check(probabilities, probabilities)
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(f"{labels.shape} labels of {probabilities.shape} probabilities")
    sums = probabilities.sum(1)
    if (wrong := np.abs(sums - 1) > 1e-3).any():
        raise ValueError(
            f"{int(wrong.sum())} rows do not sum to 1, such as {sums[wrong][0]:.4g}; give "
            "probabilities, not logits"
        )
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, right - confidence, num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _check(student: np.ndarray, teacher: np.ndarray) -> None:
    if not student.size:
        raise ValueError(f"there are no rows: shape {student.shape}")
    for values in (student, teacher):
        check_no_nan(values)
