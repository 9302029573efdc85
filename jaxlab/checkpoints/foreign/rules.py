"""Rules of a `NameTable` that the checkpoints of many transformers share."""

import jax
import numpy as np

from jaxlab.checkpoints.foreign.names import TRANSPOSE, Rule, split_rows

_QKV = ("query", "key", "value")

BERT_BUFFERS = r"(.*\.)?embeddings\.(position_ids|token_type_ids)"
"""Integers that torch saves beside the weights of a BERT."""


def affine_rules(foreign: str, ours: str) -> list[Rule]:
    """A norm: weight and bias (gamma and beta in old files) <-> scale and bias.

    Args:
      foreign: name of the foreign module.
      ours: path of our module.
    """
    return [
        Rule(f"{foreign}.weight", f"{ours}/scale"),
        Rule(f"{foreign}.bias", f"{ours}/bias"),
        Rule(f"{foreign}.gamma", f"{ours}/scale", load_only=True),
        Rule(f"{foreign}.beta", f"{ours}/bias", load_only=True),
    ]


def dense_rules(foreign: str, ours: str, *, load_only: bool = False) -> list[Rule]:
    """A linear layer: weight (out, in) and bias <-> kernel (in, out) and bias.

    Args:
      foreign: name of the foreign module.
      ours: path of our module.
      load_only: see `Rule`.
    """
    return [
        Rule(f"{foreign}.weight", f"{ours}/kernel", TRANSPOSE, load_only),
        Rule(f"{foreign}.bias", f"{ours}/bias", load_only=load_only),
    ]


def joint_qkv_rules(weight: str, bias: str, ours: str, *, load_only: bool = False) -> list[Rule]:
    """One (3 * width, width) matrix whose rows are query, key and value.

    Args:
      weight: its foreign name.
      bias: the foreign name of its bias.
      ours: path of our attention.
      load_only: see `Rule`.
    """
    kernels = tuple(f"{ours}/{name}/kernel" for name in _QKV)
    biases = tuple(f"{ours}/{name}/bias" for name in _QKV)
    return [
        Rule(weight, kernels, split_rows(3, TRANSPOSE), load_only),
        Rule(bias, biases, split_rows(3), load_only),
    ]


def bert_rules(prefix: str, ours: str) -> list[Rule]:
    """A BERT body, `BertEncoder`.

    Args:
      prefix: stands before every foreign name.
      ours: path of our encoder.
    """
    embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
    own_layer, qkv = f"{ours}/layer_{{i}}", "query|key|value"
    self_attention = f"{layer}.attention.self"
    return [
        Rule(f"{embeddings}.word_embeddings.weight", f"{ours}/word_embeddings"),
        Rule(f"{embeddings}.position_embeddings.weight", f"{ours}/position_embeddings"),
        Rule(f"{embeddings}.token_type_embeddings.weight", f"{ours}/type_embeddings"),
        *affine_rules(f"{embeddings}.LayerNorm", f"{ours}/embeddings_norm"),
        *dense_rules(f"{self_attention}.{{name:{qkv}}}", f"{own_layer}/attention/{{name:{qkv}}}"),
        *dense_rules(f"{layer}.attention.output.dense", f"{own_layer}/attention/out"),
        *joint_qkv_rules(
            f"{self_attention}.Wqkv.weight",
            f"{self_attention}.Wqkv.bias",
            f"{own_layer}/attention",
            load_only=True,
        ),
        *dense_rules(f"{self_attention}.out_proj", f"{own_layer}/attention/out", load_only=True),
        *affine_rules(f"{layer}.attention.output.LayerNorm", f"{own_layer}/attention_norm"),
        *dense_rules(f"{layer}.intermediate.dense", f"{own_layer}/mlp_in"),
        *dense_rules(f"{layer}.output.dense", f"{own_layer}/mlp_out"),
        *affine_rules(f"{layer}.output.LayerNorm", f"{own_layer}/output_norm"),
    ]


def as_float32(array: np.ndarray) -> np.ndarray:
    """A floating array as float32 (itself if it is already); others unchanged."""
    return array.astype(np.float32, copy=False) if is_floating(array) else array


def is_floating(array: np.ndarray) -> bool:
    """Whether an array holds floating numbers, bfloat16 included."""
    return jax.numpy.issubdtype(array.dtype, jax.numpy.floating)
