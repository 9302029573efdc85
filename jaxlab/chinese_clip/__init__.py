"""Chinese CLIP: contrastive vision-language pre-training in Chinese.

An image tower of CLIP (vision transformer or modified ResNet) and a Chinese BERT, trained in two
stages: first the text tower towards a locked image tower, then both.

Use::

    from jaxlab import chinese_clip as clip

    model = clip.load("ViT-B-16")  # or a .pt file, or a folder of weights
    model.similarity(["pokemon.jpeg"], ["杰尼龟", "皮卡丘"]).probabilities
    index, report = clip.update_index("photos.index", "photos", model)
    index.find(model, text="海边的日落")

The pure functions below it, for programs of one's own::

    weights = clip.load_published(folder)  # or clip.load_original("clip_cn_vit-b-16.pt")
    encoders = clip.make_encoders(clip.ChineseClip(weights.config))
    scores = encoders.image(weights.variables, images) @ encoders.text(weights.variables, ids).T

`README.md` beside this file is the guide. Rooms: `api` and `inputs` (load and use), `downloads`
(released models by name), `calibration` (match probabilities), `index`, `index_files` and
`indexing` (search in a folder of pictures), `model` (towers and the table of sizes), `losses` and
`chunked` (the contrastive loss over the global batch, dense and in linear memory), `train` (what a
step and a stage are), `data` and `emoji` (examples to batches), `evaluate` and `zero_shot` (the
published protocols), `weights`, `published`, `detection` and `towers` (files).

References:
  Yang et al. 2022, "Chinese CLIP: Contrastive Vision-Language Pretraining in Chinese",
  arXiv:2211.01335; Chinese-CLIP 1.6.0 (MIT).
"""

from jaxlab.chinese_clip import zero_shot
from jaxlab.chinese_clip.api import LoadedModel, Similarity, load
from jaxlab.chinese_clip.calibration import (
    MatchCalibration,
    expected_calibration_error,
    fit_calibration,
    split_cosines,
    threshold_for_precision,
)
from jaxlab.chinese_clip.chunked import chunked_contrastive_loss
from jaxlab.chinese_clip.detection import detect_config
from jaxlab.chinese_clip.downloads import available_models
from jaxlab.chinese_clip.evaluate import Encoders, encode_all, make_encoders
from jaxlab.chinese_clip.index import Hit, PictureIndex, make_index
from jaxlab.chinese_clip.index_files import load_index, save_index
from jaxlab.chinese_clip.indexing import update_index
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
from jaxlab.chinese_clip.published import Weights, load_published, save_published
from jaxlab.chinese_clip.towers import EMOJI_MODEL, load_english_tower, with_image_tower
from jaxlab.chinese_clip.train import (
    LossConfig,
    StageVariables,
    join_variables,
    make_clamp,
    make_loss_fn,
    make_original_decay_mask,
    split_variables,
)
from jaxlab.chinese_clip.weights import load_original, save_original

__all__ = [
    "EMOJI_MODEL",
    "MODELS",
    "ChineseClip",
    "ChineseClipConfig",
    "ClipFeatures",
    "Encoders",
    "Hit",
    "LoadedModel",
    "LossConfig",
    "MatchCalibration",
    "PictureIndex",
    "Similarity",
    "StageVariables",
    "Weights",
    "available_models",
    "chunked_contrastive_loss",
    "contrastive_loss",
    "detect_config",
    "encode_all",
    "expected_calibration_error",
    "fit_calibration",
    "in_batch_accuracies",
    "initialize",
    "join_variables",
    "load",
    "load_english_tower",
    "load_index",
    "load_original",
    "load_published",
    "make_clamp",
    "make_encoders",
    "make_index",
    "make_loss_fn",
    "make_original_decay_mask",
    "normalize",
    "save_index",
    "save_original",
    "save_published",
    "similarity",
    "split_cosines",
    "split_variables",
    "threshold_for_precision",
    "update_index",
    "with_image_tower",
    "zero_shot",
]
