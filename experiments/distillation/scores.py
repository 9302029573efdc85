"""What a network scores on a part of the data, and how it agrees with its teacher."""

from collections.abc import Mapping

import numpy as np

from experiments.distillation.tasks import Problem
from jaxlab import metrics
from jaxlab.distillation.evaluate import Predictions, in_order

FIRST = ("accuracy", "agreement")


def score(problem: Problem, part: str, predictions: Predictions) -> dict[str, float]:
    """The metrics of a task.

    Args:
      problem: the data.
      part: `train`, `validation`, `test`, or another part of the data.
      predictions: of a network.

    Returns:
      By name, the first that of the task; fractions of 1. Nothing where labels are not known.
    """
    examples = [e for e in problem.examples(part) if e.label is not None]
    if not examples:
        return {}
    ids = np.array([e.id for e in examples], np.int64)
    found = in_order(predictions, ids).logits
    labels = np.array([e.label for e in examples])
    if problem.task == "regression":
        return metrics.regression_scores(found[:, 0], labels)
    chosen = found.argmax(axis=1)
    scores = {"accuracy": float((chosen == labels).mean())}
    if problem.glue_metrics:
        scores |= metrics.glue_scores(problem.name, chosen, labels)
    elif problem.num_labels == 2:
        scores["f1"] = metrics.binary_f1(chosen, labels)
    else:
        scores["macro_f1"] = metrics.macro_f1(chosen, labels, problem.num_labels)
    scores["calibration_error"] = metrics.expected_calibration_error(found, labels)
    return scores


def compare(problem: Problem, student: Predictions, teacher: Predictions) -> dict[str, float]:
    """How a student agrees with its teacher.

    Args:
      problem: the data.
      student: its predictions.
      teacher: those of the teacher for the same examples.

    Returns:
      `agreement`, the share of examples on which both choose the same class, and `kl`, the mean
      divergence of the student from the teacher in nats; of a regression the difference of outputs.
    """
    theirs = in_order(teacher, student.example_ids).logits
    if problem.task == "regression":
        return {"difference": float(np.abs(student.logits - theirs).mean())}
    return {
        "agreement": metrics.agreement(student.logits, theirs),
        "kl": metrics.mean_kl(student.logits, theirs),
    }


def headline(scores: Mapping[str, Mapping[str, float]], seconds: float) -> dict[str, float]:
    """All numbers of a run by flat names, `teacher/accuracy` and the like.

    Args:
      scores: network -> metric -> number.
      seconds: what the run took.

    Returns:
      For `results.json`; `distilled/retention` is the student's first metric over the teacher's.
    """
    results = {
        f"{name}/{metric}": value
        for name, found in scores.items()
        for metric, value in found.items()
    }
    teacher = scores.get("teacher", {})
    main = next(iter(teacher), None)
    for name in scores.keys() - {"teacher"}:
        if main in scores[name] and teacher[main]:
            results[f"{name}/retention"] = scores[name][main] / teacher[main]
    return {**results, "seconds": seconds}
