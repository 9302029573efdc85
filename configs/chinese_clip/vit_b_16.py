"""Pre-training of ViT-B/16 with RoBERTa-wwm-ext-base in two stages, as published.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/vit_b_16.py \
        --workdir=runs/vit_b_16 --config.pairs.folder=FOLDER \
        --config.image_tower=FILE --config.text_tower=FOLDER

The image tower starts from OpenAI CLIP ViT-B/16, the text tower from RoBERTa-wwm-ext-base.
Stage 1 locks the image tower: batch 32,768, about 44 epochs, peak rate 1e-4. Stage 2 trains both:
batch 16,384, about 15 epochs, 2e-5. Both: cosine with 5,000 steps of warm-up, weight decay 1e-3,
beta2 0.98, epsilon 1e-6, 52 tokens, random crops and AutoAugment. The range of the crops is not
published (that of fine-tuning is taken), nor is the end of the cosine (that of each stage). The
authors switched stage when the mean recall of three zero-shot retrieval tasks stopped improving:
`--config.stage_1.patience=2 --config.stage_1.num_epochs=100` does that with the validation split.
`--config.stage_1.cached_views=8` computes the features of the locked tower once instead.

Published cost: 4.5 days of stage 1 and 3.0 days of stage 2 on 128 V100. The about 200
million pairs are not public as a whole. Published zero-shot retrieval, R@1 / R@5 / R@10:

* MUGE validation, text to image: 52.1 / 76.7 / 84.4, mean 71.1;
* Flickr30K-CN test, text to image 62.7 / 86.9 / 92.8,
  image to text 74.6 / 93.5 / 97.1;
* COCO-CN test, text to image 62.2 / 86.6 / 94.9,
  image to text 57.0 / 84.1 / 93.6.

References:
  Yang et al. 2022, arXiv:2211.01335, section 3 and the appendix.
"""

from experiments.chinese_clip.recipes import pretraining
from experiments.common import to_config_dict


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        pretraining("vit_b_16", stage_1_epochs=44, stage_2_epochs=15, stage_2_batch=16384)
    )
