"""Six layers of MiniLM taught to three on questions, in minutes on two cores.

python -m experiments.distillation.train --config=configs/distillation/tiny.py --workdir=DIR
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
        raise ValueError(f"tiny.py has no kinds; got {arg!r}")
    optimizer = OptimizerConfig(
        learning_rate=2e-4, schedule="linear", weight_decay=0.01, clip_norm=1.0
    )
    stage = StageConfig(
        num_epochs=2,
        global_batch_size=32,
        log_every_steps=50,
        warmup_share=0.1,
        objective=LABELS_ALONE,
        optimizer=optimizer,
    )
    distilled = ObjectiveConfig(
        "gap:hidden_mse,gap:attention_kl", ResponseConfig("kl", temperature=4.0)
    )
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name="trec_fine", max_length=32),
            teacher=TeacherConfig(weights="minilm_l6", stage=stage),
            student=StudentConfig(num_layers=3, layers="first", untuned=True),
            stage_2=StageConfig(
                num_epochs=2,
                global_batch_size=32,
                log_every_steps=50,
                warmup_share=0.1,
                objective=distilled,
                optimizer=optimizer,
            ),
            hard_stage=stage,
        )
    )
