"""Pre-training of ViT-L/14 with RoBERTa-wwm-ext-base in two stages, as published.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/vit_l_14.py \
        --workdir=runs/vit_l_14 --config.pairs.folder=FOLDER \
        --config.image_tower=FILE --config.text_tower=FOLDER

The image tower starts from OpenAI CLIP ViT-L/14, the text tower from RoBERTa-wwm-ext-base.
Stage 1 locks the image tower: batch 32,768, about 64 epochs, peak rate 1e-4. Stage 2 trains both:
batch 4,608, about 7 epochs, 2e-5. Both: cosine with 5,000 steps of warm-up, weight decay 1e-3,
beta2 0.98, epsilon 1e-6, 52 tokens, random crops and AutoAugment. The range of the crops is not
published (that of fine-tuning is taken), nor is the end of the cosine (that of each stage). The
authors switched stage when the mean recall of three zero-shot retrieval tasks stopped improving:
`--config.stage_1.patience=2 --config.stage_1.num_epochs=100` does that with the validation split.
`--config.stage_1.cached_views=8` computes the features of the locked tower once instead.

Published cost: 11.5 days of stage 1 and 8.0 days of stage 2 on 128 V100. The about 200
million pairs are not public as a whole. Published zero-shot retrieval, R@1 / R@5 / R@10:

* MUGE validation, text to image: 56.3 / 79.8 / 86.2, mean 74.1;
* Flickr30K-CN test, text to image 68.0 / 89.7 / 94.4,
  image to text 80.2 / 96.6 / 98.2;
* COCO-CN test, text to image 64.0 / 89.2 / 94.4,
  image to text 60.4 / 84.2 / 92.9.

References:
  Yang et al. 2022, arXiv:2211.01335, section 3 and the appendix.
"""

from experiments.chinese_clip.recipes import pretraining
from experiments.common import to_config_dict


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        pretraining("vit_l_14", stage_1_epochs=64, stage_2_epochs=7, stage_2_batch=4608)
    )
