"""Trained towers as a start, and the small image tower that ships with the library.

The paper starts the image tower from English CLIP and the text tower from Chinese RoBERTa; `starts`
reads their files. `load_english_tower` is such an image tower in small: a modified ResNet for
32 x 32 pixels, trained on the training part of the emoji set with its English names;
`assets/english_tower/README.md` has the command and the log that made it.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import Weights, load_published
from jaxlab.chinese_clip.tables import VisionConfig
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.positions import resize_positions, stretch_positions
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

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

_TEXT_TRAINING_ONLY = ("hidden_dropout", "attention_dropout", "init_std", "embedding_init_std")

ENGLISH_TOWER = Path(__file__).parent / "assets" / "english_tower"


def load_english_tower() -> Weights:
    """The English image tower of the emoji set: `visual` and its batch statistics alone.

    Raises:
      FileNotFoundError: if the file does not lie in the installed package.
      ValueError: if it is damaged.
    """
    return load_published(ENGLISH_TOWER)


class ImageTower(NamedTuple):
    """An image tower alone, such as that of an English CLIP.

    Attributes:
      config: its sizes.
      variables: `params` with `visual` and, where the file has it, `logit_scale`; `batch_stats` for
        a ResNet.
    """

    config: VisionConfig
    variables: dict[str, Any]


class TextTower(NamedTuple):
    """A text tower alone, such as a Chinese RoBERTa.

    Attributes:
      config: its sizes.
      variables: `params` with `bert` and, where it comes from a Chinese CLIP, `text_projection`.
    """

    config: BertConfig
    variables: dict[str, Any]


def with_image_tower(
    variables: PyTree, config: ChineseClipConfig, weights: Weights | ImageTower
) -> PyTree:
    """Variables whose image tower is a trained one.

    With the tower come its projection and its batch statistics, and the temperature where the
    weights have one, as in the original.

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
    theirs = weights.config.vision if isinstance(weights, Weights) else weights.config
    new = _taken(weights.variables["params"], "visual", "logit_scale", what="image tower")
    if listed := _list_differences(config.vision, theirs, _TRAINING_ONLY):
        raise ValueError(
            f"the image tower of the weights does not fit the model's ({listed}); take the sizes "
            "of the weights, or start from a random tower"
        )
    statistics = {k: weights.variables[k] for k in ("batch_stats",) if k in weights.variables}
    return {**variables, "params": {**variables["params"], **new}, **statistics}


def with_text_tower(
    variables: PyTree, config: ChineseClipConfig, weights: Weights | TextTower
) -> PyTree:
    """Variables whose text tower is a trained one.

    With a tower of a Chinese CLIP comes its projection into the joint space; a BERT has none, and
    the model keeps its own. A table of more positions than the model has is cut.

    Args:
      variables: variables of a model; its text tower may be absent.
      config: sizes of that model.
      weights: a trained model, or its text tower alone.

    Returns:
      New variables; the arrays are shared, not copied.

    Raises:
      ValueError: if the weights hold no text tower, or one of other sizes; every differing size is
        named.
    """
    theirs = weights.config.text if isinstance(weights, Weights) else weights.config
    new = _taken(weights.variables["params"], "bert", "text_projection", what="text tower")
    wanted = config.text.max_positions
    if theirs.max_positions > wanted:
        theirs = dataclasses.replace(theirs, max_positions=wanted)
        table = new["bert"]["position_embeddings"][:wanted]
        new["bert"] = {**new["bert"], "position_embeddings": table}
    if listed := _list_differences(config.text, theirs, _TEXT_TRAINING_ONLY):
        raise ValueError(
            f"the text tower of the weights does not fit the model's ({listed}); take the sizes "
            "of the weights, or start from a random tower"
        )
    projection = new.get("text_projection")
    if projection is not None and projection.shape[1] != config.embed_dim:
        raise ValueError(
            f"the text projection of the weights gives {projection.shape[1]} features, the model's "
            f"image tower {config.embed_dim}; take an image tower of that width, or a file of the "
            "BERT alone (parts=['bert'])"
        )
    return {**variables, "params": {**variables["params"], **new}}


def with_image_size(weights: Weights, image_size: int) -> Weights:
    """The model for images of another size: its position table resized as the original does.

    So ViT-L/14@336 begins as the finished ViT-L/14.

    Args:
      weights: a model with a vision transformer, or parts of one.
      image_size: height and width in pixels, a multiple of the patch size.

    Returns:
      New weights; all other arrays are shared.

    Raises:
      ValueError: if the image tower is a ResNet of another size, or the patches do not tile it.
    """
    config = dataclasses.replace(
        weights.config, vision=_with_size(weights.config.vision, image_size)
    )
    return Weights(config, _with_positions(weights.variables, config.vision))


def resize_image_tower(tower: ImageTower, image_size: int) -> ImageTower:
    """The image tower for images of another size, see `with_image_size`.

    Args:
      tower: a vision transformer.
      image_size: height and width in pixels.

    Raises:
      ValueError: if the tower is a ResNet of another size, or the patches do not tile the images.
    """
    config = _with_size(tower.config, image_size)
    return ImageTower(config, _with_positions(tower.variables, config))


def with_context_length(weights: Weights, context_length: int) -> Weights:
    """The model for texts of another length.

    Up to the number of positions (512 in the published models) only the config changes. Beyond it
    the position table is stretched (`jaxlab.layers.positions.stretch_positions`), which asks for
    some training afterwards.

    Args:
      weights: a model.
      context_length: length of a tokenised text, [CLS] and [SEP] included; at least 3.

    Returns:
      New weights; all other arrays are shared.

    Raises:
      ValueError: if the length is below 3.
    """
    text = weights.config.text
    length = max(text.max_positions, context_length)
    text = dataclasses.replace(text, max_positions=length)
    config = dataclasses.replace(weights.config, text=text, context_length=context_length)
    params = weights.variables["params"]
    if "bert" in params:
        table = stretch_positions(np.asarray(params["bert"]["position_embeddings"]), length)
        params = {**params, "bert": {**params["bert"], "position_embeddings": table}}
    return Weights(config, {**weights.variables, "params": params})


def _with_size(config: VisionConfig, image_size: int) -> VisionConfig:
    if config.image_size != image_size and not isinstance(config, VisionTransformerConfig):
        raise ValueError(
            f"image_size={image_size} for weights of images of {config.image_size} pixels; "
            "the positions of a ResNet's attention pool cannot be resized: use the image size of "
            "the weights"
        )
    return dataclasses.replace(config, image_size=image_size)


def _with_positions(variables: PyTree, config: VisionConfig) -> PyTree:
    """The variables with the position table of the config's grid, if they hold a transformer."""
    visual = variables["params"].get("visual")
    if visual is None or not isinstance(config, VisionTransformerConfig):
        return variables
    table = resize_positions(np.asarray(visual["positional_embedding"]), config.grid_size)
    visual = {**visual, "positional_embedding": table}
    return {**variables, "params": {**variables["params"], "visual": visual}}


def _taken(params: PyTree, needed: str, optional: str, *, what: str) -> dict[str, Any]:
    if needed not in params:
        raise ValueError(f"the weights hold {sorted(params)} and no {what} ({needed!r})")
    return {name: params[name] for name in (needed, optional) if name in params}


def _list_differences(ours: Any, theirs: Any, training_only: Collection[str]) -> str:
    """The fields in which two towers differ; "" where one can take the other's weights."""
    if type(ours) is not type(theirs):
        return f"{type(ours).__name__} here, {type(theirs).__name__} in the weights"
    names = [field.name for field in dataclasses.fields(ours) if field.name not in training_only]
    values = {name: (getattr(ours, name), getattr(theirs, name)) for name in names}
    return ", ".join(f"{n}: {a} here, {b} in the weights" for n, (a, b) in values.items() if a != b)
