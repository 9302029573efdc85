"""Continuation-KD: from the teacher's logits over to the labels, and no closer than a margin.

    python -m experiments.distillation.train --config=configs/distillation/continuation_kd.py:mnli \
        --workdir=runs/continuation_mnli --config.data.folder=GLUE \
        --config.teacher.weights=roberta-large-mnli --config.student.weights=distilroberta-base

The weight of the labels grows to a half over two thirds of the run and is 1 after them; that of the
squared difference from the teacher's logits is what is left of 1, while the difference is larger
than a margin. Logits (times 0.1, 0.2 ... 1) and margin (1 at the end) grow together. Epochs and
rates are no published ones.

References:
  Jafari, Kobyzev, Rezagholizadeh, Poupart, Ghodsi 2022, arXiv:2212.05998.
"""

from experiments.common import to_config_dict
from experiments.distillation.settings import (
    RunConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TextsConfig,
)
from jaxlab.distillation import HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.training import OptimizerConfig

KINDS = ("mnli", "cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte")


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"continuation_kd.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    objective = ObjectiveConfig(
        response=ResponseConfig("mse", annealing=10, schedule="continuation", margin=1.0),
        hard=HardConfig(1.0, schedule="continuation"),
    )
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, folder="GLUE", max_length=128),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(weights="distilroberta-base"),
            stage_2=StageConfig(
                num_epochs=20,
                global_batch_size=32,
                objective=objective,
                optimizer=OptimizerConfig(
                    learning_rate=2e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0
                ),
            ),
        )
    )
