"""The tables that runs end with, printed from the flat names of `results.json`."""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

_UNLIMITED = 100_000  # columns


def print_results(
    results: Mapping[str, float],
    title: str,
    beside: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Print flat results as a table: a heading for each group, a line for each metric.

    Args:
      results: metric name -> number; what stands before the first `/` is the group's name.
      title: what stands above the table.
      beside: heading -> (metric name -> number) of further columns, such as the floors to beat; a
        metric that a column lacks is left blank.

    Example:
      >>> print_results(
      ...     {"steps": 1200, "unseen/r1": 31.5}, "Recall", beside={"floor": {"unseen/r1": 24.1}}
      ... )  # doctest: +SKIP
    """
    columns = {"value": results, **(beside or {})}
    table = _table(title, ["metric", *columns])
    last_group = ""
    for name in sorted(results, key=lambda name: _group(name, list(results))):
        group, _, metric = name.rpartition("/") if "/" in name else ("", "", name)
        if group != last_group:
            table.add_section()
            table.add_row(f"[bold]{group}[/bold]")
            last_group = group
        numbers = [format_number(column.get(name)) for column in columns.values()]
        table.add_row(f"  {metric}" if group else metric, *numbers)
    print_table(table)


def print_grid(
    rows: Mapping[str, Mapping[str, float]],
    title: str,
    columns: Sequence[str] | None = None,
) -> None:
    """Print one line a row and one column a metric.

    Args:
      rows: row heading -> (column heading -> number); a number that is missing is left blank.
      title: what stands above the table.
      columns: the column headings in order; by default all of them, in order of appearance.
    """
    columns = columns or list(dict.fromkeys(name for row in rows.values() for name in row))
    table = _table(title, ["", *columns])
    for heading, row in rows.items():
        table.add_row(heading, *(format_number(row.get(name)) for name in columns))
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table to standard output; as wide as it is where that is no terminal.

    Args:
      table: any.
    """
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        unlimited = console.options.update(max_width=_UNLIMITED)
        console = Console(file=sys.stdout, width=console.measure(table, options=unlimited).maximum)
    console.print(table)


def format_number(value: float | None) -> str:
    """A number as people read it in a column.

    Args:
      value: a number, or None for one that is missing.

    Returns:
      Whole numbers with separated thousands; others with two decimals from 1 on, with four
      significant digits below; an empty string for None.

    Example:
      >>> [format_number(value) for value in (12345, 31.456, 0.012345, None)]
      ['12,345', '31.46', '0.01234', '']
    """
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"


def _group(name: str, names: Sequence[str]) -> tuple[bool, int]:
    """Sort key: metrics without a group first, groups in order of their first appearance."""
    group = name.rpartition("/")[0]
    return bool(group), next(
        i for i, other in enumerate(names) if other.rpartition("/")[0] == group
    )


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table
