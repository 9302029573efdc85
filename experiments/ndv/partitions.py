"""What the readers of tables share: the partition, optional packages, names in SQL."""

import importlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BATCH_ROWS = 2**16
_LISTED = 20  # tables in a message


class Blocks(NamedTuple):
    """Parts of a partition that are read one by one.

    Attributes:
      sizes: `(names) -> rows of every block`; where only reading tells, this reads these columns.
      read: `(names, numbers) -> record batches or tables` of these columns, one a block, for
        ascending numbers from 0 on.
    """

    sizes: Callable[[Sequence[str]], Sequence[int]]
    read: Callable[[Sequence[str], Sequence[int]], Iterator[Any]]


class Partition(NamedTuple):
    """A part of a table that is read by itself.

    Attributes:
      name: the file or the server, for messages.
      num_rows: its rows; None if only reading tells.
      schema: Arrow's, with the types of its columns.
      batches: `(names) -> record batches` of these columns, in the order of the rows.
      blocks: row groups of Parquet and batches of Arrow files, of which only the chosen ones are
        read; batches of other kinds, which are all read; None before the table is opened.
    """

    name: str
    num_rows: int | None
    schema: Any
    batches: Callable[[Sequence[str]], Iterator[Any]]
    blocks: Blocks | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns."""
        return tuple(self.schema.names)


def with_blocks(partition: Partition) -> Partition:
    """The partition with its batches as blocks, if it has no others.

    Args:
      partition: any.
    """
    if partition.blocks is not None:
        return partition

    def read(names: Sequence[str], numbers: Sequence[int]) -> Iterator[Any]:
        chosen = set(numbers)
        yield from (b for i, b in enumerate(partition.batches(names)) if i in chosen)

    def sizes(names: Sequence[str]) -> Sequence[int]:
        # All columns: a server may cut wider rows into more batches.
        return [batch.num_rows for batch in partition.batches(names)]

    return partition._replace(blocks=Blocks(sizes, read))


def engine(name: str) -> Any:
    """A module of an optional package.

    Raises:
      ModuleNotFoundError: if it is missing, with the way to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.split(".")[0]
        raise ModuleNotFoundError(
            f"{package} is not installed; in the checkout, pip install -e '.[ndv]' brings it"
        ) from None


def plain(rows: Any) -> Any:
    """Rows with the storage of extension types: uuid as its 16 bytes, json as its text.

    Args:
      rows: Arrow record batch or table.
    """
    arrow = engine("pyarrow")
    schema = plain_schema(rows.schema)
    columns = [
        column if column.type == kind else _stored(column, kind)
        for column, kind in zip(rows.columns, schema.types, strict=True)
    ]
    make = arrow.table if isinstance(rows, arrow.Table) else arrow.record_batch
    return make(columns, schema=schema)


def plain_schema(schema: Any) -> Any:
    """The schema of `plain` rows.

    Args:
      schema: Arrow's.
    """
    arrow = engine("pyarrow")
    kinds = [
        kind.storage_type if isinstance(kind, arrow.BaseExtensionType) else kind
        for kind in schema.types
    ]
    return arrow.schema(list(zip(schema.names, kinds, strict=True)))


def _stored(column: Any, kind: Any) -> Any:
    arrow = engine("pyarrow")
    if isinstance(column, arrow.ChunkedArray):
        return arrow.chunked_array([chunk.storage for chunk in column.chunks], type=kind)
    return column.storage


def broken(source: Path | str, kind: str, error: Exception) -> ValueError:
    """What is told of a file that cannot be read.

    Args:
      source: the file.
      kind: what it was taken for.
      error: what its reader says.
    """
    text = " ".join(str(error).split())
    return ValueError(f"{source} cannot be read as {kind}: {text}; write it again, or leave it out")


def quoted(name: str) -> str:
    """A name as SQL reads it letter by letter."""
    return '"' + name.replace('"', '""') + '"'


def spellings(*parts: str) -> set[str]:
    """The ways to write a name of several parts, each part with and without quotes.

    Example:
      >>> sorted(spellings("main", "a.b"))
      ['"main"."a.b"', '"main".a.b', 'main."a.b"', 'main.a.b']
    """
    return {".".join(one) for one in itertools.product(*((part, quoted(part)) for part in parts))}


def spelled(*parts: str) -> str:
    """A name of several parts, with quotes where it would be read otherwise without.

    Example:
      >>> spelled("main", "a.b")
      'main."a.b"'
    """
    return ".".join(part if re.fullmatch(r"\w+", part) else quoted(part) for part in parts)


def listed(names: Sequence[str]) -> str:
    """The first names of tables, for a message."""
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "(it has none)") + rest
