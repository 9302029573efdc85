"""Folders of Hugging Face's `ChineseCLIPModel` <-> our variables.

Such a folder has `config.json`, whose sizes and activations are honoured, and the tensors in
`model.safetensors` or `pytorch_model.bin`, split over several files or not. There is no ResNet in
this form.
"""

import json
import logging
import math
import os
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign import files
from jaxlab.checkpoints.foreign.configs import BERT_FIELDS, Field, read_fields
from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten
from jaxlab.checkpoints.foreign.safetensors import write_safetensors
from jaxlab.checkpoints.foreign.state_dicts import CONFIG_FILE, read_model_folder
from jaxlab.chinese_clip.detection import Shapes, describe_fit
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import Weights, variable_shapes
from jaxlab.chinese_clip.tables import (
    PARTS,
    check_parts,
    check_whole,
    huggingface_table,
    load_variables,
)
from jaxlab.data.images import IMAGE_MEAN, IMAGE_STD
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig

MODEL_TYPE = "chinese_clip"
_OWN_ENTRY = "jaxlab"
_TENSORS_FILE = "model.safetensors"
_VOCABULARY_SIZE = 21128

_logger = logging.getLogger(__name__)

_VISION_FIELDS = (
    Field("image_size", "image_size", 224),
    Field("patch_size", "patch_size", 32),
    Field("num_hidden_layers", "num_layers", 12),
    Field("hidden_size", "width", 768),
    Field("num_attention_heads", "num_heads", 12),
    Field("intermediate_size", "mlp_width", 3072),
    Field("hidden_act", "activation", "quick_gelu"),
    Field("layer_norm_eps", "layer_norm_epsilon", 1e-5),
)
_FIXED: Mapping[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "num_channels": 3,
}
"""Entries that change what is computed and have one value here."""


def load_huggingface(
    folder: str | os.PathLike[str],
    *,
    parts: Collection[str] | None = None,
    verify: bool = True,
) -> Weights:
    """A folder of `ChineseCLIPModel` as our config and variables.

    Heads, activations, epsilons and dropout are those of `config.json`; an absent entry means what
    it means to transformers. The arrays are views of the mapped files until they are placed on a
    device.

    Args:
      folder: has `config.json` and `model.safetensors` or `pytorch_model.bin`, or the index of a
        split model and its files.
      parts: read only these parts (of `visual`, `bert`, `text_projection`, `logit_scale`); the
        bytes of the others stay untouched, so nothing is verified then.
      verify: check the CRC-32 of torch files first (reads the files once).

    Returns:
      The config, and float32 variables.

    Raises:
      FileNotFoundError: if a file is missing; all missing ones are named.
      ValueError: if a file cannot be read, the config is of another model or asks for what is not
        offered (an unknown activation is named), or the tensors do not fit it: then every missing,
        unexpected and mis-shaped tensor is named with both shapes, and the sizes that would fit.
    """
    chosen = PARTS if parts is None else parts
    check_parts(chosen)
    content = read_model_folder(folder, verify=verify and parts is None)
    try:
        config = config_from_huggingface(content.config)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / CONFIG_FILE}: {error}") from error
    try:
        shapes = variable_shapes(config)
        variables = load_variables(content.tensors, huggingface_table(), shapes, chosen)
    except NameMismatchError as error:
        named = original_shapes({n: a.shape for n, a in content.tensors.items()})
        raise NameMismatchError(
            f"{folder}: {error}\n{describe_fit(config, named)}", error.problems
        ) from error
    return Weights(config, variables)


def save_huggingface(
    folder: str | os.PathLike[str], variables: PyTree, config: ChineseClipConfig
) -> None:
    """Writes a folder that `ChineseCLIPModel.from_pretrained` and the processor load as it is.

    `config.json`, `model.safetensors`, `preprocessor_config.json` (images are squashed to the
    model's size, not cropped, as those of the released models) and, for models of the Chinese BERT
    vocabulary, the files of its tokenizer. What Hugging Face's config has no place for (context
    length, random start) stands under the entry `jaxlab`.

    Args:
      folder: where to; made if it does not exist.
      variables: all variables of the model.
      config: the model's config.

    Raises:
      ValueError: if the image tower is a ResNet, which Hugging Face has no form of, or a part of
        the model is absent.
      NameMismatchError: (a ValueError) if the variables are not those of the config.
    """
    folder = Path(folder)
    documents = {
        CONFIG_FILE: config_to_huggingface(config),
        "preprocessor_config.json": _preprocessor(config.vision.image_size),
    }
    tensors = huggingface_state_dict(variables, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / _TENSORS_FILE, tensors, {"format": "pt"})
    if config.text.vocab_size == _VOCABULARY_SIZE:
        documents["tokenizer_config.json"] = _tokenizer(config.context_length)
        vocabulary = resources.files("jaxlab.text").joinpath("assets", "vocab.txt").read_bytes()
        _write(folder / "vocab.txt", vocabulary)
    for name, document in documents.items():
        _write(folder / name, (json.dumps(document, indent=2) + "\n").encode("utf-8"))


def huggingface_state_dict(variables: PyTree, config: ChineseClipConfig) -> dict[str, np.ndarray]:
    """Our variables under the names of `ChineseCLIPModel`, in its layout; views where they can be.

    Args:
      variables: all variables of the model.
      config: the model's config.

    Raises:
      ValueError: if the image tower is a ResNet or a part of the model is absent.
      NameMismatchError: (a ValueError) if a variable has no form there.
    """
    _check_form(config)
    check_whole(variables, "Hugging Face's form")
    flat = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    return huggingface_table().save(flat)


def config_from_huggingface(values: Mapping[str, Any]) -> ChineseClipConfig:
    """Our config from the entries of a `config.json` of `ChineseCLIPModel`.

    Args:
      values: the entries. Absent ones take the defaults of transformers.

    Returns:
      The config. The context length, which the file does not have, is 52 unless `save_huggingface`
      wrote it.

    Raises:
      ValueError: if the file is of another model, or entries are of the wrong kind or ask for what
        is not offered; all are named.
    """
    if not is_huggingface_config(values):
        raise ValueError(
            f"it is of model_type={values.get('model_type')!r}; {MODEL_TYPE!r} is expected"
        )
    problems: list[str] = []
    text_values = _sub_config(values, "text_config", problems)
    vision_values = _sub_config(values, "vision_config", problems)
    text = read_fields(text_values, BERT_FIELDS, _FIXED, "text_config.", problems)
    vision = read_fields(vision_values, _VISION_FIELDS, _FIXED, "vision_config.", problems)
    dim = Field("projection_dim", "output_dim", 512).read(values, "", problems)
    log_scale = Field("logit_scale_init_value", "log_scale", 2.6592).read(values, "", problems)
    defaults = {
        "context_length": min(ChineseClipConfig.context_length, text["max_positions"]),
        "initial_scale": math.exp(log_scale),
        "embedding_init_std": text["init_std"],
    }
    own = _sub_config(values, _OWN_ENTRY, problems)
    own = {
        name: Field(name, name, default).read(own, f"{_OWN_ENTRY}.", problems)
        for name, default in defaults.items()
    }
    if problems:
        raise ValueError("; ".join(problems))
    if rate := vision_values.get("attention_dropout"):
        _logger.warning("vision_config.attention_dropout=%s: the image tower has no dropout", rate)
    text["embedding_init_std"] = own.pop("embedding_init_std")
    return ChineseClipConfig(
        VisionTransformerConfig(**vision, output_dim=dim), BertConfig(**text), **own
    )


def config_to_huggingface(config: ChineseClipConfig) -> dict[str, Any]:
    """The entries of `config.json`; `config_from_huggingface` is the inverse.

    Args:
      config: the model's config.

    Raises:
      ValueError: if the image tower is a ResNet.
    """
    _check_form(config)
    vision = {field.theirs: getattr(config.vision, field.ours) for field in _VISION_FIELDS}
    text = {field.theirs: getattr(config.text, field.ours) for field in BERT_FIELDS}
    return {
        "architectures": ["ChineseCLIPModel"],
        "model_type": MODEL_TYPE,
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": math.log(config.initial_scale),
        "text_config": {"model_type": f"{MODEL_TYPE}_text_model", **text},
        "vision_config": {
            "model_type": f"{MODEL_TYPE}_vision_model",
            "projection_dim": config.embed_dim,
            **vision,
        },
        _OWN_ENTRY: {
            "context_length": config.context_length,
            "initial_scale": config.initial_scale,
            "embedding_init_std": config.text.embedding_init_std,
        },
    }


def is_huggingface_config(values: Mapping[str, Any]) -> bool:
    """Whether the entries of a `config.json` are those of a `ChineseCLIPModel`."""
    names = values.get("architectures") or []
    return values.get("model_type") == MODEL_TYPE or "ChineseCLIPModel" in names


def bert_config_from_huggingface(values: Mapping[str, Any]) -> BertConfig:
    """The sizes of a BERT from the entries of its `config.json`.

    Args:
      values: the entries; absent ones take the defaults of transformers.

    Raises:
      ValueError: if entries are of the wrong kind or ask for what is not offered; all are named.
    """
    problems: list[str] = []
    sizes = read_fields(values, BERT_FIELDS, _FIXED, "", problems)
    if problems:
        raise ValueError("; ".join(problems))
    return BertConfig(**sizes)


def vision_config_from_huggingface(values: Mapping[str, Any]) -> VisionTransformerConfig:
    """The sizes of the image tower from the `config.json` of a CLIP or Chinese CLIP.

    Args:
      values: the entries of the whole model; absent ones take the defaults of transformers.

    Raises:
      ValueError: if entries are of the wrong kind or ask for what is not offered; all are named.
    """
    problems: list[str] = []
    vision_values = _sub_config(values, "vision_config", problems)
    sizes = read_fields(vision_values, _VISION_FIELDS, _FIXED, "vision_config.", problems)
    dim = Field("projection_dim", "output_dim", 512).read(values, "", problems)
    if problems:
        raise ValueError("; ".join(problems))
    return VisionTransformerConfig(**sizes, output_dim=dim)


def original_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes by Hugging Face's names -> those by the original's that tell a model's sizes.

    Args:
      shapes: name -> shape.
    """
    places = {
        "visual_projection.weight": "visual.proj",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    }
    named = {}
    for name, shape in shapes.items():
        if name.startswith("vision_model.encoder.layers."):
            block = name.replace("vision_model.encoder.layers.", "visual.transformer.resblocks.")
            named[block.replace("layer_norm1", "ln_1").replace("mlp.fc1", "mlp.c_fc")] = shape
        elif name.startswith("text_model."):
            named[f"bert.{name.removeprefix('text_model.')}"] = shape
        elif name in places:
            named[places[name]] = shape[::-1] if name.startswith("visual_pro") else shape
    return named


def _check_form(config: ChineseClipConfig) -> None:
    if not isinstance(config.vision, VisionTransformerConfig):
        raise ValueError(
            "the image tower is a ResNet, and Hugging Face's ChineseCLIPModel has vision "
            "transformers only; write a .pt or .safetensors file of the original's names instead"
        )


def _sub_config(values: Mapping[str, Any], name: str, problems: list[str]) -> Mapping[str, Any]:
    """The entries of one tower. Older files repeat them under NAME_dict, which then counts."""
    for key in (f"{name}_dict", name):
        if (entries := values.get(key)) is not None:
            if isinstance(entries, Mapping):
                return entries
            problems.append(f"{key}={entries!r}; wanted an object with the sizes of the tower")
    return {}


def _preprocessor(image_size: int) -> dict[str, Any]:
    size = {"height": image_size, "width": image_size}
    return {
        "image_processor_type": "ChineseCLIPImageProcessor",
        "feature_extractor_type": "ChineseCLIPFeatureExtractor",
        "processor_class": "ChineseCLIPProcessor",
        "do_resize": True,
        "size": size,
        "resample": 3,  # PIL's bicubic
        "do_center_crop": False,
        "crop_size": size,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }


def _tokenizer(context_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "BertTokenizer",
        "processor_class": "ChineseCLIPProcessor",
        "do_lower_case": True,
        "tokenize_chinese_chars": True,
        "model_max_length": context_length,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }


def _write(path: Path, data: bytes) -> None:
    with files.replacing(path) as file:
        file.write(data)
