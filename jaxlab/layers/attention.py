"""The one attention function, and the multi-head module around it.

Scores and softmax are float32 whatever the inputs are. Padding comes as an additive `bias` (BERT's
-10000, which leaves an all-padding row finite and unmasked) or as a boolean `mask`; the two differ
on all-padding rows only, and parity with an original needs the original's.
"""

import math
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from jaxlab.layers.dense import Dense

AttentionImplementation = Literal["auto", "einsum", "xla", "cudnn"]

_HALF = (jnp.bfloat16, jnp.float16)
_MAX_CUDNN_HEAD = 128


class AttentionOutput(NamedTuple):
    """What `attention` returns when the scores are asked for.

    Attributes:
      output: (batch, queries, heads, head_dim).
      scores: scaled scores after bias and mask, (batch, heads, queries, keys), float32.
      probabilities: softmax of the scores before dropout, the same shape, float32.
    """

    output: Float[Array, "batch queries heads head_dim"]
    scores: Float[Array, "batch heads queries keys"]
    probabilities: Float[Array, "batch heads queries keys"]


class AttentionTaps(NamedTuple):
    """What `MultiHeadAttention` shows of itself; what was not asked for is `None`.

    Attributes:
      scores: see `AttentionOutput`.
      probabilities: likewise.
      queries: the projected inputs, all heads one after the other.
      keys: likewise.
      values: likewise.
    """

    scores: Float[Array, "batch heads queries keys"] | None = None
    probabilities: Float[Array, "batch heads queries keys"] | None = None
    queries: Float[Array, "batch queries width"] | None = None
    keys: Float[Array, "batch keys width"] | None = None
    values: Float[Array, "batch keys width"] | None = None


@overload
def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: AttentionImplementation = "einsum",
    return_scores: Literal[False] = False,
) -> jax.Array: ...


@overload
def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: AttentionImplementation = "einsum",
    return_scores: Literal[True],
) -> AttentionOutput: ...


def attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    *,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    mask: Bool[Array, "#batch #heads #queries keys"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    implementation: AttentionImplementation = "einsum",
    return_scores: bool = False,
) -> Float[Array, "batch queries heads head_dim"] | AttentionOutput:
    """Scaled dot-product attention, `softmax(q k^T / sqrt(head_dim) + bias) v` per head.

    Args:
      query: queries.
      key: keys.
      value: values.
      bias: added to the scaled scores in float32.
      mask: True where a key may be attended to. A query with no such key attends to all equally.
      dropout_rate: share of the probabilities that is dropped (the rest is scaled up).
      dropout_key: key of the dropout; needed when the rate is positive.
      implementation: `einsum`, or `xla` / `cudnn` of `jax.nn.dot_product_attention`, which know
        neither dropout nor scores: with a positive rate or `return_scores` einsum is used. `cudnn`
        is flash attention on NVIDIA GPUs, in half precision, in which it adds bias and mask, too.
        `auto` is that where it exists (for the default device), else `einsum`.
      return_scores: return scores and probabilities too.

    Returns:
      The attended values in the query's dtype, or an `AttentionOutput`.

    Raises:
      ValueError: if the rate is positive and there is no key, or for `cudnn` in float32.

    References:
      Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    if dropout_rate > 0.0 and dropout_key is None:
        raise ValueError(
            f"dropout_rate={dropout_rate} needs a dropout_key; pass one, or a rate of 0 to evaluate"
        )
    if implementation == "auto":
        implementation = "cudnn" if _has_cudnn(query) else "einsum"
    if implementation != "einsum" and dropout_rate == 0.0 and not return_scores:
        if implementation == "cudnn":
            return _attend_by_cudnn(query, key, value, bias, mask)
        return jax.nn.dot_product_attention(
            query, key, value, bias, mask, implementation=implementation
        )
    # Heads before time: a quarter of the time on CPUs, where products of other layouts are slow.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scaled = query * jnp.asarray(1.0 / math.sqrt(query.shape[-1]), query.dtype)
    scores = jnp.einsum("bhqd,bhkd->bhqk", scaled, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    exponentials = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = exponentials.sum(axis=-1, keepdims=True)
    weights, keep_rate = exponentials, 1.0 - dropout_rate
    if dropout_key is not None and dropout_rate > 0.0:
        keep = jax.random.bernoulli(dropout_key, keep_rate, weights.shape)
        weights = jnp.where(keep, weights, 0.0)
    else:
        keep_rate = 1.0
    # Dividing the output, not the weights, by their sum saves a pass over the largest array.
    attended = jnp.einsum(
        "bhqk,bhkd->bhqd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    output = jnp.swapaxes(attended / (total * keep_rate), 1, 2).astype(value.dtype)
    if return_scores:
        return AttentionOutput(output, scores, exponentials / total)
    return output


def _has_cudnn(query: jax.Array) -> bool:
    """Whether the default device attends to these queries by cuDNN: NVIDIA's from Ampere on do."""
    if jax.default_backend() != "gpu" or query.dtype not in _HALF or query.shape[-1] % 8:
        return False
    device = jax.devices()[0]
    generation = str(getattr(device, "compute_capability", "0")).partition(".")[0]
    is_nvidia = "nvidia" in device.device_kind.lower() and generation.isdecimal()
    return is_nvidia and int(generation) >= 8 and query.shape[-1] <= _MAX_CUDNN_HEAD


def _attend_by_cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
) -> jax.Array:
    """Attend with cuDNN, which wants half precision, full biases and (for gradients) even lengths.

    An odd length gets one more row, which nobody attends to.
    """
    if query.dtype not in _HALF:
        raise ValueError(
            f"attention by cudnn was asked for in {query.dtype}; it exists in bfloat16 and float16 "
            "only: compute in bfloat16, or choose einsum"
        )
    batch, queries = query.shape[:2]
    keys = key.shape[1]
    lengths = None
    if bias is not None or mask is not None:
        bias = _pad_bias(bias, mask, queries, keys, query.dtype)
    elif keys % 2:
        lengths = jnp.full(batch, keys, jnp.int32)
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value)
    )
    attended = jax.nn.dot_product_attention(
        query, key, value, bias, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return attended[:, :queries]


def _pad_bias(
    bias: jax.Array | None, mask: jax.Array | None, queries: int, keys: int, dtype: DTypeLike
) -> jax.Array:
    """Bias and mask as one bias with a row for every query, of even lengths."""
    # Half of the lowest number: the sum with a score stays finite.
    lowest = jnp.finfo(dtype).min / 2
    total = jnp.zeros((1, 1, 1, keys), dtype) if bias is None else bias.astype(dtype)
    if mask is not None:
        total = jnp.where(mask, total, lowest)
    total = jnp.broadcast_to(total, (*total.shape[:2], queries, keys))
    added = ((0, 0), (0, 0), (0, queries % 2), (0, keys % 2))
    return jnp.pad(total, added, constant_values=lowest)


class MultiHeadAttention(nn.Module):
    """Attention with query, key, value and output projections, each with a bias.

    Parameters: `query`, `key`, `value`, `out`, each a `kernel` (in, out) and a `bias`.

    Attributes:
      num_heads: number of heads; must divide the width of the queries.
      out_features: width of the output; `None` keeps the queries' width.
      qkv_features: width of queries, keys and values; `None` keeps that of the inputs.
      dropout_rate: dropout of the attention probabilities, drawn from the `dropout` stream.
      implementation: see `attention`.
      kernel_init: initialiser of the query, key and value kernels.
      out_kernel_init: initialiser of the output kernel.
      bias_init: initialiser of all biases.
      dtype: type of the computation.
    """

    num_heads: int
    out_features: int | None = None
    qkv_features: int | None = None
    dropout_rate: float = 0.0
    implementation: AttentionImplementation = "einsum"
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    out_kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch queries width"],
        context: Float[Array, "batch keys context_width"] | None = None,
        *,
        value_context: Float[Array, "batch keys value_width"] | None = None,
        bias: Float[Array, "#batch #heads #queries keys"] | None = None,
        mask: Bool[Array, "#batch #heads #queries keys"] | None = None,
        train: bool = False,
        return_scores: bool = False,
        return_projections: bool = False,
    ) -> tuple[Float[Array, "batch queries out"], AttentionTaps]:
        """Attend from `inputs` to `context`.

        Args:
          inputs: what the queries are made from.
          context: what keys and values are made from; `None` means `inputs`.
          value_context: what values are made from; `None` means `context`.
          bias: additive bias of the scores.
          mask: True where a key may be attended to.
          train: apply dropout (needs the `dropout` stream when the rate is positive).
          return_scores: return scores and probabilities too.
          return_projections: return queries, keys and values too.

        Returns:
          The projected output, and what else was asked for.

        Raises:
          ValueError: if the number of heads does not divide the width.
        """
        width = inputs.shape[-1] if self.qkv_features is None else self.qkv_features
        check_heads(width, self.num_heads)
        context = inputs if context is None else context
        value_context = context if value_context is None else value_context
        split = (self.num_heads, width // self.num_heads)
        projections = [
            Dense(
                width,
                dtype=self.dtype,
                kernel_init=self.kernel_init,
                bias_init=self.bias_init,
                name=name,
            )(x)
            for name, x in (("query", inputs), ("key", context), ("value", value_context))
        ]
        query, key, value = (x.reshape(*x.shape[:-1], *split) for x in projections)
        rate = self.dropout_rate if train else 0.0
        dropout_key = self.make_rng("dropout") if rate > 0.0 else None
        taps = AttentionTaps()
        if return_projections:
            taps = AttentionTaps(None, None, *projections)
        if return_scores:
            whole = attention(
                query,
                key,
                value,
                bias=bias,
                mask=mask,
                dropout_rate=rate,
                dropout_key=dropout_key,
                return_scores=True,
            )
            attended = whole.output
            taps = taps._replace(scores=whole.scores, probabilities=whole.probabilities)
        else:
            attended = attention(
                query,
                key,
                value,
                bias=bias,
                mask=mask,
                dropout_rate=rate,
                dropout_key=dropout_key,
                implementation=self.implementation,
            )
        output = Dense(
            self.out_features or width,
            dtype=self.dtype,
            kernel_init=self.out_kernel_init,
            bias_init=self.bias_init,
            name="out",
        )(attended.reshape(*inputs.shape[:-1], width))
        return output, taps


def attention_of_some(
    implementation: AttentionImplementation, num_outputs: int | None
) -> AttentionImplementation:
    """The implementation for a block that computes only some of its tokens.

    Their scores are few: what fused kernels save is not there, and they are made for as many
    queries as keys.

    Args:
      implementation: of the other blocks.
      num_outputs: tokens that are computed; `None` is all.
    """
    return implementation if num_outputs is None else "einsum"


def check_heads(width: int, num_heads: int) -> None:
    """Refuse a number of heads that does not divide the width.

    Args:
      width: width of the queries.
      num_heads: number of heads.

    Raises:
      ValueError: naming both and the nearest widths that would do.
    """
    if num_heads < 1 or width < 1 or width % num_heads:
        heads = max(num_heads, 1)
        lower = max(width // heads * heads, heads)
        raise ValueError(
            f"width={width} is not divisible by num_heads={num_heads}; nearest valid widths are "
            f"{lower} and {lower + heads}"
        )
