"""Our own published form of weights: a directory with `model.safetensors` and `config.json`.

The tensors are named by their paths in the variable tree (`params/visual/...`, `batch_stats/...`).
The config carries every size and convention that shapes cannot show (heads, activations, epsilons),
and the size and SHA-256 of the tensors, so that a broken copy is noticed before it is parsed. Part
of a model, such as an image tower alone, is published the same way.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from jaxlab import __version__
from jaxlab.checkpoints.foreign import files
from jaxlab.checkpoints.foreign.names import NameMismatchError, NameTable, Rule, flatten, unflatten
from jaxlab.checkpoints.foreign.rules import as_float32, is_floating
from jaxlab.checkpoints.foreign.safetensors import read_safetensors, write_safetensors
from jaxlab.chinese_clip.model import ChineseClipConfig, abstract_variables
from jaxlab.chinese_clip.tables import PARTS, check_parts, part_of
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

FORMAT = "jaxlab.chinese_clip"
TENSORS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

_VISION_KINDS: Mapping[str, type] = {
    "vision_transformer": VisionTransformerConfig,
    "modified_resnet": ModifiedResNetConfig,
}
_SAME_NAMES = NameTable((Rule("{path:.+}", "{path:.+}"),))


class Weights(NamedTuple):
    """A model's sizes and variables.

    Attributes:
      config: sizes and conventions.
      variables: `{"params": ..., "batch_stats": ...}` of NumPy arrays (`batch_stats` for a ResNet),
        which may be read-only views of a mapped file.
    """

    config: ChineseClipConfig
    variables: dict[str, Any]


def config_to_dict(config: ChineseClipConfig) -> dict[str, Any]:
    """The config as plain values that JSON can hold; `config_from_dict` is the inverse."""
    values = dataclasses.asdict(config)
    kind = next(k for k, cls in _VISION_KINDS.items() if isinstance(config.vision, cls))
    return values | {"vision": {"kind": kind, **values["vision"]}}


def config_from_dict(values: Mapping[str, Any]) -> ChineseClipConfig:
    """The config that `config_to_dict` wrote. Fields that are absent take their defaults.

    Args:
      values: nested plain values; `vision` has a `kind`.

    Returns:
      The config.

    Raises:
      ValueError: if a field or the kind of image tower is unknown, or a value is refused.
    """
    vision = dict(values.get("vision", {}))
    kind = vision.pop("kind", None)
    if kind not in _VISION_KINDS:
        raise ValueError(f"vision.kind={kind!r} is unknown; use one of {sorted(_VISION_KINDS)}")
    return _build(
        ChineseClipConfig,
        dict(values)
        | {
            "vision": _build(_VISION_KINDS[kind], vision),
            "text": _build(BertConfig, values.get("text", {})),
        },
    )


def stored_config(values: Mapping[str, Any]) -> ChineseClipConfig | None:
    """The config that `save_original` puts beside the weights, if it is among these entries.

    Args:
      values: what a weight file holds beside its tensors.

    Raises:
      ValueError: if the entry is not a config.
    """
    text = values.get("config")
    return config_from_dict(json.loads(text)) if isinstance(text, str) else None


@functools.lru_cache(maxsize=16)
def variable_shapes(config: ChineseClipConfig) -> Mapping[str, tuple[int, ...]]:
    """Path -> shape of every variable of a model (`params/...`, `batch_stats/...`)."""
    abstract = flatten(abstract_variables(config))
    return MappingProxyType({path: tuple(leaf.shape) for path, leaf in abstract.items()})


def save_published(
    directory: str | os.PathLike[str],
    variables: PyTree,
    config: ChineseClipConfig,
    *,
    info: Mapping[str, Any] | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes `model.safetensors` and `config.json`, each complete or not at all.

    Args:
      directory: where to; made if it does not exist.
      variables: the variables of the model, or of parts of it: each of `visual`, `bert`,
        `text_projection` and `logit_scale` may be left out as a whole.
      config: the model's config.
      info: anything JSON can hold that readers of the weights should know (data, command, metric).
      dtype: floating type to store, such as `jnp.float16`; `None` keeps each array's own.

    Raises:
      NameMismatchError: (a ValueError) if the variables are not those of the config.
    """
    directory = Path(directory)
    flat = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    flat = _check_parts(flat, config)
    if dtype is not None:
        flat = {p: a.astype(dtype) if is_floating(a) else a for p, a in flat.items()}
    directory.mkdir(parents=True, exist_ok=True)
    tensors = directory / TENSORS_FILE
    write_safetensors(tensors, flat, {"format": FORMAT})
    document = {
        "format": FORMAT,
        "jaxlab_version": __version__,
        "config": config_to_dict(config),
        "parts": sorted(_parts(flat)),
        "tensors": {"bytes": tensors.stat().st_size, "sha256": _sha256(tensors)},
        "info": dict(info or {}),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    with files.replacing(directory / CONFIG_FILE) as file:
        file.write(text.encode("utf-8"))


def load_published(
    directory: str | os.PathLike[str], *, parts: Collection[str] | None = None
) -> Weights:
    """Reads what `save_published` wrote.

    Args:
      directory: the directory of `model.safetensors` and `config.json`.
      parts: read only these parts (of `visual`, `bert`, `text_projection`, `logit_scale`). The
        bytes of the others stay untouched, so the SHA-256 of the whole is not compared then.

    Returns:
      Config and variables, floating arrays as float32.

    Raises:
      FileNotFoundError: if one of the files is missing.
      ValueError: if the config is not of this form, the tensors are truncated, damaged or not
        those of the config, or a part is unknown or not there.
    """
    directory = Path(directory)
    check_parts(PARTS if parts is None else parts)
    document = read_document(directory)
    tensors = directory / TENSORS_FILE
    size, wanted = tensors.stat().st_size, document["tensors"]
    if size != wanted["bytes"]:
        state = "truncated" if size < wanted["bytes"] else "damaged"
        raise ValueError(
            f"{tensors} is {state}: {size} bytes, and {CONFIG_FILE} says {wanted['bytes']}. "
            "Copy it again"
        )
    if parts is None and _sha256(tensors) != wanted["sha256"]:
        raise ValueError(
            f"{tensors} is damaged: its SHA-256 is not the one in {CONFIG_FILE}. Copy it again"
        )
    try:
        config = config_from_dict(document["config"])
        flat = _check_parts(read_safetensors(tensors).tensors, config)
        if parts is not None:
            if lacking := sorted(set(parts) - _parts(flat)):
                raise ValueError(f"it has no {', '.join(lacking)}; it has {sorted(_parts(flat))}")
            flat = {path: array for path, array in flat.items() if part_of(path) in parts}
    except NameMismatchError as error:
        raise NameMismatchError(f"{directory}: {error}", error.problems) from error
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    return Weights(config, unflatten({p: as_float32(a) for p, a in flat.items()}))


def read_document(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The `config.json` of a published directory: `config`, `parts`, `tensors` and `info`.

    Args:
      directory: the directory.

    Returns:
      Its values.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is not the config of published Chinese CLIP weights.
    """
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a folder that has {CONFIG_FILE} and {TENSORS_FILE}, such "
            "as the folder `model` of a run. Files of the original are read by load_original"
        )
    try:
        document = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format={found!r}; weights of Chinese CLIP have {FORMAT!r}")
    return document


def _parts(paths: Mapping[str, Any]) -> set[str]:
    return {part_of(path) for path in paths}


def _check_parts(
    flat: Mapping[str, np.ndarray], config: ChineseClipConfig
) -> dict[str, np.ndarray]:
    """The variables in the model's order, after checking them against the parts they belong to."""
    parts = _parts({p: a for p, a in flat.items() if p.count("/")})
    shapes = variable_shapes(config)
    return _SAME_NAMES.load(flat, {p: s for p, s in shapes.items() if part_of(p) in parts})


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{cls.__name__} has no {unknown}; it has {sorted(known)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
