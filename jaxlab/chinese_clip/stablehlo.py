"""A model as StableHLO: programs that JAX runs without the code that made them.

The folder is that of `save_published` (`model.safetensors`, `config.json`) with one program a tower
beside the weights, `image.stablehlo` and `text.stablehlo`, and `stablehlo.json`, which says what to
feed them. A program takes the tower's weights by their names in `model.safetensors` and a batch of
any size, and runs on CPU, TPU and CUDA.

JAX promises to read a program for about six months after it was written. The weights do not
age: export again from the same folder, and keep no program as the only copy of a model.

Needs the package `flatbuffers` (`pip install 'jaxlab[export]'`). Without this library::

    exported = jax.export.deserialize((folder / "image.stablehlo").read_bytes())
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    names = json.loads((folder / "stablehlo.json").read_text())["graphs"]["image"]["weights"]
    features = exported.call({name: weights[name] for name in names}, images)

Core ML starts from these programs or from the ONNX files; it is not tested here.

References:
  JAX's guide "Exporting and serializing staged-out computations" (platforms, compatibility).
"""

import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from jaxlab.checkpoints.foreign import files
from jaxlab.checkpoints.foreign.names import flatten, unflatten
from jaxlab.chinese_clip.deployment import (
    TOWERS,
    TowerName,
    check_choice,
    complete_towers,
    describe,
    tower_weights,
)
from jaxlab.chinese_clip.model import ChineseClip, ChineseClipConfig
from jaxlab.chinese_clip.published import CONFIG_FILE, TENSORS_FILE, load_published, save_published

FORMAT = "jaxlab.chinese_clip.stablehlo"
DESCRIPTION_FILE = "stablehlo.json"
PLATFORMS = ("cpu", "tpu", "cuda")

DTYPES: Mapping[str, DTypeLike] = MappingProxyType(
    {"fp32": jnp.float32, "fp16": jnp.float16, "bf16": jnp.bfloat16}
)
"""Types of the matrices and hidden states; vectors, norms, softmax and features are float32."""


class Programs(NamedTuple):
    """Programs read from a folder.

    Attributes:
      image: from images (N, 3, R, R) float32, normalised, to features (N, dim) float32, not
        normalised; None if the folder has no image tower.
      text: from token ids (N, context_length) of any integer type to features; None likewise.
      description: what `stablehlo.json` says: `image_size`, `image_mean`, `image_std`,
        `context_length`, `embed_dim`, `logit_scale`, `precision`, `config`, ...
    """

    image: Callable[[Any], Float[Array, "batch dim"]] | None
    text: Callable[[Any], Float[Array, "batch dim"]] | None
    description: dict[str, Any]


def export_stablehlo(
    directory: str | os.PathLike[str],
    variables: PyTree,
    config: ChineseClipConfig,
    *,
    precision: str = "fp32",
) -> list[Path]:
    """Writes a published folder with a program for each tower; `load_stablehlo` reads it.

    Args:
      directory: where to; made if it does not exist.
      variables: the variables of the model, or of whole towers.
      config: the model's config; its `context_length` becomes that of the text program.
      precision: type of the computation and of the matrices on disk, `fp32`, `fp16` or `bf16`.

    Returns:
      The files written.

    Raises:
      ModuleNotFoundError: if the package `flatbuffers` is not installed.
      ValueError: if the precision is unknown, a tower is not there as a whole, or the variables are
        not those of the config.
    """
    check_choice("precision", precision, tuple(DTYPES))
    _check_flatbuffers()
    directory, towers = Path(directory), complete_towers(variables)
    variables = jax.tree.map(functools.partial(_store, dtype=DTYPES[precision]), variables)
    save_published(directory, variables, config)
    graphs, written = {}, [directory / TENSORS_FILE, directory / CONFIG_FILE]
    for tower in towers:
        weights = tower_weights(variables, config, tower)
        data = bytes(_export(weights, config, tower, precision).serialize())
        path = directory / f"{tower}.stablehlo"
        with files.replacing(path) as file:
            file.write(data)
        written.append(path)
        graphs[tower] = {
            "file": path.name,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "output": TOWERS[tower].output,
            "weights": list(weights),
        }
    document = {
        "format": FORMAT,
        "jax_version": jax.__version__,
        "platforms": list(PLATFORMS),
        **describe(variables, config, precision),
        "graphs": graphs,
    }
    written.append(directory / DESCRIPTION_FILE)
    with files.replacing(written[-1]) as file:
        file.write((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return written


def load_stablehlo(directory: str | os.PathLike[str]) -> Programs:
    """Reads what `export_stablehlo` wrote, and places the weights on the default device.

    Args:
      directory: the folder.

    Returns:
      The programs, compiled once a batch size, and their description.

    Raises:
      FileNotFoundError: if a file is missing.
      ModuleNotFoundError: if the package `flatbuffers` is not installed.
      ValueError: if a file is truncated, damaged or of another kind, if this JAX reads no programs
        of that age, or if program and weights are not of the same model.
    """
    _check_flatbuffers()
    directory = Path(directory)
    description = _read_description(directory)
    weights = flatten(load_published(directory).variables)
    calls: dict[str, Callable[[Any], Array]] = {}
    for tower, graph in description["graphs"].items():
        exported = _read_program(directory / graph["file"], graph, description)
        calls[tower] = _bind(directory, exported, weights, tower)
    return Programs(calls.get("image"), calls.get("text"), description)


def _store(array: Any, dtype: DTypeLike) -> np.ndarray:
    """A weight as it is stored: matrices in the program's type, vectors in float32."""
    array = np.asarray(array)
    return array.astype(dtype if array.ndim > 1 else np.float32, copy=False)


def _export(
    weights: Mapping[str, np.ndarray],
    config: ChineseClipConfig,
    tower: TowerName,
    precision: str,
) -> export.Exported:
    """The program of one tower, of its weights and a batch of any size."""
    # No kernels of one maker: the program runs on every platform.
    model = ChineseClip(config, implementation="einsum", dtype=DTYPES[precision])
    (batch,) = export.symbolic_shape("batch")
    size = config.vision.image_size
    inputs = {
        "image": jax.ShapeDtypeStruct((batch, 3, size, size), jnp.float32),
        "text": jax.ShapeDtypeStruct((batch, config.context_length), jnp.int32),
    }[tower]

    def encode(weights: Mapping[str, Array], inputs: Array) -> Any:
        x = jnp.transpose(inputs, (0, 2, 3, 1)) if tower == "image" else inputs
        return model.apply(unflatten(weights), x, method=f"encode_{tower}")

    specs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in weights.items()}
    return export.export(jax.jit(encode), platforms=PLATFORMS)(specs, inputs)


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / DESCRIPTION_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a folder that export_stablehlo wrote. Weights alone are "
            "read by load_published"
        )
    try:
        document = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Export the model again") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format={found!r}; programs of Chinese CLIP have {FORMAT!r}")
    return document


def _read_program(
    path: Path, graph: Mapping[str, Any], description: Mapping[str, Any]
) -> export.Exported:
    """A program, after comparing its size and sum with the description's."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {DESCRIPTION_FILE} names it. Copy it too")
    data = path.read_bytes()
    if len(data) != graph["bytes"]:
        state = "truncated" if len(data) < graph["bytes"] else "damaged"
        raise ValueError(
            f"{path} is {state}: {len(data)} bytes, and {DESCRIPTION_FILE} says {graph['bytes']}. "
            "Copy it again"
        )
    if hashlib.sha256(data).hexdigest() != graph["sha256"]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not the one in {DESCRIPTION_FILE}. Copy it again"
        )
    try:
        return export.deserialize(bytearray(data))
    except Exception as error:  # the reader raises whatever its parsers raise
        raise ValueError(
            f"{path} was written by jax {description.get('jax_version')}, and jax "
            f"{jax.__version__} cannot read it ({type(error).__name__}: {error}). Programs are "
            "readable for about six months: export again from the weights in the same folder"
        ) from error


def _bind(
    directory: Path, exported: export.Exported, weights: Mapping[str, np.ndarray], tower: str
) -> Callable[[Any], Array]:
    """A program with its weights: a function of the batch alone."""
    (wanted, batch), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    found = {name: weights[name].shape for name in wanted if name in weights}
    if wrong := {n: (found.get(n), a.shape) for n, a in wanted.items() if found.get(n) != a.shape}:
        listed = "; ".join(f"{n}: {have} here, {want} wanted" for n, (have, want) in wrong.items())
        raise ValueError(
            f"{directory}: the {tower} program and the weights are of different models ({listed}). "
            "Export again"
        )
    placed = {name: jnp.asarray(weights[name], a.dtype) for name, a in wanted.items()}
    call = jax.jit(exported.call)
    kind = jnp.integer if jnp.issubdtype(batch.dtype, jnp.integer) else jnp.floating

    def encode(inputs: Any) -> Array:
        shape, dtype = np.shape(inputs), inputs.dtype
        if shape[1:] != batch.shape[1:] or not jnp.issubdtype(dtype, kind) or not shape[0]:
            raise ValueError(
                f"{tower} is {dtype}{list(shape)}; the program takes {kind.__name__} numbers of "
                f"shape {['N', *batch.shape[1:]]}, N at least 1"
            )
        return call(placed, jnp.asarray(inputs, batch.dtype))

    return encode


def _check_flatbuffers() -> None:
    """Refuse to begin without the package that JAX serialises programs with."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "StableHLO files need the package flatbuffers: pip install 'jaxlab[export]', or "
            "flatbuffers alone"
        )
