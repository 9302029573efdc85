"""MobileBERT's progressive transfer: layer after layer in turn, then the masked words.

    python -m experiments.distillation.train --workdir=runs/progressive \
        --config=configs/distillation/mobilebert.py --config.data.folder=books_and_wikipedia

Every layer of the student has an equal share of the transfer, in which it and those below it are
matched (hidden states and attention distributions, half a unit of weight in all) while those below
learn by a tenth; afterwards the loss is that of masked words. Student and teacher have equally many
layers and heads.

`12x384` learns from BERT's 12 layers of 768 and then from words alone. `mobilebert` and
`mobilebert_tiny` are the published networks with the steps of their code, 240,000 of transfer and
500,000 in which half of the loss of words is the teacher's distribution; their teacher, IB-BERT,
was never released: `ib_bert` makes one of masked words (of `--config.teacher.weights` it takes the
vocabulary alone), and `--config.teacher.weights` is then its `model/`. Not from that code, and not
measured here: the weights of what is matched, which layers are matched beside the one whose turn it
is, and whatever `ib_bert` has beside its sizes.

References:
  Sun et al. 2020, arXiv:2004.02984; mobilebert of google-research.
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
from jaxlab.distillation import HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.training import OptimizerConfig

KINDS = ("12x384", "mobilebert", "mobilebert_tiny", "ib_bert")
TRANSFER, AFTERWARDS = 240_000, 500_000
HIDDEN = "gap:hidden_mse[schedule=progressive]"
ATTENTION = "first:attention_kl[schedule=progressive]"


def get_config(arg: str = "12x384"):
    if arg not in KINDS:
        raise ValueError(f"mobilebert.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    steps = TRANSFER + AFTERWARDS
    if arg == "12x384":
        student = StudentConfig(weights="random", num_layers=12, width=384, mlp_width=1536)
        steps = TRANSFER
        words = HardConfig(1.0, schedule="after_transfer")
        objective = ObjectiveConfig(f"{HIDDEN}->linear,{ATTENTION}", ResponseConfig("none"), words)
    elif arg == "ib_bert":
        student = StudentConfig(weights="random", sizes="ib_bert_large")
        objective = LABELS_ALONE
    else:
        student = StudentConfig(weights="random", sizes=arg)
        objective = ObjectiveConfig(
            f"{HIDDEN},{ATTENTION}",
            ResponseConfig("ce", 0.5, schedule="after_transfer", tokens="label"),
            HardConfig(0.5, schedule="after_transfer"),
            transfer_share=TRANSFER / steps,
        )
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name="corpus", folder="books_and_wikipedia", max_length=512),
            teacher=TeacherConfig(
                weights="ib_bert" if arg.startswith("mobilebert") else "bert-base-uncased"
            ),
            student=student,
            stage_2=StageConfig(
                num_steps=steps,
                global_batch_size=2048,
                save_every_steps=10_000,
                lower_factor=1.0 if arg == "ib_bert" else 0.1,
                objective=objective,
                optimizer=OptimizerConfig(
                    name="adamw" if arg == "12x384" else "lamb",
                    learning_rate=5e-4 if arg == "12x384" else 1.5e-3,
                    warmup_steps=10_000,
                    schedule="linear",
                    eps=1e-6,
                    weight_decay=0.01,
                    clip_norm=1.0,
                ),
            ),
        )
    )
