"""Knowledge distillation by soft labels on a task of GLUE, as torchdistill's sample has it.

    python -m experiments.distillation.train --config=configs/distillation/vanilla_kd.py:mnli \
        --workdir=runs/kd_mnli --config.data.folder=GLUE/MNLI \
        --config.teacher.weights=bert-large-mnli --config.student.weights=bert-base-uncased

The teacher is a folder in the form of Hugging Face that knows the task (torchdistill: BERT-large
of its own, to a BERT-base student); the files of GLUE are placed by hand. Temperature 3, nine
tenths of the weight for the labels, AdamW at 1e-4, three epochs.

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

# Longest text in tokens of what is no task of GLUE; longer contexts are cut into windows.
WORDS = {"squad": 384, "squad2": 384, "conll2003": 128}
GLUE = ("mnli", "cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte", "wnli")
KINDS = (*GLUE, *WORDS)


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"vanilla_kd.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    rate, warmup = (3e-5, 0.1) if arg in WORDS else (1e-4, 0.0)
    response = ResponseConfig("mse" if arg == "stsb" else "kl", weight=0.1, temperature=3.0)
    return to_config_dict(
        RunConfig(
            data=TextsConfig(
                name=arg,
                folder=arg if arg in WORDS else f"GLUE/{arg}",
                max_length=WORDS.get(arg, 128),
            ),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(weights="bert-base-uncased"),
            stage_2=StageConfig(
                num_epochs=3,
                global_batch_size=32,
                warmup_share=warmup,
                objective=ObjectiveConfig(response=response, hard=HardConfig(0.9)),
                optimizer=OptimizerConfig(learning_rate=rate, schedule="linear", clip_norm=1.0),
            ),
        )
    )
