"""Tables of names: the original's, Hugging Face's and BERT's tensors <-> our variables.

The original stores linear weights as (out, in), convolutions as (out, in, height, width), and the
query, key and value of the image tower as one matrix, whose rows are cut in three. Hugging Face
keeps these three apart. Every transform but the joining of the three is a view.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxlab.checkpoints.foreign.names import (
    CONVOLUTION,
    TRANSPOSE,
    NameTable,
    Rule,
    unflatten,
)
from jaxlab.checkpoints.foreign.rules import (
    BERT_BUFFERS,
    affine_rules,
    as_float32,
    bert_rules,
    dense_rules,
    joint_qkv_rules,
)
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

VisionConfig = VisionTransformerConfig | ModifiedResNetConfig

POSITIONS = "params/visual/positional_embedding"
"""Our path of a vision transformer's position table."""

COUNTER = "num_batches_tracked"
"""Torch's counter in every batch norm, which the original does not use."""

PARTS = ("visual", "bert", "text_projection", "logit_scale")
"""The parts of a model that can be read alone; batch statistics go with `visual`."""

_QKV = ("query", "key", "value")
_POOLER = r"pooler\..*"


def original_table(config: ChineseClipConfig) -> NameTable:
    """The original's names <-> our paths, for one model.

    Args:
      config: decides the image tower and its stages.

    Returns:
      A table that drops the prefix `module.`, BERT's pooler and the counters of batch norms.
    """
    return NameTable(
        rules=(
            Rule("logit_scale", "params/logit_scale"),
            Rule("text_projection", "params/text_projection"),
            *_vision_rules(config.vision),
            *bert_rules("bert.", "params/bert"),
        ),
        ignored=(rf"bert\.{_POOLER}", BERT_BUFFERS, rf".*\.{COUNTER}"),
        prefixes=("module.",),
    )


def huggingface_table() -> NameTable:
    """The names of Hugging Face's `ChineseCLIPModel` <-> our paths; vision transformers only.

    Returns:
      A table that drops the text model's pooler and the buffers of position ids.
    """
    return NameTable(
        rules=(
            Rule("logit_scale", "params/logit_scale"),
            Rule("text_projection.weight", "params/text_projection", TRANSPOSE),
            *_huggingface_vision_rules(),
            *bert_rules("text_model.", "params/bert"),
        ),
        ignored=(rf"text_model\.{_POOLER}", BERT_BUFFERS),
    )


def image_tower_table(config: VisionConfig, *, huggingface: bool = False) -> NameTable:
    """The names of an image tower and a temperature <-> our paths.

    Args:
      config: decides the kind of tower and its stages.
      huggingface: use the names of Hugging Face's CLIP models, not those of the original.
    """
    vision = _huggingface_vision_rules() if huggingface else _vision_rules(config)
    return NameTable(
        rules=(Rule("logit_scale", "params/logit_scale"), *vision),
        ignored=(BERT_BUFFERS, rf".*\.{COUNTER}"),
        prefixes=("module.",),
    )


def bert_table() -> NameTable:
    """A BERT body without its pooler: the names of its tensors, without a prefix, <-> our paths."""
    return NameTable(rules=tuple(bert_rules("", "params/bert")), ignored=(_POOLER, BERT_BUFFERS))


def load_variables(
    tensors: Mapping[str, np.ndarray],
    table: NameTable,
    shapes: Mapping[str, tuple[int, ...]],
    parts: Collection[str] = PARTS,
) -> dict[str, Any]:
    """Our variables from tensors of another naming.

    Tensors of other parts are left alone: their bytes are not read.

    Args:
      tensors: foreign name -> array.
      table: the naming.
      shapes: our path -> shape, of all that the model has.
      parts: the parts wanted.

    Returns:
      Nested variables, floating arrays in float32; views of `tensors` where these are float32.

    Raises:
      NameMismatchError: (a ValueError) listing every missing, unexpected and mis-shaped name.
    """
    expected = {path: shape for path, shape in shapes.items() if part_of(path) in parts}
    wanted = {n: a for n, a in tensors.items() if _is_wanted(table.our_paths_of(n), parts)}
    flat = table.load(wanted, expected)
    return unflatten({path: as_float32(array) for path, array in flat.items()})


def part_of(path: str) -> str:
    """Which of `PARTS` one of our paths belongs to."""
    return path.split("/")[1]


def check_parts(parts: Collection[str]) -> None:
    """Refuse names that are not in `PARTS`.

    Args:
      parts: names of parts.

    Raises:
      ValueError: naming the unknown ones, or if there is none.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise ValueError(f"parts={sorted(parts)} are not parts of a model; use some of {PARTS}")


def check_whole(variables: Mapping[str, Any], form: str) -> None:
    """Refuse parts of a model where only a whole one can be written.

    Args:
      variables: variables, with `params`.
      form: what is to be written, for the message.

    Raises:
      ValueError: naming the parts that lack.
    """
    if absent := [part for part in PARTS if part not in variables["params"]]:
        raise ValueError(
            f"the variables lack {', '.join(absent)}: {form} holds whole models; save_published "
            "writes parts of one"
        )


def _is_wanted(paths: Collection[str], parts: Collection[str]) -> bool:
    """Whether a tensor belongs to the parts; one that no rule knows does, to be told about."""
    return not paths or any(part_of(path) in parts for path in paths)


def _affine(foreign: str, ours: str) -> list[Rule]:
    return affine_rules(foreign, f"params/{ours}")


def _dense(foreign: str, ours: str) -> list[Rule]:
    return dense_rules(foreign, f"params/{ours}")


def _vision_rules(config: VisionConfig) -> list[Rule]:
    if isinstance(config, ModifiedResNetConfig):
        return _resnet_rules(len(config.stages))
    return _vision_transformer_rules()


def _vision_transformer_rules() -> list[Rule]:
    block, ours = "visual.transformer.resblocks.{i}", "visual/layer_{i}"
    attention = f"{ours}/attention"
    return [
        Rule("visual.proj", "params/visual/projection"),
        Rule("visual.class_embedding", "params/visual/class_embedding"),
        Rule("visual.positional_embedding", POSITIONS),
        Rule("visual.conv1.weight", "params/visual/patch_embedding", CONVOLUTION),
        *_affine("visual.ln_{end:pre|post}", "visual/ln_{end:pre|post}"),
        *joint_qkv_rules(
            f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias", f"params/{attention}"
        ),
        *joint_qkv_rules(
            f"{block}.attn.Wqkv.weight",
            f"{block}.attn.Wqkv.bias",
            f"params/{attention}",
            load_only=True,
        ),
        *_dense(f"{block}.attn.out_proj", f"{attention}/out"),
        *_affine(f"{block}.ln_{{n}}", f"{ours}/ln_{{n}}"),
        *_dense(f"{block}.mlp.c_fc", f"{ours}/mlp_in"),
        *_dense(f"{block}.mlp.c_proj", f"{ours}/mlp_out"),
    ]


def _huggingface_vision_rules() -> list[Rule]:
    model, ours = "vision_model", "visual/layer_{i}"
    embeddings, layer = f"{model}.embeddings", f"{model}.encoder.layers.{{i}}"
    rules = [
        Rule("visual_projection.weight", "params/visual/projection", TRANSPOSE),
        Rule(f"{embeddings}.class_embedding", "params/visual/class_embedding"),
        Rule(f"{embeddings}.position_embedding.weight", POSITIONS),
        Rule(f"{embeddings}.patch_embedding.weight", "params/visual/patch_embedding", CONVOLUTION),
        # "pre_layrnorm" is how transformers spells it.
        *_affine(f"{model}.pre_layrnorm", "visual/ln_pre"),
        *_affine(f"{model}.post_layernorm", "visual/ln_post"),
        *_dense(f"{layer}.self_attn.out_proj", f"{ours}/attention/out"),
        *_affine(f"{layer}.layer_norm{{n}}", f"{ours}/ln_{{n}}"),
        *_dense(f"{layer}.mlp.fc1", f"{ours}/mlp_in"),
        *_dense(f"{layer}.mlp.fc2", f"{ours}/mlp_out"),
    ]
    for name in _QKV:
        rules += _dense(f"{layer}.self_attn.{name[0]}_proj", f"{ours}/attention/{name}")
    return rules


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
