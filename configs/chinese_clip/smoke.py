"""The whole path on real data in seconds: both stages on the emoji set, a few steps each.

It starts from the English image tower, so that a few steps of the text tower find far more than
chance: R@10 of unseen drawings among 1,911 names 33 % (chance 0.5 %), of unseen concepts among 191
names 41 % (chance 5.2 %).
"""

import dataclasses

from experiments.chinese_clip.settings import RunConfig, StageConfig
from experiments.common import to_config_dict
from jaxlab.chinese_clip import EMOJI_MODEL, LossConfig
from jaxlab.training import OptimizerConfig


def get_config(arg: str = ""):
    del arg
    text = dataclasses.replace(EMOJI_MODEL.text, num_layers=1)
    return to_config_dict(
        RunConfig(
            model=dataclasses.replace(EMOJI_MODEL, text=text),
            image_tower="english",
            loss=LossConfig(equal_texts_match=True),
            stage_1=StageConfig(
                num_steps=50,
                global_batch_size=128,
                image_locked=True,
                cached_views=1,
                optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=4, clip_norm=1.0),
            ),
            stage_2=StageConfig(
                num_steps=6,
                global_batch_size=32,
                save_every_steps=3,
                optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=4),
            ),
        )
    )
