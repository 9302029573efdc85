"""The two towers of Chinese CLIP, and the table of its sizes.

Yang et al. 2022, "Chinese CLIP: Contrastive Vision-Language Pretraining in Chinese",
arXiv:2211.01335: a CLIP image tower (vision transformer or modified ResNet) and a Chinese BERT
body, each projected to one embedding space.

Parameters: `visual` (see `jaxlab.layers`), `bert`, `text_projection` (text width, dim) and
`logit_scale`, the logarithm of the inverse temperature. A modified ResNet keeps running statistics
in the collection `batch_stats`.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxlab.layers.attention import AttentionImplementation
from jaxlab.layers.bert import BertConfig, BertEncoder
from jaxlab.layers.precision import full_precision
from jaxlab.layers.resnet import ModifiedResNet, ModifiedResNetConfig
from jaxlab.layers.stacking import LAYER_PREFIX, Taps
from jaxlab.layers.vit import VisionTransformer, VisionTransformerConfig, check_mask_ratio

_logger = logging.getLogger(__name__)

MIN_NORM = 1e-12
"""Norms below this are not divided by, so that a zero feature stays zero."""


@dataclasses.dataclass(frozen=True)
class ChineseClipConfig:
    """Sizes of a Chinese CLIP.

    Attributes:
      vision: the image tower; its `output_dim` is the width of the joint embedding space.
      text: the BERT body.
      context_length: length of a tokenised text, [CLS] and [SEP] included; at most the number of
        positions of the text tower.
      initial_scale: multiplier of the cosines that a random start begins with (1 / temperature).
    """

    vision: VisionTransformerConfig | ModifiedResNetConfig
    text: BertConfig
    context_length: int = 52
    initial_scale: float = 1.0 / 0.07

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
          ValueError: if the context is shorter than 3 or longer than the text tower's positions,
            or the scale is not positive.
        """
        if not 3 <= self.context_length <= self.text.max_positions:
            raise ValueError(
                f"context_length={self.context_length} must be at least 3 ([CLS], one token, "
                f"[SEP]) and at most text.max_positions={self.text.max_positions}"
            )
        if not self.initial_scale > 0.0:
            raise ValueError(
                f"initial_scale={self.initial_scale} multiplies cosines; use a positive number, "
                "such as 14.3 (CLIP's start)"
            )

    @property
    def embed_dim(self) -> int:
        """Width of the joint embedding space."""
        return self.vision.output_dim


def _vit(patch: int, layers: int, width: int, heads: int, dim: int, size: int = 224):
    """A vision transformer of the zoo: the feed-forward layer is four times as wide."""
    return VisionTransformerConfig(size, patch, layers, width, heads, 4 * width, dim)


_RBT3 = BertConfig(num_layers=3)
_ROBERTA_BASE = BertConfig()
_ROBERTA_LARGE = BertConfig(num_layers=24, width=1024, num_heads=16, mlp_width=4096)

MODELS: Mapping[str, ChineseClipConfig] = MappingProxyType(
    {
        "RN50": ChineseClipConfig(ModifiedResNetConfig(), _RBT3),
        "ViT-B-32": ChineseClipConfig(_vit(32, 12, 768, 12, 512), _ROBERTA_BASE),
        "ViT-B-16": ChineseClipConfig(_vit(16, 12, 768, 12, 512), _ROBERTA_BASE),
        "ViT-L-14": ChineseClipConfig(_vit(14, 24, 1024, 16, 768), _ROBERTA_BASE),
        "ViT-L-14-336": ChineseClipConfig(_vit(14, 24, 1024, 16, 768, 336), _ROBERTA_BASE),
        # The paper's table prints 24 text heads; 1024 is not divisible by 24, the code has 16.
        "ViT-H-14": ChineseClipConfig(_vit(14, 32, 1280, 16, 1024), _ROBERTA_LARGE),
    }
)
"""The published sizes by name (ViT-B-32 exists as a config only)."""


class ClipFeatures(NamedTuple):
    """What both towers give for a batch of pairs.

    Attributes:
      image: L2-normalised image features, (batch, dim), float32.
      text: L2-normalised text features, (batch, dim), float32.
      log_scale: logarithm of the multiplier of their cosines.
    """

    image: Float[Array, "batch dim"]
    text: Float[Array, "text_batch dim"]
    log_scale: Float[Array, ""]


class ChineseClip(nn.Module):
    """Image tower and text tower with one embedding space.

    Either tower can be initialised and applied alone:
    `model.init(key, ids, method="encode_text")`.

    Attributes:
      config: sizes.
      remat: recompute every transformer block in the backward pass (no effect on a ResNet).
      scan: compile one transformer block a tower and scan over the stacked parameters.
      implementation: attention, see `jaxlab.layers.attention`.
      dtype: type of the computation, see `jaxlab.layers.precision`; features leave the model in
        float32.
    """

    config: ChineseClipConfig
    remat: bool = False
    scan: bool = False
    implementation: AttentionImplementation = "auto"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Build both towers; each makes its parameters when it is first called."""
        config = self.config
        transformer: dict[str, Any] = {
            "remat": self.remat,
            "scan": self.scan,
            "implementation": self.implementation,
            "dtype": self.dtype,
        }
        if isinstance(config.vision, ModifiedResNetConfig):
            self.visual = ModifiedResNet(config.vision, self.implementation, self.dtype)
        else:
            self.visual = VisionTransformer(config.vision, **transformer)
        self.bert = BertEncoder(config.text, **transformer)
        width = config.text.width
        self.text_projection = self._parameter(
            "text_projection", nn.initializers.normal(width**-0.5), (width, config.embed_dim)
        )
        start = nn.initializers.constant(math.log(config.initial_scale))
        self.logit_scale = self._parameter("logit_scale", start, ())

    def _parameter(
        self, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
    ) -> Array | None:
        """A parameter of the model itself, `None` where the tree does not hold it (one tower)."""
        if self.is_initializing() or self.has_variable("params", name):
            return self.param(name, init, shape)
        return None

    def encode_image(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask_ratio: float = 0.0,
    ) -> Float[Array, "batch dim"]:
        """Image features, not normalised.

        Args:
          images: NHWC, normalised by the CLIP mean and standard deviation.
          train: apply patch masking, use and record batch statistics.
          mask_ratio: share of the patches dropped while training (stream `mask`); a ResNet has no
            patches: it logs a warning and uses the whole image.

        Returns:
          float32 features.

        Raises:
          ValueError: if the images have another size, or the ratio is outside [0, 1).
        """
        return self.tap_image(images, train=train, mask_ratio=mask_ratio, return_taps=False)[0]

    def encode_text(
        self, ids: Int[Array, "batch time"], *, train: bool = False
    ) -> Float[Array, "batch dim"]:
        """Text features, not normalised: the projected hidden state of [CLS].

        The padding mask is derived from `ids != 0`.

        Args:
          ids: token ids, zero-padded.
          train: apply dropout (stream `dropout`).

        Returns:
          float32 features.
        """
        return self.tap_text(ids, train=train, return_taps=False)[0]

    def tap_image(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask_ratio: float = 0.0,
        return_taps: bool = True,
    ) -> tuple[Float[Array, "batch dim"], Taps]:
        """Image features with the intermediate states of the tower.

        Args:
          images: NHWC, normalised.
          train: see `encode_image`.
          mask_ratio: see `encode_image`.
          return_taps: fill the taps.

        Returns:
          float32 features, and the taps.

        Raises:
          ValueError: if the images have another size, or the ratio is outside [0, 1).
        """
        options: dict[str, Any] = {"train": train, "return_taps": return_taps}
        if isinstance(self.config.vision, VisionTransformerConfig):
            options["mask_ratio"] = mask_ratio
        elif mask_ratio != 0.0:
            check_mask_ratio(mask_ratio)
            _logger.warning("mask_ratio=%s has no effect on a ResNet image tower", mask_ratio)
        with full_precision(self.dtype):
            features, taps = self.visual(images, **options)
        return features.astype(jnp.float32), taps

    def tap_text(
        self, ids: Int[Array, "batch time"], *, train: bool = False, return_taps: bool = True
    ) -> tuple[Float[Array, "batch dim"], Taps]:
        """Text features with the intermediate states of the tower.

        Args:
          ids: token ids, zero-padded.
          train: apply dropout (stream `dropout`).
          return_taps: fill the taps.

        Returns:
          float32 features, and the taps.
        """
        if self.text_projection is None:
            raise KeyError(
                "the parameters hold no text_projection; load the text tower (bert and "
                "text_projection) to encode texts"
            )
        with full_precision(self.dtype):
            hidden, taps = self.bert(ids, train=train, num_outputs=1, return_taps=return_taps)
            features = hidden[:, 0] @ self.text_projection.astype(self.dtype)
        return features.astype(jnp.float32), taps

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        ids: Int[Array, "text_batch time"],
        *,
        train: bool = False,
        mask_ratio: float = 0.0,
        image_locked: bool = False,
    ) -> ClipFeatures:
        """Normalised features of both towers and the log of the multiplier.

        Args:
          images: NHWC, normalised.
          ids: token ids, zero-padded.
          train: train both towers (streams `dropout`, and `mask` with a ratio).
          mask_ratio: share of the patches dropped while training.
          image_locked: run the image tower as in evaluation (stored batch statistics, no masking)
            and pass no gradient to it, as in the first stage of pre-training.

        Returns:
          The features.

        Raises:
          ValueError: if the images have another size, or the ratio is outside [0, 1).
          KeyError: if the tree lacks a tower's projection or the temperature.
        """
        image = self.encode_image(
            images, train=train and not image_locked, mask_ratio=0.0 if image_locked else mask_ratio
        )
        if image_locked:
            image = jax.lax.stop_gradient(image)
        text = self.encode_text(ids, train=train)
        if self.logit_scale is None:
            raise KeyError("the parameters hold no logit_scale; load it, or set it to log(100)")
        return ClipFeatures(normalize(image), normalize(text), self.logit_scale)


def normalize(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Divide by the L2 norm over the last axis, in float32.

    A vector shorter than 1e-12 is returned as it is, so that neither value nor gradient is NaN.

    Args:
      x: features.

    Returns:
      Unit vectors, float32.
    """
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > MIN_NORM**2, square, 1.0))


def similarity(
    image: Float[Array, "images dim"], text: Float[Array, "texts dim"], log_scale: Float[Array, ""]
) -> Float[Array, "images texts"]:
    """Scaled cosines of all images with all texts, `exp(log_scale) f g^T`.

    Args:
      image: L2-normalised image features.
      text: L2-normalised text features.
      log_scale: logarithm of the multiplier.

    Returns:
      Logits per image, float32; the transpose is the logits per text.
    """
    with full_precision(image.dtype):
        cosines = jnp.matmul(image, text.T, preferred_element_type=jnp.float32)
    return jnp.exp(log_scale.astype(jnp.float32)) * cosines


def example_inputs(config: ChineseClipConfig) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of a batch of one image and one text.

    Args:
      config: sizes.

    Returns:
      Images, NHWC float32, and token ids, int32.
    """
    size = config.vision.image_size
    return (
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, config.context_length), jnp.int32),
    )


def initialize(
    config: ChineseClipConfig, key: Key[Array, ""], *, image_tower: bool = True
) -> PyTree:
    """Random start of all variables, compiled once.

    The distributions are the original code's: torch's defaults in the image tower, width^-0.5
    normals for its embeddings and projection, zero scales at the end of residual branches,
    normal(0.02) in BERT, text_width^-0.5 for the text projection. The paper instead starts from
    CLIP and RoBERTa weights.

    Args:
      config: sizes.
      key: key of the draws.
      image_tower: make `visual`; without it there is the text tower, its projection and the
        temperature, for a model that gets a trained image tower.

    Returns:
      `{"params": ...}`, with `batch_stats` for a ResNet. Under `jax.eval_shape` only shapes.
    """
    model = ChineseClip(config)
    images, ids = (jnp.zeros(spec.shape, spec.dtype) for spec in example_inputs(config))
    if image_tower:
        return jax.jit(model.init)(key, images, ids)
    return jax.jit(functools.partial(model.init, method="encode_text"))(key, ids)


def abstract_variables(config: ChineseClipConfig) -> PyTree:
    """Shapes and types of all variables, without making them.

    Equal to `jax.eval_shape` of `initialize`, but one block a transformer is traced and the others,
    which are like it, are written down: seconds less for the large sizes.

    Args:
      config: sizes.

    Returns:
      `{"params": ...}`, with `batch_stats` for a ResNet, of `jax.ShapeDtypeStruct`.
    """
    vision, depths = config.vision, {"bert": config.text.num_layers}
    if isinstance(vision, VisionTransformerConfig):
        depths["visual"] = vision.num_layers
        vision = dataclasses.replace(vision, num_layers=1)
    text = dataclasses.replace(config.text, num_layers=1)
    model = ChineseClip(dataclasses.replace(config, vision=vision, text=text))
    variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(config))
    for tower, depth in depths.items():
        variables["params"][tower] |= {
            f"{LAYER_PREFIX}{i}": variables["params"][tower][f"{LAYER_PREFIX}0"]
            for i in range(1, depth)
        }
    return variables
