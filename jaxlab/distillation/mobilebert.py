"""MobileBERT's body in Hugging Face's form <-> our parameters."""

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign.configs import Field, read_fields
from jaxlab.checkpoints.foreign.names import NameTable, Rule, flatten, naming, unflatten
from jaxlab.checkpoints.foreign.rules import (
    BERT_BUFFERS,
    affine_rules,
    as_float32,
    dense_rules,
)
from jaxlab.checkpoints.foreign.state_dicts import read_model_folder, write_model_folder
from jaxlab.layers.mobilebert import MobileBertConfig, MobileBertEncoder

_FIELDS = (
    Field("vocab_size", "vocab_size", 30522),
    Field("num_hidden_layers", "num_layers", 24),
    Field("hidden_size", "width", 512),
    Field("intra_bottleneck_size", "bottleneck_width", 128),
    Field("num_attention_heads", "num_heads", 4),
    Field("intermediate_size", "mlp_width", 512),
    Field("num_feedforward_networks", "num_mlps", 4),
    Field("embedding_size", "embedding_width", 128),
    Field("max_position_embeddings", "max_positions", 512),
    Field("type_vocab_size", "num_types", 2),
    Field("pad_token_id", "pad_id", 0),
    Field("hidden_act", "activation", "relu"),
    Field("layer_norm_eps", "layer_norm_epsilon", 1e-12),
    Field("hidden_dropout_prob", "hidden_dropout", 0.0),
    Field("attention_probs_dropout_prob", "attention_dropout", 0.1),
    Field("initializer_range", "init_std", 0.02),
)
_NORMS = {"no_norm": "none", "layer_norm": "layer"}
_FIXED = {"use_bottleneck": True}


class PretrainedMobileBert(NamedTuple):
    """A MobileBERT's body out of a file.

    Attributes:
      config: its sizes.
      params: nested parameters, NumPy arrays in float32.
    """

    config: MobileBertConfig
    params: dict[str, Any]


def load_mobilebert(folder: str | os.PathLike[str], *, verify: bool = True) -> PretrainedMobileBert:
    """The body of a MobileBERT in Hugging Face's form; its pooler and heads are left out.

    Args:
      folder: has `config.json` and the tensors.
      verify: check the CRC-32 of torch files first.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the config is of another model or asks for what is not offered, or the tensors
        do not fit it: then all that are missing, unexpected or mis-shaped are named.
    """
    content = read_model_folder(folder, verify=verify)
    with naming(folder):
        config = _config(content.config)
        flat = mobilebert_table(config).load(content.tensors, _shapes(config))
    return PretrainedMobileBert(config, unflatten({p: as_float32(a) for p, a in flat.items()}))


def save_mobilebert(
    folder: str | os.PathLike[str], params: PyTree, config: MobileBertConfig
) -> None:
    """Writes a folder that transformers' `MobileBertModel` loads, without a pooler.

    Args:
      folder: where to; made if it does not exist.
      params: all parameters.
      config: of the model.

    Raises:
      NameMismatchError: (a ValueError) if the parameters have no form there.
    """
    norms = {ours: theirs for theirs, ours in _NORMS.items()}
    document = {field.theirs: getattr(config, field.ours) for field in _FIELDS}
    document |= {
        "architectures": ["MobileBertModel"],
        "model_type": "mobilebert",
        "trigram_input": config.trigrams,
        "use_bottleneck": True,
        "use_bottleneck_attention": config.narrow_values,
        "key_query_shared_bottleneck": not config.narrow_values,
        "normalization_type": norms[config.norm],
        "classifier_activation": False,
    }
    tensors = mobilebert_table(config).save({p: np.asarray(a) for p, a in flatten(params).items()})
    write_model_folder(folder, document, tensors)


def mobilebert_table(config: MobileBertConfig) -> NameTable:
    """The names of transformers' MobileBERT <-> our paths.

    Args:
      config: decides the number of feed-forward layers.
    """
    layer, ours, last = "encoder.layer.{i}", "layer_{i}", config.num_mlps - 1
    rules = [
        Rule("embeddings.word_embeddings.weight", "word_embeddings"),
        Rule("embeddings.position_embeddings.weight", "position_embeddings"),
        Rule("embeddings.token_type_embeddings.weight", "type_embeddings"),
        *dense_rules("embeddings.embedding_transformation", "embeddings_project"),
        *affine_rules("embeddings.LayerNorm", "embeddings_norm"),
        *dense_rules(
            f"{layer}.attention.self.{{name:query|key|value}}",
            f"{ours}/attention/{{name:query|key|value}}",
        ),
        *_dense_and_norm(f"{layer}.attention.output", f"{ours}/attention/out", "attention_norm"),
        *_dense_and_norm(f"{layer}.bottleneck.input", f"{ours}/input", "input_norm"),
        *_dense_and_norm(f"{layer}.output.bottleneck", f"{ours}/widen", "output_norm"),
        *dense_rules(f"{layer}.intermediate.dense", f"{ours}/mlp_{last}_in"),
        *_dense_and_norm(f"{layer}.output", f"{ours}/mlp_{last}_out", f"mlp_{last}_norm"),
        *dense_rules(f"{layer}.ffn.{{n}}.intermediate.dense", f"{ours}/mlp_{{n}}_in"),
        *_dense_and_norm(f"{layer}.ffn.{{n}}.output", f"{ours}/mlp_{{n}}_out", "mlp_{n}_norm"),
    ]
    if not config.narrow_values:
        rules += _dense_and_norm(f"{layer}.bottleneck.attention", f"{ours}/shared", "shared_norm")
    ignored = [BERT_BUFFERS, r"(pooler|cls|classifier|qa_outputs)\..*"]
    if config.narrow_values:
        # transformers makes this narrowing, and does not use it.
        ignored.append(r"encoder\.layer\.[0-9]+\.bottleneck\.attention\..*")
    return NameTable(tuple(rules), tuple(ignored), ("module.", "mobilebert."))


def _dense_and_norm(foreign: str, ours: str, norm: str) -> list[Rule]:
    """`dense` and `LayerNorm` of a foreign module; ours stand in one block."""
    block = ours.split("/")[0]
    return [
        *dense_rules(f"{foreign}.dense", ours),
        *affine_rules(f"{foreign}.LayerNorm", f"{block}/{norm}"),
    ]


def _config(values: Mapping[str, Any]) -> MobileBertConfig:
    if values.get("model_type") != "mobilebert":
        raise ValueError(f"it is of model_type={values.get('model_type')!r}; mobilebert is read")
    problems: list[str] = []
    sizes = read_fields(values, _FIELDS, _FIXED, "", problems)
    norm = values.get("normalization_type", "no_norm")
    narrow = bool(values.get("use_bottleneck_attention", False))
    shared = bool(values.get("key_query_shared_bottleneck", True))
    if norm not in _NORMS:
        problems.append(f"normalization_type={norm!r}; {', '.join(_NORMS)} are read")
    if not narrow and not shared:
        problems.append(
            "neither use_bottleneck_attention nor key_query_shared_bottleneck; one of the two is "
            "wanted"
        )
    if problems:
        raise ValueError("; ".join(problems))
    trigrams = bool(values.get("trigram_input", True))
    return MobileBertConfig(**sizes, trigrams=trigrams, narrow_values=narrow, norm=_NORMS[norm])


@functools.lru_cache(maxsize=16)
def _shapes(config: MobileBertConfig) -> Mapping[str, tuple[int, ...]]:
    init = MobileBertEncoder(config).init
    traced = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return {path: leaf.shape for path, leaf in flatten(traced).items()}
