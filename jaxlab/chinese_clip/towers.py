"""Trained image towers as a start, and the small one that ships with the library.

The paper starts the image tower from English CLIP. `load_english_tower` is such a tower in small: a
modified ResNet for 32 x 32 pixels, trained on the training part of the emoji set with its English
names; `assets/english_tower/README.md` has the command and the log that made it.
"""

from pathlib import Path

from jaxtyping import PyTree

from jaxlab.chinese_clip.detection import differences
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import Weights, load_published
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig

EMOJI_MODEL = ChineseClipConfig(
    vision=ModifiedResNetConfig(
        image_size=32, stem_width=32, stages=(1, 1, 1), expansion=2, num_heads=4, output_dim=128
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
    ),
    context_length=24,
    initial_scale=25.0,
)
"""Sizes for the emoji set on two cores: 0.54 million image parameters, 2.3 million text ones."""

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
      variables: variables of a whole model.
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
    if weights.config.vision != config.vision:
        found = differences(config, weights.config)
        listed = ", ".join(
            f"{name}: {ours} here, {theirs} in the weights"
            for name, (ours, theirs) in found.items()
            if name.startswith("vision")
        )
        raise ValueError(
            f"the image tower does not fit config.model.vision ({listed}); set the model's "
            "sizes to those of the weights, or image_tower='random'"
        )
    params = {**variables["params"], "visual": weights.variables["params"]["visual"]}
    statistics = {k: weights.variables[k] for k in ("batch_stats",) if k in weights.variables}
    return {**variables, "params": params, **statistics}
