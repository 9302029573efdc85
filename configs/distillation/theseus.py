"""BERT-of-Theseus: layers of a student take the place of the teacher's blocks, one by one.

    python -m experiments.distillation.train --config=configs/distillation/theseus.py:mnli \
        --workdir=runs/theseus --config.data.folder=GLUE --config.teacher.weights=bert-mnli

Stage 1: each of six layers replaces two of the teacher's with a probability that grows from 0.3 to
1 over two thirds of the stage; the loss is that of the task, embeddings and head are the teacher's
and stay. Stage 2 trains the whole student on. The rates are those of fine-tuning.

References:
  Xu, Zhou, Ge, Wei, Zhou 2020, arXiv:2002.02925.
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
from jaxlab.training import OptimizerConfig

KINDS = ("mnli", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte")


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"theseus.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    optimizer = OptimizerConfig(
        learning_rate=2e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0
    )
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, folder="GLUE", max_length=128),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(num_layers=6, layers="first", copy_head=True),
            stage_1=StageConfig(
                num_epochs=15,
                global_batch_size=32,
                method="theseus",
                objective=LABELS_ALONE,
                optimizer=optimizer,
            ),
            stage_2=StageConfig(
                num_epochs=3, global_batch_size=32, objective=LABELS_ALONE, optimizer=optimizer
            ),
        )
    )
