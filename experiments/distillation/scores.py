"""What a network scores on a part of the data, and how it agrees with its teacher."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import softmax

from experiments.distillation.tasks import Problem
from jaxlab import metrics
from jaxlab.distillation.answers import best_answers
from jaxlab.distillation.evaluate import Predictions, in_order
from jaxlab.distillation.rows import IGNORED

NUMBERS = "evaluation.json"
COSTS = ("parameters", "gflops")
OUTSIDE = "O"
NEVER = -1e9  # logit of a place that is no token


def score(problem: Problem, part: str, predictions: Predictions) -> dict[str, float]:
    """The metrics of a task.

    Args:
      problem: the data.
      part: `train`, `validation`, `test`, or another part of the data.
      predictions: of a network.

    Returns:
      By name, the first that of the task; fractions of 1. Nothing where labels are not known.
    """
    rows = problem.rows(part)
    if not rows.has_label.any():
        return {}
    if problem.task == "span":
        return _answers(problem, part, predictions)
    if problem.task == "tagging":
        return _entities(problem, part, predictions)
    logits = in_order(predictions, rows.example_id).logits
    known = rows.has_label
    logits, labels = logits[known], rows.label[known]
    if problem.task == "regression":
        return _numbers(logits[:, 0], labels)
    chosen = logits.argmax(axis=1)
    scores = {"accuracy": float((chosen == labels).mean())}
    if problem.name in metrics.GLUE_METRICS:
        scores = {**metrics.glue_scores(problem.name, chosen, labels), **scores}
    elif problem.num_labels == 2:
        scores["f1"] = metrics.f1_score(chosen, labels)
    else:
        scores["macro_f1"] = metrics.macro_f1_score(chosen, labels)
    scores["calibration_error"] = metrics.calibration_error(softmax(logits, axis=1), labels)
    return scores


def _numbers(values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "pearson": metrics.pearson_correlation(values, labels),
        "spearman": metrics.spearman_correlation(values, labels),
        "mse": float(np.mean((values.astype(np.float64) - labels) ** 2)),
    }


def find_answers(problem: Problem, part: str, predictions: Predictions) -> dict[str, str]:
    """The best answer to every question; none is an answer where there are questions without one.

    Args:
      problem: of questions.
      part: of the data.
      predictions: of a network, for all windows.

    Returns:
      Name of the question -> answer, empty for none.
    """
    windows = problem.windows(part)
    logits = in_order(predictions, windows.rows.example_id).logits
    threshold = 0.0 if any(not asked.answers for asked in windows.questions) else None
    found = best_answers(windows, logits[..., 0], logits[..., 1], null_threshold=threshold)
    return {name: best[0].text for name, best in found.items()}


def find_tags(
    problem: Problem, part: str, predictions: Predictions
) -> list[tuple[list[str], list[str]]]:
    """The tags of every sentence, and those that a network gives it.

    Args:
      problem: of tagged sentences.
      part: of the data.
      predictions: of a network, for all sentences.

    Returns:
      For every sentence its tags and the predicted ones. Words that are cut off at `max_length`
      are predicted to be outside, so that their entities count as missed.
    """
    rows, names = problem.rows(part), problem.data.label_names
    logits = in_order(predictions, rows.example_id).logits
    found = []
    for row, example in enumerate(problem.examples(part)):
        tags = example.tags or ()
        labels = rows.label[rows.begin(row) : rows.ends[row]]
        chosen = logits[row, : len(labels)].argmax(axis=1)[labels != IGNORED]
        guessed = [names[tag] for tag in chosen]
        guessed += [OUTSIDE] * (len(tags) - len(guessed))
        found.append(([names[tag] for tag in tags], guessed))
    return found


def _answers(problem: Problem, part: str, predictions: Predictions) -> dict[str, float]:
    """F1 and exact match of the best answers."""
    questions = problem.windows(part).questions
    answers = {asked.name: [answer.text for answer in asked.answers] for asked in questions}
    scores = metrics.squad_scores(find_answers(problem, part, predictions), answers)
    return {"f1": scores["f1"], **scores}


def _entities(problem: Problem, part: str, predictions: Predictions) -> dict[str, float]:
    """F1 of whole entities, and the share of words whose tag is right."""
    found = find_tags(problem, part, predictions)
    known, guessed = ([sentence[side] for sentence in found] for side in (0, 1))
    right = [
        tag == guess for tags, guesses in found for tag, guess in zip(tags, guesses, strict=True)
    ]
    return {**metrics.entity_scores(guessed, known), "accuracy": sum(right) / max(len(right), 1)}


def compare(
    problem: Problem, part: str, student: Predictions, teacher: Predictions
) -> dict[str, float]:
    """How a student agrees with its teacher.

    Args:
      problem: the data.
      part: of the data.
      student: its predictions.
      teacher: those of the teacher for the same examples.

    Returns:
      `agreement`, the share of rows (examples, words, ends of answers) on which both choose the
      same, and `kl`, the mean divergence of the student from the teacher in nats; of a regression
      the mean `difference` of outputs.
    """
    ids = student.example_ids
    ours, theirs = student.logits, in_order(teacher, ids).logits
    if problem.task == "regression":
        return {"difference": float(np.abs(ours - theirs).mean())}
    if problem.task in ("tagging", "span"):
        ours, theirs = (_rows_of_choices(problem, part, ids, each) for each in (ours, theirs))
    return {
        "agreement": metrics.agreement(ours, theirs),
        "kl": metrics.mean_divergence(ours, theirs),
    }


def _rows_of_choices(problem: Problem, part: str, ids: Any, logits: np.ndarray) -> np.ndarray:
    """Logits as one row a choice: of tags a word, of answers an end of a window."""
    rows = problem.rows(part)
    places = {int(example): row for row, example in enumerate(rows.example_id)}
    order = [places[int(example)] for example in ids]
    if problem.task == "span":
        lengths = rows.lengths[order]
        inside = np.arange(logits.shape[1])[None] < lengths[:, None]
        kept = np.where(inside[..., None], logits, NEVER)
        return np.swapaxes(kept, 1, 2).reshape(-1, logits.shape[1])
    chosen = []
    for own, row in zip(logits, order, strict=True):
        labels = rows.label[rows.begin(row) : rows.ends[row]]
        chosen.append(own[: len(labels)][labels != IGNORED])
    return np.concatenate(chosen)


def headline(scores: Mapping[str, Mapping[str, float]], seconds: float) -> dict[str, float]:
    """All numbers of a run by flat names, `teacher/accuracy` and the like.

    Args:
      scores: network -> metric -> number.
      seconds: what the run took.

    Returns:
      For `results.json`; `distilled/retention` is the student's first metric over the teacher's,
      where there is one.
    """
    results = {
        f"{name}/{metric}": value
        for name, found in scores.items()
        for metric, value in found.items()
    }
    teacher = scores.get("teacher", {})
    main = next((metric for metric in teacher if metric not in COSTS), None)
    for name in scores.keys() - {"teacher"}:
        if main in scores[name] and teacher[main]:
            results[f"{name}/retention"] = scores[name][main] / teacher[main]
    return {**results, "seconds": seconds}
