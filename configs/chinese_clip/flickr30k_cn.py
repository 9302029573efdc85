"""Fine-tuning on Flickr30K-CN, as published.

    python -m experiments.chinese_clip.train \
        --config=configs/chinese_clip/flickr30k_cn.py:vit_b_16 \
        --workdir=runs/flickr30k_cn --config.weights=clip_cn_vit-b-16.pt \
        --config.pairs.folder=Flickr30k-CN

The folder holds 29,783 / 1,000 / 1,000 images with 148,915 / 5,000 machine-translated training and
validation texts and 5,000 human-translated test texts, in the original's formats. The checkpoint
that is best on the validation split is measured on the test split.

Published settings, on 32 A100 (weight decay 1e-3, 52 tokens, moments as in pre-training):

| argument     | batch  | rate | epochs | warm-up |
|--------------|--------|------|--------|---------|
| rn50         | 24,576 | 6e-5 | 30     | 20      |
| vit_b_16     | 7,680  | 5e-5 | 16     | 20      |
| vit_l_14     | 4,096  | 2e-5 | 16     | 60      |
| vit_l_14_336 | 8,192  | 2e-5 | 18     | 20      |
| vit_h_14     | 4,096  | 6e-6 | 18     | 6       |

Published results on the test split, R@1 / R@5 / R@10:

| argument     | text to image      | image to text       |
|--------------|--------------------|---------------------|
| rn50         | 66.7 / 89.4 / 94.1 | 84.2 / 96.7 / 98.0  |
| vit_b_16     | 79.1 / 94.8 / 97.4 | 93.5 / 99.0 / 99.5  |
| vit_l_14     | 82.7 / 96.7 / 98.6 | 96.1 / 99.5 / 99.9  |
| vit_l_14_336 | 84.4 / 97.1 / 98.7 | 96.6 / 99.8 / 100.0 |
| vit_h_14     | 83.8 / 96.9 / 98.6 | 95.3 / 99.7 / 100.0 |

`script` is the shell script of the original for ViT-B/16 (8 GPUs of 128 pairs, rate 5e-5, 3 epochs,
validation every 150 steps), `script_flip` the same with half of the patches dropped.

References:
  Yang et al. 2022, arXiv:2211.01335, section 4.1 and the appendix; `run_scripts` of Chinese-CLIP.
"""

from experiments.chinese_clip.recipes import fine_tuning, scripted
from experiments.common import to_config_dict

PUBLISHED = {  # batch, rate, epochs, warm-up
    "vit_b_16": (7680, 5e-5, 16, 20),
    "rn50": (24576, 6e-5, 30, 20),
    "vit_l_14": (4096, 2e-5, 16, 60),
    "vit_l_14_336": (8192, 2e-5, 18, 20),
    "vit_h_14": (4096, 6e-6, 18, 6),
}
SCRIPT = (1024, 5e-5, 3, 100)
KINDS = (*PUBLISHED, "script", "script_flip")


def get_config(arg: str = "vit_b_16"):
    if arg not in KINDS:
        raise ValueError(f"flickr30k_cn.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    if arg in PUBLISHED:
        return to_config_dict(tune(arg, PUBLISHED[arg]))
    mask_ratio = 0.5 if arg == "script_flip" else 0.0
    recipe = scripted(tune("vit_b_16", SCRIPT), eval_every_steps=150, mask_ratio=mask_ratio)
    return to_config_dict(recipe)


def tune(size, settings):
    batch, rate, epochs, warmup = settings
    return fine_tuning(
        size,
        "data/Flickr30k-CN",
        batch=batch,
        learning_rate=rate,
        epochs=epochs,
        warmup_steps=warmup,
    )
