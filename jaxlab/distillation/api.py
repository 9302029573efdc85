"""A trained text model, ready for texts.

    from jaxlab import distillation as kd

    model = kd.load("runs/distil")  # or any folder in the form of Hugging Face with its vocabulary
    found = model.predict(["Who wrote Dracula ?", "How tall is the Eiffel Tower ?"])
    found.labels  # ("HUM", "NUM")
    found.probabilities  # (2, 6), in the order of model.label_names

For tags and answers the pieces are there one by one: `tokenize_tagged`, `make_windows`,
`make_eval_batches`, `make_forward`, `predict`, `best_answers`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree
from scipy.special import softmax

from jaxlab.data.texts import TextExample
from jaxlab.distillation.configs import check_label_names
from jaxlab.distillation.data import BUCKETS, BatchConfig, make_eval_batches
from jaxlab.distillation.evaluate import in_order, predict
from jaxlab.distillation.model import TextModel, TextModelConfig
from jaxlab.distillation.rows import tokenize_texts
from jaxlab.distillation.sizes import num_params
from jaxlab.distillation.train import Forward, make_forward
from jaxlab.distillation.vocabularies import check_vocabulary
from jaxlab.distillation.weights import BERT_CONFIG, CONFIG_FILE, load_pretrained
from jaxlab.parallel import DATA_AXIS, make_mesh, place
from jaxlab.text import TextTokenizer, load_tokenizer

CONFIG_FILES = (CONFIG_FILE, BERT_CONFIG)
MODEL = "model"
"""Folder of the student in that of a run."""


class TextPredictions(NamedTuple):
    """What a model says of texts, in their order.

    Attributes:
      logits: of every text; of a regression the numbers themselves.
      probabilities: of the labels; of a regression empty, (texts, 0).
      labels: the most probable of each text; of a regression empty.
    """

    logits: Float[np.ndarray, "texts outputs"]
    probabilities: Float[np.ndarray, "texts labels"]
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
    """A model for classification or regression with its vocabulary.

    Attributes:
      config: sizes, family, head.
      params: on the devices.
      tokenizer: of its vocabulary.
      label_names: of the logits, `LABEL_i` where the file names none; of a regression empty.
      max_length: tokens of a text at most; longer ones are cut, counted and reported.
      batch_size: texts of one step.
      mesh: the devices.
    """

    config: TextModelConfig
    params: PyTree
    tokenizer: TextTokenizer
    label_names: tuple[str, ...]
    max_length: int
    batch_size: int
    mesh: Mesh

    def __repr__(self) -> str:
        """What the model is, without its numbers."""
        encoder = self.config.encoder
        labels = f", labels {', '.join(self.label_names)}" if self.label_names else ""
        return (
            f"LoadedModel({self.config.family}, {encoder.num_layers} layers of {encoder.width}, "
            f"{num_params(self.config):,} parameters, {self.config.task}{labels})"
        )

    def predict(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> TextPredictions:
        """What the model says of texts, or of pairs of texts.

        Args:
          texts: the texts, or the first of each pair.
          pairs: the second of each pair.

        Raises:
          TypeError: if a single string is given in place of several, or something that is no text.
          ValueError: if there are no texts, or not as many second ones.
        """
        if isinstance(texts, str) or isinstance(pairs, str):
            raise TypeError(f"predict takes a list of texts; got the text {texts!r}: write [text]")
        texts = _checked(texts, "texts")
        seconds = [None] * len(texts) if pairs is None else _checked(pairs, "pairs")
        if not texts or len(seconds) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(seconds)} second texts; give one or more"
                             " texts, and none or as many second ones")  # fmt: skip
        examples = [
            TextExample(place, text, second)
            for place, (text, second) in enumerate(zip(texts, seconds, strict=True))
        ]
        rows = tokenize_texts(examples, self.tokenizer, self.max_length)
        lengths = (*(b for b in BUCKETS if b < self.max_length), self.max_length)
        devices = self.mesh.shape[DATA_AXIS]
        size = -(-self.batch_size // devices) * devices
        batches = make_eval_batches(
            rows, BatchConfig(self.max_length, lengths, eval_batch_size=size)
        )
        found = predict(self._forward, self.params, batches, self.mesh)
        logits = in_order(found, np.arange(len(examples))).logits
        if not self.label_names:
            return TextPredictions(logits, logits[:, :0], ())
        probabilities = softmax(logits, axis=1)
        chosen = tuple(self.label_names[place] for place in logits.argmax(axis=1))
        return TextPredictions(logits, probabilities, chosen)

    @functools.cached_property
    def _forward(self) -> Forward:
        return make_forward(TextModel(self.config))


def _checked(texts: Iterable[str], name: str) -> list[str]:
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(
                f"{name}[{number}] is {text!r}; wanted a str. Of two texts that belong together, "
                "the first stands in texts and the second in pairs"
            )
    return found


def load(
    folder: str | os.PathLike[str],
    *,
    vocabulary: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> LoadedModel:
    """A model for classification or regression, ready for texts.

    Args:
      folder: of a run (then its student), or in the form of Hugging Face.
      vocabulary: folder of the tokenizer; None takes that of the model.
      max_length: tokens of a text at most; None takes what the model has positions for.
      batch_size: texts of one step.
      mesh: devices; all of this process by default.

    Raises:
      FileNotFoundError: if there is no model, or no vocabulary.
      ValueError: if its head is of another task, longer texts are asked for than it takes, or the
        vocabulary has more entries than it has embeddings.
    """
    folder = Path(folder).expanduser()
    if (folder / MODEL).is_dir():
        folder = folder / MODEL
    elif folder.is_dir() and not any((folder / name).is_file() for name in CONFIG_FILES):
        raise FileNotFoundError(
            f"{folder} has no {MODEL}/, which a run leaves at its end, and no config.json of a "
            "model; give the command of the run again to finish it, or another folder"
        )
    found = load_pretrained(folder)
    config, longest = found.config, found.config.encoder.max_tokens
    if config.task not in ("classification", "regression"):
        kind = "has no head of a task" if config.task == "none" else f"is for {config.task!r}"
        raise ValueError(
            f"the model in {folder} {kind}; load is for classification and regression, "
            "load_pretrained for any"
        )
    if max_length is not None and not 3 <= max_length <= longest:
        raise ValueError(f"max_length={max_length} is not between 3 and the model's {longest}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive")
    is_regression = config.task == "regression"
    tokenizer = load_tokenizer(folder if vocabulary is None else Path(vocabulary))
    check_vocabulary(tokenizer, config.encoder.vocab_size, str(folder))
    mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    return LoadedModel(
        config=config,
        params=place(mesh, found.params),
        tokenizer=tokenizer,
        label_names=() if is_regression else check_label_names(config, found.label_names),
        max_length=longest if max_length is None else max_length,
        batch_size=batch_size,
        mesh=mesh,
    )
