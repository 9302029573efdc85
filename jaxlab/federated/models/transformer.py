"""BERT with a classifier of texts, as the original takes it from Hugging Face.

References:
  Devlin, Chang, Lee, Toutanova 2018, arXiv:1810.04805; Turc, Chang, Lee, Toutanova 2019,
  arXiv:1908.08962 (the small sizes); `federatedscope/nlp/model/model_builder.py` of FederatedScope
  0.3.0 (`AutoModelForSequenceClassification`).
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlab.federated.models.layers import Mask
from jaxlab.layers.bert import BertConfig, BertEncoder

BERT_TINY = BertConfig(vocab_size=30_522, num_layers=2, width=128, num_heads=2, mlp_width=512)
"""The smallest of the published sizes: 4,385,920 parameters without the classifier."""


class TextClassifier(nn.Module):
    """Logits from the first token: encoder, linear layer with tanh, dropout, linear layer.

    Attributes:
      num_classes: logits.
      config: sizes of the encoder.
    """

    num_classes: int
    config: BertConfig = BERT_TINY

    @nn.compact
    def __call__(
        self, x: Int[Array, "batch time"], *, train: bool = False, mask: Mask = None
    ) -> Float[Array, "batch classes"]:
        """Logits.

        Args:
          x: token ids, the first is that of `[CLS]`, padded with `config.pad_id`.
          train: drop.
          mask: changes nothing.

        Returns:
          One row a text.
        """
        init = nn.initializers.normal(self.config.init_std)
        hidden, _ = BertEncoder(self.config, name="bert")(x, train=train)
        pooled = jnp.tanh(
            nn.Dense(self.config.width, kernel_init=init, name="pooler")(hidden[:, 0])
        )
        pooled = nn.Dropout(self.config.hidden_dropout, deterministic=not train)(pooled)
        return nn.Dense(self.num_classes, kernel_init=init, name="classifier")(pooled)
