"""The English image tower that the tiny config starts from: a small CLIP on English names.

It is trained once on the training part of the emoji set, as long as it pays on two cores, and its
image tower ships with the library. The text tower is thrown away, hence small.

    python -m experiments.chinese_clip.train \
        --config=configs/chinese_clip/english_tower.py --workdir=runs/english_tower
    python -m experiments.chinese_clip.export --workdir=runs/english_tower --parts=visual \
        --output=jaxlab/chinese_clip/assets/english_tower

Tried, each once (English names; unseen drawing R@1 / R@10, unseen combination R@10):

* kernels as torch starts them, strong augmentation, 2,000 steps, context 16: 24.6 / 58.9, 52.8;
* the same kernels, mild augmentation, 1,600 steps, context 22: 19.9 / 55.5, 60.3;
* He kernels and all text weights of deviation 0.1, mild augmentation, 1,200 steps: 25.1 / 58.4,
  71.0;
* embedding tables of deviation 0.02 (only the other text weights 0.1), drawings shrunk before they
  are turned and scaled rather than sampled at a stride of two, strong augmentation, twice the
  weight decay, 4,000 steps: 40.1 / 70.9, 84.0 (30.4 / 63.4, 70.4 at step 2,000); shipped.

The last run took 42 minutes on two cores that other work shared.
"""

import dataclasses

from experiments.chinese_clip.settings import RunConfig, StageConfig
from experiments.common import to_config_dict
from jaxlab.chinese_clip import EMOJI_MODEL, LossConfig
from jaxlab.chinese_clip.emoji import EmojiDataConfig
from jaxlab.training import OptimizerConfig


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        RunConfig(
            model=dataclasses.replace(
                EMOJI_MODEL,
                text=dataclasses.replace(EMOJI_MODEL.text, num_layers=1),
                context_length=22,
            ),
            emoji=EmojiDataConfig(
                language="en",
                keyword_probability=0.25,
            ),
            loss=LossConfig(equal_texts_match=True),
            stage_2=StageConfig(
                num_steps=4000,
                global_batch_size=256,
                log_every_steps=50,
                save_every_steps=500,
                optimizer=OptimizerConfig(
                    learning_rate=3e-3, warmup_steps=40, b2=0.98, eps=1e-6,
                    weight_decay=0.1, clip_norm=1.0,
                ),
            ),
        )
    )  # fmt: skip
