"""What helps a student of three layers: knowledge, matching, temperature and start, over seeds.

    python -m experiments.distillation.ablate --config=configs/distillation/ablation.py:trec_fine \
        --workdir=runs/ablation_trec_fine

`r52`, `mr` and `20ng` are the same on other texts.
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
from jaxlab.training import OptimizerConfig

VERB = "ablate"
# Texts -> epochs, longest text.
TEXTS = {"trec_fine": (4, 64), "r52": (4, 128), "mr": (3, 64), "20ng": (3, 128)}
KINDS = tuple(TEXTS)
VARIANTS = (
    "hard = hard",
    "kd1 = response~1",
    "kd4 = response~4",
    "kd8 = response~8",
    "kd4+hard = response@0.5~4 + hard@0.5",
    "hidden gap = response~4 + gap:hidden_mse",
    "hidden first = response~4 + first:hidden_mse",
    "hidden last = response~4 + last:hidden_mse",
    "attention = response~4 + gap:attention_kl",
    "relations = response~4 + last1:query_relation + last1:key_relation + last1:value_relation",
    "cos = response~4 + last1:cos",
    "first layers = response~4 + start:first",
)


def get_config(arg: str = "trec_fine"):
    if arg not in KINDS:
        raise ValueError(f"ablation.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    epochs, length = TEXTS[arg]
    stage = StageConfig(
        num_epochs=epochs,
        global_batch_size=32,
        log_every_steps=50,
        warmup_share=0.1,
        objective=LABELS_ALONE,
        optimizer=OptimizerConfig(
            learning_rate=1e-4, schedule="linear", weight_decay=0.01, clip_norm=1.0
        ),
    )
    return to_config_dict(
        AblationConfig(
            data=TextsConfig(name=arg, max_length=length),
            teacher=TeacherConfig(weights="minilm_l6", stage=stage),
            student=StudentConfig(num_layers=3, untuned=True),
            stage=stage,
            variants=VARIANTS,
        )
    )
