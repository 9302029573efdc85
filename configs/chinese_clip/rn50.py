"""Pre-training of ResNet-50 with RBT3 in two stages, as published.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/rn50.py \
        --workdir=runs/rn50 --config.pairs.folder=FOLDER \
        --config.image_tower=FILE --config.text_tower=FOLDER

The image tower starts from OpenAI CLIP RN50, the text tower from RBT3.
Stage 1 locks the image tower: batch 32,768, about 20 epochs, peak rate 1e-4. Stage 2 trains both:
batch 16,384, about 44 epochs, 2e-5. Both: cosine with 5,000 steps of warm-up, weight decay 1e-3,
beta2 0.999, epsilon 1e-8, 52 tokens, random crops and AutoAugment. The range of the crops is not
published (that of fine-tuning is taken), nor is the end of the cosine (that of each stage). The
authors switched stage when the mean recall of three zero-shot retrieval tasks stopped improving:
`--config.stage_1.patience=2 --config.stage_1.num_epochs=100` does that with the validation split.
`--config.stage_1.cached_views=8` computes the features of the locked tower once instead.

Published cost: 1.6 days of stage 1 and 5.8 days of stage 2 on 64 V100. The about 200
million pairs are not public as a whole. Published zero-shot retrieval, R@1 / R@5 / R@10:

* MUGE validation, text to image: 42.6 / 68.6 / 77.9, mean 63.0;
* Flickr30K-CN test, text to image 48.8 / 76.0 / 84.6,
  image to text 60.0 / 85.9 / 92.0;
* COCO-CN test, text to image 48.1 / 81.3 / 90.5,
  image to text 51.6 / 81.2 / 90.5.

References:
  Yang et al. 2022, arXiv:2211.01335, section 3 and the appendix.
"""

from experiments.chinese_clip.recipes import pretraining
from experiments.common import to_config_dict


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        pretraining("rn50", stage_1_epochs=20, stage_2_epochs=44, stage_2_batch=16384)
    )
