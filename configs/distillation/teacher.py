"""A teacher for a task: BERT, or what `teacher.weights` names, learns its labels.

    python -m experiments.distillation.train --config=configs/distillation/teacher.py:mnli \
        --workdir=runs/teacher_mnli --config.data.folder=GLUE \
        --config.teacher.weights=bert-base-uncased

Its folder, `runs/teacher_mnli/teacher_model`, is what the recipes for a task take as
`--config.teacher.weights`. Any other data go by `--config.data.name`; a large network that learns
badly at these rates wants 1e-5. Epochs, batch and warm-up are those of BERT's authors, who choose
between 5e-5, 3e-5 and 2e-5 on the development set.

References:
  Devlin, Chang, Lee, Toutanova 2019, arXiv:1810.04805, appendix A.3 and section 4.2.
"""

from experiments.common import to_config_dict
from experiments.distillation.settings import (
    LABELS_ALONE,
    RunConfig,
    StageConfig,
    TeacherConfig,
    TextsConfig,
)
from jaxlab.training import OptimizerConfig

GLUE = ("mnli", "cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte", "wnli")
# Longest text in tokens of what is no task of GLUE; longer contexts are cut into windows.
WORDS = {"squad": 384, "squad2": 384, "conll2003": 128}
KINDS = (*GLUE, *WORDS)


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"teacher.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    return to_config_dict(
        RunConfig(
            data=TextsConfig(
                name=arg,
                folder=arg if arg in WORDS else "GLUE",
                max_length=WORDS.get(arg, 128),
            ),
            teacher=TeacherConfig(
                weights="bert-base-uncased",
                stage=StageConfig(
                    num_epochs=3,
                    global_batch_size=32,
                    warmup_share=0.1,
                    save_every_epochs=1,
                    objective=LABELS_ALONE,
                    optimizer=OptimizerConfig(
                        learning_rate=3e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0
                    ),
                ),
            ),
        )
    )
