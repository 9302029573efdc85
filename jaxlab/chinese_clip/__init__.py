"""Chinese CLIP: contrastive vision-language pre-training in Chinese.

An image tower of CLIP (vision transformer or modified ResNet) and a Chinese BERT, trained in two
stages: first the text tower towards a locked image tower, then both.

Use::

    from jaxlab import chinese_clip as clip

    model = clip.load("ViT-B-16")  # or a .pt file, or a folder of weights, Hugging Face's too
    model.similarity(["pokemon.jpeg"], ["杰尼龟", "皮卡丘"]).probabilities
    index, report = clip.update_index("photos.index", "photos", model)
    index.find(model, text="海边的日落")

The pure functions below it, for programs of one's own::

    weights = clip.load_weights("clip_cn_vit-b-16.pt")
    encoders = clip.make_encoders(clip.ChineseClip(weights.config))
    scores = encoders.image(weights.variables, images) @ encoders.text(weights.variables, ids).T

`README.md` beside this file is the guide. Rooms: `api` and `inputs` (load and use), `downloads`
(released models by name), `calibration` (match probabilities), `index`, `index_files` and
`indexing` (search in a folder of pictures), `model` (towers and the table of sizes), `losses`,
`chunked` and `sigmoid` (losses over the global batch, dense and in linear memory), `objective` and
`distillation` (which of them a run takes), `train` and `accumulation` (what a step and a stage
are), `flops`, `data` and `emoji` (examples to batches), `features` (of whole data sets),
`evaluate`, `zero_shot`, `templates` and `elevater` (the published protocols, prompts and data
sets), `loading` (one door to all files), `weights`, `huggingface` and `published` (their forms),
`starts` and `towers` (what training starts from), `tables` and `detection` (names and sizes).

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
from jaxlab.chinese_clip.distillation import DistillationConfig
from jaxlab.chinese_clip.downloads import available_models
from jaxlab.chinese_clip.evaluate import Encoders, encode_all, make_encoders, score_files
from jaxlab.chinese_clip.features import FeatureExtractor
from jaxlab.chinese_clip.flops import train_flops
from jaxlab.chinese_clip.huggingface import load_huggingface, save_huggingface
from jaxlab.chinese_clip.index import Hit, PictureIndex, make_index
from jaxlab.chinese_clip.index_files import load_index, save_index
from jaxlab.chinese_clip.indexing import update_index
from jaxlab.chinese_clip.loading import find_weights, load_weights
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
from jaxlab.chinese_clip.onnx_towers import export_onnx
from jaxlab.chinese_clip.published import Weights, load_published, save_published
from jaxlab.chinese_clip.sigmoid import sigmoid_loss
from jaxlab.chinese_clip.stablehlo import Programs, export_stablehlo, load_stablehlo
from jaxlab.chinese_clip.starts import load_image_tower, load_text_tower
from jaxlab.chinese_clip.templates import load_templates, templates_of_dataset
from jaxlab.chinese_clip.texts import encode_texts, trim_padding
from jaxlab.chinese_clip.towers import (
    EMOJI_MODEL,
    ImageTower,
    TextTower,
    load_english_tower,
    with_context_length,
    with_image_size,
    with_image_tower,
    with_text_tower,
)
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
    "FeatureExtractor",
    "Hit",
    "ImageTower",
    "LoadedModel",
    "LossConfig",
    "MatchCalibration",
    "PictureIndex",
    "Programs",
    "Similarity",
    "StageVariables",
    "Teacher",
    "TextTower",
    "Weights",
    "available_models",
    "chunked_contrastive_loss",
    "contrastive_loss",
    "detect_config",
    "encode_all",
    "encode_texts",
    "expected_calibration_error",
    "export_onnx",
    "export_stablehlo",
    "find_weights",
    "fit_calibration",
    "in_batch_accuracies",
    "initial_objective",
    "initialize",
    "join_variables",
    "load",
    "load_english_tower",
    "load_huggingface",
    "load_image_tower",
    "load_index",
    "load_original",
    "load_published",
    "load_stablehlo",
    "load_templates",
    "load_text_tower",
    "load_weights",
    "make_clamp",
    "make_encoders",
    "make_index",
    "make_loss_fn",
    "make_original_decay_mask",
    "make_pair_step",
    "make_step_parts",
    "model_variables",
    "normalize",
    "save_huggingface",
    "save_index",
    "save_original",
    "save_published",
    "score_files",
    "sigmoid_loss",
    "similarity",
    "split_cosines",
    "split_ids",
    "split_variables",
    "templates_of_dataset",
    "threshold_for_precision",
    "train_flops",
    "trim_padding",
    "update_index",
    "with_batch_norm",
    "with_context_length",
    "with_image_size",
    "with_image_tower",
    "with_text_tower",
    "zero_shot",
]
