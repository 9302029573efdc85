r"""MiniLM's six layers taught to three on all texts of a set: how much of the teacher remains.

    python -m experiments.distillation.train --config=configs/distillation/half.py:r8 \
        --workdir=runs/half_r8

`trec` are TREC's six types of questions, `r8` Reuters' news with eight topics; weights and texts
come out of packages. `distilled/retention` in `results.json` is the accuracy of the student over
that of its teacher, `hard/retention` that of the same student on labels alone.

Measured, one seed: `trec` keeps 98.6 % of the teacher's 94.2 % (92.9; labels alone 92.2),
`r8` all of its 97.7 % (97.9; labels alone 97.8; agreement 99.2 and 98.7 %, divergence .018 and .037
nats; matrix products of bfloat16 with sums in float32).
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

# Texts -> epochs of teacher and students, longest text.
TEXTS = {"trec": (3, 6, 32), "r8": (3, 4, 128)}
KINDS = tuple(TEXTS)


def get_config(arg: str = "trec"):
    if arg not in KINDS:
        raise ValueError(f"half.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    taught, epochs, length = TEXTS[arg]
    distilled = ObjectiveConfig("gap:attention_kl", ResponseConfig("kl", temperature=4.0))
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, max_length=length),
            teacher=TeacherConfig(weights="minilm_l6", stage=make_stage(taught, LABELS_ALONE)),
            student=StudentConfig(num_layers=3, untuned=True),
            stage_2=make_stage(epochs, distilled),
            hard_stage=make_stage(epochs, LABELS_ALONE),
        )
    )


def make_stage(num_epochs: int, objective: ObjectiveConfig) -> StageConfig:
    return StageConfig(
        num_epochs=num_epochs,
        global_batch_size=32,
        log_every_steps=50,
        warmup_share=0.1,
        objective=objective,
        optimizer=OptimizerConfig(
            learning_rate=2e-4, schedule="linear", weight_decay=0.01, clip_norm=1.0
        ),
    )
