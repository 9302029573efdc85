r"""A teacher and a student of half its depth for one's own texts, from files with named columns.

    python -m experiments.distillation.train --config=configs/distillation/tables.py \
        --workdir=runs/own --config.data.folder=FOLDER

FOLDER holds `train`, and `validation` and `test` if there are, each `.csv`, `.tsv` or `.jsonl` with
columns `text` and `label` (`data.text`, `data.pair` and `data.label` name others; `data.regression`
takes numbers, with `stage_2.objective.response.kind=mse` and `.temperature=1`, which divides them).
MiniLM's six layers, or those of `teacher.weights`, learn the labels; the student begins with every
other layer, follows attention and logits, and stands beside one of labels alone. Training texts
without a label teach the student all the same.
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


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"tables.py has no kinds; got {arg!r}")
    distilled = ObjectiveConfig("uniform_top:attention_kl", ResponseConfig("kl", temperature=4.0))
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name="tables", folder="texts", max_length=128),
            teacher=TeacherConfig(weights="minilm_l6", stage=make_stage(3, 1e-4, LABELS_ALONE)),
            student=StudentConfig(untuned=True),
            stage_2=make_stage(6, 2e-4, distilled),
            hard_stage=make_stage(6, 2e-4, LABELS_ALONE),
        )
    )


def make_stage(num_epochs: int, learning_rate: float, objective: ObjectiveConfig) -> StageConfig:
    return StageConfig(
        num_epochs=num_epochs,
        global_batch_size=32,
        log_every_steps=50,
        warmup_share=0.1,
        objective=objective,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, schedule="linear", weight_decay=0.01, clip_norm=1.0
        ),
    )
