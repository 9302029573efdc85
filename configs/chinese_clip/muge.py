"""Fine-tuning on MUGE, the Chinese e-commerce retrieval set, as published.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/muge.py:vit_b_16 \
        --workdir=runs/muge --config.weights=clip_cn_vit-b-16.pt \
        --config.pairs.folder=MUGE

The folder holds the 250,314 training pairs and the validation split (29,806 images, 5,008 queries)
in the original's formats. The checkpoint with the best validation score is the result; the labels
of the test split are not public, whose features can be extracted and sent in.

Published settings, on 32 A100 (weight decay 1e-3, 52 tokens, moments as in pre-training), and
published results on the validation split, text to image, R@1 / R@5 / R@10 and their mean:

| argument     | batch  | rate | epochs | warm-up | tuned               | zero-shot           |
|--------------|--------|------|--------|---------|---------------------|---------------------|
| rn50         | 24,576 | 5e-5 | 60     | 100     | 48.6 75.1 84.0 69.2 | 42.6 68.6 77.9 63.0 |
| vit_b_16     | 12,800 | 2e-5 | 20     | 40      | 58.4 83.6 90.0 77.4 | 52.1 76.7 84.4 71.1 |
| vit_l_14     | 4,096  | 3e-5 | 20     | 100     | 63.3 85.6 91.3 80.1 | 56.3 79.8 86.2 74.1 |
| vit_l_14_336 | 8,192  | 2e-5 | 20     | 100     | 65.3 86.7 92.1 81.3 | 59.0 81.4 87.8 76.1 |
| vit_h_14     | 20,480 | 2e-5 | 20     | 20      | 68.9 88.7 93.1 83.6 | 63.0 84.1 89.2 78.8 |

`script` is the shell script of the original for ViT-B/16 (8 GPUs of 128 pairs, rate 5e-5, 3 epochs,
validation every 150 steps), `script_flip` the same with half of the patches dropped, `notebook` its
recipe for one GPU of 8 GB (batch 48, rate 3e-6, one epoch of 5,215 steps, blocks recomputed; about
40 minutes on a V100; published: 56.87 / 81.21 / 87.92, mean 75.33). With a batch of less than
1,024 lower the rate, its authors say.

References:
  Yang et al. 2022, arXiv:2211.01335, section 4.1 and the appendix; `run_scripts` of Chinese-CLIP.
"""

from experiments.chinese_clip.recipes import fine_tuning, on_one_gpu, scripted
from experiments.common import to_config_dict

PUBLISHED = {  # batch, rate, epochs, warm-up
    "vit_b_16": (12800, 2e-5, 20, 40),
    "rn50": (24576, 5e-5, 60, 100),
    "vit_l_14": (4096, 3e-5, 20, 100),
    "vit_l_14_336": (8192, 2e-5, 20, 100),
    "vit_h_14": (20480, 2e-5, 20, 20),
}
SCRIPT, NOTEBOOK = (1024, 5e-5, 3, 100), (48, 3e-6, 1, 100)
KINDS = (*PUBLISHED, "script", "script_flip", "notebook")


def get_config(arg: str = "vit_b_16"):
    if arg not in KINDS:
        raise ValueError(f"muge.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    if arg in PUBLISHED:
        return to_config_dict(tune(arg, PUBLISHED[arg]))
    if arg == "notebook":
        return to_config_dict(on_one_gpu(tune("vit_b_16", NOTEBOOK)))
    mask_ratio = 0.5 if arg == "script_flip" else 0.0
    recipe = scripted(tune("vit_b_16", SCRIPT), eval_every_steps=150, mask_ratio=mask_ratio)
    return to_config_dict(recipe)


def tune(size, settings):
    batch, rate, epochs, warmup = settings
    return fine_tuning(
        size, "data/MUGE", batch=batch, learning_rate=rate, epochs=epochs, warmup_steps=warmup,
        has_test=False,
    )  # fmt: skip
