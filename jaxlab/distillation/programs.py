"""A text model as one StableHLO program, which JAX runs without the code that made it.

JAX promises to read a program for about six months after it was written; the weights beside it do
not age. Needs the package `flatbuffers` (`pip install flatbuffers`, or the extra `export`).

References:
  JAX's guide "Exporting and serializing staged-out computations".
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, PyTree

from jaxlab.checkpoints.foreign import files
from jaxlab.distillation.model import TextModel, TextModelConfig

PROGRAM = "model.stablehlo"
PLATFORMS = ("cpu", "tpu", "cuda")


def check_program(config: TextModelConfig) -> None:
    """Refuse what `write_program` cannot write.

    Args:
      config: of the model.

    Raises:
      ModuleNotFoundError: if `flatbuffers` is not installed.
      ValueError: if the model has no head.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "programs are written with the package flatbuffers; pip install flatbuffers"
        )
    if config.task == "none":
        raise ValueError("a model without a task has no logits to give; load it with its head")


def write_program(folder: str | os.PathLike[str], params: PyTree, config: TextModelConfig) -> Path:
    """Writes the program of a model.

    It takes the parameters, `ids` (int32) and `mask` (bool) of shape (texts, tokens), any number of
    texts of any length that the model takes, and gives the logits.

    Args:
      folder: that has, or will have, the weights.
      params: of the model; their shapes alone matter.
      config: of the model.

    Raises:
      ModuleNotFoundError: if `flatbuffers` is not installed.
      ValueError: if the model has no head.
    """
    check_program(config)
    model = TextModel(config)
    longest = f"tokens <= {config.encoder.max_tokens}"
    rows, tokens = export.symbolic_shape("rows, tokens", constraints=[longest])

    def logits(params: PyTree, ids: Array, mask: Array) -> Array:
        features: Any = model.apply({"params": params}, ids, mask=mask)
        return features.logits

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.float32), params)
    exported = export.export(jax.jit(logits), platforms=PLATFORMS)(
        shapes,
        jax.ShapeDtypeStruct((rows, tokens), jnp.int32),
        jax.ShapeDtypeStruct((rows, tokens), jnp.bool_),
    )
    path = Path(folder) / PROGRAM
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        file.write(bytes(exported.serialize()))
    return path


def read_program(
    folder: str | os.PathLike[str],
) -> Callable[[PyTree, Any, Any], Float[Array, "texts *outputs"]]:
    """The program of a folder: from parameters, ids and mask to logits.

    Args:
      folder: that `write_program` wrote to.

    Raises:
      FileNotFoundError: if it has no program.
    """
    path = Path(folder) / PROGRAM
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; write it with write_program")
    return export.deserialize(bytearray(path.read_bytes())).call
