"""Chinese CLIP: contrastive vision-language pre-training in Chinese.

An image tower of CLIP (vision transformer or modified ResNet) and a Chinese BERT, trained in two
stages: first the text tower towards a locked image tower, then both.

Use::

    import jax
    from jaxlab import chinese_clip as clip

    weights = clip.load_published(folder)  # or clip.load_original("clip_cn_vit-b-16.pt")
    model = clip.ChineseClip(weights.config)
    encoders = clip.make_encoders(model)
    images = image_transform(weights.config.vision.image_size)(image_bytes)[None]
    ids = WordPieceTokenizer().tokenize(["杰尼龟", "皮卡丘"], weights.config.context_length)
    scores = encoders.image(weights.variables, images) @ encoders.text(weights.variables, ids).T

with `from jaxlab.text import WordPieceTokenizer`, `from jaxlab.data.images import image_transform`.

Rooms: `model` (towers and the table of sizes), `losses`, `chunked` and `sigmoid` (losses over the
global batch, dense and in linear memory), `objective` and `distillation` (which of them a run
takes), `train` and `accumulation` (what a step and a stage are), `flops`, `data` and `emoji`
(examples to batches), `evaluate` and `zero_shot` (the published protocols), `weights`, `published`,
`detection` and `towers` (files).

References:
  Yang et al. 2022, "Chinese CLIP: Contrastive Vision-Language Pretraining in Chinese",
  arXiv:2211.01335; Chinese-CLIP 1.6.0 (MIT).
"""

from jaxlab.chinese_clip import zero_shot
from jaxlab.chinese_clip.chunked import chunked_contrastive_loss
from jaxlab.chinese_clip.detection import detect_config
from jaxlab.chinese_clip.distillation import DistillationConfig
from jaxlab.chinese_clip.evaluate import Encoders, encode_all, make_encoders
from jaxlab.chinese_clip.flops import train_flops
from jaxlab.chinese_clip.losses import contrastive_loss, in_batch_accuracies
from jaxlab.chinese_clip.model import (
    MODELS,
    ChineseClip,
    ChineseClipConfig,
    ClipFeatures,
    initialize,
    normalize,
    similarity,
)
from jaxlab.chinese_clip.objective import LossConfig, initial_objective, split_ids
from jaxlab.chinese_clip.published import Weights, load_published, save_published
from jaxlab.chinese_clip.sigmoid import sigmoid_loss
from jaxlab.chinese_clip.towers import EMOJI_MODEL, load_english_tower, with_image_tower
from jaxlab.chinese_clip.train import (
    StageVariables,
    Teacher,
    join_variables,
    make_clamp,
    make_loss_fn,
    make_original_decay_mask,
    make_pair_step,
    make_step_parts,
    model_variables,
    split_variables,
    with_batch_norm,
)
from jaxlab.chinese_clip.weights import load_original, save_original

__all__ = [
    "EMOJI_MODEL",
    "MODELS",
    "ChineseClip",
    "ChineseClipConfig",
    "ClipFeatures",
    "DistillationConfig",
    "Encoders",
    "LossConfig",
    "StageVariables",
    "Teacher",
    "Weights",
    "chunked_contrastive_loss",
    "contrastive_loss",
    "detect_config",
    "encode_all",
    "in_batch_accuracies",
    "initial_objective",
    "initialize",
    "join_variables",
    "load_english_tower",
    "load_original",
    "load_published",
    "make_clamp",
    "make_encoders",
    "make_loss_fn",
    "make_original_decay_mask",
    "make_pair_step",
    "make_step_parts",
    "model_variables",
    "normalize",
    "save_original",
    "save_published",
    "sigmoid_loss",
    "similarity",
    "split_ids",
    "split_variables",
    "train_flops",
    "with_batch_norm",
    "with_image_tower",
    "zero_shot",
]
