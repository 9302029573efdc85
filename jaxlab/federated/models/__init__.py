"""The models of FederatedScope as Flax modules, with its sizes, initial draws and checkpoints.

Every module is called with `(x, train=..., mask=...)`, as `classification(..., masked=True)` does:
norms leave padded rows out. Pictures are NHWC::

    import jax, jax.numpy as jnp
    from jaxlab import federated
    from jaxlab.federated import models

    example = jax.ShapeDtypeStruct((28, 28, 1), jnp.float32)
    task = federated.classification(models.convnet2(62), example, masked=True)

Rooms: `layers`, `linear`, `convnet`, `recurrent`, `resnet`, `transformer`; `names` and
`files` (checkpoints of the original).
"""

from jaxlab.federated.models.convnet import ConvNet, convnet2, convnet5, vgg11
from jaxlab.federated.models.files import OriginalCheckpoint, read_original, write_original
from jaxlab.federated.models.layers import BatchNorm
from jaxlab.federated.models.linear import MLP, LogisticRegression, MatrixFactorization
from jaxlab.federated.models.names import (
    count_parameters,
    load_original,
    original_table,
    save_original,
)
from jaxlab.federated.models.recurrent import LSTM
from jaxlab.federated.models.resnet import ResNet, ResNetProbe, SimCLR
from jaxlab.federated.models.transformer import BERT_TINY, TextClassifier

__all__ = [
    "BERT_TINY",
    "LSTM",
    "MLP",
    "BatchNorm",
    "ConvNet",
    "LogisticRegression",
    "MatrixFactorization",
    "OriginalCheckpoint",
    "ResNet",
    "ResNetProbe",
    "SimCLR",
    "TextClassifier",
    "convnet2",
    "convnet5",
    "count_parameters",
    "load_original",
    "original_table",
    "read_original",
    "save_original",
    "vgg11",
    "write_original",
]
