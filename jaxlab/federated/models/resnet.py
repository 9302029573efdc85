"""Residual networks for small pictures, and the heads of contrastive learning on them.

References:
  He, Zhang, Ren, Sun 2015, arXiv:1512.03385; Chen, Kornblith, Norouzi, Hinton 2020,
  arXiv:2002.05709 (SimCLR); `federatedscope/cl/model/SimCLR.py` of FederatedScope 0.3.0.
"""

from collections.abc import Sequence

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from jaxlab.federated.models.layers import BatchNorm, Mask, convolution, dense

_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norms, and a shortcut that is projected where shapes change.

    Attributes:
      features: output channels.
      stride: of the first convolution and the shortcut.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool, mask: Mask
    ) -> Float[Array, "batch out_height out_width features"]:
        """NHWC in and out."""
        stride, features = self.stride, self.features

        def norm(y: Array, name: str) -> Array:
            return BatchNorm(name=name)(y, train=train, mask=mask)

        y = convolution(x, features, 3, name="conv1", stride=stride, use_bias=False)
        y = nn.relu(norm(y, "bn1"))
        y = norm(convolution(y, features, 3, name="conv2", use_bias=False), "bn2")
        if stride != 1 or x.shape[-1] != features:
            x = convolution(x, features, 1, name="shortcut_conv", stride=stride, use_bias=False)
            x = norm(x, "shortcut_bn")
        return nn.relu(y + x)


class ResNet(nn.Module):
    """3x3 stem, four stages of basic blocks, mean over places, and logits if there are classes.

    Attributes:
      num_classes: logits; 0 gives the 512 features.
      blocks: of every stage; (2, 2, 2, 2) is ResNet18, (3, 4, 6, 3) ResNet34.
      widths: channels of every stage.
    """

    num_classes: int
    blocks: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = _WIDTHS

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask: Mask = None,
    ) -> Float[Array, "batch features"]:
        """Logits or features.

        Args:
          x: pictures.
          train: use and record batch statistics.
          mask: which rows are examples.

        Returns:
          One row a picture.
        """
        x = convolution(x, self.widths[0], 3, name="conv1", use_bias=False)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train, mask=mask))
        for stage, (number, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            for block in range(number):
                stride = 2 if stage > 1 and block == 0 else 1
                layer = BasicBlock(width, stride, name=f"layer{stage}_{block}")
                x = layer(x, train=train, mask=mask)
        x = x.mean(axis=(1, 2))
        return dense(x, self.num_classes, name="linear") if self.num_classes else x


class SimCLR(nn.Module):
    """A residual network and a projector of two layers: what contrastive learning compares.

    Attributes:
      blocks: of every stage, see `ResNet`.
      widths: channels of every stage.
      hidden: width of the projector.
      features: of the projection.
    """

    blocks: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = _WIDTHS
    hidden: int = 512
    features: int = 512

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask: Mask = None,
    ) -> Float[Array, "batch features"]:
        """The projection of one view of every picture; views go through one after another."""
        x = ResNet(0, self.blocks, self.widths, name="backbone")(x, train=train, mask=mask)
        x = dense(x, self.hidden, name="projector_layer1", use_bias=False)
        x = nn.relu(BatchNorm(name="projector_layer1_bn")(x, train=train, mask=mask))
        x = dense(x, self.features, name="projector_layer2")
        return BatchNorm(affine=False, name="projector_layer2_bn")(x, train=train, mask=mask)


class ResNetProbe(nn.Module):
    """A linear layer on the features of a residual network, which may stay as they are.

    Attributes:
      num_classes: logits.
      blocks: of every stage, see `ResNet`.
      widths: channels of every stage.
      freeze: no gradient reaches the network (the original's linear probe).
    """

    num_classes: int
    blocks: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = _WIDTHS
    freeze: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        mask: Mask = None,
    ) -> Float[Array, "batch classes"]:
        """Logits."""
        x = ResNet(0, self.blocks, self.widths, name="backbone")(x, train=train, mask=mask)
        return dense(
            jax.lax.stop_gradient(x) if self.freeze else x, self.num_classes, name="linear"
        )
