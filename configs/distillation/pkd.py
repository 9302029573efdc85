"""Patient knowledge distillation: the first token of every other layer, beside soft labels.

    python -m experiments.distillation.train --config=configs/distillation/pkd.py:mnli \
        --workdir=runs/pkd_mnli --config.data.folder=GLUE --config.teacher.weights=bert-mnli

A student of six layers that starts from the teacher's first six and follows its layers 2, 4, 6, 8
and 10 at the first token, normalised; the last layer is left to the logits. Weights 1 - a for the
labels, a for the teacher's logits at a temperature, b for the layers: a = 0.5, temperature 10 and
b = 100 on a mean over features, as GLMKD's code has it. The loss here is a sum over features, 768
times larger: its weight is 100 / 768. The publication searches a in 0.2, 0.5, 0.7, the temperature
in 5, 10, 20, b in 10 ... 1,000 and the rate in 5e-5, 2e-5, 1e-5.

References:
  Sun, Cheng, Gan, Liu 2019, arXiv:1908.09355; GLMKD.
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

KINDS = ("mnli", "cola", "sst2", "mrpc", "qqp", "qnli", "rte")
ALPHA, BETA, WIDTH = 0.5, 100.0, 768


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"pkd.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    objective = ObjectiveConfig(
        f"pkd_skip:pkd@{BETA / WIDTH}",
        ResponseConfig("kl", weight=ALPHA, temperature=10.0),
        HardConfig(1.0 - ALPHA),
    )
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, folder="GLUE", max_length=128),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(num_layers=6, layers="first"),
            stage_2=StageConfig(
                num_epochs=4,
                global_batch_size=32,
                objective=objective,
                optimizer=OptimizerConfig(
                    learning_rate=5e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0
                ),
            ),
        )
    )
