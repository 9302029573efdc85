"""Examples of text tasks, whole data sets of them, and how rows are held out."""

import collections
import dataclasses
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Task = Literal[
    "classification", "regression", "tagging", "question_answering", "language_modelling"
]


@dataclasses.dataclass(frozen=True)
class TextExample:
    """One text, or two that belong together, and what it is.

    Attributes:
      id: of the example, different for all examples of a data set.
      text: the text, or the first of a pair.
      pair: the second text, or None.
      label: the place of its class in `label_names`, a number of a regression, None if unknown.
    """

    id: int
    text: str
    pair: str | None = None
    label: int | float | None = None


@dataclasses.dataclass(frozen=True)
class TaggedExample:
    """A sentence of words, each with a tag.

    Attributes:
      id: of the example.
      words: of the sentence, at least one.
      tags: places of the tags in `label_names`, one a word; None if they are not known.
    """

    id: int
    words: tuple[str, ...]
    tags: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer that stands in a context.

    Attributes:
      text: its characters.
      start: where they begin in the context, in characters.
    """

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class QuestionExample:
    """A question about a context that holds its answer, or does not.

    Attributes:
      id: of the example.
      name: the data set's own identifier, by which answers are handed in.
      question: the question.
      context: the passage.
      answers: all answers that count as right; none if there are none in the context, or they are
        not known.
    """

    id: int
    name: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()


AnyExample = TextExample | TaggedExample | QuestionExample


@dataclasses.dataclass(frozen=True)
class TextInfo:
    """Where a data set is from.

    Attributes:
      source: package and version, or the folder.
      licence: as far as it is stated.
      checksums: file -> SHA-256 in hexadecimal.
      counts: numbers of examples by part, and of rows left out by reason.
    """

    source: str
    licence: str = ""
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TextData:
    """A data set in three parts.

    Attributes:
      name: of the data set.
      task: what is asked.
      train: to learn from.
      validation: to select on; held out of the training examples where there is no official part.
      test: to report; never to select on. Labels may be unknown.
      label_names: of classes or tags; empty for the other tasks.
      info: source, licence, checksums, counts.
      others: further parts by name, such as the mismatched ones of MNLI.
    """

    name: str
    task: Task
    train: tuple[AnyExample, ...]
    validation: tuple[AnyExample, ...]
    test: tuple[AnyExample, ...]
    label_names: tuple[str, ...]
    info: TextInfo
    others: Mapping[str, tuple[AnyExample, ...]] = dataclasses.field(
        default_factory=lambda: types.MappingProxyType({})
    )

    @property
    def num_outputs(self) -> int:
        """Outputs that a head needs: one a class or tag, 1 for a regression, 2 for answer spans.

        0 for plain text: what it is used for says what there is to predict.
        """
        if self.task in ("question_answering", "language_modelling"):
            return 2 if self.task == "question_answering" else 0
        return len(self.label_names) or 1

    @property
    def parts(self) -> dict[str, tuple[AnyExample, ...]]:
        """All parts by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {**named, **self.others}


def text_data(
    name: str,
    task: Task,
    parts: Mapping[str, Sequence[AnyExample]],
    label_names: Sequence[str],
    info: TextInfo,
) -> TextData:
    """A data set of its parts.

    Args:
      name: see `TextData`.
      task: see `TextData`.
      parts: part -> examples; `train`, `validation` and `test`, and any others.
      label_names: see `TextData`.
      info: see `TextData`.
    """
    named = {part: tuple(examples) for part, examples in parts.items()}
    train, validation, test = (named.pop(part) for part in ("train", "validation", "test"))
    return TextData(name, task, train, validation, test, tuple(label_names), info, named)


def hold_out(
    examples: Sequence[TextExample], every: int = 10
) -> tuple[tuple[TextExample, ...], tuple[TextExample, ...]]:
    """Parts that stay and parts that are held out, the same at every call.

    The first of every `every` different texts is held out with all its copies, so that no text is
    on both sides.

    Args:
      examples: in the order of their file.
      every: 10 holds out a tenth.

    Returns:
      Those that stay, and those held out, each in the order given.

    Example:
      >>> rows = [TextExample(i, text) for i, text in enumerate("abcab")]
      >>> [[row.id for row in part] for part in hold_out(rows, every=3)]
      [[1, 2, 4], [0, 3]]
    """
    places: dict[tuple[str, str | None], int] = {}
    for example in examples:
        places.setdefault((example.text, example.pair), len(places))
    held = [places[example.text, example.pair] % every == 0 for example in examples]
    stay = tuple(e for e, is_held in zip(examples, held, strict=True) if not is_held)
    return stay, tuple(e for e, is_held in zip(examples, held, strict=True) if is_held)


def split_every_tenth(
    examples: Sequence[TextExample],
) -> tuple[tuple[TextExample, ...], tuple[TextExample, ...], int]:
    """Training and test examples of a set without official parts.

    Every tenth row from the first on is for the test; rows to train on whose text is in the test
    part are left out.

    Args:
      examples: in the order of their file.

    Returns:
      Training and test examples, and how many were left out.
    """
    test = tuple(examples[::10])
    seen = {(example.text, example.pair) for example in test}
    rest = [example for place, example in enumerate(examples) if place % 10]
    train = tuple(example for example in rest if (example.text, example.pair) not in seen)
    return train, test, len(rest) - len(train)


def unique_texts(examples: Iterable[TextExample]) -> tuple[TextExample, ...]:
    """The examples whose texts occur for the first time.

    Args:
      examples: in the order of their file.
    """
    first: dict[tuple[str, str | None], TextExample] = {}
    for example in examples:
        first.setdefault((example.text, example.pair), example)
    return tuple(first.values())


def count_parts(parts: Mapping[str, Sequence[AnyExample]], **left_out: int) -> dict[str, int]:
    """Counts for `TextInfo`: of all parts, and of what was left out if anything was.

    Args:
      parts: part -> examples.
      **left_out: reason -> rows.
    """
    sizes = {name: len(part) for name, part in parts.items()}
    return sizes | {reason: count for reason, count in left_out.items() if count}


def check_classes(examples: Sequence[TextExample], label_names: Sequence[str], source: str) -> None:
    """Refuse training examples of one class, and warn of classes without any.

    Args:
      examples: to train on.
      label_names: of the classes.
      source: name of the file or data set, for the message.

    Raises:
      ValueError: if there are no examples, or fewer than two classes among them.
    """
    if not examples:
        raise ValueError(f"{source} has no examples; check the file, and what was filtered out")
    counts = collections.Counter(e.label for e in examples if e.label is not None)
    if len(counts) == 1:
        label, count = next(iter(counts.items()))
        raise ValueError(
            f"{source}: all {count} labelled examples are of the class "
            f"{label_names[int(label)]!r}; wanted at least two classes to tell apart"
        )
    missing = [name for place, name in enumerate(label_names) if place not in counts]
    if missing and counts:
        warnings.warn(
            f"{source}: {len(missing)} of {len(label_names)} classes have no example to train on: "
            f"{', '.join(missing[:10])}",
            stacklevel=3,
        )
