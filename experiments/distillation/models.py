"""The networks of a run: teachers out of packages and folders, students cut from them."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from experiments.distillation.settings import NetworksConfig, StudentConfig
from jaxlab import distillation as kd
from jaxlab.distillation import published
from jaxlab.distillation.model import EncoderConfig
from jaxlab.distillation.weights import BERT_CONFIG
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.mobilebert import MobileBertConfig

logger = logging.getLogger(__name__)

PACKAGED: dict[str, Callable[[], Path]] = {
    "minilm_l6": published.minilm_l6,
    "minilm_l3": published.minilm_l3,
    "mpnet_base": published.mpnet_base,
}
"""Name of weights out of a package -> their folder."""


STUDENT_DRAW = 1
"""Folded into the seed of what is drawn of a student."""


class Network(NamedTuple):
    """A network and its parameters.

    Attributes:
      config: sizes, family, head.
      params: on the host.
      label_names: of its logits, where its file names them.
      drawn: parameters that its file did not have; () once it has learnt.
      fit_dense: projections that its file has beside it, as TinyBERT's do.
    """

    config: kd.TextModelConfig
    params: PyTree
    label_names: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    fit_dense: tuple[dict[str, np.ndarray], ...] = ()

    @property
    def shape(self) -> kd.Shape:
        """What an objective has to know of it."""
        return self.config.shape


class OwnVocabulary(NamedTuple):
    """The vocabulary of a student that differs from that of what it is cut from.

    Attributes:
      size: number of entries.
      pad_id: id of padding.
      teacher_ids: the other's id of every entry, -1 where it has none.
    """

    size: int
    pad_id: int
    teacher_ids: np.ndarray


def weights_folder(weights: str, setting: str = "weights") -> Path:
    """Where weights lie: those of a package are fetched if they are not there.

    Args:
      weights: a name of `PACKAGED`, or a folder.
      setting: that names them, for the message.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    if weights in PACKAGED:
        return PACKAGED[weights]()
    folder = Path(weights).expanduser()
    if not any((folder / name).is_file() for name in ("config.json", BERT_CONFIG)):
        raise FileNotFoundError(
            f"{setting}={weights!r} is no folder with a config.json or {BERT_CONFIG}, and no name "
            f"of packaged weights ({', '.join(PACKAGED)}); give the folder of a model that is on "
            "this machine, as none is fetched from a hub"
        )
    return folder


def open_network(
    weights: str,
    *,
    task: str,
    num_labels: int,
    pooling: str = "auto",
    key: jax.Array | None = None,
    fresh_head: bool = False,
) -> Network:
    """Weights with the head of a task, which is drawn where the file has none.

    Args:
      weights: a name of `PACKAGED`, or a folder.
      task: see `TextModelConfig`.
      num_labels: likewise.
      pooling: `first`, `mean`, or `auto`: the mean for packaged weights, else as the file says.
      key: of a new head; None takes that of seed 0.
      fresh_head: draw the head even where the file has one.

    Raises:
      FileNotFoundError: if the weights are not there.
      ValueError: if they do not fit.
    """
    folder = weights_folder(weights)
    chosen = pooling
    if pooling == "auto":
        chosen = (
            "mean" if weights in PACKAGED and task in ("classification", "regression") else None
        )
    found = kd.load_pretrained(
        folder,
        task=task,
        num_labels=num_labels,
        pooling=chosen,
        key=jax.random.key(0) if key is None else key,
        fresh_head=fresh_head,
    )
    if found.loaded.fresh:
        logger.info("%s: a new head is drawn (%s)", weights, ", ".join(found.loaded.fresh))
    return Network(
        found.config, found.params, found.label_names, found.loaded.fresh, found.fit_dense
    )


def make_student(
    config: NetworksConfig, teacher: Network, *, seed: int, vocabulary: OwnVocabulary | None = None
) -> Network:
    """The student before it has learnt anything.

    Args:
      config: the settings of the run.
      teacher: what it is cut from, where the settings say so.
      seed: of what is drawn.
      vocabulary: of the student, where it is another than that of what it is cut from.

    Returns:
      The network; names of its labels are those of its head, if it brings one, or the teacher's.

    Raises:
      ValueError: if it cannot be cut from the teacher.
    """
    student = config.student
    # Not the draw of the teacher: with its head to begin with, matching hidden states is enough.
    key = jax.random.fold_in(jax.random.key(seed), STUDENT_DRAW)
    head = {"task": teacher.config.task, "num_labels": teacher.config.num_labels}
    source, names = teacher, teacher.label_names
    if student.weights not in ("teacher", "random"):
        source = open_network(student.weights, key=key, fresh_head=not student.copy_head, **head)
        sizes = (student.num_layers, student.width, student.num_heads, student.mlp_width)
        if all(size is None for size in sizes) and vocabulary is None:
            return source
        names = source.label_names
    sizes = student_config(student, source.config, vocabulary)
    check_sizes(student, sizes.encoder, source.config.encoder)
    drawn = kd.init_params(sizes, key)
    if student.weights == "random":
        return Network(sizes, jax.device_get(drawn), names)
    heads = ("head", "lm_head") if student.copy_head else ()
    started = kd.start_student(
        drawn,
        source.params,
        kd.StudentStart(
            start_layers(student.layers), ("embeddings", "pooler", *heads), student.cut_heads
        ),
        heads=kd.HeadCounts(source.config.encoder.num_heads, sizes.encoder.num_heads),
        vocabulary=None if vocabulary is None else vocabulary.teacher_ids,
        skipped_positions=source.config.encoder.max_positions - sizes.encoder.max_positions,
    )
    was, now = source.config.encoder, sizes.encoder
    is_resized = (was.num_layers, was.width) != (now.num_layers, now.width)
    # Those of a teacher lead to its own teacher.
    is_fitted = student.weights != "teacher" and not is_resized
    fitted = source.fit_dense if is_fitted else ()
    return Network(sizes, jax.device_get(started.params), names, fit_dense=fitted)


def student_config(
    student: StudentConfig, source: kd.TextModelConfig, vocabulary: OwnVocabulary | None = None
) -> kd.TextModelConfig:
    """Sizes, family and head of a student.

    Args:
      student: the settings.
      source: of its teacher, or of what else it is cut from.
      vocabulary: of the student, if it has one of its own.

    Raises:
      ValueError: if the heads do not divide the width.
    """
    base = source
    if student.sizes:
        named, theirs = kd.SIZES[student.sizes], source.encoder
        base = dataclasses.replace(
            named,
            encoder=dataclasses.replace(
                named.encoder, vocab_size=theirs.vocab_size, pad_id=theirs.pad_id
            ),
            task=source.task,
            num_labels=source.num_labels,
            pooling=source.pooling,
        )
    return dataclasses.replace(base, encoder=student_sizes(student, base.encoder, vocabulary))


def student_sizes(
    student: StudentConfig, source: EncoderConfig, vocabulary: OwnVocabulary | None = None
) -> EncoderConfig:
    """The sizes of a student: those of the settings, else of the source.

    A student of its teacher gets half of the layers.

    Args:
      student: the settings.
      source: sizes of what it is cut from, or those that the settings name.
      vocabulary: of the student, if it has one of its own.

    Raises:
      ValueError: if the heads do not divide the width.
    """
    width, heads = student.width or source.width, student.num_heads or source.num_heads
    split = source.bottleneck_width if isinstance(source, MobileBertConfig) else width
    if split % heads:
        divisors = [n for n in range(1, split + 1) if split % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - heads))[:3])
        raise ValueError(
            f"student.num_heads={heads} does not divide the width {split}; use such as "
            f"{', '.join(map(str, near))}"
        )
    is_whole = student.sizes or student.weights not in ("teacher", "random")
    layers = source.num_layers if is_whole else max(source.num_layers // 2, 1)
    sizes: dict[str, Any] = {
        "width": width,
        "num_heads": heads,
        "mlp_width": student.mlp_width
        or (source.mlp_width if split == source.width or width == source.width else 4 * width),
        "num_layers": student.num_layers or layers,
    }
    if isinstance(source, MobileBertConfig):
        sizes["embedding_width"] = min(source.embedding_width, width)
    if vocabulary is not None:
        sizes |= {"vocab_size": vocabulary.size, "pad_id": vocabulary.pad_id}
        if isinstance(source, BertConfig) and source.positions == "after_pad":
            # Positions begin behind the id of padding: as many tokens stay possible.
            sizes["max_positions"] = source.max_tokens + vocabulary.pad_id + 1
    return dataclasses.replace(source, **sizes)


def check_sizes(student: StudentConfig, sizes: EncoderConfig, source: EncoderConfig) -> None:
    """Refuse a student that is larger than what it is cut from.

    Args:
      student: the settings.
      sizes: of the student.
      source: of what it is cut from.

    Raises:
      ValueError: naming the settings.
    """
    problems = [
        f"student.{name}={getattr(sizes, name)} is more than the {getattr(source, name)} of the "
        "weights that the student is cut from; give as many at most, or student.weights='random'"
        for name in ("num_layers", "width")
        if getattr(sizes, name) > getattr(source, name)
    ]
    if problems and student.weights != "random":
        raise ValueError("; ".join(problems))


def start_layers(layers: str) -> str | tuple[int, ...]:
    """The teacher's layers that a student starts from, by name or by number.

    Args:
      layers: of the settings.

    Raises:
      ValueError: if a number cannot be read.
    """
    parts = layers.split(",")
    if not parts[0].strip().isdecimal():
        return layers
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise ValueError(
            f"student.layers={layers!r}: write a strategy, or numbers with commas, such as 0,2,4"
        ) from None


def make_model(config: NetworksConfig, network: Network) -> kd.TextModel:
    """The module of a network as the settings have it computed.

    Args:
      config: the settings of the run.
      network: of these sizes.
    """
    return kd.TextModel(
        network.config,
        remat=config.remat,
        scan=config.scan,
        implementation=config.attention,
        dtype=config.dtype,
    )
