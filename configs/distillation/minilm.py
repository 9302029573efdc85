"""MiniLM and MiniLMv2: the relations inside the last layer of a teacher, on plain text.

    python -m experiments.distillation.train --workdir=runs/minilm \
        --config=configs/distillation/minilm.py:6x384 --config.data.folder=books_and_wikipedia

`12x384`, `6x384` and `6x768` learn the last layer's attention distribution and the relation of its
values, with equal weights; texts of 512 tokens, 400,000 steps of which 4,000 warm up, batches of
1,024 at 5e-4 for 6x768 and of 256 at 3e-4 for the narrow ones, as commonly cited. No loss of masked
words: it lowers the results, says the author. `v2_6x384`, `v2_12x384` and `v2_6x768` learn the
relations of queries, of keys and of values in 48 heads, whatever heads the networks have; for a
large teacher take 64 and an upper-middle layer: `--config.stage_2.objective.matches`. Batch and
rate of v2 are not published: those of the first version stand here.

An assistant (teacher's depth, student's width) comes between where the student has half of the
layers and half of the width at most, by the authors' advice: train `12x384` first and give its
`model/` as the teacher of `6x384`.

References:
  Wang et al. 2020, arXiv:2002.10957; Wang et al. 2021, arXiv:2012.15828.
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

SIZES = {"12x384": (12, 384, 1536), "6x384": (6, 384, 1536), "6x768": (6, 768, 3072)}
KINDS = (*SIZES, *(f"v2_{size}" for size in SIZES))
FIRST = "last1:attention_kl,last1:value_relation[heads=12]"
SECOND = ",".join(f"last1:{name}_relation[heads=48]" for name in ("query", "key", "value"))


def get_config(arg: str = "6x384"):
    if arg not in KINDS:
        raise ValueError(f"minilm.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    num_layers, width, mlp_width = SIZES[arg.removeprefix("v2_")]
    is_wide = width == 768
    return to_config_dict(
        RunConfig(
            data=TextsConfig(name="corpus", folder="books_and_wikipedia", max_length=512),
            teacher=TeacherConfig(weights="bert-base-uncased"),
            student=StudentConfig(
                weights="random", num_layers=num_layers, width=width, mlp_width=mlp_width
            ),
            stage_2=StageConfig(
                num_steps=400_000,
                global_batch_size=1024 if is_wide else 256,
                save_every_steps=10_000,
                objective=ObjectiveConfig(
                    SECOND if arg.startswith("v2_") else FIRST, ResponseConfig("none")
                ),
                optimizer=OptimizerConfig(
                    learning_rate=5e-4 if is_wide else 3e-4,
                    warmup_steps=4000,
                    schedule="linear",
                    weight_decay=0.01,
                    clip_norm=1.0,
                ),
            ),
        )
    )
