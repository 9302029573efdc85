"""TensorFlow's checkpoints (V2: an index and one or more files of data), without TensorFlow.

The index is a table of sorted keys, in blocks with a checksum each: under "" a header, under the
name of a variable its type, shape, file, offset and size. The data are the values one after the
other. Checkpoints of Google's BERT (`bert_model.ckpt.index`, `bert_model.ckpt.data-00000-of-00001`)
are of this form; the `.meta` beside them, which describes a graph, is not read.

References:
  `tensorflow/core/util/tensor_bundle`, `tensorflow/core/lib/io/table_format.txt`,
  `tensorflow/core/protobuf/tensor_bundle.proto`.
"""

import functools
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab.checkpoints.foreign.protobuf import message_fields, varint

INDEX = ".index"

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER, _TRAILER = 48, 5
_PLAIN = 0  # type of a block that is not compressed
_CRC_MASK = 0xA282EAD8
_LITTLE_ENDIAN = 0
_STRING = 7
_DTYPES = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    14: jnp.bfloat16,
    17: np.uint16,
    19: np.float16,
    22: np.uint32,
    23: np.uint64,
}


class _Entry(NamedTuple):
    """Where a variable lies.

    Attributes:
      dtype: number of its type.
      shape: its axes.
      shard: number of its file.
      offset: first byte.
      size: bytes.
      is_sliced: whether it is stored in several pieces.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    is_sliced: bool


def read_tensor_bundle(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Maps a checkpoint of TensorFlow. Its files must stay unchanged while the arrays are used.

    The checksums of the index are compared; those of the data are not. Variables of text (such as
    the graph of objects of TensorFlow 2) are left out.

    Args:
      prefix: what the names of its files begin with (`bert_model.ckpt`), or its index.

    Returns:
      Name -> read-only array that shares memory with the mapped file.

    Raises:
      FileNotFoundError: if a file is missing; all missing ones are named.
      ValueError: if the index is none, damaged or compressed, or a variable does not fit its file
        or is stored in pieces.
    """
    base = os.fspath(prefix).removesuffix(INDEX)
    index = Path(base + INDEX)
    if not index.is_file():
        raise FileNotFoundError(
            f"{index} does not exist; give what the names of a checkpoint's files begin with, such "
            "as bert_model.ckpt"
        )
    try:
        table = dict(_table(_mapped(index)))
        num_shards = _header(table.pop(b"", memoryview(b"")))
        entries = {key.decode("utf-8"): _entry(value) for key, value in table.items()}
    except (ValueError, IndexError, struct.error) as error:
        raise ValueError(
            f"{index} is no index of a TensorFlow checkpoint, damaged or of another kind: {error}"
        ) from error
    paths = [Path(f"{base}.data-{i:05d}-of-{num_shards:05d}") for i in range(num_shards)]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{index} speaks of {missing}, which do not exist")
    shards = [_mapped(path) for path in paths]
    found = {}
    for name, entry in entries.items():
        if entry.dtype != _STRING:
            found[name] = _array(name, entry, paths, shards)
    return found


def _mapped(path: Path) -> memoryview:
    if not path.stat().st_size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a sorted table."""
    footer = data[-_FOOTER:]
    if bytes(footer[-len(_MAGIC) :]) != _MAGIC:
        raise ValueError("it does not end as one")
    _, at = _handle(footer, 0)  # of what describes the table
    place, _ = _handle(footer, at)
    for _, value in _block(data, *place):
        yield from _block(data, *_handle(value, 0)[0])


def _handle(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where they end."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a block; a key has only what it does not share with the one before."""
    end = offset + size
    if end + _TRAILER > len(data):
        raise ValueError(f"a block ends at byte {end + _TRAILER}, after the file")
    kind, masked = struct.unpack("<BI", data[end : end + _TRAILER])
    if kind != _PLAIN:
        raise ValueError(f"a block is compressed (type {kind})")
    if _mask(_crc32c(data[offset : end + 1])) != masked:
        raise ValueError(f"the block at byte {offset} does not have its checksum")
    block = data[offset:end]
    (num_restarts,) = struct.unpack("<I", block[-4:])
    last, key, at = size - 4 * (num_restarts + 1), b"", 0
    while at < last:
        shared, at = varint(block, at)
        length, at = varint(block, at)
        value_length, at = varint(block, at)
        key = key[:shared] + bytes(block[at : at + length])
        at += length
        yield key, block[at : at + value_length]
        at += value_length


def _header(value: memoryview) -> int:
    """The number of files of data."""
    header = dict(message_fields(value))
    if header.get(2, _LITTLE_ENDIAN) != _LITTLE_ENDIAN:
        raise ValueError("its numbers are big-endian")
    num_shards = header.get(1, 0)
    if not isinstance(num_shards, int) or num_shards < 1:
        raise ValueError(f"its header names {num_shards} files of data")
    return num_shards


def _entry(value: memoryview) -> _Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0}
    shape: list[int] = []
    is_sliced = False
    for number, field in message_fields(value):
        if number in numbers and isinstance(field, int):
            numbers[number] = field
        elif number == 2 and isinstance(field, memoryview):
            axes = [v for n, v in message_fields(field) if n == 2 and isinstance(v, memoryview)]
            for axis in axes:
                size = dict(message_fields(axis)).get(1, 0)
                assert isinstance(size, int), "a number by the format"
                shape.append(size)
        elif number == 7:
            is_sliced = True
    return _Entry(numbers[1], tuple(shape), numbers[3], numbers[4], numbers[5], is_sliced)


def _array(name: str, entry: _Entry, paths: list[Path], shards: list[memoryview]) -> np.ndarray:
    if entry.is_sliced:
        raise ValueError(f"{name!r} is stored in pieces, which are not read; save it whole")
    if entry.dtype not in _DTYPES:
        raise ValueError(f"{name!r} is of type {entry.dtype}; {sorted(_DTYPES)} are read")
    if entry.shard >= len(shards):
        raise ValueError(f"{name!r} is in file {entry.shard} of {len(shards)}")
    dtype = np.dtype(_DTYPES[entry.dtype])
    needed = math.prod(entry.shape) * dtype.itemsize
    raw = shards[entry.shard][entry.offset : entry.offset + entry.size]
    if not needed == entry.size == raw.nbytes:
        raise ValueError(
            f"{paths[entry.shard]} has {raw.nbytes} bytes of {name!r}, its index says {entry.size} "
            f"and {entry.shape} of {dtype} need {needed}: the file is cut off or of another index"
        )
    return np.frombuffer(raw, dtype).reshape(entry.shape)


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _crc32c(data: memoryview) -> int:
    """Castagnoli's checksum."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in bytes(data):
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _mask(crc: int) -> int:
    """A checksum as it is stored: rotated, and with a constant added."""
    return (((crc >> 15) | (crc << 17)) + _CRC_MASK) & 0xFFFFFFFF
