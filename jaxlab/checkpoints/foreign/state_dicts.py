"""The tensors of a weight file, whatever wrote it, and of a folder in Hugging Face's form.

`read_state_dict` looks at the content of a file, not at its name. `read_model_folder` reads
`config.json` and the tensors beside it, in one file or in several with an index.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxlab.checkpoints.foreign import files, safetensors, torch_legacy, torch_zip

FileKind = Literal["safetensors", "torch", "torchscript"]

CONFIG_FILE = "config.json"
TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the tensors in a folder, the first found is read; `.index.json` behind them lists the
files of a model that is split."""

_INDEX = ".index.json"
_WRAPPERS = ("state_dict", "model")
_ZIP_MAGIC = b"PK\x03\x04"
_LFS_MAGIC = b"version https://git-lfs"


@dataclass(frozen=True)
class StateDict:
    """The content of a weight file.

    Attributes:
      tensors: name -> read-only array that shares memory with the mapped file.
      values: what else stands beside them: the entries of a trainer's file, the metadata of a
        safetensors file.
      kind: the form of the file.
    """

    tensors: dict[str, np.ndarray]
    values: dict[str, Any]
    kind: FileKind


@dataclass(frozen=True)
class ModelFolder:
    """The content of a folder in Hugging Face's form.

    Attributes:
      config: what `config.json` says.
      tensors: name -> read-only array that shares memory with the mapped files.
    """

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read_state_dict(path: str | os.PathLike[str], *, verify: bool = False) -> StateDict:
    """The tensors of a safetensors, torch or TorchScript file.

    In a torch file they lie at the top or under `state_dict` or `model`, as trainers leave them.

    Args:
      path: the file; its content decides, not its suffix.
      verify: compare the CRC-32 of every member of a torch file first (reads the file once); files
        from before torch 1.6 have none.

    Returns:
      The tensors as views of the mapped file, and what else the file holds.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is of neither form, truncated, damaged, or holds no tensors.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(_LFS_MAGIC):
        raise ValueError(
            f"{path} is a pointer of Git LFS and not the file itself; run 'git lfs pull' there, or "
            "download the file"
        )
    if not head.startswith(_ZIP_MAGIC) and (head[8:9] == b"{" or path.suffix == ".safetensors"):
        content = safetensors.read_safetensors(path)
        return StateDict(content.tensors, dict(content.metadata), "safetensors")
    if torch_zip.is_torch_script(path):
        return StateDict(torch_zip.read_torch_script(path, verify=verify), {}, "torchscript")
    if torch_legacy.is_torch_legacy(path):
        tree = torch_legacy.read_torch_legacy(path)
    else:
        tree = torch_zip.read_torch_zip(path, verify=verify)
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds a {type(tree).__name__}; a dict of tensors is expected")
    tensors, values = _find_tensors(tree)
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors, neither at the top nor under "
            f"{' or '.join(map(repr, _WRAPPERS))}; it has {list(tree)[:10]}"
        )
    return StateDict(tensors, values, "torch")


def read_model_folder(folder: str | os.PathLike[str], *, verify: bool = False) -> ModelFolder:
    """The config and the tensors of a folder in Hugging Face's form.

    Args:
      folder: has `config.json` and `model.safetensors` or `pytorch_model.bin`, or an index of one
        of them (`model.safetensors.index.json`) and the files that it names.
      verify: see `read_state_dict`.

    Returns:
      Both; tensors are views of the mapped files.

    Raises:
      FileNotFoundError: if a file is missing; all missing ones are named.
      ValueError: if a file cannot be read, or two files hold the same tensor.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_FILE)
    tensors: dict[str, np.ndarray] = {}
    for path in _tensor_files(folder):
        part = read_state_dict(path, verify=verify).tensors
        if twice := sorted(tensors.keys() & part.keys()):
            raise ValueError(f"{path} holds {twice[:5]}, which another file of {folder} has too")
        tensors.update(part)
    return ModelFolder(config, tensors)


def write_model_folder(
    folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes `config.json` and `model.safetensors`, as transformers reads them.

    Args:
      folder: where to; made if it does not exist.
      config: what `config.json` is to say.
      tensors: name -> array.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write_safetensors(folder / TENSOR_FILES[0], tensors, {"format": "pt"})
    with files.replacing(folder / CONFIG_FILE) as file:
        file.write((json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      path: the file.

    Returns:
      Its entries.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not JSON, or JSON of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; an object {{...}} is expected")
    return values


def has_tensors(folder: str | os.PathLike[str]) -> bool:
    """Whether one of the files that `read_model_folder` reads tensors from lies in the folder."""
    return any(
        (Path(folder) / f"{name}{end}").is_file() for name in TENSOR_FILES for end in ("", _INDEX)
    )


def _find_tensors(tree: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of the first of the places where they may lie, and the other entries."""
    inner = [name for name in _WRAPPERS if isinstance(tree.get(name), Mapping)]
    places = [(tree[name], {k: v for k, v in tree.items() if k != name}) for name in inner]
    for place, beside in (*places, (tree, {})):
        arrays = {str(k): v for k, v in place.items() if isinstance(v, np.ndarray)}
        if arrays:
            return arrays, beside
    return {}, {}


def _tensor_files(folder: Path) -> Sequence[Path]:
    for name in TENSOR_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}{_INDEX}").is_file():
            return _shards(index)
    raise FileNotFoundError(
        f"{folder} has no {' or '.join(TENSOR_FILES)}, and no index of one of them "
        f"(NAME{_INDEX}); it has {sorted(p.name for p in folder.iterdir())[:20]}"
    )


def _shards(index: Path) -> Sequence[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise ValueError(
            f"{index} has no 'weight_map' from names of tensors to names of files in its folder"
        )
    paths = [index.parent / file for file in dict.fromkeys(places.values())]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} files that {index} names are missing: "
            f"{', '.join(missing)}. Download them into {index.parent}"
        )
    return paths
