"""Names of text models in other people's checkpoints <-> our paths.

Hugging Face's names of every family, those of fairseq's RoBERTa, and those of BERT's own TensorFlow
checkpoints.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxlab.checkpoints.foreign.names import TRANSPOSE, NameTable, Rule
from jaxlab.checkpoints.foreign.rules import (
    BERT_BUFFERS,
    affine_rules,
    bert_rules,
    dense_rules,
    joint_qkv_rules,
)
from jaxlab.distillation.mobilebert import UNUSED_NARROWING, mobilebert_rules
from jaxlab.distillation.model import TextModelConfig
from jaxlab.layers.mobilebert import MobileBertConfig

BASES: Mapping[str, str] = MappingProxyType(
    {
        "bert": "bert",
        "tinybert": "bert",
        "roberta": "roberta",
        "mpnet": "mpnet",
        "electra": "electra",
        "distilbert": "distilbert",
        "mobilebert": "mobilebert",
    }
)
"""Family -> what transformers puts before the names of an encoder under a head."""

FIT_DENSE = re.compile(r"(?:fit_dense|fit_denses\.([0-9]+))\.(weight|bias)")
"""TinyBERT's projections of its hidden states to the width of its teacher."""

PREFIXES = (
    *("module.", "model.", "0.", "auto_model."),
    *(f"{base}." for base in dict.fromkeys(BASES.values())),
)
"""What stands before the names of an encoder in files of modules around it, dropped in this order;
`0.auto_model.` is of sentence-transformers."""

_HEADS = re.compile(
    r"(pooler|classifier|pre_classifier|qa_outputs|cls|lm_head|generator_predictions"
    r"|generator_lm_head|discriminator_predictions|vocab_transform|vocab_layer_norm"
    r"|vocab_projector|fit_dense|fit_denses|classification_heads)[./].*"
)
_TENSORFLOW_HEADS = re.compile(r"cls/.*|bert/pooler/.*|output_(weights|bias)")
_DECODERS = {
    "roberta": "lm_head.decoder.weight",
    "mpnet": "lm_head.decoder.weight",
    "electra": "generator_lm_head.weight",
    "distilbert": "vocab_projector.weight",
}


def is_of_a_head(name: str) -> bool:
    """Whether a name without prefixes is of one of the heads that these models come with."""
    return bool(_HEADS.fullmatch(name) or _TENSORFLOW_HEADS.fullmatch(name))


def decoder_name(family: str) -> str:
    """Hugging Face's name of the kernel of a masked language model, a copy of the embeddings.

    Args:
      family: of the model.
    """
    return _DECODERS.get(family, "cls.predictions.decoder.weight")


def huggingface_table(config: TextModelConfig, prefix: str = "") -> NameTable:
    """Hugging Face's names <-> our paths.

    Args:
      config: decides family, task and pooler.
      prefix: stands before the names of the encoder and the pooler when they are written. Read
        are all usual ones.
    """
    sizes = config.encoder
    copies = rf"{re.escape(decoder_name(config.family))}|cls\.predictions\.decoder\.bias"
    ignored = [BERT_BUFFERS, rf"{copies}|lm_head\.decoder\.bias"]
    if isinstance(sizes, MobileBertConfig):
        rules = mobilebert_rules(sizes, prefix, "encoder")
        if sizes.attention_inputs == "narrow":
            ignored.append(UNUSED_NARROWING)
    else:
        rules = _ENCODERS.get(config.family, _bert_encoder)(prefix)
    rules += _head_rules(config)
    if config.has_pooler:
        rules += dense_rules(f"{prefix}pooler.dense", "pooler")
    return NameTable(tuple(rules), tuple(ignored), PREFIXES)


def fairseq_table(config: TextModelConfig) -> NameTable:
    """The names of fairseq's RoBERTa <-> our paths. It has no types: `num_types` is 0.

    Args:
      config: of the model.
    """
    layer, ours = "layers.{i}", "encoder/layer_{i}"
    attention = f"{layer}.self_attn"
    rules = [
        Rule("embed_tokens.weight", "encoder/word_embeddings"),
        Rule("embed_positions.weight", "encoder/position_embeddings"),
        *affine_rules("emb_layer_norm", "encoder/embeddings_norm"),
        *_load_only(affine_rules("layernorm_embedding", "encoder/embeddings_norm")),
        *dense_rules(f"{attention}.out_proj", f"{ours}/attention/out"),
        *affine_rules(f"{attention}_layer_norm", f"{ours}/attention_norm"),
        *dense_rules(f"{layer}.fc1", f"{ours}/mlp_in"),
        *dense_rules(f"{layer}.fc2", f"{ours}/mlp_out"),
        *affine_rules(f"{layer}.final_layer_norm", f"{ours}/output_norm"),
    ]
    for name in ("query", "key", "value"):
        rules += dense_rules(f"{attention}.{name[0]}_proj", f"{ours}/attention/{name}")
    rules += joint_qkv_rules(
        f"{attention}.in_proj_weight",
        f"{attention}.in_proj_bias",
        f"{ours}/attention",
        load_only=True,
    )
    if config.task == "mlm":
        rules += _roberta_language_model()
    elif config.is_sentence_level and config.task != "none":
        head = r"classification_heads.{name:[^.]+}"
        rules += dense_rules(f"{head}.dense", "head/dense")
        rules += dense_rules(f"{head}.out_proj", "head/out")
    prefixes = ("module.", "model.", "decoder.", "encoder.", "sentence_encoder.")
    return NameTable(tuple(rules), (r"lm_head\.weight", r"version"), prefixes)


def tensorflow_table(config: TextModelConfig) -> NameTable:
    """The names of BERT's TensorFlow checkpoints <-> our paths; kernels are (in, out) there.

    Args:
      config: of the model.
    """
    layer, ours = "bert/encoder/layer_{i}", "encoder/layer_{i}"
    rules = [
        Rule("bert/embeddings/word_embeddings", "encoder/word_embeddings"),
        Rule("bert/embeddings/position_embeddings", "encoder/position_embeddings"),
        Rule("bert/embeddings/token_type_embeddings", "encoder/type_embeddings"),
        *_tensorflow_affine("bert/embeddings/LayerNorm", "encoder/embeddings_norm"),
        *_tensorflow_dense(
            f"{layer}/attention/self/{{name:query|key|value}}",
            f"{ours}/attention/{{name:query|key|value}}",
        ),
        *_tensorflow_dense(f"{layer}/attention/output/dense", f"{ours}/attention/out"),
        *_tensorflow_affine(f"{layer}/attention/output/LayerNorm", f"{ours}/attention_norm"),
        *_tensorflow_dense(f"{layer}/intermediate/dense", f"{ours}/mlp_in"),
        *_tensorflow_dense(f"{layer}/output/dense", f"{ours}/mlp_out"),
        *_tensorflow_affine(f"{layer}/output/LayerNorm", f"{ours}/output_norm"),
    ]
    if config.has_pooler:
        rules += _tensorflow_dense("bert/pooler/dense", "pooler")
    if config.task == "mlm":
        transform = "cls/predictions/transform"
        rules += _tensorflow_dense(f"{transform}/dense", "lm_head/dense")
        rules += _tensorflow_affine(f"{transform}/LayerNorm", "lm_head/norm")
        rules.append(Rule("cls/predictions/output_bias", "lm_head/bias"))
    elif config.task != "none":
        rules.append(Rule("output_weights", "head/out/kernel", TRANSPOSE))
        rules.append(Rule("output_bias", "head/out/bias"))
    return NameTable(tuple(rules), ignored=(r"global_step|.*[/_]adam_[mv](_1)?",))


def _load_only(rules: list[Rule]) -> list[Rule]:
    return [Rule(rule.foreign, rule.ours, rule.transform, load_only=True) for rule in rules]


def _bert_encoder(prefix: str) -> list[Rule]:
    return bert_rules(prefix, "encoder")


def _electra_encoder(prefix: str) -> list[Rule]:
    projection = dense_rules(f"{prefix}embeddings_project", "encoder/embeddings_project")
    return [*_bert_encoder(prefix), *projection]


def _embedding_rules(prefix: str) -> list[Rule]:
    embeddings = f"{prefix}embeddings"
    return [
        Rule(f"{embeddings}.word_embeddings.weight", "encoder/word_embeddings"),
        Rule(f"{embeddings}.position_embeddings.weight", "encoder/position_embeddings"),
        *affine_rules(f"{embeddings}.LayerNorm", "encoder/embeddings_norm"),
    ]


def _mpnet_encoder(prefix: str) -> list[Rule]:
    layer, ours = f"{prefix}encoder.layer.{{i}}", "encoder/layer_{i}"
    attention = f"{layer}.attention.attn"
    rules = _embedding_rules(prefix)
    for letter, name in zip("qkvo", ("query", "key", "value", "out"), strict=True):
        rules += dense_rules(f"{attention}.{letter}", f"{ours}/attention/{name}")
    return [
        *rules,
        Rule(f"{prefix}encoder.relative_attention_bias.weight", "encoder/relative_bias"),
        *affine_rules(f"{layer}.attention.LayerNorm", f"{ours}/attention_norm"),
        *dense_rules(f"{layer}.intermediate.dense", f"{ours}/mlp_in"),
        *dense_rules(f"{layer}.output.dense", f"{ours}/mlp_out"),
        *affine_rules(f"{layer}.output.LayerNorm", f"{ours}/output_norm"),
    ]


def _distilbert_encoder(prefix: str) -> list[Rule]:
    layer, ours = f"{prefix}transformer.layer.{{i}}", "encoder/layer_{i}"
    rules = _embedding_rules(prefix)
    for letter, name in zip(("q", "k", "v", "out"), ("query", "key", "value", "out"), strict=True):
        rules += dense_rules(f"{layer}.attention.{letter}_lin", f"{ours}/attention/{name}")
    return [
        *rules,
        *affine_rules(f"{layer}.sa_layer_norm", f"{ours}/attention_norm"),
        *dense_rules(f"{layer}.ffn.lin1", f"{ours}/mlp_in"),
        *dense_rules(f"{layer}.ffn.lin2", f"{ours}/mlp_out"),
        *affine_rules(f"{layer}.output_layer_norm", f"{ours}/output_norm"),
    ]


_ENCODERS: Mapping[str, Callable[[str], list[Rule]]] = {
    "electra": _electra_encoder,
    "mpnet": _mpnet_encoder,
    "distilbert": _distilbert_encoder,
}


def _head_rules(config: TextModelConfig) -> list[Rule]:
    if config.task == "none":
        return []
    if config.task == "mlm":
        return _language_model_rules(config.family)
    if config.task == "span":
        return dense_rules("qa_outputs", "head/out")
    if config.task == "tagging" or config.pooling == "mean":
        return dense_rules("classifier", "head/out")
    if config.family in ("roberta", "mpnet", "electra"):
        dense = dense_rules("classifier.dense", "head/dense")
        return [*dense, *dense_rules("classifier.out_proj", "head/out")]
    rules = dense_rules("classifier", "head/out")
    if config.family == "distilbert":
        rules += dense_rules("pre_classifier", "head/dense")
    return rules


def _language_model_rules(family: str) -> list[Rule]:
    if family in ("roberta", "mpnet"):
        return _roberta_language_model()
    dense, norm, bias = {
        "electra": (
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
        ),
        "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    }.get(
        family,
        (
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
        ),
    )
    rules = [
        *dense_rules(dense, "lm_head/dense"),
        *affine_rules(norm, "lm_head/norm"),
        Rule(bias, "lm_head/bias"),
    ]
    if family == "mobilebert":
        rules.append(Rule("cls.predictions.dense.weight", "lm_head/features"))
    return rules


def _roberta_language_model() -> list[Rule]:
    return [
        *dense_rules("lm_head.dense", "lm_head/dense"),
        *affine_rules("lm_head.layer_norm", "lm_head/norm"),
        Rule("lm_head.bias", "lm_head/bias"),
    ]


def _tensorflow_dense(foreign: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{foreign}/kernel", f"{ours}/kernel"),
        Rule(f"{foreign}/bias", f"{ours}/bias"),
    ]


def _tensorflow_affine(foreign: str, ours: str) -> list[Rule]:
    return [Rule(f"{foreign}/gamma", f"{ours}/scale"), Rule(f"{foreign}/beta", f"{ours}/bias")]
