"""What is learned: the model and the loss that settings name, and variables in files."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree

from experiments.federated.own import make_own_model, takes_mask
from experiments.federated.settings import ModelConfig, RunConfig
from jaxlab import federated
from jaxlab.checkpoints.foreign.names import flatten, unflatten
from jaxlab.federated import ConfigError, Task, datasets, models
from jaxlab.federated.datasets import FederatedData
from jaxlab.federated.datasets.image_files import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    MNIST_MEAN,
    MNIST_STD,
)
from jaxlab.federated.views import Views, noisy_views, picture_views

MODEL = "model.safetensors"
"""What a course leaves: the shared model, with the names of the original."""

Prepare = Callable[[Array], Array]


def make_model(config: ModelConfig, data: FederatedData) -> nn.Module:
    """The model, of the size that the data wants.

    Args:
      config: which.
      data: tells classes, users and items.

    Raises:
      ConfigError: (a ValueError) if the model is not for such data.
    """
    if config.name == "own":
        return make_own_model(config.factory, data.info)
    examples, classes = data.train.examples, data.info.num_classes
    shape, name = examples["x"].shape[1:], config.name
    pictures = name in ("convnet2", "convnet5", "vgg11", "resnet", "simclr")
    needs = {
        "pictures, (height, width, channels)": pictures and len(shape) != 3,
        "texts as numbers of symbols": name == "lstm" and (len(shape) != 1 or _is_float(examples)),
        "pairs of user and item": name == "matrix_factorization"
        and (shape != (2,) or _is_float(examples)),
        "targets that are numbers": name == "linear" and classes is not None,
        "targets that are classes": name not in ("linear", "mlp", "matrix_factorization", "simclr")
        and classes is None,
    }
    if wrong := [what for what, missing in needs.items() if missing]:
        raise ConfigError(
            f"model.name={name!r} is for {' and '.join(wrong)}; {data.info.name} has inputs of "
            f"shape {shape} and {'numbers' if classes is None else f'{classes} classes'} to predict"
        )
    outputs = num_outputs(data)
    hidden: dict[str, Any] = {"hidden": config.hidden} if config.hidden else {}
    match name:
        case "logistic" | "linear":
            return models.LogisticRegression(outputs)
        case "mlp":
            widths = (*config.widths, outputs)
            return models.MLP(widths, config.dropout, use_norm=config.use_norm)
        case "convnet2":
            return models.convnet2(
                outputs, dropout=config.dropout, use_norm=config.use_norm, **hidden
            )
        case "convnet5":
            return models.convnet5(outputs, dropout=config.dropout, **hidden)
        case "vgg11":
            return models.vgg11(outputs, dropout=config.dropout, **hidden)
        case "resnet":
            return models.ResNet(outputs, config.blocks, config.stages)
        case "simclr":
            width = config.hidden or 512
            return models.SimCLR(config.blocks, config.stages, width, width)
        case "lstm":
            return models.LSTM(outputs, outputs, dropout=config.dropout, **hidden)
        case "matrix_factorization":
            parts = [p.examples["x"] for p in (data.train, data.val, data.test) if len(p.examples)]
            users, items = (max(int(x[:, i].max(initial=0)) for x in parts) + 1 for i in (0, 1))
            return models.MatrixFactorization(users, items, config.features)


def num_outputs(data: FederatedData) -> int:
    """Classes of the data, or numbers to predict."""
    return data.info.num_classes or max(1, math.prod(data.train.examples["y"].shape[1:]))


def make_prepare(name: str, data: FederatedData) -> Prepare:
    """What the device does to the inputs of a batch: bytes of pictures become numbers."""
    if not _is_bytes(data):
        return lambda x: x
    return datasets.scale_pixels(*_pixel_moments(name))


def _is_bytes(data: FederatedData) -> bool:
    """Whether the inputs are pictures of bytes."""
    x = data.train.examples["x"]
    return x.dtype == np.uint8 and x.ndim == 4


def _pixel_moments(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels of a data set, of every channel."""
    return {
        "mnist": (MNIST_MEAN, MNIST_STD),
        "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
        "cifar100": (CIFAR10_MEAN, CIFAR10_STD),
    }.get(name, ((0.0,), (1.0,)))


def example_shape(data: FederatedData, prepare: Prepare) -> jax.ShapeDtypeStruct:
    """Shape and type of one input of the model."""
    x = data.train.examples["x"]
    given = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    prepared = jax.eval_shape(prepare, given)
    return jax.ShapeDtypeStruct(prepared.shape[1:], prepared.dtype)


def make_task(
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    prepare: Prepare,
    data: FederatedData,
    scores: Sequence[str] = (),
) -> Task:
    """Classification where the data has classes, else least squares.

    Args:
      module: the model.
      example: shape and type of one input.
      prepare: what the device does to the inputs of a batch.
      data: tells whether there are classes.
      scores: what is measured beside the loss; () takes what is usual.

    Raises:
      ConfigError: (a ValueError) if there is no such score.
    """
    masked = takes_mask(module)
    if data.info.num_classes:
        return federated.classification(
            module, example, prepare, masked=masked, scores=scores or ("correct",)
        )
    if set(scores) - {"mse"}:
        raise ConfigError(
            f"evaluation.scores={scores}: {data.info.name} has numbers to predict, no classes; "
            "wanted ('mse',) or ()"
        )
    return federated.regression(module, example, masked=masked, squared=bool(scores))


def make_contrastive(
    config: RunConfig, module: nn.Module, example: jax.ShapeDtypeStruct, data: FederatedData
) -> Task:
    """Learning from two views of every input, without its target.

    Pictures are cropped, mirrored and recoloured before their pixels are scaled, everything else
    gets noise.

    Args:
      config: the settings.
      module: gives projections.
      example: shape and type of one input.
      data: tells whether inputs are pictures of bytes.

    Raises:
      ConfigError: (a ValueError) if views of other inputs would not differ.
    """
    given = config.task
    if not _is_bytes(data):
        if not given.noise:
            raise ConfigError(
                f"task.noise=0: inputs of {data.info.name} are no pictures of bytes, and without "
                "noise two views of one are the same; set it to a part of their spread, such as 0.1"
            )
        views, prepare = noisy_views(given.noise), lambda x: x
    else:
        draw = picture_views(
            Views(given.crop, given.flip, given.color, gray=given.gray, blur=given.blur)
        )
        mean, std = (jnp.asarray(each) for each in _pixel_moments(config.data.name))
        prepare = datasets.scale_pixels((0.0,), (1.0,))

        def views(key: Array, pictures: Array) -> Array:
            shape = (1,) * (pictures.ndim - 1) + (-1,)
            return (draw(key, pictures) - mean.reshape(shape)) / std.reshape(shape)

    return federated.contrastive(
        module, example, views, temperature=given.temperature, prepare=prepare,
        masked=takes_mask(module),
    )  # fmt: skip


def has_original_names(module: nn.Module, example: jax.ShapeDtypeStruct) -> bool:
    """Whether the original has such a model, under whose names it is written."""
    try:
        models.original_table(module, example)
    except ConfigError:
        return False
    return True


def load_variables(
    path: str, module: nn.Module, example: jax.ShapeDtypeStruct, num_models: int = 0
) -> PyTree:
    """Variables from a checkpoint of the original, or from `model.safetensors` of a run.

    Args:
      path: the file.
      module: the model.
      example: shape and type of one input.
      num_models: models of FedEM; 0 for one that is no mixture.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no checkpoint of this model, listing what differs.
    """
    from jaxlab.checkpoints.foreign import state_dicts

    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a checkpoint of FederatedScope or {MODEL} of a run"
        )
    tensors = state_dicts.read_state_dict(Path(path).expanduser()).tensors
    if not num_models and not has_original_names(module, example):
        return _load_own(path, module, example, tensors)
    if not num_models:
        return models.load_original(module, example, tensors)
    if not all("/" in name for name in tensors):
        raise ConfigError(
            f"{path} holds one model, and models of FedEM that begin equal stay equal; give "
            f"{MODEL} of a run with fed_em"
        )
    return unflatten({name: np.asarray(tensor) for name, tensor in tensors.items()})


def _load_own(
    path: str, module: nn.Module, example: jax.ShapeDtypeStruct, tensors: Mapping[str, np.ndarray]
) -> PyTree:
    """Variables of a model that only we know, under our names."""

    def init(key: Array, x: Array) -> PyTree:
        return dict(module.init(key, x, train=False))

    one = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
    wanted = flatten(jax.eval_shape(init, jax.random.key(0), one))
    shapes = {name: leaf.shape for name, leaf in wanted.items()}
    found = {name: np.shape(tensor) for name, tensor in tensors.items()}
    if wrong := sorted(n for n in shapes.keys() | found if shapes.get(n) != found.get(n)):
        told = ", ".join(f"{n} {found.get(n, 'missing')}, {shapes.get(n, 'none')}" for n in wrong)
        raise ConfigError(
            f"{path} is no checkpoint of {type(module).__name__}: entries in the file, and wanted: "
            f"{told}"
        )
    return unflatten({name: np.asarray(tensor) for name, tensor in tensors.items()})


def save_variables(
    path: Path, module: nn.Module, example: jax.ShapeDtypeStruct, variables: PyTree, num_models: int
) -> None:
    """Writes variables under the names of the original; of several or own models under ours.

    Args:
      path: a safetensors file.
      module: the model.
      example: shape and type of one input.
      variables: of the model, or of several, whose leaves are (models, ...).
      num_models: models of FedEM; 0 for one that is no mixture.
    """
    from jaxlab.checkpoints.foreign import safetensors

    host = jax.device_get(variables)
    if num_models or not has_original_names(module, example):
        tensors = flatten(host)
    else:
        tensors = models.save_original(module, example, host)
    safetensors.write_safetensors(path, tensors)


def _is_float(examples: Mapping[str, Any]) -> bool:
    return bool(jnp.issubdtype(examples["x"].dtype, jnp.floating))
