"""The published recipes of Chinese CLIP as settings; `configs/chinese_clip` has one file each.

Pre-training goes in two stages: the text tower towards a locked image tower, then both. Fine-tuning
is one more stage on the pairs of one data set. What all sizes share is here, what differs is in the
config files.

References:
  Yang et al. 2022, arXiv:2211.01335, sections 3 and 4.1 and the tables of hyper-parameters in the
  appendix; the shell scripts and the notebook of Chinese-CLIP 1.6.0.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from experiments.chinese_clip.settings import RunConfig, StageConfig
from jaxlab.chinese_clip import MODELS, LossConfig
from jaxlab.chinese_clip.data import PairDataConfig
from jaxlab.training import OptimizerConfig

STAGE_1_BATCH = 32768
WEIGHT_DECAY = 1e-3


class Size(NamedTuple):
    """What belongs to a size of the model.

    Attributes:
      name: key of `MODELS`.
      image_tower: file that pre-training starts the image tower from.
      text_tower: folder that pre-training starts the text tower from.
      released: file of the published weights, which fine-tuning starts from.
      sharding: placement of the parameters.
      remat: recompute every block in the backward pass; without effect on a ResNet.
    """

    name: str
    image_tower: str
    text_tower: str
    released: str
    sharding: str = "replicated"
    remat: bool = False


_BASE, _LARGE = "weights/chinese-roberta-wwm-ext", "weights/chinese-roberta-wwm-ext-large"

SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "rn50": Size("RN50", "weights/RN50.pt", "weights/rbt3", "weights/clip_cn_rn50.pt"),
        "vit_b_16": Size("ViT-B-16", "weights/ViT-B-16.pt", _BASE, "weights/clip_cn_vit-b-16.pt"),
        "vit_l_14": Size(
            "ViT-L-14", "weights/ViT-L-14.pt", _BASE, "weights/clip_cn_vit-l-14.pt", "fsdp", True
        ),
        "vit_l_14_336": Size(
            "ViT-L-14-336", "", _BASE, "weights/clip_cn_vit-l-14-336.pt", "fsdp", True
        ),
        "vit_h_14": Size(
            "ViT-H-14",
            "weights/open_clip_vit_h_14.safetensors",
            _LARGE,
            "weights/clip_cn_vit-h-14.pt",
            "fsdp",
            True,
        ),
    }
)
"""Sizes by the names of their configs. The paths are where the configs look; set your own."""


def size_optimizer(size: str, learning_rate: float, warmup_steps: int) -> OptimizerConfig:
    """AdamW with the published moments: those of ResNet-50 and of vision transformers differ.

    Args:
      size: key of `SIZES`.
      learning_rate: highest rate.
      warmup_steps: steps of linear warm-up.
    """
    is_resnet = size == "rn50"
    return OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        b1=0.9,
        b2=0.999 if is_resnet else 0.98,
        eps=1e-8 if is_resnet else 1e-6,
        weight_decay=WEIGHT_DECAY,
    )


def pretraining(
    size: str,
    *,
    stage_1_epochs: float,
    stage_2_epochs: float,
    stage_2_batch: int,
) -> RunConfig:
    """Two-stage pre-training.

    Stage 1: batch 32,768, peak rate 1e-4; stage 2: 2e-5; both with 5,000 steps of warm-up, cosine
    decay, weight decay 1e-3, random crops and AutoAugment, a multiplier of at most 100.

    Args:
      size: key of `SIZES`.
      stage_1_epochs: passes of the first stage; 0 leaves it out.
      stage_2_epochs: passes of the second.
      stage_2_batch: global batch of the second stage.
    """
    chosen = SIZES[size]
    stage = StageConfig(
        num_epochs=stage_1_epochs or stage_2_epochs,
        global_batch_size=STAGE_1_BATCH,
        log_every_steps=10,
        eval_every_epochs=1,
        save_every_epochs=1,
        keep_best=1,
        best_metric="valid/mean_recall",
        seed=123,
        decay_like_original=True,
        image_locked=True,
        optimizer=size_optimizer(size, 1e-4, 5000),
    )
    stage_2 = dataclasses.replace(
        stage,
        num_epochs=stage_2_epochs,
        global_batch_size=stage_2_batch,
        image_locked=False,
        optimizer=size_optimizer(size, 2e-5, 5000),
    )
    return RunConfig(
        model=MODELS[chosen.name],
        dtype="bfloat16",
        remat=chosen.remat,
        scan=chosen.remat,
        image_tower=chosen.image_tower or "random",
        text_tower=chosen.text_tower if chosen.image_tower else "random",
        data="pairs",
        pairs=PairDataConfig(folder="data/pretraining", remainder="wrap", on_error="skip"),
        # A dense matrix of 32,768 x 32,768 logits would take 4 GiB, and its gradient as much.
        loss=LossConfig(kind="chunked", chunk_size=4096),
        sharding="fsdp" if chosen.sharding == "fsdp" else "replicated",
        stage_1=stage if stage_1_epochs else None,
        stage_2=stage_2,
    )


def fine_tuning(
    size: str,
    folder: str,
    *,
    batch: int,
    learning_rate: float,
    epochs: float,
    warmup_steps: int,
    has_test: bool = True,
) -> RunConfig:
    """Fine-tuning of the released weights on one data set; the best checkpoint is the result.

    Args:
      size: key of `SIZES`.
      folder: the data set, in the original's formats.
      batch: global batch.
      learning_rate: highest rate.
      epochs: passes over the pairs.
      warmup_steps: steps of linear warm-up.
      has_test: whether the labels of the test split are public. It is measured at the end, with the
        checkpoint that is best on the validation split.
    """
    chosen = SIZES[size]
    best = "valid/mean_recall" if has_test else "valid/text_to_image_mean_recall"
    return RunConfig(
        model=MODELS[chosen.name],
        dtype="bfloat16",
        remat=chosen.remat,
        scan=chosen.remat,
        weights=chosen.released,
        data="pairs",
        pairs=PairDataConfig(
            folder=folder, remainder="wrap", test_split="test" if has_test else ""
        ),
        sharding="fsdp" if chosen.sharding == "fsdp" else "replicated",
        stage_2=StageConfig(
            num_epochs=epochs,
            global_batch_size=batch,
            eval_every_epochs=1,
            save_every_epochs=1,
            keep_best=1,
            best_metric=best,
            result="best",
            seed=123,
            decay_like_original=True,
            optimizer=size_optimizer(size, learning_rate, warmup_steps),
        ),
    )


def scripted(config: RunConfig, *, eval_every_steps: int, mask_ratio: float = 0.0) -> RunConfig:
    """A recipe as the original's shell scripts run it: validation by steps, FLIP where asked.

    Args:
      config: the recipe.
      eval_every_steps: updates between two validations.
      mask_ratio: share of the patches that are dropped.
    """
    assert config.stage_2 is not None, "a fine-tuning recipe"
    stage = dataclasses.replace(
        config.stage_2,
        eval_every_epochs=0.0,
        eval_every_steps=eval_every_steps,
        mask_ratio=mask_ratio,
    )
    return dataclasses.replace(config, stage_2=stage)


def on_one_gpu(config: RunConfig) -> RunConfig:
    """A recipe with every block recomputed, as the original's notebook runs it.

    Args:
      config: the recipe.
    """
    return dataclasses.replace(config, remat=True)


def with_context(config: RunConfig, context_length: int) -> RunConfig:
    """A recipe for longer texts.

    Args:
      config: the recipe.
      context_length: length of a tokenised text.
    """
    model = dataclasses.replace(config.model, context_length=context_length)
    return dataclasses.replace(config, model=model)
