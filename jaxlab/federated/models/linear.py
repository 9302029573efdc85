"""Logistic regression, multilayer perceptron, matrix factorisation.

References:
  `federatedscope/core/lr.py`, `core/mlp.py` and `mf/model/model.py` of FederatedScope 0.3.0.
"""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlab.federated.models.layers import BatchNorm, Mask, dense


class LogisticRegression(nn.Module):
    """One linear layer from the flattened input to logits.

    Attributes:
      num_classes: logits.
      use_bias: have a bias.
    """

    num_classes: int
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], *, train: bool = False, mask: Mask = None
    ) -> Float[Array, "batch classes"]:
        """Logits; `train` and `mask` change nothing."""
        return dense(x.reshape(len(x), -1), self.num_classes, name="fc", use_bias=self.use_bias)


class MLP(nn.Module):
    """Linear layers with norm, ReLU and dropout between them.

    Attributes:
      widths: of the hidden layers and the output.
      dropout: rate.
      use_norm: normalise over the batch.
      relu_first: ReLU before the norm, not behind it.
    """

    widths: Sequence[int]
    dropout: float = 0.0
    use_norm: bool = True
    relu_first: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], *, train: bool = False, mask: Mask = None
    ) -> Float[Array, "batch features"]:
        """The output of the last layer.

        Args:
          x: inputs, flattened.
          train: use and record batch statistics, and drop.
          mask: which rows are examples.

        Returns:
          Logits, or whatever the last width is for.
        """
        x = dense(x.reshape(len(x), -1), self.widths[0], name="linear_0")
        for number, width in enumerate(self.widths[1:]):
            x = nn.relu(x) if self.relu_first else x
            x = BatchNorm(name=f"norm_{number}")(x, train=train, mask=mask) if self.use_norm else x
            x = x if self.relu_first else nn.relu(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = dense(x, width, name=f"linear_{number + 1}")
        return x


class MatrixFactorization(nn.Module):
    """The rating of an item by a user: the product of their vectors.

    Attributes:
      num_users: vectors of users.
      num_items: vectors of items.
      features: numbers of a vector.
    """

    num_users: int
    num_items: int
    features: int

    @nn.compact
    def __call__(
        self, x: Int[Array, "batch 2"], *, train: bool = False, mask: Mask = None
    ) -> Float[Array, " batch"]:
        """Predicted ratings of pairs of a user and an item; `train` and `mask` change nothing."""
        normal = nn.initializers.normal(1.0)
        user = nn.Embed(self.num_users, self.features, embedding_init=normal, name="embed_user")
        item = nn.Embed(self.num_items, self.features, embedding_init=normal, name="embed_item")
        return (user(x[:, 0]) * item(x[:, 1])).sum(axis=-1)
