"""Fine-tuning on COCO-CN, as published.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/coco_cn.py:vit_b_16 \
        --workdir=runs/coco_cn --config.weights=clip_cn_vit-b-16.pt \
        --config.pairs.folder=COCO-CN

The folder holds 18,341 / 1,000 / 1,000 images with 20,065 / 1,100 / 1,053 human texts, in the
original's formats. The checkpoint that is best on the validation split is measured on the test
split. A batch of 24,576 is larger than the training split: it wraps, and holds pairs twice.

Published settings, on 32 A100 (weight decay 1e-3, 52 tokens, moments as in pre-training):

| argument     | batch  | rate | epochs | warm-up |
|--------------|--------|------|--------|---------|
| rn50         | 24,576 | 5e-5 | 40     | 6       |
| vit_b_16     | 12,800 | 5e-5 | 30     | 6       |
| vit_l_14     | 4,096  | 6e-5 | 18     | 9       |
| vit_l_14_336 | 8,192  | 4e-5 | 18     | 2       |
| vit_h_14     | 5,120  | 2e-5 | 18     | 10      |

Published results on the test split, R@1 / R@5 / R@10:

| argument     | text to image      | image to text       |
|--------------|--------------------|---------------------|
| rn50         | 66.8 / 91.1 / 97.0 | 68.4 / 93.3 / 97.8  |
| vit_b_16     | 77.0 / 97.1 / 99.0 | 77.4 / 96.2 / 98.9  |
| vit_l_14     | 78.9 / 96.3 / 99.0 | 80.2 / 96.7 / 99.2  |
| vit_l_14_336 | 80.1 / 96.7 / 99.2 | 81.2 / 97.2 / 99.1  |
| vit_h_14     | 81.5 / 96.9 / 99.1 | 83.5 / 97.3 / 99.2  |

Zero-shot results on this set are not clean: translated COCO is in the pre-training data. `script`
is the recipe of the original's scripts for ViT-B/16 (8 GPUs of 1,024 pairs, rate 3e-5, 20 epochs).

References:
  Yang et al. 2022, arXiv:2211.01335, section 4.1 and the appendix; `run_scripts` of Chinese-CLIP.
"""

from experiments.chinese_clip.recipes import fine_tuning, scripted
from experiments.common import to_config_dict

PUBLISHED = {  # batch, rate, epochs, warm-up
    "vit_b_16": (12800, 5e-5, 30, 6),
    "rn50": (24576, 5e-5, 40, 6),
    "vit_l_14": (4096, 6e-5, 18, 9),
    "vit_l_14_336": (8192, 4e-5, 18, 2),
    "vit_h_14": (5120, 2e-5, 18, 10),
}
SCRIPT = (8192, 3e-5, 20, 6)
KINDS = (*PUBLISHED, "script")


def get_config(arg: str = "vit_b_16"):
    if arg not in KINDS:
        raise ValueError(f"coco_cn.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    if arg in PUBLISHED:
        return to_config_dict(tune(arg, PUBLISHED[arg]))
    return to_config_dict(scripted(tune("vit_b_16", SCRIPT), eval_every_steps=150))


def tune(size, settings):
    batch, rate, epochs, warmup = settings
    return fine_tuning(
        size, "data/COCO-CN", batch=batch, learning_rate=rate, epochs=epochs, warmup_steps=warmup
    )
