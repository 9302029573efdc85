"""The vision transformer of the CLIP family, with FLIP patch masking.

Dosovitskiy et al. 2021, arXiv:2010.11929, in the form of Radford et al. 2021, arXiv:2103.00020:
a layer norm before the first block, pre-norm blocks, quick GELU, no bias in the patch embedding,
and a projection of the normalised class token.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jaxlab.layers.activations import ACTIVATIONS, check_activation
from jaxlab.layers.attention import (
    AttentionImplementation,
    MultiHeadAttention,
    attention_of_some,
    check_heads,
)
from jaxlab.layers.dense import Dense
from jaxlab.layers.initializers import torch_uniform, uniform
from jaxlab.layers.normalization import LayerNorm
from jaxlab.layers.stacking import DEFAULT_TAPS, LayerOutput, Taps, run_layers


@dataclasses.dataclass(frozen=True)
class VisionTransformerConfig:
    """Sizes and conventions of a CLIP vision transformer.

    Attributes:
      image_size: height and width of the images, in pixels.
      patch_size: height and width of a patch, in pixels; must divide the image size.
      num_layers: number of transformer blocks.
      width: width of the hidden states.
      num_heads: attention heads; must divide the width.
      mlp_width: width of the feed-forward layer.
      output_dim: width of the image features.
      activation: name of the feed-forward activation, see `ACTIVATIONS`.
      layer_norm_epsilon: added to the variance of every layer norm.
    """

    image_size: int
    patch_size: int
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    output_dim: int
    activation: str = "quick_gelu"
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
          ValueError: if a size is not positive, the patches do not tile the image, the heads do
            not divide the width or the activation is unknown.
        """
        for name in ("image_size", "patch_size", "num_layers", "mlp_width", "output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"VisionTransformerConfig.{name}={getattr(self, name)} must be at least 1"
                )
        if self.image_size % self.patch_size:
            lower = max(self.image_size // self.patch_size, 1) * self.patch_size
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}; "
                f"nearest valid sizes are {lower} and {lower + self.patch_size}"
            )
        check_heads(self.width, self.num_heads)
        check_activation(self.activation)

    @property
    def grid_size(self) -> int:
        """Number of patches along one side."""
        return self.image_size // self.patch_size


class VisionTransformerLayer(nn.Module):
    """One pre-norm block: `x += MHA(LN(x))`, `x += MLP(LN(x))`.

    Attributes:
      config: sizes.
      num_outputs: compute the first tokens only, from all of them; `None` computes all.
      return_scores: return the attention scores too.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation.
    """

    config: VisionTransformerConfig
    num_outputs: int | None = None
    return_scores: bool = False
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch time width"]) -> LayerOutput:
        """Run the block.

        Args:
          x: hidden states.

        Returns:
          The new hidden states (and scores).
        """
        config = self.config
        width = config.width
        h = LayerNorm(config.layer_norm_epsilon, name="ln_1")(x)
        attended, taps = MultiHeadAttention(
            config.num_heads,
            implementation=attention_of_some(self.implementation, self.num_outputs),
            # The original draws q, k and v as one (3 * width, width) Xavier-uniform matrix.
            kernel_init=uniform(math.sqrt(6.0 / (4 * width))),
            out_kernel_init=torch_uniform(width),
            dtype=self.dtype,
            name="attention",
        )(h[:, : self.num_outputs], h, return_scores=self.return_scores)
        x = x[:, : self.num_outputs] + attended
        h = LayerNorm(config.layer_norm_epsilon, name="ln_2")(x)
        for name, fan_in, features in (
            ("mlp_in", width, config.mlp_width),
            ("mlp_out", config.mlp_width, width),
        ):
            init = torch_uniform(fan_in)
            h = Dense(features, dtype=self.dtype, kernel_init=init, bias_init=init, name=name)(h)
            h = ACTIVATIONS[config.activation](h) if name == "mlp_in" else h
        x = x + h
        return LayerOutput(x, taps.scores, taps.probabilities)


class VisionTransformer(nn.Module):
    """Images to features.

    Parameters: `patch_embedding` (patch, patch, 3, width), `class_embedding`,
    `positional_embedding` (1 + grid * grid, width), `ln_pre`, `layer_i` with `ln_1`,
    `attention/{query,key,value,out}`, `ln_2`, `mlp_in`, `mlp_out`, then `ln_post` and `projection`
    (width, output_dim).

    Attributes:
      config: sizes.
      remat: recompute every block in the backward pass.
      scan: compile one block and scan over the stacked parameters.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation; norms, scores and softmax are float32 in any case.
    """

    config: VisionTransformerConfig
    remat: bool = False
    scan: bool = False
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height image_width channels"],
        *,
        train: bool = False,
        mask_ratio: float = 0.0,
        return_taps: bool = False,
    ) -> tuple[Float[Array, "batch dim"], Taps]:
        """Encode images.

        Args:
          images: NHWC, normalised, of the config's size.
          train: apply patch masking.
          mask_ratio: share of the patches that is dropped while training, static, in [0, 1); the
            choice is drawn from the `mask` stream. 0 is exactly no masking.
          return_taps: return hidden states and attention scores of every layer.

        Returns:
          The class token's features, not normalised, and the taps.

        Raises:
          ValueError: if the images have another size, or the ratio is outside [0, 1).
        """
        config = self.config
        check_mask_ratio(mask_ratio)
        check_images(images, config.image_size)
        x = self._embed(images)
        if train and mask_ratio > 0.0:
            x = drop_patches(x, mask_ratio, self.make_rng("mask"))
        x = LayerNorm(config.layer_norm_epsilon, name="ln_pre")(x)
        x, taps = run_layers(
            self,
            VisionTransformerLayer,
            {
                "config": config,
                "return_scores": return_taps,
                "implementation": self.implementation,
                "dtype": self.dtype,
            },
            x,
            num_layers=config.num_layers,
            remat=self.remat,
            scan=self.scan,
            dropout=False,
            num_outputs=1,
            taps=DEFAULT_TAPS if return_taps else frozenset(),
        )
        pooled = LayerNorm(config.layer_norm_epsilon, name="ln_post")(x[:, 0])
        projection = self.param(
            "projection",
            nn.initializers.normal(config.width**-0.5),
            (config.width, config.output_dim),
        )
        return pooled @ projection.astype(self.dtype), taps

    def _embed(self, images: Array) -> Array:
        """Patch embedding (a strided convolution is a matrix product of patches) and positions."""
        config = self.config
        size, width = config.patch_size, config.width
        normal = nn.initializers.normal(width**-0.5)
        kernel = self.param(
            "patch_embedding", torch_uniform(3 * size * size), (size, size, 3, width)
        )
        class_token = self.param("class_embedding", normal, (width,))
        positions = self.param("positional_embedding", normal, (config.grid_size**2 + 1, width))
        patches = rearrange(
            images.astype(self.dtype), "b (h p) (w q) c -> b (h w) (p q c)", p=size, q=size
        )
        x = patches @ rearrange(kernel, "p q c d -> (p q c) d").astype(self.dtype)
        first = jnp.broadcast_to(class_token.astype(self.dtype)[None, None], (x.shape[0], 1, width))
        return jnp.concatenate([first, x], axis=1) + positions.astype(self.dtype)[None]


def check_images(images: jax.Array, image_size: int) -> None:
    """Refuse images that are not NHWC of the wanted size.

    Args:
      images: (batch, height, width, channels).
      image_size: wanted height and width.

    Raises:
      ValueError: naming both shapes.
    """
    if images.shape[1:] != (image_size, image_size, 3):
        raise ValueError(
            f"images of shape {images.shape} given, (batch, {image_size}, {image_size}, 3) wanted; "
            "resize them to the model's size and put channels last"
        )


def check_mask_ratio(mask_ratio: float) -> None:
    """Refuse a mask ratio outside [0, 1).

    Args:
      mask_ratio: share of the patches that is dropped.

    Raises:
      ValueError: if it is outside [0, 1).
    """
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(
            f"mask_ratio={mask_ratio} is the share of patches to drop; use a number in [0, 1)"
        )


def num_kept_patches(num_patches: int, mask_ratio: float) -> int:
    """Number of patches that FLIP masking keeps: `int(num_patches * (1 - mask_ratio))`.

    Args:
      num_patches: patches without the class token.
      mask_ratio: share to drop, in [0, 1).

    Returns:
      The number kept; ViT-B/16 at 224 pixels keeps 98 of 196 at ratio 0.5.

    Raises:
      ValueError: if the ratio is outside [0, 1).
    """
    check_mask_ratio(mask_ratio)
    return int(num_patches * (1 - mask_ratio))


def drop_patches(
    x: Float[Array, "batch time width"], mask_ratio: float, key: Key[Array, ""]
) -> Float[Array, "batch kept width"]:
    """Keep the class token and a random part of the patches, drawn per image (FLIP).

    The kept patches come in random order: positions were added before, and attention does not see
    order.

    Args:
      x: embeddings with positions, the class token first.
      mask_ratio: share of the patches to drop, static, in [0, 1); 0 returns `x` itself.
      key: key of the draw.

    Returns:
      The class token and `num_kept_patches` patches.

    Raises:
      ValueError: if the ratio is outside [0, 1).

    References:
      Li et al. 2023, "Scaling Language-Image Pre-training via Masking", arXiv:2212.00794.
    """
    kept = num_kept_patches(x.shape[1] - 1, mask_ratio)
    if mask_ratio == 0.0:
        return x
    noise = jax.random.uniform(key, (x.shape[0], x.shape[1] - 1))
    chosen = 1 + jnp.argsort(noise, axis=1)[:, :kept]
    patches = jnp.take_along_axis(x, chosen[:, :, None], axis=1)
    return jnp.concatenate([x[:, :1], patches], axis=1)
