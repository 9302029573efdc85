"""Plain convolutional networks: two and five convolutions, and VGG with eleven layers.

References:
  `federatedscope/cv/model/cnn.py` of FederatedScope 0.3.0; Simonyan, Zisserman 2014,
  arXiv:1409.1556 (VGG).
"""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from jaxlab.federated.models.layers import BatchNorm, Mask, convolution, dense


class ConvNet(nn.Module):
    """Convolutions with norm, ReLU and pooling, then linear layers with ReLU and dropout.

    Pictures are NHWC and flattened in this order (the original: NCHW; see `names`).

    Attributes:
      channels: of the convolutions.
      pooled: behind which of them, counted from 1, 2x2 maxima are taken.
      hidden: widths of the linear layers before the last.
      num_classes: logits.
      size: of the kernels.
      dropout: rate before every linear layer.
      use_norm: normalise over the batch.
    """

    channels: Sequence[int]
    pooled: Sequence[int]
    hidden: Sequence[int]
    num_classes: int
    size: int = 5
    dropout: float = 0.0
    use_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask: Mask = None,
    ) -> Float[Array, "batch classes"]:
        """Logits.

        Args:
          x: pictures.
          train: use and record batch statistics, and drop.
          mask: which rows are examples.

        Returns:
          One row a picture.
        """
        for number, width in enumerate(self.channels, start=1):
            x = convolution(x, width, self.size, name=f"conv{number}")
            if self.use_norm:
                x = BatchNorm(name=f"bn{number}")(x, train=train, mask=mask)
            x = nn.relu(x)
            if number in self.pooled:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for number, width in enumerate((*self.hidden, self.num_classes), start=1):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = dense(x, width, name=f"fc{number}")
            x = nn.relu(x) if number <= len(self.hidden) else x
        return x


def convnet2(
    num_classes: int, *, hidden: int = 2048, dropout: float = 0.0, use_norm: bool = True
) -> ConvNet:
    """Two convolutions, the model of FEMNIST: 6,603,902 parameters for its 62 classes."""
    return ConvNet((32, 64), (1, 2), (hidden,), num_classes, dropout=dropout, use_norm=use_norm)


def convnet5(num_classes: int, *, hidden: int = 2048, dropout: float = 0.0) -> ConvNet:
    """Five convolutions: 1,056,330 parameters for CIFAR-10."""
    widths = (32, 64, 64, 128, 128)
    return ConvNet(widths, (1, 2, 3, 4, 5), (hidden,), num_classes, dropout=dropout)


def vgg11(num_classes: int, *, hidden: int = 128, dropout: float = 0.0) -> ConvNet:
    """VGG11 with batch norm and small linear layers: 9,309,450 parameters for CIFAR-10.

    It pools five times, as in the paper and as its first linear layer expects; the original pools
    behind every convolution, which cannot be done with pictures of 32x32.
    """
    widths, pooled = (64, 128, 256, 256, 512, 512, 512, 512), (1, 2, 4, 6, 8)
    return ConvNet(widths, pooled, (hidden, hidden), num_classes, size=3, dropout=dropout)
