"""ViT-L/14 at 336 pixels: two more epochs of stage 2 from the finished ViT-L/14, as published.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/vit_l_14_336.py \
        --workdir=runs/vit_l_14_336 --config.pairs.folder=FOLDER \
        --config.weights=runs/vit_l_14/model

Its position table is that of 224 pixels, resized bicubically to 24 x 24 patches. The rate is that
of stage 2, 2e-5; the batch is not published, and is that of ViT-L/14 here. Pictures are to be
stored at 336 pixels (`experiments.chinese_clip.build_dataset --image_size=336`).

Published cost: 0.7 days on 128 A100. Published zero-shot retrieval (R@1 / R@5 / R@10): MUGE
validation, text to image, 59.0 / 81.4 / 87.8, mean 76.1; Flickr30K-CN test, text to image and image
to text, 69.0 / 90.7 / 95.4 and 83.3 / 97.2 / 98.5; COCO-CN test 64.7 / 89.6 / 94.6 and
63.4 / 87.2 / 94.4.

References:
  Yang et al. 2022, arXiv:2211.01335, section 3 and the appendix.
"""

import dataclasses

from experiments.chinese_clip.recipes import pretraining
from experiments.common import to_config_dict


def get_config(arg: str = ""):
    del arg
    recipe = pretraining("vit_l_14_336", stage_1_epochs=0, stage_2_epochs=2, stage_2_batch=4608)
    return to_config_dict(dataclasses.replace(recipe, weights="runs/vit_l_14/model"))
