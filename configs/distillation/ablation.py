"""What helps a student of three layers: knowledge, matching, temperature and start, over seeds.

    python -m experiments.distillation.ablate --config=configs/distillation/ablation.py:trec_tenth \
        --workdir=runs/ablation

The students of `trec_tenth`, `mr_tenth` and `r52_tenth` see a tenth of the texts that their teacher
learns from. `trec_tenth` compares ten ways, the other two and `trec_fine`, which has all texts for
all, three of them; `r52`, `mr` and `20ng` are the ten on all texts, for an accelerator.
"""

from experiments.common import to_config_dict
from experiments.distillation.settings import (
    LABELS_ALONE,
    AblationConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TextsConfig,
)
from jaxlab.distillation import ObjectiveConfig, ResponseConfig
from jaxlab.training import OptimizerConfig

VERB = "ablate"
TENTH = "_tenth"
# Texts -> epochs of the teacher and of the students, longest text.
TEXTS = {
    "trec_fine": (3, 2, 32),
    "trec_tenth": (3, 8, 32),
    "mr_tenth": (2, 3, 64),
    "r52_tenth": (3, 6, 64),
    "r52": (4, 4, 128),
    "mr": (3, 3, 64),
    "20ng": (3, 3, 128),
}
KINDS = tuple(TEXTS)
FEW = (
    "hard = hard",
    "kd4 = response~4",
    "attention = response~4 + gap:attention_kl",
)
MANY = (
    *FEW,
    "hidden gap = response~4 + gap:hidden_mse",
    "kd4+hard = response@0.5~4 + hard@0.5",
    "kd1 = response~1",
    "kd8 = response~8",
    "hidden last = response~4 + last:hidden_mse",
    "relations = response~4 + last1:query_relation + last1:key_relation + last1:value_relation",
    "first layers = response~4 + start:first",
)


def get_config(arg: str = "trec_fine"):
    if arg not in KINDS:
        raise ValueError(f"ablation.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    epochs, student_epochs, length = TEXTS[arg]
    return to_config_dict(
        AblationConfig(
            data=TextsConfig(
                name=arg.removesuffix(TENTH),
                max_length=length,
                fraction=0.1 if arg.endswith(TENTH) else 1.0,
            ),
            teacher=TeacherConfig(
                weights="minilm_l6",
                stage=make_stage(epochs, 1e-4, LABELS_ALONE),
                fraction=1.0,
            ),
            student=StudentConfig(num_layers=3, untuned=True),
            stage=make_stage(student_epochs, 2e-4, ObjectiveConfig(response=ResponseConfig("kl"))),
            variants=FEW if arg in ("trec_fine", "mr_tenth", "r52_tenth") else MANY,
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
