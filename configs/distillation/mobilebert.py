"""MobileBERT's progressive transfer: layer after layer in turn, then the masked words.

    python -m experiments.distillation.train --workdir=runs/progressive \
        --config=configs/distillation/mobilebert.py --config.data.folder=books_and_wikipedia

Every layer of the student has an equal share of the first half of the run, in which it and those
below it are matched (hidden states and attention distributions, half a unit of weight in all) while
those below learn by a tenth; afterwards the loss is that of masked words alone. Student and teacher
have equally many layers and heads, here 12 of 384 from a teacher of 12 of 768. The publication's
own teacher, IB-BERT-large, was never released; MobileBERT's blocks are `jaxlab.layers.mobilebert`.

References:
  Sun et al. 2020, arXiv:2004.02984.
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


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"mobilebert.py has no kinds; got {arg!r}")
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name="corpus", folder="books_and_wikipedia", max_length=512),
            teacher=TeacherConfig(weights="bert-base-uncased"),
            student=StudentConfig(weights="random", num_layers=12, width=384, mlp_width=1536),
            stage_2=StageConfig(
                num_steps=240_000,
                global_batch_size=2048,
                save_every_steps=10_000,
                lower_factor=0.1,
                objective=ObjectiveConfig(
                    "gap:hidden_mse[schedule=progressive]->linear,"
                    "first:attention_kl[schedule=progressive]",
                    ResponseConfig("none"),
                    HardConfig(1.0, schedule="after_transfer"),
                ),
                optimizer=OptimizerConfig(
                    learning_rate=5e-4,
                    warmup_steps=10_000,
                    schedule="linear",
                    weight_decay=0.01,
                    clip_norm=1.0,
                ),
            ),
        )
    )
