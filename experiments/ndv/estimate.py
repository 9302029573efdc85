"""Estimate the number of distinct values of the columns of a table.

    python -m experiments.ndv.estimate --input='data/*.parquet' --rate=0.01
    python -m experiments.ndv.estimate --input=shop.duckdb --table=orders --columns=customer,price
    python -m experiments.ndv.estimate --input='data/*.parquet' --rate=0.01 --sample=blocks
    python -m experiments.ndv.estimate --input=postgresql://me@host/shop --table=public.orders

Every file is a partition: it is sampled and sketched by itself, and the sketches are merged, as
machines would. With `--sample=blocks` whole row groups of Parquet and batches of Arrow files are
drawn, and nothing else is read; of other kinds every batch is read and some are taken. Columns of
lists, structs or maps are skipped, unless `--serialize_nested` is given. The result is a table, and
with `--json=FILE` a file with `{"columns": [...]}`, the columns that were skipped and the bytes
sent in all.
"""

import csv
import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.common import run
from experiments.common.json_file import json_target, write_json
from experiments.common.tables import format_number, print_table
from experiments.ndv.readers import Partition, open_partitions, select_columns, split_nested
from jaxlab.ndv.arguments import known_name, list_names
from jaxlab.ndv.blocks import CLUSTERED_ABOVE, Clustering, clustering, sample_blocks
from jaxlab.ndv.choice import METHODS
from jaxlab.ndv.columns import check_kinds, hash_column
from jaxlab.ndv.hashing import join_words
from jaxlab.ndv.table import (
    DEFAULT_BUDGET_BYTES,
    ColumnEstimate,
    TableSketch,
    estimate_table,
    merge_all,
    sketch,
)

WATCHED_BLOCKS, WATCHED_ROWS = 64, 4096
"""Of how many blocks, and how many first rows of each, values are compared to find clusters."""

MIN_BLOCKS = 8
"""Blocks that are read at least, if there are so many: fewer tell nothing of the others."""

_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "Files or patterns: Parquet, Arrow, CSV (.csv, .tsv, .csv.gz ...), DuckDB, every file a "
    "partition; or postgresql://user@host/database. Several may stand between commas",
)
_TABLE = flags.DEFINE_string(
    "table",
    None,
    "Table or view in DuckDB files or PostgreSQL databases, as name or schema.name; not needed "
    "where there is one.",
)
_DELIMITER = flags.DEFINE_string(
    "delimiter",
    None,
    r"Character between the values of CSV files, \t for a tab; by default a comma, and a tab in "
    "files ending in .tsv.",
)
_COLUMNS = flags.DEFINE_list("columns", None, "Columns to estimate; all by default.")
_EXCLUDE = flags.DEFINE_list("exclude", None, "Columns to leave out.")
_UNIQUE = flags.DEFINE_list("unique_columns", None, "Columns that the schema says are unique.")
_RATE = flags.DEFINE_float("rate", 0.01, "Share of the rows or blocks to sample, in (0, 1].")
flags.register_validator(
    _RATE, lambda rate: 0 < rate <= 1, "wanted a share in (0, 1]; 0.01 reads one row in a hundred"
)
_SAMPLE = flags.DEFINE_enum(
    "sample", "rows", ["rows", "blocks"], "Draw single rows, or read whole blocks and no others."
)
_BUDGET = flags.DEFINE_integer(
    "budget_bytes", DEFAULT_BUDGET_BYTES, "Bytes that a partition may send for a column.",
    lower_bound=256, allow_override=True,
)  # fmt: skip
_METHOD = flags.DEFINE_string(
    "method", "auto", f"auto chooses one for every column; others: {', '.join(METHODS)}."
)
_LEVEL = flags.DEFINE_float("level", 0.95, "Probability of the intervals, in (0, 1).")
flags.register_validator(
    _LEVEL, lambda level: 0 < level < 1, "wanted a number in (0, 1), such as 0.95"
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sample and of the intervals.", 0, 2**32 - 1)
_NESTED = flags.DEFINE_boolean(
    "serialize_nested",
    False,
    "Take lists, structs and maps as values; by default their columns are skipped.",
)

flags.declare_key_flag("json")


def main() -> None:
    """Sample, sketch, merge, estimate, report."""
    inputs = [part for value in _INPUT.value or () for part in next(csv.reader([value]), ())]
    if not inputs:
        raise ValueError("--input is missing; give a file or a pattern such as 'data/*.parquet'")
    method = method_named(_METHOD.value)
    target = json_target()
    partitions = open_partitions(inputs, _TABLE.value, delimiter_named(_DELIMITER.value))
    names = select_columns(partitions, _COLUMNS.value, _EXCLUDE.value or ())
    unique = select_columns(partitions, _UNIQUE.value) if _UNIQUE.value else []
    skipped: dict[str, str] = {}
    if not _NESTED.value:
        names, skipped = split_nested(partitions, names, [*(_COLUMNS.value or ()), *unique])
    watch = BlockWatch(names)
    if _SAMPLE.value == "blocks" and _RATE.value < 1:
        table = sketch_blocks(partitions, names, watch)
    else:
        table = sketch_partitions(partitions, names)
    answers = estimate_table(
        table,
        unique_columns=[name for name in unique if name in names],
        partitions=range(len(partitions)),
        method=method,
        level=_LEVEL.value,
        seed=_SEED.value,
    )
    found = watch.clustering(_SEED.value) if table.is_block_sample else {}
    print_estimates(answers, title=f"{table.num_read:,} of {table.num_rows:,} rows read")
    plural = "" if len(partitions) == 1 else "s"
    print(
        f"{table.sent_bytes:,} bytes sent by {len(partitions):,} partition{plural}, "
        f"{table.shared_bytes:,} of them not for one column alone"
    )
    if (warning := unread_warning(answers)) is not None:
        print(warning)
    for name, kind in skipped.items():
        print(
            f"Skipped: column {name!r} of type {textwrap.shorten(kind, 120)}; --serialize_nested "
            "takes such values as they are"
        )
    if table.is_block_sample:
        print(clustering_report(found))
    if target is not None:
        content = {
            "columns": [to_json(answer, found.get(answer.column)) for answer in answers],
            "skipped": [{"column": name, "type": kind} for name, kind in skipped.items()],
            "bytes_exchanged": table.sent_bytes,
            "shared_bytes": table.shared_bytes,
        }
        write_json(target, content)


def method_named(name: str) -> str:
    """The name of an estimator as the library writes it; "auto" is one.

    Args:
      name: in any case.

    Raises:
      ValueError: if there is none, before anything is read; the nearest is named.
    """
    if name.lower() == "auto":
        return "auto"
    known = known_name(name, METHODS)
    if known is None:
        raise ValueError(f"--method={name} is no estimator{list_names(name, METHODS)}")
    return known


def delimiter_named(text: str | None) -> str | None:
    r"""The character that `--delimiter` means.

    Args:
      text: a character, or `\t` or `tab` for a tab; None for the default of the file.

    Raises:
      ValueError: if it is another text, or a character that CSV files need for other things.
    """
    if text in (r"\t", "tab"):
        return "\t"
    if text is not None and (len(text) != 1 or not text.isascii() or text in '"\r\n'):
        raise ValueError(
            rf"--delimiter={text!r} cannot stand between values; give one ASCII character, or \t"
        )
    return text


def sketch_partitions(partitions: Sequence[Partition], names: Sequence[str]) -> TableSketch:
    """The merge of the sketches of all partitions, with a progress bar over their rows.

    Args:
      partitions: parts of one table.
      names: columns to read.
    """
    from tqdm import tqdm

    known = [partition.num_rows for partition in partitions]
    total = None if None in known else sum(rows or 0 for rows in known)
    kinds: dict[str, tuple[str, str]] = {}
    with tqdm(total=total, unit="row", unit_scale=True, disable=None, dynamic_ncols=True) as bar:

        def one(index: int, partition: Partition) -> TableSketch:
            bar.set_postfix_str(Path(partition.name).name)
            batches = of_one_kind(partition.batches(names), kinds, names, partition.name)
            return sketch(
                batches, columns=names, rate=_RATE.value, partition=index,
                seed=_SEED.value, budget_bytes=_BUDGET.value, on_batch=bar.update,
                serialize_nested=_NESTED.value,
            )  # fmt: skip

        return merge_all(one(index, partition) for index, partition in enumerate(partitions))


def of_one_kind(
    batches: Iterable[Any], seen: dict[str, tuple[str, str]], names: Sequence[str], where: str
) -> Iterator[Any]:
    """The same batches; a column that held another kind of values before is refused.

    Args:
      batches: Arrow record batches or tables.
      seen: what columns have held so far; it is changed.
      names: columns to look at.
      where: what the batches are called, such as the name of a file.
    """
    for batch in batches:
        check_kinds(seen, batch.schema, names, where)
        yield batch


class BlockWatch:
    """Keeps hashes of the first rows of some blocks, to see whether equal values lie together.

    Args:
      names: columns to watch.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.hashes: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self.num_blocks = 0

    def through(self, blocks: Iterator[Any]) -> Iterator[Any]:
        """The same blocks, looked at on the way."""
        for block in blocks:
            if block.num_rows and self.num_blocks < WATCHED_BLOCKS:
                self._look(block.slice(0, WATCHED_ROWS))
            yield block

    def _look(self, rows: Any) -> None:
        self.num_blocks += 1
        for name in self.names:
            hashed = hash_column(rows.column(name), serialize_nested=_NESTED.value)
            self.hashes[name].append(join_words(hashed.lanes)[hashed.valid])

    def clustering(self, seed: int) -> dict[str, Clustering]:
        """How clustered each column is; nothing if fewer than two blocks were seen.

        Args:
          seed: of the shuffle that they are compared with.
        """
        if self.num_blocks < 2:
            return {}
        found = {}
        for name, parts in self.hashes.items():
            block = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            if len(np.unique(block)) > 1:
                found[name] = clustering(np.concatenate(parts), block, seed=seed)
        return found


def sketch_blocks(
    partitions: Sequence[Partition], names: Sequence[str], watch: BlockWatch
) -> TableSketch:
    """The merge of the sketches of a sample of blocks, each collapsed to its values.

    Blocks of all partitions are drawn together, so that the share is the same for each of them.

    Args:
      partitions: parts of one table.
      names: columns to read.
      watch: sees the blocks.
    """
    from tqdm import tqdm

    parts = [partition.blocks for partition in partitions]
    sizes = [part.sizes(names) for part in parts if part is not None]
    counts = [len(part) for part in sizes]
    if not sum(counts):
        return sketch_partitions(partitions, names)
    wanted = max(_RATE.value, min(MIN_BLOCKS / sum(counts), 1.0))
    chosen = sample_blocks(sum(counts), wanted, seed=_SEED.value)
    if wanted > _RATE.value:
        print(
            f"{_RATE.value:.3g} of {sum(counts)} blocks would be fewer than {MIN_BLOCKS}, which "
            f"tell nothing of the others: {len(chosen)} are read"
        )
    starts = np.cumsum([0, *counts])
    kinds: dict[str, tuple[str, str]] = {}
    with tqdm(total=len(chosen), unit="block", disable=None, dynamic_ncols=True) as bar:

        def one(index: int) -> TableSketch:
            part, inside = parts[index], (chosen >= starts[index]) & (chosen < starts[index + 1])
            assert part is not None
            numbers = (chosen[inside] - starts[index]).tolist()
            read = of_one_kind(part.read(names, numbers), kinds, names, partitions[index].name)
            return sketch(
                watch.through(read), columns=names, collapse=True,
                rate=len(chosen) / sum(counts), partition=index, budget_bytes=_BUDGET.value,
                on_batch=lambda _: bar.update(1), serialize_nested=_NESTED.value,
            )  # fmt: skip

        table = merge_all(one(index) for index in range(len(partitions)))
    return dataclasses.replace(table, num_rows=sum(map(sum, sizes)))


def clustering_report(found: Mapping[str, Clustering]) -> str:
    """What is to be said of columns whose values lie together in blocks.

    Args:
      found: by column; empty if there was nothing to compare.
    """
    if not found:
        return "One block with values was read: whether values lie together cannot be told."
    together = [
        f"{name} ({one.in_blocks:.2f} of the rows repeat a value of their block, "
        f"{one.at_random:.2f} if rows lay at random)"
        for name, one in found.items()
        if one.is_clustered
    ]
    if not together:
        return (
            f"No column is clustered by more than {CLUSTERED_ABOVE} in the blocks that were read; "
            "that says nothing of the others."
        )
    return (
        f"Warning: equal values lie together in blocks in {', '.join(together)}. These rows are no "
        "sample of rows; one row per value and block was taken, which repairs sorted and clustered "
        "keys and may be off by factors elsewhere. Compare with --sample=rows."
    )


def unread_warning(answers: Sequence[ColumnEstimate]) -> str | None:
    """What is to be said if the sample missed columns altogether; None if it did not.

    Args:
      answers: of all columns.
    """
    unread = [one.column for one in answers if one.result.method == "EMPTY" and one.result.high > 0]
    if not unread:
        return None
    if all(one.num_read == 0 for one in answers):
        what = f"none of the {answers[0].num_rows:,} rows was read"
    else:
        what = f"no row with a value of {', '.join(unread)} was read, though there are some"
    return (
        f"Warning: {what}. The sample is too small: an estimate of 0 from it says nothing. Give a "
        "larger --rate; 1 reads all rows."
    )


def to_json(answer: ColumnEstimate, found: Clustering | None = None) -> dict[str, Any]:
    """The answer as it stands in the JSON file.

    Args:
      answer: of a column.
      found: how clustered it is in blocks, if that is known.
    """
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
        "clustering": None if found is None else found.difference,
    }


def print_estimates(answers: Sequence[ColumnEstimate], title: str) -> None:
    """Print one line a column.

    Args:
      answers: of all columns.
      title: what stands above.
    """
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
    print_table(table)


if __name__ == "__main__":
    run(main)
