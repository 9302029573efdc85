"""TinyBERT on a task of GLUE: layers first, then the labels of the teacher, on augmented texts.

    python -m experiments.distillation.train --config=configs/distillation/tinybert.py:mnli \
        --workdir=runs/tinybert_mnli --config.data.folder=GLUE \
        --config.teacher.weights=bert-mnli --config.student.weights=General_TinyBERT_4L_312D \
        --config.augmentation.model=bert-base-uncased --config.augmentation.glove=glove.txt

The student is a general TinyBERT (`tinybert_general.py` trains one). Stage 1 matches embeddings,
hidden states (one projection for all) and attention scores at a constant 5e-5, as many epochs as
the authors' table has for the task (its README runs 10); stage 2 follows the teacher's logits at
temperature 1 for three epochs at 3e-5. Texts are 64 tokens long for CoLA and SST-2, else 128; the
augmentation makes N copies of a training text (CoLA, MRPC, STS-B, RTE 30, SST-2 and QNLI 20, MNLI
and QQP 10) with words of a BERT that knows no task, and for words of several pieces the nearest of
GloVe's, or without that file of BERT's own embeddings. A regression's second stage learns from
labels, as the authors' code has it.

References:
  Jiao et al. 2020, arXiv:1909.10351; `task_distill.py`, `data_augmentation.py` of TinyBERT.
"""

from experiments.common import to_config_dict
from experiments.distillation.settings import (
    AugmentationConfig,
    RunConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TextsConfig,
)
from jaxlab.distillation import HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.training import OptimizerConfig

LAYERS = "gap:attention_tinybert,gap:hidden_mse->linear/fit_dense"
# Task -> epochs of stage 1, copies of a text, longest text.
TASKS = {
    "mnli": (5, 10, 128),
    "cola": (50, 30, 64),
    "sst2": (10, 20, 64),
    "mrpc": (20, 30, 128),
    "stsb": (20, 30, 128),
    "qqp": (5, 10, 128),
    "qnli": (10, 20, 128),
    "rte": (20, 30, 128),
    "wnli": (20, 30, 128),  # not in the authors' table: as RTE
}
KINDS = tuple(TASKS)


def get_config(arg: str = "mnli"):
    if arg not in KINDS:
        raise ValueError(f"tinybert.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    epochs, copies, length = TASKS[arg]
    prediction = ObjectiveConfig(response=ResponseConfig("ce", reduction="numel"))
    if arg == "stsb":
        prediction = ObjectiveConfig(response=ResponseConfig("none"), hard=HardConfig(1.0))
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, folder="GLUE", max_length=length),
            augmentation=AugmentationConfig(
                num_copies=copies,
                candidates="model",
                model="bert-base-uncased",
                keep_labels=arg == "stsb",
            ),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(weights="General_TinyBERT_4L_312D"),
            stage_1=StageConfig(
                num_epochs=epochs,
                global_batch_size=32,
                objective=ObjectiveConfig(LAYERS, ResponseConfig("none")),
                optimizer=OptimizerConfig(
                    learning_rate=5e-5, schedule="constant", weight_decay=0.01, clip_norm=1.0
                ),
            ),
            stage_2=StageConfig(
                num_epochs=3,
                global_batch_size=32,
                warmup_share=0.1,
                objective=prediction,
                optimizer=OptimizerConfig(
                    learning_rate=3e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0
                ),
            ),
        )
    )
