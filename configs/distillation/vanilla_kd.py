"""Knowledge distillation by soft labels on a task of GLUE, as torchdistill's sample has it.

    python -m experiments.distillation.train --config=configs/distillation/vanilla_kd.py:mnli \
        --workdir=runs/kd_mnli --config.data.folder=GLUE/MNLI \
        --config.teacher.weights=bert-large-mnli --config.student.weights=bert-base-uncased

The teacher is a folder in the form of Hugging Face that knows the task (torchdistill: BERT-large
of its own, to a BERT-base student); the files of GLUE are placed by hand. Temperature 3, nine
tenths of the weight for the labels, AdamW at 1e-4, three epochs.

References:
  Hinton, Vinyals, Dean 2015, arXiv:1503.02531; `configs/sample/glue/*/kd` of torchdistill.
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

KINDS = ("mnli", "cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte", "wnli")


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"vanilla_kd.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    response = ResponseConfig("mse" if arg == "stsb" else "kl", weight=0.1, temperature=3.0)
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, folder=f"GLUE/{arg}", max_length=128),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(weights="bert-base-uncased"),
            stage_2=StageConfig(
                num_epochs=3,
                global_batch_size=32,
                objective=ObjectiveConfig(response=response, hard=HardConfig(0.9)),
                optimizer=OptimizerConfig(learning_rate=1e-4, schedule="linear", clip_norm=1.0),
            ),
        )
    )
