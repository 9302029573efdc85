"""Questions about passages: SQuAD 1.1 and 2.0 in their JSON format.

References:
  Rajpurkar et al. 2016, arXiv:1606.05250; Rajpurkar et al. 2018, arXiv:1806.03822.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from jaxlab.data.texts.examples import (
    Answer,
    QuestionExample,
    TextData,
    TextInfo,
    count_parts,
    text_data,
)
from jaxlab.data.texts.files import checksums, find_files, raise_problems, read_text

_FILES = {
    "squad": {"train": ("train-v1.1.json",), "test": ("dev-v1.1.json",)},
    "squad2": {"train": ("train-v2.0.json",), "test": ("dev-v2.0.json",)},
}


def load_squad(name: str, folder: str | Path) -> TextData:
    """SQuAD from its official files.

    The official dev part, which alone is public, is the test part; a tenth of the articles of the
    training part is held out for validation.

    Args:
      name: `squad` (1.1) or `squad2` (2.0).
      folder: with `train-v1.1.json` and `dev-v1.1.json`, or those of 2.0.

    Returns:
      The data set; ids count the questions of both files.

    Raises:
      FileNotFoundError: naming all files that are missing.
      ValueError: naming what does not fit.
    """
    if name not in _FILES:
        raise ValueError(f"no data set {name!r}; wanted one of {list(_FILES)}")
    paths = find_files(folder, _FILES[name])
    articles = read_squad(paths["train"])
    num_train = sum(map(len, articles))
    test = [q for article in read_squad(paths["test"], num_train) for q in article]
    parts = {
        "train": tuple(q for i, article in enumerate(articles) if i % 10 for q in article),
        "validation": tuple(q for article in articles[::10] for q in article),
        "test": tuple(test),
    }
    if not parts["train"]:
        raise ValueError(f"{paths['train']} has {len(articles)} articles; wanted at least 2")
    info = TextInfo(str(folder), "CC BY-SA 4.0", checksums(paths.values()), count_parts(parts))
    return text_data(name, "question_answering", parts, (), info)


def read_squad(path: str | Path, first_id: int = 0) -> list[tuple[QuestionExample, ...]]:
    """The questions of a file, article by article.

    Args:
      path: JSON of SQuAD 1.1 or 2.0.
      first_id: of the first question; the next ones follow.

    Raises:
      ValueError: if it is no such file, or answers do not stand where they say.
    """
    path = Path(path)
    articles: list[tuple[QuestionExample, ...]] = []
    problems: list[str] = []
    try:
        for article in json.loads(read_text(path))["data"]:
            questions: list[QuestionExample] = []
            for paragraph in article["paragraphs"]:
                start = first_id + len(questions)
                questions.extend(_questions(paragraph, start, problems))
            articles.append(tuple(questions))
            first_id += len(questions)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of SQuAD ({type(error).__name__}: {error}); wanted JSON with "
            "data, paragraphs, context, qas, question, id and answers"
        ) from error
    raise_problems([f"{path}: {problem}" for problem in problems], "answers must be in the context")
    names = [question.name for article in articles for question in article]
    if not names:
        raise ValueError(f"{path} has no questions")
    if copies := len(names) - len(set(names)):
        warnings.warn(f"{path}: {copies} of {len(names)} questions repeat an id", stacklevel=2)
    return articles


def _questions(
    paragraph: dict[str, Any], first_id: int, problems: list[str]
) -> list[QuestionExample]:
    context, made = paragraph["context"], []
    for place, asked in enumerate(paragraph["qas"]):
        given = [] if asked.get("is_impossible") else asked.get("answers", [])
        answers = tuple(Answer(a["text"], int(a["answer_start"])) for a in given)
        for answer in answers:
            found = context[answer.start : answer.start + len(answer.text)]
            if found != answer.text:
                problems.append(
                    f"question {asked['id']}: {answer.text!r} at {answer.start}, there is {found!r}"
                )
        made.append(
            QuestionExample(first_id + place, asked["id"], asked["question"], context, answers)
        )
    return made
