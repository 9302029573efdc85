"""The published learned estimator `estndv`: its file and its network.

Seven dense layers map 106 features of a profile to the logarithm of D / N. The file is a pickled
NumPy array of arrays; it is read here without executing anything that it says, and written as an
`npz`, which needs no pickle. The package's own weights (0.0.3, MIT) come with this library.

The network is off by a third on easy columns (its median ratio error on real columns at 1 % is
1.3); it is here to be compared with, and for those who use it.

References:
  Wu, Ding, Chu, Wei, Dai, Guan, Zhou 2022, "Learning to be a statistician: learned estimator for
  number of distinct values", VLDB 15, arXiv:2202.02800; the package estndv 0.0.3.
"""

import functools
import io
import itertools
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxlab.ndv.estimators import Estimator
from jaxlab.ndv.profile import Profile
from jaxlab.ndv.special import Numbers, namespace
from jaxlab.ndv.terms import summarize

NUM_FREQUENCIES = 100
"""Features f_1, ..., f_100; the last is always 0, since frequencies from 100 on are the tail."""
NUM_FEATURES = NUM_FREQUENCIES + 6
WIDTHS = (NUM_FEATURES,) * 6 + (53, 1)
"""Inputs of the first layer, then outputs of each."""
SOURCE = "Wu et al., VLDB 15, 2022, arXiv:2202.02800; estndv 0.0.3"

_LEAK = 0.01
_NUM_LEAKY = 5
_NPY_MAGIC = b"\x93NUMPY"
_ASSET = Path(__file__).parent / "assets" / "estndv.npz"


Features = Float[Array, "*batch features"] | Float[np.ndarray, "*batch features"]
Anything = Float[Array, "..."] | Float[np.ndarray, "..."] | np.floating


class EstndvParams(NamedTuple):
    """Weights of the network, float32.

    Attributes:
      kernels: shape (outputs, inputs) each.
      biases: shape (outputs,) each.
    """

    kernels: tuple[Float[Array | np.ndarray, "outputs inputs"], ...]
    biases: tuple[Float[Array | np.ndarray, " outputs"], ...]


def estndv(params: EstndvParams, profile: Profile) -> Numbers:
    """The network's number of distinct values, not clamped.

    Args:
      params: the weights.
      profile: one profile or a batch, NumPy or JAX. Frequencies above 99 may be in its tail only if
        it keeps 99 apart.

    Returns:
      exp(ln(N + 0.1) - y) - 0.1, and the values seen at least 100 times added, with y the output
      cut off at 0.
    """
    x, population, d_tail = _features(profile)
    xp = namespace(x)
    for layer, (kernel, bias) in enumerate(zip(params.kernels, params.biases, strict=True)):
        x = x @ xp.swapaxes(kernel, 0, 1)
        x = x + xp.reshape(bias, (1,) * (x.ndim - 1) + bias.shape)
        if layer < _NUM_LEAKY:
            x = xp.where(x > 0, x, _LEAK * x)
    log_share = -xp.maximum(x[..., 0], 0.0)
    return xp.exp(log_share + xp.log(population + 0.1)) - 0.1 + d_tail


def _features(profile: Profile) -> tuple[Features, Numbers, Numbers]:
    """ln(|x| + 1e-3) - ln(N + 0.1) of the 106 features; N; values seen at least 100 times."""
    t = summarize(profile)
    xp = namespace(t.f)
    frequency = t.i[..., None]
    wanted = np.arange(1.0, NUM_FREQUENCIES).reshape((1,) * t.i.ndim + (-1,))
    inside = frequency == wanted
    f = xp.sum(xp.where(inside, t.f[..., None], 0.0), axis=-2)
    often = xp.where(t.i >= NUM_FREQUENCIES, t.f, 0.0)
    n_tail, d_tail = xp.sum(t.i * often, axis=-1), xp.sum(often, axis=-1)
    log_size = xp.log(t.N + 0.1)
    # ln(N^2 + 1e-3) by parts: N^2 passes the range of float32.
    sizes = [2 * xp.log(t.N), _log(t.n), 2 * xp.log(t.N) - xp.log(t.n + 1e-6), _log(t.d)]
    logs = [*sizes, _log(n_tail), _log(d_tail)]
    parts = [xp.stack(logs, axis=-1), _log(f), _log(xp.zeros_like(f[..., :1]))]
    return xp.concatenate(parts, axis=-1) - log_size[..., None], t.N, d_tail


def _log(x: Anything) -> Anything:
    return namespace(x).log(x + 1e-3)


def make_estndv(params: EstndvParams) -> Estimator:
    """The network as an estimator, with the edge cases and the clamp of all of them.

    Args:
      params: the weights.
    """
    return Estimator("ESTNDV", functools.partial(estndv, params), SOURCE)


@functools.cache
def public_estndv() -> Estimator:
    """The estimator with the weights of estndv 0.0.3, which come with this library."""
    return make_estndv(load_estndv(_ASSET))


def load_estndv(path: str | Path) -> EstndvParams:
    """Weights from a file: the package's `model_paras.npy`, or an `npz` of `save_estndv`.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is neither, is broken, asks for anything but arrays of numbers, or the
        shapes are others.
    """
    data = Path(path).read_bytes()
    try:
        if data.startswith(_NPY_MAGIC):
            arrays = _read_object_array(data)
        else:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = [archive[name] for name in sorted(archive.files)]
    except (ValueError, OSError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise ValueError(
            f"{path} holds no estndv weights: {error}; wanted model_paras.npy of the package, or "
            "an npz of save_estndv"
        ) from error
    shapes = [array.shape for array in arrays]
    wanted = [shape for i, o in itertools.pairwise(WIDTHS) for shape in ((o, i), (o,))]
    if shapes != wanted:
        raise ValueError(f"{path} has arrays of shapes {shapes}; wanted {wanted}")
    arrays = [np.asarray(array, np.float32) for array in arrays]
    return EstndvParams(tuple(arrays[::2]), tuple(arrays[1::2]))


def save_estndv(path: str | Path, params: EstndvParams) -> None:
    """Writes weights as an `npz` that `load_estndv` reads.

    Args:
      path: the file, ending in `.npz`.
      params: the weights.
    """
    arrays: dict[str, np.ndarray] = {}
    for layer, (kernel, bias) in enumerate(zip(*params, strict=True)):
        arrays[f"{layer}_0_kernel"] = np.asarray(kernel)
        arrays[f"{layer}_1_bias"] = np.asarray(bias)
    np.savez_compressed(path, allow_pickle=False, **arrays)


class _Dtype:
    """What `numpy.dtype` becomes in the pickle: its code, checked when an array is built."""

    def __init__(self, code: str, *_: Any):
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


class _Array:
    """What `numpy.core.multiarray._reconstruct` becomes: an array once it has its state."""

    def __init__(self, *_: Any):
        self.value: np.ndarray | list[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.code == "O8" and isinstance(data, list):
            self.value = [item.value for item in data]
            return
        if dtype.code not in ("f4", "f8") or dtype.order not in "<=|" or is_fortran:
            raise pickle.UnpicklingError(f"an array of type {dtype.order}{dtype.code}")
        self.value = np.frombuffer(data, f"<{dtype.code}").reshape(shape)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Builds arrays of numbers and nothing else."""

    _KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,  # bytes in the oldest protocols
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a global; every other one is refused by name."""
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._KNOWN[module, name]


def _read_object_array(data: bytes) -> list[np.ndarray]:
    """The arrays inside a pickled `npy` file."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in reader:
        raise ValueError(f"npy version {version}")
    reader[version[0]](stream)
    try:
        loaded = _Unpickler(stream).load()
    except (AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"broken pickle ({error})") from error
    arrays = getattr(loaded, "value", None)
    if not isinstance(arrays, list) or not all(isinstance(one, np.ndarray) for one in arrays):
        raise ValueError("it is no array of arrays")
    return arrays
