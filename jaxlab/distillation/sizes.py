"""Published sizes of text models by name, and what a model of given sizes costs."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from jaxlab.distillation.model import TextModelConfig, param_shapes
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.mobilebert import MobileBertConfig
from jaxlab.layers.stacking import LAYER_PREFIX


def num_params(config: TextModelConfig, part: Literal["all", "layers"] = "all") -> int:
    """Number of parameters.

    Args:
      config: of the model.
      part: `layers` counts those of the transformer blocks, without embeddings and heads.

    Example:
      >>> num_params(SIZES["minilm_l6"]), num_params(SIZES["minilm_l6"], "layers")
      (22713216, 10646784)
    """
    start = f"encoder/{LAYER_PREFIX}" if part == "layers" else ""
    return sum(math.prod(s) for path, s in param_shapes(config).items() if path.startswith(start))


def flops(config: TextModelConfig, length: int) -> int:
    """Floating point operations of the blocks' matrix products on one text, forward.

    `N (2 L (4 H^2 + 2 H I) + 4 L^2 H)` of a BERT: two a multiply-add; embeddings, norms and heads
    do not count, as in the published numbers.

    Args:
      config: of the model.
      length: L, tokens of the text, padding included.

    Example:
      >>> round(flops(SIZES["bert_base"], 128) / 1e9, 2)
      22.35
    """
    sizes = config.encoder
    if isinstance(sizes, MobileBertConfig):
        shapes = param_shapes(config).items()
        inside = f"encoder/{LAYER_PREFIX}0/"
        kernels = sum(math.prod(s) for path, s in shapes if path.startswith(inside) and len(s) > 1)
        attended = sizes.bottleneck_width
    else:
        kernels = 4 * sizes.width**2 + 2 * sizes.width * sizes.mlp_width
        attended = sizes.width
    return sizes.num_layers * (2 * length * kernels + 4 * length**2 * attended)


def _bert(num_layers: int, width: int, mlp_width: int, num_heads: int) -> TextModelConfig:
    return TextModelConfig(BertConfig(30522, num_layers, width, num_heads, mlp_width))


def _mobilebert(*, with_pooler: bool = False, **sizes: Any) -> TextModelConfig:
    return TextModelConfig(MobileBertConfig(**sizes), "mobilebert", with_pooler=with_pooler)


_ROBERTA = BertConfig(
    50265,
    max_positions=514,
    num_types=1,
    pad_id=1,
    layer_norm_epsilon=1e-5,
    positions="after_pad",
)

SIZES: Mapping[str, TextModelConfig] = MappingProxyType(
    {
        "bert_large": _bert(24, 1024, 4096, 16),
        "bert_base": _bert(12, 768, 3072, 12),
        "bert_6": _bert(6, 768, 3072, 12),
        "bert_4": _bert(4, 768, 3072, 12),
        "bert_3": _bert(3, 768, 3072, 12),
        "minilm_l12": _bert(12, 384, 1536, 12),
        "minilm_l6": _bert(6, 384, 1536, 12),
        "minilm_l3": _bert(3, 384, 1536, 12),
        "bert_12_nano": _bert(12, 256, 1024, 4),
        "tinybert4": dataclasses.replace(_bert(4, 312, 1200, 12), family="tinybert"),
        "bert_medium": _bert(8, 512, 2048, 8),
        "bert_small": _bert(4, 512, 2048, 8),
        "bert_mini": _bert(4, 256, 1024, 4),
        "bert_tiny": _bert(2, 128, 512, 2),
        "roberta_base": TextModelConfig(_ROBERTA, "roberta"),
        "mpnet_base": TextModelConfig(
            dataclasses.replace(_ROBERTA, vocab_size=30527, num_types=0, relative_buckets=32),
            "mpnet",
        ),
        "distilbert_base": TextModelConfig(
            BertConfig(30522, num_layers=6, num_types=0), "distilbert"
        ),
        "electra_small": TextModelConfig(
            BertConfig(30522, 12, 256, 4, 1024, embedding_width=128), "electra"
        ),
        "mobilebert": _mobilebert(),
        "mobilebert_tiny": _mobilebert(num_mlps=2, attention_inputs="narrow"),
        "ib_bert_large": _mobilebert(
            bottleneck_width=1024,
            mlp_width=4096,
            num_mlps=1,
            attention_inputs="wide",
            norm="layer",
            activation="gelu",
            hidden_dropout=0.1,
            with_pooler=True,
        ),
    }
)
"""Models by name, without a task: `dataclasses.replace(SIZES["minilm_l6"], task=..., ...)`.

`bert_6`, `bert_4` and `bert_3` are the shapes of BERT-PKD, DistilBERT and BERT-of-Theseus,
`bert_12_nano` that of ELECTRA-small with BERT's embeddings, and those below `bert_medium` are of
Turc et al. 2019, arXiv:1908.08962. TinyBERT4 is of Jiao et al. 2020, arXiv:1909.10351; MiniLM of
Wang et al. 2020, arXiv:2002.10957; MobileBERT and its teacher IB-BERT of Sun et al. 2020,
arXiv:2004.02984, by the configs of its code.
"""
