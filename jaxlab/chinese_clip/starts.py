"""Files of other models that a Chinese CLIP starts from: English CLIPs and Chinese BERTs.

The paper starts the image tower, its projection and the temperature from OpenAI's CLIP (LAION's
OpenCLIP for ViT-H/14), and the BERT body from RoBERTa-wwm-ext or RBT3. The original passes these
weights through half precision once; here they are taken as they are.
"""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.checkpoints.foreign.names import NameMismatchError, NameTable, Rule
from jaxlab.checkpoints.foreign.state_dicts import (
    CONFIG_FILE,
    read_json,
    read_model_folder,
    read_state_dict,
)
from jaxlab.chinese_clip.detection import (
    describe_tower_fit,
    detect_image_tower,
    detect_text_tower,
)
from jaxlab.chinese_clip.huggingface import (
    bert_config_from_huggingface,
    original_shapes,
    vision_config_from_huggingface,
)
from jaxlab.chinese_clip.loading import Found, find_weights, load_weights
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import read_document, stored_config, variable_shapes
from jaxlab.chinese_clip.tables import (
    PARTS,
    VisionConfig,
    bert_table,
    image_tower_table,
    load_variables,
)
from jaxlab.chinese_clip.towers import ImageTower, TextTower, resize_image_tower
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

_logger = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]

_IMAGE_PARTS = ("visual", "logit_scale")
_TEXT_PARTS = ("bert", "text_projection")
_ORIGINAL_IMAGE = ("visual.", "logit_scale")
_HUGGINGFACE_IMAGE = ("vision_model.", "visual_projection.", "logit_scale")
_BERT = ("embeddings.", "encoder.")
_NO_BERT = BertConfig(num_layers=1)
_NO_IMAGES = VisionTransformerConfig(1, 1, 1, 1, 1, 1, 1)


def load_image_tower(
    path: str | os.PathLike[str],
    config: VisionConfig | None = None,
    *,
    resize_positions: bool = False,
    verify: bool = True,
) -> ImageTower:
    """The image tower of a CLIP, English or Chinese, and its temperature.

    Reads OpenAI's archives (TorchScript) and state dicts with the same names: OpenAI's, OpenCLIP's
    (LAION), in torch or safetensors files; folders of Hugging Face's `CLIPModel`; and all that
    `load_weights` reads. The text tower of the file is left alone.

    Activations cannot be seen in tensors. As in the original, every vision transformer is taken for
    one with quick GELU, LAION's ViT-H/14 too, which was trained with the exact one: to keep that,
    give a config with `activation="gelu"`.

    Args:
      path: the file or folder.
      config: the tower wanted. What tensors do not show (heads, activation, epsilon) is taken from
        it, unless the file states it. `None` takes the sizes of the file and the original's values.
      resize_positions: let a vision transformer's position table be of another grid than that of
        `config`, and resize it bicubically as the original does.
      verify: compare checksums of torch files first (reads the file once).

    Returns:
      The tower; float32 views of the mapped file where that is float32.

    Raises:
      FileNotFoundError: if there is nothing at the path.
      ValueError: if it holds no image tower, is damaged, or does not fit `config`: then every
        missing, unexpected and mis-shaped tensor is named with both shapes, and the sizes that
        would fit. A ResNet for images of another size is refused.
    """
    found = find_weights(path)
    match found.kind:
        case "published" | "huggingface":
            weights = load_weights(found.path, parts=_existing(found, _IMAGE_PARTS), verify=verify)
            tower = ImageTower(weights.config.vision, weights.variables)
        case "clip":
            content = read_model_folder(found.path, verify=verify)
            stated = vision_config_from_huggingface(content.config)
            tensors = _starting(content.tensors, _HUGGINGFACE_IMAGE)
            tower = _image_tower(found.path, tensors, stated, huggingface=True)
        case "original" | "image_tower":
            tower = _image_tower_of_file(found.path, config, resize_positions, verify)
        case _:
            raise ValueError(
                f"{found.path} is {found.description}; give a file of OpenAI's CLIP or OpenCLIP, "
                "or weights of a Chinese CLIP"
            )
    if config is not None and resize_positions:
        tower = resize_image_tower(tower, config.image_size)
    _logger.info("image tower from %s: %s", found.path, tower.config)
    return tower


def load_text_tower(
    path: str | os.PathLike[str], config: BertConfig | None = None, *, verify: bool = True
) -> TextTower:
    """The body of a BERT, such as RoBERTa-wwm-ext or RBT3, or the text tower of a Chinese CLIP.

    Reads torch and safetensors files and Hugging Face folders of BERT, with or without the prefix
    `bert.`, with names of TensorFlow's form too (`LayerNorm/gamma`, `kernel`), and all that
    `load_weights` reads. Pooler and heads are dropped.

    Args:
      path: the file or folder; a `config.json` of BERT beside a file is read.
      config: the tower wanted. What tensors do not show (heads, activation, epsilon, dropout) is
        taken from it, unless a `config.json` states it. `None` takes the sizes of the file and
        BERT's values.
      verify: compare checksums of torch files first (reads the file once).

    Returns:
      The tower, with `text_projection` where it comes from a Chinese CLIP; float32 views of the
      mapped file where that is float32.

    Raises:
      FileNotFoundError: if there is nothing at the path.
      ValueError: if it holds no BERT, is damaged, or does not fit `config`: then every missing,
        unexpected and mis-shaped tensor is named with both shapes, and the sizes that would fit.
    """
    found = find_weights(path)
    match found.kind:
        case "published" | "huggingface":
            weights = load_weights(found.path, parts=_existing(found, _TEXT_PARTS), verify=verify)
            tower = TextTower(weights.config.text, weights.variables)
        case "bert":
            content = read_model_folder(found.path, verify=verify)
            tower = _text_tower(found.path, content.tensors, _bert_config(found.path), config)
        case "original" | "text_tower":
            content = read_state_dict(found.path, verify=verify)
            whole = stored_config(content.values)
            stated = whole.text if whole else _bert_config(found.path.parent)
            tower = _text_tower(found.path, content.tensors, stated, config)
        case _:
            raise ValueError(
                f"{found.path} is {found.description}; give a file or folder of a BERT, or weights "
                "of a Chinese CLIP"
            )
    _logger.info("text tower from %s: %s", found.path, tower.config)
    return tower


def _existing(found: Found, parts: tuple[str, ...]) -> list[str]:
    """Those of the parts that a folder has; the first of them is needed in any case."""
    has = read_document(found.path)["parts"] if found.kind == "published" else PARTS
    return [part for part in parts if part in has or part == parts[0]]


def _image_tower_of_file(
    path: Path, config: VisionConfig | None, resize_positions: bool, verify: bool
) -> ImageTower:
    content = read_state_dict(path, verify=verify)
    tensors = _starting(content.tensors, _ORIGINAL_IMAGE)
    if whole := stored_config(content.values):
        return _image_tower(path, tensors, whole.vision)
    return _image_tower(path, tensors, config, resize_positions=resize_positions)


def _image_tower(
    path: Path,
    tensors: Tensors,
    config: VisionConfig | None,
    *,
    resize_positions: bool = False,
    huggingface: bool = False,
) -> ImageTower:
    shapes = {name: array.shape for name, array in tensors.items()}
    with _naming(path):
        named = original_shapes(shapes) if huggingface else shapes
        fits = detect_image_tower(named, config)
        config = _fitting_size(config, fits, resize_positions) if config else fits
        table = image_tower_table(config, huggingface=huggingface)
        model = ChineseClipConfig(config, _NO_BERT)
        with _fitting(config, fits):
            return ImageTower(config, _load(tensors, table, model, _IMAGE_PARTS))


def _fitting_size(config: VisionConfig, fits: VisionConfig, resize_positions: bool) -> VisionConfig:
    """The config for the images of the file, if its positions can be resized afterwards."""
    if isinstance(config, VisionTransformerConfig) and isinstance(fits, VisionTransformerConfig):
        size = fits.grid_size * config.patch_size
        return dataclasses.replace(config, image_size=size) if resize_positions else config
    both = isinstance(config, ModifiedResNetConfig) and isinstance(fits, ModifiedResNetConfig)
    if both and config.grid_size != fits.grid_size:
        raise ValueError(
            f"its attention pool has positions for {fits.grid_size} x {fits.grid_size} places, the "
            f"config's ({config.image_size} pixels) for {config.grid_size} x {config.grid_size}; "
            "those of a ResNet cannot be resized: use the image size of the file"
        )
    return config


def _text_tower(
    path: Path, tensors: Tensors, stated: BertConfig | None, config: BertConfig | None
) -> TextTower:
    named = _bert_names(tensors)
    with _naming(path):
        fits = detect_text_tower({f"bert.{n}": a.shape for n, a in named.items()}, stated or config)
        config = stated or (_fitting_positions(config, fits) if config else fits)
        table = bert_table()
        if "text_projection" in named:
            rule = Rule("text_projection", "params/text_projection")
            table = dataclasses.replace(table, rules=(*table.rules, rule))
        images = dataclasses.replace(_NO_IMAGES, output_dim=_joint_dim(named))
        model = ChineseClipConfig(
            images, config, min(ChineseClipConfig.context_length, config.max_positions)
        )
        with _fitting(config, fits):
            return TextTower(config, _load(named, table, model, _TEXT_PARTS))


def _fitting_positions(config: BertConfig, fits: BertConfig) -> BertConfig:
    """The config with all positions of the file: with_text_tower cuts those that are too many."""
    positions = max(config.max_positions, fits.max_positions)
    return dataclasses.replace(config, max_positions=positions)


def _joint_dim(named: Tensors) -> int:
    projection = named.get("text_projection")
    return 1 if projection is None or projection.ndim != 2 else projection.shape[1]


def _bert_config(folder: Path) -> BertConfig | None:
    """The sizes that the `config.json` of a BERT in the folder states, if there is one."""
    path = folder / CONFIG_FILE
    values = read_json(path) if path.is_file() else {}
    if values.get("model_type") != "bert":
        return None
    try:
        return bert_config_from_huggingface(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _bert_names(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors of a BERT body under torch's names of today, and a text projection."""
    named = {}
    for original, array in tensors.items():
        name = original.removeprefix("module.")
        if "/" in name:
            name, array = _torch_name(name, array)
        name = name.removeprefix("bert.")
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if name.startswith(_BERT) or name == "text_projection":
            named[name] = array
    return named


def _torch_name(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """TensorFlow's `bert/encoder/layer_0/attention/self/query/kernel` (in, out) in torch's form."""
    name = re.sub(r"/layer_(\d+)/", r"/layer.\1/", name.removesuffix(":0")).replace("/", ".")
    if name.endswith((".adam_m", ".adam_v")):
        return f"optimizer.{name}", array
    if name.endswith("_embeddings"):
        return f"{name}.weight", array
    if name.endswith(".kernel"):
        return f"{name.removesuffix('kernel')}weight", array.T
    return name, array


def _starting(tensors: Tensors, starts: Iterable[str]) -> dict[str, np.ndarray]:
    """The tensors whose plain name starts so. A temperature of one element becomes a scalar."""
    plain = {name.removeprefix("module."): array for name, array in tensors.items()}
    chosen = {n: a for n, a in plain.items() if n.startswith(tuple(starts))}
    scale = chosen.get("logit_scale")
    if scale is not None and scale.size == 1:
        chosen["logit_scale"] = scale.reshape(())
    return chosen


def _load(
    tensors: Tensors, table: NameTable, config: ChineseClipConfig, parts: tuple[str, str]
) -> dict[str, Any]:
    """The variables of the first part, and those of the second where the file has it."""
    needed, optional = parts
    chosen = parts if optional in tensors else (needed,)
    return load_variables(tensors, table, variable_shapes(config), chosen)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the path in front of errors."""
    try:
        yield
    except NameMismatchError as error:
        raise NameMismatchError(f"{path}: {error}", error.problems) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextlib.contextmanager
def _fitting(tower: VisionConfig | BertConfig, fits: VisionConfig | BertConfig) -> Iterator[None]:
    """Adds to a mismatch which sizes would fit."""
    try:
        yield
    except NameMismatchError as error:
        text = f"{error}\n{describe_tower_fit(tower, fits)}"
        raise NameMismatchError(text, error.problems) from error
