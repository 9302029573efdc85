"""Checkpoints of the original Chinese CLIP (`clip_cn_*.pt`) <-> our variables.

The original stores linear weights as (out, in), convolutions as (out, in, height, width), and the
query, key and value of the image tower as one matrix; `tables.original_table` holds the mapping.
Files of the original's flash-attention form and of QA-CLIP (the same layout) are read too.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign.names import NameMismatchError, NameTable, flatten
from jaxlab.checkpoints.foreign.safetensors import write_safetensors
from jaxlab.checkpoints.foreign.state_dicts import read_state_dict
from jaxlab.checkpoints.foreign.torch_zip import write_torch_zip
from jaxlab.chinese_clip.detection import describe_fit, detect_config, model_name
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import (
    Weights,
    config_to_dict,
    stored_config,
    variable_shapes,
)
from jaxlab.chinese_clip.tables import (
    COUNTER,
    PARTS,
    check_parts,
    check_whole,
    load_variables,
    original_table,
)
from jaxlab.layers.positions import resize_positions as resize_table
from jaxlab.layers.vit import VisionTransformerConfig

_POSITIONS = "visual.positional_embedding"


def load_original(
    path: str | os.PathLike[str],
    config: ChineseClipConfig | None = None,
    *,
    parts: Collection[str] | None = None,
    resize_positions: bool = False,
    verify: bool = True,
) -> Weights:
    """A checkpoint of the original as our variables.

    Reads the torch zip files of the original (released ones and those of its trainer, whose
    optimizer state is skipped) and safetensors files with the original's names. The arrays are
    views of the mapped file until they are placed on a device.

    Args:
      path: `.pt` or `.safetensors` file.
      config: the model wanted; `None` takes the config that `save_original` stored in the file, or
        else detects it from the shapes.
      parts: read only these parts (of `visual`, `bert`, `text_projection`, `logit_scale`); the
        bytes of the others stay untouched, so nothing is verified then.
      resize_positions: let a vision transformer's position table be of another grid, and resize it
        bicubically as the original does.
      verify: check the CRC-32 of a torch file's members first (reads the file once).

    Returns:
      The config, and float32 variables.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file cannot be read, or does not fit the config; then every missing,
        unexpected and mis-shaped tensor is named with both shapes, and the config that would fit.
    """
    chosen = PARTS if parts is None else parts
    check_parts(chosen)
    state_dict, stored = _read_state_dict(Path(path), verify and parts is None)
    try:
        if config is None:
            config = stored or detect_config(_plain_shapes(state_dict))
        table = original_table(config)
        if resize_positions:
            state_dict = _with_resized_positions(state_dict, table, config)
        variables = load_variables(state_dict, table, variable_shapes(config), chosen)
    except NameMismatchError as error:
        raise NameMismatchError(
            f"{path}: {error}\n{describe_fit(config, _plain_shapes(state_dict), stored)}",
            error.problems,
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Weights(config, variables)


def original_state_dict(variables: PyTree, config: ChineseClipConfig) -> dict[str, np.ndarray]:
    """Our variables under the original's names, in the original's layout.

    Args:
      variables: all variables of the model.
      config: the model's config.

    Returns:
      Original name -> array; the counters of batch norms, which the original does not use, are 0.

    Raises:
      NameMismatchError: (a ValueError) if a variable has no form in the original.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    saved = original_table(config).save(flat)
    counters = [n.replace("running_mean", COUNTER) for n in saved if n.endswith("running_mean")]
    return saved | {name: np.zeros((), np.int64) for name in counters}


def save_original(
    path: str | os.PathLike[str], variables: PyTree, config: ChineseClipConfig
) -> None:
    """Writes our variables as a checkpoint that the original loads.

    A `.pt` file has the form of the released ones (`epoch`, `step`, `name`, and `state_dict` with
    the prefix `module.`); a `.safetensors` file holds the bare names. Both carry our config beside
    the weights, so that `load_original` restores heads and activations as well.

    Args:
      path: file to write, ending in `.pt` or `.safetensors`.
      variables: all variables of the model.
      config: the model's config.

    Raises:
      ValueError: if the suffix is another one, or a part of the model is absent.
      NameMismatchError: (a ValueError) if a variable has no form in the original.
    """
    path = Path(path)
    check_whole(variables, "a file of the original")
    state_dict = original_state_dict(variables, config)
    text = json.dumps(config_to_dict(config), ensure_ascii=False)
    if path.suffix == ".safetensors":
        write_safetensors(path, state_dict, {"format": "pt", "config": text})
    elif path.suffix == ".pt":
        tree = {"epoch": 0, "step": 0, "name": model_name(config) or "jaxlab", "config": text}
        prefixed = {f"module.{name}": array for name, array in state_dict.items()}
        write_torch_zip(path, tree | {"state_dict": prefixed})
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}; use '.pt' or '.safetensors'")


def _read_state_dict(
    path: Path, verify: bool
) -> tuple[dict[str, np.ndarray], ChineseClipConfig | None]:
    """The tensors of a file, and the config that `save_original` put beside them."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; give a .pt or .safetensors file of the original. Folders of "
            "this library are read by load_published"
        )
    content = read_state_dict(path, verify=verify)
    return content.tensors, stored_config(content.values)


def _plain_shapes(state_dict: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("module."): array.shape for name, array in state_dict.items()}


def _with_resized_positions(
    state_dict: Mapping[str, np.ndarray], table: NameTable, config: ChineseClipConfig
) -> dict[str, np.ndarray]:
    if not isinstance(config.vision, VisionTransformerConfig):
        raise ValueError(
            "resize_positions=True needs a vision transformer; the positions of a ResNet's "
            "attention pool cannot be resized: use the image size of the checkpoint"
        )
    return {
        name: resize_table(array, config.vision.grid_size)
        if table.plain_name(name) == _POSITIONS
        else array
        for name, array in state_dict.items()
    }
