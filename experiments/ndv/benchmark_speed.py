"""Speed of sketches beside an SQL engine's approximate count, and of estimators.

Ours and the peer's run in a process each, both with the column in memory, and take turns, so that
what else the machine does meets both.
"""

import functools
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlab import ndv
from jaxlab.ndv import bottom_k, column_records, fused, hll, registers
from jaxlab.ndv.choice import METHODS
from jaxlab.ndv.learned import find_estimator
from jaxlab.ndv.streams import hashed_blocks

THREADS = 2
NUMBERS = ("int64 few", "int64 many", "int64 unique", "double")
TEXTS = ("short text", "long text", "dictionary of text")
_PRECISION = 14
_REGISTERS_PRECISION = 13
_CAPACITY = 4096
# Smaller columns are measured as they come, without compiled loops.
_MIN_COMPILED_ROWS = 10**6
# The engine's sketch has few registers: several of its standard errors.
_PEER_ERROR, _OUR_ERROR = 0.4, 0.05


def make_column(name: str, rows: int) -> Any:
    """A column of an Arrow table, the same in every process.

    Args:
      name: one of `NUMBERS` or `TEXTS`.
      rows: its length.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rng = np.random.default_rng(0)
    many = max(rows // 20, 1)
    if name == "int64 few":
        column = pa.array(rng.integers(0, 100, rows))
    elif name == "int64 many":
        column = pa.array(rng.integers(0, many, rows))
    elif name == "int64 unique":
        column = pa.array(rng.permutation(rows))
    elif name == "double":
        column = pa.array(rng.random(rows))
    elif name == "dictionary of text":
        column = pc.cast(pa.array(rng.integers(0, 1000, rows)), pa.string()).dictionary_encode()
    else:
        column = pc.cast(pa.array(rng.integers(0, many, rows)), pa.string())
        if name == "long text":
            prefix = pa.scalar("https://example.org/a/long/common/prefix/")
            column = pc.call_function("binary_join_element_wise", [prefix, column, pa.scalar("")])
    if pa.types.is_dictionary(column.type):
        return column
    # Arrow's own allocation, aligned as what its readers give.
    return pa.concat_arrays([column.slice(0, 1), column.slice(1)])


def speed(rows: int, text_rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """Rows per second, in millions, of every column: ours, the peer's, and the ratios.

    Ratios of processor time say the same on a machine that does other things, too; they do not see
    whether work is spread over the processors.

    Args:
      rows: of the columns of numbers.
      text_rows: of the columns of texts.
      rounds: timed runs of each, of which the median counts.

    Raises:
      RuntimeError: if an answer is not the number of distinct values within the error of its
        sketch.
    """
    found = {}
    with _Worker(_ours) as ours, _Worker(_duckdb) as peer:
        for name in (*NUMBERS, *TEXTS):
            size = rows if name in NUMBERS else text_rows
            truth = ours.ask("load", name, size)
            peer.ask("load", name, size)
            _check(name, "HLL", ours.ask("run", "hll")[1], truth, _OUR_ERROR)
            _check(name, "whole profile", ours.ask("run", "profile")[1], truth, _OUR_ERROR)
            _check(name, "DuckDB", peer.ask("run", "approx_count_distinct")[1], truth, _PEER_ERROR)
            actions = {
                "hll": (ours, "hll"),
                "profile": (ours, "profile"),
                "duckdb": (peer, "approx_count_distinct"),
            }
            taken = {kind: [] for kind in actions}
            for _ in range(rounds):
                for kind, (worker, action) in actions.items():
                    taken[kind].append(worker.ask("run", action)[0])
            wall, cpu = (
                {kind: statistics.median(each[i] for each in taken[kind]) for kind in taken}
                for i in (0, 1)
            )
            found[name] = {f"{kind} Mrows/s": size / wall[kind] / 1e6 for kind in wall}
            for kind in ("hll", "profile"):
                found[name][f"{kind} / duckdb"] = wall["duckdb"] / wall[kind]
                found[name][f"{kind} / duckdb, CPU time"] = cpu["duckdb"] / cpu[kind]
    return found


def prepare(rows: int) -> float:
    """Compile or load the loops over Arrow's buffers for large columns; gives the seconds.

    Not measured with the columns: it is done once on a machine, or takes a second.

    Args:
      rows: of the column that will be measured.
    """
    is_wanted = rows >= _MIN_COMPILED_ROWS and importlib.util.find_spec("numba") is not None
    return fused.prepare() if is_wanted else 0.0


def throughput(rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """Rows per second, in millions, of each step by itself, on near-unique 64-bit integers.

    Args:
      rows: of the column.
      rounds: timed runs, of which the median counts.
    """
    import jax
    import pyarrow as pa

    column = make_column("int64 unique", rows)
    prepare(rows)
    blocks = list(hashed_blocks(column))
    host = registers.empty(_REGISTERS_PRECISION)
    host = registers.Registers(np.asarray(host.minimum), np.asarray(host.count), host.hasher)
    add = jax.jit(bottom_k.update)

    def fill_registers() -> Any:
        state = host
        for block in blocks:
            state = registers.update_on_host(state, block)
        return state.minimum

    def fill_bottom_k() -> Any:
        state = bottom_k.empty(_CAPACITY)
        for block in blocks:
            state = add(state, block.lanes, np.arange(len(block.lanes.hi)) < block.rows)
        return state.count

    steps = {
        "hash": lambda: [block.lanes for block in hashed_blocks(column)],
        "HLL": lambda: hll.update_from_column(hll.empty(_PRECISION), column).registers,
        "registers, of hashes": fill_registers,
        "bottom-k, of hashes": fill_bottom_k,
        "whole profile": lambda: ndv.table.sketch([pa.table({"x": column})]).num_rows,
        "exact profile": lambda: (
            ndv.profile_from_values(column.to_numpy(), population=rows, rate=1.0).f
        ),
    }
    return {
        name: {"Mrows/s": rows / _median_seconds(step, rounds) / 1e6}
        for name, step in steps.items()
    }


def estimators(
    columns: int, rounds: int, names: Sequence[str] = METHODS
) -> dict[str, dict[str, float]]:
    """Profiles per second of every estimator, and of the classical ones in one call.

    Args:
      columns: profiles of a batch.
      rounds: timed runs, of which the median counts.
      names: of the estimators.
    """
    import jax

    profile = ndv.to_device(_profiles(columns))
    found = {}
    together = tuple(name for name in names if name in ndv.DEVICE_ESTIMATORS)
    calls: dict[str, Callable[..., Any]] = {
        name: functools.partial(ndv.estimate, name=find_estimator(name)) for name in names
    }
    calls["classical, in one call"] = functools.partial(ndv.estimate_many, names=together)
    for name, call in calls.items():
        call = jax.jit(call)
        seconds = _median_seconds(lambda call=call: call(profile), rounds)
        found[name] = {"profiles/s": columns / seconds}
    return found


def _profiles(columns: int) -> ndv.Profile:
    """Samples of columns of Poisson counts with all kinds of means, of 64 frequencies."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(0.2, 8, columns)
    i = np.arange(1, 65)
    log_factorial = np.cumsum(np.log(i))
    weights = np.exp(i * np.log(mean)[:, None] - mean[:, None] - log_factorial)
    f = np.floor(weights * rng.uniform(100, 1e5, columns)[:, None])
    n, d, zero = (f * i).sum(axis=1), f.sum(axis=1), np.zeros(columns)
    rate = np.full(columns, 0.01)
    return ndv.dense_profile(
        f, n=n, d=d, population=np.floor(n / rate), rate=rate,
        n_tail=zero, d_tail=zero, s2_tail=zero,
    )  # fmt: skip


def _median_seconds(step: Callable[[], Any], rounds: int) -> float:
    """Seconds of a run, after one that may compile."""
    import jax

    jax.block_until_ready(step())
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(step())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _check(name: str, what: str, answer: float, truth: float, error: float) -> None:
    if abs(answer / truth - 1) > error:
        raise RuntimeError(
            f"{what} of column {name!r} gives {answer:,.0f}; the truth is {truth:,.0f}, and the "
            f"sketch should be within {error:.0%}: what is timed does not do the work"
        )


def _ours(column: Any) -> dict[str, Callable[[], float]]:
    import pyarrow as pa

    prepare(len(column))
    table = pa.table({"x": column})

    def whole_profile() -> float:
        record = ndv.table.sketch([table]).columns["x"].record
        return float(column_records.read_profile(record, len(column)).profile.d)

    return {
        "hll": lambda: float(
            hll.distinct(hll.update_from_column(hll.empty(_PRECISION), table.column(0)))
        ),
        "profile": whole_profile,
    }


def _duckdb(column: Any) -> dict[str, Callable[[], float]]:
    import duckdb
    import pyarrow as pa

    connection = duckdb.connect()
    connection.execute(f"SET threads = {THREADS}")
    connection.register("given", pa.table({"x": column}))

    def count() -> float:
        return connection.execute("SELECT approx_count_distinct(x) FROM given").fetchall()[0][0]

    return {"approx_count_distinct": count}


class _Worker:
    """A process that holds a column and runs what it is asked to."""

    def __init__(self, make: Callable[[Any], dict[str, Callable[[], float]]]):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make), daemon=True)

    def __enter__(self) -> "_Worker":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join(10)

    def ask(self, *message: Any) -> Any:
        self._pipe.send(message)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Any, make: Callable[[Any], dict[str, Callable[[], float]]]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    actions: dict[str, Callable[[], float]] = {}
    while (message := pipe.recv()) is not None:
        try:
            if message[0] == "load":
                column = make_column(*message[1:])
                actions = make(column)
                pipe.send(float(len(column.unique())))
            else:
                start = time.perf_counter(), time.process_time()
                answer = actions[message[1]]()
                end = time.perf_counter(), time.process_time()
                pipe.send(((end[0] - start[0], end[1] - start[1]), answer))
        except Exception as error:  # told to the process that asked
            pipe.send(error)
