"""A user's own data, model and loss, which settings name as `package.module:function`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxlab.federated import ConfigError, Task
from jaxlab.federated.datasets import CentralData, DataInfo, FederatedData
from jaxlab.federated.monitoring import metric_values
from jaxlab.federated.tasks import MASK, takes

Prepare = Callable[[jax.Array], jax.Array]


def call_factory(setting: str, text: str, wanted: str, *arguments: Any) -> Any:
    """What a function that a setting names returns.

    Args:
      setting: its name, `model.factory`, for the messages.
      text: `package.module:function`; modules of the current directory are found, too.
      wanted: how the function is called, `make_model(info)`, for the messages.
      *arguments: what it is called with.

    Raises:
      ConfigError: (a ValueError) if there is no such function, or it takes other arguments.
    """
    module_name, _, name = text.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise ConfigError(
            f"{setting}={text!r}: there is no module {error.name}, installed or in {folder}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(
            f"{setting}={text!r}: {module.__file__} has no function {name}; wanted {wanted}"
        )
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{setting}={text!r} takes {name}{inspect.signature(function)}; wanted {wanted}"
        ) from error
    except ValueError:  # a function without a signature, written in C
        pass
    return function(*arguments)


def load_own_data(factory: str, settings: Any) -> FederatedData | CentralData:
    """The data set that a user's function loads.

    Args:
      factory: `package.module:function`.
      settings: of the data, which the function gets: path, number of clients, seed ...

    Raises:
      ConfigError: (a ValueError) if it is no data set.
    """
    found = call_factory("data.factory", factory, "load(settings)", settings)
    if not isinstance(found, FederatedData | CentralData):
        raise ConfigError(
            f"data.factory={factory!r} returned a {type(found).__name__}; wanted "
            "jaxlab.federated.datasets.FederatedData, or CentralData to be shared out"
        )
    examples = found.train.examples if isinstance(found, FederatedData) else found.train
    if missing := [name for name in ("x", "y") if name not in examples]:
        raise ConfigError(
            f"data.factory={factory!r} returned examples with {', '.join(examples)}; "
            f"{' and '.join(missing)} is missing"
        )
    return found


def make_own_model(factory: str, info: DataInfo) -> nn.Module:
    """The module that a user's function makes.

    Args:
      factory: `package.module:function`.
      info: of the data, which the function gets.

    Raises:
      ConfigError: (a ValueError) if it is no module, or cannot be called with `train`.
    """
    found = call_factory("model.factory", factory, "make_model(info)", info)
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"model.factory={factory!r} returned a {type(found).__name__}; wanted a "
            "flax.linen.Module"
        )
    if not takes(found, "train"):
        raise ConfigError(
            f"model.factory={factory!r}: {type(found).__name__}.__call__"
            f"{inspect.signature(type(found).__call__)} takes no train; wanted "
            "__call__(self, x, *, train), and mask where rows that are no examples matter"
        )
    return found


def check_output(
    factory: str, module: nn.Module, example: jax.ShapeDtypeStruct, num_outputs: int
) -> None:
    """Raises ConfigError (a ValueError) if a module does not give what the loss takes.

    Args:
      factory: the function that made it.
      module: the model.
      example: shape and type of one input of it.
      num_outputs: classes of the data, or numbers to predict.
    """

    def call(key: jax.Array, x: jax.Array) -> Any:
        mask: dict[str, Any] = {MASK: jnp.ones(1, bool)} if takes_mask(module) else {}
        return module.init_with_output(key, x, train=False, **mask)[0]

    one = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
    found = getattr(jax.eval_shape(call, jax.random.key(0), one), "shape", None)
    if found != (1, num_outputs):
        raise ConfigError(
            f"model.factory={factory!r}: of one input of shape {example.shape} the model makes "
            f"outputs of shape {found}; the data wants (1, {num_outputs}). Take num_classes of the "
            "info that the function gets, or set task.factory to a loss for such outputs"
        )


def make_own_task(
    factory: str, module: nn.Module, example: jax.ShapeDtypeStruct, prepare: Prepare
) -> Task:
    """The task that a user's function makes, called as `jaxlab.federated.classification` is.

    Args:
      factory: `package.module:function`.
      module: the model.
      example: shape and type of one input of it.
      prepare: from `x` of a batch to the input of the model.

    Raises:
      ConfigError: (a ValueError) if it is no task.
    """
    wanted = "make_task(module, example, prepare)"
    found = call_factory("task.factory", factory, wanted, module, example, prepare)
    if not isinstance(found, Task):
        raise ConfigError(
            f"task.factory={factory!r} returned a {type(found).__name__}; wanted a "
            "jaxlab.federated.Task, such as classification(...) and supervised(...) make"
        )
    return found


def takes_mask(module: nn.Module) -> bool:
    """Whether a module is also told which rows are examples."""
    return takes(module, "mask")


def score_names(task: Task, examples: Any) -> list[str]:
    """The names of what a task measures beside the loss; nothing is computed.

    Args:
      task: any.
      examples: name -> (examples, ...), as a client has them.
    """
    batch = {
        name: jax.ShapeDtypeStruct((1, *np.shape(values)[1:]), values.dtype)
        for name, values in examples.items()
    }
    batch[MASK] = jax.ShapeDtypeStruct((1,), jnp.bool_)

    def measure(key: jax.Array, batch: Any) -> tuple[Any, Any]:
        init, loss = jax.random.split(key)
        output = task.loss(task.init(init), batch, loss, False)
        whole = task.score_all(output.kept or {}, batch[MASK]) if task.score_all else {}
        return output.scores, whole

    found = jax.eval_shape(measure, jax.random.key(0), batch)
    return list(metric_values({name: np.ones(2) for part in found for name in part}))
