"""Knowledge distillation by soft labels on a task of GLUE, as torchdistill's sample has it.

    python -m experiments.distillation.train --config=configs/distillation/vanilla_kd.py:mnli \
        --workdir=runs/kd_mnli --config.data.folder=GLUE \
        --config.teacher.weights=bert-large-mnli --config.student.weights=bert-base-uncased

The teacher is a folder in the form of Hugging Face that knows the task (torchdistill: BERT-large
of its own, to a BERT-base student); the files of GLUE are placed by hand. Temperature, rate, epochs
and batch are of the sample for the task, nine tenths of the weight is for the labels (half on
QNLI). STS-B, a regression, has the squared difference from the teacher beside that from the labels.

`squad`, `squad2` and `conll2003`, which that sample does not have, are the same over the places of
an answer and over the tags of words, at BERT's 3e-5 with 10 % warm-up.

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

# Task -> temperature, weight of the labels, rate, epochs, batch.
GLUE = {
    "mnli": (5.0, 0.9, 1e-4, 3, 32),
    "cola": (7.0, 0.9, 1e-4, 3, 16),
    "sst2": (3.0, 0.9, 1e-4, 3, 32),
    "mrpc": (11.0, 0.9, 1e-4, 5, 16),
    "stsb": (1.0, 1.0, 3e-5, 3, 32),
    "qqp": (5.0, 0.9, 1e-4, 3, 32),
    "qnli": (1.0, 0.5, 5e-5, 3, 32),
    "rte": (5.0, 0.9, 1e-4, 3, 32),
    "wnli": (5.0, 0.9, 1e-4, 5, 32),
}
OTHERS = (3.0, 0.9, 3e-5, 3, 32)
# Longest text in tokens of what is no task of GLUE; longer contexts are cut into windows.
WORDS = {"squad": 384, "squad2": 384, "conll2003": 128}
KINDS = (*GLUE, *WORDS)


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"vanilla_kd.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    temperature, hard, rate, epochs, batch_size = GLUE.get(arg, OTHERS)
    response = ResponseConfig("kl", weight=1.0 - hard, temperature=temperature)
    if arg == "stsb":
        response = ResponseConfig("mse")
    return to_config_dict(
        RunConfig(
            data=TextsConfig(
                name=arg,
                folder=arg if arg in WORDS else "GLUE",
                max_length=WORDS.get(arg, 128),
            ),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(weights="bert-base-uncased"),
            stage_2=StageConfig(
                num_epochs=epochs,
                global_batch_size=batch_size,
                warmup_share=0.1 if arg in WORDS else 0.0,
                objective=ObjectiveConfig(response=response, hard=HardConfig(hard)),
                optimizer=OptimizerConfig(learning_rate=rate, schedule="linear", clip_norm=1.0),
            ),
        )
    )
