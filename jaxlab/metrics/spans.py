"""Metrics of answers and of tagged spans: SQuAD and CoNLL.

References:
  Rajpurkar et al. 2016, arXiv:1606.05250; Rajpurkar et al. 2018, arXiv:1806.03822; Tjong Kim Sang
  and De Meulder 2003, "Introduction to the CoNLL-2003 shared task".
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

Entity = tuple[str, int, int]
"""Kind, first word, and the word after the last."""


def normalize_answer(text: str) -> str:
    """An answer in lower case, without punctuation, articles and white space that is not needed.

    Args:
      text: the answer.

    Example:
      >>> normalize_answer("The  Eiffel-Tower, a tower!")
      'eiffeltower tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_f1(prediction: str, answer: str) -> float:
    """F1 of the words of an answer; without words on one side, whether both have none.

    Args:
      prediction: the answer given.
      answer: a right one.
    """
    given, true = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not given or not true:
        return float(given == true)
    common = sum((collections.Counter(given) & collections.Counter(true)).values())
    return 2 * common / (len(given) + len(true))


def squad_scores(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Exact match and F1, fractions of 1, the best over the right answers of every question.

    Questions without an answer are right if the prediction is empty; `has_answer_...` and
    `no_answer_...` are over each kind, where there are both.

    Args:
      predictions: question -> answer, empty for none.
      answers: question -> right answers, none if there is none.

    Raises:
      ValueError: naming questions without a prediction, or if there are no questions.
    """
    missing = sorted(set(answers) - set(predictions))
    if missing or not answers:
        raise ValueError(
            f"{len(missing)} of {len(answers)} questions have no prediction: {missing[:10]}; "
            "predict an empty text where there is no answer"
        )
    scores = {name: _score(predictions[name], right) for name, right in answers.items()}
    result = _means(list(scores.values()), "")
    with_answer = [s for name, s in scores.items() if answers[name]]
    without = [s for name, s in scores.items() if not answers[name]]
    if with_answer and without:
        result |= _means(with_answer, "has_answer_") | _means(without, "no_answer_")
    return result


def _score(prediction: str, right: Sequence[str]) -> tuple[float, float]:
    # Answers of articles and punctuation alone do not count, as in the official script.
    kept = [answer for answer in right if normalize_answer(answer)] or [""]
    exact = max(float(normalize_answer(prediction) == normalize_answer(a)) for a in kept)
    return exact, max(answer_f1(prediction, answer) for answer in kept)


def _means(scores: Sequence[tuple[float, float]], prefix: str) -> dict[str, float]:
    exact, f1 = (sum(values) / len(scores) for values in zip(*scores, strict=True))
    return {f"{prefix}exact_match": exact, f"{prefix}f1": f1}


def find_entities(tags: Sequence[str]) -> frozenset[Entity]:
    """The entities of a sentence, as the script of CoNLL finds them.

    An entity begins at `B-X`, and at `I-X` after another kind or none.

    Args:
      tags: `O`, `B-X` or `I-X` of every word.

    Example:
      >>> sorted(find_entities(["B-PER", "I-PER", "I-LOC", "O", "B-LOC", "B-LOC"]))
      [('LOC', 2, 3), ('LOC', 4, 5), ('LOC', 5, 6), ('PER', 0, 2)]
    """
    entities: list[Entity] = []
    kind, begin = "", 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind and (mark in "OB" or name != kind):
            entities.append((kind, begin, place))
            kind = ""
        if mark != "O" and not kind:
            kind, begin = name, place
    return frozenset(entities)


def entity_scores(
    predictions: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Precision, recall and F1 of whole entities over all sentences, fractions of 1.

    Args:
      predictions: tags of every sentence.
      tags: the true ones.

    Raises:
      ValueError: naming sentences whose numbers of tags differ.
    """
    if len(predictions) != len(tags):
        raise ValueError(f"{len(predictions)} predictions of {len(tags)} sentences")
    wrong = [i for i, (p, t) in enumerate(zip(predictions, tags, strict=True)) if len(p) != len(t)]
    if wrong:
        raise ValueError(f"sentences {wrong[:10]} have other numbers of tags than predictions")
    right = guessed = true = 0
    for predicted, known in zip(predictions, tags, strict=True):
        found, wanted = find_entities(predicted), find_entities(known)
        right, guessed, true = right + len(found & wanted), guessed + len(found), true + len(wanted)
    precision = right / guessed if guessed else 0.0
    recall = right / true if true else 0.0
    f1 = 2 * right / (guessed + true) if guessed + true else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
