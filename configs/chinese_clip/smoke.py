"""The whole path on real data in seconds: both stages on the emoji set, a few steps each."""

from experiments.chinese_clip.settings import RunConfig, StageConfig
from experiments.common import to_config_dict
from jaxlab.chinese_clip import EMOJI_MODEL, LossConfig
from jaxlab.training import OptimizerConfig


def get_config(arg: str = ""):
    del arg
    optimizer = OptimizerConfig(
        learning_rate=2e-3, warmup_steps=4, weight_decay=0.05, clip_norm=1.0
    )
    return to_config_dict(
        RunConfig(
            model=EMOJI_MODEL,
            loss=LossConfig(equal_texts_match=True),
            stage_1=StageConfig(
                num_steps=12,
                global_batch_size=64,
                image_locked=True,
                cached_views=1,
                optimizer=optimizer,
            ),
            stage_2=StageConfig(
                num_steps=12, global_batch_size=64, save_every_steps=6, optimizer=optimizer
            ),
        )
    )
