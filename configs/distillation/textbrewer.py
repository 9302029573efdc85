"""The students of TextBrewer's publication: T6, T3, T3-small, T4-tiny and T12-nano.

    python -m experiments.distillation.train --config=configs/distillation/textbrewer.py:t3 \
        --workdir=runs/t3_mnli --config.data.folder=GLUE --config.teacher.weights=bert-mnli

Hidden states and their token similarity (mmd) at evenly spaced layers, cross entropy at temperature
8 without its square, no labels, all weights 1; 1e-4 with 10 % warm-up, batches of 32, 40 epochs as
for T3 in the scripts for MNLI (30 to 60 in the publication). Their development results on MNLI
m/mm, teacher BERT-base-cased at 83.7/84.0: T6 83.5/84.0, T3 81.8/82.7, T3-small 81.3/81.7, T4-tiny
82.0/82.6, T12-nano 83.2/83.9.

References:
  Yang et al. 2020, arXiv:2002.12620; `examples/mnli_example` of TextBrewer 0.2.1.
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

# Layers, width, heads, width of the feed-forward layers.
SIZES = {
    "t6": (6, 768, 12, 3072),
    "t3": (3, 768, 12, 3072),
    "t3_small": (3, 384, 12, 1536),
    "t4_tiny": (4, 312, 12, 1200),
    "t12_nano": (12, 256, 4, 1024),
}
KINDS = tuple(SIZES)
EVERY_OTHER = "emb-emb+1-1+3-3+5-5+7-7+9-9+11-11"


def get_config(arg: str = "t3"):
    if arg not in KINDS:
        raise ValueError(f"textbrewer.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    num_layers, width, num_heads, mlp_width = SIZES[arg]
    matches = "gap:hidden_mse,gap:mmd[norm=textbrewer]"
    if arg == "t12_nano":
        twice = "+".join(
            "-".join(f"{side}/{side}" for side in pair.split("-"))
            for pair in EVERY_OTHER.split("+")
        )
        matches = f"{EVERY_OTHER}:hidden_mse,{twice}:mmd[norm=textbrewer]"
    if width != 768:
        matches = matches.replace("hidden_mse", "hidden_mse->linear")
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name="mnli", folder="GLUE", max_length=128),
            teacher=TeacherConfig(weights="teacher"),
            student=StudentConfig(
                weights="teacher" if width == 768 else "random",
                layers="first",
                num_layers=num_layers,
                width=width,
                num_heads=num_heads,
                mlp_width=mlp_width,
            ),
            stage_2=StageConfig(
                num_epochs=40,
                global_batch_size=32,
                warmup_share=0.1,
                objective=ObjectiveConfig(
                    matches, ResponseConfig("ce", temperature=8.0), HardConfig(0.0)
                ),
                optimizer=OptimizerConfig(
                    learning_rate=1e-4, schedule="linear", weight_decay=0.01, clip_norm=1.0
                ),
            ),
        )
    )
