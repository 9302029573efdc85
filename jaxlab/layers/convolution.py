"""Convolution and pooling on NHWC arrays, with the padding of torch and a choice of algorithm."""

from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlab.layers.initializers import torch_uniform

ConvImplementation = Literal["xla", "matmul"]


class Conv(nn.Module):
    """Square convolution without bias, padded symmetrically by (size - 1) // 2.

    "SAME" padding differs from this for strided convolutions (it pads the right and bottom first),
    which is why it is not offered. Both implementations share the HWIO kernel and agree to float32
    rounding; `matmul` writes the convolution as one matrix product over shifted slices, so that its
    backward pass is matrix products too (XLA's CPU backward convolutions cost 3 to 5 forwards).

    Attributes:
      features: number of output channels.
      kernel_size: height and width of the kernel, odd.
      stride: step in both directions.
      implementation: `xla` (one convolution) or `matmul`.
      dtype: type of the computation and the output.
    """

    features: int
    kernel_size: int
    stride: int = 1
    implementation: ConvImplementation = "xla"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Convolve.

        Args:
          x: NHWC.

        Returns:
          NHWC with `features` channels.

        Raises:
          ValueError: if the implementation is unknown.
        """
        size, channels = self.kernel_size, x.shape[-1]
        kernel = self.param(
            "kernel",
            torch_uniform(size * size * channels),
            (size, size, channels, self.features),
        ).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.implementation == "xla":
            return convolve(x, kernel, self.stride)
        if self.implementation == "matmul":
            return convolve_by_matmul(x, kernel, self.stride)
        raise ValueError(
            f"implementation={self.implementation!r} is unknown; use 'xla' or 'matmul'"
        )


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels features"],
    stride: int,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolve by XLA's convolution, padded symmetrically by (size - 1) // 2.

    Args:
      x: NHWC.
      kernel: HWIO.
      stride: step in both directions.

    Returns:
      NHWC.
    """
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_by_matmul(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels features"],
    stride: int,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolve by one matrix product over the size * size shifted slices of the padded input.

    Args:
      x: NHWC.
      kernel: HWIO.
      stride: step in both directions.

    Returns:
      NHWC, equal to `convolve` up to rounding.
    """
    size = kernel.shape[0]
    pad = (size - 1) // 2
    height, width = ((n + 2 * pad - size) // stride + 1 for n in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    slices = [
        jax.lax.slice(
            padded,
            (0, row, column, 0),
            (
                x.shape[0],
                row + (height - 1) * stride + 1,
                column + (width - 1) * stride + 1,
                x.shape[3],
            ),
            (1, stride, stride, 1),
        )
        for row in range(size)
        for column in range(size)
    ]
    patches = jnp.concatenate(slices, axis=-1) if len(slices) > 1 else slices[0]
    return patches @ rearrange(kernel, "h w i o -> (h w i) o")


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
