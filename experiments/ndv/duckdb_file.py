"""Tables and views in DuckDB files as Arrow record batches.

Names are DuckDB's: upper and lower case do not matter, `schema.table` names one of several schemas,
and a part in double quotes is read letter by letter.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.ndv.partitions import (
    BATCH_ROWS,
    Partition,
    broken,
    engine,
    listed,
    quoted,
    spelled,
    spellings,
)

_TABLES = """
    SELECT database_name, schema_name, table_name, false FROM duckdb_tables()
    WHERE NOT internal AND NOT temporary AND database_name = current_database()
    UNION ALL
    SELECT database_name, schema_name, view_name, true FROM duckdb_views()
    WHERE NOT internal AND NOT temporary AND database_name = current_database()
    ORDER BY 2, 3
"""


class _Table(NamedTuple):
    database: str
    schema: str
    name: str
    is_view: bool


def open_table(path: Path, table: str | None) -> Partition:
    """A table or view of a file as a partition; the rows of a view are not counted.

    Args:
      path: the file.
      table: `name`, `schema.name` or `database.schema.name`; not needed where there is one.

    Raises:
      ValueError: if the file is broken, or the table does not exist, is one of several of that name
        or has to be named, or a view cannot be read.
      ModuleNotFoundError: if the package duckdb is missing.
    """
    duckdb = engine("duckdb")
    try:
        connection = duckdb.connect(str(path), read_only=True)
        tables = [_Table(*row) for row in connection.execute(_TABLES).fetchall()]
    except duckdb.Error as error:
        raise broken(path, "DuckDB", error) from error
    found = _choose(tables, table, path)
    source = f"{quoted(found.schema)}.{quoted(found.name)}"
    shown = f"{path}:{spelled(found.schema, found.name)}"
    with _telling(shown):
        schema = connection.sql(f"SELECT * FROM {source} LIMIT 0").to_arrow_reader(1).schema
        count = f"SELECT count(*) FROM {source}"
        num_rows = None if found.is_view else connection.execute(count).fetchall()[0][0]

    def batches(names: Sequence[str]) -> Iterator[Any]:
        query = f"SELECT {', '.join(map(quoted, names))} FROM {source}"
        with _telling(shown):
            yield from connection.sql(query).to_arrow_reader(BATCH_ROWS)

    return Partition(shown, num_rows, schema, batches)


@contextlib.contextmanager
def _telling(shown: str) -> Iterator[None]:
    """What DuckDB refuses to do is an error that names the table."""
    duckdb, arrow = engine("duckdb"), engine("pyarrow")
    try:
        yield
    except (duckdb.Error, arrow.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{shown} cannot be read: {text}; give another --table") from error


def _choose(tables: Sequence[_Table], table: str | None, path: Path) -> _Table:
    """The table that is meant."""
    fitting = [one for one in tables if table is None or _is_meant(one, table)]
    if len(fitting) == 1:
        return fitting[0]
    got = "no --table" if table is None else f"--table={table}"
    if table is not None and fitting:
        names = [spelled(one.schema, one.name) for one in fitting]
        raise ValueError(f"{got} is several tables of {path}; give one of {listed(names)}")
    is_default = all(one.schema == "main" for one in tables)
    names = [spelled(one.name) if is_default else spelled(one.schema, one.name) for one in tables]
    raise ValueError(f"{got} for {path}; give one of {listed(names)}")


def _is_meant(one: _Table, table: str) -> bool:
    parts = (one.database, one.schema, one.name)
    names = set().union(*(spellings(*parts[first:]) for first in range(3)))
    return table.casefold() in {name.casefold() for name in names}
