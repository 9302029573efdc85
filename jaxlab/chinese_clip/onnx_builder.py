"""ONNX graphs node by node: float32, half precision, or int8 weights.

The operators are those of opset 17, the first with `LayerNormalization`: ONNX Runtime reads it from
1.12 on, TensorRT from 8.6 on. A graph is collected as plain records; `write_model` alone needs the
package `onnx`.

Half precision: matrices, convolutions and the hidden states are float16; norms, softmax, inputs
and outputs stay float32. int8: the weights of matrix products are int8 with a scale a column, and
their other factor is quantised to uint8 as it comes (`DynamicQuantizeLinear`, `MatMulInteger`);
kernels of convolutions and rows of tables are int8 with a scale each and are scaled back before
use.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlab.checkpoints.foreign import files

ValueTypes = Mapping[str, tuple[Any, tuple[int | str, ...]]]
"""Type and shape by name; a free axis has a name for a size."""

PRECISIONS = ("fp32", "fp16", "int8")

OPSET = 17
IR_VERSION = 8
EXTERNAL_THRESHOLD = 1024
"""Bytes from which on an initializer goes to the side file, where there is one."""
LARGEST_PROTO = 2_000_000_000
"""A protocol buffer ends at 2 GiB; larger models keep their weights in the side file."""

INT8_LIMIT = 63
"""Weights of products use 7 of the 8 bits.

The uint8 x int8 instructions of x86 before VNNI add two products in 16 bits, which a pair of
255 * 127 overflows and a pair of 255 * 63 does not: so all machines give the same numbers.
"""
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
      op: its ONNX name.
      inputs: names of values; "" leaves an optional one out.
      outputs: names of values.
      attributes: static arguments.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A stored value. It is converted when it is written: a view of a mapped file costs nothing.

    Attributes:
      array: the values as they came.
      dtype: the type to store.
      scale: steps to divide by and round, for int8; broadcasts against the array.
    """

    array: np.ndarray
    dtype: np.dtype
    scale: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        """Size when stored."""
        return self.array.size * self.dtype.itemsize

    def to_bytes(self) -> bytes:
        """The stored form, little-endian and row by row."""
        values = self.array if self.scale is None else np.rint(self.array / self.scale)
        little = self.dtype.newbyteorder("<")
        return np.ascontiguousarray(values.astype(little, copy=False)).tobytes()


class GraphBuilder:
    """Collects nodes and initializers; every method returns the name of its result.

    Attributes:
      precision: how weights are stored and products computed.
      nodes: the operators, in order.
      initializers: the stored values by name.
    """

    def __init__(self, precision: str = "fp32") -> None:
        self.precision: str = precision
        self.nodes: list[Node] = []
        self.initializers: dict[str, Tensor] = {}
        self._quantized: dict[str, list[str]] = {}

    @property
    def dtype(self) -> np.dtype:
        """Type of the hidden states."""
        return np.dtype(np.float16 if self.precision == "fp16" else np.float32)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append an operator of one result.

        Args:
          op: ONNX name.
          *inputs: names of values.
          **attributes: static arguments; of type `numpy.dtype` where ONNX wants a type.

        Returns:
          The name of the result.
        """
        return self._append(op, inputs, 1, attributes)[0]

    def output(self, x: str, name: str) -> None:
        """Give a value the name of an output of the graph, as float32."""
        self.nodes.append(Node("Identity", (self.wide(x),), (name,), {}))

    def _append(
        self, op: str, inputs: tuple[str, ...], num_outputs: int, attributes: Mapping[str, Any]
    ) -> list[str]:
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(num_outputs)]
        self.nodes.append(Node(op, inputs, tuple(names), attributes))
        return names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A small constant, stored once; floating ones have the type of the hidden states.

        Args:
          value: what `numpy.asarray` takes.
          dtype: its type; None takes the hidden states' type.
        """
        array = np.asarray(value, self.dtype if dtype is None else dtype)
        shape = "x".join(map(str, array.shape))
        name = f"constant_{array.dtype}_{shape}_{'_'.join(map(str, array.ravel().tolist()))}"
        self.initializers.setdefault(name, Tensor(array, array.dtype))
        return name

    def weight(self, name: str, array: np.ndarray, dtype: Any = None) -> str:
        """A named initializer, of the hidden states' type unless another is asked for.

        Args:
          name: name of the value.
          array: its elements; converted when the file is written.
          dtype: its type.
        """
        self.initializers[name] = Tensor(array, np.dtype(dtype or self.dtype))
        return name

    def cast(self, x: str, dtype: Any) -> str:
        """A value in another type.

        Args:
          x: name of a value.
          dtype: float32, float16, int64 or another type of ONNX.
        """
        return self.add("Cast", x, to=np.dtype(dtype))

    def wide(self, x: str) -> str:
        """A hidden state as float32."""
        return self.cast(x, np.float32) if self.precision == "fp16" else x

    def narrow(self, x: str) -> str:
        """A float32 value as a hidden state."""
        return self.cast(x, self.dtype) if self.precision == "fp16" else x

    def reshape(self, x: str, *shape: int) -> str:
        """A value in another shape: 0 keeps the axis of that place, -1 takes the rest."""
        return self.add("Reshape", x, self.constant(shape, np.int64))

    def transpose(self, x: str, *axes: int) -> str:
        """A value with its axes in another order."""
        return self.add("Transpose", x, perm=axes)

    def take(self, x: str, place: int, axis: int) -> str:
        """One place along an axis, which goes away."""
        return self.add("Gather", x, self.constant(place, np.int64), axis=axis)

    def product(self, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None = None) -> str:
        """`x @ kernel + bias` with stored weights.

        Args:
          x: name of a value whose last axis is the kernel's first.
          name: name of the weights; `/kernel` and `/bias` are added where there is a bias.
          kernel: (in, out).
          bias: (out,) or None.
        """
        path = name if bias is None else f"{name}/kernel"
        if self.precision == "int8":
            y = self._integer_product(x, path, kernel)
        else:
            y = self.add("MatMul", x, self.weight(path, kernel))
        return y if bias is None else self.add("Add", self.weight(f"{name}/bias", bias), y)

    def _integer_product(self, x: str, path: str, kernel: np.ndarray) -> str:
        """`x @ kernel` in integers: one scale for `x`, one for each column of the kernel."""
        if x not in self._quantized:
            self._quantized[x] = self._append("DynamicQuantizeLinear", (x,), 3, {})
        values, x_scale, zero_point = self._quantized[x]
        scale = quantization_scale(kernel, axis=1, limit=INT8_LIMIT)
        self.initializers[path] = Tensor(kernel, np.dtype(np.int8), scale)
        column_scale = self.weight(f"{path}/scale", scale[0])
        integers = self.add("MatMulInteger", values, path, zero_point)
        scales = self.add("Mul", x_scale, column_scale)
        return self.add("Mul", self.cast(integers, np.float32), scales)

    def convolution(
        self, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None, stride: int, pad: int
    ) -> str:
        """A square convolution of NCHW values.

        Args:
          x: name of a value.
          name: name of the kernel; the bias has `/bias` behind it.
          kernel: HWIO, as the variables have it.
          bias: (out,) or None.
          stride: step.
          pad: rows and columns of zeros on every side.
        """
        kernel = np.transpose(kernel, (3, 2, 0, 1))
        size = kernel.shape[-1]
        if self.precision == "int8":
            scale = quantization_scale(kernel, axis=0, limit=127)
            self.initializers[name] = Tensor(kernel, np.dtype(np.int8), scale)
            scale_name = self.weight(f"{name}/scale", scale.reshape(-1))
            weight = self.add("DequantizeLinear", name, scale_name, axis=0)
        else:
            weight = self.weight(name, kernel)
        biases = () if bias is None else (self.weight(f"{name}/bias", bias),)
        return self.add(
            *("Conv", x, weight, *biases),
            kernel_shape=(size, size),
            strides=(stride, stride),
            pads=(pad,) * 4,
        )

    def rows(self, name: str, table: np.ndarray, ids: str) -> str:
        """Rows of a table.

        Args:
          name: name of the table.
          table: (rows, width).
          ids: name of integer ids; the result has one more axis.
        """
        if self.precision != "int8":
            return self.add("Gather", self.weight(name, table), ids, axis=0)
        scale = quantization_scale(table, axis=0, limit=127)
        self.initializers[name] = Tensor(table, np.dtype(np.int8), scale)
        row = self.cast(self.add("Gather", name, ids, axis=0), np.float32)
        return self.add(
            "Mul", row, self.add("Gather", self.weight(f"{name}/scale", scale), ids, axis=0)
        )

    def layer_norm(
        self, x: str, name: str, scale: np.ndarray, bias: np.ndarray, epsilon: float
    ) -> str:
        """Layer norm over the last axis, in float32.

        Args:
          x: name of a hidden state.
          name: name of the weights; `/scale` and `/bias` are added.
          scale: (width,).
          bias: (width,).
          epsilon: added to the variance.
        """
        y = self.add(
            "LayerNormalization",
            self.wide(x),
            self.weight(f"{name}/scale", scale, np.float32),
            self.weight(f"{name}/bias", bias, np.float32),
            axis=-1,
            epsilon=epsilon,
        )
        return self.narrow(y)

    def softmax(self, scores: str, bias: str | None = None) -> str:
        """Softmax over the last axis, in float32.

        Args:
          scores: name of a hidden state.
          bias: name of a float32 value to add first.
        """
        wide = self.wide(scores)
        if bias is not None:
            wide = self.add("Add", wide, bias)
        return self.narrow(self.add("Softmax", wide, axis=-1))


def quantization_scale(array: np.ndarray, axis: int, limit: int) -> np.ndarray:
    """The float32 step of every slice along an axis, so that its largest value becomes `limit`.

    Args:
      array: floating values.
      axis: the axis that has a scale for each of its places.
      limit: largest integer.

    Returns:
      Scales that broadcast against the array; 1 where a slice is zero.
    """
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest = np.max(np.abs(array), axis=others, keepdims=True).astype(np.float32)
    return np.where(largest > 0, largest / np.float32(limit), np.float32(1))


def write_model(
    path: Path,
    builder: GraphBuilder,
    inputs: ValueTypes,
    outputs: ValueTypes,
    metadata: Mapping[str, str],
) -> list[Path]:
    """Writes a graph as an ONNX file, and checks it with the checker of ONNX.

    Weights lie in the file itself, or for half precision (as in the original) and where the file
    would pass the 2 GB of a protocol buffer in a side file `{path}.extra_file`, which must stay
    beside it. Tensors are written one after the other.

    Args:
      path: the file; its folder must exist.
      builder: the graph.
      inputs: name -> type and shape, with a name for a free axis.
      outputs: the same.
      metadata: free text for consumers, under `metadata_props`.

    Returns:
      The files written.

    Raises:
      ModuleNotFoundError: if the package `onnx` is not installed.
    """
    onnx = import_onnx()
    model = _make_model(onnx, builder, inputs, outputs, metadata)
    total = sum(tensor.num_bytes for tensor in builder.initializers.values())
    side = path.with_name(f"{path.name}.extra_file")
    is_external = builder.precision == "fp16" or total > LARGEST_PROTO
    with files.replacing(side) if is_external else contextlib.nullcontext() as file:
        for name, tensor in builder.initializers.items():
            # Made in its place: a copy of an inlined tensor would cost its size again.
            _fill_tensor(onnx, model.graph.initializer.add(), name, tensor, file, side.name)
    with files.replacing(path) as file:
        file.write(model.SerializeToString())
    del model
    onnx.checker.check_model(str(path))
    return [path, side] if is_external else [path]


def import_onnx() -> Any:
    """The package `onnx`.

    Raises:
      ModuleNotFoundError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "writing ONNX files needs the package onnx: pip install 'jaxlab[export]', or onnx alone"
        ) from error


def _element_type(onnx: Any, dtype: Any) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _make_node(onnx: Any, node: Node) -> Any:
    attributes = {
        name: _element_type(onnx, value) if isinstance(value, np.dtype) else value
        for name, value in node.attributes.items()
    }
    return onnx.helper.make_node(
        node.op, node.inputs, node.outputs, name=f"node_{node.outputs[0]}", **attributes
    )


def _make_model(
    onnx: Any,
    builder: GraphBuilder,
    inputs: ValueTypes,
    outputs: ValueTypes,
    metadata: Mapping[str, str],
) -> Any:
    """The model without its stored values."""

    def describe(values: ValueTypes) -> list[Any]:
        return [
            onnx.helper.make_tensor_value_info(name, _element_type(onnx, dtype), shape)
            for name, (dtype, shape) in values.items()
        ]

    nodes = [_make_node(onnx, node) for node in builder.nodes]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "jaxlab.chinese_clip", describe(inputs), describe(outputs)),
        producer_name="jaxlab",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(model, dict(metadata))
    return model


def _fill_tensor(
    onnx: Any, proto: Any, name: str, tensor: Tensor, file: BinaryIO | None, location: str
) -> None:
    """Store a value in the proto, or a large one at the end of the side file if there is one."""
    proto.name, proto.data_type = name, _element_type(onnx, tensor.dtype)
    proto.dims.extend(tensor.array.shape)
    if file is None or tensor.num_bytes < EXTERNAL_THRESHOLD:
        proto.raw_data = tensor.to_bytes()
        return
    file.write(bytes(-file.tell() % _ALIGNMENT))
    proto.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": file.tell(), "length": tensor.num_bytes}
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    file.write(tensor.to_bytes())
