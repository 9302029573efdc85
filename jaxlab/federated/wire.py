"""Trees of numbers, texts and arrays as bytes, and back, without running anything that is in them.

What comes over a network, or out of a file, is not to be trusted: the original unpickles it, which
runs whatever the sender wants. Here a text (JSON) says what the tree is, and the numbers follow as
they lie in memory::

    "jaxlab", version, length of the text, length of the numbers, CRC-32 of all the rest
    text: the tree, with the type and the shape of every array in its place
    numbers: of one array after another, little-endian, in the order in which the text names them

There are no offsets that could overlap or point elsewhere: where an array lies follows from those
before it. Lengths are checked before anything is made: an array takes the memory that its bytes
did, and nothing is decompressed. The checksum finds accidents, not forgers: against those a
connection needs TLS.

References:
  `federatedscope/core/message.py` of FederatedScope 0.3.0 (base64 of pickles).
"""

import dataclasses
import json
import math
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign.files import replacing
from jaxlab.federated.messages import Message, check_content

VERSION = 1
MAX_BYTES = 1 << 31
"""What `unpack` takes if it is not told otherwise: 2 GiB."""
MAX_HEADER_BYTES = 1 << 24
"""Of the text; long lists of numbers belong into an array."""
MAX_FILE_HEADER_BYTES = 1 << 30
"""The same in a file of one's own."""
MAX_DEPTH = 64
"""Of trees in trees."""
MAX_DIMENSIONS = 32

Bytes = bytes | bytearray | memoryview

_MAGIC = b"jaxlab"
_PREFIX = struct.Struct("<6sHIQI")
_CHECKED = struct.Struct("<HIQ")

_NATIVE = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_EXTENDED = (
    *("bfloat16", "int1", "int2", "int4", "uint1", "uint2", "uint4"),
    *("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e3m4", "float8_e4m3"),
    *("float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
)
_DTYPES = {name: np.dtype(name) for name in _NATIVE} | {
    name: np.dtype(getattr(ml_dtypes, name)) for name in _EXTENDED if hasattr(ml_dtypes, name)
}
_KEY_WORDS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_MESSAGE_FIELDS = {field.name for field in dataclasses.fields(Message)}


class WireError(ValueError):
    """Bytes that are no tree, or a tree that may not become bytes."""


class _Tagged(NamedTuple):
    """What JSON has no form for: `{"tuple": [...]}`, `{"array": ["float32", [2, 3]]}` ..."""

    tag: str
    value: Any


def pack(tree: Any) -> bytes:
    """The bytes of a tree.

    Args:
      tree: of None, bool, int, float (not finite, too), str, bytes, NumPy and JAX arrays and
        scalars of numbers or bools (bfloat16 and its like, too), keys of `jax.random.key`, lists,
        tuples, and dicts whose keys are all texts or all integers.

    Raises:
      TypeError: naming the place of the first thing that is something else.
      WireError: (a ValueError) if the tree is too deep, or has too much that is not in arrays.

    Example:
      >>> unpack(pack({"loss": 0.5, "sizes": (1, 2)}))
      {'loss': 0.5, 'sizes': (1, 2)}
    """
    return b"".join(_parts(tree, MAX_HEADER_BYTES))


def packed_size(tree: Any) -> int:
    """`len(pack(tree))`, counted without making the bytes.

    Args:
      tree: as for `pack`; `jax.ShapeDtypeStruct` may stand for arrays.
    """
    header, buffers = _describe(tree, MAX_HEADER_BYTES)
    return _PREFIX.size + len(header) + sum(_num_bytes(buffer) for buffer in buffers)


def unpack(data: Bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """The tree that `pack` has made bytes of; arrays are NumPy arrays of one's own.

    Named tuples come back as tuples, mappings as dicts, JAX arrays as NumPy arrays.

    Args:
      data: what was received.
      max_bytes: of data that is accepted.

    Raises:
      WireError: (a ValueError) if the data is too large, truncated, changed on the way, of another
        version, or made by somebody who means harm.
    """
    return _unpack(memoryview(data).cast("B"), max_bytes, MAX_HEADER_BYTES)


def save_tree(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree to a file, which appears whole or not at all; arrays are not copied for it.

    Args:
      path: the file; an older one is replaced.
      tree: as for `pack`.

    Raises:
      TypeError, WireError: as `pack`.
    """
    with replacing(Path(path)) as file:
        for part in _parts(tree, MAX_FILE_HEADER_BYTES):
            file.write(part)


def load_tree(path: str | os.PathLike[str]) -> Any:
    """Reads the tree of a file; its arrays lie in the file, which is mapped, and are read-only.

    Args:
      path: a file that `save_tree` has written.

    Raises:
      FileNotFoundError: if there is none.
      WireError: (a ValueError) naming the file, if it is truncated, changed or something else.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    try:
        return _unpack(memoryview(data), size, MAX_FILE_HEADER_BYTES, copy=False)
    except WireError as error:
        raise WireError(f"{path}: {error}") from error


def pack_message(message: Message) -> bytes:
    """The bytes of a message.

    Raises:
      TypeError: if its content may not be in a message, see `check_content`.
    """
    check_content(message.content)
    fields = {name: getattr(message, name) for name in sorted(_MESSAGE_FIELDS)}
    return pack(fields | {"receivers": list(message.receivers)})


def unpack_message(data: Bytes, *, max_bytes: int = MAX_BYTES) -> Message:
    """The message that `pack_message` has made bytes of.

    Args:
      data: what was received.
      max_bytes: of data that is accepted.

    Raises:
      WireError: (a ValueError) as `unpack`, and if it is no message.
    """
    fields = unpack(data, max_bytes=max_bytes)
    if not isinstance(fields, dict) or fields.keys() != _MESSAGE_FIELDS:
        raise WireError(f"the data is no message; one has the fields {sorted(_MESSAGE_FIELDS)}")
    receivers = fields["receivers"]
    numbers = {n: fields[n] for n in ("sender", "round", "time_us", "serial", "request")}
    wrong = [name for name, value in numbers.items() if type(value) is not int]
    wrong += [] if isinstance(fields["type"], str) else ["type"]
    if not isinstance(receivers, list) or any(type(r) is not int for r in receivers):
        wrong.append("receivers")
    if wrong:
        raise WireError(f"fields of the message are of another type: {', '.join(wrong)}")
    try:
        check_content(fields["content"])
    except TypeError as error:
        raise WireError(str(error)) from error
    return Message(**fields | {"receivers": tuple(receivers)})


def name_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of any pytree by their path, such as `params/Dense_0/kernel`.

    What a tree is made of (the state of an optimizer, say) does not go over a wire; the one who
    receives it knows, see `restore_leaves`.

    Raises:
      WireError: (a ValueError) if two leaves have the same path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
    if len(named) < len(leaves):
        raise WireError(f"{len(leaves)} leaves have {len(named)} different paths; rename some")
    return named


def restore_leaves(named: Any, target: PyTree, what: str = "the tree") -> PyTree:
    """Puts leaves into the structure that they had.

    Args:
      named: path -> leaf, as `name_leaves` gives it.
      target: a tree of that structure, of arrays or `jax.ShapeDtypeStruct` of the same shapes and
        types.
      what: the tree is called in errors.

    Raises:
      WireError: (a ValueError) listing every path that is missing, unexpected, or of another shape
        or type.
    """
    if not isinstance(named, Mapping):
        raise WireError(f"{what}: got a {type(named).__name__}; wanted a dict of names and arrays")
    wanted = name_leaves(target)
    problems = [f"{name} is missing" for name in wanted if name not in named]
    problems += [f"{name} is unexpected" for name in named if name not in wanted]
    for name, leaf in wanted.items():
        got, want = _form(named.get(name, leaf)), _form(leaf)
        if got != want:
            problems.append(f"{name} is {got} and should be {want}")
    if problems:
        raise WireError(f"{what} does not fit: " + "; ".join(problems))
    return jax.tree.unflatten(jax.tree.structure(target), [named[name] for name in wanted])


# From a tree to its text and its numbers.


def _parts(tree: Any, max_header: int) -> list[Bytes]:
    """What makes the bytes of a tree, one after another."""
    header, buffers = _describe(tree, max_header)
    raw = [_raw(buffer) for buffer in buffers]
    lengths = VERSION, len(header), sum(len(part) for part in raw)
    return [_PREFIX.pack(_MAGIC, *lengths, _checksum(lengths, [header, *raw])), header, *raw]


def _describe(tree: Any, max_header: int) -> tuple[bytes, list[Any]]:
    """The text of a tree, and what its numbers are taken from."""
    buffers: list[Any] = []
    node = _node(tree, "tree", 0, buffers)
    try:
        header = json.dumps(node, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise WireError(f"the tree has a number that no text holds: {error}") from error
    if len(header) > max_header:
        raise WireError(
            f"what is not in arrays takes {len(header)} bytes; at most {max_header} may: put long "
            "lists of numbers into arrays"
        )
    return header, buffers


def _node(value: Any, path: str, depth: int, buffers: list[Any]) -> Any:
    """The JSON form of a value."""
    if depth > MAX_DEPTH:
        raise WireError(f"trees in trees are more than {MAX_DEPTH} deep: {path[:80]}...")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        buffers.append(bytes(value))
        return {"bytes": len(value)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and not isinstance(value, np.float64):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, np.generic | np.ndarray | jax.Array | jax.ShapeDtypeStruct):
        return _array_node(value, path, buffers)
    if isinstance(value, list | tuple):
        nodes = [_node(v, f"{path}[{n}]", depth + 1, buffers) for n, v in enumerate(value)]
        return nodes if isinstance(value, list) else {"tuple": nodes}
    if isinstance(value, Mapping):
        keys = [_key(key, path) for key in value]
        if len({type(key) for key in keys}) > 1:
            raise TypeError(f"{path} has keys of both kinds, texts and integers; use one")
        pairs = zip(keys, value.values(), strict=True)
        return {"dict": [[k, _node(v, f"{path}[{k!r}]", depth + 1, buffers)] for k, v in pairs]}
    raise TypeError(
        f"{path} is a {type(value).__name__}; bytes are made of numbers, texts, lists, tuples, "
        "dicts and arrays"
    )


def _key(key: Any, path: str) -> str | int:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return int(key)
    raise TypeError(f"{path} has the key {key!r}, a {type(key).__name__}; use texts or integers")


def _array_node(value: Any, path: str, buffers: list[Any]) -> Any:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        words = np.asarray(jax.random.key_data(value))
        buffers.append(words)
        return {"key": [str(jax.random.key_impl(value)), list(words.shape)]}
    name = value.dtype.name
    if name not in _DTYPES:
        raise TypeError(
            f"{path} is an array of {value.dtype}; the types that have bytes are "
            f"{', '.join(_DTYPES)}"
        )
    buffers.append(value)
    if isinstance(value, np.generic):
        return {"scalar": name}
    return {"array": [name, list(value.shape)]}


def _num_bytes(buffer: Any) -> int:
    if isinstance(buffer, bytes):
        return len(buffer)
    return math.prod(buffer.shape) * _DTYPES[buffer.dtype.name].itemsize


def _raw(buffer: Any) -> memoryview:
    """The little-endian bytes of an array, without a copy where it lies so already."""
    if isinstance(buffer, bytes):
        return memoryview(buffer)
    if isinstance(buffer, jax.ShapeDtypeStruct):
        raise TypeError("a jax.ShapeDtypeStruct has no numbers; only packed_size takes it")
    array = np.ascontiguousarray(buffer).reshape(-1)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.byteswap()
    return array.view(np.uint8).data


def _checksum(lengths: tuple[int, int, int], parts: Sequence[Bytes]) -> int:
    value = zlib.crc32(_CHECKED.pack(*lengths))
    for part in parts:
        value = zlib.crc32(part, value)
    return value


# From bytes to a tree.


def _unpack(data: memoryview, max_bytes: int, max_header: int, *, copy: bool = True) -> Any:
    header, body = _open(data, max_bytes, max_header)
    reader = _Reader(body, copy)
    try:
        tree = reader.build(_parse(header), 0)
    except RecursionError as error:
        raise WireError("trees in the data are too deep") from error
    if reader.position != len(body):
        raise WireError(
            f"the data holds {len(body)} bytes of numbers and its text tells of {reader.position}"
        )
    return tree


def _open(data: memoryview, max_bytes: int, max_header: int) -> tuple[bytes, memoryview]:
    """The text and the numbers, once lengths and checksum are right."""
    if len(data) > max_bytes:
        raise WireError(f"the data has {len(data)} bytes; at most {max_bytes} are accepted")
    if len(data) < _PREFIX.size:
        raise WireError(f"the data has {len(data)} bytes, less than a beginning: it is truncated")
    magic, version, num_header, num_body, checksum = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise WireError(f"the data begins with {bytes(magic)!r} instead of {_MAGIC!r}")
    if version != VERSION:
        raise WireError(
            f"the data is of version {version}; this is version {VERSION}: let both sides run the "
            "same"
        )
    wanted = _PREFIX.size + num_header + num_body
    if wanted != len(data):
        state = "truncated" if len(data) < wanted else "followed by something else"
        raise WireError(f"the data has {len(data)} bytes instead of {wanted}: it is {state}")
    if num_header > max_header:
        raise WireError(f"the text has {num_header} bytes; at most {max_header} are accepted")
    if _checksum((version, num_header, num_body), [data[_PREFIX.size :]]) != checksum:
        raise WireError("the checksum of the data is wrong: it was changed on the way")
    start = _PREFIX.size + num_header
    return bytes(data[_PREFIX.size : start]), data[start:]


def _parse(header: bytes) -> Any:
    def tag(pairs: list[tuple[str, Any]]) -> _Tagged:
        if len(pairs) != 1:
            raise WireError(f"the text has an object of {len(pairs)} names; each has one")
        return _Tagged(*pairs[0])

    def refuse(constant: str) -> None:
        raise WireError(f"the text has {constant}, which is no JSON")

    try:
        return json.loads(header.decode("ascii"), object_pairs_hook=tag, parse_constant=refuse)
    except WireError:
        raise
    except ValueError as error:
        raise WireError(f"the text is no JSON: {error}") from error


class _Reader:
    """Builds a tree from its text, and takes its numbers from the front of what is left."""

    def __init__(self, body: memoryview, copy: bool) -> None:
        self.body, self.copy, self.position = body, copy, 0

    def build(self, node: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise WireError(f"trees in the data are more than {MAX_DEPTH} deep")
        if isinstance(node, list):
            return [self.build(part, depth + 1) for part in node]
        if not isinstance(node, _Tagged):
            return node
        match node:
            case ("tuple", list() as parts):
                return tuple(self.build(part, depth + 1) for part in parts)
            case ("dict", list() as pairs):
                return self.dict(pairs, depth + 1)
            case ("array", [str() as name, list() as shape]):
                return self.array(name, shape)
            case ("scalar", str() as name):
                return self.array(name, [])[()]
            case ("key", [str() as impl, list() as shape]):
                return self.key(impl, shape)
            case ("bytes", int() as count) if not isinstance(count, bool):
                return bytes(self.take(count))
            case ("float", str() as text) if text in _NON_FINITE:
                return _NON_FINITE[text]
        raise WireError(f"the text has {str(node.value)[:80]} for {node.tag!r}")

    def dict(self, pairs: list[Any], depth: int) -> dict[Any, Any]:
        built: dict[Any, Any] = {}
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) not in (str, int):
                raise WireError(f"the text has {str(pair)[:80]} for an entry of a dict")
            if pair[0] in built:
                raise WireError(f"the text has the key {pair[0]!r} of a dict twice")
            built[pair[0]] = self.build(pair[1], depth)
        if len({type(key) for key in built}) > 1:
            raise WireError("the text has a dict whose keys are texts and integers")
        return built

    def array(self, name: str, shape: list[Any]) -> np.ndarray:
        dtype = _DTYPES.get(name)
        if dtype is None:
            raise WireError(f"the data has an array of {name[:80]!r}; known are {list(_DTYPES)}")
        if len(shape) > MAX_DIMENSIONS or any(type(d) is not int or d < 0 for d in shape):
            raise WireError(f"the data has an array of the shape {str(shape)[:80]}")
        # Without the zeros, too: NumPy refuses an empty array of axes that are too long.
        if math.prod(max(d, 1) for d in shape) * dtype.itemsize > sys.maxsize:
            raise WireError(f"the data has an array of the shape {str(shape)[:80]}")
        count = math.prod(shape)
        raw = self.take(count * dtype.itemsize)
        if name == "bool" and count and np.frombuffer(raw, np.uint8).max() > 1:
            raise WireError("the data has a bool that is neither 0 nor 1")
        array = np.frombuffer(raw, dtype, count).reshape(shape)
        if sys.byteorder == "big":
            return array.byteswap()
        return array.copy() if self.copy else array

    def key(self, impl: str, shape: list[Any]) -> jax.Array:
        if not shape or shape[-1] != _KEY_WORDS.get(impl):
            raise WireError(f"the data has a key {impl[:80]!r} of the shape {str(shape)[:80]}")
        return jax.random.wrap_key_data(jnp.asarray(self.array("uint32", shape)), impl=impl)

    def take(self, count: int) -> memoryview:
        left = len(self.body) - self.position
        if not 0 <= count <= left:
            raise WireError(f"the text tells of {count} bytes where {left} are left")
        start, self.position = self.position, self.position + count
        return self.body[start : self.position]


def _form(leaf: Any) -> str:
    """Type and shape of a leaf, for comparisons and errors."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return f"{dtype} {tuple(np.shape(leaf))}"
