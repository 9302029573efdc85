"""A small world for tests of the distillation commands: words, texts with labels, a teacher."""

import dataclasses
import json

import jax
import numpy as np

from experiments.distillation.settings import (
    LABELS_ALONE,
    AblationConfig,
    RunConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TextsConfig,
)
from jaxlab import distillation as kd
from jaxlab.distillation.objective import ObjectiveConfig, ResponseConfig
from jaxlab.layers import BertConfig
from jaxlab.training import OptimizerConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("red", "green", "blue", "sun", "moon", "star", "cat", "dog", "fox", "is", "a", "the")
COLOURS, SKIES, ANIMALS = WORDS[:3], WORDS[3:6], WORDS[6:9]


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


def write_teacher(folder, *, task="none", num_labels=0, labels=(), num_layers=2, seed=0):
    """A network of two layers that has learnt nothing, with its vocabulary."""
    encoder = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), num_layers=num_layers, width=16, num_heads=2,
        mlp_width=32, max_positions=32,
    )  # fmt: skip
    config = kd.TextModelConfig(encoder, task=task, num_labels=num_labels)
    params = kd.init_params(config, jax.random.key(seed))
    kd.save_pretrained(folder, jax.device_get(params), config, label_names=labels)
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS)) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), "utf-8")
    return folder


STAGE = StageConfig(
    num_epochs=2,
    global_batch_size=8,
    log_every_steps=5,
    objective=LABELS_ALONE,
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="linear", clip_norm=1.0),
)
DISTILLED = dataclasses.replace(
    STAGE,
    objective=ObjectiveConfig("last1:hidden_mse[emb=no]", ResponseConfig("kl", temperature=2.0)),
)


def networks(tmp_path):
    """Settings of data, teacher and student that all commands share."""
    return {
        "data": TextsConfig(
            name="tables", folder=str(write_texts(tmp_path / "texts")), max_length=16
        ),
        "teacher": TeacherConfig(
            weights=str(write_teacher(tmp_path / "teacher")), pooling="mean", stage=STAGE
        ),
        "student": StudentConfig(num_layers=1),
    }


def run_config(tmp_path, **changes):
    """A run of all stages."""
    given = {**networks(tmp_path), "stage_2": DISTILLED, "hard_stage": STAGE, **changes}
    return RunConfig(**given)


def ablation_config(tmp_path, **changes):
    """An ablation of three variants and two seeds."""
    variants = ("hard = hard", "kd = response~4", "hidden = response + last1:hidden_mse[emb=no]")
    given = {**networks(tmp_path), "stage": STAGE, "variants": variants, "seeds": (0, 1), **changes}
    return AblationConfig(**given)
