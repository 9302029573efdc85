"""DistilBERT: half of BERT's layers, taught by its masked words on plain text.

    python -m experiments.distillation.train --workdir=runs/distilbert \
        --config=configs/distillation/distilbert.py --config.data.folder=books_and_wikipedia

The student starts from the teacher's layers 0, 2, 4, 7, 9 and 11. Weights 5 for the teacher's
distribution over words at temperature 2 (on all real tokens), 2 for the masked words themselves,
1 for the cosine of the last hidden states. 15 % of the tokens are masked, rare ones more often
(count ** -0.7). Adam at 5e-4 with betas .9 and .98 and epsilon 1e-6, 5 % warm-up, clipped at 5,
three epochs, batches of 250 in parts of 50. Its authors report 97 % of the score of BERT on the
development sets of GLUE (77.0 of 79.5).

References:
  Sanh, Debut, Chaumond, Wolf 2019, arXiv:1910.01108; `examples/distillation` of transformers.
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
        raise ValueError(f"distilbert.py has no kinds; got {arg!r}")
    return to_config_dict(
        RunConfig(
            data=TextsConfig(
                name="corpus", folder="books_and_wikipedia", max_length=512, masking_power=0.7
            ),
            teacher=TeacherConfig(weights="bert-base-uncased"),
            student=StudentConfig(num_layers=6, layers="distilbert", copy_head=True),
            stage_2=StageConfig(
                num_epochs=3,
                global_batch_size=250,
                microbatch_size=50,
                warmup_share=0.05,
                save_every_steps=1000,
                objective=ObjectiveConfig(
                    "last1:cos",
                    ResponseConfig("kl", weight=5.0, temperature=2.0),
                    HardConfig(2.0),
                ),
                optimizer=OptimizerConfig(
                    learning_rate=5e-4, schedule="linear", b2=0.98, eps=1e-6, clip_norm=5.0
                ),
            ),
        )
    )
