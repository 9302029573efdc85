"""The pickle inside a torch zip file, read and written without torch and without executing it.

A pickle is a small program that may call any importable function. The reader here first looks over
the program and takes only the instructions that build plain values; it then resolves a few globals
(tensor rebuilders, storage types, ordered dicts, sizes, and the NumPy scalars that trainers leave
in optimizer states) to functions of its own, and refuses every other one by name. The pickle of a
TorchScript archive is read in the same way, its modules as inert objects that hold attributes.
"""

import contextlib
import io
import math
import operator
import pickle
import pickletools
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpy as np

BFLOAT16 = np.dtype(jnp.bfloat16)

STORAGE_DTYPES: Mapping[str, np.dtype] = {
    "BFloat16Storage": BFLOAT16,
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "ShortStorage": np.dtype(np.int16),
}
"""Names of torch's storage classes and the dtype of their elements."""

_SCALAR_KINDS = "biuf"
_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
    LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
    BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT
    SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID PUT BINPUT LONG_BINPUT MEMOIZE GET
    BINGET LONG_BINGET
    """.split()
)
_SCRIPT_OPCODES = _OPCODES | {"NEWOBJ"}


@dataclass(frozen=True)
class StorageRef:
    """A storage as the pickle names it: which member of the archive, of which type and length.

    Attributes:
      key: name of the member under `data/`.
      dtype: element type.
      num_elements: length in elements.
    """

    key: str
    dtype: np.dtype
    num_elements: int


LoadStorage = Callable[[StorageRef], np.ndarray]
"""Gives the flat elements of a storage."""


@dataclass(frozen=True)
class _StorageType:
    """What the global `torch FloatStorage` becomes: a tag that cannot be called."""

    dtype: np.dtype


class _ScalarDtype:
    """What `numpy dtype` becomes: a type code and a byte order, checked when a scalar is built."""

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: Sequence[object]) -> None:
        self.order = str(state[1])

    def resolve(self) -> np.dtype:
        if self.order not in ("<", ">", "|", "="):
            raise ValueError(f"NumPy scalar of byte order {self.order!r}; '<', '>' or '|' expected")
        dtype = np.dtype(self.code)
        if dtype.kind not in _SCALAR_KINDS:
            raise ValueError(
                f"NumPy scalar of type {self.code!r}; only booleans, integers and floats are read"
            )
        return dtype.newbyteorder("<" if self.order == "=" else self.order)


def _numpy_scalar(dtype: _ScalarDtype, data: bytes = b"") -> np.generic:
    if not isinstance(dtype, _ScalarDtype) or not isinstance(data, bytes):
        raise ValueError("a NumPy scalar is not made of a NumPy dtype and bytes")
    resolved = dtype.resolve()
    if len(data) != resolved.itemsize:
        raise ValueError(f"NumPy scalar {resolved} of {len(data)} bytes, not {resolved.itemsize}")
    return np.frombuffer(data, resolved).astype(resolved.newbyteorder("="))[0]


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    # How pickle protocol 2 writes bytes. Other codecs could be made to do work, so they are not.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}; only 'latin1' is read")
    return text.encode("latin1")


def _size(*args: Any) -> tuple[int, ...]:
    return tuple(*args)


def _parameter(data: np.ndarray, *_: object) -> np.ndarray:
    return data


def _check_view(
    length: int,
    offset: SupportsIndex,
    size: Sequence[SupportsIndex],
    stride: Sequence[SupportsIndex],
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    numbers = [operator.index(n) for n in (offset, *size, *stride)]
    if len(size) != len(stride) or min(numbers) < 0 or max(numbers) > sys.maxsize:
        raise ValueError(f"tensor of size {size}, stride {stride} and offset {offset} is malformed")
    start, shape, step = numbers[0], tuple(numbers[1 : 1 + len(size)]), numbers[1 + len(size) :]
    last = start + sum((n - 1) * s for n, s in zip(shape, step, strict=True))
    if math.prod(shape) and last >= length:
        raise ValueError(
            f"tensor of size {shape}, stride {tuple(step)} and offset {start} reaches element "
            f"{last} of a storage of {length}"
        )
    return start, shape, tuple(step)


def strided_view(
    storage: np.ndarray,
    offset: SupportsIndex,
    size: Sequence[SupportsIndex],
    stride: Sequence[SupportsIndex],
) -> np.ndarray:
    """A read-only view of a flat storage, as a torch tensor sees it.

    Args:
      storage: the elements, one axis.
      offset: first element of the view.
      size: shape of the view.
      stride: step between neighbours along each axis, in elements.

    Returns:
      An array of shape `size` that shares memory with `storage`.

    Raises:
      ValueError: if the view is malformed or leaves the storage.
    """
    start, shape, step = _check_view(len(storage), offset, tuple(size), tuple(stride))
    if not math.prod(shape):
        return np.zeros(shape, storage.dtype)
    return np.lib.stride_tricks.as_strided(
        storage[start:], shape, tuple(s * storage.itemsize for s in step), writeable=False
    )


def _rebuild_tensor(
    storage: np.ndarray, offset: SupportsIndex, size: Any, stride: Any, *_: object
) -> np.ndarray:
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise ValueError("a tensor is built from something that is not a storage")
    return strided_view(storage, offset, size, stride)


_GLOBALS: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("numpy", "dtype"): _ScalarDtype,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("_codecs", "encode"): _encode_latin1,
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
}


class _Module:
    """What every class of a TorchScript program becomes: attributes by name, and no behaviour."""

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.attributes = dict(state)


def _plain_value(value: object, *_: object) -> object:
    return value


_SCRIPT_GLOBALS: Mapping[tuple[str, str], object] = {
    ("torch", "device"): _plain_value,
    **{
        ("torch.jit._pickle", name): _plain_value
        for name in (
            *("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist"),
            "restore_type_tag",
        )
    },
}
"""Typed lists and devices that modules keep beside their tensors."""

_MAX_MODULES = 10_000


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, load_storage: LoadStorage) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for the global {module}.{name}, and only tensors, storages, ordered "
                "dicts and NumPy scalars are built. If you trust the file, keep only its weights "
                "with torch: torch.save(torch.load(OLD, map_location='cpu', weights_only=False)"
                "['state_dict'], NEW)"
            ) from None

    def persistent_load(self, pid: Any, /) -> np.ndarray:
        match pid:
            # The older form of files has a sixth entry, which says what a view is a view of.
            case ("storage", _StorageType() as kind, str() as key, str(), int() as length, *view):
                if any(view):
                    raise pickle.UnpicklingError(f"storage {key!r} is a view of another one")
                if length < 0:
                    raise pickle.UnpicklingError(f"storage {key!r} has length {length}")
                return self._load_storage(StorageRef(key, kind.dtype, length))
        raise pickle.UnpicklingError(f"persistent id {pid!r} is not a storage")


class _ScriptUnpickler(_Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Module
        return _SCRIPT_GLOBALS.get((module, name)) or super().find_class(module, name)


def _check_program(data: bytes, opcodes: Set[str] = _OPCODES) -> None:
    """Refuses instructions that no torch pickle has, and memo numbers that only cost memory."""
    for opcode, argument, at in pickletools.genops(data):
        if opcode.name not in opcodes:
            raise ValueError(f"instruction {opcode.name} at byte {at} is not one of torch's")
        if "PUT" in opcode.name and int(argument or 0) > len(data):
            raise ValueError(f"{opcode.name} {argument} at byte {at} is out of range")


def load(data: bytes, load_storage: LoadStorage) -> Any:
    """What a torch pickle holds, with arrays for tensors.

    Args:
      data: the pickle (`data.pkl` of the archive).
      load_storage: gives the flat elements of a storage.

    Returns:
      Dicts, lists, tuples, numbers, strings and read-only arrays, nested as they were.

    Raises:
      ValueError: if the pickle is damaged, or asks for anything that is not listed above.
    """
    with _readable_errors():
        _check_program(data)
        return _Unpickler(data, load_storage).load()


def load_script(data: bytes, load_storage: LoadStorage) -> dict[str, np.ndarray]:
    """The tensors of a TorchScript module, under the names of its `state_dict()`.

    The classes of the program become inert objects that hold attributes; its code is not looked at.

    Args:
      data: the pickle (`data.pkl` of the archive).
      load_storage: gives the flat elements of a storage.

    Returns:
      Name -> read-only array: the path of attributes to every tensor, joined by dots.

    Raises:
      ValueError: if the pickle is damaged, is no module, or asks for anything but modules, tensors
        and plain values.
    """
    with _readable_errors():
        _check_program(data, _SCRIPT_OPCODES)
        root = _ScriptUnpickler(data, load_storage).load()
        if not isinstance(root, _Module):
            raise ValueError(f"it holds a {type(root).__name__}, and a module is expected")
        return _module_tensors(root)


def _module_tensors(root: _Module) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    todo, num_modules = [("", root)], 0
    while todo:
        prefix, module = todo.pop()
        num_modules += 1
        # A module may occur at several places; one that holds itself would never end.
        if num_modules > _MAX_MODULES:
            raise ValueError(f"it has more than {_MAX_MODULES} modules within modules")
        for name, value in getattr(module, "attributes", {}).items():
            if isinstance(value, np.ndarray):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                todo.append((f"{prefix}{name}.", value))
    return tensors


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """Turns all that a damaged pickle can cause into one kind of error."""
    try:
        yield
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"its pickle cannot be read: {error}") from error


def dump(tree: Any) -> tuple[bytes, list[np.ndarray]]:
    """The pickle that `torch.save` would write for nested dicts, lists, tuples and arrays.

    Args:
      tree: dicts, lists, tuples, strings, numbers, booleans, None and arrays.

    Returns:
      The pickle, and the arrays in the order of their storage keys `"0"`, `"1"`, ...

    Raises:
      TypeError: if a value has no form in torch.
    """
    out, arrays = bytearray(pickle.PROTO + b"\x02"), []
    _emit(tree, out, arrays)
    return bytes(out + pickle.STOP), arrays


def _emit(value: Any, out: bytearray, arrays: list[np.ndarray]) -> None:
    match value:
        case np.generic():
            _emit(value.item(), out, arrays)
        case None | bool() | int() | float():
            out += pickle.dumps(value, 2)[2:-1]
        case str():
            data = value.encode("utf-8")
            out += pickle.BINUNICODE + struct.pack("<I", len(data)) + data
        case Mapping():
            out += pickle.EMPTY_DICT + pickle.MARK
            for key, item in value.items():
                _emit(key, out, arrays)
                _emit(item, out, arrays)
            out += pickle.SETITEMS
        case list() | tuple():
            is_list = isinstance(value, list)
            out += pickle.EMPTY_LIST + pickle.MARK if is_list else pickle.MARK
            for item in value:
                _emit(item, out, arrays)
            out += pickle.APPENDS if is_list else pickle.TUPLE
        case np.ndarray():
            _emit_tensor(value, out, arrays)
        case _:
            raise TypeError(
                f"a {type(value).__name__} cannot be written to a torch file; dicts, lists, "
                "tuples, strings, numbers, None and NumPy arrays can"
            )


def _emit_tensor(value: np.ndarray, out: bytearray, arrays: list[np.ndarray]) -> None:
    storage = next((n for n, d in STORAGE_DTYPES.items() if d == value.dtype), None)
    if storage is None:
        raise TypeError(
            f"arrays of {value.dtype} cannot be written to a torch file; "
            f"{', '.join(sorted(str(d) for d in STORAGE_DTYPES.values()))} can"
        )
    strides = [math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim)]
    out += _global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK * 2
    _emit("storage", out, arrays)
    out += _global("torch", storage)
    _emit(str(len(arrays)), out, arrays)
    _emit("cpu", out, arrays)
    _emit(value.size, out, arrays)
    out += pickle.TUPLE + pickle.BINPERSID
    for item in (0, value.shape, tuple(strides), False):
        _emit(item, out, arrays)
    out += _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    out += pickle.TUPLE + pickle.REDUCE
    arrays.append(value)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
