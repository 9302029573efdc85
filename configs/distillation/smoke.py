"""Every part of a distillation on real questions, in three quarters of a minute on two cores.

    python -m experiments.distillation.train --config=configs/distillation/smoke.py --workdir=DIR

The six classes of the TREC questions, a few dozen steps each for MiniLM's six layers, for two of
them taught, and for two with labels alone. The most frequent class is 23 % of the test set.
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
        raise ValueError(f"smoke.py has no kinds; got {arg!r}")
    optimizer = OptimizerConfig(learning_rate=2e-4, schedule="linear", clip_norm=1.0)
    labels = StageConfig(
        num_steps=30,
        global_batch_size=16,
        log_every_steps=10,
        objective=LABELS_ALONE,
        optimizer=optimizer,
    )
    distilled = StageConfig(
        num_steps=30,
        global_batch_size=16,
        log_every_steps=10,
        objective=ObjectiveConfig(
            "last1:hidden_mse[emb=no]", ResponseConfig("kl", temperature=2.0)
        ),
        optimizer=optimizer,
    )
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name="trec", max_length=32, buckets=()),
            teacher=TeacherConfig(weights="minilm_l6", stage=labels),
            student=StudentConfig(num_layers=2),
            stage_2=distilled,
            hard_stage=labels,
        )
    )
