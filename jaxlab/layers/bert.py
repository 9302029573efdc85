"""The BERT body: post-norm transformer encoder without pooler and heads.

Devlin et al. 2019, arXiv:1810.04805. Numbers follow the original code: layer norm epsilon 1e-12,
exact GELU, padding as an additive -10000 on the scores of padded keys. What sets its relatives
apart is part of the config: RoBERTa's positions (arXiv:1907.11692), MPNet's relative attention bias
(arXiv:2004.09297), ELECTRA's narrow embeddings (arXiv:2003.10555), and bodies without token types
(DistilBERT, arXiv:1910.01108).
"""

import dataclasses
import math
from collections.abc import Callable, Collection

import jax.numpy as jnp
import numpy as np
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
from jaxlab.layers.embedding import look_up
from jaxlab.layers.normalization import LayerNorm
from jaxlab.layers.stacking import DEFAULT_TAPS, LayerOutput, Taps, check_taps, run_layers

POSITION_STYLES = ("index", "after_pad")

RunBlocks = Callable[[Array, Array], Array]
"""(hidden states before the first block, additive bias of the scores) -> the last hidden states."""

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
      num_types: number of segment (token type) rows; texts of one part use row 0. 0 has no table.
      pad_id: the id of padding; keys with it are masked.
      activation: name of the feed-forward activation, see `ACTIVATIONS`.
      layer_norm_epsilon: added to the variance of every layer norm.
      hidden_dropout: dropout rate after the embeddings and after both halves of a block.
      attention_dropout: dropout rate of the attention probabilities.
      init_std: standard deviation of the initial weights.
      embedding_init_std: the same for the embedding tables. A layer norm follows them: the smaller
        they start, the sooner a step of Adam gives a word a place of its own.
      positions: which row of the position table a token takes: `index` is its place in the text;
        `after_pad` (RoBERTa, MPNet) counts the real tokens from `pad_id + 1` on and gives padding
        the row `pad_id`, so that a table of 514 rows has room for 512 tokens.
      embedding_width: width of the embedding tables (ELECTRA); narrower ones are projected to
        `width` after their norm. `None` is `width`, without a projection.
      relative_buckets: number of buckets of distances between tokens that have a learned attention
        bias, which all layers share (MPNet has 32). 0 has none.
      relative_max_distance: distance from which on all tokens are in one bucket.
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
    positions: str = "index"
    embedding_width: int | None = None
    relative_buckets: int = 0
    relative_max_distance: int = 128

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
          ValueError: if a size is not positive, the heads do not divide the width, a rate is
            outside [0, 1), or the activation, the style of the positions or a number of buckets is
            none that is known.
        """
        for name in ("vocab_size", "num_layers", "mlp_width", "max_positions", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"BertConfig.{name}={getattr(self, name)} must be at least 1")
        for name in ("num_types", "relative_buckets"):
            if getattr(self, name) < 0:
                raise ValueError(f"BertConfig.{name}={getattr(self, name)} must be at least 0")
        if self.positions not in POSITION_STYLES:
            raise ValueError(
                f"positions={self.positions!r} is unknown; use one of {POSITION_STYLES}"
            )
        exact = self.relative_buckets // 4
        if self.relative_buckets % 4 or (exact and self.relative_max_distance <= exact):
            raise ValueError(
                f"relative_buckets={self.relative_buckets} and relative_max_distance="
                f"{self.relative_max_distance}: use a multiple of 4, and a distance above a quarter"
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"BertConfig.{name}={getattr(self, name)} is a dropout rate; use one in [0, 1)"
                )
        check_heads(self.width, self.num_heads)
        check_activation(self.activation)

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding tables."""
        return self.width if self.embedding_width is None else self.embedding_width

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens."""
        reserved = self.pad_id + 1 if self.positions == "after_pad" else 0
        return self.max_positions - reserved


class BertLayer(nn.Module):
    """One post-norm block: `h = LN(x + drop(MHA(x)))`, `LN(h + drop(MLP(h)))`.

    Attributes:
      config: sizes.
      train: apply dropout.
      num_outputs: compute the first tokens only, from all of them; `None` computes all.
      taps: what else to return, see `Taps`.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation.
    """

    config: BertConfig
    train: bool = False
    num_outputs: int | None = None
    taps: frozenset[str] = frozenset()
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        bias: Float[Array, "batch #heads #queries time"],
    ) -> LayerOutput:
        """Run the block.

        Args:
          x: hidden states.
          bias: additive bias of the scores.

        Returns:
          The new hidden states (and what was asked for).
        """
        config = self.config
        kernel_init = nn.initializers.normal(config.init_std)
        drop = nn.Dropout(config.hidden_dropout, deterministic=not self.train)
        attended, taps = MultiHeadAttention(
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
            bias=bias[:, :, : self.num_outputs],
            train=self.train,
            return_scores=not self.taps.isdisjoint(("scores", "probabilities")),
            return_projections=not self.taps.isdisjoint(("queries", "keys", "values")),
        )
        x = x[:, : self.num_outputs]
        x = LayerNorm(config.layer_norm_epsilon, name="attention_norm")(x + drop(attended))
        h = Dense(config.mlp_width, dtype=self.dtype, kernel_init=kernel_init, name="mlp_in")(x)
        h = ACTIVATIONS[config.activation](h)
        h = Dense(config.width, dtype=self.dtype, kernel_init=kernel_init, name="mlp_out")(h)
        x = LayerNorm(config.layer_norm_epsilon, name="output_norm")(x + drop(h))
        return LayerOutput(x, *taps)


class BertEncoder(nn.Module):
    """Token ids to hidden states.

    Parameters: `word_embeddings`, `position_embeddings`, `type_embeddings`, `embeddings_norm`,
    and `layer_i` with `attention/{query,key,value,out}`, `attention_norm`, `mlp_in`, `mlp_out`,
    `output_norm`; where the config has them, `relative_bias` (buckets, heads) and
    `embeddings_project`.

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
        types: Int[Array, "batch time"] | None = None,
        train: bool = False,
        num_outputs: int | None = None,
        return_taps: bool = False,
        taps: Collection[str] = (),
        run_blocks: RunBlocks | None = None,
    ) -> tuple[Float[Array, "batch outputs width"], Taps]:
        """Encode token ids.

        Args:
          ids: token ids, padded with `config.pad_id`.
          mask: True for real tokens; `None` derives it from `ids != pad_id`. A row without any
            real token attends to all its positions equally and stays finite.
          types: which part of a text a token belongs to; `None` is part 0. Left unread where the
            config has no types.
          train: apply dropout (needs the `dropout` stream).
          num_outputs: how many last hidden states are wanted, 1 for those of [CLS]: the last block
            then computes no others. `None` is all.
          return_taps: return hidden states and attention scores of every layer.
          taps: the fields of `Taps` to return; those alone are computed and kept.
          run_blocks: what runs in the place of the blocks, whose parameters are then left unread;
            there are no taps of it.

        Returns:
          The last hidden states of the first tokens, and the taps (empty tuples unless asked for).

        Raises:
          ValueError: if a text is longer than the position table, a tap does not exist, or some are
            wanted of `run_blocks`.
        """
        config = self.config
        if ids.shape[1] > config.max_tokens:
            raise ValueError(
                f"texts of {ids.shape[1]} tokens do not fit max_positions={config.max_positions}; "
                "shorten the context or enlarge the table"
            )
        wanted = DEFAULT_TAPS if return_taps else check_taps(taps)
        mask = ids != config.pad_id if mask is None else mask
        x = self._embed(ids, mask, types)
        x = LayerNorm(config.layer_norm_epsilon, name="embeddings_norm")(x).astype(self.dtype)
        x = nn.Dropout(config.hidden_dropout, deterministic=not train)(x)
        if config.embedding_width is not None:
            init = nn.initializers.normal(config.init_std)
            x = Dense(config.width, self.dtype, init, name="embeddings_project")(x)
        bias = padding_bias(mask)
        if config.relative_buckets:
            bias = bias + self._relative_bias(ids.shape[1])
        if run_blocks is not None:
            if wanted:
                raise ValueError(f"taps={sorted(wanted)} are of blocks, and run_blocks has none")
            return run_blocks(x, bias)[:, :num_outputs], Taps()
        return run_layers(
            self,
            BertLayer,
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

    def _embed(self, ids: Array, mask: Array, types: Array | None) -> Array:
        """The sum of word, position and type embeddings."""
        config, width = self.config, self.config.embedding_dim
        normal = nn.initializers.normal(config.embedding_init_std)
        words = self.param("word_embeddings", normal, (config.vocab_size, width))
        positions = self.param("position_embeddings", normal, (config.max_positions, width))
        x = look_up(words, ids, config.pad_id)
        if config.positions == "index":
            x = x + positions[None, : ids.shape[1]]
        else:
            places = positions_after_pad(mask, config.pad_id)
            x = x + look_up(positions, places, config.pad_id)
        if not config.num_types:
            return x
        rows = self.param("type_embeddings", normal, (config.num_types, width))
        return x + (rows[None, :1] if types is None else jnp.take(rows, types, axis=0))

    def _relative_bias(self, length: int) -> Array:
        """The learned bias of every pair of places: (1, heads, queries, keys)."""
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        table = self.param("relative_bias", normal, (config.relative_buckets, config.num_heads))
        places = np.arange(length)
        buckets = relative_buckets(
            places[None, :] - places[:, None], config.relative_buckets, config.relative_max_distance
        )
        return jnp.transpose(jnp.take(table, buckets, axis=0), (2, 0, 1))[None]


def positions_after_pad(mask: Bool[Array, "batch time"], pad_id: int) -> Int[Array, "batch time"]:
    """Rows of a position table that begins with the row of padding.

    Args:
      mask: True for real tokens.
      pad_id: the row of padding; the first real token has the next one.

    Example:
      >>> positions_after_pad(jnp.array([[True, True, False]]), 1).tolist()
      [[2, 3, 1]]

    References:
      Liu et al. 2019, arXiv:1907.11692; `create_position_ids_from_input_ids` of transformers.
    """
    counted = mask.astype(jnp.int32)
    return pad_id + jnp.cumsum(counted, axis=1) * counted


def relative_buckets(
    distance: Int[np.ndarray, "queries keys"], num_buckets: int, max_distance: int
) -> Int[np.ndarray, "queries keys"]:
    """The bucket of a distance between two tokens.

    Half of the buckets are for keys at or before the query, half for those after it. Of either
    half, one half holds a distance each, the other distances of logarithmically growing range.

    Args:
      distance: place of the key minus place of the query.
      num_buckets: a multiple of 4.
      max_distance: from here on a distance is in the last bucket.

    Returns:
      Buckets in [0, num_buckets).

    Example:
      >>> relative_buckets(np.array([[0, -1, 1, -8, 127, 500]]), 32, 128).tolist()
      [[0, 1, 17, 8, 31, 31]]

    References:
      Raffel et al. 2020, arXiv:1910.10683, section 2.1; Song et al. 2020, arXiv:2004.09297.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    far = np.abs(distance)
    share = np.log(np.maximum(far, exact) / exact) / math.log(max_distance / exact)
    logarithmic = np.minimum(exact + (share * exact).astype(np.int64), half - 1)
    return np.where(far < exact, far, logarithmic) + np.where(distance > 0, half, 0)


def padding_bias(mask: Bool[Array, "batch time"]) -> Float[Array, "batch 1 1 time"]:
    """Additive attention bias of a padding mask: 0 for real tokens, -10000 for padding.

    Args:
      mask: True for real tokens.

    Returns:
      float32, broadcastable to the scores.
    """
    return jnp.where(mask, 0.0, MASKED_SCORE).astype(jnp.float32)[:, None, None, :]
