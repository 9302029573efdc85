"""The BERT body: post-norm transformer encoder without pooler and heads.

Devlin et al. 2019, arXiv:1810.04805. Numbers follow the original code: layer norm epsilon 1e-12,
exact GELU, padding as an additive -10000 on the scores of padded keys.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxlab.layers.activations import ACTIVATIONS, check_activation
from jaxlab.layers.attention import (
    AttentionImplementation,
    MultiHeadAttention,
    attention_of_some,
    check_heads,
)
from jaxlab.layers.dense import Dense
from jaxlab.layers.normalization import LayerNorm
from jaxlab.layers.stacking import LayerOutput, Taps, run_layers

MASKED_SCORE = -10000.0
"""Added to the score of a padded key, as in the original BERT code."""


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes and conventions of a BERT body.

    Attributes:
      vocab_size: number of token ids.
      num_layers: number of transformer blocks.
      width: width of the hidden states.
      num_heads: attention heads; must divide the width.
      mlp_width: width of the feed-forward layer.
      max_positions: number of learned absolute positions, the longest text in tokens.
      num_types: number of segment (token type) rows; texts use row 0.
      pad_id: the id of padding; keys with it are masked.
      activation: name of the feed-forward activation, see `ACTIVATIONS`.
      layer_norm_epsilon: added to the variance of every layer norm.
      hidden_dropout: dropout rate after the embeddings and after both halves of a block.
      attention_dropout: dropout rate of the attention probabilities.
      init_std: standard deviation of the initial weights.
      embedding_init_std: the same for the embedding tables. A layer norm follows them: the smaller
        they start, the sooner a step of Adam gives a word a place of its own.
    """

    vocab_size: int = 21128
    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    num_types: int = 2
    pad_id: int = 0
    activation: str = "gelu"
    layer_norm_epsilon: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    embedding_init_std: float = 0.02

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
          ValueError: if a size is not positive, the heads do not divide the width, a rate is
            outside [0, 1) or the activation is unknown.
        """
        for name in ("vocab_size", "num_layers", "mlp_width", "max_positions", "num_types"):
            if getattr(self, name) < 1:
                raise ValueError(f"BertConfig.{name}={getattr(self, name)} must be at least 1")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"BertConfig.{name}={getattr(self, name)} is a dropout rate; use one in [0, 1)"
                )
        check_heads(self.width, self.num_heads)
        check_activation(self.activation)


class BertLayer(nn.Module):
    """One post-norm block: `h = LN(x + drop(MHA(x)))`, `LN(h + drop(MLP(h)))`.

    Attributes:
      config: sizes.
      train: apply dropout.
      num_outputs: compute the first tokens only, from all of them; `None` computes all.
      return_scores: return the attention scores too.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation.
    """

    config: BertConfig
    train: bool = False
    num_outputs: int | None = None
    return_scores: bool = False
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], bias: Float[Array, "batch 1 1 time"]
    ) -> LayerOutput:
        """Run the block.

        Args:
          x: hidden states.
          bias: additive bias of the scores.

        Returns:
          The new hidden states (and scores).
        """
        config = self.config
        kernel_init = nn.initializers.normal(config.init_std)
        drop = nn.Dropout(config.hidden_dropout, deterministic=not self.train)
        attended, extras = MultiHeadAttention(
            config.num_heads,
            dropout_rate=config.attention_dropout,
            implementation=attention_of_some(self.implementation, self.num_outputs),
            kernel_init=kernel_init,
            out_kernel_init=kernel_init,
            dtype=self.dtype,
            name="attention",
        )(
            x[:, : self.num_outputs],
            x,
            bias=bias,
            train=self.train,
            return_scores=self.return_scores,
        )
        x = x[:, : self.num_outputs]
        x = LayerNorm(config.layer_norm_epsilon, name="attention_norm")(x + drop(attended))
        h = Dense(config.mlp_width, dtype=self.dtype, kernel_init=kernel_init, name="mlp_in")(x)
        h = ACTIVATIONS[config.activation](h)
        h = Dense(config.width, dtype=self.dtype, kernel_init=kernel_init, name="mlp_out")(h)
        x = LayerNorm(config.layer_norm_epsilon, name="output_norm")(x + drop(h))
        if extras is None:
            return LayerOutput(x)
        return LayerOutput(x, extras.scores, extras.probabilities)


class BertEncoder(nn.Module):
    """Token ids to hidden states.

    Parameters: `word_embeddings`, `position_embeddings`, `type_embeddings`, `embeddings_norm`,
    and `layer_i` with `attention/{query,key,value,out}`, `attention_norm`, `mlp_in`, `mlp_out`,
    `output_norm`.

    Attributes:
      config: sizes.
      remat: recompute every block in the backward pass.
      scan: compile one block and scan over the stacked parameters.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation; norms, scores and softmax are float32 in any case.
    """

    config: BertConfig
    remat: bool = False
    scan: bool = False
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "batch time"],
        *,
        mask: Bool[Array, "batch time"] | None = None,
        train: bool = False,
        num_outputs: int | None = None,
        return_taps: bool = False,
    ) -> tuple[Float[Array, "batch outputs width"], Taps]:
        """Encode token ids.

        Args:
          ids: token ids, padded with `config.pad_id`.
          mask: True for real tokens; `None` derives it from `ids != pad_id`. A row without any
            real token attends to all its positions equally and stays finite.
          train: apply dropout (needs the `dropout` stream).
          num_outputs: how many last hidden states are wanted, 1 for those of [CLS]: the last block
            then computes no others. `None` is all.
          return_taps: return hidden states and attention scores of every layer.

        Returns:
          The last hidden states of the first tokens, and the taps (empty tuples unless asked for).

        Raises:
          ValueError: if a text is longer than the position table.
        """
        config = self.config
        if ids.shape[1] > config.max_positions:
            raise ValueError(
                f"texts of {ids.shape[1]} tokens do not fit max_positions={config.max_positions}; "
                "shorten the context or enlarge the table"
            )
        normal = nn.initializers.normal(config.embedding_init_std)
        words = self.param("word_embeddings", normal, (config.vocab_size, config.width))
        positions = self.param("position_embeddings", normal, (config.max_positions, config.width))
        types = self.param("type_embeddings", normal, (config.num_types, config.width))
        x = jnp.take(words, ids, axis=0) + positions[None, : ids.shape[1]] + types[None, :1]
        x = LayerNorm(config.layer_norm_epsilon, name="embeddings_norm")(x).astype(self.dtype)
        x = nn.Dropout(config.hidden_dropout, deterministic=not train)(x)
        return run_layers(
            self,
            BertLayer,
            {
                "config": config,
                "train": train,
                "return_scores": return_taps,
                "implementation": self.implementation,
                "dtype": self.dtype,
            },
            x,
            padding_bias(ids != config.pad_id if mask is None else mask),
            num_layers=config.num_layers,
            remat=self.remat,
            scan=self.scan,
            dropout=train and max(config.hidden_dropout, config.attention_dropout) > 0.0,
            num_outputs=num_outputs,
            return_taps=return_taps,
        )


def padding_bias(mask: Bool[Array, "batch time"]) -> Float[Array, "batch 1 1 time"]:
    """Additive attention bias of a padding mask: 0 for real tokens, -10000 for padding.

    Args:
      mask: True for real tokens.

    Returns:
      float32, broadcastable to the scores.
    """
    return jnp.where(mask, 0.0, MASKED_SCORE).astype(jnp.float32)[:, None, None, :]
