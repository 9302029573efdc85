"""Checkpoint files of the original, read and written: `{"cur_round": int, "model": tensors}`.

They are torch files, zipped or of the form before torch 1.6. Nothing that is in them is run, and
torch is not needed.

References:
  `federatedscope/core/aggregators/aggregator.py` of FederatedScope 0.3.0 (`save_model`,
  `load_model`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from jaxlab.checkpoints.foreign import state_dicts, torch_zip
from jaxlab.federated.models.names import load_original, save_original


class OriginalCheckpoint(NamedTuple):
    """What the original saves of a course.

    Attributes:
      round: aggregations so far; -1 if the file does not tell.
      variables: of the model, NumPy arrays.
    """

    round: int
    variables: dict[str, Any]


def read_original(
    path: str | os.PathLike[str],
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    start: Mapping[str, Any] | None = None,
) -> OriginalCheckpoint:
    """The model of a checkpoint of the original.

    Args:
      path: the file.
      module: the model.
      example: shape and type of one input, without the batch axis.
      start: variables for what the file lacks, see `load_original`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is broken, holds anything but tensors and plain values, or a round
        that is no number.
      NameMismatchError: (a ValueError) listing every missing, unexpected and mis-shaped name.
    """
    saved = state_dicts.read_state_dict(path)
    number = saved.values.get("cur_round", -1)
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise ValueError(f"{path}: cur_round is {number!r}; wanted the number of a round")
    return OriginalCheckpoint(int(number), load_original(module, example, saved.tensors, start))


def write_original(
    path: str | os.PathLike[str],
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    variables: Mapping[str, Any],
    number: int,
) -> Path:
    """Writes a checkpoint that the original loads (`federate.restore_from`).

    Args:
      path: the file; it appears whole or not at all.
      module: the model.
      example: shape and type of one input, without the batch axis.
      variables: of the model.
      number: aggregations so far.

    Returns:
      The file.

    Raises:
      NameMismatchError: (a ValueError) listing the variables that the model has not.
    """
    tensors = save_original(module, example, variables)
    torch_zip.write_torch_zip(path, {"cur_round": number, "model": tensors})
    return Path(path)
