"""The modified ResNet of the CLIP family: three-convolution stem, pooled strides, attention pool.

Radford et al. 2021, arXiv:2103.00020, section 2.4. Every strided convolution is an average pool and
a convolution of stride 1; the last pooling is attention from the mean of the map to its places.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlab.layers.attention import AttentionImplementation, MultiHeadAttention, check_heads
from jaxlab.layers.convolution import Conv, average_pool
from jaxlab.layers.initializers import he_normal, torch_uniform
from jaxlab.layers.normalization import BatchNorm, NormName
from jaxlab.layers.stacking import Taps
from jaxlab.layers.vit import check_images

KernelInit = Literal["torch", "he"]


@dataclasses.dataclass(frozen=True)
class ModifiedResNetConfig:
    """Sizes and conventions of a modified ResNet. The defaults are those of CLIP's RN50.

    Attributes:
      image_size: height and width of the images, in pixels.
      stem_width: channels after the stem (its first two convolutions have half of them) and base
        planes of the first stage; every further stage doubles the planes.
      stages: number of blocks of every stage.
      expansion: output channels of a block over its planes.
      num_heads: heads of the attention pool; must divide the last stage's channels.
      output_dim: width of the image features.
      stem_stride: stride of the first convolution.
      stem_pool: window of the average pool after the stem; 1 leaves it out.
      kernel_init: how convolution kernels start: `torch` (uniform on +-1/sqrt(fan_in), as the
        original's) or `he` (normal with variance 2/fan_in, twice and a half as large: with a high
        learning rate a small network learns faster from it).
      norm: `batch`, or `group` (8 channels a group, no batch statistics).
      norm_epsilon: added to the variance.
      norm_decay: share of the running statistics kept at a step (torch's momentum is 1 - decay).
      norm_groups: parts of the batch with statistics of their own, one for each device to train as
        an unsynchronised data parallel program does; 1 uses the whole (global) batch.
    """

    image_size: int = 224
    stem_width: int = 64
    stages: tuple[int, ...] = (3, 4, 6, 3)
    expansion: int = 4
    num_heads: int = 32
    output_dim: int = 1024
    stem_stride: int = 2
    stem_pool: int = 2
    kernel_init: KernelInit = "torch"
    norm: NormName = "batch"
    norm_epsilon: float = 1e-5
    norm_decay: float = 0.9
    norm_groups: int = 1

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
          ValueError: if a size is not positive, the stem's width is odd, the image is smaller than
            the strides, the heads do not divide the channels or a name is unknown.
        """
        sizes = ("stem_width", "expansion", "output_dim", "stem_stride", "stem_pool", "norm_groups")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"ModifiedResNetConfig.{name}={getattr(self, name)} must be at least 1"
                )
        if not self.stages or min(self.stages) < 1:
            raise ValueError(
                f"stages={self.stages} needs one positive number of blocks a stage, such as (1, 1)"
            )
        if self.stem_width % 2:
            raise ValueError(f"stem_width={self.stem_width} must be even: the stem uses half of it")
        if self.grid_size < 1:
            raise ValueError(
                f"image_size={self.image_size} is smaller than the network's stride {self.stride}; "
                "use larger images, fewer stages, stem_stride=1 or stem_pool=1"
            )
        for name, allowed in (("norm", NormName), ("kernel_init", KernelInit)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {get_args(allowed)}"
                )
        if self.norm == "group" and self.stem_width % 16:
            raise ValueError(
                f"stem_width={self.stem_width} must be a multiple of 16 with norm='group'"
            )
        check_heads(self.channels, self.num_heads)

    @property
    def stride(self) -> int:
        """Pixels of the image along one side of a place of the last map."""
        return self.stem_stride * self.stem_pool * 2 ** (len(self.stages) - 1)

    @property
    def grid_size(self) -> int:
        """Height and width of the last map."""
        size = (self.image_size - 1) // self.stem_stride + 1
        size //= self.stem_pool
        for _ in self.stages[1:]:
            size //= 2
        return size

    @property
    def channels(self) -> int:
        """Channels of the last map."""
        return self.stem_width * 2 ** (len(self.stages) - 1) * self.expansion


def make_conv(
    config: ModifiedResNetConfig, features: int, size: int, stride: int, dtype: DTypeLike, name: str
) -> Conv:
    """A convolution whose kernel starts as the config says.

    Args:
      config: sizes and conventions.
      features: output channels.
      size: height and width of the kernel.
      stride: step.
      dtype: type of the computation.
      name: name of the layer.
    """
    init = he_normal if config.kernel_init == "he" else None
    return Conv(features, size, stride, dtype, init, name=name)


def make_norm(
    config: ModifiedResNetConfig, train: bool, name: str, *, zero: bool = False
) -> nn.Module:
    """The normalisation layer that a config names.

    Args:
      config: sizes and conventions.
      train: use and record batch statistics.
      name: name of the layer.
      zero: start with a scale of zero, so that a residual branch starts as nothing.

    Returns:
      A module.
    """
    scale_init = nn.initializers.zeros if zero else nn.initializers.ones
    if config.norm == "group":
        return nn.GroupNorm(
            num_groups=None,
            group_size=8,
            epsilon=config.norm_epsilon,
            scale_init=scale_init,
            use_fast_variance=False,
            name=name,
        )
    return BatchNorm(
        train=train,
        epsilon=config.norm_epsilon,
        decay=config.norm_decay,
        num_groups=config.norm_groups,
        scale_init=scale_init,
        name=name,
    )


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3, average pool when strided, 1x1, each convolution with its norm.

    Attributes:
      config: sizes and conventions.
      planes: channels inside the block.
      stride: window of the average pools.
      train: use and record batch statistics.
      dtype: type of the computation.
    """

    config: ModifiedResNetConfig
    planes: int
    stride: int = 1
    train: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "..."]:
        """Run the block.

        Args:
          x: NHWC.

        Returns:
          NHWC with planes * expansion channels, `stride` times smaller.
        """
        config, planes = self.config, self.planes
        features = planes * config.expansion

        def conv(name: str, features: int, size: int) -> Conv:
            return make_conv(config, features, size, 1, self.dtype, name)

        h = jax.nn.relu(make_norm(config, self.train, "bn_1")(conv("conv_1", planes, 1)(x)))
        h = jax.nn.relu(make_norm(config, self.train, "bn_2")(conv("conv_2", planes, 3)(h)))
        h = conv("conv_3", features, 1)(average_pool(h, self.stride))
        h = make_norm(config, self.train, "bn_3", zero=True)(h)
        if self.stride > 1 or x.shape[-1] != features:
            x = conv("shortcut_conv", features, 1)(average_pool(x, self.stride))
            x = make_norm(config, self.train, "shortcut_norm")(x)
        return jax.nn.relu(x + h)


class AttentionPool(nn.Module):
    """Attention from the mean of a map to the mean and all its places.

    Parameters: `positional_embedding` (1 + places, channels) and `query`, `key`, `value`, `out`.

    Attributes:
      num_heads: number of heads.
      output_dim: width of the output.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation.
    """

    num_heads: int
    output_dim: int
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch output_dim"]:
        """Pool a map.

        Args:
          x: NHWC.

        Returns:
          One vector an image.
        """
        channels = x.shape[-1]
        normal = nn.initializers.normal(channels**-0.5)
        places = x.reshape(x.shape[0], -1, channels)
        tokens = jnp.concatenate([places.mean(axis=1, keepdims=True), places], axis=1)
        positions = self.param("positional_embedding", normal, (tokens.shape[1], channels))
        tokens = tokens + positions.astype(tokens.dtype)[None]
        pooled, _ = MultiHeadAttention(
            self.num_heads,
            out_features=self.output_dim,
            implementation=self.implementation,
            kernel_init=normal,
            out_kernel_init=normal,
            bias_init=torch_uniform(channels),
            dtype=self.dtype,
            name="attention",
        )(tokens[:, :1], tokens)
        return pooled[:, 0]


class ModifiedResNet(nn.Module):
    """Images to features.

    Parameters: `conv_1` ... `conv_3` and `bn_1` ... `bn_3` of the stem, blocks
    `stage_{s}_block_{b}` (counted from 0) with `conv_1` ... `bn_3`, `shortcut_conv` and
    `shortcut_norm`, and `attention_pool`. Running statistics are in the collection `batch_stats`.

    Attributes:
      config: sizes and conventions.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation; statistics are float32 in any case.
    """

    config: ModifiedResNetConfig
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height image_width channels"],
        *,
        train: bool = False,
        return_taps: bool = False,
    ) -> tuple[Float[Array, "batch dim"], Taps]:
        """Encode images.

        Args:
          images: NHWC, normalised, of the config's size.
          train: use and record batch statistics (apply with `mutable=["batch_stats"]`); False uses
            the stored ones, which is also what a frozen tower wants.
          return_taps: return the output of the stem and of every stage, flattened to
            (batch, places, channels).

        Returns:
          Features, not normalised, and the taps (hidden states only).

        Raises:
          ValueError: if the images have another size.
        """
        config = self.config
        check_images(images, config.image_size)
        x = images.astype(self.dtype)
        half = config.stem_width // 2
        for i, (features, stride) in enumerate(
            ((half, config.stem_stride), (half, 1), (config.stem_width, 1)), start=1
        ):
            x = make_conv(config, features, 3, stride, self.dtype, f"conv_{i}")(x)
            x = jax.nn.relu(make_norm(config, train, f"bn_{i}")(x))
        x = average_pool(x, config.stem_pool)
        hidden = [x]
        for stage, num_blocks in enumerate(config.stages):
            for block in range(num_blocks):
                x = Bottleneck(
                    config,
                    config.stem_width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    train=train,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x)
            hidden.append(x)
        features = AttentionPool(
            config.num_heads,
            config.output_dim,
            self.implementation,
            self.dtype,
            name="attention_pool",
        )(x)
        if not return_taps:
            return features, Taps((), (), ())
        flat = tuple(h.reshape(h.shape[0], -1, h.shape[-1]) for h in hidden)
        return features, Taps(flat, (), ())
