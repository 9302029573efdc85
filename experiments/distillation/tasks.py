"""What a run learns: texts of a data set as batches of token ids, and how it is scored."""

import dataclasses
import functools
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.distillation.models import Network, weights_folder
from experiments.distillation.settings import NetworksConfig, StageConfig, TextsConfig
from jaxlab import distillation as kd
from jaxlab.data.texts import GLUE, Columns, TextData, TextExample, load_text_data
from jaxlab.distillation.batches import BatchConfig, Row, TokenBatches
from jaxlab.text import TextTokenizer, load_tokenizer

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
EVALUATION_BATCH = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The data of a run.

    Attributes:
      data: the examples.
      config: settings of the texts.
      tokenizer: of teacher and student.
      tokenizer_folder: where it is from.
    """

    data: TextData
    config: TextsConfig
    tokenizer: TextTokenizer
    tokenizer_folder: Path

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.data.name

    @property
    def task(self) -> Any:
        """What models put out, as `TextModelConfig` names it."""
        return {"question_answering": "span", "language_modelling": "mlm"}.get(
            self.data.task, self.data.task
        )

    @property
    def num_labels(self) -> int:
        """Outputs that a head needs."""
        return self.data.num_outputs

    @property
    def max_length(self) -> int:
        """Tokens of a text at most."""
        return self.config.max_length

    @property
    def glue_metrics(self) -> bool:
        """Whether GLUE says what the task is scored by."""
        return self.name in GLUE

    @property
    def tokenizer_identity(self) -> str:
        """What tells this tokenizer from others: a checksum of its vocabulary, and its form."""
        entries = "\n".join(self.tokenizer.vocabulary).encode()
        return f"{self.tokenizer.form}, {hashlib.sha256(entries).hexdigest()}"

    @property
    def reported_part(self) -> str:
        """The test set, or the validation set where no label of the former is known."""
        known = any(example.label is not None for example in self.examples("test"))
        return "test" if known else "validation"

    def examples(self, part: str) -> tuple[Any, ...]:
        """The examples of a part, of the training texts the share that is used."""
        found = self.data.parts[part]
        if part != "train" or self.config.fraction == 1.0:
            return found
        number = max(1, round(len(found) * self.config.fraction))
        chosen = np.random.default_rng(self.config.seed).permutation(len(found))[:number]
        return tuple(found[i] for i in sorted(chosen))

    @functools.cache  # noqa: B019 (a problem lives as long as its run)
    def _rows(self, part: str) -> tuple[Row, ...]:
        return tuple(encode_rows(self.examples(part), self.tokenizer, self.max_length, part))

    def _batches(self, part: str, batch_size: int) -> TokenBatches:
        lower = (length for length in self.config.buckets if length < self.max_length)
        buckets = (*sorted(set(lower)), self.max_length)
        label = "number" if self.task == "regression" else "class"
        config = BatchConfig(batch_size, buckets, self.tokenizer.pad_id, label)
        return TokenBatches(self._rows(part), config)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of one pass over the training texts."""
        return self._batches("train", batch_size).steps_per_epoch

    def training(self, stage: StageConfig) -> Callable[[int], Iterator[dict[str, Any]]]:
        """From the number of updates done to the batches from there on."""
        batches = self._batches("train", stage.global_batch_size)
        return lambda start_step: batches.training(start_step, stage.seed)

    def batches(self, part: str) -> Iterable[dict[str, Any]]:
        """Every example of a part once."""
        return self._batches(part, EVALUATION_BATCH).evaluation()

    def describe(self) -> None:
        """Say what there is to learn."""
        parts = ", ".join(f"{len(self.examples(p))} {p}" for p in self.data.parts)
        logger.info(
            "%s (%s): %s with %d outputs; %s texts",
            self.name, self.data.info.source, self.data.task, self.num_labels, parts,
        )  # fmt: skip

    def align(self, network: Network) -> Network:
        """The network with its outputs in the order of the data's labels, by their names."""
        if not network.label_names or network.label_names == self.data.label_names:
            return network._replace(label_names=self.data.label_names)
        return reorder_labels(network, self.data.label_names)


def reorder_labels(network: Network, names: tuple[str, ...]) -> Network:
    """A network whose logits come in the order of other names of the same labels.

    Args:
      network: with a head.
      names: of the labels, in the order wanted.

    Raises:
      ValueError: naming the labels that only one side has.
    """
    have, want = set(network.label_names), set(names)
    if have != want or len(names) != len(network.label_names):
        raise ValueError(
            f"the model has other labels than the data: only the model has "
            f"{sorted(have - want)[:10]}, only the data {sorted(want - have)[:10]}; rename them in "
            "its config.json (id2label), or draw a new head"
        )
    order = np.array([network.label_names.index(name) for name in names])
    head = dict(network.params["head"])
    last = "out" if "out" in head else next(iter(head))
    head[last] = {name: np.asarray(leaf)[..., order] for name, leaf in head[last].items()}
    return network._replace(params={**network.params, "head": head}, label_names=names)


def load_problem(config: NetworksConfig) -> Problem:
    """The data of a run and the tokenizer of its teacher.

    Args:
      config: the settings of the run.

    Raises:
      FileNotFoundError: if files are missing.
      ValueError: if the data cannot be read.
    """
    folder = weights_folder(config.teacher.weights)
    texts = config.data
    options: dict[str, Any] = {}
    if texts.name == "tables":
        columns = Columns(texts.text, texts.pair or None, texts.label)
        options = {"columns": columns, "is_regression": texts.regression}
    data = load_text_data(texts.name, texts.folder or None, **options)
    return Problem(data, config.data, load_tokenizer(folder), folder)


def encode_rows(
    examples: Iterable[TextExample], tokenizer: TextTokenizer, max_length: int, part: str
) -> Iterator[Row]:
    """Texts as rows of token ids.

    Args:
      examples: texts, or pairs of them.
      tokenizer: of the models.
      max_length: tokens at which texts are cut.
      part: what to call them when texts were cut.
    """
    number = cut = 0
    for example in examples:
        encoded = tokenizer.encode(example.text, example.pair, max_length)
        number, cut = number + 1, cut + encoded.truncated
        yield Row(example.id, encoded.ids, encoded.types, example.label)
    if cut:
        logger.info("%s: %d of %d texts were cut at %d tokens", part, cut, number, max_length)


def save_network(folder: Path, network: Network, problem: Problem) -> None:
    """Write a network in the form of Hugging Face, with its vocabulary.

    Args:
      folder: where to.
      network: with parameters on the host.
      problem: gives vocabulary and names of labels.
    """
    kd.save_pretrained(folder, network.params, network.config, label_names=problem.data.label_names)
    for name in TOKENIZER_FILES:
        if (problem.tokenizer_folder / name).is_file():
            shutil.copyfile(problem.tokenizer_folder / name, folder / name)
