"""Fine-tuning on long texts: ICR, whose captions have 45 characters on average, with 128 tokens.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/icr.py:vit_b_16 \
        --workdir=runs/icr --config.weights=clip_cn_vit-b-16.pt --config.pairs.folder=ICR

Published: the context of 128 and the test results, R@1 / R@5 / R@10 from text to image, from image
to text, and the mean of the six: ViT-B/16 55.4 / 79.0 / 85.2, 56.6 / 79.5 / 85.6, 73.5; ViT-L/14
61.6 / 83.6 / 89.0, 62.5 / 83.9 / 89.1, 78.3. Batch, rate, epochs and warm-up are not published;
those of Flickr30K-CN stand here, whose number of pairs is like its own. The text tower has 512
positions: up to that the context can be set to anything.

References:
  Yang et al. 2022, arXiv:2211.01335, section on long texts.
"""

from experiments.chinese_clip.recipes import fine_tuning, with_context
from experiments.common import to_config_dict

ASSUMED = {  # batch, rate, epochs, warm-up
    "vit_b_16": (7680, 5e-5, 16, 20),
    "vit_l_14": (4096, 2e-5, 16, 60),
}
KINDS = tuple(ASSUMED)


def get_config(arg: str = "vit_b_16"):
    if arg not in KINDS:
        raise ValueError(f"icr.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    batch, rate, epochs, warmup = ASSUMED[arg]
    recipe = fine_tuning(
        arg, "data/ICR", batch=batch, learning_rate=rate, epochs=epochs, warmup_steps=warmup
    )
    return to_config_dict(with_context(recipe, 128))
