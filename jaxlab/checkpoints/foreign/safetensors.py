"""safetensors files, mapped into memory, with their metadata.

The format is eight bytes of header length, a JSON header, then the tensors. It is read and written
here directly because the NumPy face of the `safetensors` package has no bfloat16 and copies every
tensor on reading; the tests read each other's files both ways.
"""

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.checkpoints.foreign import files

_DTYPES: Mapping[str, np.dtype] = {
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype(np.bool_),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "U8": np.dtype(np.uint8),
}
_MAX_HEADER_BYTES = 100_000_000
_ALIGNMENT = 8


@dataclass(frozen=True)
class SafetensorsFile:
    """The content of a safetensors file.

    Attributes:
      tensors: name -> read-only array that shares memory with the mapped file.
      metadata: the free text entries of the header.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Maps a safetensors file. Opening costs no memory; the file must stay unchanged in use.

    Args:
      path: the file.

    Returns:
      Its tensors, in the order of the header, and its metadata.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is empty, truncated, longer than its header says, not a safetensors
        file, or holds a dtype that NumPy and JAX lack.
    """
    path = Path(path)
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is empty (0 bytes). Download it again")
    with path.open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header, start = _read_header(path, buffer)
    metadata = header.pop("__metadata__", {})
    tensors, end = {}, 0
    for name, entry in header.items():
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
            first, last = map(int, entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: the header entry of {name!r} is {entry!r}; {error}"
            ) from error
        count = math.prod(shape)
        if first < 0 or last - first != count * dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"{path}: {name!r} of {dtype}{shape} cannot lie in {first}:{last}")
        if start + last > size:
            raise ValueError(
                f"{path} is truncated: {name!r} ends at byte {start + last} of {size}. "
                "Download it again"
            )
        tensors[name] = _array(buffer, dtype, shape, start + first)
        end = max(end, last)
    if start + end != size:
        raise ValueError(f"{path} has {size} bytes and its header describes {start + end}")
    return SafetensorsFile(tensors, {str(k): str(v) for k, v in metadata.items()})


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | jax.Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors by name. The file appears complete or not at all.

    Tensors are written one after the other: the extra memory is that of the largest one that is
    not contiguous. The bytes depend on names, values and metadata alone.

    Args:
      path: the file to write, replaced if it exists.
      tensors: name -> array (NumPy or JAX).
      metadata: free text entries for the header.

    Raises:
      TypeError: if a dtype has no form in the format; all such tensors are named.
    """
    path = Path(path)
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    bad = {n: str(t.dtype) for n, t in tensors.items() if np.dtype(t.dtype) not in codes}
    if bad:
        raise TypeError(f"safetensors has no form for {bad}; it has {sorted(map(str, codes))}")
    # Larger elements first, so that every tensor is aligned (as the format's own writer does).
    names = sorted(tensors, key=lambda n: (-np.dtype(tensors[n].dtype).itemsize, n))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = np.dtype(tensors[name].dtype), tuple(tensors[name].shape)
        first, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": codes[dtype], "shape": shape, "data_offsets": (first, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    with files.replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = np.ascontiguousarray(tensors[name]).reshape(-1)
            file.write(flat.view(np.uint8).data)


def _read_header(path: Path, buffer: mmap.mmap) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(buffer[:8], "little")
    if len(buffer) >= 9 and (length > _MAX_HEADER_BYTES or buffer[8:9] != b"{"):
        raise ValueError(
            f"{path} is not a safetensors file: it starts with {buffer[:16]!r}, and eight bytes of "
            "header length and a '{' are expected"
        )
    if len(buffer) < 8 + length:
        raise ValueError(
            f"{path} is truncated: {len(buffer)} bytes, and its header alone has {8 + length}. "
            "Download it again"
        )
    try:
        header = json.loads(buffer[8 : 8 + length])
    except ValueError as error:
        raise ValueError(f"{path}: its header is not JSON: {error}") from error
    return header, 8 + length


def _array(buffer: mmap.mmap, dtype: np.dtype, shape: tuple[int, ...], at: int) -> np.ndarray:
    count = math.prod(shape)
    if not count:
        return np.zeros(shape, dtype)
    array = np.frombuffer(buffer, dtype, count, at).reshape(shape)
    return array if array.flags.aligned else array.copy()
