"""Pre-training of ViT-H/14 with RoBERTa-wwm-ext-large in two stages, as published.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/vit_h_14.py \
        --workdir=runs/vit_h_14 --config.pairs.folder=FOLDER \
        --config.image_tower=FILE --config.text_tower=FOLDER

The image tower starts from LAION OpenCLIP ViT-H/14, the text tower from RoBERTa-wwm-ext-large.
Stage 1 locks the image tower: batch 32,768, about 26 epochs, peak rate 1e-4. Stage 2 trains both:
batch 32,768, about 7 epochs, 2e-5. Both: cosine with 5,000 steps of warm-up, weight decay 1e-3,
beta2 0.98, epsilon 1e-6, 52 tokens, random crops and AutoAugment. The range of the crops is not
published (that of fine-tuning is taken), nor is the end of the cosine (that of each stage). The
authors switched stage when the mean recall of three zero-shot retrieval tasks stopped improving:
`--config.stage_1.patience=2 --config.stage_1.num_epochs=100` does that with the validation split.
`--config.stage_1.cached_views=8` computes the features of the locked tower once instead.

Blocks are recomputed in the backward pass, as published for stage 2, and parameters and optimizer
lie sharded over the devices (`python -m experiments.chinese_clip.memory` shows what that saves).
The batch is a multiple of 8, 16, ... devices; 184 do not divide it.

Published cost: 3.8 days of stage 1 and 2.2 days of stage 2 on 184 A100. The about 200
million pairs are not public as a whole. Published zero-shot retrieval, R@1 / R@5 / R@10:

* MUGE validation, text to image: 63.0 / 84.1 / 89.2, mean 78.8;
* Flickr30K-CN test, text to image 71.2 / 91.4 / 95.5,
  image to text 81.6 / 97.5 / 98.8;
* COCO-CN test, text to image 69.2 / 89.9 / 96.1,
  image to text 63.0 / 86.6 / 92.9.

References:
  Yang et al. 2022, arXiv:2211.01335, section 3 and the appendix.
"""

from experiments.chinese_clip.recipes import pretraining
from experiments.common import to_config_dict


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        pretraining("vit_h_14", stage_1_epochs=26, stage_2_epochs=7, stage_2_batch=32768)
    )
