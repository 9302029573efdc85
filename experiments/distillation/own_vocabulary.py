"""A student that reads texts in a vocabulary of its own."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.models import OwnVocabulary, weights_folder
from experiments.distillation.settings import NetworksConfig, StudentConfig
from experiments.distillation.tasks import Problem
from jaxlab.distillation.data import (
    BatchConfig,
    make_eval_batches,
    make_train_batches,
    steps_per_epoch,
)
from jaxlab.distillation.initializers import shared_vocabulary
from jaxlab.distillation.rows import TokenRows
from jaxlab.distillation.weights import tokenizer_files
from jaxlab.text import TextTokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class TwoVocabularies(Problem):
    """The data of a run in the tokens of the teacher, and in those of the student beside them.

    Attributes:
      student_tokenizer: of the student.
      student_folder: where it is from.
    """

    student_tokenizer: TextTokenizer
    student_folder: Path

    @functools.cache  # noqa: B019 (a problem lives as long as its run)
    def student_rows(self, part: str) -> TokenRows:
        """The examples of a part as token ids of the student.

        Raises:
          ValueError: if models put out words, or places in a context.
        """
        if self.task in ("mlm", "span"):
            raise ValueError(
                f"{self.task} is of the tokens of one vocabulary; the student's has "
                f"{self.student_tokenizer.vocab_size} entries, the teacher's "
                f"{self.tokenizer.vocab_size}: give both the same"
            )
        return in_student_words(self).tokenize(self.examples(part), self.max_length)

    @functools.cached_property
    def is_aligned(self) -> bool:
        """Whether every token of the student stands where the teacher's does, in all texts."""
        own, theirs = self.student_tokenizer, self.tokenizer
        ids = shared_vocabulary(own.vocabulary, theirs.vocabulary)
        parts = [part for part, examples in self.data.parts.items() if examples]
        pairs = ((self.student_rows(part), self.rows(part)) for part in parts)
        return all(
            np.array_equal(here.ends, there.ends) and np.array_equal(ids[here.ids], there.ids)
            for here, there in pairs
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of one pass over the training texts."""
        config = self._config(batch_size)
        return steps_per_epoch(self.rows("train"), config, self.student_rows("train"))

    def _training(
        self, config: BatchConfig, seed: int, start_step: int
    ) -> Iterator[dict[str, Any]]:
        return make_train_batches(
            self.rows("train"),
            config,
            seed=seed,
            start_step=start_step,
            student_rows=self.student_rows("train"),
        )

    def batches(self, part: str) -> Iterable[dict[str, Any]]:
        """Every example of a part once."""
        config = self._config(1)
        return make_eval_batches(self.rows(part), config, student_rows=self.student_rows(part))


def with_student_vocabulary(problem: Problem, student: StudentConfig) -> Problem:
    """The data with the tokens of a student that has a vocabulary of its own; else as it is.

    Args:
      problem: in the teacher's tokens.
      student: its settings.

    Raises:
      FileNotFoundError: if the folder of the vocabulary has no tokenizer.
    """
    if student.vocabulary:
        folder = vocabulary_folder(student.vocabulary)
        own = load_tokenizer(folder)
    elif student.weights in ("teacher", "random"):
        return problem
    else:
        folder = weights_folder(student.weights, "student.weights")
        own = tokenizer_of(folder)
    if own is None or _same(own, problem.tokenizer):
        return problem
    fields = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)}
    return TwoVocabularies(**fields, student_tokenizer=own, student_folder=folder)


def vocabulary_folder(vocabulary: str) -> Path:
    """Where the tokenizer of a student lies: a folder that has one, or that of weights.

    Args:
      vocabulary: `student.vocabulary`.

    Raises:
      FileNotFoundError: if it is neither.
    """
    folder = Path(vocabulary).expanduser()
    if folder.is_dir() and tokenizer_files(folder):
        return folder
    return weights_folder(vocabulary, "student.vocabulary")


def student_vocabulary(config: NetworksConfig, problem: Problem) -> OwnVocabulary | None:
    """What a student has to know that is cut from a network of another vocabulary.

    Args:
      config: the settings of the run.
      problem: with the tokenizers.

    Raises:
      ValueError: if no piece is shared.
    """
    student = config.student
    own = problem.student_tokenizer if isinstance(problem, TwoVocabularies) else problem.tokenizer
    cut_from = problem.tokenizer
    if student.weights not in ("teacher", "random"):
        if not student.vocabulary:
            return None
        cut_from = load_tokenizer(weights_folder(student.weights, "student.weights"))
    if own.vocabulary == cut_from.vocabulary:
        return None
    ids = shared_vocabulary(own.vocabulary, cut_from.vocabulary)
    return OwnVocabulary(own.vocab_size, own.pad_id, ids)


def in_words_of(problem: Problem, folder: Path) -> Problem:
    """The data in the tokens of a model, where its folder has another vocabulary.

    Args:
      problem: in the tokens of a run's teacher.
      folder: of the model.
    """
    own = tokenizer_of(folder)
    if own is None or _same(own, problem.tokenizer):
        return problem
    return dataclasses.replace(problem, tokenizer=own, tokenizer_folder=folder)


def in_student_words(problem: Problem) -> Problem:
    """The data with the student's tokenizer as the only one, to be saved with the student.

    Args:
      problem: of the run.
    """
    if not isinstance(problem, TwoVocabularies):
        return problem
    return dataclasses.replace(
        problem, tokenizer=problem.student_tokenizer, tokenizer_folder=problem.student_folder
    )


def tokenizer_of(folder: Path) -> TextTokenizer | None:
    """The tokenizer of a model, if its folder has one.

    Args:
      folder: of the model.
    """
    if not tokenizer_files(folder):
        return None
    return load_tokenizer(folder)


def _same(first: TextTokenizer, second: TextTokenizer) -> bool:
    return (first.vocabulary, first.form) == (second.vocabulary, second.form)
