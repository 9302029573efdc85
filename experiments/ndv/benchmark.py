"""Measure sketches and estimators of distinct values: speed, bytes, errors.

    python -m experiments.ndv.benchmark --suite=speed --json=speed.json
    python -m experiments.ndv.benchmark --suite=communication --rows=1e9

Suites: `speed` (from an Arrow column to a sketch, beside DuckDB's `approx_count_distinct`, and the
steps by themselves), `estimators` (profiles per second), `communication` (bytes of messages beside
those of dictionaries), `leave_one_out` (bytes beside the sketches of Li et al. at an equal error).
`experiments/BENCHMARKS.md` holds the numbers last measured.
"""

from absl import flags

from experiments.common import print_grid, run
from experiments.common.json_file import json_target, write_json
from experiments.ndv.benchmark_bytes import (
    KEYS,
    MEANS,
    NUM_KEYS,
    communication,
    leave_one_out_bytes,
)
from experiments.ndv.benchmark_speed import estimators, speed, throughput
from jaxlab.ndv.choice import METHODS
from jaxlab.ndv.table import DEFAULT_BUDGET_BYTES

Grid = dict[str, dict[str, float]]
MAX_ROWS = 1e13

_SUITE = flags.DEFINE_enum(
    "suite", None, ["speed", "communication", "leave_one_out", "estimators"], "What to measure."
)
_ROWS = flags.DEFINE_float(
    "rows",
    None,
    "Rows of a column of numbers of the speed suite (20e6 by default), or of the whole sample of "
    "the communication suite (1e9).",
)
_TEXT_ROWS = flags.DEFINE_float("text_rows", 10e6, "Rows of a column of texts of the speed suite.")
for _flag in (_ROWS, _TEXT_ROWS):
    flags.register_validator(
        _flag,
        lambda rows: rows is None or 1 <= rows <= MAX_ROWS,
        f"wanted from 1 to {MAX_ROWS:g} rows",
    )
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed runs, of which the median counts.", 1)
_PARTITIONS = flags.DEFINE_integer("partitions", 512, "Machines of the communication suite.", 1)
_BUDGET = flags.DEFINE_integer(
    "budget_bytes", DEFAULT_BUDGET_BYTES, "Most bytes of a message of the communication suite.",
    lower_bound=256, allow_override=True,
)  # fmt: skip
_PROFILES = flags.DEFINE_integer("profiles", 20_000, "Profiles of a batch of estimates.", 1)
_METHODS = flags.DEFINE_list("methods", None, "Estimators of the estimators suite; all by default.")
_MACHINES = flags.DEFINE_integer("machines", 64, "Machines of the leave-one-out suite.", 2)
_PRECISION = flags.DEFINE_integer("precision", 11, "Log2 of leave-one-out's registers.", 4, 16)
_VALUES = flags.DEFINE_integer("values", 200_000, "Values of a leave-one-out draw.", 300)
_SEEDS = flags.DEFINE_integer("seeds", 20, "Draws of the leave-one-out suite.", 1)

flags.declare_key_flag("json")


def main() -> None:
    """Run a suite, print its tables, save its numbers."""
    if _SUITE.value is None:
        raise ValueError("--suite is missing; give speed, communication, leave_one_out, estimators")
    target = json_target()
    found = {
        "speed": _run_speed,
        "communication": _run_communication,
        "leave_one_out": _run_leave_one_out,
        "estimators": _run_estimators,
    }[_SUITE.value]()
    for title, grid in found.items():
        print_grid(grid, title)
    if target is not None:
        write_json(target, found)


def _run_speed() -> dict[str, Grid]:
    rows = int(_ROWS.value or 20e6)
    beside = speed(rows, int(_TEXT_ROWS.value), _ROUNDS.value)
    return {"Columns to sketches": beside, "Steps": throughput(rows, _ROUNDS.value)}


def _run_estimators() -> dict[str, Grid]:
    methods = _METHODS.value or list(METHODS)
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"--methods has {', '.join(unknown)}; there are {', '.join(METHODS)}")
    return {"Estimators": estimators(_PROFILES.value, _ROUNDS.value, methods)}


def _run_communication() -> dict[str, Grid]:
    rows = int(_ROWS.value or 1e9)
    if rows < _PARTITIONS.value:
        raise ValueError(f"--rows={rows} is less than --partitions={_PARTITIONS.value}")
    num_keys = NUM_KEYS * rows // 10**9 or 1
    with _bar(len(KEYS) * (rows // _PARTITIONS.value) * _PARTITIONS.value, "row") as bar:
        found = communication(rows, _PARTITIONS.value, num_keys, bar.update, _BUDGET.value)
    return {"Bytes": found}


def _run_leave_one_out() -> dict[str, Grid]:
    with _bar(len(MEANS) * _SEEDS.value, "draw") as bar:
        found = leave_one_out_bytes(
            _MACHINES.value, _PRECISION.value, _VALUES.value, _SEEDS.value, bar.update
        )
    # Few columns a table, so that they fit a terminal.
    kinds: tuple[str, ...] = ("leave-one-out", "registers", "bottom-k")
    return {kind: {name: _of(row, kind) for name, row in found.items()} for kind in kinds}


def _of(row: dict[str, float], kind: str) -> dict[str, float]:
    return {key.removeprefix(f"{kind} "): x for key, x in row.items() if key.startswith(kind)}


def _bar(total: int, unit: str):  # noqa: ANN202
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, unit_scale=True, disable=None, dynamic_ncols=True)


if __name__ == "__main__":
    run(main)
