"""Pre-trained distillation: a small student that knows the language learns soft labels alone.

    python -m experiments.distillation.train --config=configs/distillation/pd.py:mnli \
        --workdir=runs/pd_mnli --config.data.folder=GLUE --config.teacher.weights=bert-mnli \
        --config.student.weights=google/bert_uncased_L-4_H-512_A-8

Cross entropy at temperature 1, no labels, four epochs. The publication searches the learning rate
in 3e-4, 1e-4, 5e-5, 3e-5 and the batch in 8 ... 128; this file has 1e-4 and 32.

References:
  Turc, Chang, Lee, Toutanova 2019, arXiv:1908.08962.
"""

from experiments.common import to_config_dict
from experiments.distillation.settings import (
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
        raise ValueError(f"pd.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, folder="GLUE", max_length=128),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(weights="google/bert_uncased_L-4_H-512_A-8"),
            stage_2=StageConfig(
                num_epochs=4,
                global_batch_size=32,
                objective=ObjectiveConfig(
                    response=ResponseConfig("mse" if arg == "stsb" else "ce")
                ),
                optimizer=OptimizerConfig(learning_rate=1e-4, schedule="linear", clip_norm=1.0),
            ),
        )
    )
