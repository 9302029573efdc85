"""Building blocks that know no system: attention, BERT and relatives, vision transformer, ResNet.

Modules are Flax Linen modules configured by frozen dataclasses; parameters are float32, `dtype` is
the type of the computation, and norms, scores and softmax are float32 whatever it is. Intermediate
states are explicit returns (`return_taps=True`).

Example:
  >>> import jax, jax.numpy as jnp
  >>> from jaxlab.layers import BertConfig, BertEncoder
  >>> bert = BertEncoder(BertConfig(vocab_size=9, num_layers=1, width=8, num_heads=2, mlp_width=8))
  >>> ids = jnp.array([[1, 2, 0]])
  >>> variables = bert.init(jax.random.key(0), ids)
  >>> hidden, _ = bert.apply(variables, ids)
  >>> hidden.shape
  (1, 3, 8)

Rooms: `activations`, `attention`, `bert`, `convolution`, `dense`, `initializers`, `mobilebert`,
`normalization`, `positions`, `precision`, `resnet`, `seq2seq`, `stacking`, `vit`.
"""

from jaxlab.layers.activations import ACTIVATIONS, gelu, quick_gelu
from jaxlab.layers.attention import AttentionOutput, MultiHeadAttention, attention
from jaxlab.layers.bert import BertConfig, BertEncoder
from jaxlab.layers.convolution import Conv, average_pool
from jaxlab.layers.dense import Dense
from jaxlab.layers.mobilebert import MobileBertConfig, MobileBertEncoder
from jaxlab.layers.normalization import BatchNorm, LayerNorm
from jaxlab.layers.positions import resize_positions
from jaxlab.layers.precision import full_precision
from jaxlab.layers.resnet import ModifiedResNet, ModifiedResNetConfig
from jaxlab.layers.seq2seq import Seq2Seq, Seq2SeqConfig
from jaxlab.layers.stacking import Taps, stack_layers, unstack_layers
from jaxlab.layers.vit import VisionTransformer, VisionTransformerConfig, drop_patches

__all__ = [
    "ACTIVATIONS",
    "AttentionOutput",
    "BatchNorm",
    "BertConfig",
    "BertEncoder",
    "Conv",
    "Dense",
    "LayerNorm",
    "MobileBertConfig",
    "MobileBertEncoder",
    "ModifiedResNet",
    "ModifiedResNetConfig",
    "MultiHeadAttention",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Taps",
    "VisionTransformer",
    "VisionTransformerConfig",
    "attention",
    "average_pool",
    "drop_patches",
    "full_precision",
    "gelu",
    "quick_gelu",
    "resize_positions",
    "stack_layers",
    "unstack_layers",
]
