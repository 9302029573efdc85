"""Windows over long passages, and answers back from what a model says of their tokens.

References:
  Devlin et al. 2019, arXiv:1810.04805, section 4.2 and 4.3: windows with a stride, the null answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from jaxlab.data.texts import QuestionExample
from jaxlab.distillation.rows import TokenRows
from jaxlab.text import Pieces, TextTokenizer


@dataclasses.dataclass(frozen=True)
class Windows:
    """Rows of a question and a part of its context, and where their tokens stand in it.

    Attributes:
      rows: to make batches of; `label` is (rows, 2), first and last token of the answer, (0, 0)
        where it is not in the window. `example_id` counts the windows.
      question: place of the question of every row.
      begin: of each token, its first character in the context; -1 for other tokens. As `ids`.
      end: of each token, the character after its last.
      is_best: of each token, whether its window is the one with most context around it.
      questions: all questions.
    """

    rows: TokenRows
    question: Int64[np.ndarray, " rows"]
    begin: Int64[np.ndarray, " tokens"]
    end: Int64[np.ndarray, " tokens"]
    is_best: Bool[np.ndarray, " tokens"]
    questions: tuple[QuestionExample, ...]


class FoundAnswer(NamedTuple):
    """An answer of a model.

    Attributes:
      text: of the context; empty for none.
      score: sum of the scores of its ends.
    """

    text: str
    score: float


class _Window(NamedTuple):
    """One row."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    spans: list[tuple[int, int]]
    is_best: list[bool]
    label: tuple[int, int]


def make_windows(
    questions: Sequence[QuestionExample],
    tokenizer: TextTokenizer,
    max_length: int = 384,
    stride: int = 128,
    max_question: int = 64,
    *,
    is_labelled: bool = True,
) -> Windows:
    """Every question with windows over its context.

    Args:
      questions: with or without answers; the first one is learnt.
      tokenizer: of the model.
      max_length: ids of a row at most.
      stride: pieces of the context between the beginnings of two windows.
      max_question: pieces of a question that are kept.
      is_labelled: a question without answers has none in its context; else they are not known.

    Raises:
      ValueError: if there are no questions, or windows would leave pieces of a context out.
    """
    room = max_length - tokenizer.num_special(True) - max_question
    if not questions or not 0 < stride <= room:
        raise ValueError(
            f"{len(questions)} questions, stride={stride}, room for {room} pieces of context "
            f"beside max_question={max_question}; wanted a question or more and 0 < stride <= room"
        )
    windows, question, cut = [], [], 0
    for place, asked in enumerate(questions):
        ids = tokenizer.ids(asked.question)
        cut += len(ids) > max_question
        made = _windows(asked, ids[:max_question], tokenizer, max_length, stride)
        windows += made
        question += [place] * len(made)
    spans = np.array([span for w in windows for span in w.spans], np.int64)
    rows = TokenRows(
        ids=np.concatenate([w.ids for w in windows]).astype(np.int32),
        types=np.concatenate([w.types for w in windows]).astype(np.int8),
        ends=np.cumsum([len(w.ids) for w in windows], dtype=np.int64),
        label=np.array([w.label for w in windows], np.int32),
        has_label=np.full(len(windows), is_labelled),
        example_id=np.arange(len(windows), dtype=np.int64),
        is_pair=np.ones(len(windows), bool),
        tokenizer=tokenizer,
        num_truncated=cut,
    )
    is_best = np.array([best for w in windows for best in w.is_best], bool)
    places = np.array(question, np.int64)
    return Windows(rows, places, spans[:, 0], spans[:, 1], is_best, tuple(questions))


def _windows(
    asked: QuestionExample, ids: list[int], tokenizer: TextTokenizer, max_length: int, stride: int
) -> list[_Window]:
    context = tokenizer.pieces(asked.context)
    room = max_length - tokenizer.num_special(True) - len(ids)
    starts = [0]
    while starts[-1] + room < len(context.ids):
        starts.append(starts[-1] + stride)
    ranges = [(start, min(start + room, len(context.ids))) for start in starts]
    best = _best_windows(len(context.ids), ranges)
    answer = _answer_pieces(asked, context)
    first = tokenizer.num_special(True) - 1 + len(ids)
    made = []
    for place, (start, end) in enumerate(ranges):
        row = tokenizer.join(ids, context.ids[start:end])
        around = [(-1, -1)] * first
        spans = [*around, *context.spans[start:end], (-1, -1)]
        is_best = [*[False] * first, *(best[start:end] == place), False]
        label = (0, 0)
        if answer is not None and start <= answer[0] and answer[1] < end:
            label = (first + answer[0] - start, first + answer[1] - start)
        made.append(_Window(row.ids, row.types, spans, [bool(b) for b in is_best], label))
    return made


def _best_windows(count: int, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """The window of every piece that has most context on its shorter side; the first of equals."""
    pieces = np.arange(count)
    scores = [
        np.where(
            (pieces >= start) & (pieces < end),
            np.minimum(pieces - start, end - 1 - pieces) + 0.01 * (end - start),
            -1.0,
        )
        for start, end in ranges
    ]
    return np.argmax(scores, axis=0)


def _answer_pieces(asked: QuestionExample, context: Pieces) -> tuple[int, int] | None:
    """First and last piece of the first answer; None without one."""
    if not asked.answers:
        return None
    begin = asked.answers[0].start
    end = begin + len(asked.answers[0].text)
    inside = [i for i, (b, e) in enumerate(context.spans) if b < end and e > begin]
    return (inside[0], inside[-1]) if inside else None


def best_answers(
    windows: Windows,
    starts: Float[np.ndarray, "rows length"],
    ends: Float[np.ndarray, "rows length"],
    *,
    num_best: int = 20,
    max_answer: int = 30,
    null_threshold: float | None = None,
) -> dict[str, tuple[FoundAnswer, ...]]:
    """The best answers to every question, over all its windows.

    Args:
      windows: of the questions.
      starts: score of every token to be the first of the answer, in the order of the rows.
      ends: score to be the last.
      num_best: tokens looked at on each side of a window, and answers that are kept.
      max_answer: tokens of an answer at most.
      null_threshold: for SQuAD 2.0, how much better than the best answer the score of none (both
        ends at the first token, the lowest over the windows) must be to be taken; None never does.

    Returns:
      Name of the question -> answers, best first; the first may be empty. None at all of a context
      gives one empty answer.

    Raises:
      ValueError: if there are not scores for all rows.
    """
    shape = (len(windows.rows), int(windows.rows.lengths.max()))
    if starts.shape != ends.shape or starts.shape[0] != shape[0] or starts.shape[1] < shape[1]:
        raise ValueError(f"scores {starts.shape} and {ends.shape}; wanted at least {shape} of both")
    found: list[dict[tuple[int, int], float]] = [{} for _ in windows.questions]
    none = np.full(len(windows.questions), np.inf)
    for row, place in enumerate(windows.question):
        none[place] = min(none[place], float(starts[row, 0] + ends[row, 0]))
        for span, score in _spans(windows, row, starts[row], ends[row], num_best, max_answer):
            found[place][span] = max(found[place].get(span, -np.inf), score)
    answers = {}
    for asked, spans, null in zip(windows.questions, found, none, strict=True):
        ranked = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:num_best]
        listed = [FoundAnswer(asked.context[b:e], score) for (b, e), score in ranked]
        empty = FoundAnswer("", float(null))
        if not listed:
            listed = [empty]
        elif null_threshold is not None:
            is_none = null - listed[0].score > null_threshold
            listed = [empty, *listed] if is_none else [*listed, empty]
        answers[asked.name] = tuple(listed)
    return answers


def _spans(
    windows: Windows, row: int, starts: np.ndarray, ends: np.ndarray, num_best: int, max_answer: int
) -> list[tuple[tuple[int, int], float]]:
    """Places in the context and scores of the answers of one window."""
    first, last = windows.rows.begin(row), int(windows.rows.ends[row])
    begin, end = windows.begin[first:last], windows.end[first:last]
    usable = np.flatnonzero(begin >= 0)
    best = windows.is_best[first:last]
    heads = usable[best[usable]]
    heads = heads[np.argsort(-starts[heads], kind="stable")[:num_best]]
    tails = usable[np.argsort(-ends[usable], kind="stable")[:num_best]]
    return [
        ((int(begin[i]), int(end[j])), float(starts[i] + ends[j]))
        for i in heads
        for j in tails
        if i <= j < i + max_answer
    ]
