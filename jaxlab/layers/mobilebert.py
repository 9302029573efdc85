"""MobileBERT's body: thin blocks between bottlenecks, with several feed-forward layers each.

Sun et al. 2020, arXiv:2004.02984. A block narrows its input, attends and feeds forward there, and
widens the result again. The student has no layer norms but scales and shifts (`norm="none"`). Its
teacher, IB-BERT, has blocks that are wider than what is between them: an inverted bottleneck.
"""

import dataclasses
from collections.abc import Collection

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
from jaxlab.layers.bert import RunBlocks, padding_bias
from jaxlab.layers.dense import Dense
from jaxlab.layers.embedding import look_up
from jaxlab.layers.normalization import LayerNorm, per_channel
from jaxlab.layers.stacking import LayerOutput, Taps, check_taps, run_layers

NORMS = ("none", "layer")
ATTENTION_INPUTS = ("shared", "narrow", "wide")
_TORCH_EPSILON = 1e-5
"""That of torch's layer norm, which two of transformers' norms have whatever the config says."""


@dataclasses.dataclass(frozen=True)
class MobileBertConfig:
    """Sizes and conventions of a MobileBERT.

    Attributes:
      vocab_size: number of token ids.
      num_layers: number of blocks.
      width: width of the hidden states between the blocks.
      bottleneck_width: width inside the blocks, attention included.
      num_heads: attention heads; must divide the width of the bottleneck.
      mlp_width: width of the feed-forward layers.
      num_mlps: feed-forward layers of a block.
      embedding_width: width of the word embeddings.
      trigrams: the embedding of a token is made of those of its neighbours, too.
      attention_inputs: what queries, keys and values are made from: `shared` narrows once more for
        queries and keys and takes values from the wide input, `narrow` (MobileBERT-tiny) takes all
        from the narrowed input, `wide` (IB-BERT) all from the wide one.
      norm: `none` scales and shifts, `layer` is a layer norm.
      max_positions: the longest text in tokens.
      num_types: number of token types.
      pad_id: the id of padding.
      activation: name of the feed-forward activation, see `ACTIVATIONS`.
      layer_norm_epsilon: added to the variance of layer norms.
      hidden_dropout: rate after the embeddings and where a block widens.
      attention_dropout: rate of the attention probabilities.
      init_std: standard deviation of the initial weights.
    """

    vocab_size: int = 30522
    num_layers: int = 24
    width: int = 512
    bottleneck_width: int = 128
    num_heads: int = 4
    mlp_width: int = 512
    num_mlps: int = 4
    embedding_width: int = 128
    trigrams: bool = True
    attention_inputs: str = "shared"
    norm: str = "none"
    max_positions: int = 512
    num_types: int = 2
    pad_id: int = 0
    activation: str = "relu"
    layer_norm_epsilon: float = 1e-12
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.1
    init_std: float = 0.02

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
          ValueError: if a size is not positive, a rate is outside [0, 1), the heads do not divide
            the bottleneck, or the activation, the norm or the inputs of attention are unknown.
        """
        sizes = ("vocab_size", "num_layers", "width", "mlp_width", "num_mlps", "embedding_width")
        for name in (*sizes, "max_positions", "num_types"):
            if getattr(self, name) < 1:
                raise ValueError(f"MobileBertConfig.{name}={getattr(self, name)} must be positive")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"MobileBertConfig.{name}={getattr(self, name)} is a rate; use one in [0, 1)"
                )
        for name, known in (("norm", NORMS), ("attention_inputs", ATTENTION_INPUTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {known}")
        check_heads(self.bottleneck_width, self.num_heads)
        check_activation(self.activation)

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens."""
        return self.max_positions


class NoNorm(nn.Module):
    """`scale * x + bias` a channel, in place of a norm."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Scale and shift the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32) * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)
        return wide.astype(x.dtype)


class MobileBertLayer(nn.Module):
    """One block.

    Parameters: `input`, `input_norm` and, with shared inputs of attention, `shared`, `shared_norm`
    (the narrowings), `attention`, `attention_norm`, `mlp_{i}_in`, `mlp_{i}_out`, `mlp_{i}_norm`,
    `widen`, `output_norm`.

    Attributes:
      config: sizes.
      train: apply dropout.
      num_outputs: compute the first tokens only, from all of them; `None` computes all.
      taps: what else to return, see `Taps`.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation.
    """

    config: MobileBertConfig
    train: bool = False
    num_outputs: int | None = None
    taps: frozenset[str] = frozenset()
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
          The new hidden states (and what was asked for).
        """
        config, thin = self.config, self.config.bottleneck_width
        init = nn.initializers.normal(config.init_std)
        narrow = self._norm("input_norm")(self._dense(thin, "input")(x))
        source, values = (narrow if config.attention_inputs == "narrow" else x), None
        if config.attention_inputs == "shared":
            source, values = self._norm("shared_norm")(self._dense(thin, "shared")(x)), x
        attended, taps = MultiHeadAttention(
            config.num_heads,
            qkv_features=thin,
            dropout_rate=config.attention_dropout,
            implementation=attention_of_some(self.implementation, self.num_outputs),
            kernel_init=init,
            out_kernel_init=init,
            dtype=self.dtype,
            name="attention",
        )(
            source[:, : self.num_outputs],
            source,
            value_context=values,
            bias=bias,
            train=self.train,
            return_scores=not self.taps.isdisjoint(("scores", "probabilities")),
            return_projections=not self.taps.isdisjoint(("queries", "keys", "values")),
        )
        h = self._norm("attention_norm")(attended + narrow[:, : self.num_outputs])
        for i in range(config.num_mlps):
            last = i == config.num_mlps - 1
            inner = self._dense(config.mlp_width, f"mlp_{i}_in")(h)
            inner = self._dense(thin, f"mlp_{i}_out")(ACTIVATIONS[config.activation](inner))
            epsilon = _TORCH_EPSILON if last else config.layer_norm_epsilon
            h = self._norm(f"mlp_{i}_norm", epsilon)(inner + h)
        wide = self._dense(config.width, "widen")(h)
        wide = nn.Dropout(config.hidden_dropout, deterministic=not self.train)(wide)
        return LayerOutput(self._norm("output_norm")(wide + x[:, : self.num_outputs]), *taps)

    def _dense(self, features: int, name: str) -> Dense:
        init = nn.initializers.normal(self.config.init_std)
        return Dense(features, self.dtype, init, name=name)

    def _norm(self, name: str, epsilon: float | None = None) -> NoNorm | LayerNorm:
        return make_norm(self.config, name, epsilon)


def make_norm(
    config: MobileBertConfig, name: str, epsilon: float | None = None
) -> NoNorm | LayerNorm:
    """The norm of a config, as a child of the module that is running.

    Args:
      config: chooses between the two.
      name: of the child.
      epsilon: of a layer norm; `None` is the config's.
    """
    if config.norm == "none":
        return NoNorm(name=name)
    return LayerNorm(config.layer_norm_epsilon if epsilon is None else epsilon, name=name)


class MobileBertEncoder(nn.Module):
    """Token ids to hidden states.

    Parameters: `word_embeddings`, `position_embeddings`, `type_embeddings`, `embeddings_project`
    (where there are trigrams or narrow embeddings), `embeddings_norm`, and `layer_i`.

    Attributes:
      config: sizes.
      remat: recompute every block in the backward pass.
      scan: compile one block and scan over the stacked parameters.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation; norms, scores and softmax are float32 in any case.
    """

    config: MobileBertConfig
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
        types: Int[Array, "batch time"] | None = None,
        train: bool = False,
        num_outputs: int | None = None,
        taps: Collection[str] = (),
        run_blocks: RunBlocks | None = None,
    ) -> tuple[Float[Array, "batch outputs width"], Taps]:
        """Encode token ids.

        Args:
          ids: token ids. The embedding of padding is part of the last token's trigram, as in the
            original, whose table has zeros there.
          mask: True for real tokens; `None` derives it from the id of padding.
          types: which part of a text a token belongs to; `None` is part 0.
          train: apply dropout (needs the `dropout` stream).
          num_outputs: how many last hidden states are wanted; `None` is all.
          taps: the fields of `Taps` to return.
          run_blocks: what runs in the place of the blocks, whose parameters are then left unread;
            there are no taps of it.

        Returns:
          The last hidden states of the first tokens, and the taps.

        Raises:
          ValueError: if a text is longer than the position table, a tap does not exist, or some are
            wanted of `run_blocks`.
        """
        config = self.config
        if ids.shape[1] > config.max_positions:
            raise ValueError(
                f"texts of {ids.shape[1]} tokens do not fit max_positions={config.max_positions}"
            )
        wanted = check_taps(taps)
        x = self._embed(ids, types)
        x = make_norm(config, "embeddings_norm", _TORCH_EPSILON)(x).astype(self.dtype)
        x = nn.Dropout(config.hidden_dropout, deterministic=not train)(x)
        bias = padding_bias(ids != config.pad_id if mask is None else mask)
        if run_blocks is not None:
            if wanted:
                raise ValueError(f"taps={sorted(wanted)} are of blocks, and run_blocks has none")
            return run_blocks(x, bias)[:, :num_outputs], Taps()
        return run_layers(
            self,
            MobileBertLayer,
            {
                "config": config,
                "train": train,
                "taps": wanted,
                "implementation": self.implementation,
                "dtype": self.dtype,
            },
            x,
            bias,
            num_layers=config.num_layers,
            remat=self.remat,
            scan=self.scan,
            dropout=train and max(config.hidden_dropout, config.attention_dropout) > 0.0,
            num_outputs=num_outputs,
            taps=wanted,
        )

    def _embed(self, ids: Array, types: Array | None) -> Array:
        """The sum of word, position and type embeddings."""
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        words = self.param("word_embeddings", normal, (config.vocab_size, config.embedding_width))
        positions = self.param("position_embeddings", normal, (config.max_positions, config.width))
        rows = self.param("type_embeddings", normal, (config.num_types, config.width))
        x = look_up(words, ids, config.pad_id)
        if config.trigrams:
            following = jnp.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0)))
            preceding = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
            x = jnp.concatenate([following, x, preceding], axis=-1)
        if x.shape[-1] != config.width or config.trigrams:
            x = Dense(config.width, self.dtype, normal, name="embeddings_project")(x)
        x = x + positions[None, : ids.shape[1]]
        return x + (rows[None, :1] if types is None else jnp.take(rows, types, axis=0))
