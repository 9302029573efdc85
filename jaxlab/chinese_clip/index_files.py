"""An index of pictures on disk: a folder of JSON and NumPy files, without pickles.

* `index.json`: format and version, number and length of the vectors, which model made them
  (checksum of its weights), how pictures were read, the calibration, and the names of the files
  below, which carry a generation number: a new generation is written beside the old one, and
  `index.json`, replaced in one step, says which one counts;
* `vectors-<g>.npy`: float32 (pictures, dim), unit vectors, read as a mapped file;
* `items-<g>.jsonl`: one line a picture: `path` below the folder, `num_bytes`, `mtime_ns`, `width`,
  `height`;
* for int8: `codes-<g>.npy` (int8), `scales-<g>.npy` and `errors-<g>.npy` (float32, one a vector):
  vector = scale * codes + something no longer than error;
* `journal/`: parts of an update that was interrupted; the next update goes on from there.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.checkpoints.foreign import files
from jaxlab.chinese_clip.calibration import MatchCalibration
from jaxlab.chinese_clip.index import IndexInfo, Item, PictureIndex, Quantized

FORMAT = "jaxlab.chinese_clip.index"
VERSION = 1
INDEX_FILE = "index.json"
JOURNAL = "journal"


def load_index(directory: str | os.PathLike[str]) -> PictureIndex:
    """Reads an index; vectors and codes stay on disk, as mapped files.

    Args:
      directory: what `save_index` or `update_index` wrote.

    Raises:
      FileNotFoundError: if there is none, or a file of it is missing.
      ValueError: if it is damaged, or of another version.
    """
    directory = Path(directory).expanduser()
    document = _read_document(directory)
    try:
        stored = document["files"]
        info = _info_from_dict(document["info"])
        shape = (int(document["num_items"]), int(document["dim"]))
        items = read_items(directory / stored["items"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{directory / INDEX_FILE} is damaged ({error!r}); build it anew"
        ) from error
    vectors = _read_array(directory / stored["vectors"], np.float32, shape)
    if len(items) != shape[0]:
        raise ValueError(
            f"{directory} lists {len(items)} items for {shape[0]} vectors; build it anew"
        )
    quantized = None
    if "codes" in stored:
        quantized = Quantized(
            _read_array(directory / stored["codes"], np.int8, shape),
            np.array(_read_array(directory / stored["scales"], np.float32, shape[:1])),
            np.array(_read_array(directory / stored["errors"], np.float32, shape[:1])),
        )
    return PictureIndex(info, items, vectors, quantized)


def save_index(index: PictureIndex, directory: str | os.PathLike[str]) -> None:
    """Writes the index: a new generation of files, then `index.json` in one step.

    Args:
      index: what to write.
      directory: where to; made if absent. Files of older generations are removed at the end.

    Raises:
      ValueError: if the folder holds other things and no index.
    """
    directory = Path(directory).expanduser()
    if directory.is_dir() and any(directory.iterdir()) and not is_index(directory):
        raise ValueError(
            f"{directory} holds other things and no index; give an empty or a new folder"
        )
    directory.mkdir(parents=True, exist_ok=True)
    generation = 1 + max((_generation(path) for path in directory.glob("*-*.*")), default=0)
    names = {"vectors": f"vectors-{generation}.npy", "items": f"items-{generation}.jsonl"}
    _write_array(directory / names["vectors"], index.vectors)
    if index.quantized is not None:
        for name, array in index.quantized._asdict().items():
            names[name] = f"{name}-{generation}.npy"
            _write_array(directory / names[name], array)
    write_items(directory / names["items"], index.items)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "num_items": len(index),
        "dim": index.dim,
        "files": names,
        "info": _info_to_dict(index.info),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    with files.replacing(directory / INDEX_FILE) as file:
        file.write(text.encode("utf-8"))
    for path in directory.glob("*-*.*"):
        if 0 < _generation(path) < generation:
            path.unlink(missing_ok=True)


def is_index(directory: Path) -> bool:
    """Whether a folder holds an index, or the beginning of one."""
    return (directory / INDEX_FILE).is_file() or (directory / JOURNAL).is_dir()


def _info_to_dict(info: IndexInfo) -> dict[str, Any]:
    values = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    calibration = info.calibration and info.calibration.to_dict()
    return values | {"fingerprints": dict(info.fingerprints), "calibration": calibration}


def _info_from_dict(values: Mapping[str, Any]) -> IndexInfo:
    calibration = values["calibration"]
    changed: dict[str, Any] = {
        "background": tuple(float(value) for value in values["background"]),
        "calibration": calibration and MatchCalibration.from_dict(calibration),
    }
    return IndexInfo(**{**values, **changed})


def _read_document(directory: Path) -> dict[str, Any]:
    path = directory / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; build an index first: python -m "
            f"experiments.chinese_clip.index --weights=NAME --folder=PICTURES --output={directory}"
        )
    try:
        document = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path} is not the index of pictures of Chinese CLIP ({FORMAT})")
    if document.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {document.get('version')}, this library reads {VERSION}; build "
            "the index anew, or use the library that made it"
        )
    return document


def _read_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build the index anew")
    try:
        mode: Any = "r" if 0 not in shape else None  # an empty file cannot be mapped
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the index anew") from error
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, and {INDEX_FILE} says "
            f"{np.dtype(dtype)} of shape {shape}; build the index anew"
        )
    return array


def _write_array(path: Path, array: np.ndarray) -> None:
    with files.replacing(path) as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Writes a line of JSON for each picture; the file appears complete or not at all."""
    with files.replacing(path) as file:
        for item in items:
            # Names of files may hold lone surrogates, which ASCII escapes carry.
            file.write(json.dumps(item._asdict()).encode("ascii") + b"\n")


def read_items(path: Path) -> tuple[Item, ...]:
    """Reads what `write_items` wrote.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a line is damaged; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build the index anew")
    items = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            items.append(Item(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} line {number} is damaged ({error})") from error
    return tuple(items)


def _generation(path: Path) -> int:
    """The number in `vectors-3.npy`; 0 for files that are none of an index."""
    name, _, number = path.stem.partition("-")
    known = ("vectors", "items", "codes", "scales", "errors")
    return int(number) if name in known and number.isdigit() else 0
