"""The weights of ONNX files, without the package `onnx`.

Only what names weights is read of the protocol buffer: nodes (operator, inputs, outputs) and stored
tensors, as views of the mapped file. Exports from torch keep the names of biases and norms, but the
kernels of linear layers are nameless there (`onnx::MatMul_470`): `linear_names` gives them back.
"""

import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab.checkpoints.foreign.protobuf import message_fields, packed_numbers

_DTYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    16: jnp.bfloat16,
}
_FLOAT_DATA, _INT64_DATA = 4, 7
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5


class Node(NamedTuple):
    """One operator of a graph.

    Attributes:
      op: its name.
      inputs: names of values.
      outputs: names of values.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxFile(NamedTuple):
    """The content of an ONNX file.

    Attributes:
      nodes: in the order of the file.
      tensors: name -> read-only array that shares memory with the mapped file.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, np.ndarray]


def read_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Maps an ONNX file. The file must stay unchanged while the arrays are used.

    Args:
      path: the file.

    Returns:
      Nodes and stored tensors of its graph.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no ONNX file, truncated, or keeps tensors in other files or in a type
        that NumPy does not have.
    """
    path = Path(path)
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes). Download it again")
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        graphs = [value for number, value in message_fields(data) if number == _GRAPH]
        if len(graphs) != 1 or not isinstance(graphs[0], memoryview):
            raise ValueError("it has no graph")
        nodes, tensors = [], {}
        for number, value in message_fields(graphs[0]):
            if number == _NODE and isinstance(value, memoryview):
                nodes.append(_node(value))
            elif number == _INITIALIZER and isinstance(value, memoryview):
                name, array = _tensor(value)
                tensors[name] = array
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path} ({data.nbytes} bytes) is no ONNX file, damaged or of another kind: {error}"
        ) from error
    return OnnxFile(tuple(nodes), tensors)


def linear_names(content: OnnxFile) -> dict[str, np.ndarray]:
    """The tensors under the names of torch's state dict, kernels of linear layers included.

    A nameless kernel goes into a `MatMul` whose result meets a bias in the `Add` that follows: the
    kernel is the `weight` beside that `bias`, transposed, since ONNX stores it as (in, out).

    Args:
      content: of an export from torch.

    Returns:
      Name -> array, linear weights as (out, in). Tensors that no bias names keep their names.

    Raises:
      ValueError: if a kernel would get a name that is taken by another tensor.
    """
    kernels = {
        node.outputs[0]: name
        for node in content.nodes
        if node.op == "MatMul"
        for name in node.inputs[1:]
        if name in content.tensors
    }
    named, used = dict(content.tensors), set()
    for node in content.nodes:
        if node.op != "Add":
            continue
        biases = [n for n in node.inputs if n in content.tensors and n.endswith(".bias")]
        found = [kernels[n] for n in node.inputs if n in kernels]
        if len(biases) != 1 or len(found) != 1:
            continue
        name = f"{biases[0].removesuffix('.bias')}.weight"
        if name in named and name not in found:
            raise ValueError(f"{found[0]} would be {name}, which is there already")
        named[name] = content.tensors[found[0]].T
        used.update(set(found) - {name})
    return {name: array for name, array in named.items() if name not in used}


def _node(data: memoryview) -> Node:
    texts: Mapping[int, list[str]] = {1: [], 2: [], 4: []}
    for number, value in message_fields(data):
        if number in texts and isinstance(value, memoryview):
            texts[number].append(bytes(value).decode("utf-8"))
    return Node("".join(texts[4]), tuple(texts[1]), tuple(texts[2]))


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    dims, kind, name, raw, is_external = [], 0, "", None, False
    for number, value in message_fields(data):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 1 and isinstance(value, memoryview):
            dims += packed_numbers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8")
        elif number == 14:
            is_external = bool(value)
        elif isinstance(value, memoryview) and number == 9:
            raw = value
        elif isinstance(value, memoryview) and number == _FLOAT_DATA:
            raw = value  # packed float32, little endian as raw data is
        elif isinstance(value, memoryview) and number == _INT64_DATA:
            raw = memoryview(np.asarray(packed_numbers(value), np.uint64).tobytes())
    if is_external:
        raise ValueError(f"the tensor {name!r} lies in another file, which is not read")
    if kind not in _DTYPES:
        raise ValueError(f"the tensor {name!r} is of type {kind}; {sorted(_DTYPES)} are read")
    dtype = np.dtype(_DTYPES[kind])
    size = math.prod(dims)
    raw = memoryview(b"") if raw is None else raw
    if size * dtype.itemsize != raw.nbytes:
        raise ValueError(
            f"the tensor {name!r} has {raw.nbytes} bytes; {dims} of {dtype} "
            f"need {size * dtype.itemsize}"
        )
    return name, np.frombuffer(raw, dtype).reshape(dims)
