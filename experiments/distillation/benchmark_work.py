"""What the benchmarks of distillation compute: models of given sizes, a batch, an objective."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlab.distillation.cached_features import PREFIX
from jaxlab.distillation.knowledge import Features

CLASSES, TYPES = 3, 2
MAX_LENGTH = 512
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.01, 1.0
TEMPERATURE = 8.0
NUM_STEPS = 10**6
DEVICES = {"cpu": "cpu", "gpu": "cuda"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a BERT.

    Attributes:
      num_layers: transformer blocks.
      width: of the hidden states.
      num_heads: attention heads.
      mlp_width: of the feed-forward layers.
    """

    num_layers: int
    width: int
    num_heads: int
    mlp_width: int


@dataclasses.dataclass(frozen=True)
class Work:
    """What is timed, and how.

    Attributes:
      teacher: its sizes.
      student: its sizes; the width is the teacher's, so that nothing is projected.
      vocab_size: tokens.
      batch_size: texts of a batch.
      length: tokens of a text, padding included.
      rounds: timed runs, of which the median counts.
      threads: processors of each process; 0 leaves all.
      device: `cpu` or `gpu`.
      dtype: of the computation (ours).
      dropout: rate of the student while it is timed.
    """

    teacher: Sizes
    student: Sizes
    vocab_size: int = 30522
    batch_size: int = 32
    length: int = 64
    rounds: int = 5
    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check that the work can be done.

        Raises:
          ValueError: if widths differ, layers do not divide, or texts are too long.
        """
        teacher, student = self.teacher, self.student
        problems = []
        if teacher.width != student.width:
            problems.append(f"widths {teacher.width} and {student.width} differ; take one")
        if teacher.num_layers % student.num_layers:
            problems.append(
                f"{student.num_layers} layers do not divide the teacher's {teacher.num_layers}"
            )
        if self.length > MAX_LENGTH:
            problems.append(f"length={self.length} is more than {MAX_LENGTH}")
        if problems:
            raise ValueError("teacher and student: " + "; ".join(problems))


def textbrewer_matches(work: Work) -> list[dict[str, Any]]:
    """Hidden states and their similarities, embeddings included, as TextBrewer writes it.

    Args:
      work: names the layers.
    """
    step = work.teacher.num_layers // work.student.num_layers
    pairs = [(i * step, i) for i in range(work.student.num_layers + 1)]
    one = [{"layer_T": t, "layer_S": s, "loss": "hidden_mse"} for t, s in pairs]
    two = [{"layer_T": [t, t], "layer_S": [s, s], "loss": "nst"} for t, s in pairs]
    return [{**match, "feature": "hidden", "weight": 1} for match in one + two]


def model_config(sizes: Sizes, vocab_size: int, dropout: float = 0.0) -> Any:
    """The config of a classifier of these sizes.

    Args:
      sizes: of its encoder.
      vocab_size: tokens.
      dropout: rate.
    """
    from jaxlab.distillation import TextModelConfig
    from jaxlab.layers import BertConfig

    rates = {"hidden_dropout": dropout, "attention_dropout": dropout}
    encoder = BertConfig(vocab_size, **dataclasses.asdict(sizes), **rates)
    return TextModelConfig(encoder, "bert", "classification", CLASSES)


def draw_params(config: Any, seed: int) -> Any:
    """Random parameters of a model, float32.

    Args:
      config: from `model_config`.
      seed: of the draw.
    """
    from jaxlab.checkpoints.foreign.names import unflatten
    from jaxlab.distillation.model import param_shapes

    rng = np.random.default_rng(seed)
    drawn = {}
    for path, shape in sorted(param_shapes(config).items()):
        value = np.float32(0.02) * rng.standard_normal(shape, dtype=np.float32)
        drawn[path] = value + 1 if path.endswith("scale") else value
    return unflatten(drawn)


def draw_batch(work: Work) -> dict[str, np.ndarray]:
    """Random texts of half to all of the length.

    Args:
      work: sizes of the batch.
    """
    rng = np.random.default_rng(1)
    shape = work.batch_size, work.length
    lengths = rng.integers(max(work.length // 2, 1), work.length + 1, work.batch_size)
    mask = np.arange(work.length)[None] < lengths[:, None]
    return {
        "ids": (rng.integers(1, work.vocab_size, shape) * mask).astype(np.int32),
        "types": np.zeros(shape, np.int32),
        "mask": mask,
        "label": rng.integers(0, CLASSES, work.batch_size).astype(np.int32),
        "has_label": np.ones(work.batch_size, bool),
    }


def make_objective(work: Work, *, intermediate: bool) -> Any:
    """Cross entropy of logits at a temperature, and the matches where they are wanted.

    Args:
      work: sizes.
      intermediate: with the matches of `textbrewer_matches`, in that library's normalisation.
    """
    from jaxlab import distillation as kd

    matches = kd.from_textbrewer(textbrewer_matches(work)) if intermediate else ()
    config = kd.ObjectiveConfig(
        kd.format_matches(matches), kd.ResponseConfig("ce", temperature=TEMPERATURE)
    )
    student, teacher = (
        kd.Shape(sizes.num_layers, sizes.width, sizes.num_heads)
        for sizes in (work.student, work.teacher)
    )
    return kd.compile_objective(config, student, teacher)


def make_parts(work: Work, *, intermediate: bool, dropout: float) -> Any:
    """The objective and both networks.

    Args:
      work: sizes.
      intermediate: see `make_objective`.
      dropout: rate of the student.
    """
    from jaxlab import distillation as kd

    student, teacher = (
        kd.make_forward(
            kd.TextModel(model_config(sizes, work.vocab_size, dropout), dtype=work.dtype)
        )
        for sizes in (work.student, work.teacher)
    )
    return kd.Parts(make_objective(work, intermediate=intermediate), student, teacher)


def make_optimizer() -> Any:
    """AdamW at a constant rate, clipped."""
    from jaxlab import training

    config = training.OptimizerConfig(
        learning_rate=LEARNING_RATE,
        schedule="constant",
        weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP_NORM,
    )
    return training.make_optimizer(config, NUM_STEPS)


def load(work: Work) -> tuple[Any, Any, dict[str, Any]]:
    """Parameters of teacher and student, and the batch, on the device.

    Args:
      work: sizes.
    """
    import jax

    teacher, student = (
        draw_params(model_config(sizes, work.vocab_size), seed)
        for seed, sizes in enumerate((work.teacher, work.student))
    )
    return jax.device_put(teacher), jax.device_put(student), jax.device_put(draw_batch(work))


def use_device(device: str) -> None:
    """Let JAX compute there; to be called before anything else of it.

    Args:
      device: `cpu` or `gpu`.
    """
    import jax

    jax.config.update("jax_platforms", DEVICES[device])


def cache_logits(work: Work, teacher: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with the teacher's logits in it, as a cache of them gives it.

    Args:
      work: sizes.
      teacher: its parameters.
      batch: from `draw_batch`.
    """
    import jax

    forward = make_parts(work, intermediate=False, dropout=0.0).teacher
    shown: Features = jax.jit(forward)(teacher, batch)
    return {**batch, f"{PREFIX}logits": shown.logits}
