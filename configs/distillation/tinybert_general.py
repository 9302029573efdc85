"""A general TinyBERT: layers of a BERT that knows no task, learnt on plain text.

    python -m experiments.distillation.train --workdir=runs/general_tinybert \
        --config=configs/distillation/tinybert_general.py --config.data.folder=wikipedia

The folder holds text files, a text a line (the authors took English Wikipedia). Attention scores
and hidden states with the embeddings, one projection for all layers, no loss between logits and
none of language modelling; three epochs in batches of 256 at 128 tokens. `4x312` and `6x768` are
the sizes of the publication. Its author names losses to look for with 4x312 after two epochs:
attention from 28.8 to 7.7, hidden from 2.0 to 1.1. The schedule's peak rate is not in the
publication; 5e-5 is the default of the authors' program.

References:
  Jiao et al. 2020, arXiv:1909.10351; `general_distill.py` of TinyBERT.
"""

from experiments.common import to_config_dict
from experiments.distillation.settings import (
    RunConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TextsConfig,
)
from jaxlab.distillation import ObjectiveConfig, ResponseConfig
from jaxlab.training import OptimizerConfig

SIZES = {"4x312": (4, 312, 1200), "6x768": (6, 768, 3072)}
KINDS = tuple(SIZES)


def get_config(arg: str = "4x312"):
    if arg not in KINDS:
        raise ValueError(f"tinybert_general.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    num_layers, width, mlp_width = SIZES[arg]
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name="corpus", folder="wikipedia", max_length=128),
            teacher=TeacherConfig(weights="bert-base-uncased"),
            student=StudentConfig(
                weights="random", num_layers=num_layers, width=width, mlp_width=mlp_width
            ),
            stage_2=StageConfig(
                num_epochs=3,
                global_batch_size=256,
                warmup_share=0.1,
                save_every_steps=1000,
                objective=ObjectiveConfig(
                    "gap:attention_tinybert,gap:hidden_mse->linear/fit_dense",
                    ResponseConfig("none"),
                ),
                optimizer=OptimizerConfig(
                    learning_rate=5e-5, schedule="linear", weight_decay=0.01, clip_norm=1.0
                ),
            ),
        )
    )
