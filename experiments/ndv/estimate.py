"""Estimate the number of distinct values of the columns of a table.

    python -m experiments.ndv.estimate --input='data/*.parquet' --rate=0.01
    python -m experiments.ndv.estimate --input=shop.duckdb --table=orders --columns=customer,price
    python -m experiments.ndv.estimate --input=postgresql://me@host/shop --table=public.orders

Every file is a partition: it is sampled and sketched by itself, and the sketches are merged, as
machines would. The result is a table, and with `--json=FILE` a file with `{"columns": [...]}`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import run
from experiments.common.tables import format_number
from experiments.ndv.readers import Partition, open_partitions, select_columns
from jaxlab.ndv.sampling import check_rate
from jaxlab.ndv.table import (
    DEFAULT_BUDGET_BYTES,
    ColumnEstimate,
    TableSketch,
    estimate_table,
    merge_all,
    sketch,
)

WIDTH = 120  # columns of the table where standard output is no terminal

_INPUT = flags.DEFINE_list(
    "input",
    None,
    "Files or patterns: Parquet, Arrow, CSV, DuckDB, every file a partition; or "
    "postgresql://user@host/database.",
)
_TABLE = flags.DEFINE_string("table", None, "Table in a DuckDB file, or schema.name in PostgreSQL.")
_COLUMNS = flags.DEFINE_list("columns", None, "Columns to estimate; all by default.")
_UNIQUE = flags.DEFINE_list("unique_columns", [], "Columns that the schema says are unique.")
_RATE = flags.DEFINE_float("rate", 0.01, "Share of the rows to sample, in (0, 1].")
_BUDGET = flags.DEFINE_integer(
    "budget_bytes", DEFAULT_BUDGET_BYTES, "Bytes that a partition may send for a column."
)
_METHOD = flags.DEFINE_string("method", "auto", "Estimator, such as GEE; auto chooses one.")
_LEVEL = flags.DEFINE_float("level", 0.95, "Probability of the intervals.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sample and of the intervals.", 0)
_NESTED = flags.DEFINE_boolean("serialize_nested", False, "Take lists, structs and maps as values.")
_JSON = flags.DEFINE_string("json", None, "File to write the estimates to.")


def main() -> None:
    """Sample, sketch, merge, estimate, report."""
    if not _INPUT.value:
        raise ValueError("--input is missing; give a file or a pattern such as 'data/*.parquet'")
    check_rate(_RATE.value)
    target = _json_target(_JSON.value)
    partitions = open_partitions(_INPUT.value, _TABLE.value)
    names = select_columns(partitions, _COLUMNS.value)
    select_columns(partitions, _UNIQUE.value)
    table = sketch_partitions(partitions, names)
    answers = estimate_table(
        table,
        unique_columns=[name for name in _UNIQUE.value if name in names],
        partitions=range(len(partitions)),
        method=_METHOD.value,
        level=_LEVEL.value,
        seed=_SEED.value,
    )
    print_estimates(answers, title=f"{table.num_read:,} of {table.num_rows:,} rows read")
    if target is not None:
        target.write_text(
            json.dumps({"columns": [to_json(answer) for answer in answers]}, indent=1)
        )
        print(f"Written: {target}")


def sketch_partitions(partitions: Sequence[Partition], names: Sequence[str]) -> TableSketch:
    """The merge of the sketches of all partitions, with a progress bar over their rows.

    Args:
      partitions: parts of one table.
      names: columns to read.
    """
    from tqdm import tqdm

    known = [partition.num_rows for partition in partitions]
    total = None if None in known else sum(rows or 0 for rows in known)
    with tqdm(total=total, unit="row", unit_scale=True, disable=None, dynamic_ncols=True) as bar:

        def one(index: int, partition: Partition) -> TableSketch:
            bar.set_postfix_str(Path(partition.name).name)
            return sketch(
                partition.batches(names), columns=names, rate=_RATE.value, partition=index,
                seed=_SEED.value, budget_bytes=_BUDGET.value, on_batch=bar.update,
                serialize_nested=_NESTED.value,
            )  # fmt: skip

        return merge_all(one(index, partition) for index, partition in enumerate(partitions))


def to_json(answer: ColumnEstimate) -> dict[str, Any]:
    """The answer as it stands in the JSON file."""
    result = answer.result
    return {
        "column": answer.column,
        "estimate": result.estimate,
        "low": result.low,
        "high": result.high,
        "method": result.method,
        "reason": result.reason,
        "status": result.status,
        "coverage": result.coverage,
        "null_fraction": answer.null_fraction,
        "rows": answer.num_rows,
        "rows_read": answer.num_read,
        "bytes_exchanged": answer.bytes_exchanged,
    }


def print_estimates(answers: Sequence[ColumnEstimate], title: str) -> None:
    """Print one line a column.

    Args:
      answers: of all columns.
      title: what stands above.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("column", "estimate", "interval", "method", "why", "nulls", "bytes"):
        is_text = heading in ("column", "method", "why")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading != "why")
    for answer in answers:
        result = answer.result
        ends = " to ".join(format_number(round(end)) for end in (result.low, result.high))
        table.add_row(
            answer.column, format_number(round(result.estimate)), ends, result.method,
            result.reason, f"{answer.null_fraction:.1%}", format_number(answer.bytes_exchanged),
        )  # fmt: skip
    console = Console(file=sys.stdout)
    console = console if console.is_terminal else Console(file=sys.stdout, width=WIDTH)
    console.print(table)


def _json_target(path: str | None) -> Path | None:
    """Where to write, checked before the table is read."""
    if path is None:
        return None
    target = Path(path).expanduser()
    if not target.parent.is_dir() or target.is_dir():
        raise ValueError(f"--json={path} cannot be written; give a file in a folder that exists")
    return target


if __name__ == "__main__":
    run(main)
