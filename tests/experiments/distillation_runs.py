"""A small world for tests of the distillation commands: words, texts with labels, a teacher."""

import dataclasses
import json

import jax
import numpy as np

from experiments.distillation.own_vocabulary import with_student_vocabulary
from experiments.distillation.settings import (
    RunConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TextsConfig,
)
from experiments.distillation.tasks import load_problem
from experiments.distillation.train import train_networks
from jaxlab import distillation as kd
from jaxlab import parallel
from jaxlab.distillation import ObjectiveConfig, ResponseConfig
from jaxlab.layers import BertConfig
from jaxlab.training import OptimizerConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("red", "green", "blue", "sun", "moon", "star", "cat", "dog", "fox", "is", "a", "the")
COLOURS, SKIES, ANIMALS = WORDS[:3], WORDS[3:6], WORDS[6:9]
LABELS = ("colour", "sky")
SOFT = ObjectiveConfig(response=ResponseConfig("kl", temperature=2.0))


def write_texts(folder, number=60, seed=0):
    """A table whose label is whether a colour or a heavenly body is named."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, size in (("train", number), ("validation", 12), ("test", 12)):
        lines = ["text\tlabel"]
        for i in range(size):
            named = COLOURS if i % 2 else SKIES
            words = [rng.choice(ANIMALS), "is", rng.choice(named), *rng.choice(WORDS[9:], i % 3)]
            lines.append(f"{' '.join(words)}\t{'colour' if i % 2 else 'sky'}")
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_teacher(
    folder, *, task="none", num_labels=0, labels=(), num_layers=2, seed=0, length=32, encoder=None
):
    """A network of two layers that has learnt nothing, with its vocabulary."""
    family, vocab_size = "bert", len(SPECIAL) + len(WORDS)
    if encoder is None:
        encoder = BertConfig(
            num_layers=num_layers, width=16, num_heads=2, mlp_width=32, max_positions=length
        )
    else:
        family = "mobilebert"
    encoder = dataclasses.replace(encoder, vocab_size=vocab_size)
    config = kd.TextModelConfig(encoder, family, task, num_labels)
    params = kd.init_params(config, jax.random.key(seed))
    kd.save_pretrained(folder, jax.device_get(params), config, label_names=labels)
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS)) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), "utf-8")
    return folder


def network_flags(tmp_path):
    """Flags that put the small world in the place of a config's data and teacher."""
    texts, teacher = tmp_path / "texts", tmp_path / "teacher"
    if not texts.exists():
        write_texts(texts)
        write_teacher(teacher)
    return [
        "--config.data.name=tables",
        f"--config.data.folder={texts}",
        "--config.data.max_length=16",
        f"--config.teacher.weights={teacher}",
        "--config.teacher.pooling=mean",
        "--config.teacher.stage.optimizer.learning_rate=0.003",
        "--config.student.num_layers=1",
    ]


def run_flags(tmp_path, workdir="run"):
    """Flags of a run of all stages."""
    rates = [
        f"--config.{stage}.optimizer.learning_rate=0.003" for stage in ("stage_2", "hard_stage")
    ]
    return [
        "--config=configs/distillation/smoke.py",
        f"--workdir={tmp_path / workdir}",
        *network_flags(tmp_path),
        *rates,
    ]


def ablation_flags(tmp_path, seeds=(0, 1)):
    """Flags of an ablation of three variants."""
    variants = ("hard = hard", "kd = response~4", "hidden = response + last1:hidden_mse[emb=no]")
    return [
        "--config=configs/distillation/ablation.py:trec_fine",
        f"--workdir={tmp_path / 'run'}",
        *network_flags(tmp_path),
        "--config.teacher.stage.num_steps=12",
        "--config.stage.num_steps=8",
        f"--config.variants={variants!r}",
        f"--config.seeds={seeds}",
        "--config.student.untuned=False",
    ]


def stage(objective=SOFT, **changes):
    settings = {
        "num_steps": 4, "global_batch_size": 8, "log_every_steps": 2, "objective": objective,
        "optimizer": OptimizerConfig(learning_rate=3e-3, schedule="constant"),
    }  # fmt: skip
    return StageConfig(**{**settings, **changes})


def write_tuned(folder, labels=LABELS, **changes):
    return write_teacher(folder, task="classification", num_labels=2, labels=labels, **changes)


def settings(tmp_path, **changes):
    """A run in a small world: texts, and a teacher with a head."""
    texts, teacher = tmp_path / "texts", tmp_path / "tuned"
    if not texts.exists():
        write_texts(texts)
        write_tuned(teacher)
    given = {
        "data": TextsConfig(name="tables", folder=str(texts), max_length=16, buckets=()),
        "teacher": TeacherConfig(weights=str(teacher)),
        "student": StudentConfig(num_layers=1),
    }  # fmt: skip
    if "stage_1" not in changes:
        given["stage_2"] = stage()
    return RunConfig(**{**given, **changes})


def train(tmp_path, config, workdir="run"):
    """Teachers and students of a run; the loop itself is that of any run."""
    problem = load_problem(config, (config.stage_1, config.stage_2))
    problem = with_student_vocabulary(problem, config.student)
    return train_networks(config, problem, tmp_path / workdir, parallel.make_mesh())
