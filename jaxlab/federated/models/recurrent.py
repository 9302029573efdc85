"""An LSTM that predicts the next character: torch's cell, with its two biases.

References:
  Hochreiter, Schmidhuber 1997; `federatedscope/nlp/model/rnn.py` of FederatedScope 0.3.0.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxlab.federated.models.layers import Mask, dense
from jaxlab.layers.initializers import uniform
from jaxlab.layers.normalization import per_channel


class LSTMLayer(nn.Module):
    """One layer over time; the gates are in the order input, forget, cell, output.

    Attributes:
      features: numbers of the state.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time features"]:
        """The outputs at all times, from a state of zeros."""
        draw, gates = uniform(1.0 / math.sqrt(self.features)), 4 * self.features
        weight_ih = self.param("weight_ih", draw, (x.shape[-1], gates))
        weight_hh = self.param("weight_hh", draw, (self.features, gates))
        bias_ih = self.param("bias_ih", draw, (gates,))
        bias_hh = self.param("bias_hh", draw, (gates,))
        inputs = x @ weight_ih + per_channel(bias_ih + bias_hh, x.ndim)

        def step(state: tuple[Array, Array], given: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = state
            i, f, g, o = jnp.split(given + hidden @ weight_hh, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((x.shape[0], self.features), inputs.dtype)
        _, outputs = jax.lax.scan(step, (zeros, zeros), inputs.swapaxes(0, 1))
        return outputs.swapaxes(0, 1)


class LSTM(nn.Module):
    """Embedding, LSTM layers, and logits at the last time: 819,920 parameters as it stands.

    Attributes:
      num_symbols: rows of the embedding.
      num_classes: logits.
      hidden: numbers of the state.
      num_layers: LSTM layers.
      embedding: numbers of a symbol's vector; 0 takes vectors as input.
      dropout: rate between the layers.
    """

    num_symbols: int = 80
    num_classes: int = 80
    hidden: int = 256
    num_layers: int = 2
    embedding: int = 8
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Shaped[Array, "batch time ..."], *, train: bool = False, mask: Mask = None
    ) -> Float[Array, "batch classes"]:
        """Logits of what comes next.

        Args:
          x: numbers of symbols, or (batch, time, width) vectors without an embedding.
          train: drop between the layers.
          mask: changes nothing.

        Returns:
          One row an example.
        """
        if self.embedding:
            normal = nn.initializers.normal(1.0)
            x = nn.Embed(self.num_symbols, self.embedding, embedding_init=normal, name="encoder")(x)
        for number in range(self.num_layers):
            if number:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = LSTMLayer(self.hidden, name=f"layer_{number}")(x)
        return dense(x[:, -1], self.num_classes, name="decoder")
