"""Annealing-KD: the student follows logits that grow to the teacher's, and then labels alone.

    python -m experiments.distillation.train --config=configs/distillation/annealing_kd.py:mnli \
        --workdir=runs/annealing_mnli --config.data.folder=GLUE \
        --config.teacher.weights=roberta-large-mnli --config.student.weights=distilroberta-base

Stage 1 is the squared difference from the teacher's logits times 1/7, 2/7 ... 1, each for a seventh
of the stage; stage 2 is fine-tuning. Epochs and rates are no published ones.

References:
  Jafari, Rezagholizadeh, Sharma, Ghodsi 2021, arXiv:2104.07163.
"""

from experiments.common import to_config_dict
from experiments.distillation.settings import (
    LABELS_ALONE,
    RunConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TextsConfig,
)
from jaxlab.distillation import ObjectiveConfig, ResponseConfig
from jaxlab.training import OptimizerConfig

KINDS = ("mnli", "cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte")


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"annealing_kd.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    optimizer = OptimizerConfig(
        learning_rate=2e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0
    )
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, folder="GLUE", max_length=128),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(weights="distilroberta-base"),
            stage_1=StageConfig(
                num_epochs=14,
                global_batch_size=32,
                objective=ObjectiveConfig(response=ResponseConfig("mse", annealing=7)),
                optimizer=optimizer,
            ),
            stage_2=StageConfig(
                num_epochs=6, global_batch_size=32, objective=LABELS_ALONE, optimizer=optimizer
            ),
        )
    )
