"""Dense layers that are as fast on CPUs as matrix products are."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlab.layers.normalization import per_channel


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis; on CPUs all other axes are merged for the product.

    Parameters and numbers are those of `flax.linen.Dense`. The gradient of a kernel sums over batch
    and tokens. Given the two as axes of their own, XLA's CPU compiler transposes the output's
    gradient first, and fuses the residual sums of all later blocks into every such copy: their time
    is quadratic in the depth, an eighth of a training step of a ViT-B/16. A merged axis needs no
    copy. Compilers for GPUs and TPUs take the axes as they are: 197 tokens do not fill the tiles of
    a TPU, and merged with the batch they take more memory there.

    The backend is JAX's default one while the layer is traced: what is compiled on a CPU for other
    devices has merged axes, too, and gives the same numbers.

    Attributes:
      features: width of the output.
      dtype: type of the computation and the output.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows features"]:
        """Multiply the last axis with the kernel, and add the bias.

        Args:
          x: any number of leading axes.

        Returns:
          The same leading axes, and `features`.
        """
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        merge = x.ndim > 2 and jax.default_backend() == "cpu"
        rows = x.reshape(-1, x.shape[-1]) if merge else x
        y = rows.astype(self.dtype) @ kernel.astype(self.dtype)
        y = y + per_channel(bias.astype(self.dtype), y.ndim)
        return y.reshape(*x.shape[:-1], self.features)
