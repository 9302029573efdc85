"""What a run learns: texts of a data set as batches of token ids."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.distillation.models import Network, weights_folder
from experiments.distillation.settings import NetworksConfig, StageConfig, TextsConfig
from jaxlab import distillation as kd
from jaxlab.data.texts import Columns, TextData, load_text_data
from jaxlab.distillation.answers import Windows, make_windows
from jaxlab.distillation.compared import Task
from jaxlab.distillation.data import (
    BatchConfig,
    make_eval_batches,
    make_train_batches,
    steps_per_epoch,
)
from jaxlab.distillation.masking import MaskingConfig
from jaxlab.distillation.rows import TokenRows, tokenize_tagged, tokenize_texts
from jaxlab.distillation.vocabularies import map_labels
from jaxlab.text import TextTokenizer, load_tokenizer

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 128
STRIDE = 128  # pieces between the beginnings of two windows over a context
UNSCORED = ("mlm", "none")


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The data of a run.

    Attributes:
      data: the examples.
      config: settings of the texts.
      task: what models put out, as `TextModelConfig` names it.
      tokenizer: of teacher and student.
      tokenizer_folder: where it is from.
    """

    data: TextData
    config: TextsConfig
    task: Task
    tokenizer: TextTokenizer
    tokenizer_folder: Path

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.data.name

    @property
    def num_labels(self) -> int:
        """Outputs that a head needs."""
        return self.data.num_outputs

    @property
    def max_length(self) -> int:
        """Tokens of a text at most."""
        return self.config.max_length

    @property
    def is_scored(self) -> bool:
        """Whether there is anything that predictions are compared with."""
        return self.task not in UNSCORED

    @property
    def tokenizer_identity(self) -> str:
        """What tells this tokenizer from others: a checksum of its vocabulary, and its form."""
        entries = "\n".join(self.tokenizer.vocabulary).encode()
        return f"{self.tokenizer.form}, {hashlib.sha256(entries).hexdigest()}"

    @property
    def reported_part(self) -> str:
        """The test set, or the validation set where no label of the former is known."""
        return "test" if self.data.test and self.rows("test").has_label.any() else "validation"

    def with_fraction(self, fraction: float | None) -> "Problem":
        """The data with another share of the training examples in use.

        Args:
          fraction: the share; None leaves it.
        """
        if fraction is None:
            return self
        return dataclasses.replace(self, config=dataclasses.replace(self.config, fraction=fraction))

    def examples(self, part: str) -> tuple[Any, ...]:
        """The examples of a part, of the training texts the share that is used."""
        found = self.data.parts[part]
        if part != "train":
            return found
        if self.config.with_validation:
            found = (*found, *self.data.validation)
        if self.config.fraction == 1.0:
            return found
        number = max(1, round(len(found) * self.config.fraction))
        chosen = np.random.default_rng(self.config.seed).permutation(len(found))[:number]
        return tuple(found[i] for i in sorted(chosen))

    @functools.cache  # noqa: B019 (a problem lives as long as its run)
    def windows(self, part: str) -> Windows:
        """Of question answering: the questions of a part with windows over their contexts."""
        return make_windows(self.examples(part), self.tokenizer, self.max_length, STRIDE)

    @functools.cache  # noqa: B019
    def rows(self, part: str) -> TokenRows:
        """The examples of a part as token ids."""
        if self.task == "span":
            return self.windows(part).rows
        return self.tokenize(self.examples(part), self.max_length)

    def tokenize(self, examples: Sequence[Any], max_length: int) -> TokenRows:
        """Examples as token ids, of question answering windows.

        Args:
          examples: of the data.
          max_length: tokens of a text at most.
        """
        if self.task == "span":
            return make_windows(examples, self.tokenizer, max_length, STRIDE).rows
        if self.task == "tagging":
            return tokenize_tagged(examples, self.tokenizer, max_length)
        return tokenize_texts(
            examples, self.tokenizer, max_length, is_regression=self.task == "regression"
        )

    def _config(self, batch_size: int) -> BatchConfig:
        devices = jax.device_count()  # over which the rows of a batch have to divide
        lower = (length for length in self.config.buckets if length < self.max_length)
        return BatchConfig(
            self.max_length,
            (*sorted(set(lower)), self.max_length),
            global_batch_size=batch_size,
            eval_batch_size=-(-EVALUATION_BATCH // devices) * devices,
        )

    @property
    def _masking(self) -> MaskingConfig | None:
        if self.task != "mlm":
            return None
        config = self.config
        return MaskingConfig(
            config.masking, smoothing=config.masking_power, whole_words=config.whole_words
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of one pass over the training texts."""
        return steps_per_epoch(self.rows("train"), self._config(batch_size))

    def training(self, stage: StageConfig) -> Callable[[int], Iterator[dict[str, Any]]]:
        """From the number of updates done to the batches from there on."""
        return functools.partial(self._training, self._config(stage.global_batch_size), stage.seed)

    def _training(
        self, config: BatchConfig, seed: int, start_step: int
    ) -> Iterator[dict[str, Any]]:
        return make_train_batches(
            self.rows("train"), config, seed=seed, start_step=start_step, masking=self._masking
        )

    def batches(self, part: str) -> Iterable[dict[str, Any]]:
        """Every example of a part once."""
        config = self._config(EVALUATION_BATCH)
        return make_eval_batches(self.rows(part), config, masking=self._masking)

    def describe(self) -> None:
        """Say what there is to learn."""
        parts = ", ".join(self._describe_part(part) for part in self.data.parts)
        logger.info(
            "%s (%s): %s with %d outputs; %s texts",
            self.name, self.data.info.source, self.data.task, self.num_labels, parts,
        )  # fmt: skip

    def _describe_part(self, part: str) -> str:
        used, there = len(self.examples(part)), len(self.data.parts[part])
        if part == "train" and self.config.with_validation:
            there += len(self.data.validation)
        share = f" (of {there}: data.fraction={self.config.fraction:g})" if used < there else ""
        return f"{used} {part}{share}"

    def align(self, network: Network, source: str = "") -> Network:
        """The network with its outputs in the order of the data's labels, by their names.

        Args:
          network: of this task.
          source: where its weights are from; a head of theirs without names is warned of.
        """
        names = self.data.label_names
        if not names or not network.label_names:
            is_drawn = any(path.startswith("head/") for path in network.drawn)
            if names and source and not is_drawn:
                logger.warning(
                    "%s has a head and no names of its labels: its outputs are taken to be %s, in "
                    "this order; if that is wrong, give the right one as id2label in config.json",
                    source, ", ".join(names[:10]) + (", ..." if len(names) > 10 else ""),
                )  # fmt: skip
            return network._replace(label_names=names)
        return reorder_labels(network, names)


def reorder_labels(network: Network, names: tuple[str, ...]) -> Network:
    """A network whose logits come in the order of other names of the same labels.

    Args:
      network: with a head.
      names: of the labels, in the order wanted.

    Raises:
      ValueError: naming the labels that only one side has.
    """
    order = np.array(map_labels(names, network.label_names))
    head = dict(network.params["head"])
    head["out"] = {name: np.asarray(leaf)[..., order] for name, leaf in head["out"].items()}
    return network._replace(params={**network.params, "head": head}, label_names=names)


def load_problem(config: NetworksConfig, stages: Iterable[StageConfig | None] = ()) -> Problem:
    """The data of a run and the tokenizer of its teacher.

    Args:
      config: the settings of the run.
      stages: of plain text: words are to be predicted if one of them compares logits or labels.

    Raises:
      FileNotFoundError: if files are missing.
      ValueError: if the data cannot be read.
    """
    folder = weights_folder(config.teacher.weights.partition(",")[0], "teacher.weights")
    texts = config.data
    options: dict[str, Any] = {}
    if texts.name == "tables":
        columns = Columns(texts.text, texts.pair or None, texts.label)
        options = {"columns": columns, "is_regression": texts.regression}
    if texts.name == "corpus":
        options = {"max_words": texts.max_words}
    data = load_text_data(texts.name, texts.folder or None, **options)
    return Problem(data, texts, task_of(data, stages), load_tokenizer(folder), folder)


def task_of(data: TextData, stages: Iterable[StageConfig | None]) -> Task:
    """What models are to put out for a data set.

    Args:
      data: the examples.
      stages: see `load_problem`.
    """
    if data.task == "question_answering":
        return "span"
    if data.task != "language_modelling":
        return data.task
    objectives = [stage.objective for stage in stages if stage is not None]
    predicts = any(o.response.is_used or o.hard.weight for o in objectives)
    return "mlm" if predicts else "none"


def save_network(folder: Path, network: Network, problem: Problem) -> None:
    """Write a network in the form of Hugging Face, with its vocabulary.

    Args:
      folder: where to.
      network: with parameters on the host.
      problem: gives vocabulary and names of labels.
    """
    names, vocabulary = problem.data.label_names, problem.tokenizer_folder
    kd.save_pretrained(
        folder, network.params, network.config, label_names=names, vocabulary=vocabulary
    )
