"""Trained image towers as a start, and the small one that ships with the library.

The paper starts the image tower from English CLIP. `load_english_tower` is such a tower in small: a
modified ResNet for 32 x 32 pixels, trained on the training part of the emoji set with its English
names; `assets/english_tower/README.md` has the command and the log that made it.
"""

import dataclasses
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import Weights, load_published
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig

EMOJI_MODEL = ChineseClipConfig(
    vision=ModifiedResNetConfig(
        image_size=32,
        stem_width=32,
        stages=(1, 1, 1),
        expansion=2,
        num_heads=4,
        output_dim=128,
        kernel_init="he",
    ),
    text=BertConfig(
        num_layers=2,
        width=96,
        num_heads=2,
        mlp_width=384,
        max_positions=32,
        activation="relu",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_std=0.1,
    ),
    context_length=24,
    initial_scale=25.0,
)
"""Sizes for the emoji set on two cores: 0.54 million image parameters, 2.3 million text ones."""

_TRAINING_ONLY = ("kernel_init", "norm_decay", "norm_groups")
"""Fields of an image tower that say how it is trained, not what it computes."""

ENGLISH_TOWER = Path(__file__).parent / "assets" / "english_tower"


def load_english_tower() -> Weights:
    """The English image tower of the emoji set: `visual` and its batch statistics alone.

    Raises:
      FileNotFoundError: if the file does not lie in the installed package.
      ValueError: if it is damaged.
    """
    return load_published(ENGLISH_TOWER)


def with_image_tower(variables: PyTree, config: ChineseClipConfig, weights: Weights) -> PyTree:
    """Variables whose image tower (projection and batch statistics too) is a trained one.

    Args:
      variables: variables of a model; its image tower may be absent.
      config: sizes of that model.
      weights: a trained model, or its image tower alone.

    Returns:
      New variables; the arrays are shared, not copied.

    Raises:
      ValueError: if the weights hold no image tower, or one of other sizes; every differing size
        is named.
    """
    if "visual" not in weights.variables["params"]:
        raise ValueError(
            f"the weights hold {sorted(weights.variables['params'])} and no image tower ('visual')"
        )
    if listed := _list_differences(config.vision, weights.config.vision):
        raise ValueError(
            f"the image tower of the weights does not fit the model's ({listed}); take the sizes "
            "of the weights, or start from a random tower"
        )
    params = {**variables["params"], "visual": weights.variables["params"]["visual"]}
    statistics = {k: weights.variables[k] for k in ("batch_stats",) if k in weights.variables}
    return {**variables, "params": params, **statistics}


def _list_differences(ours: Any, theirs: Any) -> str:
    """The fields in which two image towers differ; "" where one can take the other's weights."""
    if type(ours) is not type(theirs):
        return f"{type(ours).__name__} here, {type(theirs).__name__} in the weights"
    names = [field.name for field in dataclasses.fields(ours) if field.name not in _TRAINING_ONLY]
    values = {name: (getattr(ours, name), getattr(theirs, name)) for name in names}
    return ", ".join(f"{n}: {a} here, {b} in the weights" for n, (a, b) in values.items() if a != b)
