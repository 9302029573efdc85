"""A student of 3 layers of 384 from MPNet's 12 of 768, in a vocabulary of its own.

    python -m experiments.distillation.train --workdir=runs/mpnet_to_minilm \
        --config=configs/distillation/mpnet_to_minilm.py:trec_fine

The teacher learns the task first. The student is the published MiniLM of 3 layers, reads BERT's
vocabulary and follows the teacher's logits and, through projections, every fourth of its layers:
MPNet's ids are BERT's but for the special tokens, so that the tokens of single texts stand in the
same places. Everything comes out of packages. `hard_stage` is the same student on labels alone. The
lower half of the MiniLM of 6 layers is `--config.student.weights=minilm_l6
--config.student.layers=first --config.student.num_layers=3`.

Measured, one seed, matrix products of bfloat16 with sums in float32: on `trec_fine` the teacher has
88.5 % with flat answers (its calibration error is .65), and its student, 80.1 %, is behind the one
of labels alone, 87.8 %. A teacher whose head learns faster (`teacher.stage.head_factor`) is to be
measured.
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

# Texts -> epochs of teacher and student, longest text.
TEXTS = {"trec_fine": (3, 8, 32), "r8": (2, 4, 128), "r52": (3, 6, 128), "20ng": (3, 3, 128)}
KINDS = tuple(TEXTS)


def get_config(arg: str = "trec_fine"):
    if arg not in KINDS:
        raise ValueError(f"mpnet_to_minilm.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    taught, epochs, length = TEXTS[arg]

    def stage(num_epochs: int, learning_rate: float, objective: ObjectiveConfig) -> StageConfig:
        return StageConfig(
            num_epochs=num_epochs,
            global_batch_size=32,
            warmup_share=0.1,
            objective=objective,
            optimizer=OptimizerConfig(
                learning_rate=learning_rate, schedule="linear", weight_decay=0.01, clip_norm=1.0
            ),
        )

    distilled = ObjectiveConfig(
        "gap:hidden_mse[emb=no]->linear", ResponseConfig("kl", temperature=4.0)
    )
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name=arg, max_length=length),
            teacher=TeacherConfig(weights="mpnet_base", stage=stage(taught, 5e-5, LABELS_ALONE)),
            student=StudentConfig(weights="minilm_l3"),
            stage_2=stage(epochs, 1e-4, distilled),
            hard_stage=stage(epochs, 1e-4, LABELS_ALONE),
        )
    )
