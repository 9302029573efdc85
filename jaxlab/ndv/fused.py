"""Arrow columns to sketches in one pass, where Numba is installed.

Numba (of the extra `ndv`) compiles the loops of `arrow_kernels`, which read the buffers of Arrow
arrays and leave the sketch changed: nothing is copied, no hash is written to memory, and threads
share the processors. The bits are those of `streams`, which works without it and serves the types
that the loops do not know.

Compiling takes a dozen seconds, once on a machine: what is compiled stays in the cache directory
(`JAXLAB_CACHE_DIR`), from where it is loaded in a second. Neither is worth while for a small table.
So a process starts the usual way, and goes over when that has taken as long as going over will;
`prepare` compiles at once, for images of containers and measurements.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from jaxlab.ndv import bottom_k
from jaxlab.ndv.bottom_k import Held
from jaxlab.ndv.hashing import Hasher, Lanes
from jaxlab.packages import cache_dir

_LOAD_S, _COMPILE_S = 1.0, 15.0
_PIECE_ROWS = 2**18
_MAX_THREADS = 4
_SLOTS_PER_VALUE = 4
_MIN_BELOW = 1024
_LOCK = threading.Lock()
_taken_s = 0.0
State = TypeVar("State")


class BelowRows(NamedTuple):
    """The rows of a column below a threshold.

    Attributes:
      values: their values, perhaps below a lower threshold, and how many rows have each.
      heavy_rows: rows of every heavy value, which are not among the others.
      num_values: rows with a value, whether below or not.
    """

    values: Held
    heavy_rows: Int64[np.ndarray, " heavy"]
    num_values: int


class CountedRows(NamedTuple):
    """Hashes of the values of a column, ascending, and their rows."""

    words: UInt64[np.ndarray, " values"]
    rows: Int64[np.ndarray, " values"]


def prepare() -> float:
    """Compile or load the loops now; gives the seconds that took.

    Raises:
      ModuleNotFoundError: if Numba is not installed.
    """
    start = time.perf_counter()
    if not _has_numba():
        raise ModuleNotFoundError(
            "Numba is not installed; install the extra: pip install 'jaxlab[ndv]'"
        )
    _load()
    return time.perf_counter() - start


@contextlib.contextmanager
def metered() -> Iterator[None]:
    """Count the time of the body as work that the loops would have done faster."""
    global _taken_s
    start = time.perf_counter()
    try:
        yield
    finally:
        _taken_s += time.perf_counter() - start


def arrays_of(column: Any, hasher: Hasher) -> list[Any] | None:
    """The Arrow arrays of a column if the loops are worth while and know its type, else None.

    Args:
      column: NumPy array of one dimension, Arrow array or chunked array.
      hasher: the hash.
    """
    if hasher.hash_id != 0 or not is_ready():
        return None
    import pyarrow as pa

    if isinstance(column, np.ndarray):
        if column.ndim != 1 or column.dtype.kind not in "iuf" or not column.dtype.isnative:
            return None
        column = pa.array(column)
    if not isinstance(column, (pa.Array, pa.ChunkedArray)) or not _is_known(column.type):
        return None
    return list(column.chunks) if isinstance(column, pa.ChunkedArray) else [column]


def is_ready() -> bool:
    """Whether the loops are to be used: they are loaded, or that is worth while by now."""
    if _load.cache_info().currsize:
        return True
    if _taken_s < _LOAD_S or not _has_numba():
        return False
    if _taken_s < _COMPILE_S and not _marker().exists():
        return False
    _load()
    return True


def hash_rows(array: Any, hasher: Hasher) -> tuple[Lanes, int]:
    """Hashes of the values of an array in order, nulls left out, and their number.

    Args:
      array: of `arrays_of`.
      hasher: the hash.

    Returns:
      Lanes of the next power of two of the array's length; what stands behind the hashes does not
      matter.
    """
    kernels, size = _load(), 1 << max(len(array) - 1, 0).bit_length()
    lanes = Lanes(np.empty(size, np.uint32), np.empty(size, np.uint32))
    return lanes, kernels.hash_rows(*_rows_of(kernels, array), hasher.seed, *lanes)


def raise_registers(
    arrays: list[Any], hasher: Hasher, registers: UInt8[np.ndarray, " registers"]
) -> UInt8[np.ndarray, " registers"]:
    """Registers of a HyperLogLog after the rows of some arrays.

    Args:
      arrays: from `arrays_of`.
      hasher: the hash.
      registers: those before.
    """
    kernels = _load()
    zeros = np.minimum(registers, 32).astype(np.uint64)
    limits = (np.uint64(2**32 - 1) >> zeros).astype(np.uint32)

    def start() -> tuple[np.ndarray, ...]:
        return registers.copy(), limits.copy()

    def work(state: tuple[np.ndarray, ...], array: Any) -> None:
        kernels.fill_hll(*_rows_of(kernels, array), hasher.seed, *state)

    states = _in_threads(_pieces(arrays), start, work)
    return functools.reduce(np.maximum, (state[0] for state in states), registers)


def count_below(
    array: Any, hasher: Hasher, limit: int, capacity: int, heavy: UInt64[np.ndarray, " heavy"]
) -> BelowRows:
    """Count the rows of the values below a threshold, which falls when they are too many.

    Args:
      array: of `arrays_of`.
      hasher: the hash.
      limit: the threshold.
      capacity: values that are wanted, of the smallest hashes; others may be there, too.
      heavy: hashes of values that are counted apart.
    """
    kernels, (table, place) = _load(), _heavy_table(heavy)
    # A table as large as what is expected, so that few rows do not pay for many slots.
    expected = len(array) * limit >> 64
    most = min(2 * capacity, max(_MIN_BELOW, 2 * expected))
    num_slots = 1 << (2 * (most + kernels.TILE) - 1).bit_length()

    def start() -> _Below:
        heavy_rows = np.full(len(table), -1)
        heavy_rows[place] = 0
        nothing = Held(np.zeros(0, np.uint64), np.zeros(0, np.int64), limit)
        slots = np.zeros(num_slots, np.uint64), np.zeros(num_slots, np.int64)
        return _Below(nothing, *slots, heavy_rows)

    def work(state: _Below, piece: Any) -> None:
        source, first, stop = _rows_of(kernels, piece)
        while first < stop:
            assert state.values.limit is not None
            upper = np.uint32(state.values.limit >> 32)
            first, number, used = kernels.count_below(
                source, first, stop, hasher.seed, upper, state.words, state.rows, state.used, most,
                table, state.heavy_rows,
            )  # fmt: skip
            state.num_values, state.used = state.num_values + number, used
            if used > most:
                state.empty_table(2 * capacity, capacity)

    states = _in_threads(_pieces([array]), start, work)
    for state in states:
        state.empty_table(2 * capacity, capacity)
    values = functools.reduce(bottom_k.add_counts, (state.values for state in states))
    heavy_rows = sum((state.heavy_rows[place] for state in states), np.zeros(len(heavy), int))
    return BelowRows(values, heavy_rows, sum(state.num_values for state in states))


@dataclasses.dataclass
class _Below:
    """What a thread has found below its threshold: values that are sorted, and a table of more."""

    values: Held
    words: UInt64[np.ndarray, " slots"]
    rows: Int64[np.ndarray, " slots"]
    heavy_rows: Int64[np.ndarray, " heavy_slots"]
    used: int = 0
    num_values: int = 0

    def empty_table(self, most: int, capacity: int) -> None:
        """Sort what the table has; of more than `most` values keep the `capacity` smallest."""
        used = np.flatnonzero(self.rows)
        used = used[np.argsort(self.words[used])]
        more = Held(self.words[used], self.rows[used], None)
        self.values = bottom_k.add_counts(self.values, more)
        if len(self.values.words) > most:
            self.values = bottom_k.cut(self.values, capacity)
        self.rows[:], self.used = 0, 0


def count_values(array: Any, hasher: Hasher, most: int) -> list[tuple[Any, CountedRows | None]]:
    """Parts of an array, and the rows of every value in each: None if they are more than `most`.

    Args:
      array: of `arrays_of`.
      hasher: the hash.
      most: values of a part.
    """
    kernels = _load()
    num_slots = 1 << (_SLOTS_PER_VALUE * most - 1).bit_length()

    def count(piece: Any) -> CountedRows | None:
        words, rows = np.zeros(num_slots, np.uint64), np.zeros(num_slots, np.int64)
        given = _rows_of(kernels, piece)
        if kernels.count_rows(*given, hasher.seed, words, rows, most) > most:
            return None
        used = np.flatnonzero(rows)
        order = np.argsort(words[used])
        return CountedRows(words[used][order], rows[used][order])

    threads = _num_threads() if len(array) > _PIECE_ROWS else 1
    size = -(-len(array) // threads)
    pieces = [array.slice(first, size) for first in range(0, len(array), size)]
    if threads == 1:
        return [(piece, count(piece)) for piece in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return list(zip(pieces, pool.map(count, pieces), strict=True))


@functools.cache
def _load() -> ModuleType:
    """The loops, compiled: each is run once."""
    with _LOCK:  # threads may ask at the same time
        return _compile()


def _compile() -> ModuleType:
    from jaxlab.ndv import arrow_kernels as kernels

    nothing = _bytes(None)
    given = (kernels.Source(kernels.INT64, nothing, nothing, nothing, 0, 0), 0, 0, 0)
    words, rows = np.zeros(2, np.uint64), np.zeros(2, np.int64)
    limits = np.zeros(16, np.uint32)
    kernels.hash_rows(*given, limits, limits)
    kernels.fill_hll(*given, np.zeros(16, np.uint8), limits)
    kernels.count_below(*given, np.uint32(0), words, rows, 0, 1, words, rows)
    kernels.count_rows(*given, words, rows, 1)
    with contextlib.suppress(OSError):  # then the next process takes longer
        _marker().parent.mkdir(parents=True, exist_ok=True)
        _marker().touch()
    return kernels


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _marker() -> Path:
    """A file that exists where the loops of this version were compiled before."""
    source = Path(__file__).with_name("arrow_kernels.py")
    code = source.read_bytes() if source.exists() else b""
    versions = f"{importlib.metadata.version('numba')} {platform.python_version()}"
    name = hashlib.sha256(code + versions.encode()).hexdigest()[:16]
    return cache_dir() / "numba" / f"{name}.compiled"


def _is_known(kind: Any) -> bool:
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_decimal128(kind):
        return -128 <= kind.scale <= 127
    is_number = types.is_integer(kind) or kind in (pa.float32(), pa.float64())
    is_time = types.is_temporal(kind) and not types.is_date64(kind) and not types.is_interval(kind)
    return is_number or is_time or kind in (pa.string(), pa.binary()) or _is_large_text(kind)


def _is_large_text(kind: Any) -> bool:
    import pyarrow as pa

    return kind in (pa.large_string(), pa.large_binary())


def _rows_of(kernels: ModuleType, array: Any) -> tuple[Any, int, int]:
    """An array as arguments of a loop: its buffers, and the first and the last row."""
    import pyarrow as pa
    import pyarrow.types as types

    kind = array.type
    if types.is_integer(kind) and kind.bit_width < 64 and kind != pa.int32():
        array, kind = array.cast(pa.int64()), pa.int64()
    elif kind == pa.float32():
        array, kind = array.cast(pa.float64()), pa.float64()
    nothing, scale = _bytes(None), 0
    bits, *others = array.buffers()
    values, ends, width = _bytes(others[0]), nothing, 8
    if kind == pa.float64():
        code = kernels.DOUBLE
    elif kind == pa.uint64():
        code = kernels.UINT64
    elif types.is_decimal128(kind):
        code, scale = kernels.DECIMAL, kind.scale
    elif kind in (pa.string(), pa.binary()):
        code, values, ends, width = kernels.TEXT, _bytes(others[1]), values, 4
    elif _is_large_text(kind):
        code, values, ends = kernels.LARGE_TEXT, _bytes(others[1]), values
    else:
        code, width = (kernels.INT64, 8) if kind.bit_width == 64 else (kernels.INT32, 4)
    ends = ends[: len(ends) // width * width]
    if code not in (kernels.TEXT, kernels.LARGE_TEXT):
        values = values[: len(values) // width * width]
    validity = _bytes(bits) if array.null_count else nothing
    source = kernels.Source(code, values, ends, validity, array.offset, scale)
    return source, 0, len(array)


def _bytes(buffer: Any) -> UInt8[np.ndarray, " bytes"]:
    """A buffer as bytes that cannot be written to: of one type, for which code is compiled once."""
    data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    data = data.view()
    data.flags.writeable = False
    return data


def _heavy_table(
    heavy: UInt64[np.ndarray, " heavy"],
) -> tuple[UInt64[np.ndarray, " slots"], Int64[np.ndarray, " heavy"]]:
    """A table of hashes by their lowest bits, and the slot of each; no slots for no hashes."""
    if not len(heavy):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    size = 1 << (16 * len(heavy) - 1).bit_length()
    table, is_used = np.zeros(size, np.uint64), np.zeros(size, bool)
    place = np.zeros(len(heavy), np.int64)
    for number, word in enumerate(heavy.tolist()):
        slot = word % size
        while is_used[slot]:
            slot = (slot + 1) % size
        table[slot], is_used[slot], place[number] = word, True, slot
    return table, place


def _pieces(arrays: list[Any]) -> list[Any]:
    return [
        array.slice(first, _PIECE_ROWS)
        for array in arrays
        for first in range(0, len(array), _PIECE_ROWS)
    ]


def _num_threads() -> int:
    return min(_MAX_THREADS, os.cpu_count() or 1)


def _in_threads(
    pieces: list[Any], start: Callable[[], State], work: Callable[[State, Any], None]
) -> list[State]:
    """The states of some threads that share pieces of work as they get done with them."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for piece in pieces:
        waiting.put(piece)

    def run(_: int) -> State:
        state = start()
        with contextlib.suppress(queue.Empty):
            while True:
                work(state, waiting.get_nowait())
        return state

    threads = min(_num_threads(), len(pieces))
    if threads <= 1:
        return [run(0)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))
