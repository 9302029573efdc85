"""Convolution and pooling on NHWC arrays, with the padding of torch."""

import jax
import jax.numpy as jnp
from einops import reduce
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlab.layers.initializers import torch_uniform


class Conv(nn.Module):
    """Square convolution without bias, padded symmetrically by (size - 1) // 2.

    "SAME" padding differs from this for strided convolutions (it pads the right and bottom first),
    which is why it is not offered. The kernel is HWIO.

    Attributes:
      features: number of output channels.
      kernel_size: height and width of the kernel, odd.
      stride: step in both directions.
      dtype: type of the computation and the output.
      kernel_init: initialiser of the kernel; None takes torch's default.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Convolve.

        Args:
          x: NHWC.

        Returns:
          NHWC with `features` channels.
        """
        size, channels = self.kernel_size, x.shape[-1]
        kernel = self.param(
            "kernel",
            self.kernel_init or torch_uniform(size * size * channels),
            (size, size, channels, self.features),
        ).astype(self.dtype)
        return convolve(x.astype(self.dtype), kernel, self.stride)


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels features"],
    stride: int,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolution padded symmetrically by (size - 1) // 2.

    One of size and stride 1 is written as a matrix product: on CPUs XLA computes the gradient of
    its kernel in half the time.

    Args:
      x: NHWC.
      kernel: HWIO.
      stride: step in both directions.

    Returns:
      NHWC.
    """
    if kernel.shape[0] == stride == 1:
        return x @ kernel[0, 0]
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def average_pool(
    x: Float[Array, "batch height width channels"], window: int
) -> Float[Array, "batch out_height out_width channels"]:
    """Average over non-overlapping windows; an incomplete last row or column is left out.

    Args:
      x: NHWC.
      window: height, width and step of the window; 1 returns `x`.

    Returns:
      NHWC with height // window rows and width // window columns.
    """
    if window == 1:
        return x
    height, width = (n // window for n in x.shape[1:3])
    return reduce(
        x[:, : height * window, : width * window],
        "b (h i) (w j) c -> b h w c",
        "mean",
        i=window,
        j=window,
    )
