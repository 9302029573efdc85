"""Encoder-decoder models in Hugging Face's form (BART, mBART) <-> our parameters."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign.configs import Field, read_fields
from jaxlab.checkpoints.foreign.names import NameTable, Rule, Transform, flatten, naming, unflatten
from jaxlab.checkpoints.foreign.rules import affine_rules, as_float32, dense_rules
from jaxlab.checkpoints.foreign.state_dicts import read_model_folder, write_model_folder
from jaxlab.distillation.terms import Shape
from jaxlab.layers.seq2seq import Seq2Seq, Seq2SeqConfig

_NORMS = {"bart": "post", "mbart": "pre"}
_FIELDS = (
    Field("vocab_size", "vocab_size", 50265),
    Field("encoder_layers", "num_encoder_layers", 12),
    Field("decoder_layers", "num_decoder_layers", 12),
    Field("d_model", "width", 1024),
    Field("encoder_attention_heads", "num_heads", 16),
    Field("encoder_ffn_dim", "mlp_width", 4096),
    Field("max_position_embeddings", "max_positions", 1024),
    Field("pad_token_id", "pad_id", 1),
    Field("activation_function", "activation", "gelu"),
    Field("dropout", "dropout", 0.1),
    Field("attention_dropout", "attention_dropout", 0.0),
    Field("activation_dropout", "activation_dropout", 0.0),
    Field("init_std", "init_std", 0.02),
)
_ROW = Transform(
    lambda arrays: [a.reshape(-1) for a in arrays],
    lambda arrays: [a.reshape(1, -1) for a in arrays],
)
"""A vector that the file has as a matrix of one row."""


class PretrainedSeq2Seq(NamedTuple):
    """An encoder-decoder model out of a file.

    Attributes:
      config: its sizes.
      params: nested parameters, NumPy arrays in float32.
    """

    config: Seq2SeqConfig
    params: dict[str, Any]


def seq2seq_shape(config: Seq2SeqConfig) -> Shape:
    """What an objective has to know of an encoder-decoder.

    Args:
      config: of the model.
    """
    return Shape(
        config.num_encoder_layers,
        config.width,
        config.num_heads,
        decoder_layers=config.num_decoder_layers,
    )


def load_seq2seq(folder: str | os.PathLike[str], *, verify: bool = True) -> PretrainedSeq2Seq:
    """A BART or mBART in Hugging Face's form.

    Args:
      folder: has `config.json` and the tensors.
      verify: check the CRC-32 of torch files first.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the config is of another model, or the tensors do not fit it: then all that
        are missing, unexpected or mis-shaped are named.
    """
    content = read_model_folder(folder, verify=verify)
    with naming(folder):
        config = _config(content.config)
        flat = seq2seq_table(config).load(content.tensors, _shapes(config))
    return PretrainedSeq2Seq(config, unflatten({p: as_float32(a) for p, a in flat.items()}))


def save_seq2seq(folder: str | os.PathLike[str], params: PyTree, config: Seq2SeqConfig) -> None:
    """Writes a folder that `BartForConditionalGeneration` (norms after) or mBART's class loads.

    Args:
      folder: where to; made if it does not exist.
      params: all parameters.
      config: of the model.

    Raises:
      NameMismatchError: (a ValueError) if the parameters have no form there.
    """
    kind = {norm: name for name, norm in _NORMS.items()}[config.norm]
    document = {field.theirs: getattr(config, field.ours) for field in _FIELDS}
    document |= {
        "architectures": [f"{ {'bart': 'Bart', 'mbart': 'MBart'}[kind] }ForConditionalGeneration"],
        "model_type": kind,
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.mlp_width,
        "scale_embedding": config.scale_embeddings,
    }
    tensors = seq2seq_table(config).save({p: np.asarray(a) for p, a in flatten(params).items()})
    write_model_folder(folder, document, tensors)


def seq2seq_table(config: Seq2SeqConfig) -> NameTable:
    """The names of transformers' BART <-> our paths.

    Args:
      config: decides whether there is a norm behind the stacks.
    """
    rules = [
        Rule("model.shared.weight", "word_embeddings"),
        Rule("final_logits_bias", "logits_bias", _ROW),
    ]
    for side in ("encoder", "decoder"):
        stack, layer, ours = f"model.{side}", f"model.{side}.layers.{{i}}", f"{side}/layer_{{i}}"
        rules += [
            Rule(f"{stack}.embed_positions.weight", f"{side}/position_embeddings"),
            *affine_rules(f"{stack}.layernorm_embedding", f"{side}/embeddings_norm"),
            *_attention(f"{layer}.self_attn", f"{ours}/attention"),
            *dense_rules(f"{layer}.fc1", f"{ours}/mlp_in"),
            *dense_rules(f"{layer}.fc2", f"{ours}/mlp_out"),
            *affine_rules(f"{layer}.final_layer_norm", f"{ours}/output_norm"),
        ]
        if config.norm == "pre":
            rules += affine_rules(f"{stack}.layer_norm", f"{side}/final_norm")
        if side == "decoder":
            rules += _attention(f"{layer}.encoder_attn", f"{ours}/cross_attention")
    # The table of words stands in the file once or four times.
    copies = r"lm_head\.weight|model\.(encoder|decoder)\.embed_tokens\.weight"
    return NameTable(tuple(rules), (copies,), ("module.",))


def _attention(foreign: str, ours: str) -> list[Rule]:
    rules = affine_rules(f"{foreign}_layer_norm", f"{ours}_norm")
    for name in ("query", "key", "value"):
        rules += dense_rules(f"{foreign}.{name[0]}_proj", f"{ours}/{name}")
    return [*rules, *dense_rules(f"{foreign}.out_proj", f"{ours}/out")]


def _config(values: Mapping[str, Any]) -> Seq2SeqConfig:
    kind = values.get("model_type")
    if kind not in _NORMS:
        raise ValueError(f"it is of model_type={kind!r}; {' and '.join(_NORMS)} are read")
    problems: list[str] = []
    sizes = read_fields(values, _FIELDS, {}, "", problems)
    for theirs, ours in (
        ("decoder_attention_heads", "num_heads"),
        ("decoder_ffn_dim", "mlp_width"),
    ):
        if values.get(theirs, sizes[ours]) != sizes[ours]:
            problems.append(f"{theirs}={values[theirs]} is not that of the encoder, {sizes[ours]}")
    if problems:
        raise ValueError("; ".join(problems))
    scaled = bool(values.get("scale_embedding", False))
    return Seq2SeqConfig(**sizes, norm=_NORMS[kind], scale_embeddings=scaled)


@functools.lru_cache(maxsize=16)
def _shapes(config: Seq2SeqConfig) -> Mapping[str, tuple[int, ...]]:
    ids = jnp.zeros((1, 1), jnp.int32)
    whole = dataclasses.replace(config, dropout=0.0)
    traced = jax.eval_shape(Seq2Seq(whole).init, jax.random.key(0), ids, ids)["params"]
    return {path: leaf.shape for path, leaf in flatten(traced).items()}
