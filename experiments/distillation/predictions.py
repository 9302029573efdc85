"""What a network says of a part of the data, as a table for people."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.distillation.scores import find_answers, find_tags
from experiments.distillation.tasks import Problem
from jaxlab.distillation.evaluate import Predictions, in_order


def write_predictions(path: Path, problem: Problem, part: str, predictions: Predictions) -> None:
    """A line for every example, word or question, in the order of its file.

    Each has the id, what is known, and the choice.

    Args:
      path: of the file.
      problem: the data.
      part: of the data.
      predictions: of the model.
    """
    lines = {"tagging": _word_lines, "span": _question_lines}.get(problem.task, _example_lines)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines(problem, part, predictions))


def _example_lines(
    problem: Problem, part: str, predictions: Predictions
) -> Iterator[Sequence[object]]:
    """The head and a line for every example, with its logits and its text."""
    names, examples = problem.data.label_names, problem.examples(part)
    found = in_order(predictions, np.array([example.id for example in examples], np.int64))
    yield ["id", "label", "prediction", *(names or ("value",)), "text", "pair"]
    for example, logits in zip(examples, found.logits, strict=True):
        label = example.label
        flat = np.ravel(logits)
        if names:
            known = "" if label is None else names[int(label)]
            row = [known, names[int(flat.argmax())]]
        else:
            row = ["" if label is None else label, float(flat[0])]
        texts = example.text, example.pair or ""
        yield [example.id, *row, *(f"{value:.6g}" for value in flat), *texts]


def _word_lines(
    problem: Problem, part: str, predictions: Predictions
) -> Iterator[Sequence[object]]:
    """The head and a line for every word of every sentence."""
    yield ["id", "word", "label", "prediction"]
    found = find_tags(problem, part, predictions)
    for example, (known, guessed) in zip(problem.examples(part), found, strict=True):
        for line in zip(example.words, known, guessed, strict=True):
            yield [example.id, *line]


def _question_lines(
    problem: Problem, part: str, predictions: Predictions
) -> Iterator[Sequence[object]]:
    """The head and a line for every question, with the first right answer."""
    yield ["id", "label", "prediction"]
    found = find_answers(problem, part, predictions)
    for asked in problem.examples(part):
        yield [asked.name, asked.answers[0].text if asked.answers else "", found[asked.name]]
