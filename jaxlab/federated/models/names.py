"""The names that FederatedScope gives the tensors of its models <-> our variables.

Its checkpoints are torch files with `cur_round` and `model`; `jaxlab.checkpoints.foreign.
state_dicts.read_state_dict` reads them without running what is in them::

    saved = state_dicts.read_state_dict("model.pt")
    variables = models.load_original(models.convnet2(62), example, saved.tensors)

References:
  `federatedscope/core/aggregators/aggregator.py` of FederatedScope 0.3.0 (`save_model`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign.names import (
    CONVOLUTION,
    TRANSPOSE,
    NameTable,
    Rule,
    Transform,
    flatten,
    unflatten,
)
from jaxlab.federated.models.convnet import ConvNet
from jaxlab.federated.models.linear import MLP, LogisticRegression, MatrixFactorization
from jaxlab.federated.models.recurrent import LSTM
from jaxlab.federated.models.resnet import ResNet, ResNetProbe, SimCLR
from jaxlab.federated.models.transformer import TextClassifier
from jaxlab.federated.strategy import ConfigError

_COUNTER = "num_batches_tracked"
_MEAN = "running_mean"


def original_table(module: nn.Module, example: jax.ShapeDtypeStruct) -> NameTable:
    """The names of a model.

    Args:
      module: one of this package.
      example: shape and type of one input, without the batch axis.

    Raises:
      ConfigError: (a ValueError) if the original has no such model.
    """
    match module:
        case LogisticRegression():
            rules = _linear("fc", "fc")
        case MLP():
            rules = _linear("linears.{i}", "linear_{i}") + _norm("norms.{i}", "norm_{i}")
            # The original has a norm behind the last layer that it never calls.
            unused = rf"norms\.{len(module.widths) - 1}\..*"
            return NameTable(tuple(rules), ignored=(rf".*{_COUNTER}", unused))
        case MatrixFactorization():
            rules = [
                Rule(f"embed_{kind}.weight", f"params/embed_{kind}/embedding")
                for kind in ("user", "item")
            ]
        case LSTM():
            rules = _lstm()
        case ConvNet():
            rules = _convnet(module, example)
        case ResNet():
            rules = _resnet("", "") + _linear("linear", "linear")
        case ResNetProbe():
            rules = _resnet("backbone.", "backbone/") + _linear("linear", "linear")
        case SimCLR():
            rules = _resnet("backbone.", "backbone/")
            rules += _linear("projector.layer{i}", "projector_layer{i}")
            rules += _norm("projector.layer{i}_bn", "projector_layer{i}_bn")
        case TextClassifier():
            rules = _bert() + _linear("classifier", "classifier")
            return NameTable(
                tuple(rules), ignored=(r"bert\.embeddings\.(position|token_type)_ids",)
            )
        case _:
            raise ConfigError(f"{type(module).__name__} is none of the original's models")
    return NameTable(tuple(rules), ignored=(rf".*{_COUNTER}", "rounds_done"))


def load_original(
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    tensors: Mapping[str, np.ndarray],
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Our variables from the tensors of a checkpoint of the original.

    Args:
      module: the model.
      example: shape and type of one input, without the batch axis.
      tensors: name -> array.
      start: variables for what the checkpoint lacks: that of a factorisation has only the vectors
        that its clients share. None wants all.

    Returns:
      Variables of the model, NumPy arrays.

    Raises:
      NameMismatchError: (a ValueError) listing every missing, unexpected and mis-shaped name.
    """
    if start is not None:
        tensors = {**save_original(module, example, start), **tensors}
    shapes = {path: leaf.shape for path, leaf in flatten(_shapes(module, example)).items()}
    return unflatten(original_table(module, example).load(tensors, shapes))


def save_original(
    module: nn.Module, example: jax.ShapeDtypeStruct, variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The tensors of the original from our variables, as its `load_state_dict` wants them.

    Torch's counters in batch norms, which only averages without a momentum use, are 0; the norm
    behind the last layer of an `MLP`, which is never called, is left out.

    Raises:
      NameMismatchError: (a ValueError) listing the variables that the model has not.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    tensors = original_table(module, example).save(flat)
    counters = [name.replace(_MEAN, _COUNTER) for name in tensors if name.endswith(_MEAN)]
    return {**tensors, **{name: np.zeros((), np.int64) for name in counters}}


def count_parameters(module: nn.Module, example: jax.ShapeDtypeStruct) -> int:
    """Parameters of a model; running statistics are none. Nothing is compiled.

    Args:
      module: the model.
      example: shape and type of one input, without the batch axis.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(module, example)["params"]))


def _shapes(module: nn.Module, example: jax.ShapeDtypeStruct) -> PyTree:
    def init(key: jax.Array) -> PyTree:
        return dict(module.init(key, jnp.zeros((1, *example.shape), example.dtype), train=False))

    return jax.eval_shape(init, jax.random.key(0))


def _linear(name: str, path: str) -> list[Rule]:
    return [
        Rule(f"{name}.weight", f"params/{path}/kernel", TRANSPOSE),
        Rule(f"{name}.bias", f"params/{path}/bias"),
    ]


def _conv(name: str, path: str) -> list[Rule]:
    return [
        Rule(f"{name}.weight", f"params/{path}/kernel", CONVOLUTION),
        Rule(f"{name}.bias", f"params/{path}/bias"),
    ]


def _scale(name: str, path: str) -> list[Rule]:
    return [
        Rule(f"{name}.weight", f"params/{path}/scale"),
        Rule(f"{name}.bias", f"params/{path}/bias"),
    ]


def _norm(name: str, path: str) -> list[Rule]:
    return [
        *_scale(name, path),
        Rule(f"{name}.{_MEAN}", f"batch_stats/{path}/mean"),
        Rule(f"{name}.running_var", f"batch_stats/{path}/var"),
    ]


def _lstm() -> list[Rule]:
    rules = [Rule("encoder.weight", "params/encoder/embedding"), *_linear("decoder", "decoder")]
    for part in ("ih", "hh"):
        weight, bias = f"weight_{part}", f"bias_{part}"
        rules.append(Rule(f"rnn.{weight}_l{{i}}", f"params/layer_{{i}}/{weight}", TRANSPOSE))
        rules.append(Rule(f"rnn.{bias}_l{{i}}", f"params/layer_{{i}}/{bias}"))
    return rules


def _convnet(module: ConvNet, example: jax.ShapeDtypeStruct) -> list[Rule]:
    halvings = len(module.pooled)
    height, width = (size >> halvings for size in example.shape[:2])
    first = _flattened(height, width, module.channels[-1])
    return [
        *_conv("conv{i}", "conv{i}"),
        *_norm("bn{i}", "bn{i}"),
        Rule("fc1.weight", "params/fc1/kernel", first),
        *_linear("fc{i}", "fc{i}"),
    ]


def _resnet(name: str, path: str) -> list[Rule]:
    block, ours = f"{name}layer{{s}}.{{b}}.", f"{path}layer{{s}}_{{b}}/"
    return [
        *_conv(f"{name}conv1", f"{path}conv1"),
        *_norm(f"{name}bn1", f"{path}bn1"),
        *_conv(f"{block}conv{{i}}", f"{ours}conv{{i}}"),
        *_norm(f"{block}bn{{i}}", f"{ours}bn{{i}}"),
        *_conv(f"{block}shortcut.0", f"{ours}shortcut_conv"),
        *_norm(f"{block}shortcut.1", f"{ours}shortcut_bn"),
    ]


def _bert() -> list[Rule]:
    layer, ours = "bert.encoder.layer.{i}", "bert/layer_{i}"
    part = "{part:query|key|value}"
    return [
        *(
            Rule(f"bert.embeddings.{name}_embeddings.weight", f"params/bert/{path}_embeddings")
            for name, path in (
                ("word", "word"),
                ("position", "position"),
                ("token_type", "type"),
            )
        ),
        *_scale("bert.embeddings.LayerNorm", "bert/embeddings_norm"),
        *_linear(f"{layer}.attention.self.{part}", f"{ours}/attention/{part}"),
        *_linear(f"{layer}.attention.output.dense", f"{ours}/attention/out"),
        *_scale(f"{layer}.attention.output.LayerNorm", f"{ours}/attention_norm"),
        *_linear(f"{layer}.intermediate.dense", f"{ours}/mlp_in"),
        *_linear(f"{layer}.output.dense", f"{ours}/mlp_out"),
        *_scale(f"{layer}.output.LayerNorm", f"{ours}/output_norm"),
        *_linear("bert.pooler.dense", "pooler"),
    ]


def _flattened(height: int, width: int, channels: int) -> Transform:
    """A linear layer on pictures that torch flattens channels first, and we last."""

    def to_ours(arrays):
        kernel = arrays[0].reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
        return [kernel.reshape(height * width * channels, -1)]

    def to_foreign(arrays):
        kernel = arrays[0].reshape(height, width, channels, -1).transpose(3, 2, 0, 1)
        return [kernel.reshape(-1, channels * height * width)]

    return Transform(to_ours, to_foreign)
