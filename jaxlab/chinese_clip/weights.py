"""Checkpoints of the original Chinese CLIP (`clip_cn_*.pt`) <-> our variables.

The original stores linear weights as (out, in), convolutions as (out, in, height, width), and the
query, key and value of the image tower as one matrix; `original_table` holds the whole mapping.
Files of the original's flash-attention form and of QA-CLIP (the same layout) are read too.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign.names import (
    CONVOLUTION,
    TRANSPOSE,
    NameMismatchError,
    NameTable,
    Rule,
    flatten,
    split_rows,
    unflatten,
)
from jaxlab.checkpoints.foreign.safetensors import read_safetensors, write_safetensors
from jaxlab.checkpoints.foreign.torch_zip import read_torch_zip, write_torch_zip
from jaxlab.chinese_clip.detection import detect_config, differences, model_name
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import (
    Weights,
    as_float32,
    config_from_dict,
    config_to_dict,
    variable_shapes,
)
from jaxlab.layers.positions import resize_positions as resize_table
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

_POSITIONS = "visual.positional_embedding"
_COUNTER = "num_batches_tracked"
_QKV = ("query", "key", "value")


def original_table(config: ChineseClipConfig) -> NameTable:
    """The original's names <-> our paths, for one model.

    Args:
      config: decides the image tower and its stages.

    Returns:
      A table that drops the prefix `module.`, BERT's pooler and the counters of batch norms.
    """
    if isinstance(config.vision, ModifiedResNetConfig):
        vision = _resnet_rules(len(config.vision.stages))
    else:
        vision = _vision_transformer_rules()
    return NameTable(
        rules=(
            Rule("logit_scale", "params/logit_scale"),
            Rule("text_projection", "params/text_projection"),
            *vision,
            *_bert_rules(),
        ),
        ignored=(r"bert\.pooler\..*", r"bert\.embeddings\.position_ids", rf".*\.{_COUNTER}"),
        prefixes=("module.",),
    )


def load_original(
    path: str | os.PathLike[str],
    config: ChineseClipConfig | None = None,
    *,
    resize_positions: bool = False,
    verify: bool = True,
) -> Weights:
    """A checkpoint of the original as our variables.

    Reads the torch zip files of the original (released ones and those of its trainer, whose
    optimizer state is skipped) and safetensors files with the original's names. The arrays are
    views of the mapped file until they are placed on a device.

    Args:
      path: `.pt` or `.safetensors` file.
      config: the model wanted; `None` takes the config that `save_original` stored in the file, or
        else detects it from the shapes.
      resize_positions: let a vision transformer's position table be of another grid, and resize it
        bicubically as the original does.
      verify: check the CRC-32 of a torch file's members first (reads the file once).

    Returns:
      The config, and float32 variables.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file cannot be read, or does not fit the config; then every missing,
        unexpected and mis-shaped tensor is named with both shapes, and the config that would fit.
    """
    state_dict, stored = _read_state_dict(Path(path), verify)
    try:
        if config is None:
            config = stored or detect_config(_plain_shapes(state_dict))
        table = original_table(config)
        if resize_positions:
            state_dict = _with_resized_positions(state_dict, table, config)
        flat = table.load(state_dict, variable_shapes(config))
    except NameMismatchError as error:
        raise NameMismatchError(
            f"{path}: {error}\n{_what_fits(config, stored, state_dict)}", error.problems
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Weights(config, unflatten({p: as_float32(a) for p, a in flat.items()}))


def original_state_dict(variables: PyTree, config: ChineseClipConfig) -> dict[str, np.ndarray]:
    """Our variables under the original's names, in the original's layout.

    Args:
      variables: all variables of the model.
      config: the model's config.

    Returns:
      Original name -> array; the counters of batch norms, which the original does not use, are 0.

    Raises:
      NameMismatchError: (a ValueError) if a variable has no form in the original.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    saved = original_table(config).save(flat)
    counters = [n.replace("running_mean", _COUNTER) for n in saved if n.endswith("running_mean")]
    return saved | {name: np.zeros((), np.int64) for name in counters}


def save_original(
    path: str | os.PathLike[str], variables: PyTree, config: ChineseClipConfig
) -> None:
    """Writes our variables as a checkpoint that the original loads.

    A `.pt` file has the form of the released ones (`epoch`, `step`, `name`, and `state_dict` with
    the prefix `module.`); a `.safetensors` file holds the bare names. Both carry our config beside
    the weights, so that `load_original` restores heads and activations as well.

    Args:
      path: file to write, ending in `.pt` or `.safetensors`.
      variables: all variables of the model.
      config: the model's config.

    Raises:
      ValueError: if the suffix is another one.
      NameMismatchError: (a ValueError) if a variable has no form in the original.
    """
    path = Path(path)
    state_dict = original_state_dict(variables, config)
    text = json.dumps(config_to_dict(config), ensure_ascii=False)
    if path.suffix == ".safetensors":
        write_safetensors(path, state_dict, {"format": "pt", "config": text})
    elif path.suffix == ".pt":
        tree = {"epoch": 0, "step": 0, "name": model_name(config) or "jaxlab", "config": text}
        prefixed = {f"module.{name}": array for name, array in state_dict.items()}
        write_torch_zip(path, tree | {"state_dict": prefixed})
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}; use '.pt' or '.safetensors'")


def _affine(foreign: str, ours: str) -> list[Rule]:
    """A norm: weight and bias <-> scale and bias."""
    return [
        Rule(f"{foreign}.weight", f"params/{ours}/scale"),
        Rule(f"{foreign}.bias", f"params/{ours}/bias"),
    ]


def _dense(foreign: str, ours: str, *, load_only: bool = False) -> list[Rule]:
    return [
        Rule(f"{foreign}.weight", f"params/{ours}/kernel", TRANSPOSE, load_only),
        Rule(f"{foreign}.bias", f"params/{ours}/bias", load_only=load_only),
    ]


def _joint_qkv(weight: str, bias: str, ours: str, *, load_only: bool = False) -> list[Rule]:
    """One (3 * width, width) matrix whose rows are query, key and value."""
    kernels = tuple(f"params/{ours}/{name}/kernel" for name in _QKV)
    biases = tuple(f"params/{ours}/{name}/bias" for name in _QKV)
    return [
        Rule(weight, kernels, split_rows(3, TRANSPOSE), load_only),
        Rule(bias, biases, split_rows(3), load_only),
    ]


def _vision_transformer_rules() -> list[Rule]:
    block, ours = "visual.transformer.resblocks.{i}", "visual/layer_{i}"
    attention = f"{ours}/attention"
    return [
        Rule("visual.proj", "params/visual/projection"),
        Rule("visual.class_embedding", "params/visual/class_embedding"),
        Rule(_POSITIONS, "params/visual/positional_embedding"),
        Rule("visual.conv1.weight", "params/visual/patch_embedding", CONVOLUTION),
        *_affine("visual.ln_{end:pre|post}", "visual/ln_{end:pre|post}"),
        *_joint_qkv(f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias", attention),
        *_joint_qkv(
            f"{block}.attn.Wqkv.weight", f"{block}.attn.Wqkv.bias", attention, load_only=True
        ),
        *_dense(f"{block}.attn.out_proj", f"{attention}/out"),
        *_affine(f"{block}.ln_{{n}}", f"{ours}/ln_{{n}}"),
        *_dense(f"{block}.mlp.c_fc", f"{ours}/mlp_in"),
        *_dense(f"{block}.mlp.c_proj", f"{ours}/mlp_out"),
    ]


def _batch_norm(foreign: str, ours: str) -> list[Rule]:
    return [
        *_affine(foreign, ours),
        Rule(f"{foreign}.running_mean", f"batch_stats/{ours}/mean"),
        Rule(f"{foreign}.running_var", f"batch_stats/{ours}/var"),
    ]


def _convolution(foreign: str, ours: str) -> Rule:
    return Rule(f"{foreign}.weight", f"params/{ours}/kernel", CONVOLUTION)


def _resnet_rules(num_stages: int) -> list[Rule]:
    pool, ours_pool = "visual.attnpool", "visual/attention_pool"
    rules = [
        _convolution("visual.conv{n}", "visual/conv_{n}"),
        *_batch_norm("visual.bn{n}", "visual/bn_{n}"),
        Rule(f"{pool}.positional_embedding", f"params/{ours_pool}/positional_embedding"),
    ]
    for letter, name in zip("qkvc", (*_QKV, "out"), strict=True):
        rules += _dense(f"{pool}.{letter}_proj", f"{ours_pool}/attention/{name}")
    for stage in range(num_stages):
        block, ours = f"visual.layer{stage + 1}.{{b}}", f"visual/stage_{stage}_block_{{b}}"
        rules += [
            _convolution(f"{block}.conv{{n}}", f"{ours}/conv_{{n}}"),
            *_batch_norm(f"{block}.bn{{n}}", f"{ours}/bn_{{n}}"),
            _convolution(f"{block}.downsample.0", f"{ours}/shortcut_conv"),
            *_batch_norm(f"{block}.downsample.1", f"{ours}/shortcut_norm"),
        ]
    return rules


def _bert_rules() -> list[Rule]:
    embeddings, layer, ours = "bert.embeddings", "bert.encoder.layer.{i}", "bert/layer_{i}"
    qkv = "query|key|value"
    self_attention = f"{layer}.attention.self"
    return [
        Rule(f"{embeddings}.word_embeddings.weight", "params/bert/word_embeddings"),
        Rule(f"{embeddings}.position_embeddings.weight", "params/bert/position_embeddings"),
        Rule(f"{embeddings}.token_type_embeddings.weight", "params/bert/type_embeddings"),
        *_affine(f"{embeddings}.LayerNorm", "bert/embeddings_norm"),
        *_dense(f"{self_attention}.{{name:{qkv}}}", f"{ours}/attention/{{name:{qkv}}}"),
        *_dense(f"{layer}.attention.output.dense", f"{ours}/attention/out"),
        *_joint_qkv(
            f"{self_attention}.Wqkv.weight",
            f"{self_attention}.Wqkv.bias",
            f"{ours}/attention",
            load_only=True,
        ),
        *_dense(f"{self_attention}.out_proj", f"{ours}/attention/out", load_only=True),
        *_affine(f"{layer}.attention.output.LayerNorm", f"{ours}/attention_norm"),
        *_dense(f"{layer}.intermediate.dense", f"{ours}/mlp_in"),
        *_dense(f"{layer}.output.dense", f"{ours}/mlp_out"),
        *_affine(f"{layer}.output.LayerNorm", f"{ours}/output_norm"),
    ]


def _read_state_dict(
    path: Path, verify: bool
) -> tuple[dict[str, np.ndarray], ChineseClipConfig | None]:
    """The tensors of a file, and the config that `save_original` put beside them."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; give a .pt or .safetensors file of the original. Folders of "
            "this library are read by load_published"
        )
    if path.suffix == ".safetensors":
        file = read_safetensors(path)
        tree: Any = {"state_dict": file.tensors, "config": file.metadata.get("config")}
    else:
        tree = read_torch_zip(path, verify=verify)
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds a {type(tree).__name__}; a dict of tensors is expected")
    state_dict = tree.get("state_dict", tree)
    tensors = {
        str(name): value for name, value in state_dict.items() if isinstance(value, np.ndarray)
    }
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors, neither at the top nor under 'state_dict'; it has "
            f"{list(tree)[:10]}"
        )
    text = tree.get("config")
    stored = config_from_dict(json.loads(text)) if isinstance(text, str) else None
    return tensors, stored


def _plain_shapes(state_dict: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("module."): array.shape for name, array in state_dict.items()}


def _with_resized_positions(
    state_dict: Mapping[str, np.ndarray], table: NameTable, config: ChineseClipConfig
) -> dict[str, np.ndarray]:
    if not isinstance(config.vision, VisionTransformerConfig):
        raise ValueError(
            "resize_positions=True needs a vision transformer; the positions of a ResNet's "
            "attention pool cannot be resized: use the image size of the checkpoint"
        )
    return {
        name: resize_table(array, config.vision.grid_size)
        if table.plain_name(name) == _POSITIONS
        else array
        for name, array in state_dict.items()
    }


def _what_fits(
    config: ChineseClipConfig | None,
    stored: ChineseClipConfig | None,
    state_dict: Mapping[str, np.ndarray],
) -> str:
    try:
        fits = stored or detect_config(_plain_shapes(state_dict))
    except ValueError as error:
        return str(error)
    name = model_name(fits)
    changes = differences(config, fits) if config is not None else {}
    told = ", ".join(f"{field}={theirs} (not {ours})" for field, (ours, theirs) in changes.items())
    if not told:
        return "its sizes are those of the config: the file itself is incomplete or has more"
    return f"the file fits {name or 'a config'} with {told}"
