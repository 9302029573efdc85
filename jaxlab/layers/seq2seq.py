"""Encoder-decoder transformers of BART's form, with norms after or before the halves of a block.

Lewis et al. 2020, arXiv:1910.13461 (BART: norms after), Liu et al. 2020, arXiv:2001.08210 (mBART:
norms before, and one behind either stack). Learned positions, one table of words for encoder,
decoder and output. `OFA_SIZES` has the sizes of OFA, arXiv:2202.03052.
"""

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxlab.layers.activations import ACTIVATIONS, check_activation
from jaxlab.layers.attention import (
    AttentionImplementation,
    AttentionTaps,
    MultiHeadAttention,
    check_heads,
)
from jaxlab.layers.bert import MASKED_SCORE, padding_bias
from jaxlab.layers.dense import Dense
from jaxlab.layers.embedding import look_up
from jaxlab.layers.normalization import LayerNorm
from jaxlab.layers.stacking import LayerOutput, Taps, check_taps, run_layers

NORM_PLACES = ("post", "pre")
_CROSS = "cross_"


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes and conventions of an encoder-decoder transformer.

    Attributes:
      vocab_size: number of token ids.
      num_encoder_layers: blocks of the encoder.
      num_decoder_layers: blocks of the decoder.
      width: width of the hidden states.
      num_heads: attention heads of every block; must divide the width.
      mlp_width: width of the feed-forward layers.
      max_positions: the longest text in tokens, on either side.
      position_offset: rows of the position tables before that of the first token.
      pad_id: the id of padding.
      norm: `post` normalises after adding, `pre` before attention and feed-forward layer.
      scale_embeddings: multiply the embeddings of words with the root of the width.
      activation: name of the feed-forward activation, see `ACTIVATIONS`.
      layer_norm_epsilon: added to the variance of every layer norm.
      dropout: rate after the embeddings and after every part of a block.
      attention_dropout: rate of the attention probabilities.
      activation_dropout: rate inside the feed-forward layers.
      init_std: standard deviation of the initial weights.
    """

    vocab_size: int
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 1024
    position_offset: int = 2
    pad_id: int = 1
    norm: str = "post"
    scale_embeddings: bool = False
    activation: str = "gelu"
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
          ValueError: if a size is not positive, a rate is outside [0, 1), the heads do not divide
            the width, or the activation or the place of the norms is unknown.
        """
        sizes = ("vocab_size", "num_encoder_layers", "num_decoder_layers", "mlp_width")
        for name in (*sizes, "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"Seq2SeqConfig.{name}={getattr(self, name)} must be at least 1")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"Seq2SeqConfig.{name}={getattr(self, name)} is a rate; use one in [0, 1)"
                )
        if self.norm not in NORM_PLACES:
            raise ValueError(f"norm={self.norm!r} is unknown; use one of {NORM_PLACES}")
        check_heads(self.width, self.num_heads)
        check_activation(self.activation)


class DecoderTaps(NamedTuple):
    """Intermediate states of a decoder: those of `Taps`, and of the attention to the encoder.

    Attributes:
      hidden: see `Taps`; likewise the next five, of the attention to the decoder's own tokens.
      scores: (batch, heads, decoder time, decoder time) a layer.
      probabilities: their softmax.
      queries: (batch, decoder time, width) a layer.
      keys: likewise.
      values: likewise.
      cross_scores: (batch, heads, decoder time, encoder time) a layer.
      cross_probabilities: their softmax.
      cross_queries: (batch, decoder time, width) a layer.
      cross_keys: (batch, encoder time, width) a layer.
      cross_values: likewise.
    """

    hidden: tuple[Array, ...] = ()
    scores: tuple[Array, ...] = ()
    probabilities: tuple[Array, ...] = ()
    queries: tuple[Array, ...] = ()
    keys: tuple[Array, ...] = ()
    values: tuple[Array, ...] = ()
    cross_scores: tuple[Array, ...] = ()
    cross_probabilities: tuple[Array, ...] = ()
    cross_queries: tuple[Array, ...] = ()
    cross_keys: tuple[Array, ...] = ()
    cross_values: tuple[Array, ...] = ()


class DecoderOutput(NamedTuple):
    """Output of one block of a decoder; what was not asked for is `None`. See `DecoderTaps`."""

    hidden: Array
    scores: Array | None = None
    probabilities: Array | None = None
    queries: Array | None = None
    keys: Array | None = None
    values: Array | None = None
    cross_scores: Array | None = None
    cross_probabilities: Array | None = None
    cross_queries: Array | None = None
    cross_keys: Array | None = None
    cross_values: Array | None = None


class Seq2SeqOutput(NamedTuple):
    """What an encoder-decoder model gives.

    Attributes:
      logits: of the next token at every place of the decoder, float32.
      hidden: last hidden states of the decoder.
      encoded: last hidden states of the encoder.
      encoder: taps of the encoder.
      decoder: taps of the decoder's own attention.
      cross: taps of the attention to the encoder; `hidden` is empty.
    """

    logits: Float[Array, "batch decoder_time vocabulary"]
    hidden: Float[Array, "batch decoder_time width"]
    encoded: Float[Array, "batch time width"]
    encoder: Taps
    decoder: Taps
    cross: Taps


class _Block(nn.Module):
    """What blocks of both stacks have: attention, feed-forward layer, and norms around them.

    Attributes:
      config: sizes.
      train: apply dropout.
      num_outputs: unused; all tokens are computed.
      taps: what else to return.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation.
    """

    config: Seq2SeqConfig
    train: bool = False
    num_outputs: int | None = None
    taps: frozenset[str] = frozenset()
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    def attend(
        self, x: Array, context: Array | None, bias: Array, name: str, prefix: str = ""
    ) -> tuple[Array, AttentionTaps]:
        """Attention with its norm and residual; `context=None` attends to `x`."""
        config = self.config
        init = nn.initializers.normal(config.init_std)
        norm = LayerNorm(config.layer_norm_epsilon, name=f"{name}_norm")
        h = norm(x) if config.norm == "pre" else x
        h, taps = MultiHeadAttention(
            config.num_heads,
            dropout_rate=config.attention_dropout,
            implementation=self.implementation,
            kernel_init=init,
            out_kernel_init=init,
            dtype=self.dtype,
            name=name,
        )(
            h,
            context,
            bias=bias,
            train=self.train,
            return_scores=self._wants(prefix, "scores", "probabilities"),
            return_projections=self._wants(prefix, "queries", "keys", "values"),
        )
        x = x + self.drop(h, config.dropout)
        return (norm(x) if config.norm == "post" else x), taps

    def feed_forward(self, x: Array) -> Array:
        """The feed-forward layer with its norm and residual."""
        config = self.config
        init = nn.initializers.normal(config.init_std)
        norm = LayerNorm(config.layer_norm_epsilon, name="output_norm")
        h = norm(x) if config.norm == "pre" else x
        h = Dense(config.mlp_width, self.dtype, init, name="mlp_in")(h)
        h = self.drop(ACTIVATIONS[config.activation](h), config.activation_dropout)
        h = Dense(config.width, self.dtype, init, name="mlp_out")(h)
        x = x + self.drop(h, config.dropout)
        return norm(x) if config.norm == "post" else x

    def drop(self, x: Array, rate: float) -> Array:
        """Dropout while training."""
        return nn.Dropout(rate, deterministic=not self.train)(x)

    def _wants(self, prefix: str, *names: str) -> bool:
        return not self.taps.isdisjoint(prefix + name for name in names)


class EncoderLayer(_Block):
    """A block of the encoder."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], bias: Float[Array, "batch 1 1 time"]
    ) -> LayerOutput:
        """Run the block on hidden states, with the bias of padding."""
        x, taps = self.attend(x, None, bias, "attention")
        return LayerOutput(self.feed_forward(x), *taps)


class DecoderLayer(_Block):
    """A block of the decoder: attention to itself, then to the encoder."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        bias: Float[Array, "batch 1 time time"],
        encoded: Float[Array, "batch encoder_time width"],
        encoder_bias: Float[Array, "batch 1 1 encoder_time"],
    ) -> DecoderOutput:
        """Run the block on hidden states, with the biases of its two attentions."""
        x, own = self.attend(x, None, bias, "attention")
        x, cross = self.attend(x, encoded, encoder_bias, "cross_attention", _CROSS)
        return DecoderOutput(self.feed_forward(x), *own, *cross)


class Stack(nn.Module):
    """One side of the model.

    Parameters: `position_embeddings`, `embeddings_norm`, `layer_i`, and with norms before the
    halves of a block `final_norm`.

    Attributes:
      config: sizes.
      is_decoder: blocks of the decoder.
      remat: recompute every block in the backward pass.
      scan: compile one block and scan over the stacked parameters.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation.
    """

    config: Seq2SeqConfig
    is_decoder: bool
    remat: bool = False
    scan: bool = False
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        embedded: Float[Array, "batch time width"],
        *shared: Array,
        train: bool = False,
        taps: frozenset[str] = frozenset(),
    ) -> tuple[Float[Array, "batch time width"], Any]:
        """Run the blocks.

        Args:
          embedded: word embeddings.
          *shared: what the blocks take beside hidden states.
          train: apply dropout.
          taps: fields of `Taps` or `DecoderTaps` to return.

        Returns:
          Hidden states, and `Taps` or `DecoderTaps`.
        """
        config, length = self.config, embedded.shape[1]
        normal = nn.initializers.normal(config.init_std)
        rows = config.max_positions + config.position_offset
        positions = self.param("position_embeddings", normal, (rows, config.width))
        x = embedded + positions[None, config.position_offset : config.position_offset + length]
        x = LayerNorm(config.layer_norm_epsilon, name="embeddings_norm")(x).astype(self.dtype)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        rates = (config.dropout, config.attention_dropout, config.activation_dropout)
        x, tapped = run_layers(
            self,
            DecoderLayer if self.is_decoder else EncoderLayer,
            {
                "config": config,
                "train": train,
                "taps": taps,
                "implementation": self.implementation,
                "dtype": self.dtype,
            },
            x,
            *shared,
            num_layers=config.num_decoder_layers if self.is_decoder else config.num_encoder_layers,
            remat=self.remat,
            scan=self.scan,
            dropout=train and max(rates) > 0.0,
            num_outputs=None,
            taps=taps,
            taps_type=DecoderTaps if self.is_decoder else Taps,
        )
        if config.norm == "pre":
            x = LayerNorm(config.layer_norm_epsilon, name="final_norm")(x)
            if "hidden" in taps:
                # As transformers does: the last hidden state is the normalised one.
                tapped = tapped._replace(hidden=(*tapped.hidden[:-1], x))
        return x, tapped


class Seq2Seq(nn.Module):
    """Two texts to the logits of the second one's next tokens.

    Parameters: `word_embeddings`, `encoder` and `decoder` (see `Stack`), `logits_bias`.

    Attributes:
      config: sizes.
      remat: recompute every block in the backward pass.
      scan: compile one block a stack and scan over the stacked parameters.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation; norms, scores, softmax and logits are float32 in any case.
    """

    config: Seq2SeqConfig
    remat: bool = False
    scan: bool = False
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "batch time"],
        decoder_ids: Int[Array, "batch decoder_time"],
        *,
        mask: Bool[Array, "batch time"] | None = None,
        decoder_mask: Bool[Array, "batch decoder_time"] | None = None,
        train: bool = False,
        encoder_taps: Collection[str] = (),
        decoder_taps: Collection[str] = (),
        cross_taps: Collection[str] = (),
    ) -> Seq2SeqOutput:
        """Run the model.

        Args:
          ids: tokens of the encoder.
          decoder_ids: tokens of the decoder, already shifted; each sees those before it.
          mask: True for real tokens of the encoder; `None` derives it from the id of padding.
          decoder_mask: likewise of the decoder.
          train: apply dropout (needs the `dropout` stream).
          encoder_taps: what to return of the encoder, names of fields of `Taps`.
          decoder_taps: of the decoder and its attention to itself.
          cross_taps: of the decoder's attention to the encoder; all but `hidden`.

        Returns:
          Logits, hidden states and taps.

        Raises:
          ValueError: if a text is too long, or a tap does not exist.
        """
        config = self.config
        longest = max(ids.shape[1], decoder_ids.shape[1])
        if longest > config.max_positions:
            raise ValueError(
                f"texts of {longest} tokens do not fit max_positions={config.max_positions}"
            )
        own, cross = check_taps(decoder_taps), check_taps(cross_taps)
        if "hidden" in cross:
            raise ValueError("cross_taps: an attention has no hidden states; use decoder_taps")
        mask = ids != config.pad_id if mask is None else mask
        decoder_mask = decoder_ids != config.pad_id if decoder_mask is None else decoder_mask
        normal = nn.initializers.normal(config.init_std)
        words = self.param("word_embeddings", normal, (config.vocab_size, config.width))
        scale = config.width**0.5 if config.scale_embeddings else 1.0
        encoder, decoder = (
            Stack(
                config,
                name == "decoder",
                self.remat,
                self.scan,
                self.implementation,
                self.dtype,
                name=name,
            )
            for name in ("encoder", "decoder")
        )
        bias = padding_bias(mask)
        encoded, encoder_tapped = encoder(
            look_up(words, ids, config.pad_id) * scale,
            bias,
            train=train,
            taps=check_taps(encoder_taps),
        )
        hidden, tapped = decoder(
            look_up(words, decoder_ids, config.pad_id) * scale,
            padding_bias(decoder_mask) + causal_bias(decoder_ids.shape[1]),
            encoded,
            bias,
            train=train,
            taps=own | {_CROSS + name for name in cross},
        )
        logits = jnp.einsum(
            "btd,vd->btv", hidden, words.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        logits_bias = self.param("logits_bias", nn.initializers.zeros, (config.vocab_size,))
        fields = tapped._asdict()
        return Seq2SeqOutput(
            logits + logits_bias[None, None],
            hidden,
            encoded,
            encoder_tapped,
            Taps(**{name: fields[name] for name in Taps._fields}),
            Taps(**{name: fields[_CROSS + name] for name in AttentionTaps._fields}),
        )


def causal_bias(length: int) -> Float[Array, "1 1 time time"]:
    """Additive attention bias: 0 for keys up to the query, -10000 for later ones.

    Args:
      length: number of tokens.
    """
    sees = jnp.tril(jnp.ones((length, length), bool))
    return jnp.where(sees, 0.0, MASKED_SCORE).astype(jnp.float32)[None, None]


def _ofa(width: int, num_layers: int, num_heads: int) -> Seq2SeqConfig:
    return Seq2SeqConfig(59457, num_layers, num_layers, width, num_heads, 4 * width, norm="pre")


OFA_SIZES: Mapping[str, Seq2SeqConfig] = MappingProxyType(
    {"ofa_tiny": _ofa(256, 4, 4), "ofa_base": _ofa(768, 6, 12), "ofa_large": _ofa(1024, 12, 16)}
)
"""Depths and widths of OFA, over its vocabulary of words and places. OFA's own blocks have further
norms, scales of heads and relative positions, which are not here."""
