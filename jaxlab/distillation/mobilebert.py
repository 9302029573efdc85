"""What is MobileBERT's own in Hugging Face's form: entries of its config, names of its tensors."""

from collections.abc import Mapping
from typing import Any

from jaxlab.checkpoints.foreign.configs import Field, read_fields
from jaxlab.checkpoints.foreign.names import Rule
from jaxlab.checkpoints.foreign.rules import affine_rules, dense_rules
from jaxlab.layers.mobilebert import MobileBertConfig

MOBILEBERT_FIELDS = (
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
"""Entries whose values are ours, with the defaults of transformers."""

UNUSED_NARROWING = r"encoder\.layer\.[0-9]+\.bottleneck\.attention\..*"
"""Tensors that transformers makes, and does not use where all of attention is narrow."""

_NORMS = {"no_norm": "none", "layer_norm": "layer"}
# (use_bottleneck_attention, key_query_shared_bottleneck); the first one wins there.
_INPUTS = {"narrow": (True, False), "shared": (False, True), "wide": (False, False)}


def mobilebert_sizes(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Fields of `MobileBertConfig` beside `MOBILEBERT_FIELDS`.

    Args:
      values: the entries of `config.json`.
      problems: gets what cannot be read.
    """
    read_fields(values, (), {"use_bottleneck": True}, "", problems)
    norm = values.get("normalization_type", "no_norm")
    if norm not in _NORMS:
        problems.append(f"normalization_type={norm!r}; {', '.join(_NORMS)} are read")
    inputs = "shared" if values.get("key_query_shared_bottleneck", True) else "wide"
    if values.get("use_bottleneck_attention", False):
        inputs = "narrow"
    return {
        "trigrams": bool(values.get("trigram_input", True)),
        "norm": _NORMS.get(norm, "none"),
        "attention_inputs": inputs,
    }


def mobilebert_entries(sizes: MobileBertConfig) -> dict[str, Any]:
    """The entries of `config.json` beside `MOBILEBERT_FIELDS`; the inverse of `mobilebert_sizes`.

    Args:
      sizes: of the model.
    """
    narrow, shared = _INPUTS[sizes.attention_inputs]
    return {
        "use_bottleneck": True,
        "use_bottleneck_attention": narrow,
        "key_query_shared_bottleneck": shared,
        "trigram_input": sizes.trigrams,
        "normalization_type": next(there for there, ours in _NORMS.items() if ours == sizes.norm),
    }


def mobilebert_rules(sizes: MobileBertConfig, prefix: str, ours: str) -> list[Rule]:
    """A MobileBERT body, `MobileBertEncoder`.

    Args:
      sizes: decides the number of feed-forward layers, and whether there is a second narrowing.
      prefix: stands before every foreign name.
      ours: path of our encoder.
    """
    embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
    own, last = f"{ours}/layer_{{i}}", sizes.num_mlps - 1
    qkv = "{name:query|key|value}"
    rules = [
        Rule(f"{embeddings}.word_embeddings.weight", f"{ours}/word_embeddings"),
        Rule(f"{embeddings}.position_embeddings.weight", f"{ours}/position_embeddings"),
        Rule(f"{embeddings}.token_type_embeddings.weight", f"{ours}/type_embeddings"),
        *dense_rules(f"{embeddings}.embedding_transformation", f"{ours}/embeddings_project"),
        *affine_rules(f"{embeddings}.LayerNorm", f"{ours}/embeddings_norm"),
        *dense_rules(f"{layer}.attention.self.{qkv}", f"{own}/attention/{qkv}"),
        *_dense_and_norm(f"{layer}.attention.output", f"{own}/attention/out", own, "attention"),
        *_dense_and_norm(f"{layer}.bottleneck.input", f"{own}/input", own, "input"),
        *_dense_and_norm(f"{layer}.output.bottleneck", f"{own}/widen", own, "output"),
        *dense_rules(f"{layer}.intermediate.dense", f"{own}/mlp_{last}_in"),
        *_dense_and_norm(f"{layer}.output", f"{own}/mlp_{last}_out", own, f"mlp_{last}"),
        *dense_rules(f"{layer}.ffn.{{n}}.intermediate.dense", f"{own}/mlp_{{n}}_in"),
        *_dense_and_norm(f"{layer}.ffn.{{n}}.output", f"{own}/mlp_{{n}}_out", own, "mlp_{n}"),
    ]
    if sizes.attention_inputs == "shared":
        shared = f"{layer}.bottleneck.attention"
        rules += _dense_and_norm(shared, f"{own}/shared", own, "shared")
    return rules


def _dense_and_norm(foreign: str, dense: str, block: str, norm: str) -> list[Rule]:
    """`dense` and `LayerNorm` of a foreign module."""
    return [
        *dense_rules(f"{foreign}.dense", dense),
        *affine_rules(f"{foreign}.LayerNorm", f"{block}/{norm}_norm"),
    ]
